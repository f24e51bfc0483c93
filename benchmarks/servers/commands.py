"""Servers started by their usual commands, with an application that replies early.

The commands run in the folder `apps`. If the environment has GRACEFUL, the applications are
inside a DrainMiddleware, or the server has the fix that `cure` names.
"""

from __future__ import annotations

import http.client
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .listening import announce

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import IO

_APPS = Path(__file__).parent / "apps"
_ROOT = Path(__file__).parents[2]
_DEADLINE = 60.0  # seconds for a start on a busy machine

_DRAIN, _MIXIN, _LISTENER = "`DrainMiddleware`", "`GracefulMixIn`", "`GracefulListener`"
_DRAIN_FIRST = "`DrainMiddleware(app, before_reply=True)`"


class Command(NamedTuple):
    """A server and its command.

    Attributes:
        line: The command, with {host} and {port}.
        packages: The required packages, by their names on PyPI.
        cure: What makes it graceful; empty: nothing is needed.
        after: The graceful command, if it is another one.
        graceful: The value of GRACEFUL in the environment.
        own_reply: Whether the server itself replies, with its own size of the reply.
    """

    line: str
    packages: tuple[str, ...]
    cure: str = _DRAIN
    after: str | None = None
    graceful: str = "1"
    own_reply: bool = False

    def serve(self, host: str, graceful: bool) -> None:
        """Serve on this host, print the port, and continue until killed."""
        port = free_port(host)
        line = self.after if graceful and self.after else self.line
        environment = {"GRACEFUL": self.graceful} if graceful else {}
        process = start(shlex.split(line.format(host=host, port=port)), environment, sys.stderr)
        await_reply(process, host, port)
        announce(port)
        raise SystemExit(process.wait())


def free_port(host: str) -> int:
    """Return a port without a listener."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def start(
    arguments: list[str],
    environment: Mapping[str, str],
    output: IO[str],
    *,
    apart: bool = False,
) -> subprocess.Popen[bytes]:
    """Start the command, with the programs of this interpreter first on the path.

    `apart`: in a new session, which can be killed as a whole.
    """
    return subprocess.Popen(
        arguments,
        cwd=_APPS,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=apart,
        env={
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_APPS)]),
            **environment,
        },
    )


def await_reply(process: subprocess.Popen[bytes], host: str, port: int) -> None:
    """Wait until the server replies.

    Raises:
        RuntimeError: It did not reply in time.
    """
    give_up = time.monotonic() + _DEADLINE
    while True:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        try:
            connection.request("GET", "/")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass  # the server does not listen yet, or has no worker
        finally:
            connection.close()
        if process.poll() is not None or time.monotonic() > give_up:
            process.kill()
            raise RuntimeError(f"{process.args!r} does not serve")
        time.sleep(0.05)


def _program(name: str, package: str, cure: str = _DRAIN) -> Command:
    packages = (package,) if package else ()
    return Command(f"python {name}.py {{host}} {{port}}", packages, cure)


_GUNICORN = "gunicorn --no-control-socket -b {host}:{port}"
_UVICORN = "uvicorn --host {host} --port {port}"
_GRANIAN = "granian --host {host} --port {port}"
_WAITRESS = "waitress-serve --host={host} --port={port}"
_UWSGI = "python -c 'import sys, pyuwsgi; pyuwsgi.run(sys.argv[1:])'"

# The servers, by command or by function.
COMMANDS = {
    "Django: manage.py runserver": Command(
        "python django_app.py runserver --noreload {host}:{port}", ("Django",), ""
    ),
    "Django: gunicorn": Command(f"{_GUNICORN} django_app", ("Django", "gunicorn")),
    "Django: daphne": Command(
        "daphne -b {host} -p {port} django_app:asgi_application", ("Django", "daphne"), ""
    ),
    "Django: uvicorn": Command(
        f"{_UVICORN} django_app:asgi_application", ("Django", "uvicorn", "uvloop"), ""
    ),
    "flask run": Command(
        "flask --app flask_app run --host {host} --port {port}", ("Flask", "Werkzeug")
    ),
    "Flask: gunicorn": Command(f"{_GUNICORN} flask_app:app", ("Flask", "gunicorn")),
    "fastapi run": Command(
        "fastapi run --host {host} --port {port} fastapi_app.py",
        ("fastapi", "fastapi-cli", "uvicorn"),
    ),
    "Starlette: uvicorn": Command(f"{_UVICORN} starlette_app:app", ("starlette", "uvicorn")),
    "BlackSheep: uvicorn": Command(f"{_UVICORN} blacksheep_app:app", ("blacksheep", "uvicorn")),
    "litestar run": Command(
        "litestar --app litestar_app:app run --host {host} --port {port}",
        ("litestar", "uvicorn"),
    ),
    "quart run": Command(
        "quart --app quart_app run --host {host} --port {port}", ("quart", "hypercorn")
    ),
    "uvicorn app:app": Command(
        f"{_UVICORN} plain_asgi:app", ("uvicorn", "uvloop", "httptools")
    ),
    "uvicorn --loop asyncio --http h11": Command(
        f"{_UVICORN} --loop asyncio --http h11 plain_asgi:app", ("uvicorn", "h11")
    ),
    "uvicorn --workers 2": Command(f"{_UVICORN} --workers 2 plain_asgi:app", ("uvicorn",)),
    "uvicorn --reload": Command(f"{_UVICORN} --reload plain_asgi:app", ("uvicorn",)),
    "hypercorn app:app": Command("hypercorn -b {host}:{port} plain_asgi:app", ("hypercorn",)),
    "hypercorn -k trio": Command(
        "hypercorn -k trio -b {host}:{port} plain_asgi:app", ("hypercorn", "trio")
    ),
    "granian --interface asgi": Command(
        f"{_GRANIAN} --interface asgi plain_asgi:app",
        ("granian",),
        _DRAIN_FIRST,
        graceful="before_reply",
    ),
    "granian --interface wsgi": Command(
        f"{_GRANIAN} --interface wsgi plain_wsgi:app", ("granian",)
    ),
    "gunicorn app:app": Command(f"{_GUNICORN} plain_wsgi:app", ("gunicorn",)),
    "gunicorn -k gthread": Command(f"{_GUNICORN} -k gthread plain_wsgi:app", ("gunicorn",)),
    "gunicorn -k gevent": Command(
        f"{_GUNICORN} -k gevent plain_wsgi:app", ("gunicorn", "gevent")
    ),
    "gunicorn -k tornado": Command(
        f"{_GUNICORN} -k tornado plain_wsgi:app", ("gunicorn", "tornado")
    ),
    "gunicorn -k asgi": Command(f"{_GUNICORN} -k asgi plain_asgi:app", ("gunicorn",)),
    "gunicorn -k uvicorn_worker.UvicornWorker": Command(
        f"{_GUNICORN} -k uvicorn_worker.UvicornWorker plain_asgi:app",
        ("gunicorn", "uvicorn-worker"),
    ),
    "uwsgi --http": Command(
        f"{_UWSGI} --http {{host}}:{{port}} --module plain_wsgi:app", ("pyuwsgi",)
    ),
    "uwsgi --http-socket": Command(
        f"{_UWSGI} --http-socket {{host}}:{{port}} --module plain_wsgi:app", ("pyuwsgi",)
    ),
    "waitress-serve": Command(f"{_WAITRESS} plain_wsgi:app", ("waitress",), ""),
    "waitress-serve past its limit": Command(
        f"{_WAITRESS} --max-request-body-size=50000 plain_wsgi:app",
        ("waitress",),
        f"{_LISTENER}: `waitress.serve(sockets=...)`",
        after="python waitress_app.py {host} {port}",
        own_reply=True,
    ),
    "Pyramid: pserve (waitress) past its limit": Command(
        "pserve pyramid_before.ini http_host={host} http_port={port}",
        ("pyramid", "waitress"),
        f"{_LISTENER}: `use = call:...` in the ini file",
        after="pserve pyramid_after.ini http_host={host} http_port={port}",
        own_reply=True,
    ),
    "CherryPy: quickstart()": _program("cherrypy_app", "CherryPy"),
    "cheroot: Server.start()": _program("cheroot_app", "cheroot"),
    "Bottle: run()": _program("bottle_app", "bottle"),
    "wsgiref: make_server()": _program("plain_wsgi", ""),
    "http.server: ThreadingHTTPServer": _program("http_server", "", _MIXIN),
    "gevent: pywsgi": _program("pywsgi_app", "gevent", ""),
    "eventlet.wsgi": _program("eventlet_app", "eventlet"),
    "aiohttp: run_app()": _program(
        "aiohttp_app", "aiohttp", f"{_LISTENER}: `run_app(sock=...)`"
    ),
    "gunicorn -k aiohttp": Command(
        f"{_GUNICORN} -k aiohttp.GunicornWebWorker aiohttp_app:app", ("gunicorn", "aiohttp"), ""
    ),
    "Tornado": _program("tornado_app", "tornado", f"{_LISTENER}: `add_sockets([listener])`"),
    "sanic": Command(
        "sanic --host {host} --port {port} --single-process sanic_app:app", ("sanic",), ""
    ),
    "twist web --wsgi": Command(
        "twist web --listen=tcp:{port}:interface={host} --wsgi=plain_wsgi.app", ("Twisted",), ""
    ),
    "Robyn": _program("robyn_app", "robyn", ""),
}
