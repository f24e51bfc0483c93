"""The servers by name; `... .table NAME before|after HOST` runs one in this process."""

from __future__ import annotations

import argparse
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from . import looped, threaded
from .commands import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Callable

SIDES = ("before", "after")
_LISTENER, _MIXIN = "`GracefulListener`", "`GracefulMixIn`"


class Server(NamedTuple):
    """One server, as shipped and graceful.

    Attributes:
        serve: Serves on a host, gracefully or as shipped, until it is killed.
        after: What makes it graceful; empty: nothing is needed, and there is only one side.
        packages: The required packages, by their names on PyPI.
        module: The module of this package that it needs.
        note: Why it replies early, if that is not caused by the application, and other remarks.
        own_reply: Whether the server itself replies, with its own size of the reply.
    """

    serve: Callable[[str, bool], None]
    after: str
    packages: tuple[str, ...] = ()
    module: str = "graceful_close"
    note: str = ""
    own_reply: bool = False

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides that are tried."""
        return SIDES if self.after else SIDES[:1]

    def why_not(self) -> str | None:
        """Return why it cannot run here; None: it can."""
        try:
            self.versions()
        except metadata.PackageNotFoundError as error:
            return f"{error.name} is not installed"
        return None if find_spec(self.module) else f"there is no {self.module}"

    def versions(self) -> dict[str, str]:
        """Return the versions of its packages."""
        return {package: metadata.version(package) for package in self.packages}


# Short programs, with the integration point of each server; see `threaded` and `looped`.
RECIPES = {
    "http.server": Server(threaded.http_server, _MIXIN),
    "wsgiref": Server(threaded.wsgiref, _MIXIN, note="with ThreadingMixIn"),
    "werkzeug": Server(
        threaded.werkzeug,
        _LISTENER,
        ("Werkzeug",),
        note="reads on after the reply until nothing comes for 10 ms",
    ),
    "cheroot": Server(
        threaded.cheroot,
        _LISTENER,
        ("cheroot",),
        note="reads the body before a reply that leaves the connection open; 413 does not",
    ),
    "waitress": Server(
        threaded.waitress,
        _LISTENER,
        ("waitress",),
        note="reads the body first; past max_request_body_size, here 1024, it refuses by "
        "itself, with a reply of its own of some 100 bytes",
        own_reply=True,
    ),
    "gunicorn-sync": Server(threaded.gunicorn_sync, _LISTENER, ("gunicorn",)),
    "gunicorn-gthread": Server(threaded.gunicorn_gthread, _LISTENER, ("gunicorn",)),
    "gunicorn-asgi": Server(threaded.gunicorn_asgi, _LISTENER, ("gunicorn",)),
    "gevent": Server(
        threaded.gevent,
        "a dup, and a Reaper",
        ("gevent",),
        note="pywsgi reads the body to its end after the reply, without a deadline",
    ),
    "uvicorn-h11": Server(looped.uvicorn_h11, _LISTENER, ("uvicorn", "h11")),
    "uvicorn-httptools": Server(looped.uvicorn_httptools, _LISTENER, ("uvicorn", "httptools")),
    "uvicorn-uvloop": Server(
        looped.uvicorn_uvloop,
        "--loop graceful_close.uvicorn:new_uvloop",
        ("uvicorn", "httptools", "uvloop"),
        "graceful_close.uvicorn",
    ),
    "hypercorn": Server(looped.hypercorn, _LISTENER, ("Hypercorn",)),
    "aiohttp": Server(
        looped.aiohttp,
        _LISTENER,
        ("aiohttp",),
        note="reads on after the reply for lingering_time, 10 s as shipped",
    ),
    "aiohttp-no-lingering": Server(
        looped.aiohttp_no_lingering, _LISTENER, ("aiohttp",), note="lingering_time=0"
    ),
    "tornado": Server(looped.tornado, _LISTENER, ("tornado",), note="stream_request_body"),
    "twisted": Server(
        looped.twisted,
        "half-close, in a wrapper",
        ("Twisted",),
        note="a LineReceiver; twisted.web reads the body first",
    ),
    "asyncio-listener": Server(looped.asyncio_listener, _LISTENER),
    "asyncio": Server(
        looped.asyncio_streams, "`graceful_close.asyncio`", module="graceful_close.asyncio"
    ),
    "uvloop": Server(
        looped.uvloop, "`graceful_close.asyncio`", ("uvloop",), "graceful_close.asyncio"
    ),
    "trio": Server(looped.trio, "`graceful_close.trio`", ("trio",), "graceful_close.trio"),
    "anyio": Server(looped.anyio, "`graceful_close.anyio`", ("anyio",), "graceful_close.anyio"),
}

SERVERS = RECIPES | {
    name: Server(command.serve, command.cure, command.packages, own_reply=command.own_reply)
    for name, command in COMMANDS.items()
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=SERVERS)
    parser.add_argument("side", choices=("before", "after"))
    parser.add_argument("host")
    given = parser.parse_args()
    SERVERS[given.name].serve(given.host, given.side == "after")


if __name__ == "__main__":
    main()
