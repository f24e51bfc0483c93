"""aiohttp: refuse an upload without reading it, so that the refusal arrives.

python examples/aiohttp_server.py --port 8413
"""

from __future__ import annotations

import argparse
import asyncio
import signal

from aiohttp import web

from graceful_close import GracefulListener

REFUSAL = b"This upload is too large.\n".ljust(64 << 10, b".")


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="hello\n")


async def refuse(request: web.Request) -> web.Response:
    response = web.Response(status=413, body=REFUSAL)
    response.force_close()  # a "Connection: close" among the headers would not close anything
    return response


app = web.Application()
app.add_routes([web.get("/", hello), web.post("/", refuse)])


async def serve(listener: GracefulListener) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # This is what matters: the listener, and SockSite (or run_app's `sock`). Without the 0,
    # aiohttp first reads on for 10 seconds by itself, in the handler's task.
    runner = web.AppRunner(app, lingering_time=0)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    await stop.wait()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    port = parser.parse_args().port
    with GracefulListener(("127.0.0.1", port)) as listener:
        print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        asyncio.run(serve(listener))


if __name__ == "__main__":
    main()
