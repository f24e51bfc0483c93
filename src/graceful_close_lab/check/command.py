"""The command `check`: does a server lose its early replies?"""

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
from .telling import as_json, as_junit, parts
from .upload import OWN_FIELDS, Upload
from .verdict import EXIT_CODES, Findings, examine

if TYPE_CHECKING:
    from .upload import Endpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind `check` on the command line."""
    parser.description = (
        "Upload to a server of your own that answers early, as five kinds of client do, and see "
        "which of them its way to close costs the reply. Nothing but that address is contacted."
    )
    if isinstance(parser, Parser):
        parser.exit_codes |= {
            0: "every early reply arrived whole",
            1: "replies were lost",
            3: "not tested: there was no early reply to be lost",
            4: "could not connect, or it does not speak HTTP",
            5: "none was lost, but a try hung",
        }
    where = parser.add_argument_group("where to")
    where.add_argument(
        "address",
        nargs="?",
        metavar="ADDRESS",
        help="HOST:PORT, [IPV6]:PORT, or an http:// or https:// URL; with --unix-socket it may be "
        "left out",
    )
    where.add_argument("--path", help="what to ask for (default: the URL's, or /)")
    where.add_argument(
        "--connect-to",
        metavar="HOST:PORT",
        help="connect there, and say what the address says: the server behind a proxy",
    )
    where.add_argument(
        "--unix-socket", metavar="SOCKET", help="connect to this UNIX socket; no TCP"
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
        "--insecure", action="store_true", help="with https://, take any certificate"
    )
    what = parser.add_argument_group("what to upload")
    what.add_argument(
        "--upload",
        metavar="SIZE",
        type=_size,
        default="5MB",
        help="so many bytes, as in 5MB or 64KiB (default: %(default)s)",
    )
    what.add_argument(
        "--method", type=_method, default="POST", help="of the request (default: %(default)s)"
    )
    what.add_argument(
        "--header",
        metavar="FIELD",
        type=_field,
        action="append",
        default=[],
        help="a header field, as in 'Authorization: Bearer x'; again for several",
    )
    what.add_argument(
        "--tries",
        metavar="N",
        type=_count,
        default=10,
        help="uploads by each kind of client (default: %(default)s)",
    )
    what.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=number(0.001, 3600, "a number of seconds, 3600 at most"),
        default=10.0,
        help="the longest that one try takes (default: %(default)g)",
    )
    told = parser.add_argument_group("what to make of it")
    told.add_argument(
        "--expect-status",
        metavar="STATUS",
        type=_status,
        action="append",
        default=[],
        help="the status that is to be tested; others count as not tested, or as a proxy's; "
        "again for several",
    )
    told.add_argument(
        "--json", action="store_true", help="print what was found as JSON instead of a table"
    )
    told.add_argument(
        "--junit",
        metavar="FILE",
        type=Path,
        help="also write it to this file as JUnit's XML, a test case for each kind of client",
    )


def run(options: argparse.Namespace) -> int:
    """Check a server.

    Returns:
        The exit code: see `EXIT_CODES`.

    Raises:
        UsageError: The options do not go together, or name what cannot be used.
    """
    address, ask = _where(options)
    context = _context(options, address)
    if options.junit is not None:
        _try_to_write(options.junit)
    endpoints = ask()
    if isinstance(endpoints, str):
        return _tell(options, Findings(str(address), options.upload, problem=endpoints))
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
    return _tell(options, findings)


def _tell(options: argparse.Namespace, findings: Findings) -> int:
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
    """What is asked for, and what finds out where that is."""
    named = options.address or ("localhost:80" if options.unix_socket else None)
    if named is None:
        raise UsageError("an ADDRESS is required, or --unix-socket")
    if options.unix_socket and options.connect_to:
        raise UsageError("--unix-socket and --connect-to: there can be one of them only")
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
        raise UsageError("argument --unix-socket: Python has none on this system")
    return address, partial(_resolve, host, port, options.family, options.timeout)


def _context(options: argparse.Namespace, address: Address) -> ssl.SSLContext | None:
    if not address.tls:
        for name in ("insecure", "cacert"):
            if getattr(options, name):
                raise UsageError(f"argument --{name}: the address is not https://")
        return None
    try:
        context = ssl.create_default_context(cafile=options.cacert)
    except OSError as error:  # not there, or no certificates
        raise UsageError(f"argument --cacert: {options.cacert}: {error}") from None
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _try_to_write(file: Path) -> None:
    """Find out now, and not after a minute, if a file cannot be written."""
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
        raise argparse.ArgumentTypeError(f"{text!r} is no size; 5MB, 64KiB and 5000000 are")
    size = int(float(match[1].replace("_", "")) * _UNITS[match[2]])
    if not 1 <= size <= 1 << 40:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1 byte and 1024 GiB")
    return size


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return int(text)


def _status(text: str) -> int:
    if not re.fullmatch("[2-5][0-9][0-9]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a status from 200 to 599")
    return int(text)


_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110, section 5.6.2


def _method(text: str) -> str:
    # What these mean is not an upload (RFC 9110, section 9.3).
    if not re.fullmatch(_TOKEN, text) or text in ("HEAD", "CONNECT", "TRACE"):
        raise argparse.ArgumentTypeError(f"{text!r} is no method that can upload")
    return text


def _field(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    value = value.strip()
    # What ends a line must not come from here (RFC 9110, section 5.5).
    if not colon or not re.fullmatch(_TOKEN, name) or not re.fullmatch(r"[\t -~]*", value):
        raise argparse.ArgumentTypeError(f"{text!r} is not 'Name: value' in ASCII")
    if name.lower() in OWN_FIELDS:
        raise argparse.ArgumentTypeError(f"{name} is what is tried here, and not yours to set")
    return name, value


if sys.platform != "win32":

    def _unix(path: str) -> tuple[tuple[int, Endpoint], ...] | str:
        return ((socket.AF_UNIX, path),)


def _resolve(
    host: str, port: int, family: int, timeout: float
) -> tuple[tuple[int, Endpoint], ...] | str:
    """The addresses that a host's name stands for; or why there are none.

    The resolver has no timeout, so a thread calls it, and is abandoned when the time is up.
    """
    answers: list[tuple[tuple[int, Endpoint], ...] | str] = []

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        except OSError as error:
            answers.append(f"{host}: {error.strerror or error}")
        else:
            answers.append(tuple((family, endpoint) for family, _, _, _, endpoint in found))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answers[0] if answers else f"{host}: its name was not found in time"
