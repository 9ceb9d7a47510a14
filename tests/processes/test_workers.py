"""Supervised pools as a user has them: `frontd serve`, real worker processes, and what becomes of them."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.processes.house import House, family, family_of, has_ended, kill, serving
from tests.scenarios.test_control_api import OPERATIONS, faults

APP = Path(__file__).with_name("worker_app.py")
TINY = r"""
import socket, sys
listening = socket.socket(fileno=int(sys.argv[1]))
while True:
    one = listening.accept()[0]
    one.recv(65536)
    one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    one.close()
"""


def written(where: Path, workers: str, *, queue: str = "limit: 1000", word: str = "fd:{fd}", fronts: int = 2) -> Path:
    """A configuration with one pool of workers."""
    path = where / "frontd.yaml"
    path.write_text(
        f"""
{family_of(where, fronts=fronts, drain="8s")}
sites: {{main: {{urls: ["http://*/"], routes: {{/: app}}}}}}
pools:
  app:
    queue: {{{queue}}}
    workers:
      command: ["{sys.executable}", "{APP}", "{word}"]
      environment: {{SLOW_UNTIL: "{where}/go", BROKEN_WHILE: "{where}/broken"}}
      {workers}
"""
    )
    return path


@asynccontextmanager
async def pool(where: Path, workers: str = "count: 1", *, queue: str = "limit: 1000") -> AsyncIterator[House]:
    async with serving(written(where, workers, queue=queue)) as house:
        yield house


async def worker(house: House, path: str = "/") -> int:
    """The pid of the worker that answers."""
    status, body = await house.get(path)
    assert status == 200, body
    return int(body.split()[0])


def workers(house: House) -> list[int]:
    return [pid for pid, words in family(house.child.pid).items() if str(APP) in words]


@pytest.mark.parametrize("word", ["fd:{fd}", "port:{port}", "{socket}"])
async def test_the_first_request_starts_a_worker_and_waits(tmp_path: Path, word: str) -> None:
    async with serving(written(tmp_path, "count: 1", word=word)) as house:
        assert workers(house) == []
        pid = await worker(house)
        assert workers(house) == [pid]
        assert await worker(house) == pid
        await house.remark(f"app[{pid}]: worker_app: ready")
        house.child.terminate()
        assert await house.end() == 0
        await has_ended(pid)
        await house.until(lambda: not any(tmp_path.glob("workers/app/*")))


async def test_workers_that_are_always_there(tmp_path: Path) -> None:
    async with pool(tmp_path, "start: always\n      count: 2") as house:
        await house.until(lambda: len(workers(house)) == 2)


async def test_a_killed_worker_loses_no_request(tmp_path: Path) -> None:
    """Every GET is answered while the workers are killed one after the other."""
    failed: list[object] = []
    answered = 0
    async with pool(tmp_path, "count: 2\n      rapid_fail: {failures: 1000}") as house, trio.open_nursery() as nursery:
        await worker(house)

        async def client() -> None:
            nonlocal answered
            while True:
                try:
                    status, body = await house.get()
                    failed.extend([body] if status != 200 else [])
                except (OSError, EOFError) as error:
                    failed.append(error)
                answered += 1

        async def more(number: int) -> None:
            wanted = answered + number
            await house.until(lambda: answered >= wanted)

        for _ in range(8):
            nursery.start_soon(client)
        for _ in range(10):
            await more(20)
            await house.until(lambda: len(workers(house)) == 2)
            await kill(workers(house)[0])
        await more(50)
        nursery.cancel_scope.cancel()
    assert failed == []


async def test_with_a_concurrency_of_one_there_are_never_two_requests_in_a_worker(tmp_path: Path) -> None:
    async with pool(tmp_path, "concurrency: 1") as house, trio.open_nursery() as nursery:
        served: dict[int, int] = {}
        seen: list[bytes] = []

        async def client(number: int) -> None:
            for _ in range(10):
                seen.append((await house.get())[1])
                served[number] = served.get(number, 0) + 1

        for number in range(8):
            nursery.start_soon(client, number)
    assert {int(body.split()[1]) for body in seen} == {1}
    assert served == dict.fromkeys(range(8), 10)


async def test_requests_wait_while_it_starts_and_one_too_many_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    extra = "rapid_fail: {failures: 1000}"
    async with pool(tmp_path, extra, queue="limit: 50, wait: 25s") as house, trio.open_nursery() as nursery:
        answers: list[int] = []

        async def client() -> None:
            answers.append((await house.get())[0])

        for _ in range(50):
            nursery.start_soon(client)
        await house.until_status(lambda it: it["pools"][0]["queue"]["length"] == 50)
        assert (await house.get())[0] == 503
        await house.remark("QueueFull")
        (tmp_path / "broken").unlink()
        await house.until(lambda: len(answers) == 50)
        assert set(answers) == {200}


async def test_a_pool_that_fails_again_and_again_is_out_of_service(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    async with pool(tmp_path, "rapid_fail: {failures: 3, within: 1m, retry_after: 1s}") as house:
        assert (await house.get())[0] == 503
        log = await house.remark("event 5002: pool app: out of service for 1 s: 3 failures within 60 s")
        assert log.count("event 5009") == 3
        assert "it is broken" in log
        (tmp_path / "broken").unlink()
        await house.until_answer(lambda status, _: status == 200)


async def test_recycled_workers_overlap(tmp_path: Path) -> None:
    failed: list[object] = []
    pids: set[int] = set()
    async with pool(tmp_path, "recycle: {requests: 20}") as house, trio.open_nursery() as nursery:

        async def client() -> None:
            while True:
                try:
                    status, body = await house.get()
                    failed.extend([body] if status != 200 else [])
                    pids.add(int(body.split()[0]))
                except (OSError, EOFError, ValueError) as error:
                    failed.append(error)

        for _ in range(4):
            nursery.start_soon(client)
        await house.until(lambda: len(pids) >= 3)
        nursery.cancel_scope.cancel()
        assert failed == []
        assert "event 5075" in await house.remark("event 5075")


@pytest.mark.parametrize("refuse_with", ["reason", "reset"])
async def test_browsers_see_a_page_while_it_starts_and_programs_wait(tmp_path: Path, refuse_with: str) -> None:
    (tmp_path / "splash.html").write_text("<p>In a moment.")
    more = f"splash: {tmp_path}/splash.html\n    refuse_with: {refuse_with}"
    async with pool(tmp_path, more) as house:
        line = await house.line()
        head, body = await line.get("/", "Accept: text/html")
        assert (head[9:12], body) == (b"503", b"<p>In a moment.")
        assert b"\r\nRetry-After: 1\r\n" in head
        assert await worker(house)  # who was started for the browser
        head, body = await line.get("/", "Accept: text/html")
        assert head[9:12] == b"200"
        await line.close()


async def test_an_old_worker_finishes_what_it_has(tmp_path: Path) -> None:
    async with pool(tmp_path, "recycle: {requests: 2}") as house, trio.open_nursery() as nursery:
        pid = await worker(house)
        slow: list[int] = []

        async def client() -> None:
            slow.append(await worker(house, "/slow"))

        nursery.start_soon(client)
        await house.remark("event 5075")
        await house.until(lambda: len(workers(house)) == 2)
        await house.until_answer(lambda _, body: int(body.split()[0]) != pid)
        assert pid in workers(house)
        (tmp_path / "go").touch()
        await house.until(lambda: slow == [pid])
        await has_ended(pid)


async def test_idle_workers_are_stopped_and_started_again(tmp_path: Path) -> None:
    async with pool(tmp_path, "idle_stop: 1s") as house:
        pid = await worker(house)
        await has_ended(pid)
        await house.remark("event 5186: pool app: no request for 1 s")
        assert await worker(house) != pid


async def test_a_worker_that_does_not_answer_a_ping_is_replaced(tmp_path: Path) -> None:
    async with pool(tmp_path, "ping: {every: 500ms, wait: 1s}") as house:
        pid = await worker(house)
        os.kill(pid, signal.SIGSTOP)
        await has_ended(pid)
        await house.remark(f"event 5010: pool app: worker {pid} did not answer a ping within 1 s")
        assert await worker(house) != pid


async def test_a_worker_that_is_not_ready_in_time_is_killed(tmp_path: Path) -> None:
    async with pool(tmp_path, "start_limit: 1s\n      warm_up: [/failing]", queue="wait: 3s") as house:
        assert (await house.get())[0] == 503
        log = await house.remark("event 5012: pool app: worker")
        assert "(/failing is answered with 500); it is killed" in log


async def test_control_may_be_killed_and_knows_its_workers_again(tmp_path: Path) -> None:
    async with pool(tmp_path, "count: 2") as house:
        await worker(house)
        await house.until(lambda: len(workers(house)) == 2)
        before = set(workers(house))
        (control,) = house.processes("control_process")
        await kill(control)
        assert await worker(house) in before
        await house.status()
        assert set(workers(house)) == before
        await kill(min(before))
        await house.until(lambda: len(workers(house)) == 2 and min(before) not in workers(house))
        await house.remark(f"worker {min(before)} ended unexpectedly (SIGKILL)")
        assert await worker(house) in workers(house)


async def test_what_is_wanted_while_control_is_dead_is_started_by_the_next_one(tmp_path: Path) -> None:
    async with pool(tmp_path) as house, trio.open_nursery() as nursery:
        (control,) = house.processes("control_process")
        os.kill(control, signal.SIGSTOP)
        nursery.start_soon(worker, house)
        nursery.start_soon(worker, house)
        await kill(control)


async def test_numbers_are_not_used_twice_over_the_death_of_control(tmp_path: Path) -> None:
    async with pool(tmp_path, "count: 3") as house:
        await worker(house)
        await house.until(lambda: len(workers(house)) == 3)
        for _ in range(2):
            await kill(house.processes("control_process")[0])
            await house.status()
            await kill(workers(house)[0])
            await house.until(lambda: len(workers(house)) == 3)
        assert len({one["address"] for one in (await house.control("GET /workers"))["pools"][0]["workers"]}) == 3


async def test_a_new_front_knows_where_the_workers_are(tmp_path: Path) -> None:
    async with pool(tmp_path) as house:
        pid = await worker(house)
        for front in await house.fronts():
            await kill(front)
        assert await worker(house) == pid


async def test_a_reload_that_changes_the_program_replaces_the_workers(tmp_path: Path) -> None:
    async with pool(tmp_path) as house:
        pid = await worker(house)
        path = tmp_path / "frontd.yaml"
        path.write_text(path.read_text().replace("environment: {", "environment: {COLOUR: red, "))
        assert (await house.control("POST /reload"))["changed"] == ["pool app changed"]
        await house.until_answer(lambda _, body: body.split()[2:] == [b"red"])
        await has_ended(pid)


async def test_a_pool_that_goes_and_comes_back_has_other_workers(tmp_path: Path) -> None:
    async with pool(tmp_path) as house, trio.open_nursery() as nursery:
        first = await worker(house)
        answers: list[tuple[int, bytes]] = []

        async def slow() -> None:
            answers.append(await house.get("/slow"))

        nursery.start_soon(slow)
        await house.until_answer(lambda _, body: body.split()[1:2] == [b"2"])
        path = tmp_path / "frontd.yaml"
        before = path.read_text()
        path.write_text(before.partition("pools:")[0] + 'pools: {app: {targets: ["http://127.0.0.1:1"]}}')
        await house.control("POST /reload")
        path.write_text(before)
        await house.control("POST /reload")
        second = await worker(house)
        assert second != first
        assert answers == []
        (tmp_path / "go").touch()
        await has_ended(first)
        assert [int(body.split()[0]) for _, body in answers] == [first]
        assert await worker(house) == second
        assert "event 50" not in (tmp_path / "error.log").read_text()


async def test_many_are_started_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "count: 12\n      start: always\n      rapid_fail: {failures: 1}", fronts=1)
    path.write_text(path.read_text().replace("environment: {", f"environment: {{WORDS: {'w' * 24000}, "))
    async with serving(path) as house:
        await house.until(lambda: len(workers(house)) == 12)
        assert "event" not in (tmp_path / "error.log").read_text()


async def test_a_command_that_does_not_exist_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, "rapid_fail: {failures: 1, retry_after: never}")
    path.write_text(path.read_text().replace(sys.executable, "/no/such/program"))
    async with serving(path) as house:
        assert (await house.get())[0] == 503
        await house.remark("cannot be started: /no/such/program: No such file or directory")
        await house.remark("out of service until `frontd pool start`")


async def test_workers_end_with_a_master_that_is_killed(tmp_path: Path) -> None:
    async with pool(tmp_path) as house:
        pid = await worker(house)
        house.child.kill()
        await house.child.wait()
        await has_ended(pid)


# ---------------------------------------------------------------------------------------------------- by hand


async def frontd(house: House, *words: str) -> tuple[int, str]:
    """Exit code and output of a command that talks to this family."""
    command = [sys.executable, "-m", "frontd", *words, "--socket", str(house.where / "control.sock")]
    with trio.fail_after(60):
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    return done.returncode, (done.stderr if done.returncode else done.stdout).decode()


async def test_the_verbs_of_a_pool(tmp_path: Path) -> None:
    async with pool(tmp_path, "count: 2", queue="wait: 20s") as house:
        code, said = await frontd(house, "pool", "start", "app")
        first = set(workers(house))
        assert (code, len(first)) == (0, 2), said
        assert said.splitlines()[-1] == f"pool app runs: pid {', '.join(map(str, sorted(first)))}"
        code, said = await frontd(house, "pool", "recycle", "app")
        assert (code, said.splitlines()[-1][:24]) == (0, "pool app has new workers")
        for pid in first:
            await has_ended(pid)
        second = set(workers(house))
        code, said = await frontd(house, "pool", "stop", "app")
        assert (code, said) == (0, "pool app is stopped\n")
        assert workers(house) == []
        status, body = await house.get()
        assert (status, b"Reason: AppOffline" in body) == (503, True)
        assert (await frontd(house, "pool", "restart", "app"))[0] == 0
        assert not second & set(workers(house))
        code, said = await frontd(house, "show", "workers")
        assert code == 0
        assert said.splitlines()[1].split()[:4] == ["app", "running", "2", "2"]
        assert [line.split()[1] for line in said.splitlines()[4:]] == [str(pid) for pid in sorted(workers(house))]
        code, said = await frontd(house, "pool", "stop", "nobody")
        assert (code, said) == (1, "frontd: there is no pool 'nobody' with workers; known: app\n")
        log = await house.remark("audit: pool restart app by uid")
        assert log.count("audit: pool recycle app by uid") == 1


async def test_a_recycle_without_a_successor_is_a_failure(tmp_path: Path) -> None:
    async with pool(tmp_path) as house:
        pid = await worker(house)
        (tmp_path / "broken").touch()
        code, said = await frontd(house, "pool", "recycle", "app")
        assert (code, said.splitlines()[-1][:27]) == (1, f"frontd: worker {pid} stays: its"[:27])
        assert await worker(house) == pid
        code, said = await frontd(house, "show", "events")
        assert [line.split()[1] for line in said.splitlines()[1:]] == ["5079", "5009", "5093"]


async def test_stopped_requests_that_wait_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    extra = "rapid_fail: {failures: 1000}"
    async with pool(tmp_path, extra, queue="wait: 25s") as house, trio.open_nursery() as nursery:
        answers: list[tuple[int, bytes]] = []

        async def client() -> None:
            answers.append(await house.get())

        for _ in range(10):
            nursery.start_soon(client)
        await house.until_status(lambda it: it["pools"][0]["queue"]["length"] == 10)
        assert (await frontd(house, "pool", "stop", "app"))[0] == 0
        await house.until(lambda: len(answers) == 10)
        assert {(status, b"AppOffline" in body) for status, body in answers} == {(503, True)}


async def test_a_pool_that_was_stopped_stays_so_when_control_dies(tmp_path: Path) -> None:
    async with pool(tmp_path) as house:
        await worker(house)
        assert (await frontd(house, "pool", "stop", "app"))[0] == 0
        await kill(house.processes("control_process")[0])
        assert (await house.control("GET /workers"))["pools"][0]["state"] == "stopped"
        assert (await house.get())[0] == 503
        assert (await frontd(house, "pool", "start", "app"))[0] == 0
        await worker(house)


async def test_the_answers_are_as_the_description_of_the_control_socket_says(tmp_path: Path) -> None:
    async with pool(tmp_path) as house:
        await kill(await worker(house))
        await house.until_answer(lambda status, _: status == 200)
        seen = set()
        asked = {key for key in OPERATIONS if key[1].startswith(("/workers", "/events", "/pool/"))}
        for method, path in asked:
            for name in ("app", "nobody"):
                status, wrong = await faults(house, method, f"{path}?name={name}")
                assert not wrong, "\n".join(wrong)
                seen.add((method, path, status))
        told = {(*key, int(status)) for key in asked for status in OPERATIONS[key]["responses"]}
        assert seen == told


async def test_the_event_log(tmp_path: Path) -> None:
    path = written(tmp_path, "count: 1")
    path.write_text(path.read_text().replace("log: {", f"log: {{events: {tmp_path}/events.jsonl, "))
    async with serving(path) as house:
        pid = await worker(house)
        await kill(pid)
        await house.remark('"id": 5009', "events.jsonl")
        (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
        event = json.loads(line)
        assert event.pop("time")[:2] == "20"
        text = f"worker {pid} ended unexpectedly (SIGKILL)"
        assert event == {"id": 5009, "level": "warning", "pool": "app", "text": text, "pid": pid}


async def test_a_control_that_takes_over_hears_of_many_workers(tmp_path: Path) -> None:
    """More than fit into its channel one by one, before it reads."""
    path = written(tmp_path, "start: always\n      count: 220", fronts=1)
    (tmp_path / "tiny.py").write_text(TINY)
    tiny = f'["{sys.executable}", "-I", "-S", "{tmp_path}/tiny.py", "{{fd}}"]'
    path.write_text(re.sub(r"command: .*", f"command: {tiny}", path.read_text()))
    async with serving(path) as house:
        await house.until_workers("app", 220)
        (control,) = house.processes("control_process")
        await kill(control)
        await house.until_workers("app", 220)
        assert house.processes("control_process") != [control]
        assert (await house.get())[0] == 200
