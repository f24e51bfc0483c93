"""eventlet.wsgi."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

if __name__ == "__main__":
    eventlet: Any = import_module("eventlet")
    eventlet.monkey_patch()
    from benchmarks.servers.apps.plain_wsgi import app

    listening = eventlet.listen((sys.argv[1], int(sys.argv[2])))
    import_module("eventlet.wsgi").server(listening, app)
