"""What Python imports at its start under `python -m graceful_close run`, by PYTHONPATH.

It must not fail, whatever Python this is: then the program runs as it would have. So there is no syntax
here that Python 2.7 does not have, and there are no functions, because functions have annotations.
"""

import sys
from importlib import import_module

try:
    import_module("graceful_close._launched").begin()
except Exception as error:  # noqa: BLE001 (a newer or an older Python, or one without the package)
    try:
        sys.stderr.write(
            "graceful-close: not in " + str(sys.executable) + ": " + repr(error) + "\n"
        )
    except Exception:  # noqa: BLE001, S110 (stderr is closed, and sys.stderr is None)
        pass

# Have the user's own sitecustomize imported, which ours stands before.
_here = __file__.replace("\\", "/").rpartition("/")[0]
_ours = sys.modules.pop(__name__, None)
sys.path[:] = [entry for entry in sys.path if entry.replace("\\", "/").rstrip("/") != _here]
try:
    import_module("sitecustomize")
except ImportError as error:
    if getattr(error, "name", "sitecustomize") != "sitecustomize":  # Python 2 gives no name
        raise
    if _ours is not None:
        sys.modules[__name__] = _ours
