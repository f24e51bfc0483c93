"""Applications for the servers that are started by a command: see `commands`."""

from __future__ import annotations

import os
from typing import Any

# Whether they are to be graceful.
GRACEFUL = "GRACEFUL" in os.environ


def wsgi(app: Any) -> Any:
    """The application, with the line around it if it is to be graceful."""
    from graceful_close.wsgi import DrainMiddleware

    return DrainMiddleware(app) if GRACEFUL else app


def asgi(app: Any) -> Any:
    """The same for ASGI."""
    from graceful_close.asgi import DrainMiddleware

    before_reply = os.environ.get("GRACEFUL") == "before_reply"
    return DrainMiddleware(app, before_reply=before_reply) if GRACEFUL else app
