"""`graceful-close lab --promises`: its trials, its output and its exit codes."""

from __future__ import annotations

import threading

import pytest

from graceful_close_lab.command import main
from graceful_close_lab.promises import command, trying
from graceful_close_lab.promises.trying import (
    BrokenError,
    NotHereError,
    Promise,
    Verdict,
    attempt,
    require,
)
from lab_program import THE_LAB, exits, run


def test_every_promise_is_kept_on_this_system() -> None:
    program = run(*THE_LAB, "lab", "--promises")
    place, *lines, summary = filter(None, program.stdout.splitlines())
    assert (program.returncode, program.stderr) == (0, "")
    assert ", platform key " in place
    assert len(lines) > 25
    assert summary == f"{len(lines)} promises: {len(lines)} held, 0 broken, 0 not here"


def _broken() -> str:
    require(False, "a deadline was missed")
    return "never returned"


def _fails() -> str:
    raise LookupError("a bug")


def _not_here() -> str:
    raise NotHereError("no such option")


@pytest.fixture
def promises(monkeypatch: pytest.MonkeyPatch) -> list[Promise]:
    """Replace the real promises by those of a test."""
    promises: list[Promise] = []
    monkeypatch.setattr(command, "PROMISES", promises)
    return promises


def test_a_broken_promise_is_printed_and_counted_and_sets_the_exit_code(
    promises: list[Promise], capsys: pytest.CaptureFixture[str]
) -> None:
    promises += [
        Promise("one is held", lambda: "by all"),
        Promise("one is broken", _broken),
        Promise("one has a bug", _fails),
        Promise("one is not here", _not_here),
    ]
    assert main(["--promises"]) == 1
    _, _, held, broken, bug, not_here, _, summary = capsys.readouterr().out.splitlines()
    assert held.startswith("held      one is held: by all")
    assert broken.startswith("BROKEN    one is broken: a deadline was missed")
    assert bug.startswith("BROKEN    one has a bug: LookupError: a bug (test_lab_promises.py:")
    assert not_here.startswith("not here  one is not here: no such option")
    assert summary == "4 promises: 1 held, 2 broken, 1 not here"


def test_a_missing_feature_does_not_break_a_promise(promises: list[Promise]) -> None:
    promises.append(Promise("one is not here", _not_here))
    assert "1 not here" in exits(0, "--promises")


def test_a_promise_that_hangs_is_broken_after_its_timeout() -> None:
    hangs = threading.Event()
    trial = attempt(Promise("it ends", lambda: str(hangs.wait())), 0.05)
    hangs.set()
    assert trial.verdict is Verdict.BROKEN
    assert "not finished" in trial.detail


def test_without_threads_a_promise_is_not_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    trial = attempt(Promise("it is tried", lambda: "it was"), 1)
    assert (trial.verdict, trial.detail) == (Verdict.NOT_HERE, "can't start new thread")


def test_after_the_time_is_up_no_more_promises_are_tried(
    promises: list[Promise], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_FOR_ALL", 0)
    promises.append(Promise("it is tried", lambda: "it was"))
    assert main(["--promises"]) == 1


def test_all_promises_differ() -> None:
    sentences = [promise.sentence for promise in trying.PROMISES]
    assert len(set(sentences)) == len(sentences)


def test_require_raises_only_if_the_condition_is_false() -> None:
    require(True, "seen")
    with pytest.raises(BrokenError, match="seen"):
        require(False, "seen")
