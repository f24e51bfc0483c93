"""`waitress.serve` with connections that close gracefully, also for pserve.

    from graceful_close.waitress import serve

    serve(app, listen="127.0.0.1:8080")

In the configuration that pserve reads (Pyramid), change one word:

    [server:main]
    use = egg:graceful-close#waitress
    listen = 127.0.0.1:6543
"""

from __future__ import annotations

import logging
import threading

import waitress  # type: ignore[import-untyped]
from waitress.server import create_server  # type: ignore[import-untyped]

from ._listener import GracefulListener
from ._signals import exit_at_sigterm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any
    from wsgiref.types import WSGIApplication

__all__ = ["serve", "serve_paste"]


def serve(app: WSGIApplication, **settings: Any) -> None:
    """Serve until SIGTERM or KeyboardInterrupt, then finish the pending closes.

        serve(app, listen="127.0.0.1:8080")

    Args:
        app: A WSGI application.
        settings: The settings of `waitress.serve`: `listen`, `host`, `port`, `unix_socket`, `sockets`,
            `threads` and all others. `_quiet=True` starts without a message and without logging.

    Raises:
        ValueError: As for `waitress.serve`.
        OSError: The address is not available.

    Notes:
        In the main thread this function calls `graceful_close.exit_at_sigterm`.
    """
    # The arguments that waitress.serve() has beside the settings, for its tests and by other programs.
    create: Callable[..., Any] = settings.pop("_server", create_server)
    quiet = settings.pop("_quiet", False)
    profiled = settings.pop("_profile", False)
    if not quiet:
        logging.basicConfig()
    dispatchers: dict[int, Any] = {}
    server: Any = create(app, map=dispatchers, **settings)
    for dispatcher in dispatchers.values():
        if dispatcher.accepting:
            dispatcher.socket = GracefulListener.adopt(dispatcher.socket)
    if threading.current_thread() is threading.main_thread():
        exit_at_sigterm()
    if not quiet:
        server.print_listen("Serving on http://{}:{}")
    if profiled:
        waitress.profile("server.run()", globals(), locals(), (), False)
    else:
        server.run()


def serve_paste(app: WSGIApplication, global_conf: Any, **settings: Any) -> int:
    """The entry point for pserve, `egg:graceful-close#waitress`.

        use = egg:graceful-close#waitress

    Args:
        app: A WSGI application.
        global_conf: Paste's global configuration, unused.
        settings: The settings of `serve`.

    Returns:
        0, after the server has stopped.

    Raises:
        ValueError, OSError: As for `serve`.
    """
    del global_conf
    serve(app, **settings)
    return 0
