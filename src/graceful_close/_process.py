"""Which process this is. os.getpid() is a system call, too many for each connection."""

from __future__ import annotations

import os

number = os.getpid()


def _forked() -> None:
    global number  # noqa: PLW0603
    number = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
