"""Applications for the servers that are started by a command: see `commands`."""

from __future__ import annotations

import os
from typing import Any

# Whether the applications are graceful.
GRACEFUL = "GRACEFUL" in os.environ


def wsgi(app: Any) -> Any:
    """Return the application, in a DrainMiddleware if it is graceful."""
    from graceful_close.wsgi import DrainMiddleware

    return DrainMiddleware(app) if GRACEFUL else app


def asgi(app: Any) -> Any:
    """Return the ASGI application, in a DrainMiddleware if it is graceful."""
    from graceful_close.asgi import DrainMiddleware

    before_reply = os.environ.get("GRACEFUL") == "before_reply"
    return DrainMiddleware(app, before_reply=before_reply) if GRACEFUL else app
