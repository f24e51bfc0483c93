"""The proxies as data: the configuration, the command and the log of each."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.servers.commands import await_reply, free_port, start

from .ending import ended

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

HOST = "127.0.0.1"

_NGINX = """\
daemon off;
user root;  # whose folder this is
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_max_body_size 100m;
    client_body_temp_path {folder}/client_body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream app {{ server {address}; {upstream} }}
    server {{
        listen {host}:{port};
        location / {{ {location} }}
    }}
}}
"""
_HAPROXY = """\
defaults
    mode http
    log stdout format raw local0
    option httplog
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend clients
    bind {host}:{port}
    default_backend app
backend app
    server app {address}
"""
_CADDY = """\
{{
    admin off
    auto_https off
}}
http://:{port} {{
    bind {host}
    reverse_proxy {address}
}}
"""
# The folders of Caddy.
_HOMES = ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")
# Log lines of the requests that test whether the server is up.
_GREETINGS = ('"GET / HTTP', '"method":"GET"')
_UWSGI_PARAMS = "include /etc/nginx/uwsgi_params; uwsgi_pass app;"


def _nginx_kind(line: str) -> str | None:
    found = re.search(r"\[(?:error|crit|alert)\] .*?: \*\d+ (.*?), client: ", line)
    return found and found.group(1)


def _haproxy_kind(line: str) -> str | None:
    """Return the status and the end of the session: `401 SD--`."""
    found = re.search(r" (\d{3}|-1) \d+ - - (\S{4}) ", line)
    return found and f"{found.group(1)} {found.group(2)}"


def _caddy_kind(line: str) -> str | None:
    """Return the message without its addresses."""
    if '"level":"error"' not in line:
        return None
    message = re.search(r'"msg":"(.*?)"', line)
    error = re.search(r'"error":"(.*?)"', line)
    said = ": ".join(found.group(1) for found in (message, error) if found)
    said = re.sub(r"(\d+\.){3}\d+:\d+(->)?", "", said)
    return re.sub(r" +", " ", re.sub(r"@?->/\S+(?=:)", "", said))


class Proxy(NamedTuple):
    """A proxy with one configuration.

    Attributes:
        program: The name of the program and of Debian's package.
        command: The command that starts it.
        configuration: The contents of its configuration file.
        unix: The prefix of the path of a UNIX socket.
        kind: Returns the kind of a line of the log; None: the line is ignored.
        version: The command that prints its version.
        more: Other values for the configuration.
        speaks_uwsgi: Whether it is for servers that speak uwsgi.
    """

    program: str
    command: str
    configuration: str
    unix: str
    kind: Callable[[str], str | None]
    version: str
    more: tuple[tuple[str, str], ...] = ()
    speaks_uwsgi: bool = False

    def why_not(self) -> str | None:
        """Return why it cannot run here; None: it can."""
        if shutil.which(self.program):
            return None
        return f"{self.program} is not installed (apt-get install {self.program})"

    def version_of(self) -> str:
        """Return its version, as it prints it."""
        said = subprocess.run(
            [self.program, *self.version.split()], capture_output=True, text=True, check=True
        )
        found = re.search(r"\d+\.\d+\.\d+\S*", said.stdout + said.stderr)
        return found.group() if found else ""

    @contextmanager
    def before(self, address: str, folder: Path) -> Generator[int]:
        """Run the proxy before a server; yield its port after a request has succeeded."""
        folder.mkdir()
        port = free_port(HOST)
        if address.startswith("/"):
            address = self.unix + address
        filled = {"folder": str(folder), "host": HOST, "port": str(port), "address": address}
        file = folder / "configuration"
        file.write_text(self.configuration.format(**filled, **dict(self.more)))
        environment = {name: str(folder) for name in _HOMES}
        with (
            folder.joinpath("log").open("w") as log,
            ended(
                start(self.command.format(file=file).split(), environment, log, apart=True)
            ) as process,
        ):
            await_reply(process, HOST, port)
            yield port

    def says(self, folder: Path) -> tuple[Counter[str], dict[str, str]]:
        """Return the number of log lines by kind, and the first line of each kind."""
        kinds: Counter[str] = Counter()
        lines: dict[str, str] = {}
        for line in folder.joinpath("log").read_text(errors="replace").splitlines():
            kind = self.kind(line)
            if kind is not None and not any(sign in line for sign in _GREETINGS):
                kinds[kind] += 1
                lines.setdefault(kind, line)
        return kinds, lines


def _nginx(upstream: str, location: str, *, speaks_uwsgi: bool = False) -> Proxy:
    return Proxy(
        "nginx", "nginx -e stderr -c {file}", _NGINX, "unix:", _nginx_kind, "-v",
        (("upstream", upstream), ("location", location)), speaks_uwsgi,
    )  # fmt: skip


PROXIES = {
    "nginx": _nginx("", "proxy_pass http://app;"),
    "nginx, keep-alive": _nginx(
        "keepalive 16;",
        'proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection "";',
    ),
    "nginx, uwsgi_pass": _nginx("", _UWSGI_PARAMS, speaks_uwsgi=True),
    "HAProxy": Proxy(
        "haproxy", "haproxy -db -f {file}", _HAPROXY, "unix@", _haproxy_kind, "-v"
    ),
    "Caddy": Proxy(
        "caddy", "caddy run --config {file} --adapter caddyfile", _CADDY, "unix/",
        _caddy_kind, "version",
    ),
}  # fmt: skip
