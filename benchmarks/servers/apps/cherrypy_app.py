"""CherryPy, quickstart()."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, ClassVar

from benchmarks.servers.application import GREETING, early_reply
from benchmarks.servers.apps import GRACEFUL
from graceful_close.wsgi import DrainMiddleware

cherrypy: Any = import_module("cherrypy")


class Root:
    """Answers GET, and rejects uploads."""

    _cp_config: ClassVar[dict[str, object]] = {"request.process_request_body": False}

    def default(self, *size: str) -> bytes:
        if cherrypy.request.method != "POST":
            return GREETING
        cherrypy.response.status, body = early_reply(size[0])
        return body

    default.exposed = True  # type: ignore[attr-defined] # CherryPy's


if __name__ == "__main__":
    cherrypy.config.update(
        {
            "server.socket_host": sys.argv[1],
            "server.socket_port": int(sys.argv[2]),
            "environment": "production",
        }
    )
    pipeline = [("drain", DrainMiddleware)] if GRACEFUL else []
    cherrypy.quickstart(Root(), "/", {"/": {"wsgi.pipeline": pipeline}})
