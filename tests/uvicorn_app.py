"""An ASGI application that replies before it has read anything, and echoes websockets."""

from __future__ import annotations

from typing import Any

HELLO = b"hello\n"
REFUSAL = b"refused" * 10_000


async def app(scope: Any, receive: Any, send: Any) -> None:
    match scope["type"]:
        case "lifespan":
            while True:
                event = (await receive())["type"]
                await send({"type": f"{event}.complete"})
                if event == "lifespan.shutdown":
                    return
        case "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": message["text"]})
        case _:
            status, body = (401, REFUSAL) if scope["method"] == "POST" else (200, HELLO)
            headers = [(b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
