"""gevent's pywsgi."""

from __future__ import annotations

import sys
from importlib import import_module

if __name__ == "__main__":
    import_module("gevent.monkey").patch_all()
    from benchmarks.servers.apps.plain_wsgi import app

    address = (sys.argv[1], int(sys.argv[2]))
    import_module("gevent.pywsgi").WSGIServer(address, app).serve_forever()
