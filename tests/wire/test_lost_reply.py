"""The lost reply, over a link with 20 ms of one-way delay, with real clients."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from graceful_close import graceful_close
from streams import DEADLINE, meanwhile

from .laid import Wire
from .link import Link
from .packets import PEER

DELAY = 0.02
UPLOAD = bytes(5_000_000)
BODY = b"r" * 65536
REPLY = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 65536\r\n\r\n" + BODY

Close = Callable[[socket.socket], object]


def answer_early(listener: socket.socket, close: Close) -> None:
    sock, _ = listener.accept()
    sock.settimeout(DEADLINE)
    sock.recv(4096)
    sock.sendall(REPLY)
    close(sock)


def plain_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)
    sock.close()


def ask_with_http_client(wire: Wire, address: tuple[str, int]) -> bytes | None:
    client = http.client.HTTPConnection(*address, timeout=DEADLINE)
    with wire.inside(PEER):
        client.connect()
    try:
        client.request("POST", "/", body=UPLOAD)
        with client.getresponse() as response:
            return response.read()
    except OSError:
        return None
    finally:
        client.close()


@pytest.mark.parametrize(("close", "whole"), [(graceful_close, 5), (plain_close, 0)])
def test_http_client_gets_the_reply_if_the_close_is_graceful(
    link: Link, close: Close, whole: int
) -> None:
    with Wire(link, "IPv4", recording=False) as wire:
        wire.delay(DELAY)
        listener = wire.listen()
        replies: list[bytes | None] = []
        for _ in range(5):
            with meanwhile(lambda: answer_early(listener, close)):
                replies.append(ask_with_http_client(wire, listener.getsockname()))
    assert replies.count(BODY) == whole


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_gets_the_reply_if_the_close_is_graceful(link: Link, tmp_path: Path) -> None:
    upload, reply = tmp_path / "upload", tmp_path / "reply"
    upload.write_bytes(UPLOAD)
    with Wire(link, "IPv4", recording=False) as wire:
        wire.delay(DELAY)
        listener = wire.listen()
        host, port = listener.getsockname()
        command = ["curl", "-sS", "-H", "Expect:", "--data-binary", f"@{upload}",
                   "-o", str(reply), f"http://{host}:{port}/"]  # fmt: skip
        for _ in range(5):
            with meanwhile(lambda: answer_early(listener, graceful_close)):
                with wire.inside(PEER):
                    curl = subprocess.Popen(command)
                assert curl.wait(DEADLINE) == 0
            assert reply.read_bytes() == BODY
