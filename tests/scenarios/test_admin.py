"""The admin listener: the control socket's answers over TCP, for whoever has the token and for nobody else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from frontd.cli.root import cli
from frontd.config.load import load
from frontd.config.model import Listen
from frontd.config.problems import ConfigProblems
from frontd.lanes.listener import bind
from frontd.processes.admin import ADMIN_CALLERS, ADMIN_PATIENCE, Admin, is_same
from frontd.processes.calls import MAX_BODY, serve_calls
from tests.processes.house import House, kill, serving, settings
from tests.scenarios.test_control import SITE, Desk, desk
from tests.wire import Line, app, free_port

TOKEN = "0123456789abcdef0123456789abcdef"


class Door:
    """An admin listener in front of a desk."""

    def __init__(self, it: Desk, port: int, file: Path) -> None:
        self.desk, self.port, self.file = it, port, file

    async def ask(self, request: str, *fields: str) -> tuple[int, bytes, Any]:
        line = Line(await trio.open_tcp_stream("127.0.0.1", self.port))
        more = "".join(f"{field}\r\n" for field in fields)
        head, body = await line.ask(f"{request} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode())
        await line.close()
        is_json = b"\r\nContent-Type: application/json\r\n" in head
        return int(head[9:12]), head, json.loads(body) if is_json else body.decode()

    async def frontd(self, *words: str, token: Path | None = None) -> tuple[int, str]:
        """Exit code and output of a command that asks here."""
        door = ["--control", f"http://127.0.0.1:{self.port}", "--token-file", str(token or self.file)]
        result = await trio.to_thread.run_sync(partial(CliRunner().invoke, cli, [*words, *door]))
        return result.exit_code, result.output


def bearer(token: str = TOKEN) -> str:
    return f"Authorization: Bearer {token}"


@asynccontextmanager
async def door(state: Path) -> AsyncIterator[Door]:
    file = state / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o640)
    listener = bind(Listen(name="control", kind="http", address="127.0.0.1", port=0))
    async with desk(SITE, state) as it:
        with listener.sock:
            async with trio.open_nursery() as nursery:
                admin, fault = Admin(it.control, file), it.stage.front.service.log_fault
                nursery.start_soon(
                    serve_calls, listener.sock, admin.answer, fault, ADMIN_PATIENCE, ADMIN_CALLERS
                )  # fmt: skip
                yield Door(it, listener.port, file)
                nursery.cancel_scope.cancel()


async def test_with_the_token_it_is_the_control_socket(tmp_path: Path) -> None:
    async with door(tmp_path) as it:
        status, _, said = await it.ask("GET /status", bearer())
        assert (status, said["version"]) == (200, "1.2.3")
        assert (await it.ask("GET /none", bearer()))[0] == 404
        status, _, said = await it.ask("POST /reload", bearer())
        assert (status, said["generation"]) == (200, 2)
        log = it.desk.stage.log("error")
        assert "audit: reload by 127.0.0.1:" in log
        assert TOKEN not in log


@pytest.mark.parametrize(
    ("fields", "challenge"),
    [
        ([], b'Bearer realm="frontd"'),
        (["Authorization: Bearer"], b'Bearer realm="frontd"'),
        (["Authorization: Basic " + TOKEN], b'Bearer realm="frontd"'),
        ([bearer(TOKEN[:-1])], b'Bearer realm="frontd", error="invalid_token"'),
        ([bearer(TOKEN + "0")], b'Bearer realm="frontd", error="invalid_token"'),
        ([bearer("\xff")], b'Bearer realm="frontd", error="invalid_token"'),
        ([bearer(), bearer()], b'Bearer realm="frontd"'),
    ],
)
async def test_without_it_there_is_nothing(tmp_path: Path, fields: list[str], challenge: bytes) -> None:
    async with door(tmp_path) as it:
        for path in ("/status", "/livez", "/none"):
            status, head, said = await it.ask(f"GET {path}", *fields)
            assert (status, list(said)) == (401, ["error"])
            assert b"\r\nWWW-Authenticate: " + challenge + b"\r\n" in head
        log = it.desk.stage.log("error")
        assert log.count("audit: GET /status by 127.0.0.1:") == 1
        assert log.count("refused, ") == 1  # the others came within the same second
        assert TOKEN[:-1] not in log


async def test_a_new_token_holds_at_once(tmp_path: Path) -> None:
    async with door(tmp_path) as it:
        it.file.write_text("another-token-0123")
        assert (await it.ask("GET /livez", bearer()))[0] == 401
        assert (await it.ask("GET /livez", bearer("another-token-0123")))[0] == 200


@pytest.mark.parametrize("trouble", ["gone", "everybody's", "short"])
async def test_a_file_that_is_no_secret_lets_nobody_in(tmp_path: Path, trouble: str) -> None:
    async with door(tmp_path) as it:
        if trouble == "gone":
            it.file.unlink()
        elif trouble == "everybody's":
            it.file.chmod(0o644)
        else:
            it.file.write_text("")
        assert (await it.ask("GET /status", bearer()))[0] == 401
        assert (await it.ask("GET /status", "Authorization: Bearer x"))[0] == 401
        assert "there is no token to compare with (" in it.desk.stage.log("error")


async def test_a_large_body_is_refused(tmp_path: Path) -> None:
    async with door(tmp_path) as it:
        line = Line(await trio.open_tcp_stream("127.0.0.1", it.port))
        head = f"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n".encode()
        head, _ = await line.ask(head + b"x" * (MAX_BODY + 1))
        assert head.startswith(b"HTTP/1.1 413 ")
        await line.close()


def test_tokens_are_compared_whole() -> None:
    assert is_same(TOKEN, TOKEN)
    assert not is_same("", TOKEN)
    assert not is_same(TOKEN[:-1], TOKEN)
    assert not is_same("\udcff", TOKEN)


# ---------------------------------------------------------------------------------------------------- the command


async def test_reads_of_the_command_line(tmp_path: Path) -> None:
    async with door(tmp_path) as it:
        for words in (["status"], ["show", "requestq"], ["show", "requests"], ["show", "servicestate"],
                      ["show", "config", "live"], ["explain", "http://a.test/"]):  # fmt: skip
            code, output = await it.frontd(*words)
            assert code == 0, output
        other = tmp_path / "other"
        other.write_text("x" * 20)
        code, output = await it.frontd("status", token=other)
        assert (code, output) == (4, f"frontd: http://127.0.0.1:{it.port}: not permitted: this is not the token\n")
        code, output = await it.frontd("status", token=tmp_path / "none")
        assert (code, output) == (1, f"frontd: cannot read the token in {tmp_path}/none: No such file or directory\n")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--control", "http://127.0.0.1:1"], "--control needs --token-file"),
        (["--token-file", "x"], "--token-file goes with --control"),
        (["--control", "https://127.0.0.1:1", "--token-file", "x"], "is not http://address:port"),
        (["--control", "http://127.0.0.1:99999", "--token-file", "x"], "is not http://address:port"),
        (["--control", "http://127.0.0.1", "--token-file", "x"], "is not http://address:port"),
    ],
)
def test_options_that_do_not_fit(options: list[str], says: str) -> None:
    result = CliRunner().invoke(cli, ["status", *options])
    assert result.exit_code == 2
    assert says in result.output


def test_nobody_listens(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    url = f"http://127.0.0.1:{free_port()}"
    result = CliRunner().invoke(cli, ["status", "--control", url, "--token-file", str(tmp_path / "token")])
    assert (result.exit_code, result.output) == (4, f"frontd: no contact with frontd on {url}: Connection refused.\n")


# ---------------------------------------------------------------------------------------------------- the configuration

PLAIN = "sites: {a: {urls: [http://a/], routes: {/: http://app:8000}}}\n"


def errors(where: Path, control: str, mode: int = 0o600, token: str = TOKEN) -> str:
    (where / "token").write_text(token)
    (where / "token").chmod(mode)
    (where / "frontd.yaml").write_text(f"{PLAIN}control: {control}\n")
    try:
        load(where / "frontd.yaml")
    except ConfigProblems as problems:
        return "\n".join(str(problem) for problem in problems.problems)
    return ""


@pytest.mark.parametrize(
    ("control", "mode", "token", "says"),
    [
        ("{listen: 127.0.0.1:9901}", 0o600, TOKEN, "`token_file` is missing"),
        ("{token_file: token}", 0o600, TOKEN, "`listen` is missing"),
        ("{listen: 0.0.0.0:9901, token_file: token}", 0o600, TOKEN, "the token would pass in plain HTTP"),
        ("{listen: '[2001:db8::1]:9901', token_file: token}", 0o600, TOKEN, "the token would pass in plain HTTP"),
        ("{listen: 9901, token_file: token}", 0o600, TOKEN, "the address is missing"),
        ("{listen: 127.0.0.1:9901, token_file: none}", 0o600, TOKEN, "cannot read"),
        ("{listen: 127.0.0.1:9901, token_file: token}", 0o644, TOKEN, "everybody may read or write"),
        ("{listen: 127.0.0.1:9901, token_file: token}", 0o602, TOKEN, "everybody may read or write"),
        ("{listen: 127.0.0.1:9901, token_file: token}", 0o600, "0123456789abcde", "holds 15 characters"),
        ("{listen: 127.0.0.1:9901, token_file: token}", 0o600, "two words of some length", "holds no token"),
        ("{listen: 127.0.0.1:9901, token_file: token}", 0o600, "x" * 5000, "holds no token"),
        ("{listen: '127.0.0.1:80', token_file: token}\nlisten: {http: 80}", 0o600, TOKEN, "would both bind port 80"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, control: str, mode: int, token: str, says: str) -> None:
    assert says in (found := errors(tmp_path, control, mode, token)), found
    assert TOKEN not in found


@pytest.mark.parametrize("listen", ["127.0.0.1:9901", "'[::1]:9901'", "127.9.9.9:1"])
def test_loopback_is_fine(tmp_path: Path, listen: str) -> None:
    assert errors(tmp_path, f"{{listen: {listen}, token_file: token}}", 0o640) == ""


def test_other_addresses_for_who_says_so(tmp_path: Path) -> None:
    assert errors(tmp_path, "{listen: 0.0.0.0:9901, token_file: token, plain_http: true}") == ""


# ---------------------------------------------------------------------------------------------------- a family


async def test_a_family_with_an_admin_listener(tmp_path: Path) -> None:
    """Also when control has died: the master keeps the socket."""
    port, health = free_port(), free_port()
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    control = f"control: {{listen: 127.0.0.1:{port}, token_file: {tmp_path}/token, socket: {tmp_path}/control.sock}}"
    async with app() as it:
        path = settings(tmp_path, it.url, extra=f'health: {{listen: "127.0.0.1:{health}"}}')
        text = path.read_text()
        path.write_text(text.replace(f"control: {{socket: {tmp_path}/control.sock}}", control))
        async with serving(path) as house:
            (old,) = house.processes("control_process")
            await answers(house, port, health)
            await kill(old)
            await answers(house, port, health)
            assert house.processes("control_process") != [old]


async def answers(house: House, port: int, health: int) -> None:
    line = Line(await trio.open_tcp_stream("127.0.0.1", port))
    _, body = await line.get("/requests", bearer())
    assert json.loads(body) == {"total": 0, "requests": [], "more": 0, "silent": []}
    assert (await line.get("/status"))[0].startswith(b"HTTP/1.1 401 ")
    await line.close()
    assert (await house.get("/readyz", port=health)) == (200, b"ok\n")
