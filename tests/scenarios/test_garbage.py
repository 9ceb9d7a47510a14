"""An exchange leaves nothing to the collector of cycles: its objects go when it is over."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from frontd.model.messages import Client, Exchange, Request, Response
from tests.wire import app, front, one_pool

PLUGINS = """
plugins:
      - headers: {set_response: {X-A: b}}
      - response_cache
"""


@pytest.mark.parametrize("plugins", ["", PLUGINS.strip()], ids=["without plugins", "with plugins"])
async def test_no_exchange_is_left_behind(tmp_path: Path, plugins: str) -> None:
    async with app() as it, front(one_pool(it.url, site=plugins), tmp_path) as stage:
        line = await stage.connect()
        await line.get("/")
        gc.collect()
        gc.disable()
        try:
            for number in range(5):
                await line.get(f"/{number}")
                await line.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
                await line.get("/nobody", host="[")
            left = [one for one in gc.get_objects() if isinstance(one, Exchange | Request | Response)]
            clients = [one for one in gc.get_objects() if isinstance(one, Client)]
        finally:
            gc.enable()
    assert len(left) <= 6, left  # of 45: those of the last exchanges, which the connection still knows
    assert len(clients) <= 2
