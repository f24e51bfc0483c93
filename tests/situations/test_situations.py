"""Plays a situation for every permitted pair of choices, and tests the oracle itself."""

from __future__ import annotations

import io
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cache
from random import Random
from typing import Any

import pytest

from graceful_close import (
    CloseOutcome,
    CloseResult,
    LingerPolicy,
    _connection,
    _release,
    set_linger,
)
from graceful_close._platform import TcpState

from .axes import AXES, RULES, Situation, any_situation, broken_rule, choices
from .oracle import judge
from .pairwise import all_pairs, cover, pairs_of
from .play import Lab, open_lab
from .program import program
from .search import complaints, complaints_once, kinds, shrink, smallest

# Coverage would need memory and time at every call, and the oracle judges both.
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the oracle needs Linux"),
    pytest.mark.usefixtures("unmeasured"),
]

PARTS = 12
_SEED = 20_261


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with open_lab() as lab:
        lab.callers.start()  # in no test, because a test must leave no descriptor behind
        yield lab


@cache
def _covering(wire: bool) -> list[Situation]:
    return cover(Random(_SEED), wire=wire)


def _assert_right(lab: Lab, situations: list[Situation]) -> None:
    programs: list[str] = []
    for situation in situations:
        found, sure = complaints(lab, situation)
        if sure:
            programs.append(program(smallest(lab, situation, found), found))
    assert not programs, "\n".join(["", *programs])


@pytest.mark.parametrize("part", range(PARTS))
def test_the_guarantees_hold_for_every_pair_of_choices(lab: Lab, part: int) -> None:
    _assert_right(lab, _covering(lab.link is not None)[part::PARTS])


@pytest.mark.parametrize("part", range(PARTS))
def test_the_guarantees_hold_for_random_choices(
    lab: Lab, part: int, pytestconfig: pytest.Config
) -> None:
    count: Any = pytestconfig.getoption("situations")
    random = Random(_SEED + part)
    for _ in range(int(count) // PARTS):
        _assert_right(lab, [any_situation(random, wire=lab.link is not None)])


# --- the combinations ------------------------------------------------------------------------------


def test_every_pair_is_covered_or_excluded_by_a_rule() -> None:
    covered = set[Any]().union(*map(pairs_of, _covering(True)))
    for (axis, choice), (other, chosen) in set(all_pairs(wire=True)) - covered:
        alone = Situation(**{axis: choice, other: chosen})
        assert broken_rule(alone) is not None


def test_every_choice_is_covered() -> None:
    covering = _covering(True)
    for axis in AXES:
        chosen = {getattr(situation, axis) for situation in covering}
        assert chosen == set(choices(axis, wire=True))


@pytest.mark.parametrize("reason", RULES)
def test_every_rule_excludes_something(reason: str) -> None:
    random = Random(1)
    for _ in range(30_000):
        chosen = {axis: random.choice(choices) for axis, choices in AXES.items()}
        situation = Situation(
            **{axis: c for axis, c in chosen.items() if random.random() < 0.5}
        )
        if RULES[reason](situation):
            return
    pytest.fail("the rule excludes nothing")


# --- the oracle ----------------------------------------------------------------------------------


def _wrong(lab: Lab, **choices: str) -> set[str]:
    return kinds(complaints_once(lab, Situation(**choices)))


def test_a_false_delivery_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = {"peer": "never reads", "wrote": "more", "until": "delivered"}
    assert _wrong(lab, **choices) == set()
    monkeypatch.setattr(_connection, "count_unacked", _always(0))
    assert {"claim", "unacked"} <= _wrong(lab, **choices)


def _always(value: object) -> Callable[..., object]:
    def replacement(*_: object, **__: object) -> object:
        return value

    return replacement


def test_a_false_fin_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = {"peer": "never closes", "shut": "reading"}
    assert _wrong(lab, **choices) == set()
    monkeypatch.setattr(_connection, "standing", _always(TcpState.BOTH_FINS))
    monkeypatch.setattr(_connection, "read_state", _always(TcpState.BOTH_FINS))
    assert "claim" in _wrong(lab, **choices)


def test_a_close_that_keeps_the_descriptor_is_found(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[socket.socket] = []

    def keep(sock: socket.socket, *_: object, **__: object) -> None:
        kept.append(sock)

    monkeypatch.setattr(_connection, "close_socket", keep)
    assert {"open", "leak"} <= _wrong(lab)
    for sock in kept:
        sock.close()


def test_a_close_that_resets_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def reset(sock: socket.socket, *_: object, **__: object) -> None:
        set_linger(sock, LingerPolicy.ABORT)
        sock.close()

    choices = {"peer": "reads late", "limit": "no time"}
    assert _wrong(lab, **choices) == set()
    monkeypatch.setattr(_connection, "shut_for_writing", _always(None))
    monkeypatch.setattr(_connection, "close_socket", reset)
    assert "reset" in _wrong(lab, **choices), "by the kernel's record"
    assert "worse" in _wrong(lab, tls="1.3", **choices), "by the peer's"


def test_an_abort_without_a_reset_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = {"call": "abortive_close", "holder": "child"}
    assert _wrong(lab, **choices) == set()
    monkeypatch.setattr(_release, "_reset", _always(None))
    assert "not reset" in _wrong(lab, **choices)


def test_a_false_order_of_the_fins_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = {"peer": "has half-closed"}
    assert _wrong(lab, **choices) == set()
    monkeypatch.setattr("graceful_close._result.CloseResult.peer_first", False)
    assert "order" in _wrong(lab, **choices)


def test_the_measurements_of_another_process_are_judged(lab: Lab) -> None:
    play = lab.play(Situation(interrupt="no memory", peer="never closes"))
    assert judge(play) == []
    play.report.seconds += 5
    assert kinds(judge(play)) == {"late"}


def test_a_process_that_does_not_end_as_expected_is_found(lab: Lab) -> None:
    play = lab.play(Situation(interrupt="killed", peer="never closes"))
    assert play.status == signal.SIGALRM
    assert judge(play) == []
    play.status = signal.SIGSEGV
    assert kinds(judge(play)) == {"process"}


def test_a_close_that_is_late_and_spins_is_found(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*_: object) -> int:
        until = time.process_time() + 1.2
        while time.process_time() < until:
            pass
        return 1

    monkeypatch.setattr(_connection, "count_unacked", slowly)
    assert {"late", "spins"} <= _wrong(lab, peer="never closes", limit="little silence")


def test_an_error_of_the_network_that_is_raised_is_found(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> CloseResult:
        raise OSError(113, "No route to host")

    monkeypatch.setattr("graceful_close._teardown.Teardown.released", fail)
    assert "raised" in _wrong(lab, peer="never closes", limit="no time")


# --- the report ------------------------------------------------------------------------------------


def test_a_wrong_situation_is_reduced() -> None:
    found = any_situation(Random(3))
    smaller = shrink(found, lambda one: one.peer == found.peer)
    assert smaller.peer == found.peer
    assert set(smaller.chosen) <= {"peer", "wrote", "origin", "family"}


def test_a_wrong_situation_is_printed_as_a_program_that_plays_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = program(Situation(peer="never closes", limit="no time"), ["claim: none"])
    assert len(source.splitlines()) < 12
    said = io.StringIO()
    with redirect_stdout(said):
        exec(compile(source, "<program>", "exec"), {})
    assert CloseOutcome.TIMED_OUT.name in said.getvalue()
    assert "claim" not in said.getvalue()
