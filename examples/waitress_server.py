"""waitress: it refuses an upload past its limit by itself; here the refusal arrives.

    python examples/waitress_server.py --port 8413

waitress reads the whole request before it calls the application, so it replies early only if a
request is too large or malformed. Then it closes immediately.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

# This is what matters: the serve() of another module than waitress.
from graceful_close.waitress import serve


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"hello\n"]


def for_paste(global_conf: object) -> WSGIApplication:
    return app  # for pserve.ini


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    port = parser.parse_args().port
    logging.basicConfig(level=logging.INFO)  # waitress says where it listens
    serve(app, listen=f"127.0.0.1:{port}", max_request_body_size=1 << 20)


if __name__ == "__main__":
    main()
