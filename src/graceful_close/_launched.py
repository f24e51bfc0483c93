"""The replacements that `python -m graceful_close run` makes in each Python process of a command.

They concern `socket.socket.accept`, the class of server-side TLS sockets, `uvloop.Loop`, and the
default action of SIGTERM. A connection that the program passes to another process, or whose descriptor
it duplicates, closes plainly. So `socket.socket.sendmsg`, `subprocess.Popen` and the functions that
duplicate a descriptor are wrapped, too. Importing this module changes nothing; `begin()` makes the
replacements.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import threading
from functools import wraps
from importlib import import_module
from typing import cast

from ._environment import LAUNCHER, NOTICE, options_from_environment, put_launcher_first
from ._listener import Accepted, accept_for, graceful_ssl_socket, others_may_hold
from ._reaper import Reaper
from ._reaper_worker import end_all
from ._signals import STAND_INS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import FrameType, ModuleType
    from typing import Any


# How long SIGTERM is put off while a connection is handed over, in seconds. Heuristic: that takes
# some microseconds.
_AGAIN = 0.01

_Stock = socket.socket
_FAMILIES = {socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_UNIX", socket.AF_INET)}


def begin() -> None:
    """Make the replacements: now, or when the module concerned is imported.

    Raises:
        ValueError: An environment variable is not a number of seconds.
    """
    options = options_from_environment()
    reaper = Reaper(**options)
    _replace_accept(reaper)

    def change_ssl(ssl: ModuleType) -> None:
        if ssl.SSLContext.sslsocket_class is ssl.SSLSocket:
            ssl.SSLContext.sslsocket_class = graceful_ssl_socket(reaper)

    def change_uvloop(uvloop: ModuleType) -> None:
        from .asyncio import graceful_loop

        uvloop.Loop = graceful_loop(uvloop.Loop, **options)  # type: ignore[attr-defined]

    _replace_sendmsg()
    _replace_dups()
    _replace_exec()
    _when_imported(
        {
            "ssl": change_ssl,
            "uvloop": change_uvloop,
            "fcntl": _change_fcntl,
            "subprocess": _change_subprocess,
            "multiprocessing.reduction": _change_reduction,
        }
    )
    _handle_sigterm()
    _leave_sigterm_to_forks()
    if os.environ.pop(NOTICE, None):
        _report(
            f"in process {os.getpid()} ({sys.executable}) socket.accept() is replaced; "
            "connections that it accepts in Python close gracefully"
        )


def _report(text: str) -> None:
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]  # None: descriptor 2 is closed
        try:
            # Not by sys.stderr, which would try again at the exit, and change the exit code.
            os.write(2, f"graceful-close: {text}\n".encode(errors="backslashreplace"))
        except OSError:
            pass  # EPIPE, ENOSPC: it must not stop the program


def _replace_accept(reaper: Reaper) -> None:
    accept = _Stock.accept

    def graceful_accept(self: socket.socket) -> tuple[socket.socket, Any]:
        if _is_served(self):
            if _forked:
                _handle_sigterm()
            return accept_for(self, reaper)
        return accept(self)

    graceful_accept.__doc__ = accept.__doc__
    _Stock.accept = graceful_accept  # type: ignore[method-assign]


def _is_served(listener: socket.socket) -> bool:
    if socket.socket is not _Stock:
        return False  # gevent's or eventlet's: their threads are greenlets
    if listener.family not in _FAMILIES or listener.type != socket.SOCK_STREAM:
        return False
    trio = sys.modules.get("trio.lowlevel")  # trio rejects subclasses of socket
    in_trio = getattr(trio, "in_trio_run", None)
    return trio is None or not (in_trio is None or in_trio())


# --- connections that get another holder ----------------------------------------------------------


def _replace_sendmsg() -> None:
    """Close plainly what may have been passed to another process (SCM_RIGHTS, unix(7))."""
    if not hasattr(_Stock, "sendmsg"):
        return
    stock: Any = _Stock  # Windows has no sendmsg()
    sendmsg: Callable[..., int] = stock.sendmsg

    def sendmsg_and_share(self: socket.socket, *args: Any) -> int:
        if len(args) > 1 and args[1]:  # ancillary data
            others_may_hold()
        return sendmsg(self, *args)

    sendmsg_and_share.__doc__ = sendmsg.__doc__
    stock.sendmsg = sendmsg_and_share


def _replace_dups() -> None:
    """Close plainly what may have got another descriptor, here or in a child."""
    _share(socket, "dup", _first)  # of socket.fromfd()
    for name in ("dup", "dup2", "set_inheritable"):
        _share(os, name, _first)
    for name in ("posix_spawn", "posix_spawnp"):
        _share(os, name, _sources)


def _change_fcntl(fcntl: Any) -> None:
    duplicate = {fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC}
    _share(fcntl, "fcntl", lambda *args: args[:1] if {*args[1:2]} <= duplicate else ())


def _share(module: Any, name: str, numbers: Callable[..., Sequence[Any]]) -> None:
    """Wrap a function that may give a connection another holder.

    Args:
        module: The module of the function.
        name: The name of the function.
        numbers: Returns the descriptors that the function duplicates, from its arguments.
    """
    stock = getattr(module, name, None)
    if stock is None:
        return  # not on this system

    @wraps(stock)
    def share(*args: Any, **more: Any) -> Any:
        try:
            if any(map(_is_socket, numbers(*args, **more))):
                others_may_hold()  # which connection this is, is not known
        except Exception:  # noqa: BLE001, S110 (a wrong argument, which the function itself reports)
            pass
        return stock(*args, **more)

    setattr(module, name, share)


def _first(*args: Any, fd: Any = None, **_more: Any) -> Sequence[Any]:
    return args[:1] or (fd,)


def _sources(*_args: Any, file_actions: Any = (), **_more: Any) -> Sequence[Any]:
    actions = cast("list[Any]", file_actions) if isinstance(file_actions, (tuple, list)) else []
    dup2 = getattr(os, "POSIX_SPAWN_DUP2", None)  # not on Windows
    return [action[1] for action in actions if action[:1] == (dup2,)]


def _is_socket(file: Any) -> bool:
    number = file if isinstance(file, int) else file.fileno()
    return stat.S_ISSOCK(os.fstat(number).st_mode)


def _change_subprocess(subprocess: Any) -> None:
    """Close plainly what a child gets as its stdin, stdout or stderr."""
    start = subprocess.Popen.__init__

    def share_and_start(self: object, *args: Any, **more: Any) -> None:
        streams = [*args, *map(more.get, ("stdin", "stdout", "stderr"))]
        if more.get("pass_fds") or any(type(one) is int and one > 2 for one in streams):
            others_may_hold()  # numbers; which connections these are is not known
        for stream in streams:
            if isinstance(stream, Accepted):
                stream.make_plain()
        start(self, *args, **more)

    share_and_start.__wrapped__ = start  # type: ignore[attr-defined]  # for inspect
    subprocess.Popen.__init__ = share_and_start


def _change_reduction(reduction: Any) -> None:
    """Let multiprocessing pass a connection on, as it does with a socket."""

    def reduce(sock: Accepted) -> tuple[Any, ...]:
        sock.make_plain()
        number = reduction.DupFd(sock.fileno())
        return _rebuild, (number, int(sock.family), int(sock.type), sock.proto)

    reduction.register(Accepted, reduce)


def _rebuild(number: Any, family: int, kind: int, protocol: int) -> socket.socket:
    return socket.socket(family, kind, protocol, number.detach())


# --- other launchers ------------------------------------------------------------------------------


def _replace_exec() -> None:
    """Stay the first sitecustomize of a program that a launcher starts in this process.

    opentelemetry-instrument is such a launcher. It puts a sitecustomize of its own before ours, which
    does not import ours. Ours imports the others.
    """
    execv, execve = os.execv, os.execve

    def execv_behind_ours(path: Any, args: Any, /) -> None:
        _stay_first(os.environ)
        execv(path, args)

    def execve_behind_ours(path: Any, args: Any, env: Any) -> None:
        env = dict(env)
        _stay_first(env)
        execve(path, args, env)

    os.execv = execv_behind_ours  # type: ignore[assignment]
    os.execve = execve_behind_ours  # type: ignore[assignment]


def _stay_first(environment: MutableMapping[str, str]) -> None:
    value: Any = environment.get("PYTHONPATH")
    if isinstance(value, str) and LAUNCHER in value.split(os.pathsep):
        put_launcher_first(environment)


# --- SIGTERM --------------------------------------------------------------------------------------


# Whether this is a forked child that has not accepted a connection.
_forked = False


def _handle_sigterm() -> None:
    global _forked  # noqa: PLW0603
    _forked = False
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    ):
        signal.signal(signal.SIGTERM, _die_when_all_are_closed)
        STAND_INS[:] = [_die_when_all_are_closed]


def _leave_sigterm_to_forks() -> None:
    """Keep the default action of SIGTERM in a forked child until it accepts a connection.

    A handler in Python is not called while the child waits in a C function, and a child that was just
    forked forgets its signals (PyOS_AfterFork_Child()). Then multiprocessing's terminate() would wait
    for the child forever. So SIGTERM is blocked during a fork, and the kernel keeps it.
    """
    if sys.platform == "win32":
        return
    before = threading.local()

    def block() -> None:
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def restore_default() -> None:
        global _forked  # noqa: PLW0603
        if signal.getsignal(signal.SIGTERM) is _die_when_all_are_closed:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _forked = True
        restore()

    os.register_at_fork(before=block, after_in_parent=restore, after_in_child=restore_default)


def _die_when_all_are_closed(number: int, frame: FrameType | None) -> None:
    """End the process as the default of SIGTERM does, but finish the pending closes first."""
    if _hands_over(frame):
        # This thread is handing over a connection, and would wait here for that connection.
        again = threading.Timer(_AGAIN, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return
    end_all()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)  # PID 1, for which the kernel ignores the default action


def _hands_over(frame: FrameType | None) -> bool:
    """Whether a signal interrupted a call of a Reaper's."""
    while frame is not None:
        if frame.f_globals.get("__name__") == Reaper.__module__:
            return True
        frame = frame.f_back
    return False


# --- modules that the program may or may not import ----------------------------------------------


def _when_imported(changes: dict[str, Callable[[ModuleType], None]]) -> None:
    """Change each of these modules after its import."""
    for name in [name for name in changes if name in sys.modules]:
        changes.pop(name)(sys.modules[name])
    sys.meta_path.insert(0, _Finder(changes))


class _Finder:
    """A finder that finds no modules itself, and changes modules that the other finders find."""

    def __init__(self, changes: dict[str, Callable[[ModuleType], None]]) -> None:
        self._changes = changes

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        change = self._changes.pop(name, None)
        if change is None:
            return None
        try:
            spec: ModuleSpec | None = import_module("importlib.util").find_spec(name)
        finally:
            self._changes[name] = change  # a program may find a module before it imports it
        if spec is None or spec.loader is None:
            return None
        loader: Any = _Loader(name, spec.loader, self._changes)
        spec.loader = loader
        return spec


class _Loader:
    """A loader that executes a module by the module's own loader, and then changes the module.

    The module's own loader is not changed, because other modules may share it (in a zip, frozen).
    """

    def __init__(
        self, name: str, loader: Any, changes: dict[str, Callable[[ModuleType], None]]
    ) -> None:
        self._name = name
        self._loader = loader
        self._changes = changes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        change = self._changes.pop(self._name, None)
        if change is None:
            return  # another copy of the module, or importlib.reload()
        try:
            change(module)
        except Exception as error:  # noqa: BLE001 (the program continues without)
            _report(f"not in {self._name}: {error!r}")
