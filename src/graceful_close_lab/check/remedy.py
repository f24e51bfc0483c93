"""What to do about what was found, by what the server calls itself."""

from __future__ import annotations

from typing import NamedTuple

from ..documentation import page
from .outcome import Outcome
from .verdict import Findings, Verdict


class Remedy(NamedTuple):
    """What helps one kind of server.

    Attributes:
        marks: What its Server field contains, in lower case.
        words: What to do: a sentence.
        section: The anchor on the page docs/servers.md that tells more.
    """

    marks: tuple[str, ...]
    words: str
    section: str


_WSGI = "graceful_close.wsgi.DrainMiddleware"
_ASGI = "graceful_close.asgi.DrainMiddleware"

# A mark that others contain too stands after them.
REMEDIES = (
    Remedy(
        ("gunicorn",),
        "Start it with `gunicorn -c python:graceful_close.gunicorn`, whatever its worker.",
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
        f"Put {_WSGI} around the application. For refusals of the server's own set "
        "cherrypy.server.httpserver as the page shows.",
        "cherrypy",
    ),
    Remedy(
        ("cheroot",),
        f"Put {_WSGI} around the application. For refusals of the server's own, such as past "
        "max_request_body_size, subclass the server as the page shows.",
        "cheroot",
    ),
    Remedy(
        ("hypercorn",),
        f"Put {_ASGI} around the application, or have Config.create_sockets() give a "
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
        f"Put {_ASGI} or {_WSGI} around the application; it takes no socket from Python.",
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
    f"Put {_WSGI} or {_ASGI} around the application: that works on every server, also on those "
    "that take no socket (uWSGI, granian, gevent, eventlet). Or find what you type in the table "
    "of the page.",
    "you-type-this",
)

# These ask other servers, if they have no answer themselves.
PROXIES = (
    "nginx", "openresty", "tengine", "caddy", "apache", "envoy", "haproxy", "varnish", "traefik",
    "cloudflare", "awselb", "cloudfront", "gws",
)  # fmt: skip

# Who needs nothing, and why. Tried with uploads of 5 MB.
NEEDS_NOTHING = {
    "daphne": "it reads the whole upload before it asks the application",
    "twistedweb": "it reads the whole upload before it asks the resource",
    "aiohttp": "it reads on for 10 seconds after its reply",
    "apache": "it reads on after its reply (its lingering close)",
}

_BEHIND = (
    "{0} stands between. Ask the server behind it, by --connect-to HOST:PORT or --unix-socket: "
    "what it loses {0} turns into 502."
)


class Advice(NamedTuple):
    """What to do.

    Attributes:
        words: One or more sentences; empty: nothing is wrong that we know of.
        link: Where it says more; empty: nowhere.
    """

    words: str = ""
    link: str = ""


def advice(findings: Findings) -> Advice:
    """What to do after these findings."""
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
                f"{proxy} takes the whole upload before it asks the server behind it, and gave "
                f"{late} whole replies of {len(findings.tries)}. " + _BEHIND.format(proxy),
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
    return f"This server needs nothing: {why}." if why else ""


_ADVICE = {  # what says most, first
    Outcome.TIMED_OUT: "The server neither answered nor read on: its log may say why. "
    "--timeout gives it longer.",
    Outcome.TOO_SLOW: "Give it more time (--timeout), or less to take (--upload).",
    Outcome.OTHER_STATUS: "Look at --path, --method and --header, or at --expect-status.",
    Outcome.LATE: "The server took the whole upload before it answered. Name a --path that it "
    "refuses immediately (401, 404, 405, 413), or an --upload larger than its limit.",
    Outcome.REFUSED: "No server listens there: start it, or look at the port.",
    Outcome.UNREACHABLE: "Look at the address.",
    Outcome.TLS_FAILED: "--cacert names the authority to trust, --insecure takes any "
    "certificate. Without TLS write http://.",
    Outcome.NOT_HTTP: "Look at the port. If it speaks TLS, write https://.",
    Outcome.CLOSED: "The server closes without an answer: its log may say why.",
}
