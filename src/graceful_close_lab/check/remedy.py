"""Advice on the findings, by the server's name in its Server field."""

from __future__ import annotations

from typing import NamedTuple

from ..documentation import page
from .outcome import Outcome
from .verdict import Findings, Verdict


class Remedy(NamedTuple):
    """The fix for one kind of server.

    Attributes:
        marks: Texts that its Server field contains, in lower case.
        words: The instruction: a sentence.
        section: The anchor of the section on the page docs/servers.md.
    """

    marks: tuple[str, ...]
    words: str
    section: str


_WSGI = "graceful_close.wsgi.DrainMiddleware"
_ASGI = "graceful_close.asgi.DrainMiddleware"

# A mark that is part of another mark comes after it.
REMEDIES = (
    Remedy(
        ("gunicorn",),
        "Start it with `gunicorn -c python:graceful_close.gunicorn`, for any worker class.",
        "gunicorn",
    ),
    Remedy(
        ("uvicorn",),
        "Start it with `uvicorn --loop graceful_close.uvicorn:new_loop`, or put "
        f"{_ASGI} around the application. As gunicorn's worker: `gunicorn -c "
        "python:graceful_close.gunicorn`.",
        "uvicorn",
    ),
    Remedy(
        ("waitress",),
        "Serve with graceful_close.waitress.serve(app), or, under pserve, with "
        "`use = egg:graceful-close#waitress`.",
        "waitress",
    ),
    Remedy(
        ("werkzeug",),
        f"Set app.wsgi_app = {_WSGI}(app.wsgi_app): `flask run` stays as it is. Or call "
        "app.run(request_handler=graceful_close.werkzeug.GracefulRequestHandler).",
        "flask-and-werkzeug",
    ),
    Remedy(
        ("cherrypy",),
        f"Put {_WSGI} around the application. For errors that the server itself returns, set "
        "cherrypy.server.httpserver as the page shows.",
        "cherrypy",
    ),
    Remedy(
        ("cheroot",),
        f"Put {_WSGI} around the application. For errors that the server itself returns, such "
        "as for max_request_body_size, subclass the server as the page shows.",
        "cheroot",
    ),
    Remedy(
        ("hypercorn",),
        f"Put {_ASGI} around the application, or make Config.create_sockets() return a "
        "GracefulListener.",
        "hypercorn",
    ),
    Remedy(
        ("aiohttp",), "Start it with web.SockSite(runner, GracefulListener(...)).", "aiohttp"
    ),
    Remedy(
        ("tornado",), "Start it with server.add_sockets([GracefulListener(...)]).", "tornado"
    ),
    Remedy(("twistedweb",), "Wrap the protocol as the page shows.", "twisted"),
    Remedy(
        ("gevent",),
        f"Put {_WSGI} around the application, or hand the connection to a Reaper in "
        "WSGIServer.handle().",
        "gevent",
    ),
    Remedy(
        ("granian",),
        f"Put {_ASGI} or {_WSGI} around the application; the server does not accept a socket "
        "from Python.",
        "one-line",
    ),
    Remedy(
        ("daphne", "uwebsockets", "socketify"),
        f"Put {_ASGI} around the application.",
        "one-line",
    ),
    Remedy(
        ("basehttp", "simplehttp", "wsgiserver"),
        "Put GracefulMixIn first among the bases of the server's class (with Bottle: "
        f"run(server_class=...)), or {_WSGI} around a WSGI application.",
        "socketserver",
    ),
)

_ANY = Remedy(
    (),
    f"Put {_WSGI} or {_ASGI} around the application: this works on every server, also on those "
    "that do not accept a socket (uWSGI, granian, gevent, eventlet). Or find your command in "
    "the table of the page.",
    "you-type-this",
)

# Proxies, which forward requests to other servers.
PROXIES = (
    "nginx", "openresty", "tengine", "caddy", "apache", "envoy", "haproxy", "varnish", "traefik",
    "cloudflare", "awselb", "cloudfront", "gws",
)  # fmt: skip

# Servers that need no fix, and why. Tried with uploads of 5 MB.
NEEDS_NOTHING = {
    "daphne": "it reads the whole upload before it calls the application",
    "twistedweb": "it reads the whole upload before it calls the resource",
    "aiohttp": "it continues to read for 10 seconds after its reply",
    "apache": "it continues to read after its reply (its lingering close)",
}

_BEHIND = (
    "{0} is a proxy. Check the server behind it, with --connect-to HOST:PORT or --unix-socket: "
    "for a reply that this server loses, {0} returns 502."
)


class Advice(NamedTuple):
    """What to do.

    Attributes:
        words: One or more sentences; empty: no known problem.
        link: The address of a page about it; empty: none.
    """

    words: str = ""
    link: str = ""


def advice(findings: Findings) -> Advice:
    """Return the advice on these findings."""
    server, outcomes = findings.server.lower(), findings.outcomes
    proxy = next((findings.server.split("/")[0] for mark in PROXIES if mark in server), "")
    match findings.verdict:
        case Verdict.LOST | Verdict.LOST_FOR_SOME:
            if proxy or Outcome.BY_PROXY in outcomes:
                return Advice(_BEHIND.format(proxy or "A proxy"), page("proxies"))
            return _remedy(server)
        case Verdict.SURVIVED:
            return Advice(_needs_nothing(server))
        case Verdict.NOT_TESTED if proxy and Outcome.LATE in outcomes:
            late = sum(each.outcome is Outcome.LATE for each in findings.tries)
            return Advice(
                f"{proxy} reads the whole upload before it calls the server behind it, and "
                "returned "
                f"{late} complete replies of {len(findings.tries)}. " + _BEHIND.format(proxy),
                page("proxies"),
            )
        case _:
            words = next(
                (words for outcome, words in _ADVICE.items() if outcome in outcomes), ""
            )
            return Advice(" ".join(filter(None, [words, _needs_nothing(server)])))


def _remedy(server: str) -> Advice:
    known = next(
        (known for known in REMEDIES if any(mark in server for mark in known.marks)), _ANY
    )
    return Advice(known.words, page("servers", known.section))


def _needs_nothing(server: str) -> str:
    why = next((why for mark, why in NEEDS_NOTHING.items() if mark in server), "")
    return f"This server needs no fix: {why}." if why else ""


_ADVICE = {  # the most specific first
    Outcome.TIMED_OUT: "The server neither replied nor continued to read: its log may say why. "
    "--timeout gives it more time.",
    Outcome.TOO_SLOW: "Give it more time (--timeout), or a smaller upload (--upload).",
    Outcome.OTHER_STATUS: "Check --path, --method and --header, or --expect-status.",
    Outcome.LATE: "The server read the whole upload before it replied. Name a --path that it "
    "rejects immediately (401, 404, 405, 413), or an --upload larger than its limit.",
    Outcome.REFUSED: "Check that the server is running on that port.",
    Outcome.UNREACHABLE: "Check the address.",
    Outcome.TLS_FAILED: "--cacert names the authority to trust, --insecure accepts any "
    "certificate. Without TLS write http://.",
    Outcome.NOT_HTTP: "Check the port. If it speaks TLS, write https://.",
    Outcome.CLOSED: "The server closes without a reply: its log may say why.",
}
