"""DrainMiddleware around applications of the frameworks, added in the way of each framework."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import pytest

from graceful_close.asgi import DrainMiddleware as ASGIDrain
from graceful_close.wsgi import DrainMiddleware as WSGIDrain
from streams import DEADLINE
from test_asgi import CHUNK, END, GONE, LAST, RECEIVED, Exchange, scope
from test_wsgi import BODY, Input, environment, start


class Server(Exchange):
    """A server that reports a disconnect after the reply, as servers do."""

    def __init__(self, *requests: Any) -> None:
        super().__init__(*requests)
        self.replied = asyncio.Event()

    async def receive(self) -> Any:
        if self.requests:
            return await super().receive()
        await self.replied.wait()
        return GONE

    async def send(self, message: Any) -> None:
        await super().send(message)
        if not message.get("more_body", message["type"] == "http.response.start"):
            self.replied.set()


def starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def refuse(request: Any) -> PlainTextResponse:
        return PlainTextResponse("no\n", status_code=401)

    return Starlette(
        routes=[Route("/", refuse, methods=["POST"])],
        middleware=[Middleware(ASGIDrain, timeout=10)],
    )


def fastapi() -> Any:
    from fastapi import FastAPI, HTTPException

    app = FastAPI()

    @app.post("/")
    async def refuse() -> None:
        raise HTTPException(401)

    app.add_middleware(ASGIDrain, timeout=10)
    return app


def litestar() -> Any:
    from litestar import Litestar, post
    from litestar.exceptions import NotAuthorizedException

    @post("/")
    async def refuse() -> None:
        raise NotAuthorizedException

    return Litestar([refuse], middleware=[ASGIDrain], logging_config=None)


def quart() -> Any:
    from quart import Quart

    app = Quart("graceful")

    @app.post("/")
    async def refuse() -> tuple[str, int]:
        return "no\n", 401

    app.asgi_app = ASGIDrain(app.asgi_app)  # type: ignore[method-assign]
    return app


def flask() -> Any:
    from flask import Flask

    app = Flask("graceful")

    @app.post("/")
    def refuse() -> tuple[str, int]:
        return "no\n", 401

    app.wsgi_app = WSGIDrain(app.wsgi_app)  # type: ignore[method-assign]
    return app


def django(kind: str) -> Any:
    def module(name: str) -> Any:
        return importlib.import_module("django." + name)  # Django has no types

    def refuse(request: object) -> Any:
        return module("http").HttpResponse("no\n", status=401)

    class Urls:
        urlpatterns = (module("urls").path("", refuse),)

    settings = module("conf").settings
    if not settings.configured:
        settings.configure(ROOT_URLCONF=Urls, ALLOWED_HOSTS=["*"], SECRET_KEY="not used")
    if kind == "asgi":
        return ASGIDrain(module("core.asgi").get_asgi_application())
    return WSGIDrain(module("core.wsgi").get_wsgi_application())


ASGI = {"fastapi": fastapi, "litestar": litestar, "quart": quart, "starlette": starlette}


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # deprecations between the frameworks' own packages
@pytest.mark.parametrize("name", [*ASGI, "django"])
def test_the_request_is_drained_when_an_asgi_application_replies_early(name: str) -> None:
    pytest.importorskip(name)
    app = ASGI[name]() if name in ASGI else django("asgi")
    of = scope(
        (b"host", b"localhost"),
        (b"content-length", b"2010"),
        raw_path=b"/",
        root_path="",
        query_string=b"",
        scheme="http",
        server=("127.0.0.1", 80),
        client=("127.0.0.1", 1000),
        asgi={"version": "3.0", "spec_version": "2.3"},
        extensions={},
        state={},
    )

    async def main() -> Exchange:
        exchange = Server(CHUNK, CHUNK, LAST)
        async with asyncio.timeout(DEADLINE):
            await app(of, exchange.receive, exchange.send)
        return exchange

    exchange = asyncio.run(main())
    started = next(one for one in exchange.seen if one != RECEIVED)
    assert started["status"] == 401
    assert exchange.seen.count(RECEIVED) == 3
    if name in ("fastapi", "starlette"):  # the others have a task that reads the request
        assert exchange.seen[-2:] == [RECEIVED, END]


@pytest.mark.parametrize("name", ["flask", "django"])
def test_the_request_is_drained_when_a_wsgi_application_replies_early(name: str) -> None:
    pytest.importorskip(name)
    app = flask() if name == "flask" else django("wsgi")
    body = Input(BODY)
    reply = app(environment(body), start)
    assert b"".join(reply) == b"no\n"
    assert body.left == len(BODY)
    reply.close()
    assert body.left == 0
