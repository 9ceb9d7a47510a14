"""A small ASGI app for real servers: ``/`` says who asks, ``/upload`` counts, ``/events`` streams until the file that
``$GO`` names is there, a WebSocket is an echo.  Its lifespan leaves a line in ``$LIFE``."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any


def lived(what: str) -> None:
    with open(os.environ["LIFE"], "a") as file:
        file.write(f"{what} {os.getpid()}\n")


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    match scope["type"]:
        case "lifespan":
            while True:
                what = (await receive())["type"]
                lived(what)
                await send({"type": f"{what}.complete"})
                if what == "lifespan.shutdown":
                    return
        case "websocket":
            await echo(receive, send)
        case "http" if scope["path"] == "/events":
            await events(receive, send)
        case "http":
            count, more = 0, True
            while more:
                message = await receive()
                count, more = count + len(message.get("body", b"")), message.get("more_body", False)
            client = scope["client"][0] if scope["client"] else None
            said = {"pid": os.getpid(), "client": client, "scheme": scope["scheme"], "bytes": count}
            body = json.dumps(said).encode()
            headers = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})


async def events(receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    number = 0
    while not os.path.exists(os.environ["GO"]):  # noqa: ASYNC240 - a look at a local file
        number += 1
        body = f"data: {number} of {os.getpid()}\n\n".encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b"data: the end\n\n"})


async def echo(receive: Any, send: Any) -> None:
    while (message := await receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        else:
            await send({"type": "websocket.send", "text": message["text"]})


def create() -> Any:
    """A factory."""
    return app
