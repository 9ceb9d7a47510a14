"""Plugins that run beside the requests, and plugins that cannot be made or started."""

from __future__ import annotations

import textwrap
import threading
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

import frontd
from frontd import Exchange, Plugin, Response
from frontd.config.load import ConfigProblems
from frontd.processes import plugins as processes
from frontd.processes.front import Front
from frontd.processes.runtime import BuildProblem, only_problem
from tests.scenarios.plugged import PluginClass, made, of, plugged, reload, text, told
from tests.wire import app, configuration, front, settled

Status = trio.TaskStatus[None]


class Worker(frontd.Plugin):
    """Notes when it runs; `mood` says what becomes of it."""

    name = "worker"
    notes: list[str] = []

    class Settings(frontd.Settings):
        label: str = "a"
        mood: str = "fine"

    def prepare(self) -> None:
        if self.settings.mood == "not made":
            raise ValueError(f"{self.settings.label} cannot serve")
        if self.settings.mood == "broken":
            raise KeyError(self.settings.label)

    async def run(self, *, task_status: Status) -> None:
        label, mood = self.settings.label, self.settings.mood
        self.notes.append(f"{label} begins")
        if mood == "not started":
            raise RuntimeError("no keys")
        if mood == "hangs":
            await trio.sleep_forever()
        if mood == "ends":
            return
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            self.notes.append(f"{label} ends")

    def filter_request(self, exchange: Exchange) -> Response:
        return Response(200, text=self.settings.label)


@pytest.fixture(autouse=True)
def nothing_noted() -> None:
    Worker.notes.clear()


def workers(*settings: str) -> str:
    return text("http://127.0.0.1:1", [f"worker: {{{one}}}" for one in settings])


async def refused(tmp_path: Path, *settings: str) -> str:
    """Why a front with these workers does not begin to serve."""
    it = Front.open(configuration(workers(*settings), tmp_path, of(Worker)))
    try:
        await it.run()
    except BaseExceptionGroup as group:
        found = only_problem(group)
        assert found is not None
        return str(found)
    finally:
        it.service.log.close()
    return "it served"


# ---------------------------------------------------------------------------------------------------- start


async def test_it_runs_before_the_first_request_and_until_the_end(tmp_path: Path) -> None:
    """Once for each instance of the front, in their order."""
    async with front(workers("label: a", "label: b", "label: b"), tmp_path, of(Worker)) as stage:
        assert Worker.notes == ["a begins", "b begins", "b begins"]
        assert (await (await stage.connect()).get())[1] == b"a"
        assert len(Worker.notes) == 3
    assert sorted(Worker.notes[3:]) == ["a ends", "b ends", "b ends"]


async def test_nothing_is_served_before_it_says_so(tmp_path: Path) -> None:
    ready = trio.Event()

    async def run(self: Plugin, *, task_status: Status) -> None:
        await ready.wait()
        task_status.started()
        task_status.started()  # twice does no harm

    slow = made("slow", run=run)
    it = Front.open(configuration(text("http://127.0.0.1:1", [slow]), tmp_path, of(slow)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.run)
        await settled()
        states = [it.is_ready]
        ready.set()
        await settled()
        assert [*states, it.is_ready] == [False, True]
        nursery.cancel_scope.cancel()
    it.service.log.close()


async def test_one_that_has_nothing_more_to_do(tmp_path: Path) -> None:
    async with front(workers("mood: ends"), tmp_path, of(Worker)) as stage:
        await settled()
        assert Worker.notes == ["a begins"]
        assert (await (await stage.connect()).get())[1] == b"a"


async def test_one_that_cannot_start(tmp_path: Path) -> None:
    assert await refused(tmp_path, "label: a", "label: b, mood: not started") == (
        "plugin worker of the site main: RuntimeError: no keys"
    )
    assert Worker.notes == ["a begins", "b begins", "a ends"]


async def test_one_that_does_not_get_ready(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    before = trio.current_time()
    said = await refused(tmp_path, "mood: hangs")
    assert said == "plugin worker of the site main: it was not ready within 30 s"
    assert trio.current_time() - before == pytest.approx(30)


async def test_one_that_fails_is_started_again(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """After a second, two, four, … and never more than a minute later; requests do not notice."""
    began: list[float] = []

    async def run(self: Plugin, *, task_status: Status) -> None:
        began.append(trio.current_time())
        task_status.started()
        if len(began) == 10:
            await trio.sleep(61)  # after a good while it begins with a second again
        raise RuntimeError("lost the keys")

    async with app() as it, plugged(tmp_path, it.url, made("loses", run=run)) as stage:
        line = await stage.connect()
        for _ in range(6):
            assert (await line.get())[1] == b"ok"
            await trio.sleep(61)
        pauses = [after - before for before, after in pairwise(began)]
        assert pauses[:11] == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60, 62, 2], abs=0.01)
        assert "plugin loses: run: RuntimeError: lost the keys" in await told(stage)


@pytest.mark.parametrize(
    ("mood", "said"),
    [("not made", "plugin worker of the site main: a cannot serve"),
     ("broken", r"plugin worker of the site main \(.*test_plugin_running.py:\d+\): KeyError: 'a'")],
)  # fmt: skip
def test_one_that_cannot_be_made(tmp_path: Path, mood: str, said: str) -> None:
    with pytest.raises(BuildProblem, match=f"^{said}$"):
        Front.open(configuration(workers(f"mood: {mood}"), tmp_path, of(Worker)))


# ---------------------------------------------------------------------------------------------------- reload


async def test_a_reload_starts_the_new_and_then_ends_the_old(tmp_path: Path) -> None:
    async with front(workers("label: a", "label: b"), tmp_path, of(Worker)) as stage:
        assert (await reload(stage, workers("label: b", "label: c"), Worker)).errors == []
        await settled()
        assert Worker.notes == ["a begins", "b begins", "c begins", "a ends"]
        assert (await (await stage.connect()).get())[1] == b"b"


async def test_one_that_does_not_end_quietly(tmp_path: Path) -> None:
    """What it raises on its way out is in the log, and it is not started again."""

    async def run(self: Plugin, *, task_status: Status) -> None:
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            raise RuntimeError("cannot let go")

    loud = made("loud", run=run)
    async with app() as it, plugged(tmp_path, it.url, loud) as stage:
        assert (await reload(stage, text(it.url, []))).ok
        await settled()
        assert (await (await stage.connect()).get())[1] == b"ok"
        assert (await told(stage)).count("RuntimeError: cannot let go") == 1


@pytest.mark.parametrize(
    ("mood", "said"),
    [("not made", "c cannot serve"), ("broken", "KeyError: 'c'"), ("not started", "RuntimeError: no keys"),
     ("hangs", "it was not ready within 0.05 s")],
)  # fmt: skip
async def test_a_reload_that_fails_keeps_the_old_world(
    tmp_path: Path, mood: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every instance of it, running as before; what was begun for the new one has ended."""
    monkeypatch.setattr(processes, "START_TIME", 0.05)
    async with front(workers("label: a"), tmp_path, of(Worker)) as stage:
        world = stage.front.service.world
        report = await reload(stage, workers("label: a", "label: b", f"label: c, mood: {mood}"), Worker)
        (error,) = report.errors
        assert said in error
        assert "plugin worker of the site main" in error
        await settled()
        assert stage.front.service.world is world
        assert "a ends" not in Worker.notes
        assert Worker.notes.count("b begins") == Worker.notes.count("b ends")
        assert (await (await stage.connect()).get())[1] == b"a"
        assert (await reload(stage, workers("label: d"), Worker)).ok
        assert (await (await stage.connect()).get())[1] == b"d"


# ---------------------------------------------------------------------------------------------------- files

FILE = """
import frontd

class Mark(frontd.Plugin):
    name = "mark"

    def rewrite_response(self, exchange):
        exchange.response.headers.set("X-Mark", "1")
"""


def written(folder: Path, **files: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, source in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(source))


async def test_a_plugin_is_dropped_in_as_a_file(tmp_path: Path) -> None:
    """A reload finds a new file; a broken one is told with its line, and mended it is loaded."""
    folder = tmp_path / "plugins"
    written(folder, mark=FILE)
    dropped_in = "plugins_dir: plugins"
    async with app() as it, front(text(it.url, ["mark"], extra=dropped_in), tmp_path) as stage:
        line = await stage.connect()
        assert b"\r\nX-Mark: 1\r\n" in (await line.get())[0]
        both = text(it.url, ["mark", "other"], extra=dropped_in)
        written(folder, other=FILE.replace("mark", "other").replace("Mark", "Other").replace("rewrite_r", "rewrite-r"))
        report = await stage.front.reload(lambda: configuration(both, tmp_path))
        assert report.errors == [
            f"frontd.yaml:8:14: plugins_dir: {folder}/other.py:7: expected '('\n  | plugins_dir: plugins\n"
            "  |              ^^^^^^^"
        ]
        assert b"\r\nX-Mark: 1\r\n" in (await line.get())[0]
        written(folder, other=FILE.replace("mark", "other").replace("Mark", "Other"))
        assert (await stage.front.reload(lambda: configuration(both, tmp_path))).errors == []
        head, _ = await line.get()
        assert b"\r\nX-Mark: 1\r\n" in head
        assert b"\r\nX-Other: 1\r\n" in head


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("plugins_dir: nowhere", "plugins_dir: {}/nowhere: No such file or directory"),
        ("plugins_dir: [a]", "plugins_dir: one value is expected, not a list"),
        ("", "sites.main.plugins[0]: there is no plugin 'mark'"),
    ],
)
def test_no_such_file(tmp_path: Path, extra: str, said: str) -> None:
    with pytest.raises(ConfigProblems) as caught:
        configuration(text("http://127.0.0.1:1", ["mark"], extra=extra), tmp_path)
    assert said.format(tmp_path) in str(caught.value)


# ---------------------------------------------------------------------------------------------------- threads


async def test_a_client_does_not_wait_for_a_thread_it_has_left(tmp_path: Path) -> None:
    """The thread runs on by itself; its exchange is over."""
    entered, go = trio.Event(), threading.Event()
    ended: list[str] = []

    class Slow(frontd.Plugin):
        name = "slow"

        @frontd.blocking
        def filter_request(self, exchange: Exchange) -> None:
            trio.from_thread.run_sync(entered.set)
            go.wait(10)

        def log(self, exchange: Exchange) -> None:
            ended.append(exchange.reason.word if exchange.reason else "")

    plugin: PluginClass = Slow
    async with app() as it, plugged(tmp_path, it.url, plugin) as stage:
        line = await stage.connect()
        await line.send(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await entered.wait()
        await line.close()
        await settled()
        assert ended == ["Client_Reset"]
        go.set()
