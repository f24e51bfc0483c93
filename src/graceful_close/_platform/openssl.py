"""OpenSSL's queue of errors, which belongs to a thread and not to a connection (ERR_get_error(3)).

CPython empties the queue when it raises an SSLError. PyPy leaves the error in it (pyssl_error() in
_cffi_ssl/_stdssl/error.py), and the next call that would block, for any connection, raises it again.
"""

from __future__ import annotations

import functools
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ssl import SSLContext

_PYPY = sys.implementation.name == "pypy"


def forget_tls_error() -> None:
    """Empty this thread's queue, after a call of a TLS session has failed."""
    if _PYPY:
        import ssl

        # A new session begins with an empty queue (_new__ssl_socket() in _cffi_ssl/_stdssl).
        _context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)


@functools.cache
def _context() -> SSLContext:
    import ssl

    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
