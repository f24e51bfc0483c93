"""A subinterpreter closes connections as the main interpreter does (PEP 684)."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pythons import PYPY, without_coverage
from streams import DEADLINE

pytestmark = pytest.mark.skipif(PYPY, reason="PyPy has no subinterpreters")

_CODE = """
import os, socket, sys
sys.path[:] = {path!r}
from graceful_close import Reaper, abortive_close, close_all, graceful_close

with socket.create_server(("127.0.0.1", 0)) as listener:
    def ended():
        peer = socket.create_connection(listener.getsockname())
        ours = listener.accept()[0]
        peer.close()
        return ours

    results = [graceful_close(ended()), close_all([ended()])[0]]
    with Reaper() as reaper:
        results.append(reaper.submit(ended()).result(20))
    if sys.version_info >= (3, 12):  # 3.11 cannot end a subinterpreter that has a thread
        left = Reaper()
        results.append(left.submit(ended()).result(20))
    results.append(abortive_close(ended()))
os.write({to}, " ".join(result.outcome.name for result in results).encode())
"""

_CHILD = """
import os, sys
from test_subinterpreters import run_in_one

ends = os.pipe()
before = os.listdir("/proc/self/fd")
run_in_one({isolated}, ends[1])
assert os.listdir("/proc/self/fd") == before
print(os.read(ends[0], 1000).decode())
"""


def run_in_one(isolated: bool, to: int) -> None:
    """Run the code in a new subinterpreter, and end it.

    Args:
        isolated: It has a GIL of its own (from Python 3.12 on), and no daemon threads.
        to: The descriptor to which the code writes the outcomes.
    """
    code = _CODE.format(path=sys.path, to=to)
    if sys.version_info >= (3, 13):
        interpreters: Any = importlib.import_module("_interpreters")
        one = interpreters.create("isolated" if isolated else "legacy")
        failure = interpreters.exec(one, code)
        assert failure is None, failure
    else:
        interpreters = importlib.import_module("_xxsubinterpreters")
        one = interpreters.create(isolated=isolated)
        interpreters.run_string(one, code)
    interpreters.destroy(one)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("isolated", [True, False])
def test_a_subinterpreter_closes_as_the_main_one_does(isolated: bool) -> None:
    child = subprocess.run(
        [sys.executable, "-c", _CHILD.format(isolated=isolated)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
        env=without_coverage(),
    )
    *closed, aborted = child.stdout.split()
    assert (set(closed), aborted, child.stderr) == ({"PEER_CLOSED"}, "ABORTED", "")
