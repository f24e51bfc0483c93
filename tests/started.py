"""Servers that are started by their usual commands."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

from streams import DEADLINE

HERE = Path(__file__).parent

_PYTHON = [sys.executable, "-W", "ignore", "-m"]


def commands(host: str, port: int) -> dict[str, list[str]]:
    """Return the command of each server."""
    gunicorn = [*_PYTHON, "gunicorn", "--no-control-socket", "-b", f"{host}:{port}"]
    return {
        "flask run": _flask("create_app", host, port),
        "flask run, DrainMiddleware": _flask("create_graceful_app", host, port),
        "uvicorn": [
            *_PYTHON, "uvicorn", "--host", host, "--port", str(port), "early_application:asgi",
        ],
        "uvicorn, new_loop": [
            *_PYTHON, "uvicorn", "--host", host, "--port", str(port), "early_application:asgi",
            "--loop", "graceful_close.uvicorn:new_loop",
        ],
        "gunicorn": [*gunicorn, "early_application:wsgi"],
        "gunicorn, ready module": [
            *gunicorn, "-c", "python:graceful_close.gunicorn", "early_application:wsgi",
        ],
    }  # fmt: skip


def _flask(factory: str, host: str, port: int) -> list[str]:
    app = f"early_application:{factory}"
    return [*_PYTHON, "flask", "--app", app, "run", "-h", host, "-p", str(port)]


def free_port(low: int = 10_000, high: int = 32_000) -> int:
    """Return a port that stays free: Linux, macOS and Windows use higher ports for clients."""
    while True:
        port = random.randrange(low, high)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue  # EADDRINUSE
        return port


@contextlib.contextmanager
def started(command: list[str], where: tuple[str, int] | Path) -> Generator[None, None, None]:
    """Run a server in the block."""
    with subprocess.Popen(
        command,
        cwd=HERE,
        env=os.environ | {"PYTHONPATH": str(HERE)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_until_it_answers(process, where)
            yield
        finally:
            process.terminate()
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_it_answers(
    process: subprocess.Popen[bytes], where: tuple[str, int] | Path
) -> None:
    """Send requests until the server replies, with any status."""
    give_up = time.monotonic() + DEADLINE
    while True:
        with contextlib.closing(_connection(where)) as connection:
            try:
                connection.request("GET", "/")
                connection.getresponse().read()
                return
            except OSError:
                assert process.poll() is None, f"{process.args!r} has ended"
                assert time.monotonic() < give_up, f"{process.args!r} does not answer"
        time.sleep(0.05)


def _connection(where: tuple[str, int] | Path) -> http.client.HTTPConnection:
    if not isinstance(where, Path):
        return http.client.HTTPConnection(*where, timeout=DEADLINE)

    class ByUnixSocket(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            try:
                self.sock.connect(str(where))
            except OSError:
                self.close()
                raise

    return ByUnixSocket("localhost", timeout=DEADLINE)


@contextlib.contextmanager
def nginx_before(
    upstream: str, folder: Path, certificate: Path | None = None
) -> Generator[int, None, None]:
    """Run nginx with its default proxy_pass to an address; yield the port of nginx."""
    tls = f"ssl_certificate {certificate}; ssl_certificate_key {certificate};"
    program = shutil.which("nginx")
    assert program is not None
    port = free_port()
    kept = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # the user that may write to the folder
    configuration.write_text(f"""
{user}
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_max_body_size 100m;
    {kept}
    server {{
        listen 127.0.0.1:{port}{" ssl" if certificate else ""};
        {tls if certificate else ""}
        location / {{ proxy_pass http://{upstream}; }}
    }}
}}
""")
    with started([program, "-p", str(folder), "-c", str(configuration)], ("127.0.0.1", port)):
        yield port
