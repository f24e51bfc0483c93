"""TLS: say close_notify, then leave the rest to the raw sequence."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket


def speaks_tls(sock: socket.socket) -> bool:
    """Whether this is a TLS socket of the ssl module."""
    ssl = sys.modules.get("ssl")  # a caller with a TLS socket has imported it
    return ssl is not None and isinstance(sock, ssl.SSLSocket)


def send_close_notify(sock: socket.socket) -> tuple[bool | None, bool | None]:
    """Send close_notify once, and do not wait for the peer's (RFC 8446, section 6.1).

    Returns:
        Whether ours went out (None: there is no TLS session to end), and whether the peer's
        has come (False: its stream was cut without one; None: nobody looked that far).

    Raises:
        BlockingIOError: There is no room for it in the send buffer; try again when there is.
    """
    import ssl  # the caller has it: see speaks_tls()

    assert isinstance(sock, ssl.SSLSocket)
    sock.settimeout(0)
    try:
        ssl.SSLSocket.unwrap(sock)
    except ssl.SSLWantReadError:
        return True, None  # ours is out, and the peer's is what it wants to read
    except ssl.SSLWantWriteError:
        raise BlockingIOError from None
    except (ValueError, OSError):
        return False, None
    return True, True
