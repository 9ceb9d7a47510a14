"""`frontd top` on a terminal of its own (pty(7)), and where there is none."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from frontd.cli.frames import Sample, cut, page, sample_of
from frontd.cli.root import cli
from frontd.cli.screen import ENTER, LEAVE
from tests.scenarios.test_control import SITE, Desk, desk
from tests.wire import app, one_pool

# A session of its own, whose terminal is the one it was given: then Ctrl-C is a signal, as for a shell.
LEADER = "import os, sys, fcntl, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"  # noqa: E501


class Terminal:
    """A terminal with `frontd top` on it; `seen` is what it was sent."""

    def __init__(self, fd: int, child: subprocess.Popen[bytes]) -> None:
        self.fd, self.child = fd, child
        self.seen = ""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    async def until(self, mark: str, after: int = 0) -> str:
        """Read until `mark` was sent, at `after` or behind."""
        with trio.fail_after(20):
            while mark not in self.seen[after:]:
                await trio.lowlevel.wait_readable(self.fd)
                self.seen += os.read(self.fd, 65536).decode()
        return self.seen

    @property
    def pages(self) -> list[list[str]]:
        """The pages that were drawn whole, without what steers the terminal."""
        whole = self.seen.partition(ENTER)[2].partition(LEAVE)[0].split("\x1b[H")[1:]
        return [re.sub("\x1b\\[[0-9]*[A-Za-z]", "", one).split("\r\n") for one in whole if one.endswith("\x1b[J")]

    async def press(self, keys: bytes) -> int:
        """Exit code after `keys`; the terminal is as it was before."""
        os.write(self.fd, keys)
        return await self.end()

    async def end(self) -> int:
        await self.until(LEAVE)
        with trio.fail_after(10):
            return await trio.to_thread.run_sync(self.child.wait, abandon_on_cancel=True)


@asynccontextmanager
async def terminal(it: Desk, columns: int = 100, lines: int = 30) -> AsyncIterator[Terminal]:
    ours, theirs = os.openpty()
    words = [sys.executable, "-m", "frontd", "top", "--interval", "100ms", "--socket", str(it.path)]
    found: Terminal | None = None
    try:
        before = termios.tcgetattr(theirs)
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
        words = [sys.executable, "-c", LEADER, *words]
        child = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs)  # noqa: ASYNC220 - it is quick
        found = Terminal(ours, child)
        yield found
        assert termios.tcgetattr(theirs) == before
    finally:
        if found is not None and found.child.poll() is None:
            found.child.kill()
            found.child.wait()
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("key", [b"q", b"Q", b"\x03"])
async def test_pools_and_fronts_until_somebody_has_seen_enough(tmp_path: Path, key: bytes) -> None:
    async with app() as other, desk(one_pool(other.url), tmp_path) as it, terminal(it) as tty:
        await tty.until("q quits")
        line = await it.stage.connect()
        assert (await line.get())[0].startswith(b"HTTP/1.1 200 ")
        await line.close()
        for _ in range(4):
            await tty.until("\x1b[J", len(tty.seen))
        assert await tty.press(key) == 0
        first, last = tty.pages[0], tty.pages[-1]
        assert first[0].startswith("frontd   1 front   0 connections   - requests/s")
        assert first[2].split() == ["POOL", "QUEUE", "OLDEST", "ACTIVE", "REQ/S", "5XX/S", "REFUSED/S", "BY", "REASON"]
        assert first[3].split() == ["app", "0", "0.0", "s", "0", "-", "-", "-"]
        assert last[3].split()[:5] == ["app", "0", "0.0", "s", "0"]
        assert last[6].split()[:3] == ["0", str(os.getpid()), "serving"]
        rates = [entry[3].split()[5] for entry in tty.pages]
        assert any(rate not in ("-", "0.0") for rate in rates), rates
        assert ENTER in tty.seen
        assert tty.seen.rstrip().endswith(LEAVE) or key == b"\x03"


async def test_a_terminal_may_become_as_small_as_it_likes(tmp_path: Path) -> None:
    many = "".join(f"  pool{number}: {{targets: ['http://127.0.0.1:1']}}\n" for number in range(40))
    async with desk(SITE + many, tmp_path) as it, terminal(it, 100, 30) as tty:
        await tty.until("more")
        for columns, lines in ((40, 12), (7, 3), (1, 1), (200, 80)):
            drawn = len(tty.seen)
            tty.resize(columns, lines)
            await tty.until("\x1b[J", drawn)
            await tty.until("\x1b[J", len(tty.seen))  # whatever was on its way: this one is of the new size
            await tty.until("\x1b[J", len(tty.seen))
            shown = tty.pages[-1]
            assert len(shown) <= lines, (columns, lines)
            assert max(map(len, shown)) <= columns, (columns, lines)
        assert any(line.startswith("pool39 ") for line in tty.pages[-1])
        assert await tty.press(b"q") == 0


async def test_it_goes_on_when_frontd_is_away_for_a_while(tmp_path: Path) -> None:
    async with desk(SITE, tmp_path) as it, terminal(it) as tty:
        await tty.until("q quits")
        away = it.path.with_suffix(".away")
        it.path.rename(away)
        await tty.until("no contact with frontd on")
        assert "app" in tty.pages[-1][3]
        away.rename(it.path)
        drawn = len(tty.seen)
        with trio.fail_after(10):
            while "no contact" in tty.pages[-1][0]:
                await tty.until("\x1b[J", len(tty.seen))
        assert len(tty.seen) > drawn
        tty.child.send_signal(signal.SIGTERM)
        assert await tty.end() == 128 + signal.SIGTERM


async def test_where_there_is_no_terminal_it_prints(tmp_path: Path) -> None:
    async with desk(SITE, tmp_path) as it:
        words = ["top", "-n", "2", "--interval", "100ms", "--socket", str(it.path)]
        result = await trio.to_thread.run_sync(partial(CliRunner().invoke, cli, words))
        assert result.exit_code == 0
        assert result.output.count("POOL ") == 2
        assert "\x1b" not in result.output
        first, second = result.output.split("\n\nfrontd ")
        assert " - requests/s" in first
        assert " 0.0 requests/s" in second


@pytest.mark.parametrize("words", [["--interval", "0s"], ["--interval", "soon"], ["-n", "0"]])
def test_nonsense(words: list[str]) -> None:
    assert CliRunner().invoke(cli, ["top", *words]).exit_code == 2


def test_without_a_frontd(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["top", "--socket", str(tmp_path / "none")])
    assert (result.exit_code, "no contact" in result.output) == (4, True)


# ---------------------------------------------------------------------------------------------------- the page


Queues = dict[str, dict[int, dict[str, Any]]]  # by name and front


def sample(at: float, *fronts: dict[str, Any], queues: Queues | None = None) -> Sample:
    """An answer of ``GET /counters``."""
    nothing: dict[str, Any] = {"size": 0, "oldest": 0.0, "served": 0, "5xx": 0, "reasons": {}}
    rows = []
    for name, each in (queues or {}).items():
        parts = [{"index": index, **nothing, **one} for index, one in each.items()]
        reasons = {word: 0 for part in parts for word in part["reasons"]}
        row = {**nothing, "name": name, "active": 0, "reasons": reasons, "fronts": parts}
        rows.append({**row, "size": sum(part["size"] for part in parts)})
    return sample_of(at, {"connections": 0, "fronts": list(fronts), "request_queues": rows})


def one_front(index: int, pid: int, requests: int = 0, cpu: float = 0.0, state: str = "serving") -> dict[str, Any]:
    return {
        "index": index, "pid": pid, "state": state, "requests": requests, "cpu": cpu, "memory": 1 << 20,
        "connections": 0,
    }  # fmt: skip


def lines_of(now: Sample, before: Sample | None, height: int | None = None) -> list[list[str]]:
    return [line.split() for line in page(now, before, height).lines]


def test_rates_are_what_was_counted_between_two_samples() -> None:
    before = sample(
        10, one_front(0, 100, 50, 1.0), one_front(1, 101, 70, 2.0),
        queues={"app": {0: {"served": 5}, 1: {"served": 7, "reasons": {"QueueFull": 1}}}},
    )  # fmt: skip
    now = sample(
        12, one_front(0, 100, 60, 2.0), one_front(1, 101, 70, 2.5),
        queues={"app": {0: {"served": 9, "5xx": 3}, 1: {"served": 7, "reasons": {"QueueFull": 4, "AppOffline": 1}}}},
    )  # fmt: skip
    lines = lines_of(now, before)
    told = [" ".join(line) for line in lines]
    assert told[0] == "frontd 2 fronts 0 connections 5.0 requests/s 1.5 5xx/s"
    assert told[3] == "app 0 0.0 s 0 2.0 1.5 AppOffline 0.5, QueueFull 1.5"
    assert told[6:8] == ["0 100 serving 50.0 1.0 MiB 0 5.0", "1 101 serving 25.0 1.0 MiB 0 0.0"]


def test_a_replaced_front_begins_at_nothing_and_a_silent_one_does_not_jump() -> None:
    before = sample(10, one_front(0, 100, 5000), one_front(1, 101, state="silent"))
    now = sample(11, one_front(0, 102, 3), one_front(1, 101, 1_000_000))
    assert [line[-1] for line in lines_of(now, before)[5:]] == ["3.0", "0.0"]
    assert lines_of(now, now)[5][-1] == "-"  # no time has passed


def test_the_busiest_come_first() -> None:
    names: Queues = {"idle": {0: {}}, "full": {0: {"size": 2}}, "busy": {0: {"served": 9}}}
    before = sample(0, one_front(0, 1), queues={name: {0: {}} for name in names})
    found = lines_of(sample(1, one_front(0, 1), queues=names), before)
    assert [line[0] for line in found[3:6]] == ["full", "busy", "idle"]


@pytest.mark.parametrize("height", range(1, 30))
def test_both_tables_have_their_place(height: int) -> None:
    fronts = [one_front(index, 100 + index) for index in range(16)]
    now = sample(0, *fronts, queues={f"p{number}": {0: {}} for number in range(20)})
    lines = page(now, None, height).lines
    assert len(lines) <= max(height, 10)
    assert sum(line.startswith("…") for line in lines) == 2


def test_what_is_left_out_is_counted() -> None:
    assert cut([[1, 1], [2, 2], [3, 3]], 2) == [[1, 1], ["… and 2 more", ""]]
    assert cut([[1, 1], [2, 2]], 2) == [[1, 1], [2, 2]]
