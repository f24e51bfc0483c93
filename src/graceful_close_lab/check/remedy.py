"""What to do about lost replies, by what the server calls itself."""

from __future__ import annotations

from typing import NamedTuple


class Remedy(NamedTuple):
    """What helps one kind of server.

    Attributes:
        marks: What its Server field contains, in lower case.
        words: What to do, in one line.
        section: The heading on the page docs/servers.md that tells more.
    """

    marks: tuple[str, ...]
    words: str
    section: str


# A mark that others contain too stands after them: uvicorn behind gunicorn says "uvicorn".
REMEDIES = (
    Remedy(
        ("gunicorn",),
        "with gunicorn, adopt its sockets with GracefulListener in post_fork",
        "gunicorn",
    ),
    Remedy(
        ("uvicorn",),
        "with uvicorn, Server(config).run(sockets=[GracefulListener(...)])",
        "uvicorn",
    ),
    Remedy(
        ("waitress",), "with waitress, serve(app, sockets=[GracefulListener(...)])", "waitress"
    ),
    Remedy(
        ("werkzeug",),
        "with Werkzeug, GracefulMixIn before ThreadedWSGIServer",
        "flask-and-werkzeug",
    ),
    Remedy(
        ("cheroot", "cherrypy"),
        "with Cheroot, server.socket = GracefulListener.adopt(server.socket)",
        "cheroot",
    ),
    Remedy(
        ("hypercorn",),
        "with Hypercorn, a GracefulListener from Config.create_sockets()",
        "hypercorn",
    ),
    Remedy(
        ("aiohttp",), "with aiohttp, web.SockSite(runner, GracefulListener(...))", "aiohttp"
    ),
    Remedy(
        ("tornado",), "with Tornado, server.add_sockets([GracefulListener(...)])", "tornado"
    ),
    Remedy(("twistedweb",), "with Twisted, a wrapper of the protocol", "twisted"),
    Remedy(
        ("gevent",),
        "with gevent, hand the connection to a Reaper in WSGIServer.handle",
        "gevent",
    ),
    Remedy(
        ("basehttp", "simplehttp", "wsgiserver"),
        "with http.server and wsgiref, GracefulMixIn first among the server's bases",
        "socketserver",
    ),
)

_ANY = (
    "give the server a GracefulListener to listen on; with socketserver GracefulMixIn, with "
    "asyncio graceful_close.asyncio; see docs/servers.md"
)


def remedy(server: str) -> str:
    """One line that says what to use.

    Args:
        server: The Server field of its replies; empty: unknown.
    """
    for known in REMEDIES:
        if any(mark in server.lower() for mark in known.marks):
            return f"{known.words}; see docs/servers.md#{known.section}"
    return _ANY
