"""A test authority and one certificate, which are made only once because that is slow."""

from __future__ import annotations

import ssl
from functools import cache
from pathlib import Path

import trustme

NAME = "server.test"


# The certificate and the key of another process's authority, if this process shares it.
_shared: list[tuple[bytes, bytes]] = []


@cache
def _authority() -> trustme.CA:
    if _shared:
        return trustme.CA.from_pem(*_shared[0])
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


def authority() -> tuple[bytes, bytes]:
    """The certificate and the key of the authority, for `share_authority` in another process."""
    return _authority().cert_pem.bytes(), _authority().private_key_pem.bytes()


def share_authority(pem: tuple[bytes, bytes]) -> None:
    """Use another process's authority; call this first."""
    _shared.append(pem)
    _certificate()


@cache
def _certificate() -> trustme.LeafCert:
    return _authority().issue_cert(NAME, "127.0.0.1", key_type=trustme.KeyType.ECDSA)


def server_context(version: ssl.TLSVersion) -> ssl.SSLContext:
    """Return a server's context with the certificate, for one version of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _certificate().configure_cert(context)
    context.minimum_version = context.maximum_version = version
    return context


def client_context(version: ssl.TLSVersion) -> ssl.SSLContext:
    """Return a client's context that trusts the certificate, for one version of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _authority().configure_trust(context)
    context.minimum_version = context.maximum_version = version
    return context


def authority_file(folder: Path) -> Path:
    """Write the authority to a file, and return the file."""
    _authority().cert_pem.write_to_path(folder / "authority.pem")
    return folder / "authority.pem"


def certificate_file(folder: Path) -> Path:
    """Write the certificate and its key to a file, and return the file."""
    _certificate().private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    return folder / "server.pem"
