"""Apps that restart while people log on: handshakes end at frontd, so they do not notice."""

from __future__ import annotations

import base64
import re
from collections import Counter
from pathlib import Path

import trio
from frontd_plugins._ntlm_crypto import nt_hash

from tests.plugins.ntlmclients import step, windows
from tests.scenarios.logons import status
from tests.wire import App, Line, Stage, app, free_port, front, one_pool

USERS = ("alice", "bob", "carol")
REQUESTS = 4  # behind each logon, without credentials
PLUGINS = "plugins: [{ntlm: {users_file: users}}]"


async def names(line: Line) -> None:
    """An app that takes a moment to answer with the user it was told of."""
    while head := await line.head():
        await trio.sleep(0.02)
        found = re.search(rb"\r\nX-Remote-User: (\S+)\r\n", head)
        who = found[1] if found else b"nobody"
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(who), who))


async def logged_on(line: Line, user: str) -> tuple[bytes, bytes]:
    """Both legs of a client like Windows; the last answer."""
    client = windows(user)
    head, _ = await line.get("/", f"Authorization: NTLM {base64.b64encode(step(client)).decode()}")
    told = re.search(rb"\r\nWWW-Authenticate: NTLM (\S+)\r\n", head)
    assert told is not None, head
    await trio.sleep(0.01)  # so that the app comes and goes between the legs, too
    last = step(client, base64.b64decode(told[1]))
    return await line.get("/", f"Authorization: NTLM {base64.b64encode(last).decode()}")


async def test_handshakes_survive_an_app_that_restarts(tmp_path: Path, autojump_clock: object) -> None:
    """Each logon is answered, on the connection on which it began, and so is whatever its user asks behind it."""
    (tmp_path / "users").write_text("".join(f"{user}:{nt_hash('secret').hex()}\n" for user in USERS))
    answers, is_over, port = Counter[tuple[int, str, str]](), False, free_port()

    async def client(stage: Stage, user: str) -> None:
        while not is_over:
            line = Line(await trio.open_tcp_stream("127.0.0.1", stage.port()))
            head, body = await logged_on(line, user)
            answers[status(head), user, body.decode()] += 1
            for _ in range(REQUESTS):
                head, body = await line.get()
                answers[status(head), user, body.decode()] += 1
            await trio.aclose_forcefully(line.stream)

    apps: list[App] = []
    async with front(one_pool(f"http://127.0.0.1:{port}", site=PLUGINS), tmp_path) as stage:
        async with trio.open_nursery() as nursery:
            for number in range(9):
                nursery.start_soon(client, stage, USERS[number % len(USERS)])
            for pause in (0.0, 0.05, 1.0, 3.0):
                async with app(names, port=port) as it:
                    await trio.sleep(1)
                    apps.append(it)
                await trio.sleep(pause)
            async with app(names, port=port):
                await trio.sleep(1)
                is_over = True
                await trio.sleep(5)
        assert stage.reasons == {}
    assert all(it.connections for it in apps)
    assert set(answers) == {(200, user, user) for user in USERS}, answers
    assert answers.total() >= 9 * (1 + REQUESTS)
