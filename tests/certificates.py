"""An authority of our own and one certificate, made once: making keys is slow."""

from __future__ import annotations

import ssl
from functools import cache

import trustme

NAME = "server.test"


@cache
def _authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@cache
def _certificate() -> trustme.LeafCert:
    return _authority().issue_cert(NAME, key_type=trustme.KeyType.ECDSA)


def server_context(version: ssl.TLSVersion) -> ssl.SSLContext:
    """What has the certificate, and speaks one version only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _certificate().configure_cert(context)
    context.minimum_version = context.maximum_version = version
    return context


def client_context(version: ssl.TLSVersion) -> ssl.SSLContext:
    """What trusts it, and speaks one version only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _authority().configure_trust(context)
    context.minimum_version = context.maximum_version = version
    return context
