"""End a TCP connection itself, instead of one reference to the connection."""

from __future__ import annotations

import os
import socket
import struct


def disconnect(sock: socket.socket) -> None:
    """connect() to AF_UNSPEC: Linux resets the connection immediately, for every holder.

    The socket module cannot express AF_UNSPEC in an address, so this calls the C library. The caller
    owns the descriptor: the number must not become another file's before this returns.

    Raises:
        OSError: The kernel refused the call, or this Python was built without ctypes.

    Source: connect(2); tcp_disconnect() in Linux's net/ipv4/tcp.c.
    """
    try:
        import ctypes  # expensive to import, and used only here
    except ImportError as error:
        raise OSError("this Python has no ctypes") from error

    libc = ctypes.CDLL(None, use_errno=True)
    address = struct.pack("H14x", socket.AF_UNSPEC)  # struct sockaddr: a family and 14 bytes
    if libc.connect(sock.fileno(), address, len(address)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
