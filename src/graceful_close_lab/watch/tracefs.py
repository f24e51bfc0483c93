"""A private instance of the kernel's tracing, which is removed at the end.

Documentation/trace/ftrace.rst, "Instances", and Documentation/trace/events.rst.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Generator

if sys.platform != "linux":
    raise ImportError("tracefs exists only on Linux")

_USUAL = Path("/sys/kernel/tracing")
_NAME = "graceful-close-watch-"  # then the pid, which is not unique in a container

# The same numbers on every architecture except alpha: asm-generic/unistd.h. linux/mount.h.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC, _FSCONFIG_CMD_CREATE, _FSMOUNT_CLOEXEC = 1, 6, 1

_BUFFER = 4096  # KiB for each processor: some 40,000 events. A heuristic.
_CHUNK = 65536
_MOST = 1 << 22  # the most bytes that one call reads. A heuristic.


class NoTracingError(Exception):
    """Tracing is not available; the message says why, as a sentence without its full stop."""


class Tracing:
    """An instance of tracefs. Leaving the block removes it.

    If a process is killed, its instance remains until the next process removes it. (The kernel
    overwrites the buffer of such an instance; this does no harm.)

    Raises:
        NoTracingError: tracefs does not exist, or access is not permitted.
    """

    def __init__(self) -> None:
        self._held = ExitStack()
        self._rest = b""
        self._idle = True

    def __enter__(self) -> Self:
        with self._held:
            root = find_root(self._held)
            instances = root / "instances"
            _remove_left_over_instances(instances)
            self.path = instances / f"{_NAME}{os.getpid()}-{os.urandom(4).hex()}"
            self._make()
            self._held.callback(self._remove)
            self._write("options/record-tgid", "1", may_fail=True)
            self._write("buffer_size_kb", str(_BUFFER), may_fail=True)
            self._pipe = os.open(self.path / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
            # Closed before the instance is removed, because an open instance is busy.
            self._held.callback(os.close, self._pipe)
            self._held = self._held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def has(self, event: str) -> bool:
        """Return whether this kernel has the event, `group/name`."""
        return (self.path / "events" / event).is_dir()

    def symbols(self, event: str, field: str) -> dict[str, int]:
        """Return the numbers of a field's symbols; empty if this kernel does not list them."""
        table = re.search(rf"__print_symbolic\(REC->{field}, (.*?)\)", self._format(event))
        pairs = re.findall(r'\{ (\w+), "(\w+)" \}', table[1]) if table else []
        return {name: int(number, 0) for number, name in pairs if number[:1].isdigit()}

    def enable(self, event: str, only: str = "") -> None:
        """Record an event; `only` is a filter.

        Raises:
            NoTracingError: The kernel refuses.
        """
        if only:
            self._write(f"events/{event}/filter", only)
        self._write(f"events/{event}/enable", "1")

    def lines(self) -> Generator[str]:
        """Yield the recorded lines that have not been read, at most `_MOST` bytes."""
        self._idle = False
        for _ in range(_MOST // _CHUNK):
            try:
                chunk = os.read(self._pipe, _CHUNK)
            except BlockingIOError:
                self._idle = True
                return
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            for line in whole:
                yield line.decode(errors="replace")

    @property
    def idle(self) -> bool:
        """Whether the last `lines()` read everything."""
        return self._idle

    def lost(self) -> int:
        """Return how many events the kernel discarded because the buffer was full."""
        count = 0
        for stats in self.path.glob("per_cpu/cpu*/stats"):
            for name in ("overrun", "dropped events", "commit overrun"):
                if found := re.search(rf"^{name}: (\d+)", stats.read_text(), re.MULTILINE):
                    count += int(found[1])
        return count

    def _format(self, event: str) -> str:
        return (self.path / "events" / event / "format").read_text()

    def _make(self) -> None:
        try:
            self.path.mkdir()
        except OSError as error:
            raise NoTracingError(f"an instance of tracefs cannot be made: {error}") from error

    def _remove(self) -> None:
        with suppress(FileNotFoundError):
            self.path.rmdir()

    def _write(self, name: str, text: str, *, may_fail: bool = False) -> None:
        try:
            (self.path / name).write_text(text)
        except OSError as error:
            if not may_fail:  # older kernels have fewer options
                raise NoTracingError(f"tracefs refuses {name}: {error}") from error


def find_root(held: ExitStack) -> Path:
    """Return where tracefs is mounted, or a private mount, which ends with its descriptor."""
    with suppress(OSError):  # EACCES: only root can list it
        if (_USUAL / "instances").is_dir():
            return _USUAL
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, where, kind, *_ = line.split()
            if kind == "tracefs":
                return Path(where.encode().decode("unicode_escape"))  # a space is \040
    mounted = _mount()
    held.callback(os.close, mounted)
    return Path(f"/proc/self/fd/{mounted}")


def _mount() -> int:
    """Mount tracefs detached (Linux 5.2 and later), and return the descriptor."""
    library = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: int | bytes | None) -> int:
        result: int = library.syscall(number, *arguments)
        if result < 0:
            reason = os.strerror(ctypes.get_errno())
            raise NoTracingError(f"tracefs is not mounted, and cannot be mounted: {reason}")
        return result

    context = call(_FSOPEN, b"tracefs", _FSOPEN_CLOEXEC)
    try:
        call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return call(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


def _remove_left_over_instances(instances: Path) -> None:
    try:
        found = [path for path in instances.iterdir() if path.name.startswith(_NAME)]
    except OSError as error:
        raise NoTracingError(f"tracefs cannot be read: {error}") from error
    for path in found:
        number = path.name.removeprefix(_NAME).partition("-")[0]
        if number == str(os.getpid()) or not Path("/proc", number).exists():
            # EBUSY: a process of another container reads it.
            with suppress(OSError):
                path.rmdir()
