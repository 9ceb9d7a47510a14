"""Processes that attach themselves: requests wait while there is none, and what happens to whom when somebody dies."""

from __future__ import annotations

import json
import signal
import socket
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

import frontd
from frontd.processes.attached import MOST_OF_QUEUE
from tests.processes.house import House, Load, kill, serving
from tests.processes.tenants import (
    attached,
    pid_of,
    processes,
    queues,
    tenant,
    until_attached,
    until_waiting,
    words,
    written,
)


async def wait_for(house: House, path: str, answers: list[tuple[int, bytes]]) -> None:
    answers.append(await house.get(path))


async def test_requests_wait_while_nobody_is_attached(tmp_path: Path) -> None:
    async with serving(written(tmp_path)) as house, trio.open_nursery() as nursery:
        answers: list[tuple[int, bytes]] = []
        nursery.start_soon(wait_for, house, "/cart/1", answers)
        await until_waiting(house, "shop", 1)
        async with attached(tmp_path / "shop/s", "--url", "http://*/cart/") as it:
            await house.until(lambda: len(answers) == 1)
            first = await pid_of(house, "/cart/2")
            assert answers == [(200, answers[0][1])]
            assert int(answers[0][1].split()[0]) == first
            assert await pid_of(house, "/") == first, "the file routes / to the same pool"
            assert (await house.get("/books/"))[0] == 503, "nobody of books has come, and it is nobody else's"
            await kill(first)
            assert await it.ended() == 128 + signal.SIGKILL
        nursery.start_soon(wait_for, house, "/cart/3", answers)
        await until_waiting(house, "shop", 1)
        async with attached(tmp_path / "shop/s"):  # what is registered stays
            await house.until(lambda: len(answers) == 2)
            assert answers[1][0] == 200
        log = await house.remark("audit: detach of pool shop")
        assert "audit: attach by pool shop (uid " in log
        assert "): queue shop, http://*:80/cart/, ok" in log


async def test_control_is_killed(tmp_path: Path) -> None:
    """Traffic goes on, the process is known again, also by new fronts and after an upgrade, and it can leave."""
    async with serving(written(tmp_path, fronts=2)) as house, attached(tmp_path / "shop/s", "--concurrency", "3") as it:
        first = await pid_of(house)
        (before,) = await processes(house, "shop")
        (control,) = house.processes("control_process")
        await kill(control)
        for _ in range(20):
            assert await pid_of(house) == first
        await it.until_said("attached again to the queue shop")
        (after,) = await processes(house, "shop")
        assert {**after, "since": ""} == {**before, "since": ""}
        assert before["concurrency"] == 3
        front = (await house.fronts())[0]
        await kill(front)  # the one that takes its place learns it from the new control
        await house.until_status(lambda it: [one["state"] for one in it["fronts"]] == ["serving"] * 2)
        for _ in range(20):
            assert await pid_of(house) == first
        assert "errors" not in await house.control("POST /upgrade")
        for _ in range(20):
            assert await pid_of(house) == first
        await until_attached(house, "shop", 1)
        await it.end()
        assert await processes(house, "shop") == []


async def test_all_of_frontd_is_started_again(tmp_path: Path) -> None:
    """The process and its socket outlive it, and so does what it has registered."""
    path = written(tmp_path)
    async with serving(path) as house:
        async with attached(tmp_path / "control.sock", "--url", "http://*/new/", "--queue", "new") as it:
            first = await pid_of(house, "/new/")
            house.child.send_signal(signal.SIGKILL)
            await house.end()
            async with serving(path) as again:
                assert (await queues(again))["new"]["urls"] == ["http://*:80/new/"]
                assert await pid_of(again, "/new/") == first
                await it.until_said("attached again to the queue new")
                await until_attached(again, "new", 1)


async def test_several_processes_serve_one_queue(tmp_path: Path) -> None:
    """Each is a place of its own, with its own concurrency."""
    go = tmp_path / "go"
    async with serving(written(tmp_path, fronts=2)) as house, trio.open_nursery() as nursery:
        answers: list[tuple[int, bytes]] = []
        one, two = ("--concurrency", "1"), ("--concurrency", "2")
        shop = tmp_path / "shop/s"
        async with attached(shop, *one, SLOW_UNTIL=str(go)), attached(shop, *two, SLOW_UNTIL=str(go)):
            for _ in range(5):
                nursery.start_soon(wait_for, house, "/slow", answers)
            await house.until_status(lambda status: busy(status) == ([1, 2], 2))
            go.write_text("")
            await house.until(lambda: len(answers) == 5)
            assert {status for status, _ in answers} == {200}


def busy(status: dict[str, Any]) -> tuple[list[int], int]:
    """How many requests each process has, and how many wait."""
    (shop,) = [one for one in status["pools"] if one["name"] == "shop"]
    return sorted(row["active"] for row in shop["targets"]), shop["queue"]["length"]


async def test_a_process_that_is_asked_to_end_loses_nothing(tmp_path: Path) -> None:
    async with serving(written(tmp_path, fronts=2)) as house, trio.open_nursery() as nursery:
        load = Load(house, 4)

        async def answered() -> None:
            while True:
                assert (await house.get())[0] == 200
                load.answered += 1

        async with attached(tmp_path / "shop/s"):
            nursery.start_soon(answered)
            nursery.start_soon(answered)
            for _ in range(3):
                async with attached(tmp_path / "shop/s") as other:
                    await load.until_answered(10)
                    await other.end()
                await load.until_answered(10)
            nursery.cancel_scope.cancel()


async def test_frontd_attach_from_python(tmp_path: Path) -> None:
    async with serving(written(tmp_path)) as house:

        def serve(ready: threading.Event, answers: int) -> None:
            with frontd.attach("http://*/cart/", control=str(tmp_path / "shop/s")) as sock:
                assert sock.type == socket.SOCK_STREAM
                ready.set()
                for _ in range(answers):
                    client, _ = sock.accept()
                    with client:
                        client.recv(65536)
                        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmine")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, serve, threading.Event(), 2)
            assert await house.get("/cart/") == (200, b"mine")
            assert await house.get("/cart/") == (200, b"mine")
        assert await processes(house, "shop") == []
        with pytest.raises(
            frontd.AttachRefused, match="http://\\*:80/books/ is reserved for pool books, not for pool shop"
        ):
            await trio.to_thread.run_sync(
                lambda: frontd.attach("http://*/books/", control=str(tmp_path / "shop/s")).__enter__()
            )
        with pytest.raises(OSError, match="No such file"):
            await trio.to_thread.run_sync(lambda: frontd.attach(control=str(tmp_path / "nobody")).__enter__())


# ---------------------------------------------------------------------------------------------------- refused


async def refused(control: Path | str, *options: str) -> str:
    """What `frontd attach` says when it is refused."""
    async with tenant(words(control, *options)) as it:
        assert await it.ended() == 1
        return it.said


async def raw(control: Path, request: str, body: str = "") -> tuple[int, str]:
    """One call on a control socket."""
    async with await trio.open_unix_socket(control) as stream:
        head = f"{request} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        await stream.send_all(head.encode())
        data = bytes(await stream.receive_some(65536))
        return int(data[9:12]), data.partition(b"\r\n\r\n")[2].decode()


async def test_an_attach_socket_only_attaches_its_own(tmp_path: Path) -> None:
    async with serving(written(tmp_path)) as house:
        shop = tmp_path / "shop/s"
        assert (tmp_path / "shop/s").stat().st_mode & 0o777 == 0o666
        assert (tmp_path / "books/s").stat().st_mode & 0o777 == 0o660
        said = await refused(shop, "--url", "http://*/books/")
        assert said == (
            "frontd: not attached: ACCESS_DENIED: http://*:80/books/ is reserved for pool books, not for pool shop\n"
        )
        assert "http://*:80/books/ is reserved for pool books" in await refused(shop, "--url", "http://*/books/x/")
        assert "it is the administrators', not pool shop's" in await refused(shop, "--url", "http://*/x/")
        assert "this socket is for the queue shop, not for books" in await refused(shop, "--queue", "books")
        assert "INVALID: no listener serves https://*:443/x/" in await refused(shop, "--url", "https://*/x/")
        for request in (
            "GET /status",
            "GET /urlacl",
            "POST /urlacl",
            "DELETE /urlacl",
            "POST /reload",
            "GET /livez",
            "DELETE /queues",
        ):
            status, body = await raw(shop, request)
            assert (status, json.loads(body)["error"]) == (403, "this socket takes POST /attach and nothing else"), (
                request
            )
        for body in (
            "[]",
            "{",
            '{"urls": "x"}',
            '{"concurrency": 0}',
            '{"mode": "x"}',
            '{"queue": 3}',
            '{"place": "../x"}',
        ):
            assert (await raw(shop, "POST /attach", body))[0] == 400, body
        assert await queues(house) == {
            name: {"name": name, "configured": True, "owner": f"pool {name}", "urls": [url], "processes": []}
            for name, url in (("shop", "http://*:80/cart/"), ("books", "http://*:80/books/"))
        }
        assert "audit: attach by pool shop (uid 0 gid 0 pid " in await house.remark("refused, ACCESS_DENIED: ")
        async with AsyncExitStack() as stack:
            for _ in range(MOST_OF_QUEUE):
                stream = await stack.enter_async_context(await trio.open_unix_socket(shop))
                await stream.send_all(b"POST /attach HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 200 ")
            status, body = await raw(shop, "POST /attach")
            assert (status, json.loads(body)["word"]) == (429, "TOO_MANY")
            assert len(await processes(house, "shop")) == MOST_OF_QUEUE
            for _ in range(70):  # nor do they keep others from calling
                assert (await raw(shop, "GET /status"))[0] == 403
        await until_attached(house, "shop", 0)


async def test_modes_of_a_queue(tmp_path: Path) -> None:
    async with serving(written(tmp_path)) as house:
        control = tmp_path / "control.sock"
        assert "NOT_FOUND: there is no queue q" in await refused(control, "--queue", "q", "--mode", "attach")
        async with attached(control, "--queue", "q", "--url", "http://*/q/", "--mode", "create"):
            assert "there is a queue q already" in await refused(control, "--queue", "q", "--mode", "create")
            said = await refused(control, "--queue", "r", "--url", "http://*/q/")
            assert "ALREADY_EXISTS: http://*:80/q/ is already registered for the queue q" in said
            said = await refused(control, "--queue", "r", "--url", "http://*/")
            assert "ALREADY_EXISTS: http://*:80/ is the URL of the site main in the configuration" in said
            assert "INVALID: the name of a queue has letters" in await refused(control, "--queue", "a/b")
            async with attached(control, "--queue", "q", "--mode", "attach"):
                await until_attached(house, "q", 2)
            assert (await raw(control, "DELETE /queues?name=q"))[0] == 409
        assert (await raw(control, "DELETE /queues?name=q"))[0] == 200
        assert "q" not in await queues(house)
        assert (await raw(control, "DELETE /queues?name=q"))[0] == 404


async def test_a_reload_opens_and_closes_attach_sockets(tmp_path: Path) -> None:
    path = written(tmp_path)
    async with serving(path) as house:
        async with attached(tmp_path / "books/s", "--url", "http://*/books/"):
            first = await pid_of(house, "/books/")
            path.write_text(path.read_text().replace(f"{tmp_path}/shop/s", f"{tmp_path}/shop/t"))
            assert (await house.control("POST /reload"))["changed"] == ["pool shop changed"]
            await house.until(lambda: (tmp_path / "shop/t").exists() and not (tmp_path / "shop/s").exists())
            assert await pid_of(house, "/books/") == first
            async with attached(tmp_path / "shop/t"):
                await until_attached(house, "shop", 1)
            (tmp_path / "taken").write_text("")
            path.write_text(path.read_text().replace(f"{tmp_path}/shop/t", f"{tmp_path}/taken"))
            said = await house.control("POST /reload")
            assert said["errors"] == [f"attach socket {tmp_path}/taken: the path is taken by something else"]


async def attach_raw(stack: AsyncExitStack, path: Path, **data: Any) -> tuple[Any, socket.socket | None, socket.socket]:
    """What ``POST /attach`` answers, the listening socket, and the connection."""

    def call() -> tuple[Any, socket.socket | None]:
        body = json.dumps(data).encode()
        line.settimeout(20)
        line.connect(str(path))
        line.sendall(b"POST /attach HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        said = b""
        fds: list[int] = []
        while not said.endswith(b"}\n"):
            part, found, _, _ = socket.recv_fds(line, 65536, 1)
            assert part, "it ended"
            said, fds = said + part, fds + found
        return json.loads(said.partition(b"\r\n\r\n")[2]), socket.socket(fileno=fds[0]) if fds else None

    line = stack.enter_context(socket.socket(socket.AF_UNIX))
    said, sock = await trio.to_thread.run_sync(call)
    if sock is not None:
        stack.enter_context(sock)
    return said, sock, line


async def test_a_place_does_not_outlive_its_queue(tmp_path: Path) -> None:
    """Whoever was attached to a queue gets nothing of another one of the same name, nor does it come back to it."""
    path = written(tmp_path)
    text = path.read_text()
    async with serving(path) as house, AsyncExitStack() as stack:
        await attach_raw(stack, tmp_path / "control.sock", queue="vault")
        pool = f"pools:\n  vault: {{attach: {{socket: {tmp_path}/vault/s}}, queue: {{wait: 200ms}}}}"
        vault = 'urlacl:\n  - {url: "http://*/vault/", pool: vault}'
        path.write_text(text.replace("pools:", pool).replace("urlacl:", vault))
        assert "errors" not in await house.control("POST /reload")
        assert await processes(house, "vault") == []
        assert (await house.get("/vault/"))[0] == 503
        said, _, line = await attach_raw(stack, tmp_path / "vault/s")
        path.write_text(text)  # the pool goes, and somebody else has one of that name later
        assert "errors" not in await house.control("POST /reload")
        assert await trio.to_thread.run_sync(line.recv, 10) == b""
        path.write_text(text.replace("pools:", pool).replace("urlacl:", vault))
        assert "errors" not in await house.control("POST /reload")
        await house.until(lambda: (tmp_path / "vault/s").exists())
        assert await processes(house, "vault") == []
        said, _, _ = await attach_raw(stack, tmp_path / "vault/s", place=said["place"])
        assert said["word"] == "NOT_FOUND"


async def test_who_has_detached_has_no_place(tmp_path: Path) -> None:
    """Although it listens still: neither when control is started anew, nor by calling again."""
    async with serving(written(tmp_path)) as house, AsyncExitStack() as stack:
        said, _, line = await attach_raw(stack, tmp_path / "books/s")
        line.close()
        await until_attached(house, "books", 0)
        again, _, _ = await attach_raw(stack, tmp_path / "books/s", place=said["place"])
        assert again["word"] == "NOT_FOUND"
        (control,) = house.processes("control_process")
        await kill(control)
        await house.until(lambda: house.processes("control_process") not in ([], [control]))
        assert await processes(house, "books") == []


async def test_refusals_do_not_fill_the_log(tmp_path: Path) -> None:
    async with serving(written(tmp_path)):
        async with await trio.open_unix_socket(tmp_path / "shop/s") as stream:
            for _ in range(500):
                await stream.send_all(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 403 ")
        with trio.fail_after(10):
            while "more were refused before" not in (tmp_path / "error.log").read_text():
                assert (await raw(tmp_path / "shop/s", "GET /last"))[0] == 403
        log = (tmp_path / "error.log").read_text()
        assert log.count("refused, this socket only attaches") < 100
        assert "audit: GET /last by pool shop (uid " in log


async def test_the_attach_socket_moves(tmp_path: Path) -> None:
    """Who was attached on the one before comes back on the new one."""
    path = written(tmp_path)
    async with serving(path) as house, AsyncExitStack() as stack:
        said, _, line = await attach_raw(stack, tmp_path / "books/s")
        path.write_text(path.read_text().replace("/books/s", "/books/t"))
        assert "errors" not in await house.control("POST /reload")
        assert await trio.to_thread.run_sync(line.recv, 10) == b""
        await house.until(lambda: (tmp_path / "books/t").exists())
        again, _, _ = await attach_raw(stack, tmp_path / "books/t", place=said["place"])
        assert (again.get("place"), again.get("socket")) == (said["place"], False)
        await until_attached(house, "books", 1)
