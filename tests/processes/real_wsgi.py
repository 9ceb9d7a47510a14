"""The same as `real_asgi` for WSGI, without WebSocket and lifespan."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/events":
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return events()
    count = 0
    while data := environ["wsgi.input"].read(65536):
        count += len(data)
    client, scheme = environ["REMOTE_ADDR"], environ["wsgi.url_scheme"]
    body = json.dumps({"pid": os.getpid(), "client": client, "scheme": scheme, "bytes": count}).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def events() -> Iterator[bytes]:
    number = 0
    while not os.path.exists(os.environ["GO"]):
        number += 1
        yield f"data: {number} of {os.getpid()}\n\n".encode()
        time.sleep(0.02)
    yield b"data: the end\n\n"
