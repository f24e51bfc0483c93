"""For Flask's and werkzeug's development server, with its reloader and its debugger.

    app.run(request_handler=GracefulRequestHandler)

`werkzeug.serving.run_simple` accepts the handler, too. `flask run` accepts no request handler.
"""

from __future__ import annotations

from io import BufferedIOBase, BytesIO

from werkzeug.serving import WSGIRequestHandler

from ._reaper import Reaper, hand_over

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["GracefulRequestHandler"]


class GracefulRequestHandler(WSGIRequestHandler):
    """Serves a connection as usual, and then moves it to a Reaper.

        app.run(request_handler=GracefulRequestHandler)

    werkzeug itself reads on after the reply if a byte arrives within 10 ms. Over a network the next byte
    often arrives later, and is answered with RST. If it arrives in time, werkzeug waits for 10 MB or the
    peer's FIN without a deadline. With this handler only the Reaper reads on.

    Attributes:
        reaper: The Reaper that closes the connections. A subclass may set it.
    """

    reaper: ClassVar[Reaper] = Reaper()

    _failed = False  # the reply may be incomplete, and the server closes after finish()

    _request: BufferedIOBase

    def setup(self) -> None:
        """Prepare the streams of the connection."""
        super().setup()
        self._request = self.rfile

    def make_environ(self) -> WSGIEnvironment:
        """Make the environment, in which the application finds the request."""
        environ = super().make_environ()
        self.rfile: BufferedIOBase = BytesIO()  # run_wsgi() reads on from here
        return environ

    def handle(self) -> None:
        """Serve the connection as usual."""
        try:
            super().handle()
        except BaseException:
            self._failed = True
            raise

    def finish(self) -> None:
        """Move the connection to the Reaper, without a wait. For the server the socket is closed."""
        super().finish()
        self._request.close()
        if self._failed:
            return
        hand_over(self.connection, self.reaper, self.client_address)
        if self.server.multiprocess:
            self.reaper.close()  # a child process exits without cleanup
