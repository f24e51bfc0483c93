"""For gunicorn, as its configuration: `gunicorn -c python:graceful_close.gunicorn app:app`.

These are five of gunicorn's documented server hooks. A configuration file without hooks of its own
imports them in one line. A configuration file with hooks of its own calls these from its hooks:

    from graceful_close.gunicorn import *

    # or
    import graceful_close.gunicorn as graceful

    def post_fork(server, worker):
        graceful.post_fork(server, worker, timeout=8)

gunicorn reads one configuration. `-c` on the command line replaces a gunicorn.conf.py.
"""

from __future__ import annotations

import math
from functools import cache

from ._listener import GracefulListener
from ._reaper import Reaper, hand_over, stop
from ._signals import exit_at_sigterm

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from typing import Any

    from typing_extensions import Unpack

    from ._reaper import ReaperOptions

__all__ = ["post_fork", "post_request", "post_worker_init", "ssl_context", "worker_exit"]

# A worker that has served `max_requests` is replaced when it has exited. It waits for its pending closes
# as long as gunicorn itself drains a connection. In seconds.
_UNTIL_REPLACED = 2.0

# The listeners that post_fork() has created in this process. gunicorn does not pass them to the other
# hooks.
_listeners: list[GracefulListener] = []

# A function that creates, once, the Reaper of a worker that accepts below the socket object. The Reaper
# is not created in post_fork(), because gevent patches later, and an unpatched lock would block the
# Reaper's greenlet.
_reaper_for_greenlets: list[Callable[[], Reaper]] = []


def post_fork(server: Any, worker: Any, **options: Unpack[ReaperOptions]) -> None:
    """Make the connections of a newly forked worker close gracefully.

        def post_fork(server, worker):  # in gunicorn.conf.py
            graceful_close.gunicorn.post_fork(server, worker, timeout=8)

    The workers sync, gthread, tornado, asgi, and those of uvicorn_worker and aiohttp then accept
    through a `GracefulListener`. If asgi and uvicorn_worker are configured for uvloop, they run
    asyncio's own event loop instead, because uvloop bypasses the listener.

    gevent and eventlet accept below the socket object. With these workers only `post_request` has an
    effect, and gunicorn's log gets a warning about that.

    Args:
        server: gunicorn's arbiter.
        worker: The worker.
        options: The options of `Reaper`.

    Raises:
        TypeError, ValueError: As for `Reaper`.
    """
    reaper = Reaper(**options)
    _listeners.clear()
    _reaper_for_greenlets.clear()
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(worker).__mro__}
    if "gunicorn.workers.base_async.AsyncWorker" in kinds:
        worker.log.warning(
            "graceful-close: %s accepts below the socket object. Replies of the application "
            "are ended gracefully, gunicorn's own (400, 408) are not. The alternative is "
            "graceful_close.wsgi.DrainMiddleware around the application.",
            worker.cfg.worker_class_str,
        )
        _reaper_for_greenlets.append(cache(lambda: Reaper(**options)))
        return
    if "aiohttp.worker.GunicornUVLoopWebWorker" in kinds:
        worker.log.warning(
            "graceful-close: uvloop accepts below the socket object. aiohttp lingers by itself "
            "for 10 seconds; for more than that use aiohttp.GunicornWebWorker."
        )
        return
    loop = None
    if "gunicorn.workers.gasgi.ASGIWorker" in kinds:
        loop = worker.cfg.asgi_loop
        worker.cfg.set("asgi_loop", "asyncio")
    elif kinds & {"uvicorn_worker._workers.UvicornWorker", "uvicorn.workers.UvicornWorker"}:
        loop = worker.config.loop
        worker.config.loop = "asyncio"
    if loop not in {None, "asyncio"}:
        worker.log.info("graceful-close: the event loop is asyncio's, instead of %r", loop)
    for listening in worker.sockets:
        listening.sock = GracefulListener.adopt(listening.sock, reaper=reaper)
        _listeners.append(listening.sock)


def post_worker_init(worker: Any) -> None:
    """Make a worker exit at SIGTERM instead of being killed, so that it finishes pending closes.

        def post_worker_init(worker):  # in gunicorn.conf.py
            graceful_close.gunicorn.post_worker_init(worker)

    gunicorn's own workers handle SIGTERM. The worker of uvicorn_worker raises SIGTERM again when it
    ends.

    Args:
        worker: The worker, unused.
    """
    del worker
    exit_at_sigterm()


def worker_exit(server: Any, worker: Any) -> None:
    """Limit how long an exiting worker waits for its pending closes.

        def worker_exit(server, worker):  # in gunicorn.conf.py
            graceful_close.gunicorn.worker_exit(server, worker)

    A worker waits for `idle_timeout` (5 seconds) at most, and no longer than half of gunicorn's
    `timeout`, after which gunicorn kills workers. A worker that has served max_requests waits for 2
    seconds at most, because gunicorn starts its replacement only after the exit.

    Args:
        server: gunicorn's arbiter, unused.
        worker: The worker.

    .. versionadded:: 0.2.0
    """
    del server
    seconds = worker.timeout or math.inf  # half of gunicorn's timeout
    if worker.nr >= worker.max_requests:
        seconds = min(seconds, _UNTIL_REPLACED)
    for listener in _listeners[:1]:  # all have one Reaper
        stop(listener.reaper, seconds)
    for reaper in _reaper_for_greenlets:
        stop(reaper(), seconds)


def post_request(worker: Any, request: Any, environ: Any, response: Any) -> None:
    """Close the connection before gunicorn drains for up to two seconds or closes abruptly.

        def post_request(worker, request, environ, response):  # in gunicorn.conf.py
            graceful_close.gunicorn.post_request(worker, request, environ, response)

    The sync worker drains before it closes, and serves no other client during that time. The workers
    of gevent and eventlet close immediately.

    Args:
        worker: The worker.
        request: The request, unused.
        environ: WSGI's environment, to which gunicorn adds the connection.
        response: The response that was sent.
    """
    if not environ or response is None or not response.headers_sent:
        return  # the reply was not started, and gunicorn sends a 500 next
    if not environ.get("SERVER_PROTOCOL", "").startswith("HTTP/1"):
        return  # the connection serves other streams, too
    sock = environ.get("gunicorn.socket")  # None in ASGI
    if _listeners and worker.cfg.worker_class_str == "sync":
        sock.close()
    elif sock is not None and _reaper_for_greenlets and response.should_close():
        hand_over(sock, _reaper_for_greenlets[0]())


def ssl_context(
    conf: Any, default_ssl_context_factory: Callable[[], ssl.SSLContext]
) -> ssl.SSLContext:
    """Create the TLS context, so that TLS sockets close gracefully, too.

        def ssl_context(conf, default_ssl_context_factory):  # in gunicorn.conf.py
            return graceful_close.gunicorn.ssl_context(conf, default_ssl_context_factory)

    Args:
        conf: gunicorn's configuration.
        default_ssl_context_factory: The function that creates the context, gunicorn's or your own.

    Returns:
        The context.

    Raises:
        TypeError: As for `GracefulListener.tls`.
    """
    context = default_ssl_context_factory()
    if _listeners:
        _listeners[0].tls(context)
    return context
