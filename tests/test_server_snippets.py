"""The snippets of docs/servers.md, unchanged, are programs that stop cleanly."""

from __future__ import annotations

import importlib.util
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("the test ends its child with SIGTERM", allow_module_level=True)

from started import free_port
from test_recipes import HEAD, Recipe, Server, read_reply, stop_in_the_midst_of_uploads

PAGE = (Path(__file__).parent.parent / "docs/servers.md").read_text(encoding="utf-8")

# The application of each snippet, from the examples, and names that the snippet lacks.
APPLICATIONS = {
    "serve_http": ("http", "from http_server import Handler as app"),
    "serve_wsgi": ("wsgiref", "from wsgiref_server import app"),
    "serve_bottle": ("bottle", "from bottle_server import app"),
    "serve_flask": ("flask", "from flask_server import app"),
    "serve_cheroot": ("cheroot", "from wsgiref_server import app"),
    "serve_cherrypy": ("cherrypy", "from cherrypy_server import Root; app = Root()"),
    "serve_uvicorn": ("uvicorn", "from uvicorn_server import app"),
    "serve_hypercorn": ("hypercorn", "from hypercorn_server import app"),
    "serve_tornado": ("tornado", "from tornado_server import app"),
    "serve_asyncio": ("asyncio", "from asyncio_server import answer as app"),
    "serve_eventlet": (
        "eventlet",
        "from eventlet_server import app; signal.signal(signal.SIGUSR1, lambda *_: None)",
    ),
}


def section(function: str) -> str:
    """Return the Python code of the section that defines a function."""
    [found] = [part for part in PAGE.split("\n## ") if f"def {function}(" in part]
    return "".join(block.partition("```")[0] for block in found.split("```python\n")[1:])


@pytest.fixture(params=APPLICATIONS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    needs, app = APPLICATIONS[request.param]
    code = section(request.param)
    for module in (needs, *re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    port = str(free_port())
    if needs == "cherrypy":  # its default port is 8080
        app += f"; import cherrypy; cherrypy.config.update({{'server.socket_port': {port}}})"
    else:
        assert "8080" in code
    program = f"""
{code.replace("8080", port)}
import sys
sys.path.insert(0, "")
{app}
print("127.0.0.1:{port} is to come", flush=True)
{request.param}(app)
"""
    with Server(Recipe(needs, ("-W", "ignore", "-c", program))) as started:
        started.connect_when_it_listens(started.port).close()
        yield started


def test_a_server_copied_from_the_page_finishes_its_pending_closes(server: Server) -> None:
    stop_in_the_midst_of_uploads(server)


@pytest.mark.parametrize("server", ["serve_eventlet"], indirect=True)
def test_eventlet_stops_at_sigterm_alone_and_waits_for_no_client_that_stalls(
    server: Server,
) -> None:
    server.process.send_signal(signal.SIGUSR1)
    with server.connect() as stalls, server.connect() as client:
        stalls.sendall(b"POST / HTTP/1.1\r\n")
        client.sendall(HEAD)
        assert read_reply(client)[0] == 413
        server.process.send_signal(signal.SIGTERM)
        assert server.await_end() == 0, server.output.decode()


# SIGTERM arrives when Queue.put() has woken a thread, before it forgets the thread. An exception there
# makes the queue wake that thread instead of another one, later.
AT_A_BAD_MOMENT = """
import linecache, signal, sys, threading, time
from cheroot.workers.threadpool import ThreadPool

def trace(frame, event, _):
    if frame.f_code is threading.Condition.notify.__code__:
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        in_put = frame.f_back.f_back.f_code is ThreadPool.put.__code__
        if event == "line" and "waiters.remove" in line and in_put and not signals:
            signals.append(1)
            signal.raise_signal(signal.SIGTERM)
        return trace

def stop_when_all_wait(pool, timeout):
    served.wait()
    for thread in server_threads():
        while thread.is_alive() and names_in(thread)[:2] != ["wait", "get"]:
            time.sleep(0.001)
    stop(pool, timeout)

def app(environ, start_response):
    served.set()
    start_response("200 OK", [("Content-Length", "0")])
    return []

def server_threads():
    return [one for one in threading.enumerate() if one.name.startswith("CP Server")]

def names_in(thread):
    names, frame = [], sys._current_frames().get(thread.ident)
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names

signals, served = [], threading.Event()
stop, ThreadPool.stop = ThreadPool.stop, stop_when_all_wait
sys.settrace(trace)
"""


def test_cheroot_stops_whenever_sigterm_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cheroot")
    port = free_port()
    code = section("serve_cheroot").replace("8080", str(port))
    program = f"""
{code}
print("127.0.0.1:{port} is to come", flush=True)
{AT_A_BAD_MOMENT}
serve_cheroot(app)
"""
    with Server(Recipe("cheroot", ("-W", "ignore", "-c", program))) as server:
        with server.connect_when_it_listens(port) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert read_reply(client)[0] == 200
        assert server.await_end() == 0, server.output.decode()
