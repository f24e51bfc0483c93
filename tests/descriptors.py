"""Limits the number of descriptors of this process (getrlimit(2))."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

import pytest


@contextmanager
def limited_to(count: int) -> Generator[None, None, None]:
    """Limit descriptor numbers to below `count` in the block; open descriptors stay open."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"a process may not have {count} descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def none_left(but: int = 0) -> Generator[None, None, None]:
    """Make every request for a new descriptor fail in the block (EMFILE), `but` so many."""
    lowest_free = os.dup(0)
    os.close(lowest_free)
    with limited_to(lowest_free + but):
        yield
