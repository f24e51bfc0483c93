"""CloseResult: its line of text, and its errors on request."""

from __future__ import annotations

import copy
import errno
import os
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from graceful_close import CloseOutcome, CloseResult, UncleanCloseError


def result_of(outcome: CloseOutcome, error: OSError | None = None) -> CloseResult:
    return CloseResult(outcome, 0.01234, 5_000_000, 7, error)


CLEAN = {CloseOutcome.PEER_CLOSED, CloseOutcome.DELIVERED, CloseOutcome.ABORTED}


@pytest.mark.parametrize("outcome", CloseOutcome)
def test_only_a_confirmed_end_is_clean(outcome: CloseOutcome) -> None:
    assert result_of(outcome).clean == (outcome in CLEAN)


@pytest.mark.parametrize(("unacked", "clean"), [(0, True), (1, False), (None, False)])
def test_not_connected_is_clean_if_no_data_was_left(unacked: int | None, clean: bool) -> None:
    result = CloseResult(CloseOutcome.NOT_CONNECTED, 0.0, 0, unacked, None)
    assert result.clean is clean


def test_check_returns_a_clean_result() -> None:
    result = result_of(CloseOutcome.DELIVERED)
    assert result.check() is result


@pytest.mark.parametrize(
    ("outcome", "number"),
    [
        (CloseOutcome.PEER_RESET, errno.ECONNRESET),
        (CloseOutcome.TIMED_OUT, errno.ETIMEDOUT),
        (CloseOutcome.IDLE_TIMED_OUT, errno.ETIMEDOUT),
        (CloseOutcome.DRAIN_LIMIT, errno.EMSGSIZE),
        (CloseOutcome.NOT_CONNECTED, errno.ENOTCONN),
        (CloseOutcome.ALREADY_CLOSED, errno.EBADF),
    ],
)
def test_check_raises_an_oserror_with_the_number_of_the_outcome(
    outcome: CloseOutcome, number: int
) -> None:
    result = result_of(outcome)
    with pytest.raises(UncleanCloseError, match=outcome.value) as caught:
        result.check()
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == number
    assert caught.value.result is result


def test_the_systems_own_number_is_used_if_there_is_one() -> None:
    result = result_of(CloseOutcome.TIMED_OUT, OSError(errno.EHOSTUNREACH, "no route"))
    with pytest.raises(UncleanCloseError) as caught:
        result.check()
    assert caught.value.errno == errno.EHOSTUNREACH


def test_an_end_that_is_unclean_over_tls_alone_has_a_number_too() -> None:
    result = CloseResult(CloseOutcome.PEER_CLOSED, 0.0, 0, 0, None, notified=False)
    with pytest.raises(UncleanCloseError) as caught:
        result.check()
    assert caught.value.errno == errno.EIO


PEER_CLOSED: Any = partial(CloseResult, CloseOutcome.PEER_CLOSED, 1.5, 0, 0, None)
CLOSED = "peer closed after 1.500 s, 0 bytes drained, unacknowledged: 0 bytes"


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (
            result_of(CloseOutcome.PEER_RESET, OSError("gone")),
            "reset by peer after 0.012 s, 5000000 bytes drained, unacknowledged: 7 bytes (gone)",
        ),
        (
            CloseResult(CloseOutcome.PEER_CLOSED, 1.5, 0, None, None),
            "peer closed after 1.500 s, 0 bytes drained, unacknowledged: unknown",
        ),
        (
            CloseResult(CloseOutcome.TIMED_OUT, 1.5, 1, 1, None),
            "timed out after 1.500 s, 1 byte drained, unacknowledged: 1 byte",
        ),
        (PEER_CLOSED(), CLOSED),
        (PEER_CLOSED(notified=False), f"{CLOSED}, close_notify not sent"),
        (PEER_CLOSED(unflushed=True), f"{CLOSED}, a makefile() object was not closed"),
        (PEER_CLOSED(peer=("192.0.2.1", 80)), f"192.0.2.1:80: {CLOSED}"),
        (PEER_CLOSED(peer=("2001:db8::1", 80, 0, 0)), f"[2001:db8::1]:80: {CLOSED}"),
        (PEER_CLOSED(peer="/run/a.sock"), f"/run/a.sock: {CLOSED}"),
        (PEER_CLOSED(peer=""), f"unnamed: {CLOSED}"),
    ],
    ids=[
        "every value",
        "an unknown count",
        "one byte",
        "without TLS",
        "no close_notify",
        "an open makefile() object",
        "a peer of IPv4",
        "a peer of IPv6",
        "a peer of AF_UNIX",
        "a peer without a name",
    ],
)
def test_the_text_has_every_known_value_and_names_an_unknown_one(
    result: CloseResult, text: str
) -> None:
    assert str(result) == text


@pytest.mark.parametrize("outcome", CloseOutcome)
def test_a_tls_stream_without_close_notify_is_clean_only_after_an_abort(
    outcome: CloseOutcome,
) -> None:
    result = CloseResult(outcome, 0.0, 0, 0, None, notified=False)
    assert result.clean == (outcome is CloseOutcome.ABORTED)


def test_a_result_is_a_plain_value() -> None:
    result = result_of(CloseOutcome.DELIVERED)
    assert repr(result).startswith(
        "CloseResult(outcome=<CloseOutcome.DELIVERED: 'delivered'>, elapsed=0.01234, "
    )
    assert copy.copy(result) == result
    assert hash(result) == hash(copy.copy(result))
    assert hash(result) != hash(result_of(CloseOutcome.ABORTED))
    with pytest.raises(AttributeError, match="no setter"):
        result.drained = 0  # type: ignore[misc]


def test_each_field_of_a_result_is_the_argument_of_its_name() -> None:
    fields = {
        "outcome": CloseOutcome.DELIVERED,
        "elapsed": 1.5,
        "drained": 1,
        "unacked": 2,
        "error": OSError(errno.EPIPE, "broken"),
        "notified": True,
        "peer_notified": False,
        "peer_first": True,
        "unflushed": True,
        "peer": "/run/a.sock",
    }
    values: Any = fields
    result = CloseResult(**values)
    assert {name: getattr(result, name) for name in CloseResult.__match_args__} == fields


def _pickled(one: Any) -> Any:
    return pickle.loads(pickle.dumps(one))


def _deepcopied(one: Any) -> Any:
    return copy.deepcopy(one)


@pytest.mark.parametrize("copied", [_deepcopied, _pickled])
def test_a_copy_of_a_result_with_an_error_is_equal(copied: Callable[[Any], Any]) -> None:
    def with_error(number: int) -> CloseResult:
        error = OSError(number, os.strerror(number))
        return CloseResult(CloseOutcome.PEER_RESET, 1.0, 0, 2, error)

    result = with_error(errno.ECONNRESET)
    twin = copied(result)
    assert twin == result
    assert hash(twin) == hash(result)
    assert twin != with_error(errno.EPIPE)
    assert twin != CloseResult(CloseOutcome.PEER_RESET, 1.0, 0, 2, None)


def test_the_error_of_a_result_survives_pickling() -> None:
    result = result_of(CloseOutcome.TIMED_OUT)
    error = pickle.loads(pickle.dumps(UncleanCloseError(result)))
    assert (error.result, error.errno) == (result, errno.ETIMEDOUT)
