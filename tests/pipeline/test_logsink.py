"""Several processes write to one file or one pipe: real processes, whole lines, and directives once."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from frontd.config.model import LogFile
from frontd.pipeline import logsink
from frontd.pipeline.accesslog import ACCESS_FIELDS, MAX_LINE
from frontd.pipeline.logsink import Sink, directives

ROOT = Path(__file__).parents[2]
EACH = 4000  # lines of each process
WRITERS = 4

# One process that logs EACH lines as fast as it can, but never more than the buffer takes.
PROCESS = """
import os, sys, time
from frontd.config.model import LogFile
from frontd.model.messages import Client, Exchange
from frontd.pipeline import logwriter
name, each, to, format, max_size = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
logwriter.GATHER = 0.001
client = Client("203.0.113.9", 50123, "203.0.113.9", "192.0.2.1", 8080, "http", "http", 80)
settings = LogFile.model_validate({"to": to, "format": format, "max_size": max_size, "keep": 900})
log = logwriter.LogWriter(settings, LogFile(to="off"), leads=name == "0")
sys.stdin.readline()
for number in range(each):
    it = Exchange(client, None, 0.0, 0.0)
    it.site = f"{name}-{number}-" + "x" * (number * 7919 % 190)
    log.exchange(it, 0.0, 0.0)
    while len(log._access_to.lines) > 2000:
        time.sleep(0.001)
    if number == each // 2 and len(sys.argv) > 6:
        while not os.path.exists(sys.argv[6]):
            time.sleep(0.001)
        log.reopen()
log.close(60)
sys.exit(log.dropped)
"""


Running = list[subprocess.Popen[bytes]]


@contextmanager
def processes(
    to: str, format: str = "json", max_size: int = 1 << 30, *more: str, stdout: int | None = None
) -> Iterator[Running]:
    """Processes that write at the same time; all of them must end well."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(name), str(EACH), to, format, str(max_size), *more],
            stdin=subprocess.PIPE, stdout=stdout, cwd=ROOT,
        )
        for name in range(WRITERS)
    ]  # fmt: skip
    try:
        for it in running:
            assert it.stdin is not None
            it.stdin.write(b"\n")
            it.stdin.close()
        yield running
        assert [it.wait(60) for it in running] == [0] * WRITERS
    finally:
        for it in running:
            it.kill()
            it.wait()


def check(names: list[str]) -> None:
    """Every line of every process is there once."""
    found = Counter(tuple(name.split("-")[:2]) for name in names)
    assert found == Counter((str(name), str(number)) for name in range(WRITERS) for number in range(EACH))
    assert all(len(name.split("-")[2]) == int(name.split("-")[1]) * 7919 % 190 for name in names)


def check_order(names: list[str]) -> None:
    """The lines of each process are in the order in which they were logged."""
    for writer in map(str, range(WRITERS)):
        numbers = [int(name.split("-")[1]) for name in names if name.startswith(f"{writer}-")]
        assert numbers == sorted(numbers)


def read_all(fd: int) -> bytes:
    chunks = []
    while chunk := os.read(fd, 1 << 16):
        chunks.append(chunk)
    os.close(fd)
    return b"".join(chunks)


def sites(data: bytes) -> list[str]:
    return [json.loads(line)["site"] for line in data.splitlines()]


# ---------------------------------------------------------------------------------------------------- processes


def test_processes_share_a_pipe() -> None:
    """As a container's stdout is: nobody's lines are mixed, though the pipe, a small one, is full all the time."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, MAX_LINE)
    with processes("stdout", stdout=writer):
        os.close(writer)
        data = read_all(reader)
    check(sites(data))
    check_order(sites(data))


def test_processes_share_a_fifo(tmp_path: Path) -> None:
    """One that has a name is opened by each of them, and does not block; the directives are there once."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    held = os.open(path, os.O_WRONLY)  # else the end of the first process could be the end of the data
    os.set_blocking(reader, True)
    with processes(str(path), "w3c") as running:
        received = b""
        while received.count(b"\n") < WRITERS * EACH + 4:
            received += os.read(reader, 1 << 16)
        for it in running:
            it.wait(60)
    os.close(held)
    assert read_all(reader) == b""
    lines = received.decode().splitlines()
    assert sum(line.startswith("#") for line in lines) == 4
    fields = [line.split(" ") for line in lines if not line.startswith("#")]
    assert {len(values) for values in fields} == {len(ACCESS_FIELDS.split())}
    check([values[2] for values in fields])


def test_processes_share_a_file_that_rotates(tmp_path: Path) -> None:
    """Each of them notices when another one has rotated; nothing is lost, and each file begins with its directives."""
    path, max_size = tmp_path / "access.log", 65536
    with processes(str(path), "w3c", max_size):
        pass
    files = sorted(tmp_path.iterdir(), key=lambda file: -int(file.suffix[1:]) if file.suffix != ".log" else 1)
    assert len(files) > 20
    names = []
    for file in files:
        assert file.stat().st_size <= max_size * WRITERS
        lines = file.read_text().splitlines()
        assert [line.partition(" ")[0] for line in lines[:4]] == ["#Software:", "#Version:", "#Date:", "#Fields:"]
        values = [line.split(" ") for line in lines[4:]]
        assert {len(line) for line in values} <= {len(ACCESS_FIELDS.split())}
        names += [line[2] for line in values]
    check(names)
    sizes = [file.stat().st_size for file in files]
    print(f"{len(files)} files of at most {max_size} bytes: {min(sizes[:-1])} to {max(sizes)} bytes")


def test_processes_reopen_a_renamed_file(tmp_path: Path) -> None:
    """logrotate renames, then each process is told in its own time."""
    path, old = tmp_path / "access.log", tmp_path / "access.log-20260131"
    with processes(str(path), "w3c", 1 << 30, str(old)):
        while not path.exists() or path.stat().st_size < 4096:
            time.sleep(0.001)  # they are processes; a real clock has to run here
        path.rename(old)
    texts = [file.read_text().splitlines() for file in (old, path)]
    assert [sum(line.startswith("#") for line in lines) for lines in texts] == [4, 4]
    assert all(lines[0] == "#Software: frontd" for lines in texts)
    check([line.split(" ")[2] for lines in texts for line in lines[4:]])


# ---------------------------------------------------------------------------------------------------- one at a time


class Told(list[str]):
    """What a sink complained of."""

    def __call__(self, _: str, problem: str) -> None:
        self.append(problem)


@contextmanager
def sink(path: Path, format: str = "json", leads: bool = True, **more: int) -> Iterator[tuple[Sink, Told]]:
    told = Told()
    settings = LogFile.model_validate({"to": str(path), "format": format, "max_size": 65536, "keep": 3} | more)
    it = Sink("access log", settings, "a b", told, leads)
    try:
        yield it, told
    finally:
        it.close()


def test_a_file_renamed_and_made_anew_is_noticed(tmp_path: Path) -> None:
    """logrotate's `create`, or another process that has rotated."""
    path = tmp_path / "log"
    with sink(path) as (it, _):
        it.write([b"one"])
        path.rename(tmp_path / "old")
        it.write([b"two"])  # nothing else stands there: a reopening will be asked for
        path.touch()
        it.write([b"three"])
    assert ((tmp_path / "old").read_bytes(), path.read_bytes()) == (b"one\ntwo\n", b"three\n")


def test_directives_stand_once_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for number in range(3):
        with sink(path, "w3c", leads=False) as (it, _), sink(path, "w3c", leads=False) as (other, _):
            it.write([b"%d" % number])
            other.write([b"x"])
    lines = path.read_text().splitlines()
    assert lines[3:] == ["#Fields: a b", "0", "x", "1", "x", "2", "x"]


def test_a_file_with_other_fields_gets_new_directives(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(directives("a b c") + b"1 2 3\n")
    with sink(path, "w3c") as (it, _):
        it.write([b"1 2"])
    fields = [line for line in path.read_text().splitlines() if not line.startswith(("#S", "#V", "#D"))]
    assert fields == ["#Fields: a b c", "1 2 3", "#Fields: a b", "1 2"]


def test_an_emptied_file_begins_anew(tmp_path: Path) -> None:
    """logrotate's `copytruncate`."""
    path = tmp_path / "log"
    with sink(path, "w3c") as (it, _):
        it.write([b"one"])
        os.truncate(path, 0)
        it.write([b"two"])
    assert path.read_text().splitlines()[3:] == ["#Fields: a b", "two"]


@pytest.mark.parametrize("leads", [True, False])
def test_a_pipe_gets_directives_of_one_process(tmp_path: Path, leads: bool) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with sink(path, "w3c", leads) as (it, _):
        it.write([b"one"])
    assert (read_all(reader).count(b"#"), leads) in ((4, True), (0, False))


def test_a_write_to_a_pipe_is_no_longer_than_the_pipe_takes_whole() -> None:
    """The reader of a pipe in packet mode sees each write for itself."""
    reader, writer = os.pipe2(os.O_DIRECT)
    lines = [b"x" * (number * 7919 % MAX_LINE) for number in range(40)]
    it = Sink("access log", LogFile(to="stdout", format="json"), "", Told(), True)
    it._begin(writer, None)
    writes = []
    for at in range(0, len(lines), 8):
        it.write(lines[at : at + 8])
        os.set_blocking(reader, False)
        with suppress(BlockingIOError):
            while True:
                writes.append(os.read(reader, 1 << 16))
    os.close(reader)
    os.close(writer)
    assert b"".join(writes) == b"".join(line + b"\n" for line in lines)
    assert max(map(len, writes)) <= MAX_LINE
    assert all(write.endswith(b"\n") for write in writes)
    assert len(writes) < len(lines)  # short ones went together


def test_a_locked_folder_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process hangs in the middle of a rotation: lines go on, the file grows for a while."""
    monkeypatch.setattr(logsink, "PATIENCE", 0.02)
    path = tmp_path / "log"
    lines = [b"x" * 999] * 100
    with sink(path) as (it, told):
        it.write(lines[:10])
        held = os.open(tmp_path, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
        it.write(lines)
        assert (told, path.stat().st_size) == (["not rotated: its folder is locked by another process"], 110_000)
        os.close(held)
        it.write(lines)
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert sizes == {"log": 15_000, "log.1": 65_000, "log.2": 130_000}


def test_who_comes_second_does_not_rotate_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with sink(path) as (it, _), sink(path) as (other, _):
        it.write([b"x" * 999] * 60)
        other.write([b"y" * 999])
        assert it._is_current()
        other.write([b"y" * 999] * 10)  # rotates
        it._rotate()  # as if it had looked just before that
        it.write([b"x" * 999])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log", "log.1"]
    assert (tmp_path / "log").stat().st_size + (tmp_path / "log.1").stat().st_size == 72_000
