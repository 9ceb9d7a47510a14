"""Real clients and a real acceptor: curl and requests-ntlm log on to an app that speaks NTLM, through frontd."""

from __future__ import annotations

import base64
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import requests
import spnego
import trio
from requests_ntlm import HttpNtlmAuth

from tests.scenarios.logons import credentials
from tests.wire import Line, Stage, app, front, one_pool

USER, PASSWORD = "FRONTD\\alice", "Alice-pass1"


@pytest.fixture(autouse=True, params=["on", "off"])
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The reactor, or a task for each connection."""
    monkeypatch.setenv("FRONTD_REACTOR", request.param)
    return str(request.param)


class NtlmApp:
    """Says who has logged on over which connection; `legs` counts the tokens that came over each."""

    def __init__(self) -> None:
        self.legs: Counter[int] = Counter()

    async def serve(self, line: Line) -> None:
        acceptor: Any = None
        user = ""
        while True:
            head, body = await line.message()
            if not head:
                return
            scheme, token = credentials(head)
            challenge = "NTLM"
            if scheme == "ntlm":
                self.legs[line.number] += 1
                received = base64.b64decode(token)
                if received[8:9] == b"\1":  # NEGOTIATE_MESSAGE (MS-NLMP 2.2.1.1)
                    acceptor, user = spnego.server(protocol="ntlm"), ""
                try:
                    out = acceptor.step(received)
                    user = acceptor.client_principal if acceptor.complete else ""
                    challenge = f"NTLM {base64.b64encode(out or b'').decode()}".strip()
                except spnego.exceptions.SpnegoError:
                    acceptor, user = None, ""
            if user:
                text = json.dumps({"user": user, "connection": line.number, "body": len(body)}).encode()
                await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
            else:
                await line.send(
                    f"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\n\r\n".encode()
                )


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pyspnego's acceptor finds the password."""
    (tmp_path / "users").write_text(f"FRONTD:alice:{PASSWORD}\n")
    monkeypatch.setenv("NTLM_USER_FILE", str(tmp_path / "users"))


@pytest.mark.parametrize("how", [["--ntlm"], ["--anyauth"], ["--ntlm", "-d", "x" * 3000]], ids=" ".join)
async def test_curl(tmp_path: Path, users: None, how: list[str]) -> None:
    curl = shutil.which("curl")
    assert curl is not None, "these plays need curl"
    book = NtlmApp()
    async with app(book.serve) as it, front(one_pool(it.url, pool="pass_through: [ntlm]"), tmp_path) as stage:
        url = f"http://127.0.0.1:{stage.port()}/"
        command = [curl, "-q", "-sS", "--noproxy", "*", "--max-time", "20", "-u", f"{USER}:{PASSWORD}", *how, url, url]
        ran = await trio.run_process(command, capture_stdout=True)
        answers = [json.loads(part + b"}") for part in ran.stdout.split(b"}")[:-1]]
        assert [answer["user"] for answer in answers] == [USER, USER]
        assert len({answer["connection"] for answer in answers}) == 1
        assert answers[1]["body"] == (3000 if "-d" in how else 0)
        assert list(book.legs.values()) == [2]
        assert stage.reasons == {}


async def test_a_wrong_password_stays_wrong(tmp_path: Path, users: None) -> None:
    curl = shutil.which("curl")
    assert curl is not None, "these plays need curl"
    async with app(NtlmApp().serve) as it, front(one_pool(it.url, pool="pass_through: [ntlm]"), tmp_path) as stage:
        url = f"http://127.0.0.1:{stage.port()}/"
        command = [curl, "-q", "-sS", "--noproxy", "*", "--max-time", "20", "-u", f"{USER}:wrong", "--ntlm", url]
        ran = await trio.run_process([*command, "-w", "%{http_code}"], capture_stdout=True)
        assert ran.stdout == b"401"


async def test_requests_ntlm(tmp_path: Path, users: None) -> None:
    """Two sessions at once, each with GETs and a POST: each keeps its connection."""
    book = NtlmApp()

    def session(stage: Stage) -> list[dict[str, Any]]:
        with requests.Session() as it:
            it.trust_env = False
            it.auth = HttpNtlmAuth(USER, PASSWORD)
            url = f"http://127.0.0.1:{stage.port()}/"
            answers = [it.get(url, timeout=20), it.post(url, data=b"x" * 5000, timeout=20), it.get(url, timeout=20)]
            return [answer.json() for answer in answers]

    async with app(book.serve) as it, front(one_pool(it.url, pool="pass_through: [ntlm]"), tmp_path) as stage:
        found: list[list[dict[str, Any]]] = []

        async def run() -> None:
            found.append(await trio.to_thread.run_sync(session, stage))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            nursery.start_soon(run)
        connections = [{answer["connection"] for answer in answers} for answers in found]
        assert [len(one) for one in connections] == [1, 1]
        assert connections[0] != connections[1]
        assert all(answer["user"] == USER for answers in found for answer in answers)
        assert [answers[1]["body"] for answers in found] == [5000, 5000]
