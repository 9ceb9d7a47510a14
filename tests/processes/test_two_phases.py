"""A reload happens in every front or in none, and costs no request."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import textwrap
from pathlib import Path

import pytest
import trio

from tests.processes.house import House, Load, kill, serving, settings
from tests.wire import OK, Line, app, free_port

PLUGIN = """
import os
from pathlib import Path
import frontd
import trio
HERE = Path(__file__).parent

class It(frontd.Plugin):
    name = "it"

    class Settings(frontd.Settings):
        word: str = "one"

    async def run(self, *, task_status):
        flag = HERE / "bad"
        if flag.exists() and flag.read_text() == str(os.getpid()):
            raise ValueError("not in this process")
        slow = HERE / "slow"
        if slow.exists() and slow.read_text() == str(os.getpid()):
            (HERE / "begun").touch()
            await trio.sleep_forever()
        late = HERE / "late"
        while late.exists() and late.read_text() != str(os.getpid()):
            (HERE / "begun").touch()
            await trio.sleep(0.05)
        task_status.started()
        await trio.sleep_forever()

    def rewrite_response(self, exchange):
        exchange.response.headers.add(b"X-Word", self.settings.word.encode())
        exchange.response.headers.add(b"X-Pid", str(os.getpid()).encode())
"""


def plugged(where: Path, target: str, word: str, **more: str) -> Path:
    """A configuration whose answers say which word it has."""
    folder = where / "plugins"
    if not folder.exists():
        folder.mkdir()
        (folder / "it.py").write_text(textwrap.dedent(PLUGIN))
    return settings(where, target, site=f", plugins: [it: {{word: {word}}}]",
                    extra=f"plugins_dir: {folder}\n" + more.pop("extra", ""), **more)  # fmt: skip


async def words(house: House, asked: int = 24, tries: int = 5) -> dict[int, str]:
    """The word that each front answers with, by its pid."""
    found: dict[int, str] = {}
    lines: list[Line] = []
    try:
        while tries and not (found and set(await house.fronts()) <= found.keys()):
            tries -= 1  # many at a time are of both fronts, unless one is busy just then
            more = [await house.line() for _ in range(asked)]
            lines += more
            for line in more:
                head, _ = await line.get()
                fields = dict(entry.split(": ", 1) for entry in head.decode().splitlines() if ": " in entry)
                assert found.setdefault(int(fields["X-Pid"]), fields["X-Word"]) == fields["X-Word"]
    finally:
        for line in lines:
            await trio.aclose_forcefully(line.stream)
    return found


async def test_a_reload_under_load_fails_nothing(tmp_path: Path) -> None:
    async with app() as it, app() as other:
        path = settings(tmp_path, it.url)
        async with serving(path) as house, trio.open_nursery() as nursery:
            load = Load(house)
            nursery.start_soon(load.run)
            for number in range(4):
                await load.until_answered(30)
                settings(tmp_path, (other, it)[number % 2].url)
                said = await house.control("POST /reload")
                assert (said["generation"], said["changed"]) == (number + 2, ["pool app changed"])
            await load.until_answered(30)
            assert load.failed == []
            nursery.cancel_scope.cancel()
            status = await house.status()
            assert [one["generation"] for one in status["fronts"]] == [5, 5]
            assert other.heads


async def test_one_no_keeps_the_old_world_everywhere(tmp_path: Path) -> None:
    async with app() as it, serving(plugged(tmp_path, it.url, "one")) as house:
        fronts = await house.fronts()
        assert await words(house) == dict.fromkeys(fronts, "one")
        for bad in fronts:
            (tmp_path / "plugins" / "bad").write_text(str(bad))
            plugged(tmp_path, it.url, "two", listen=f"http: {{port: 0}}, more: {{kind: http, port: {free_port()}}}")
            said = await house.control("POST /reload")
            assert said["errors"] == ["plugin it of the site main: ValueError: not in this process"]
            assert await words(house) == dict.fromkeys(fronts, "one")
            status = await house.status()
            assert (status["generation"], [one["generation"] for one in status["fronts"]]) == (1, [1, 1])
            assert len(status["listeners"]) == 1
        (tmp_path / "plugins" / "bad").unlink()
        said = await house.control("POST /reload")
        assert said.get("generation") == 2, said
        assert await words(house) == dict.fromkeys(fronts, "two")


async def test_a_front_that_ends_while_it_builds_refuses(tmp_path: Path) -> None:
    async with app() as it, serving(plugged(tmp_path, it.url, "one")) as house, trio.open_nursery() as nursery:
        first, second = await house.fronts()
        (tmp_path / "plugins" / "slow").write_text(str(first))
        plugged(tmp_path, it.url, "two")

        @nursery.start_soon
        async def end() -> None:
            await house.until((tmp_path / "plugins" / "begun").exists)
            await kill(first)

        assert (await house.control("POST /reload"))["errors"] == ["front 0 ended while it built it"]
        (tmp_path / "plugins" / "slow").unlink()
        assert (await words(house))[second] == "one"
        # the next one waits for the front that is being started, and is one of both
        assert (await house.control("POST /reload"))["generation"] == 2
        fronts = await house.fronts()
        assert second in fronts
        assert await words(house) == dict.fromkeys(fronts, "two"), await house.status()


async def test_control_dies_between_the_phases(tmp_path: Path) -> None:
    """Every front has what was prepared dropped by the next control, and can be asked again."""
    async with app() as it, serving(plugged(tmp_path, it.url, "one")) as house, trio.open_nursery() as nursery:
        fronts = await house.fronts()
        (tmp_path / "plugins" / "slow").write_text(str(fronts[1]))
        more = free_port()
        listen = f"http: {{port: 0}}, more: {{kind: http, port: {more}, public_port: 80}}"
        plugged(tmp_path, it.url, "two", listen=listen)

        @nursery.start_soon
        async def reload() -> None:
            with pytest.raises((OSError, EOFError, trio.BrokenResourceError, TypeError, ValueError)):
                await house.control("POST /reload")

        await house.until((tmp_path / "plugins" / "begun").exists)
        await kill(house.processes("control_process")[0])
        (tmp_path / "plugins" / "slow").unlink()
        assert (await house.status())["generation"] == 1
        assert await words(house) == dict.fromkeys(fronts, "one")
        await house.until(lambda: is_free(more))  # nobody listens there whom nobody would answer
        said = await house.control("POST /reload")
        assert said.get("generation") == 2, said
        assert await words(house) == dict.fromkeys(fronts, "two")
        assert (await house.get(port=more))[0] == 200


def is_free(port: int) -> bool:
    try:
        socket.create_server(("", port)).close()
    except OSError:
        return False
    return True


async def test_a_front_that_is_late_follows(tmp_path: Path) -> None:
    """It is started with the world before, and ready when another one has been committed.  A reload waits for it, but
    not for ever."""
    async with app() as it, serving(plugged(tmp_path, it.url, "one")) as house:
        first, second = await house.fronts()
        (tmp_path / "plugins" / "late").write_text(str(second))
        await kill(first)
        await house.until((tmp_path / "plugins" / "begun").exists)
        plugged(tmp_path, it.url, "two")
        assert (await house.control("POST /reload"))["generation"] == 2
        assert await words(house) == {second: "two"}
        (tmp_path / "plugins" / "late").unlink()
        status = await house.until_status(lambda it: [one["generation"] for one in it["fronts"]] == [2, 2])
        assert await words(house) == {one["pid"]: "two" for one in status["fronts"]}


async def test_listeners_come_and_go(tmp_path: Path) -> None:
    one, two = free_port(), free_port()
    first = f"a: {{kind: http, address: 127.0.0.1, port: {one}, public_port: 80}}"
    second = f"b: {{kind: http, address: 127.0.0.1, port: {two}, public_port: 80}}"
    async with app() as it, serving(settings(tmp_path, it.url, listen=first)) as house:
        assert await house.get(port=one) == (200, b"ok")
        settings(tmp_path, it.url, listen=f"{first}, {second}")
        assert (await house.control("POST /reload"))["changed"] == ["listener b added"]
        assert await house.get(port=two) == (200, b"ok")
        # an address that is taken: refused, and nothing of it stays
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            settings(tmp_path, it.url, listen=f"{first}, c: {{kind: http, address: 127.0.0.1, port: {port}}}")
            said = await house.control("POST /reload")
        assert said["errors"] == [f"listener c: 127.0.0.1:{port}: Address already in use (another program has it)"]
        settings(tmp_path, it.url, listen=second)
        assert (await house.control("POST /reload"))["changed"] == ["listener a removed"]
        socket.create_server(("127.0.0.1", one)).close()  # nobody has it any more, in no process
        assert await house.get(port=two) == (200, b"ok")
        for pid in await house.fronts():  # and those who come later get it as well
            await kill(pid)
        assert await house.get(port=two) == (200, b"ok")


async def test_what_was_read_once_is_not_read_again(tmp_path: Path) -> None:
    """A front that is started later serves what the others serve, whatever has become of the files."""
    async with app() as it, serving(plugged(tmp_path, it.url, "one")) as house:
        (tmp_path / "frontd.yaml").write_text("nothing: [")
        (tmp_path / "plugins" / "it.py").write_text("raise SystemExit(1)")
        for pid in await house.fronts():
            await kill(pid)
        assert set((await words(house)).values()) == {"one"}
        await kill(house.processes("control_process")[0])
        status = await house.status()
        assert (status["ready"], status["sites"][0]["plugins"][0]["name"]) == (True, "it")
        shutil.rmtree(tmp_path / "plugins")
        for pid in await house.fronts():
            await kill(pid)
        assert set((await words(house)).values()) == {"one"}


async def test_the_number_of_fronts_needs_a_restart(tmp_path: Path) -> None:
    async with app(OK) as it, serving(settings(tmp_path, it.url)) as house:
        path = settings(tmp_path, it.url)
        path.write_text(path.read_text().replace("fronts: 2", "fronts: 3"))
        said = await house.control("POST /reload")
        assert said["errors"] == ["fronts cannot be changed by a reload: restart frontd"]
        house.child.send_signal(signal.SIGHUP)
        await house.remark("reload refused, the old configuration stays: fronts cannot be changed")
        assert len(await house.fronts()) == 2


async def test_a_front_that_is_stopped_shows_in_the_status(tmp_path: Path) -> None:
    async with app() as it, serving(settings(tmp_path, it.url)) as house:
        _, second = await house.fronts()
        os.kill(second, signal.SIGSTOP)
        try:
            for _ in range(10):
                assert await house.get() == (200, b"ok")
            states = [one["state"] for one in (await house.status())["fronts"]]
            assert states == ["serving", "silent"]
        finally:
            os.kill(second, signal.SIGCONT)
        await house.until_status(lambda it: [one["state"] for one in it["fronts"]] == ["serving", "serving"])
