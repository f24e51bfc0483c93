"""One contract, kept by every driver: the same sentences over TCP, AF_UNIX and TLS."""
