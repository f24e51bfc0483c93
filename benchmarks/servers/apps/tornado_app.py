"""Tornado, with stream_request_body: otherwise Tornado first reads the whole request."""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from typing import Any

from benchmarks.servers.application import GREETING, early_reply
from benchmarks.servers.apps import GRACEFUL
from graceful_close import GracefulListener

web: Any = import_module("tornado.web")


class Handler(web.RequestHandler):  # type: ignore[misc]
    """Answers GET, and rejects uploads."""

    async def prepare(self) -> None:
        if self.request.method == "POST":
            status, body = early_reply(self.request.path)
            self.set_status(status)
            await self.finish(body)

    def get(self) -> None:
        self.finish(GREETING)


async def main(host: str, port: int) -> None:
    server: Any = import_module("tornado.httpserver").HTTPServer(
        web.Application([("/.*", web.stream_request_body(Handler))])
    )
    if GRACEFUL:
        listener = GracefulListener((host, port))
        listener.setblocking(False)
        server.add_sockets([listener])
    else:
        server.listen(port, host)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
