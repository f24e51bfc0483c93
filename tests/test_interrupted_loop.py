"""A KeyboardInterrupt while the event loop serves the closes: it ends one of them, and propagates."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from event_loops import LOOPS
from graceful_close import CloseOutcome
from graceful_close.asyncio import graceful_close
from signals import moments
from streams import DEADLINE, connect_many


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("answers", [False, True])
@pytest.mark.parametrize("name", LOOPS)
def test_the_other_closes_end_if_the_program_runs_the_loop_again(
    name: str, answers: bool
) -> None:
    # On a busy machine the closes may end before the first moment.
    for moment in moments(first=2, at_least=0):
        with asyncio.Runner(loop_factory=LOOPS[name]) as runner, connect_many(4) as connections:
            loop = runner.get_loop()
            timeout = DEADLINE if answers else 0.01
            tasks = [
                loop.create_task(graceful_close(ours, timeout=timeout))
                for ours, _ in connections[:3]
            ]
            for _ in range(4):
                loop.run_until_complete(asyncio.sleep(0))
            for _, peer in connections[:3] if answers else ():
                peer.close()
            with suppress(KeyboardInterrupt), moment.do(interrupt):
                loop.run_until_complete(asyncio.wait(tasks))
            # The interrupt may have come when the timer had ended, and before its callback began.
            # The wait of another close then sets the timer again.
            loop.run_until_complete(graceful_close(connections[3].ours, timeout=0.005))
            ended, _ = loop.run_until_complete(asyncio.wait(tasks, timeout=DEADLINE))
            whole = [task for task in ended if not (task.cancelled() or task.exception())]
            outcomes = [task.result().outcome for task in whole]
            expected = CloseOutcome.PEER_CLOSED if answers else CloseOutcome.TIMED_OUT
            assert len(ended) == 3, moment
            assert outcomes in ([expected] * 3, [expected] * 2), moment
