"""gunicorn, its workers sync, gthread and asgi: refuse an upload, so that the refusal arrives.

    gunicorn -c examples/gunicorn.conf.py
    gunicorn -c examples/gunicorn.conf.py -k gthread
    gunicorn -c examples/gunicorn.conf.py -k asgi uvicorn_server:app

The applications are those of the examples beside this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graceful_close import GracefulListener

bind = "127.0.0.1:8413"
chdir = str(Path(__file__).parent)
wsgi_app = "wsgiref_server:app"
asgi_loop = "asyncio"  # uvloop, the default where it is installed, takes the descriptor


# This is what matters: in each worker, before it serves, its sockets become ours.
def post_fork(server: Any, worker: Any) -> None:
    for listening in worker.sockets:
        listening.sock = GracefulListener.adopt(listening.sock)


# The sync worker closes after every reply, but waits for the client itself before it does, up to
# two seconds for each, and serves nobody meanwhile. Closed here, the connection goes on without it.
def post_request(worker: Any, request: Any, environ: Any, response: Any) -> None:
    if worker.cfg.worker_class_str == "sync" and environ:
        environ["gunicorn.socket"].close()
