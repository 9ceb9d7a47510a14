"""New fronts from the code on the disk take the place of the old ones, and no client notices."""

from __future__ import annotations

import json
import shutil
import signal
import textwrap
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from frontd import __version__
from frontd.cli.root import cli
from frontd.processes.channel import PROTOCOL
from tests.processes.house import House, Load, family, has_ended, kill, serving, settings
from tests.processes.test_workers import workers, written
from tests.scenarios.test_control_api import told
from tests.wire import Line, app

PLUGIN = """
import os
from pathlib import Path
import frontd
import trio
HERE = Path(__file__).parent
WORD = "one"

class It(frontd.Plugin):
    name = "it"

    async def run(self, *, task_status):
        while (HERE / "hold").exists():
            (HERE / f"held {os.getpid()}").touch()
            await trio.sleep(0.05)
        if (HERE / "few").exists():
            (HERE / "few").rename(HERE / f"used by {os.getpid()}")
            raise ValueError("not here as well")
        task_status.started()
        await trio.sleep_forever()

    def rewrite_response(self, exchange):
        exchange.response.headers.add(b"X-Word", WORD.encode())
"""


HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Plugs:
    """The folder of a plugin whose file changes; `hold` keeps new fronts from being ready."""

    def __init__(self, where: Path) -> None:
        self.folder = where / "plugins"
        self.folder.mkdir()
        self.file = self.folder / "it.py"
        self.says("one")

    def says(self, word: str) -> None:
        self.file.write_text(textwrap.dedent(PLUGIN).replace('"one"', f'"{word}"'))

    @property
    def hold(self) -> Path:
        return self.folder / "hold"

    def held(self) -> list[int]:
        return [int(path.name.split()[1]) for path in self.folder.glob("held *")]

    def settings(self, where: Path, target: str, **more: str) -> Path:
        more["extra"] = f"plugins_dir: {self.folder}\n" + more.get("extra", "")
        return settings(where, target, site=", plugins: [it]", **more)


async def word(house: House) -> str:
    """What an answer says on a connection of its own."""
    line = await house.line()
    head, _ = await line.get("/", "Connection: close")
    await trio.aclose_forcefully(line.stream)
    return head.split(b"X-Word: ")[1].split(b"\r\n")[0].decode()


def pids(rows: list[dict[str, Any]]) -> list[int]:
    return [row["pid"] for row in rows]


def indexes(rows: list[dict[str, Any]]) -> list[int]:
    return [row["index"] for row in rows]


class Keeping:
    """Clients that keep their connections as long as they may; whatever is not answered is in `failed`."""

    def __init__(self, house: House, clients: int = 8) -> None:
        self.house = house
        self.clients = clients
        self.answered = self.connections = 0
        self.failed: list[str] = []

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(self.clients):
                nursery.start_soon(self._client)

    async def _client(self) -> None:
        while True:
            line = await self.house.line()
            self.connections += 1
            try:
                while True:
                    head, body = await line.get()
                    if not head.startswith(b"HTTP/1.1 200 ") or body != b"ok":
                        self.failed.append(f"{head!r} {body!r}")
                        break
                    self.answered += 1
                    if b"onnection: close" in head:
                        break
                    await trio.sleep(0.01)  # an idle moment, in which the connection may be ended
            except (trio.BrokenResourceError, EOFError) as error:
                self.failed.append(repr(error))
            finally:
                await trio.aclose_forcefully(line.stream)


async def test_two_upgrades_in_a_row_lose_no_request(tmp_path: Path) -> None:
    plugs = Plugs(tmp_path)
    async with app() as it, serving(plugs.settings(tmp_path, it.url)) as house, trio.open_nursery() as nursery:
        load, keeping = Load(house, 1), Keeping(house, 4)
        nursery.start_soon(load.run)
        nursery.start_soon(keeping.run)
        seen = [await house.fronts()]
        for number, said in ((2, "two"), (3, "three")):
            plugs.says(said)
            warnings = (await house.control("POST /reload"))["warnings"]
            assert f"plugin file {plugs.file} has changed on disk: 'frontd upgrade' loads it" in warnings
            assert await word(house) == {2: "one", 3: "two"}[number]  # a reload does not load it
            done = await house.control("POST /upgrade")
            assert done.get("errors") is None
            assert list(told("POST", "/upgrade", 200, "application/json", json.dumps(done).encode())) == []
            assert (done["generation"], done["plugins"]) == (2 * number - 1, [str(plugs.file)])
            assert pids(done["draining"]) == seen[-1]
            status = await house.until_status(lambda it: len(it["fronts"]) == 2)
            assert (pids(status["fronts"]), status["generation"]) == (pids(done["fronts"]), 2 * number - 1)
            assert indexes(status["fronts"]) == {2: [2, 3], 3: [0, 1]}[number]
            seen.append(pids(done["fronts"]))
            assert await word(house) == said
            await load.until_answered(20)
        assert len({pid for some in seen for pid in some}) == 6
        assert (load.failed, keeping.failed) == ([], [])
        assert keeping.answered > 50
        assert keeping.clients * 3 <= keeping.connections  # all of them were told to connect anew, twice
        nursery.cancel_scope.cancel()


async def test_what_runs_on_an_old_front_runs_to_its_end(tmp_path: Path) -> None:
    """A request that the app still has, and a tunnel; an app that takes one request at a time is not given two."""
    free, asked = trio.Event(), 0

    async def script(line: Line) -> None:
        nonlocal asked
        while head := await line.head():
            if b"Upgrade: websocket" in head:
                await line.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                                b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")  # fmt: skip
                while data := await line.read():
                    await line.send(data)
            asked += 1
            if b"/slow" in head:
                await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlo")
                await free.wait()
                await line.send(b"ng")
            else:
                await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with app(script) as it:
        path = settings(tmp_path, it.url)
        text = path.read_text().replace("routes: {/: app}", "routes: {/: app, /ws: open}")
        text = text.replace(f'app: {{targets: ["{it.url}"]}}', f'app: {{targets: ["{it.url}"], concurrency: 1}}, '
                            f'open: {{targets: ["{it.url}"]}}')  # fmt: skip
        path.write_text(text)
        async with serving(path) as house:
            slow, tunnel = await house.line(), await house.line()
            await slow.send(b"GET /slow HTTP/1.1\r\nHost: a.test\r\n\r\n")
            assert (await slow.read_until(b"lo"))[-2:] == b"lo"
            await tunnel.send(HANDSHAKE)
            assert (await tunnel.head()).startswith(b"HTTP/1.1 101 ")
            before = await house.fronts()
            done = await house.control("POST /upgrade")
            assert done.get("errors") is None
            status = await house.status()
            busy = [one for one in status["fronts"] if one["state"] == "draining"]
            assert busy
            assert set(pids(busy)) <= set(before)
            assert [one["pid"] for one in status["fronts"] if one["state"] == "serving"] == pids(done["fronts"])
            again = await house.control("POST /upgrade")
            assert "fronts of the upgrade before still drain: front " in again["errors"][0]
            assert list(told("POST", "/upgrade", 409, "application/json", json.dumps(again).encode())) == []
            assert (await house.control("POST /reload"))["generation"] == 3  # of the new ones alone
            async with trio.open_nursery() as nursery:
                answers: list[tuple[int, bytes]] = []

                @nursery.start_soon
                async def ask() -> None:
                    answers.append(await house.get())

                await house.until_status(lambda it: it["pools"][0]["queue"]["length"] == 1)
                assert asked == 1  # the permit is an old front's
                await tunnel.send(b"still here")
                assert await tunnel.read_exactly(10) == b"still here"
                free.set()
                assert await slow.read_exactly(2) == b"ng"
            assert answers == [(200, b"ok")]
            await tunnel.close()
            await slow.close()
            await house.until_status(lambda it: len(it["fronts"]) == 2)
            assert "which was draining after an upgrade, has ended (exit code 0)" in await house.remark("ended (exit")


async def test_whatever_goes_wrong_the_old_fronts_serve_on(tmp_path: Path) -> None:
    plugs = Plugs(tmp_path)
    async with app() as it, serving(plugs.settings(tmp_path, it.url)) as house, trio.open_nursery() as nursery:
        load = Load(house, 1)
        nursery.start_soon(load.run)
        before = await house.fronts()

        async def refused() -> str:
            (said,) = (await house.control("POST /upgrade"))["errors"]
            assert (await house.until_status(lambda it: len(it["fronts"]) == 2))["generation"] == 1
            assert await word(house) == "one"
            assert isinstance(said, str)
            body = json.dumps({"errors": [said]}).encode()
            assert list(told("POST", "/upgrade", 422, "application/json", body)) == []
            return said

        plugs.file.write_text("def broken(:\n")
        said = await refused()
        assert f"{plugs.file}:1: " in said
        assert "upgrade refused, the old fronts serve on: " in await house.remark("upgrade refused")

        plugs.says("two")
        (plugs.folder / "few").touch()  # for one of two
        assert await refused() == "plugin it of the site main: ValueError: not here as well"

        path = tmp_path / "frontd.yaml"
        text = path.read_text()
        path.write_text(text.replace("fronts: 2", "fronts: 3"))
        assert await refused() == "fronts cannot be changed by an upgrade: restart frontd"
        path.write_text(text)

        # in the middle: a second one, and a new front that is killed
        plugs.hold.touch()
        errors: list[str] = []

        @nursery.start_soon
        async def upgrade() -> None:
            errors.append(await refused())

        await house.until(lambda: len(plugs.held()) == 2)
        states = [one["state"] for one in (await house.status())["fronts"]]
        assert states == ["serving", "serving", "starting", "starting"]
        assert (await house.control("POST /upgrade"))["errors"] == ["an upgrade is under way"]
        victim = plugs.held()[0]
        await kill(victim)
        await house.until(lambda: bool(errors))
        assert f"(pid {victim}) ended while it started (SIGKILL)" in errors[0]
        assert await house.fronts() == before
        assert load.failed == []
        nursery.cancel_scope.cancel()


async def test_whoever_dies_in_the_middle(tmp_path: Path) -> None:
    plugs = Plugs(tmp_path)
    async with app() as it, serving(plugs.settings(tmp_path, it.url)) as house, trio.open_nursery() as nursery:
        before = await house.fronts()
        plugs.says("two")
        plugs.hold.touch()
        nursery.start_soon(quietly, house)
        await house.until(lambda: len(plugs.held()) == 2)
        await kill(house.processes("control_process")[0])
        for pid in plugs.held():
            await has_ended(pid)
            (plugs.folder / f"held {pid}").unlink()
        assert pids((await house.status())["fronts"]) == before
        assert await word(house) == "one"

        house.child.send_signal(signal.SIGUSR2)
        await house.until(lambda: len(plugs.held()) == 2)
        await kill(before[0])  # it is replaced by one with the old world, which then drains with the other
        plugs.hold.unlink()
        await house.remark("upgraded: generation 2: fronts 2, 3 serve")
        status = await house.until_status(lambda it: len(it["fronts"]) == 2)
        assert {*pids(status["fronts"])} <= {*plugs.held()}
        assert await word(house) == "two"
        await kill(status["fronts"][0]["pid"])  # what comes after it is of the new world
        await house.until_status(
            lambda it: [one["state"] for one in it["fronts"]] == ["serving"] * 2
            and pids(it["fronts"]) != pids(status["fronts"])
        )
        assert await word(house) == "two"

        plugs.hold.touch()  # and the end of everything, in the middle
        held = plugs.held()
        nursery.start_soon(insistently, house)
        await house.until(lambda: len(plugs.held()) == len(held) + 2)
        children = list(family(house.child.pid))
        assert len(children) == 5
        house.child.terminate()
        assert await house.end() == 0
        for pid in children:
            await has_ended(pid)
        nursery.cancel_scope.cancel()


async def insistently(house: House) -> None:
    """`quietly`, again and again while it is not the time for it."""
    while True:
        await quietly(house)
        await trio.sleep(0.1)


async def quietly(house: House) -> None:
    """An upgrade whose caller is not answered."""
    try:
        await house.control("POST /upgrade")
    except (OSError, EOFError, trio.BrokenResourceError, TypeError, ValueError):
        return


def frontd(house: House, *words: str) -> Any:
    """The outcome of a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRONTD_CONTROL", str(house.where / "control.sock"))
        return CliRunner().invoke(cli, words)


async def test_another_version_of_frontd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package on the disk is replaced while it runs, as pip does it."""
    package = shutil.copytree(Path(__file__).parents[2] / "frontd", tmp_path / "site" / "frontd",
                              ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # not from the current directory
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")

    def replace(name: str, old: str, new: str) -> None:
        text = (package / name).read_text()
        assert old in text
        (package / name).write_text(text.replace(old, new))

    async with app() as it, serving(settings(tmp_path, it.url)) as house:
        old = await house.fronts()
        replace("__init__.py", f'__version__ = "{__version__}"', '__version__ = "9.8.7"')
        done = await trio.to_thread.run_sync(frontd, house, "upgrade", "--wait")
        assert done.exit_code == 0, done.output
        status = await house.status()
        assert (status["version"], len(status["fronts"])) == ("9.8.7", 2)
        new = pids(status["fronts"])
        assert done.stdout.splitlines() == [
            "upgraded, generation 2",
            f"  front 2 (pid {new[0]}) serves",
            f"  front 3 (pid {new[1]}) serves",
            f"  front 0 (pid {old[0]}) drains, for 8.0 s at most",
            f"  front 1 (pid {old[1]}) drains, for 8.0 s at most",
        ]
        for line in [f"front {at + 2} (pid {pid}): serving" for at, pid in enumerate(new)]:
            assert line in done.stderr
        for line in [f"front {at} (pid {pid}): ended" for at, pid in enumerate(old)]:
            assert line in done.stderr
        assert "control has been started with the code of frontd 9.8.7" in await house.remark("9.8.7")

        replace("processes/channel.py", f"PROTOCOL = {PROTOCOL}", "PROTOCOL = 99")
        done = await trio.to_thread.run_sync(frontd, house, "upgrade")
        assert done.exit_code == 3
        why = f"the code on the disk speaks protocol 99, the master that runs {PROTOCOL}: restart frontd"
        assert why in done.output
        assert "not upgraded; the fronts from before serve on" in done.output
        assert pids((await house.status())["fronts"]) == new
        await kill(new[0])  # one that comes now cannot serve, and says so; the other one does
        await house.remark(f"front 2 cannot start: {why}")
        assert await house.get() == (200, b"ok")

        replace("processes/reading_process.py", "def main() -> None:", "def main() -> None:\n    raise SystemExit(7)")
        (error,) = (await house.control("POST /upgrade"))["errors"]
        assert error == "the code on the disk cannot read the configuration (exit code 7)"


async def test_workers_live_on_and_are_replaced_where_their_settings_are_others(tmp_path: Path) -> None:
    """Three pools: of one the settings change, one stays as it is, one is gone.  No request is lost meanwhile."""
    path = written(tmp_path, "count: 1\n      start: always", fronts=1)
    text, pool = path.read_text(), path.read_text().partition("pools:\n")[2]
    text += pool.replace("app:", "same:", 1)
    text = text.replace("routes: {/: app}", "routes: {/: app, /same/: same, /gone/: gone}")
    path.write_text(text + pool.replace("app:", "gone:", 1))
    async with serving(path) as house, trio.open_nursery() as nursery:

        async def worker(path: str) -> int:
            return int((await house.get(path))[1].split()[0])

        app, same, gone = [await worker(path) for path in ("/", "/same/", "/gone/")]
        answers: list[int] = []

        @nursery.start_soon
        async def ask() -> None:
            while True:
                answers.append((await house.get())[0])
                await trio.sleep(0.02)

        text = text.replace(", /gone/: gone", "").replace("environment: {", "environment: {COLOUR: blue, ", 1)
        path.write_text(text)
        assert (await house.control("POST /upgrade")).get("errors") is None
        await has_ended(gone)
        await has_ended(app)
        assert (await house.get())[1].endswith(b" blue")
        assert await worker("/same/") == same
        assert len(workers(house)) == 2
        assert set(answers) == {200}
        nursery.cancel_scope.cancel()
