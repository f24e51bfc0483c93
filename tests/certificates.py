"""One certificate for the tests, and the authority that issued the certificate.

The files of tests/pem were written once, with trustme, because Python packages that create keys have
no wheels for some Pythons. They are valid until the year 3000, and no program outside of these tests
trusts the authority. These lines replace the files:

    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path("tests/pem/authority.pem")
    issued = authority.issue_cert(NAME, "127.0.0.1", key_type=trustme.KeyType.ECDSA)
    issued.private_key_and_cert_chain_pem.write_to_path("tests/pem/server.pem")
"""

from __future__ import annotations

import ssl
from pathlib import Path

NAME = "server.test"

# The authority, for clients that read a file; the certificate and its key, for servers that do.
AUTHORITY = Path(__file__).parent / "pem" / "authority.pem"
CERTIFICATE = AUTHORITY.with_name("server.pem")


def server_context(version: ssl.TLSVersion) -> ssl.SSLContext:
    """A context with the certificate, for one version of TLS only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    context.minimum_version = context.maximum_version = version
    return context


def client_context(version: ssl.TLSVersion) -> ssl.SSLContext:
    """A context that trusts the authority, for one version of TLS only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(AUTHORITY)
    context.minimum_version = context.maximum_version = version
    return context
