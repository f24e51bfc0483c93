"""waitress beyond its `--max-request-body-size`, closing gracefully."""

from __future__ import annotations

import socket
import sys
from importlib import import_module

from benchmarks.servers.apps.plain_wsgi import app
from graceful_close import GracefulListener

if __name__ == "__main__":
    if sys.argv[1] == "unix":
        listener = GracefulListener(sys.argv[2], family=socket.AF_UNIX)
    else:
        listener = GracefulListener((sys.argv[1], int(sys.argv[2])))
    import_module("waitress").serve(app, sockets=[listener], max_request_body_size=50_000)
