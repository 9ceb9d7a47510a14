"""Two users with tickets of a real KDC, through one pool to an app that takes a connection for that of its last user.

Their tokens come before any challenge, which is how users of other proxies have met (haproxy#2985).
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from pathlib import Path

import pytest
import trio

from tests.scenarios.logons import status
from tests.windows.backend import seen
from tests.windows.realm import NAME, Realm, house, kdc, negotiate, token
from tests.wire import Line, Stage, app, front, one_pool

__all__ = ["house", "kdc"]  # fixtures

USERS = ("alice", "bob")
ROUNDS, REQUESTS = 6, 8  # connections of each client, one after the other, and requests over each


@pytest.mark.parametrize("pool", ["", "pass_through: [negotiate]"], ids=["not pinned", "pinned"])
@pytest.mark.parametrize("driver", ["on", "off"])
async def test_they_never_meet(
    house: Realm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str, pool: str
) -> None:
    monkeypatch.setenv("FRONTD_REACTOR", driver)
    users: dict[int, set[str]] = defaultdict(set)  # by connection of the app
    caches = {user: house.ticket(user) for user in USERS}

    async def answer(line: Line) -> None:
        last = "nobody"
        while head := await line.head():
            found = re.search(r"\r\nAuthorization: (.*)\r\n", head.decode())
            if found:
                last = await trio.to_thread.run_sync(seen, found[1], house.folder / "http.keytab")
                users[line.number].add(last)
            said = last.encode()
            await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))

    async def client(stage: Stage, user: str, seed: int) -> None:
        """Logs on with the first request of a connection, and again with some of the others."""
        dice = random.Random(seed)
        for _ in range(ROUNDS):
            line = await stage.connect()
            stage.lines.remove(line)
            for number in range(REQUESTS):
                shows = user and (number == 0 or not pool or dice.random() < 0.3)
                fields = [f"Authorization: {negotiate(token(caches[user], 'a.test'))}"] if shows else []
                head, body = await line.get("/", *fields)
                assert (status(head), body.decode()) == (200, f"{user}@{NAME}" if user else "nobody")
            await line.close()

    async with app(answer) as it, front(one_pool(it.url, pool=pool), tmp_path) as stage:
        async with trio.open_nursery() as nursery:
            for seed, user in enumerate(["alice", "bob", "alice", "bob", "", ""]):
                nursery.start_soon(client, stage, user, seed)
        assert {frozenset(met) for met in users.values()} == {frozenset({f"{user}@{NAME}"}) for user in USERS}
        assert len(users) == (4 * ROUNDS if pool else 4 * ROUNDS * REQUESTS)
        assert stage.reasons == {}
