"""What Python imports at its start under `python -m graceful_close run`, by PYTHONPATH.

It must not fail, whatever Python this is: then the program runs as it would have.
"""

from __future__ import annotations

import sys
from importlib import import_module


def _begin() -> None:
    try:
        import_module("graceful_close._launched").begin()
    except Exception as error:  # noqa: BLE001 (a newer or an older Python, or one without the package)
        sys.stderr.write(f"graceful-close: not in {sys.executable}: {error!r}\n")


def _give_way() -> None:
    """Have the user's own sitecustomize imported, which ours stands before."""
    here = __file__.replace("\\", "/").rpartition("/")[0]
    ours = sys.modules.pop(__name__, None)
    sys.path[:] = [entry for entry in sys.path if entry.replace("\\", "/").rstrip("/") != here]
    try:
        import_module("sitecustomize")
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
        if ours is not None:
            sys.modules[__name__] = ours


_begin()
_give_way()
