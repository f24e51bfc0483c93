"""Situations that nobody thought of: a choice along each axis, and an oracle that is not our code.

A situation says how a connection came to be, what was done to it, what its peer does, and who closes
it how. `axes` names the choices and the rules between them, `pairwise` combines them, `build` makes
the connection, `peers` and `scripted` are the other end, `closers` closes, `play` puts it together,
`oracle` judges by the peer's record, the kernel, the descriptor table and the clocks, and `search`
finds the smallest situation that is wrong, which `program` prints.

    PYTHONPATH=tests python -m situations 10000        (or: pytest tests/situations --situations 10000)
"""

from .axes import Situation
from .play import Lab, laid
from .search import complaints_once

__all__ = ["Lab", "Situation", "complaints_once", "laid"]
