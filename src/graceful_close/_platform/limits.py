"""The number of descriptors that a process may have."""

from __future__ import annotations

import sys


def descriptor_limit() -> int | None:
    """The soft limit of this process (RLIMIT_NOFILE, getrlimit(2)); None: unlimited."""
    if sys.platform == "win32":
        return None
    else:  # noqa: RET505  (type checkers follow this form)
        try:
            import resource  # not at import time, because few programs need it
        except ImportError:
            return None  # Emscripten

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return None if soft == resource.RLIM_INFINITY else soft
