"""Generated situations: one choice along each axis, and an oracle that is independent of the library.

A situation describes how a connection was made, what was done to it, what the peer does, and how the
connection is closed.

| module | contents |
| --- | --- |
| `axes` | the choices along each axis, and the rules that exclude combinations |
| `pairwise` | few situations that contain every pair of choices |
| `build` | the connection, and what was done to it before the call |
| `peers`, `programs`, `scripted` | the other end: our own program, curl, or a TCP of our own |
| `options` | the options of the close |
| `others` | the other connections of a `close_all()` |
| `closers` | the call, in each driver |
| `probe` | the measurements around the call |
| `processes` | callers in processes of their own |
| `trace` | the kernel's record of the connection |
| `play` | one situation from the connection to the records |
| `oracle`, `oracle_of_trace` | the judgement of the records |
| `search`, `program` | the smallest wrong situation, printed as a program |

    PYTHONPATH=tests python -m situations 10000        (or: pytest tests/situations --situations 10000)
"""

from .axes import Situation
from .play import Lab, open_lab
from .search import complaints_once

__all__ = ["Lab", "Situation", "complaints_once", "open_lab"]
