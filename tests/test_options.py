"""The options of a close: what is rejected, and the message."""

from __future__ import annotations

import math
from typing import Any

import pytest

from graceful_close import CloseOutcome, LingerPolicy
from machines import asking


@pytest.mark.parametrize("name", ["timeout", "idle_timeout", "peer_first"])
@pytest.mark.parametrize("value", [-1, -0.001, math.inf, math.nan, 10**400])
def test_a_timeout_must_be_finite_and_not_negative(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number of seconds"):
        asking(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", None),
        ("timeout", "5"),
        ("timeout", True),
        ("idle_timeout", "5"),
        ("peer_first", None),
    ],
)
def test_a_timeout_must_be_a_number(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a finite number of seconds"):
        asking(**{name: value})


@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ValueError), (1.5, TypeError), (True, TypeError), ("9", TypeError)],
)
def test_a_drain_limit_is_a_whole_number_of_bytes(value: Any, error: type[Exception]) -> None:
    expected = (
        "drain_limit must be at least 0, not -1"
        if error is ValueError
        else f"drain_limit must be a whole number of bytes, 0 or more, not {value!r}"
    )
    with pytest.raises(error) as caught:
        asking(drain_limit=value)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("value", "error"),
    [(CloseOutcome.ABORTED, ValueError), ("delivered", TypeError), (None, TypeError)],
)
def test_until_is_one_of_two_outcomes(value: Any, error: type[Exception]) -> None:
    with pytest.raises(
        error, match=r"until must be CloseOutcome.PEER_CLOSED or .*DELIVERED, not"
    ):
        asking(until=value)


def test_on_timeout_must_be_one_of_two_policies() -> None:
    with pytest.raises(ValueError, match=r"on_timeout must be .*BACKGROUND or .*ABORT, not"):
        asking(on_timeout=LingerPolicy.TIMED)


def test_without_a_drain_limit_only_time_limits_the_drain() -> None:
    assert asking().limit == math.inf
    assert asking(drain_limit=0).limit == 0
