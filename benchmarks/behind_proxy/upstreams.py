"""The servers behind the proxy, as data, and their start."""

from __future__ import annotations

import shlex
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.servers.commands import free_port, start

from .ending import ended

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

_HOST = "127.0.0.1"
_DEADLINE = 60.0  # seconds for a start on a busy machine


class Upstream(NamedTuple):
    """A server that replies early.

    Attributes:
        line: The command, with {host} and {port}, or {path} for a UNIX socket.
        cure: What makes it graceful.
        after: The graceful command, if it is another one.
        package: The required package.
        speaks_uwsgi: Whether it speaks uwsgi instead of HTTP, as nginx's uwsgi_pass does.
        own_reply: Whether the server itself replies, with its own size of the reply.
    """

    line: str
    package: str
    cure: str = "`DrainMiddleware`"
    after: str | None = None
    speaks_uwsgi: bool = False
    own_reply: bool = False

    @property
    def is_unix(self) -> bool:
        """Whether it listens on a UNIX socket."""
        return "{path}" in self.line

    @contextmanager
    def running(self, folder: Path, graceful: bool) -> Generator[str]:
        """Run the server; yield its address: host:port, or a path."""
        path = folder / f"{'after' if graceful else 'before'}.sock"
        path.unlink(missing_ok=True)
        port = free_port(_HOST)
        line = self.after if graceful and self.after else self.line
        arguments = shlex.split(line.format(host=_HOST, port=port, path=path))
        environment = {"GRACEFUL": "1"} if graceful else {}
        with (
            folder.joinpath("server.log").open("w") as log,
            ended(start(arguments, environment, log, apart=True)),
        ):
            give_up = time.monotonic() + _DEADLINE
            while self.is_unix and not path.exists() and time.monotonic() < give_up:
                time.sleep(0.05)
            yield str(path) if self.is_unix else f"{_HOST}:{port}"


_GUNICORN = "gunicorn --no-control-socket"
_TCP, _UNIX = "-b {host}:{port}", "-b unix:{path}"
_UWSGI = "python -c 'import sys, pyuwsgi; pyuwsgi.run(sys.argv[1:])' --module plain_wsgi:app"

UPSTREAMS = {
    "gunicorn": Upstream(f"{_GUNICORN} {_TCP} plain_wsgi:app", "gunicorn"),
    "gunicorn, UNIX socket": Upstream(f"{_GUNICORN} {_UNIX} plain_wsgi:app", "gunicorn"),
    "gunicorn -k gthread": Upstream(
        f"{_GUNICORN} -k gthread {_TCP} plain_wsgi:app", "gunicorn"
    ),
    "gunicorn -k gevent": Upstream(f"{_GUNICORN} -k gevent {_TCP} plain_wsgi:app", "gevent"),
    "gunicorn -k uvicorn_worker.UvicornWorker": Upstream(
        f"{_GUNICORN} -k uvicorn_worker.UvicornWorker {_TCP} plain_asgi:app", "uvicorn-worker"
    ),
    "uvicorn": Upstream("uvicorn --host {host} --port {port} plain_asgi:app", "uvicorn"),
    "uvicorn --uds": Upstream("uvicorn --uds {path} plain_asgi:app", "uvicorn"),
    "hypercorn": Upstream("hypercorn -b {host}:{port} plain_asgi:app", "hypercorn"),
    "waitress-serve past its limit": Upstream(
        "waitress-serve --host={host} --port={port} --max-request-body-size=50000 "
        "plain_wsgi:app",
        "waitress",
        "`GracefulListener`",
        after="python waitress_app.py {host} {port}",
        own_reply=True,
    ),
    "Tornado": Upstream("python tornado_app.py {host} {port}", "tornado", "`GracefulListener`"),
    "granian --interface wsgi": Upstream(
        "granian --host {host} --port {port} --interface wsgi plain_wsgi:app", "granian"
    ),
    "uwsgi --http-socket": Upstream(f"{_UWSGI} --http-socket {{host}}:{{port}}", "pyuwsgi"),
    "uwsgi --socket (uwsgi_pass)": Upstream(
        f"{_UWSGI} --socket {{host}}:{{port}}", "pyuwsgi", speaks_uwsgi=True
    ),
}
