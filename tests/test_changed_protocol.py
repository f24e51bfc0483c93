"""Another task gives a transport a new protocol during a close, as at the upgrade of a connection."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from event_loops import LOOPS
from graceful_close import CloseOutcome
from graceful_close.asyncio import close_all, graceful_close
from streams import DEADLINE
from test_asyncio import KINDS, in_thread, pair, read_then_close, run_in

REPLIES = {"in the kernel": b"reply", "held": b"reply" * 1_700_000}


class Upgraded(asyncio.Protocol):
    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        assert exc is None
        assert not self.lost.is_set()
        self.lost.set()


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_close_is_complete_although_the_protocol_changes(
    loop: str, kind: str, many: bool, reply: str, turns: int
) -> None:
    async def test() -> None:
        async with pair(kind) as (_, writer, peer):
            writer.write(REPLIES[reply])
            closing: asyncio.Task[Any] = asyncio.create_task(
                close_all([writer], timeout=DEADLINE)
                if many
                else graceful_close(writer, timeout=DEADLINE)
            )
            for _turn in range(turns):
                await asyncio.sleep(0)
            upgraded = Upgraded()
            has_ended = writer.get_extra_info("socket").fileno() == -1
            writer.transport.set_protocol(upgraded)
            assert await in_thread(read_then_close, peer) == REPLIES[reply]
            results = await closing
            result = results[0] if many else results
            if kind != "unix" or reply != "held":
                assert result.outcome is CloseOutcome.PEER_CLOSED
                assert result.clean
            # Otherwise only resume_writing() proves the flush, and the new protocol may have got it.
            if not has_ended:
                await upgraded.lost.wait()

    run_in(LOOPS[loop], test())
