"""The only place for the differences between systems: numbers, layouts, units, ranges, errors, probes.

The differences are data, for every system that the library knows, so a test (or a reader) can inspect
`SYSTEMS["macos"]` on any machine. `HERE` is the system on which the program runs. No other module of
the package packs a struct, has the number of an option, or decides what the error of a connection means.
"""

from __future__ import annotations

import os
import sys

from .acks import TcpState, View
from .disconnect import disconnect
from .errors import ErrorKind, error_kind, reset_error
from .limits import descriptor_limit
from .modes import KEEPS_MODE, keep_mode, mode_to_keep
from .openssl import forget_tls_error
from .systems import SYSTEMS, System, identify

__all__ = [
    "HERE",
    "KEEPS_MODE",
    "SYSTEMS",
    "ErrorKind",
    "System",
    "TcpState",
    "View",
    "descriptor_limit",
    "disconnect",
    "error_kind",
    "forget_tls_error",
    "identify",
    "keep_mode",
    "mode_to_keep",
    "reset_error",
]

HERE: System = SYSTEMS[
    identify(sys.platform, os.uname().machine if hasattr(os, "uname") else "")
]
