"""Requests and replies on loopback: the two sides that most promises are about."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import TYPE_CHECKING

from ..loopback import HOST, PATIENCE
from .trying import NotHereError, require

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

REPLY = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n\r\n" + b"r" * 65536
"""A reply that a server gives before it has read the request."""

UPLOADS = 5
"""How often an early reply is tried."""

# Bytes of a request. Much of it is under way when the reply is written; TLS is slow on an emulator.
_REQUEST = 2_000_000
_REQUEST_TLS = 500_000
_BLOCK = bytes(65536)

WHOLE = "whole"


def upload(address: tuple[str, int], tls: ssl.SSLContext | None = None) -> str:
    """Send a long request, and read the reply only then, as most clients do.

    Returns:
        `WHOLE`, or what came in the place of the whole reply.
    """
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection(address, timeout=PATIENCE))
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
    """Every client must have got the whole reply.

    Raises:
        BrokenError: One has not.
    """
    whole = replies.count(WHOLE)
    require(whole == UPLOADS, f"{whole} of {UPLOADS} replies arrived whole: {set(replies)}")
    return f"{whole} of {UPLOADS} replies arrived whole"


def early_replies(
    listener: socket.socket,
    close: Callable[[socket.socket], object],
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
) -> str:
    """A server replies at once, and closes by `close`; its clients upload.

    Args:
        listener: Where the server listens.
        close: What it does with a connection after its reply.
        tls: The server's and the client's side of TLS; None: it is plain TCP.
    """

    def serve() -> None:
        for _ in range(UPLOADS):
            ours, _ = listener.accept()
            if tls is not None:
                ours = tls[0].wrap_socket(ours, server_side=True)
            ours.settimeout(PATIENCE)
            ours.recv(65536)
            ours.sendall(REPLY)
            close(ours)

    listener.settimeout(PATIENCE)
    with at_the_same_time(serve):
        address: tuple[str, int] = listener.getsockname()
        replies = [upload(address, tls and tls[1]) for _ in range(UPLOADS)]
    return require_whole(replies)


def new_listener() -> socket.socket:
    """A listener on loopback."""
    return socket.create_server((HOST, 0))


@contextlib.contextmanager
def at_the_same_time(*calls: Callable[[], object]) -> Generator[None]:
    """Make calls in threads of their own; what they raise is raised when the block is left."""
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
            thread.join(2 * PATIENCE)
    for error in errors:
        raise error


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context and a client's that need no certificate: the key exchange is anonymous.

    Raises:
        NotHereError: This Python's TLS library has no such ciphers.
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
