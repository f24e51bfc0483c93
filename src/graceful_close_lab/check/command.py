"""The command `check`: it tests whether a server loses its early replies."""

from __future__ import annotations

import argparse
import re
import socket
import ssl
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import show
from ..parsing import Parser, UsageError, number
from .address import Address, connect_to, parse
from .outcome import Client
from .rendering import as_json, as_junit, parts
from .upload import OWN_FIELDS, Upload
from .verdict import EXIT_CODES, Findings, examine

if TYPE_CHECKING:
    from .upload import Endpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `check`."""
    parser.description = (
        "Upload to a server of your own that replies early, as five kinds of client do, and "
        "report which of them lose the reply when it closes. The command connects to this "
        "address only."
    )
    parser.usage = "%(prog)s [OPTIONS] [ADDRESS]"
    if isinstance(parser, Parser):
        parser.exit_codes |= {
            0: "every early reply arrived complete",
            1: "replies were lost",
            3: "not tested: there was no early reply",
            4: "could not connect, or the server does not speak HTTP",
            5: "no reply was lost, but a try hung",
        }
    where = parser.add_argument_group("the server")
    where.add_argument(
        "address",
        nargs="?",
        metavar="ADDRESS",
        help="HOST:PORT, [IPV6]:PORT, or an http:// or https:// URL; optional with "
        "--unix-socket",
    )
    where.add_argument("--path", help="the path of the request (default: the URL's, or /)")
    where.add_argument(
        "--connect-to",
        metavar="HOST:PORT",
        help="connect to this address, with the host name of ADDRESS in the request: for the "
        "server behind a proxy",
    )
    where.add_argument(
        "--unix-socket", metavar="SOCKET", help="connect to this UNIX socket instead of TCP"
    )
    family = where.add_mutually_exclusive_group()
    for version, constant in (("4", socket.AF_INET), ("6", socket.AF_INET6)):
        family.add_argument(
            f"-{version}",
            f"--ipv{version}",
            dest="family",
            action="store_const",
            const=constant,
            default=socket.AF_UNSPEC,
            help=f"use IPv{version} only",
        )
    where.add_argument(
        "--cacert", metavar="FILE", help="with https://, trust the authorities in this file"
    )
    where.add_argument(
        "--insecure", action="store_true", help="with https://, accept any certificate"
    )
    what = parser.add_argument_group("the upload")
    what.add_argument(
        "--upload",
        metavar="SIZE",
        type=_size,
        default="5MB",
        help="the size of the upload, for example 5MB or 64KiB (default: %(default)s)",
    )
    what.add_argument(
        "--method",
        type=_method,
        default="POST",
        help="the method of the request (default: %(default)s)",
    )
    what.add_argument(
        "--header",
        metavar="FIELD",
        type=_field,
        action="append",
        default=[],
        help="a header field, for example 'Authorization: Bearer x'; repeat the option for "
        "several",
    )
    what.add_argument(
        "--tries",
        metavar="N",
        type=_count,
        default=10,
        help="the number of uploads by each kind of client (default: %(default)s)",
    )
    what.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=number(0.001, 3600, "a number of seconds above 0, and at most 3600"),
        default=10.0,
        help="the longest time for one try (default: %(default)g)",
    )
    report = parser.add_argument_group("the report")
    report.add_argument(
        "--expect-status",
        metavar="STATUS",
        type=_status,
        action="append",
        default=[],
        help="the expected status; a reply with another status counts as not tested, or as a "
        "proxy's; repeat the option for several",
    )
    report.add_argument(
        "--json", action="store_true", help="print the findings as JSON instead of a table"
    )
    report.add_argument(
        "--junit",
        metavar="FILE",
        type=Path,
        help="also write the findings to this file as JUnit XML, one test case for each kind "
        "of client",
    )


def run(options: argparse.Namespace) -> int:
    """Check a server.

    Returns:
        The exit code: see `EXIT_CODES`.

    Raises:
        UsageError: The options contradict each other, or name something that cannot be used.
    """
    address, find = _where(options)
    context = _context(options, address)
    if options.junit is not None:
        _try_to_write(options.junit)
    endpoints = find()
    if isinstance(endpoints, str):
        return _report(options, Findings(str(address), options.upload, problem=endpoints))
    upload = Upload(
        address,
        endpoints,
        options.upload,
        options.timeout,
        context,
        options.method,
        tuple(options.header),
    )
    try:
        with show.progress(options.tries * len(Client), quiet=options.quiet) as begin:
            findings = examine(upload, options.tries, options.expect_status, begin)
    except OSError as error:  # EMFILE, ENOMEM, EPERM: no socket available
        findings = Findings(str(address), options.upload, problem=str(error))
    return _report(options, findings)


def _report(options: argparse.Namespace, findings: Findings) -> int:
    code = EXIT_CODES[findings.verdict]
    if options.junit is not None:
        try:
            options.junit.write_text(as_junit(findings) + "\n", encoding="utf-8")
        except OSError as error:
            show.write(f"{options.parser.prog}: {error}", sys.stderr)
    if options.json:
        show.write(as_json(findings))
    elif findings.problem:
        show.write(f"{options.parser.prog}: {findings.problem}", sys.stderr)
    elif not options.quiet:
        show.show(parts(findings))
    return code


def _where(
    options: argparse.Namespace,
) -> tuple[Address, partial[tuple[tuple[int, Endpoint], ...] | str]]:
    """Return the address, and a function that finds the endpoints to connect to."""
    named = options.address or ("localhost:80" if options.unix_socket else None)
    if named is None:
        raise UsageError("an ADDRESS is required, or --unix-socket")
    if options.unix_socket and options.connect_to:
        raise UsageError("--unix-socket and --connect-to cannot be used together")
    try:
        address = parse(named, options.path)
        host, port = (
            connect_to(options.connect_to)
            if options.connect_to
            else (address.host, address.port)
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    if options.unix_socket:
        if sys.platform != "win32":
            return address, partial(_unix, options.unix_socket)
        raise UsageError("argument --unix-socket: not available in Python on this system")
    return address, partial(_resolve, host, port, options.family, options.timeout)


def _context(options: argparse.Namespace, address: Address) -> ssl.SSLContext | None:
    if not address.tls:
        for name in ("insecure", "cacert"):
            if getattr(options, name):
                raise UsageError(f"argument --{name}: the address is not https://")
        return None
    try:
        context = ssl.create_default_context(cafile=options.cacert)
    except OSError as error:  # no such file, or no certificates in it
        raise UsageError(f"argument --cacert: {options.cacert}: {error}") from None
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _try_to_write(file: Path) -> None:
    """Report immediately, and not after the tries, if a file cannot be written."""
    try:
        file.open("a", encoding="utf-8").close()
    except OSError as error:
        raise UsageError(f"argument --junit: {error}") from None


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
        raise argparse.ArgumentTypeError(
            f"invalid size {text!r} (examples: 5MB, 64KiB, 5000000)"
        )
    size = float(match[1].replace("_", "")) * _UNITS[match[2]]  # may be infinite
    if not 1 <= size <= 1 << 40:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1 byte and 1024 GiB")
    return int(size)


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return int(text)


def _status(text: str) -> int:
    if not re.fullmatch("[2-5][0-9][0-9]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a status from 200 to 599")
    return int(text)


_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110, section 5.6.2


def _method(text: str) -> str:
    # These methods do not upload (RFC 9110, section 9.3).
    if not re.fullmatch(_TOKEN, text) or text in ("HEAD", "CONNECT", "TRACE"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a method that can upload")
    return text


def _field(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    value = value.strip()
    # A value must not contain what ends a line (RFC 9110, section 5.5).
    if not colon or not re.fullmatch(_TOKEN, name) or not re.fullmatch(r"[\t -~]*", value):
        raise argparse.ArgumentTypeError(f"{text!r} is not 'Name: value' in ASCII")
    if name.lower() in OWN_FIELDS:
        raise argparse.ArgumentTypeError(
            f"{name} cannot be set: the clients of the check set it"
        )
    return name, value


if sys.platform != "win32":

    def _unix(path: str) -> tuple[tuple[int, Endpoint], ...] | str:
        return ((socket.AF_UNIX, path),)


def _resolve(
    host: str, port: int, family: int, timeout: float
) -> tuple[tuple[int, Endpoint], ...] | str:
    """Return the addresses of a host name, or the reason why there are none.

    The resolver has no timeout, so a thread calls it. The thread is abandoned when the time is
    up.
    """
    answers: list[tuple[tuple[int, Endpoint], ...] | str] = []

    def resolve() -> None:
        try:
            found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        except OSError as error:
            answers.append(f"{host}: {error.strerror or error}")
        else:
            answers.append(tuple((family, endpoint) for family, _, _, _, endpoint in found))

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(timeout)
    return answers[0] if answers else f"{host}: the name could not be resolved in time"
