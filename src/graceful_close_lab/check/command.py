"""The command line of check."""

from __future__ import annotations

import argparse
import math
import re
import socket
import ssl
import sys
import threading
from typing import TYPE_CHECKING

from .. import show
from .address import parse
from .attempt import Upload
from .outcome import Client
from .telling import as_json, parts
from .verdict import Verdict, examine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .address import Address
    from .attempt import Endpoint


def main(arguments: Sequence[str], program: str) -> int:
    """Check a server.

    Args:
        arguments: What stands on the command line behind `check`.
        program: What the command line calls this.

    Returns:
        The exit code: 0 if every early reply survived, 1 if any was lost, 3 if that could not
        be tested. A mistake on the command line exits with 2 (argparse).
    """
    parser = _parser(program)
    options = parser.parse_args(arguments)
    try:
        address = parse(options.address, options.path)
    except ValueError as error:
        parser.error(str(error))
    context = None
    if address.tls:
        context = ssl.create_default_context()
        if options.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    elif options.insecure:
        parser.error("argument --insecure: the address is not https://")
    endpoints = _resolve(address, options.timeout)
    if isinstance(endpoints, str):
        return _say(f"{program}: {address.host}: {endpoints}")
    upload = Upload(address, endpoints, options.upload, options.timeout, context)
    try:
        with show.progress(options.tries * len(Client)) as begin:
            findings = examine(upload, options.tries, begin)
    except OSError as error:  # EMFILE, ENOMEM, EPERM: no socket to be had
        return _say(f"{program}: {error}")
    if options.json:
        show.write(as_json(findings))
    else:
        show.show(parts(findings))
    return findings.verdict.value


def _say(problem: str) -> int:
    show.write(problem, sys.stderr)
    return Verdict.NOT_TESTED.value


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Upload to a server of your own that answers early, and see whether its "
        "replies survive the way it closes. Nothing but that address is contacted.",
        epilog="The exit code is 0 if every early reply survived, 1 if any was lost, 3 if the "
        "server sent none.",
    )
    parser.add_argument("address", help="HOST:PORT, [IPV6]:PORT, or an http:// or https:// URL")
    parser.add_argument("--path", help="what to POST to (default: the URL's, or /)")
    parser.add_argument(
        "--upload",
        metavar="SIZE",
        type=_size,
        default="5MB",
        help="bytes to upload, as in 5MB or 64KiB (default: %(default)s)",
    )
    parser.add_argument(
        "--tries",
        metavar="N",
        type=_count,
        default=10,
        help="uploads by each of the two kinds of client (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=10.0,
        help="the longest that one try takes (default: %(default)g)",
    )
    parser.add_argument(
        "--insecure", action="store_true", help="with https://, take any certificate"
    )
    parser.add_argument(
        "--json", action="store_true", help="print what was found as JSON instead of a table"
    )
    return parser


_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
}


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?) ?([kmg]i?|)b?", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; 5MB, 64KiB and 5000000 are")
    size = int(float(match[1].replace("_", "")) * _UNITS[match[2]])
    if not 1 <= size <= 1 << 40:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1 byte and 1024 GiB")
    return size


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 3600 at most")
    return seconds


def _resolve(address: Address, timeout: float) -> tuple[tuple[int, Endpoint], ...] | str:
    """The addresses that a host's name stands for; or why there are none.

    The resolver knows no timeout, so it is asked in a thread that nobody waits for any longer.
    """
    answers: list[tuple[tuple[int, Endpoint], ...] | str] = []

    def ask() -> None:
        try:
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except OSError as error:
            answers.append(error.strerror or str(error))
        else:
            answers.append(tuple((family, endpoint) for family, _, _, _, endpoint in found))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answers[0] if answers else "its name was not found in time"
