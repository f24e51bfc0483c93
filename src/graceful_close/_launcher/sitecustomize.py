"""What Python imports at its start under `python -m graceful_close run`, by PYTHONPATH.

It must not fail, whatever Python this is: then the program runs as it would have. So there is no syntax
here that Python 2.7 does not have, and there are no functions, because functions have annotations.
"""

import os
import sys
from importlib import import_module

try:
    import_module("graceful_close._launched").begin()
except Exception as error:  # noqa: BLE001 (a newer or an older Python, or one without the package)
    if sys.stderr is not None:  # None: descriptor 2 is closed
        _text = "graceful-close: not in " + str(sys.executable) + ": " + repr(error) + "\n"
        try:
            # Not by sys.stderr, which would try again at the exit, and change the exit code.
            os.write(2, _text.encode("ascii", "backslashreplace"))
        except OSError:
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
