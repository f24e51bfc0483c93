"""For Flask's and werkzeug's development server, with its reloader and its debugger.

    app.run(request_handler=GracefulRequestHandler)

`werkzeug.serving.run_simple` takes it too. `flask run` takes no request handler.
"""

from __future__ import annotations

import sys

from werkzeug.serving import WSGIRequestHandler

from ._reaper import Reaper, hand_over

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

__all__ = ["GracefulRequestHandler"]


class GracefulRequestHandler(WSGIRequestHandler):
    """Serves a connection as ever, and leaves it to a Reaper in the end.

    werkzeug reads what is left of a request by itself, as long as the next byte comes within
    10 ms. Over a network it seldom does.

    Attributes:
        reaper: Where the connections go. A subclass may set it.
    """

    reaper: ClassVar[Reaper] = Reaper()

    def finish(self) -> None:
        """End one connection, and do not wait for it. The server finds it closed."""
        super().finish()
        if sys.exc_info()[0] is not None:
            return  # half a reply is no reply, and the server is about to close it
        hand_over(self.connection, self.reaper, self.client_address)
        if self.server.multiprocess:
            self.reaper.close()  # this is a child, which ends without another word
