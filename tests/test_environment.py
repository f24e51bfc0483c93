"""The options of users that write no code, from the environment."""

from __future__ import annotations

import pytest

from graceful_close._environment import options_from_environment

NAMES = {
    "timeout": "GRACEFUL_CLOSE_TIMEOUT",
    "idle_timeout": "GRACEFUL_CLOSE_IDLE_TIMEOUT",
}


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES.values():
        monkeypatch.delenv(name, raising=False)


def test_what_is_not_set_is_no_option_so_that_each_user_has_its_own_default() -> None:
    assert options_from_environment() == {}


@pytest.mark.parametrize("option", NAMES)
@pytest.mark.parametrize("value", ["0", "0.5", "60"])
def test_each_variable_sets_one_option(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NAMES[option], value)
    assert options_from_environment() == {option: float(value)}


@pytest.mark.parametrize("option", NAMES)
def test_a_variable_that_is_empty_is_not_set(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NAMES[option], "")
    assert options_from_environment() == {}


@pytest.mark.parametrize("option", NAMES)
@pytest.mark.parametrize("value", ["soon", "-1", "inf", "nan"])
def test_a_value_that_no_wait_can_last_is_refused(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NAMES[option], value)
    expected = f"^{NAMES[option]} must be a finite number of seconds, 0 or more, not '{value}'$"
    with pytest.raises(ValueError, match=expected):
        options_from_environment()
