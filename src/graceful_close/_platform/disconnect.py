"""Ending a TCP connection itself, rather than one reference to it."""

from __future__ import annotations

import os
import socket
import struct


def disconnect(sock: socket.socket) -> None:
    """connect() to AF_UNSPEC: Linux resets the connection at once, for every holder.

    The socket module cannot say AF_UNSPEC in an address, so this asks the C library. The caller
    owns the descriptor: its number must be nobody else's before this returns.

    Raises:
        OSError: The kernel refused, or this Python was built without ctypes.

    Source: connect(2); tcp_disconnect() in Linux's net/ipv4/tcp.c.
    """
    try:
        import ctypes  # heavy, and wanted by nothing else
    except ImportError as error:
        raise OSError("this Python has no ctypes") from error

    libc = ctypes.CDLL(None, use_errno=True)
    address = struct.pack("H14x", socket.AF_UNSPEC)  # struct sockaddr: a family and 14 bytes
    if libc.connect(sock.fileno(), address, len(address)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
