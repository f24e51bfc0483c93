"""cheroot's WSGI server."""

from __future__ import annotations

import sys
from importlib import import_module

from benchmarks.servers.apps.plain_wsgi import app

if __name__ == "__main__":
    address = (sys.argv[1], int(sys.argv[2]))
    import_module("cheroot.wsgi").Server(address, app).start()
