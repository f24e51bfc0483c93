"""The one home of platform differences: numbers, layouts, units, ranges, errors, probes.

All of it is data, for every system the library knows, so that a test (or a reader) can look
at `SYSTEMS["macos"]` on any machine. `HERE` is the system that is running. Nothing else in the
package packs a struct, names an option number or lists error numbers.
"""

from __future__ import annotations

import os
import sys

from .acks import TcpState, View
from .disconnect import disconnect
from .errors import ErrorKind, error_kind
from .limits import descriptor_limit
from .modes import forgotten_mode, restore_mode
from .systems import SYSTEMS, System, identify

__all__ = [
    "HERE",
    "SYSTEMS",
    "ErrorKind",
    "System",
    "TcpState",
    "View",
    "descriptor_limit",
    "disconnect",
    "error_kind",
    "forgotten_mode",
    "identify",
    "restore_mode",
]

HERE: System = SYSTEMS[
    identify(sys.platform, os.uname().machine if hasattr(os, "uname") else "")
]
