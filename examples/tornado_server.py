"""Tornado: refuse an upload without reading it, so that the refusal arrives.

python examples/tornado_server.py --port 8413
"""

from __future__ import annotations

import argparse
import asyncio
import signal

from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler, stream_request_body

from graceful_close import GracefulListener

REFUSAL = b"This upload is too large.\n".ljust(64 << 10, b".")


@stream_request_body  # prepare() is called before the body has come
class Handler(RequestHandler):
    """Greets, and refuses uploads."""

    async def prepare(self) -> None:
        if self.request.method == "POST":
            self.set_status(413)
            self.set_header("Connection", "close")
            await self.finish(REFUSAL)

    def get(self) -> None:
        self.finish(b"hello\n")


app = Application([("/", Handler)])


async def serve(listener: GracefulListener) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = HTTPServer(app)
    # This is what matters: a listener that does not block, and `add_sockets`.
    listener.setblocking(False)
    server.add_sockets([listener])
    await stop.wait()
    server.stop()
    await server.close_all_connections()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    port = parser.parse_args().port
    with GracefulListener(("127.0.0.1", port)) as listener:
        print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        asyncio.run(serve(listener))


if __name__ == "__main__":
    main()
