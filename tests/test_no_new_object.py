"""The interpreter cannot create an object: an audit hook does not permit it, or memory is exhausted."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from pythons import PYPY, output_of

# The hook cannot be removed, so it needs a process of its own.
_WITH_A_HOOK = """
import sys
from graceful_close import Reaper, abortive_close, close_all, graceful_close
from streams import connect

def refuse(event, arguments):
    if active and event == "socket.__new__":
        raise PermissionError("no more sockets")

active = False
sys.addaudithook(refuse)
with connect("tcp4") as (ours, peer), Reaper(timeout=0) as reaper:
    reaper.submit(ours).result()  # the Reaper has its own sockets now
    with connect("tcp4") as (ours, peer):
        active = True
        try:
            {close}
        except PermissionError as error:
            print(error)
        active = False
        assert ours.fileno() == -1
        print(peer.recv(1))  # the descriptor is released
"""

_CLOSES = {
    "graceful_close": "graceful_close(ours)",
    "close_all": "close_all([ours])",
    "abortive_close": "abortive_close(ours)",
    "Reaper": "reaper.submit(ours).result()",
}


@pytest.mark.skipif(PYPY, reason="PyPy has no such event")
@pytest.mark.parametrize("close", _CLOSES.values(), ids=_CLOSES)
def test_the_exception_of_an_audit_hook_releases_the_descriptor(close: str) -> None:
    assert output_of(_WITH_A_HOOK.format(close=close)) == ("no more sockets\nb''\n", "")


# In a process of its own, because the failing allocation can be another thread's, for example that of
# pytest-xdist.
_WITHOUT_MEMORY = """
import _testcapi, os, socket
from graceful_close import abortive_close, unacked_bytes
from graceful_close._blocking import close_on
from graceful_close._options import Options
from streams import DEADLINE, connect

def call(ours):
    {call}

with connect("tcp4") as (ours, _):
    call(ours)  # what is created once in a process
for allocation in range(150):
    ours, peer = socket.socketpair()
    with peer:
        peer.settimeout(DEADLINE)
        _testcapi.set_nomemory(allocation, allocation + 1)
        try:
            call(ours)
        except (MemoryError, SystemError):
            pass
        finally:
            _testcapi.remove_mem_hooks()
        if ours.fileno() != -1:
            os.fstat(ours.fileno())
            ours.close()
        assert peer.recv(1) == b"", "no other object has the descriptor"
"""

# PyPy has a part of it, and some systems omit it. Coverage itself needs memory at every call.
if not PYPY and importlib.util.find_spec("_testcapi") and "coverage" not in sys.modules:

    @pytest.mark.parametrize(
        "call", ["close_on(Options(0), ours)", "abortive_close(ours)", "unacked_bytes(ours)"]
    )
    def test_a_failed_allocation_loses_no_descriptor(call: str) -> None:
        assert output_of(_WITHOUT_MEMORY.format(call=call)) == ("", "")
