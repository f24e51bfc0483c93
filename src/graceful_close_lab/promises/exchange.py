"""Requests and replies on loopback, which most promises need."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import TYPE_CHECKING

from ..loopback import HOST, TIMEOUT
from .trying import NotHereError, require

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

REPLY = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n\r\n" + b"r" * 65536
"""A reply that a server sends before it has read the request."""

UPLOADS = 5
"""The number of uploads for each promise about early replies."""

# Bytes of a request. A part is still unread when the reply is written. TLS is slow on an
# emulator.
_REQUEST = 2_000_000
_REQUEST_TLS = 500_000
_BLOCK = bytes(65536)

WHOLE = "whole"


def upload(address: tuple[str, int], tls: ssl.SSLContext | None = None) -> str:
    """Send a long request, and read the reply afterwards, as most clients do.

    Returns:
        `WHOLE`, or a description of what was received.
    """
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection(address, timeout=TIMEOUT))
        if tls is not None:
            sock = stack.enter_context(tls.wrap_socket(sock))
        received = 0
        try:
            for _ in range((_REQUEST_TLS if tls else _REQUEST) // len(_BLOCK)):
                sock.sendall(_BLOCK)
            while chunk := sock.recv(65536):
                received += len(chunk)
        except OSError as error:
            return f"{received} bytes, then {error}"
    return WHOLE if received == len(REPLY) else f"{received} bytes"


def require_whole(replies: Sequence[str]) -> str:
    """Require that every client received the complete reply.

    Raises:
        BrokenError: A client did not.
    """
    whole = replies.count(WHOLE)
    require(whole == UPLOADS, f"{whole} of {UPLOADS} replies arrived complete: {set(replies)}")
    return f"{whole} of {UPLOADS} replies arrived complete"


def early_replies(
    listener: socket.socket,
    close: Callable[[socket.socket], object],
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
) -> str:
    """Run a server that replies immediately and closes with `close`, and clients that upload.

    Args:
        listener: The listening socket of the server.
        close: Closes a connection after the reply.
        tls: The server's and the client's side of TLS; None: it is plain TCP.
    """

    def serve() -> None:
        for _ in range(UPLOADS):
            ours, _ = listener.accept()
            if tls is not None:
                ours = tls[0].wrap_socket(ours, server_side=True)
            ours.settimeout(TIMEOUT)
            ours.recv(65536)
            ours.sendall(REPLY)
            close(ours)

    listener.settimeout(TIMEOUT)
    with at_the_same_time(serve):
        address: tuple[str, int] = listener.getsockname()
        replies = [upload(address, tls and tls[1]) for _ in range(UPLOADS)]
    return require_whole(replies)


def new_listener() -> socket.socket:
    """Return a new listening socket on loopback."""
    return socket.create_server((HOST, 0))


@contextlib.contextmanager
def at_the_same_time(*calls: Callable[[], object]) -> Generator[None]:
    """Run each call in its own thread; their exceptions are raised when the block is left."""
    errors: list[BaseException] = []

    def guarded(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 (it is raised below)
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(2 * TIMEOUT)
    for error in errors:
        raise error
    if any(thread.is_alive() for thread in threads):
        raise TimeoutError("a thread of the trial did not finish in time")


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's and a client's context that use no certificate (anonymous exchange).

    Raises:
        NotHereError: The TLS library of this Python has no such ciphers.
    """
    server, client = (
        ssl.SSLContext(side) for side in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
    )
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    for context in (server, client):
        # TLS 1.3 has no anonymous exchange (RFC 8446, appendix C.5).
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
        except ssl.SSLError as error:
            raise NotHereError(f"no TLS without certificates: {error}") from None
    return server, client
