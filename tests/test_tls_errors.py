"""What unwrap() has done when it raises an error of OpenSSL's."""

from __future__ import annotations

import ssl

import pytest

from graceful_close._tls import _after, _send  # pyright: ignore[reportPrivateUsage]
from streams import await_reset, reset
from tls_sessions import send_raw_fin, session


@pytest.mark.parametrize(
    ("reason", "library", "sent"),
    [
        ("APPLICATION_DATA_AFTER_CLOSE_NOTIFY", "SSL", True),
        ("BAD_WRITE_RETRY", "SSL", False),
        ("A_REASON_OF_NO_LIBRARY", None, True),
        (None, "SSL", True),  # newer than the OpenSSL that Python was built with
        (None, None, False),  # not an error of TLS: the connection failed
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


def test_a_reset_that_openssl_meets_is_raised_and_an_earlier_shutdown_is_not() -> None:
    with session(ssl.TLSVersion.TLSv1_3) as (ours, peer):
        ours.settimeout(0)
        send_raw_fin(ours)
        assert _send(ours, ssl.SSLSocket) == (False, None)
    with session(ssl.TLSVersion.TLSv1_3) as (ours, peer):
        ours.settimeout(0)
        reset(peer)
        await_reset(ours)
        with pytest.raises(ConnectionResetError):
            _send(ours, ssl.SSLSocket)
