# type: ignore  # the methods of Twisted's interfaces have no self, which no checker follows
"""Twisted: refuse an upload without reading it, so that the refusal arrives.

    python examples/twisted_server.py --port 8413

Twisted accepts by itself and closes with shutdown(SHUT_RDWR), so another close cannot replace it. But
it has every part of the sequence: half-close, then read and discard until the peer closes, too, or
until the deadline.
"""

from __future__ import annotations

import argparse

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from zope.interface import implementer

REFUSAL = b"This upload is too large.\n".ljust(64 << 10, b".")


class Refuse(LineReceiver):
    """Just enough HTTP: greets, and refuses uploads before their body has come."""

    method = b""

    def lineReceived(self, line: bytes) -> None:
        if line:
            self.method = self.method or line.split()[0]
        elif self.method == b"GET":
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
            self.method = b""
        else:
            head = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(REFUSAL)
            self.transport.write(b"HTTP/1.1 413 Content Too Large\r\n" + head + REFUSAL)
            self.transport.loseConnection()


# This is what matters: a wrapper for any protocol, those of twisted.web's Site among them.
@implementer(IHalfCloseableProtocol)
class Graceful(ProtocolWrapper):
    """Drains after the wrapped protocol has closed, for 30 seconds at most."""

    def loseConnection(self) -> None:
        if self.connected and not self.disconnecting:
            self.disconnecting = 1
            self.ended: Deferred[None] = Deferred()
            self.deadline = reactor.callLater(30, self.transport.abortConnection)
            self.transport.loseWriteConnection()  # FIN, when all is written
            self.transport.resumeProducing()  # a paused one would not see the peer's FIN

    def dataReceived(self, data: bytes) -> None:
        if not self.disconnecting:
            super().dataReceived(data)

    def writeConnectionLost(self) -> None:
        pass  # our FIN is on its way

    def readConnectionLost(self) -> None:
        self.transport.loseConnection()  # the peer's FIN has come

    def connectionLost(self, reason) -> None:
        self.connected = 0
        super().connectionLost(reason)
        if self.disconnecting:
            if self.deadline.active():
                self.deadline.cancel()
            self.ended.callback(None)


class GracefulFactory(WrappingFactory):
    """Wraps a factory, and has the reactor wait for what is in flight before it stops."""

    protocol = Graceful

    def doStart(self) -> None:
        super().doStart()
        reactor.addSystemEventTrigger("before", "shutdown", self.finish)

    def finish(self) -> DeferredList:
        return DeferredList([one.ended for one in self.protocols if one.disconnecting])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8413, help="0 picks a free one")
    endpoint = TCP4ServerEndpoint(reactor, parser.parse_args().port, interface="127.0.0.1")
    listening = endpoint.listen(GracefulFactory(Factory.forProtocol(Refuse)))
    listening.addCallback(
        lambda port: print(f"listening on 127.0.0.1:{port.getHost().port}", flush=True)
    )
    reactor.run()


if __name__ == "__main__":
    main()
