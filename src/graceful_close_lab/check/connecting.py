"""A connection to the checked server, with TLS if the address begins with https://."""

from __future__ import annotations

import errno
import socket
import ssl
from time import monotonic
from typing import TYPE_CHECKING

from .outcome import Outcome, Stop

if TYPE_CHECKING:
    from .upload import Upload

CUT = "TLS ended without close_notify"

# Seconds for a handshake that only detects TLS on a port. A heuristic.
_TLS_PROBE_TIMEOUT = 2.0


def connect(upload: Upload, deadline: float) -> socket.socket:
    """Connect, and return a non-blocking socket.

    Args:
        upload: Names the endpoints.
        deadline: The latest time, by `time.monotonic()`.

    Raises:
        Stop: The connection cannot be made.
    """
    sock = _connect(upload, deadline)
    try:
        if upload.context is not None:
            sock.settimeout(max(deadline - monotonic(), 0.001))
            # An end without close_notify is an error: an attacker may have truncated the
            # stream.
            sock = upload.context.wrap_socket(
                sock, server_hostname=upload.address.host, suppress_ragged_eofs=False
            )
        sock.setblocking(False)
    except BaseException as error:
        sock.close()
        if isinstance(error, TimeoutError):
            raise Stop(Outcome.TLS_FAILED, "the handshake timed out") from None
        if isinstance(error, OSError):
            raise Stop(Outcome.TLS_FAILED, describe(error)) from None
        raise
    return sock


def speaks_tls(upload: Upload) -> bool:
    """Return whether a TLS handshake succeeds, with any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    seconds = min(upload.timeout, _TLS_PROBE_TIMEOUT)
    try:
        connect(upload._replace(context=context), monotonic() + seconds).close()
    except Stop:
        return False
    return True


def _connect(upload: Upload, deadline: float) -> socket.socket:
    stop = Stop(Outcome.UNREACHABLE, "the host has no address")
    for number, (family, endpoint) in enumerate(upload.endpoints):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            # An address that does not answer uses only its share of the time.
            left = max(deadline - monotonic(), 0.001)
            sock.settimeout(left / (len(upload.endpoints) - number))
            sock.connect(endpoint)
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            stop = _not_connected(error)
        else:
            return sock
    raise stop


def _not_connected(error: OSError) -> Stop:
    if isinstance(error, TimeoutError):  # ETIMEDOUT among them
        return Stop(Outcome.UNREACHABLE, "timed out")
    refused = isinstance(error, ConnectionRefusedError)
    return Stop(Outcome.REFUSED if refused else Outcome.UNREACHABLE, describe(error))


def describe(error: OSError) -> str:
    """Describe an error, if possible by its name."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return CUT
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error)
    return errno.errorcode.get(error.errno or 0, str(error))
