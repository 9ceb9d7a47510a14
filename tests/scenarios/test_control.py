"""The control socket and the health listener: who may call, what they answer, and that no caller can hurt the front."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from frontd.config.load import Loaded, loads
from frontd.config.model import Listen
from frontd.lanes.listener import bind
from frontd.net.binding import bind_control
from frontd.processes.calls import (
    MAX_BODY,
    MAX_CALLERS,
    PATIENCE,
    Call,
    Caller,
    Reply,
    as_json,
    as_text,
    may_call,
    serve_calls,
)
from frontd.processes.control import Control
from tests.net.pki import Pki
from tests.net.tlsclient import all_gone, secure_site
from tests.wire import Line, Stage, app, configuration, front, one_pool

CURL = shutil.which("curl")
needs_curl = pytest.mark.skipif(CURL is None, reason="curl is not installed")


class Desk:
    """A front with its control socket and health listener; `text` is what a reload reads."""

    control: Control

    def __init__(self, stage: Stage, text: str, path: Path, health: int) -> None:
        self.stage, self.text, self.path, self.health = stage, text, path, health
        self.lines: list[Line] = []

    def read(self) -> Loaded:
        return configuration(self.text, self.stage.state)

    async def line(self) -> Line:
        line = Line(await trio.open_unix_socket(self.path))
        self.lines.append(line)
        return line

    async def ask(self, request: str) -> tuple[int, Any]:
        """Status and body of one call, as ``GET /path``; JSON when it says that it is."""
        line = await self.line()
        head, body = await line.ask(f"{request} HTTP/1.1\r\nHost: frontd\r\n\r\n".encode())
        await line.close()
        is_json = b"\r\nContent-Type: application/json\r\n" in head
        return int(head[9:12]), json.loads(body) if is_json else body.decode()


@asynccontextmanager
async def desk(
    text: str, state: Path, read: Callable[[Desk], Callable[[], Loaded] | None] = lambda it: it.read
) -> AsyncIterator[Desk]:
    async with front(text, state) as stage:
        path = state / "control.sock"
        health = bind(Listen(name="health", kind="http", address="127.0.0.1", port=0))
        with bind_control(path) as listening, health.sock:
            it = Desk(stage, text, path, health.port)
            control = it.control = Control(stage.front, "1.2.3", read(it))
            async with trio.open_nursery() as nursery:
                fault = stage.front.service.log_fault
                nursery.start_soon(serve_calls, listening, control.answer, fault)
                nursery.start_soon(serve_calls, health.sock, control.health, fault)
                try:
                    yield it
                finally:
                    for line in it.lines:
                        await trio.aclose_forcefully(line.stream)
                nursery.cancel_scope.cancel()


SITE = one_pool("http://127.0.0.1:1")

# ---------------------------------------------------------------------------------------------------- answers


async def test_health(tmp_path: Path) -> None:
    async with desk(SITE, tmp_path) as it:
        assert await it.ask("GET /livez") == (200, "ok\n")
        assert await it.ask("GET /readyz") == (200, "ok\n")
        assert (await it.ask("POST /livez"))[0] == 405
        line = await it.line()
        await line.send(b"HEAD /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await line.read_to_end()).endswith(b"\r\nContent-Length: 3\r\nConnection: close\r\n\r\n")
        await it.stage.front.drain()
        assert await it.ask("GET /livez") == (200, "ok\n")
        assert await it.ask("GET /readyz") == (503, "draining\n")


async def test_status_shows_everything(pki: Pki, tmp_path: Path) -> None:
    async with app() as it:
        text = secure_site(it.url, pki.entry("a")).replace("{https:", "{http: {port: 0}, https:")
        async with desk(text, tmp_path) as control:
            line = await control.stage.connect()
            assert (await line.get(host="nobody.test"))[0].startswith(b"HTTP/1.1 308 ")
            assert (await line.get("/%zz"))[0].startswith(b"HTTP/1.1 400 ")
            await line.close()
            await all_gone(control.stage)
            status, said = await control.ask("GET /status")
            assert status == 200
            assert list(said) == [
                "version", "pid", "started", "uptime", "ready", "state", "generation", "window", "config",
                "last_reload", "fronts", "listeners", "sites", "pools", "store", "certificates", "reasons", "log",
                "dropped_underscore_fields", "connections",
            ]  # fmt: skip
            assert (said["version"], said["pid"]) == ("1.2.3", os.getpid())
            assert (said["ready"], said["state"]) == (True, "serving")
            assert (said["generation"], said["last_reload"], said["connections"]) == (1, None, 0)
            assert [(one["name"], one["kind"], one["address"], one["connections"]) for one in said["listeners"]] == [
                ("http", "http", "*", 0), ("https", "https", "*", 0),
            ]  # fmt: skip
            assert said["listeners"][1]["port"] == control.stage.port("https")
            assert (said["sites"][0]["name"], said["sites"][0]["urls"]) == ("main", ["https://*:443/"])
            assert said["sites"][0]["plugins"] == []
            assert said["store"] == {"used": 0, "limit": 67108864, "entries": 0}
            (pool,) = said["pools"]
            assert (pool["name"], pool["on_demand"]) == ("app", False)
            assert pool["queue"] == {"length": 0, "limit": 1000, "wait": 30.0, "longest": 0, "refuse_with": "reason"}
            assert [set(target) for target in pool["targets"]] == [
                {"target", "address", "state", "active", "idle", "concurrency", "held", "error"}
            ]
            (certificate,) = said["certificates"]
            assert set(certificate["hosts"]) == {"a.test", "*.wild.test", "127.0.0.1", "::1"}
            assert (certificate["source"], certificate["not_after"][-6:]) == (str(pki.cert("a")), "+00:00")
            assert said["reasons"] == {"URL": 1}
            assert said["log"] == {"dropped": 0}


async def test_config_is_yaml_that_loads_again_without_secrets(pki: Pki, tmp_path: Path) -> None:
    text = secure_site("http://127.0.0.1:1", f"{{pfx: {pki.pfx}, password: geheim}}")
    async with desk(text, tmp_path) as it:
        status, said = await it.ask("GET /config")
        assert status == 200
        assert "geheim" not in said["yaml"]
        again = loads(said["yaml"].replace("**********", "geheim"), "again.yaml", tmp_path, environ={})
        assert again.config.sites == it.stage.front.config.sites


async def test_explain(tmp_path: Path) -> None:
    async with desk(SITE, tmp_path) as it:
        status, said = await it.ask("GET /explain?url=http%3A%2F%2Fa.test%2Fx%3Fy%3D1")
        assert (status, said["url"]) == (200, "http://a.test/x?y=1")
        assert [step["step"] for step in said["steps"]] == ["listener", "site", "route", "pool", "target"]
        assert said["answer"] == "forwarded to http://127.0.0.1:1 as /x?y=1"
        for url in ("", "gopher://x/", "http://[", "http://a.test:99999/", "//", "http://%00/"):
            line = await it.line()
            head, body = await line.ask(f"GET /explain?url={url} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (head[9:12], list(json.loads(body))) == (b"400", ["error"]), url


@pytest.mark.parametrize(
    ("request_", "status"),
    [("GET /", 404), ("GET /statusx", 404), ("GET //[", 404), ("GET /reload", 405), ("DELETE /status", 405),
     ("PUT /reload", 405), ("POST /config", 405), ("GET /%2e%2e/status", 200), ("GET http://any/livez", 400),
     ("GET http://frontd/livez", 200), ("TRACE /livez", 501)],
)  # fmt: skip
async def test_other_paths_and_methods(tmp_path: Path, request_: str, status: int) -> None:
    async with desk(SITE, tmp_path) as it:
        assert (await it.ask(request_))[0] == status
        if status == 405:
            line = await it.line()
            head, _ = await line.ask(f"{request_} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert re.search(rb"\r\nAllow: (GET|POST)\r\n", head)
        assert (await it.ask("GET /livez"))[0] == 200


async def test_several_calls_on_one_connection(tmp_path: Path) -> None:
    async with desk(SITE, tmp_path) as it:
        line = await it.line()
        await line.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 2 + b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [(await line.message())[0][9:12] for _ in range(3)] == [b"200", b"200", b"404"]
        await line.send(b"POST /none HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\nignored")
        await line.send(b"GET /livez HTTP/1.0\r\n\r\n")
        assert [(await line.message())[0][9:12] for _ in range(2)] == [b"404", b"200"]
        assert await line.read_to_end() == b""


# ---------------------------------------------------------------------------------------------------- reload


async def test_reload(tmp_path: Path) -> None:
    async with desk(SITE, tmp_path) as it:
        it.text = SITE + "  other: {targets: ['http://127.0.0.1:2']}\n"
        status, said = await it.ask("POST /reload")
        assert (status, said["generation"], said["changed"]) == (200, 2, ["pool other added"])
        assert any("no route leads to this pool" in warning for warning in said["warnings"])
        last = (await it.ask("GET /status"))[1]["last_reload"]
        assert (last["ok"], last["changed"], last["errors"]) == (True, ["pool other added"], [])
        it.text = SITE.replace("targets:", "tragets:").replace("routes:", "ruotes:")
        status, said = await it.ask("POST /reload")
        assert status == 422
        assert len(said["errors"]) >= 2
        assert any("tragets" in error and "frontd.yaml:" in error for error in said["errors"])
        assert any("ruotes" in error for error in said["errors"])
        after = (await it.ask("GET /status"))[1]
        assert (after["generation"], after["last_reload"]["errors"]) == (2, said["errors"])
        log = it.stage.log("error")
        me = f"audit: reload by uid {os.geteuid()} gid {os.getegid()} pid {os.getpid()}"
        assert f" {me}: ok\n" in log
        assert f" {me}: refused\n" in log


async def test_reload_without_a_file_and_while_draining(tmp_path: Path) -> None:
    async with desk(SITE, tmp_path, lambda it: None) as it:
        status, said = await it.ask("POST /reload")
        assert (status, said) == (422, {"errors": ["this frontd was started without a file to read again"]})
        assert ": refused, there is no file to read again\n" in it.stage.log("error")
    async with desk(SITE, tmp_path) as it:
        await it.stage.front.drain()
        assert await it.ask("POST /reload") == (422, {"errors": ["frontd is shutting down"]})


async def test_a_reload_goes_on_when_its_caller_leaves(tmp_path: Path) -> None:
    begun, go_on = trio.Event(), trio.Event()

    def read(it: Desk) -> Callable[[], Loaded]:
        def slowly() -> Loaded:
            trio.from_thread.run_sync(begun.set)
            trio.from_thread.run(go_on.wait)
            return it.read()

        return slowly

    async with desk(SITE, tmp_path, read) as it:
        line = await it.line()
        await line.send(b"POST /reload HTTP/1.1\r\nHost: x\r\n\r\n")
        await begun.wait()
        await line.close()
        assert (await it.ask("GET /status"))[1]["generation"] == 1  # others are answered meanwhile
        go_on.set()
        with trio.fail_after(5):
            while it.stage.front.service.world.generation == 1:
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert ": ok\n" in it.stage.log("error")


async def test_a_fault_of_ours_is_told_and_hurts_nobody(tmp_path: Path) -> None:
    async def broken(call: Call) -> Reply:
        if call.path == "/bug":
            raise ZeroDivisionError("a bug")
        return as_text(f"{call.method} {call.path} {call.query} {call.caller.uid}")

    told: list[tuple[str, Exception]] = []
    path = tmp_path / "c.sock"
    with bind_control(path) as listening:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_calls, listening, broken, lambda *what: told.append(what))
            async with await trio.open_unix_socket(path) as stream:
                line = Line(stream)
                head, body = await line.get("/bug")
                assert (head[9:12], list(json.loads(body))) == (b"500", ["error"])
                head, body = await line.get("/a?b=c&b=d")
                assert body.decode() == f"GET /a {{'b': ['c', 'd']}} {os.geteuid()}\n"
            nursery.cancel_scope.cancel()
    ((what, error),) = told
    assert (what, str(error)) == ("control socket: GET /bug", "a bug")


# ---------------------------------------------------------------------------------------------------- callers


async def test_the_socket_is_for_the_owner_and_its_group(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        async with desk(SITE, tmp_path) as it:
            assert stat.S_IMODE(it.path.stat().st_mode) == 0o660
            assert os.umask(0) == 0  # the process's own was put back
    finally:
        os.umask(previous)


def test_who_may_call() -> None:
    me = os.geteuid()
    assert may_call(Caller(1, me, 5))
    assert may_call(Caller(1, 0, 0))
    assert not may_call(Caller(1, me + 1, os.getegid()))
    assert not may_call(Caller(0, 65534, 65534))  # unknown: from another user namespace


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@needs_curl
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_somebody_else_is_refused_by_the_kernels_word(open_folder: Path) -> None:
    async with desk(SITE, open_folder) as it:
        it.path.chmod(0o666)  # only SO_PEERCRED is left
        for method, path_ in (("GET", "/status"), ("POST", "/reload"), ("GET", "/livez")):
            done = await trio.run_process(
                [str(CURL), "-q", "-s", "-X", method, "--unix-socket", str(it.path), f"http://frontd{path_}"],
                capture_stdout=True, check=False, user=65534, group=65534,
            )  # fmt: skip
            assert "uid 65534 may not use this socket" in json.loads(done.stdout)["error"]
        assert it.stage.front.service.world.generation == 1
        log = it.stage.log("error")
        assert "audit: POST /reload by uid 65534 gid 65534 pid " in log
        assert log.count(": refused, wrong uid\n") == 3


@needs_curl
async def test_curl_is_enough(tmp_path: Path) -> None:
    async with desk(SITE, tmp_path) as it:
        base = [str(CURL), "-q", "-sS", "--unix-socket", str(it.path)]
        done = await trio.run_process([*base, "http://localhost/status"], capture_stdout=True)
        assert json.loads(done.stdout)["ready"] is True
        done = await trio.run_process([*base, "-X", "POST", "http://localhost/reload"], capture_stdout=True)
        assert json.loads(done.stdout)["generation"] == 2
        done = await trio.run_process([*base, "-d", "x" * 5000, "http://localhost/reload"], capture_stdout=True)
        assert json.loads(done.stdout)["generation"] == 3


@pytest.mark.parametrize(
    ("garbage", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\n\n", b"400"),
        (b"GET /livez HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", b"400"),
        (b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"POST /reload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", b"400"),
        (b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"y" * (MAX_BODY + 1), b"413"),
    ],
)
async def test_nonsense_is_answered_and_hurts_nobody(tmp_path: Path, garbage: bytes, status: bytes) -> None:
    async with desk(SITE, tmp_path) as it:
        line = await it.line()
        await line.send(garbage)
        answer = await line.read_to_end()
        assert answer[9:12] == status or (status == b"400" and answer[9:12] == b"431"), answer
        assert b"\r\nConnection: close\r\n" in answer
        assert list(json.loads(answer.partition(b"\r\n\r\n")[2])) == ["error", "reason"]
        assert (await it.ask("GET /status"))[1]["generation"] == 1


async def test_callers_that_say_nothing_do_not_keep_others_out(tmp_path: Path, autojump_clock: object) -> None:
    async with desk(SITE, tmp_path) as it:
        began = trio.current_time()
        silent = [await it.line() for _ in range(MAX_CALLERS - 1)]
        half = await it.line()
        await half.send(b"GET /livez HT")
        assert (await it.ask("GET /livez"))[0] == 200  # as soon as there is a place again
        assert trio.current_time() - began == pytest.approx(PATIENCE)
        assert (await half.read_to_end())[9:12] == b"408"
        assert await silent[0].read_to_end() in (b"", b"<reset>")
        assert it.stage.front.service.reasons == {}


async def test_callers_that_leave_at_any_moment(tmp_path: Path) -> None:
    async with desk(SITE, tmp_path) as it:
        whole = b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n"
        for part in (b"", whole[:8], whole, whole.replace(b"GET", b"POST")[:-2] + b"Content-Length: 9\r\n\r\n"):
            for _ in range(MAX_CALLERS):
                line = await it.line()
                await line.send(part)
                await line.close()
        assert (await it.ask("GET /livez"))[0] == 200


# ---------------------------------------------------------------------------------------------------- health on TCP


async def test_the_health_listener_knows_two_paths(tmp_path: Path) -> None:
    async with desk(SITE, tmp_path) as it:
        line = Line(await trio.open_tcp_stream("127.0.0.1", it.health))
        it.lines.append(line)
        for path in ("livez", "readyz", "status", "config", "", "reload", "explain?url=http://a.test/"):
            head, body = await line.get(f"/{path}", host="127.0.0.1")
            known = path in ("livez", "readyz")
            assert (head[9:12] == b"200") == known, path
            assert body == (b"ok\n" if known else b"only /livez and /readyz are here\n")
        head, _ = await line.ask(b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert head[9:12] == b"404"
        assert (await line.get("//["))[0][9:12] == b"404"
        assert it.stage.front.service.world.generation == 1


# ---------------------------------------------------------------------------------------------------- the path


def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "control.sock"
    with bind_control(path):
        before = path.stat().st_ino
    assert path.exists()  # closed, not removed: as after a kill
    with bind_control(path) as sock:
        assert (path.stat().st_ino, sock.getblocking()) != (before, True)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_socket_in_use_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with bind_control(path), pytest.raises(OSError, match=r"control.sock: another frontd answers there") as caught:
        bind_control(path)
    assert caught.value.errno == errno.EADDRINUSE
    path.unlink()
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)  # a frontd that does not come round to accept
        first.connect(str(path))
        with pytest.raises(OSError, match="another frontd answers there"):
            bind_control(path)
        assert path.exists()


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("precious")
    with pytest.raises(OSError, match=f"control socket {path}: the path is taken by something else"):
        bind_control(path)
    assert path.read_text() == "precious"
    path.unlink()
    path.symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="taken by something else"):
        bind_control(path)


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"control socket .*: AF_UNIX path too long"):
        bind_control(tmp_path / ("x" * 120))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"control socket .*: (Not a directory|File exists)"):
        bind_control(tmp_path / "file" / "control.sock")


def test_replies() -> None:
    assert as_json({"a": "ü"}) == Reply(200, "application/json", b'{"a": "\\u00fc"}\n')
