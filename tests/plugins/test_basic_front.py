"""Basic on a running front: what clients are answered, what the app is told, and what a configuration may say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from frontd.config.problems import ConfigProblems
from frontd.processes.front import Front
from tests.net.pki import Pki
from tests.net.tlsclient import client_context, secure_site, tls_line
from tests.plugins.logons import ALICE, BOB, basic_field
from tests.wire import Stage, app, configuration, front, one_pool, settled

OPEN = "plugins: [{basic: {users_file: users, allow_http: true}}]"


def field(user: str, password: str) -> str:
    return f"Authorization: {basic_field(user, password).decode()}"


@pytest.fixture
def users(tmp_path: Path) -> Path:
    (tmp_path / "users").write_text(ALICE + BOB)
    return tmp_path / "users"


def logged(stage: Stage) -> list[tuple[object, ...]]:
    """Status, substatus and reason of every exchange."""
    lines = [json.loads(line) for line in stage.log().splitlines()]
    return [(line["status"], line.get("substatus"), line.get("reason")) for line in lines]


async def test_a_logon(tmp_path: Path, users: Path) -> None:
    async with app() as it, front(one_pool(it.url, site=OPEN), tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.get()
        assert head.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
        assert b'\r\nWWW-Authenticate: Basic realm="main", charset="UTF-8"\r\n' in head
        assert b"Reason: LogonRequired" in body
        head, body = await line.get("/", field("alice", "wrong"))
        assert head.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
        assert b'\r\nWWW-Authenticate: Basic realm="main", charset="UTF-8"\r\n' in head
        unknown = await line.get("/", field("mallory", "wrong"))
        assert unknown[1].split(b"\n")[:-2] == body.split(b"\n")[:-2]  # all but the number of the request
        assert not it.heads
        for _ in range(2):  # hashed, then remembered
            head, body = await line.get("/", field("alice", "secret"), "X-Remote-User: root")
            assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"ok")
            sent = it.heads.pop()
            assert b"\r\nX-Remote-User: alice\r\n" in sent
            assert b"\r\nX-Remote-Groups: staff,admins\r\n" in sent
            assert b"\r\nX-Auth-Scheme: Basic\r\n" in sent
            assert b"uthorization" not in sent
            assert b"root" not in sent
        assert (await line.get())[0].startswith(b"HTTP/1.1 401 ")  # a logon is of one request, not of the connection
        log = stage.log("error")
        assert "the+password+for+alice+is+wrong" in log
        assert "there+is+no+such+user" in log
        assert "mallory" not in log


async def test_guesses_are_slowed_down(tmp_path: Path, users: Path) -> None:
    async with app() as it, front(one_pool(it.url, site=OPEN), tmp_path) as stage:
        line = await stage.connect()
        for number in range(10):
            assert (await line.get("/", field("alice", f"guess {number}")))[0].startswith(b"HTTP/1.1 401 ")
        head, body = await line.get("/", field("alice", "secret"))
        assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert b"\r\nRetry-After: 6\r\n" in head
        assert b"Reason: LogonThrottled" in body
        assert (await line.get("/", field("bob", "hunter2")))[1] == b"ok"
        assert logged(stage)[9:] == [(401, 1, "LogonFailed"), (429, None, "LogonThrottled"), (200, None, None)]


async def test_plain_http_over_a_plugin_of_the_whole_server(tmp_path: Path, users: Path) -> None:
    text = one_pool("http://127.0.0.1:1", extra="plugins: [{basic: {users_file: users}}]")
    async with front(text, tmp_path) as stage:
        line = await stage.connect()
        head, body = await line.get("/", field("alice", "secret"))
        assert head.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert b"WWW-Authenticate" not in head
        assert b"403.4 Forbidden\nReason: TlsRequired\n" in body
        assert logged(stage) == [(403, 4, "TlsRequired")]


async def test_over_tls(tmp_path: Path, users: Path, pki: Pki) -> None:
    async with app() as it:
        text = secure_site(it.url, pki.entry("a")) + "\nplugins: [{basic: {users_file: users, realm: office}}]\n"
        async with front(text, tmp_path) as stage:
            line = await tls_line(stage, client_context(pki), "a.test")
            head, _ = await line.get(host="a.test")
            assert b'\r\nWWW-Authenticate: Basic realm="office", charset="UTF-8"\r\n' in head
            assert (await line.get("/", field("alice", "secret"), host="a.test"))[1] == b"ok"


async def test_rules_see_the_groups_of_the_file(tmp_path: Path, users: Path) -> None:
    rules = 'authorize: [{path: /public/, allow: [anonymous]}, {allow: ["group:staff"]}]'
    site = f"plugins: [{{basic: {{users_file: users, allow_http: true}}}}, {{{rules}}}]"
    async with app() as it, front(one_pool(it.url, site=site), tmp_path) as stage:
        line = await stage.connect()
        assert (await line.get("/public/x"))[1] == b"ok"
        assert (await line.get("/public/x", field("alice", "wrong")))[0].startswith(b"HTTP/1.1 401 ")
        assert (await line.get("/private", field("alice", "secret")))[1] == b"ok"
        assert (await line.get("/private", field("bob", "hunter2")))[0].startswith(b"HTTP/1.1 403 ")
        assert (await line.get("/private"))[0].startswith(b"HTTP/1.1 401 ")


async def test_a_client_that_leaves_while_its_password_waits(tmp_path: Path, users: Path) -> None:
    async with app() as it, front(one_pool(it.url, site=OPEN), tmp_path) as stage:
        for _ in range(3):
            line = await stage.connect()
            await line.send(f"GET / HTTP/1.1\r\nHost: a.test\r\n{field('alice', 'secret')}\r\n\r\n".encode())
            await line.close()
        line = await stage.connect()
        assert (await line.get("/", field("alice", "secret")))[1] == b"ok"


async def test_changes_of_the_file_need_no_reload(tmp_path: Path, users: Path) -> None:
    async with app() as it, front(one_pool(it.url, site=OPEN), tmp_path) as stage:
        line = await stage.connect()
        assert (await line.get("/", field("alice", "secret")))[1] == b"ok"
        await trio.Path(users).write_text(BOB)
        with trio.fail_after(20):
            while (await line.get("/", field("alice", "secret")))[1] == b"ok":
                await settled()
        assert (await line.get("/", field("bob", "hunter2")))[1] == b"ok"


def complaints(site: str, folder: Path) -> list[str]:
    """What is wrong with a configuration that has `site` in it."""
    with pytest.raises(ConfigProblems) as caught:
        configuration(one_pool("http://127.0.0.1:1", site=site), folder)
    return [str(problem).splitlines()[0] for problem in caught.value.problems if problem.severity == "error"]


def test_what_a_configuration_may_not_say(tmp_path: Path, users: Path) -> None:
    (said,) = complaints("plugins: [{basic: {users_file: users}}]", tmp_path)
    assert "serve it over https only" in said
    (said,) = complaints("plugins: [{basic: {users_file: other, allow_http: true}}]", tmp_path)
    assert f"{tmp_path}/other: there is no such users file" in said
    users.write_text("alice:topsecret\n")
    (said,) = complaints(OPEN, tmp_path)
    assert f"{users}:1: what follows the name is no hash" in said
    assert "topsecret" not in said


def test_numbers_and_durations_of_a_file(tmp_path: Path, users: Path) -> None:
    more = "cache_ttl: 5m, queue: 9, failures_per_user: none, failures_per_address: 50, failure_window: 90s, realm: 12"
    text = one_pool("http://127.0.0.1:1", site=OPEN.replace("users_file: users", f"users_file: users, {more}"))
    (entry,) = configuration(text, tmp_path).config.sites["main"].plugins
    assert entry.settings.model_dump() == {
        "users_file": users, "winbind": None, "kerberos": None, "ldap": None, "realm": "12", "allow_http": True,
        "cache_ttl": 300.0, "queue": 9, "failures_per_user": None, "failures_per_address": 50, "failure_window": 90.0,
    }  # fmt: skip
    for wrong in ("queue: -1", "failures_per_user: 0", "failure_window: 0s", "realm: [a]", "allow_htpp: true"):
        site = OPEN.replace("users_file: users", f"users_file: users, {wrong}")
        assert len(complaints(site, tmp_path)) >= 1, wrong


def test_a_front_is_not_built_when_the_file_has_gone_meanwhile(tmp_path: Path, users: Path) -> None:
    loaded = configuration(one_pool("http://127.0.0.1:1", site=OPEN), tmp_path)
    users.unlink()
    with pytest.raises(Exception, match="no such users file"):
        Front.open(loaded)
