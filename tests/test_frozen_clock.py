"""A test tool that freezes the clock does not make a close endless."""

from __future__ import annotations

import pytest

from pythons import output_of

# Replaces time.monotonic() in every module, as freezegun does, and closes a stream whose peer is silent.
_FROZEN = """
import sys, time
from graceful_close import Reaper, close_all, graceful_close
from streams import connect

def freeze(real):
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if value is real:
                setattr(module, name, lambda: 1893456000.0)

freeze(time.monotonic)
with connect("unix") as (ours, peer):
    {close}
    print(ours.fileno())
"""

_CLOSES = {
    "graceful_close": "graceful_close(ours, timeout=0.05)",
    "close_all": "close_all([ours], timeout=0.05)",
    "Reaper": "Reaper(timeout=0.05).submit(ours).result()",
}


@pytest.mark.parametrize("close", _CLOSES.values(), ids=_CLOSES)
def test_a_close_ends_at_its_deadline_although_the_clock_is_frozen(close: str) -> None:
    assert output_of(_FROZEN.format(close=close)) == ("-1\n", "")
