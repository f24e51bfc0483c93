"""What unwrap() has done when it raises an error of OpenSSL's."""

from __future__ import annotations

import ssl

import pytest

from graceful_close._tls import _after  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("reason", "library", "sent"),
    [
        ("APPLICATION_DATA_AFTER_CLOSE_NOTIFY", "SSL", True),
        ("BAD_WRITE_RETRY", "SSL", False),
        ("A_REASON_OF_NO_LIBRARY", None, True),
        (None, "SSL", True),  # newer than the OpenSSL that Python was built with
        (None, None, False),  # not an error of TLS: the connection failed
        ("PROTOCOL_IS_SHUTDOWN", "SSL", None),  # PyPy
    ],
)
def test_an_error_of_tls_comes_after_the_close_notify(
    reason: str | None, library: str | None, sent: bool | None
) -> None:
    error = ssl.SSLError(1, "")
    error.reason, error.library = reason, library  # type: ignore[assignment]
    assert _after(error) == (sent, None)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ssl.SSLWantReadError(), (True, None)),
        (ssl.SSLEOFError(), (True, False)),
        (ssl.SSLZeroReturnError(), (False, True)),
    ],
)
def test_an_end_or_a_wait_tells_about_both_sides(
    error: ssl.SSLError, told: tuple[bool | None, bool | None]
) -> None:
    assert _after(error) == told
