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


def alive(*kinds: type) -> int:
    """How many objects of these kinds there are in the process."""
    return sum(isinstance(one, kinds) for one in gc.get_objects())


@pytest.mark.parametrize("plugins", ["", PLUGINS.strip()], ids=["without plugins", "with plugins"])
async def test_no_exchange_is_left_behind(tmp_path: Path, plugins: str) -> None:
    async with app() as it, front(one_pool(it.url, site=plugins), tmp_path) as stage:
        line = await stage.connect()
        await line.get("/")
        gc.collect()
        first = alive(Exchange, Request, Response), alive(Client)
        gc.disable()
        try:
            for number in range(5):
                await line.get(f"/{number}")
                await line.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
                await line.get("/nobody", host="[")
            left = alive(Exchange, Request, Response), alive(Client)
        finally:
            gc.enable()
    assert left[0] - first[0] <= 6  # of 45: those of the last exchanges, which the connection still knows
    assert left[1] - first[1] <= 2
