"""The writer of the logs with real files, pipes and full disks: nothing blocks, nothing is lost uncounted."""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from frontd.config.model import LogFile
from frontd.model.errors import Reason
from frontd.model.messages import Client, Exchange
from frontd.pipeline.accesslog import ACCESS_FIELDS, ERROR_FIELDS, MAX_LINE
from frontd.pipeline.logwriter import BUFFERED, OVERHEAD, LogWriter

OFF = LogFile(to="off")
CLIENT = Client("203.0.113.9", 50123, "203.0.113.9", "192.0.2.1", 8080, "http", "http", 80)


def to(path: Path | str, format: str = "json", max_size: int = 65536, keep: int = 3) -> LogFile:
    """Settings of a log; sizes in bytes."""
    return LogFile.model_validate({"to": str(path), "format": format, "max_size": max_size, "keep": keep})


def exchange(name: str = "", reason: Reason | None = None) -> Exchange:
    """An exchange that can be told from others by its site."""
    it = Exchange(CLIENT, None, 0.0, 0.0)
    it.site, it.reason = name, reason
    return it


@contextmanager
def writer(access: LogFile = OFF, error: LogFile = OFF) -> Iterator[LogWriter]:
    it = LogWriter(access, error)
    try:
        yield it
    finally:
        it.close(30)


def wait_until(path: Path, *, is_written: bool = False) -> None:
    """Until a file is there, or has something in it; the writer is a thread, so a real clock has to run here."""
    for _ in range(4000):
        if path.exists() and (path.stat().st_size or not is_written):
            return
        time.sleep(0.005)
    raise AssertionError(f"{path} never came")


def sites(*paths: Path) -> list[str]:
    return [json.loads(line)["site"] for path in paths for line in path.read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------- files


def test_both_logs_with_their_directives(tmp_path: Path) -> None:
    access, error = tmp_path / "new" / "access.log", tmp_path / "error.log"
    with writer(to(access, "w3c"), to(error, "w3c")) as log:
        log.remark("hello there")
        log.exchange(exchange("one"), 0.5, 0.0)
        log.exchange(exchange("two", Reason.QueueFull), 0.5, 0.0)
        log.connection(CLIENT, Reason.Timer_HeaderWait, "why not")
    lines = access.read_text().splitlines()
    assert lines[:2] == ["#Software: frontd", "#Version: 1.0"]
    assert lines[2].startswith("#Date: 20")
    assert lines[3] == f"#Fields: {ACCESS_FIELDS}"
    assert [line.split(" ")[:3] for line in lines[4:]] == [
        ["1970-01-01", "00:00:00", "one"],
        ["1970-01-01", "00:00:00", "two"],
    ]
    lines = error.read_text().splitlines()
    assert lines[3] == f"#Fields: {ERROR_FIELDS}"
    assert lines[4].startswith("#Remark: ")
    assert lines[4].endswith(" hello there")
    assert [line.split(" ")[11] for line in lines[5:]] == ["QueueFull", "Timer_HeaderWait"]
    assert lines[6].endswith(" why+not")
    assert log.dropped == 0


def test_an_error_log_in_json(tmp_path: Path) -> None:
    with writer(error=to(tmp_path / "error.log")) as log:
        log.remark("hello there")
        log.exchange(exchange("one"), 0.0, 0.0)
        log.exchange(exchange("two", Reason.QueueFull), 0.0, 0.0)
    lines = [json.loads(line) for line in (tmp_path / "error.log").read_text().splitlines()]
    assert [line.get("remark", line.get("reason")) for line in lines] == ["hello there", "QueueFull"]


def test_off_writes_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with writer() as log:
        log.remark("hello")
        log.exchange(exchange("one", Reason.QueueFull), 0.0, 0.0)
        log.connection(CLIENT, Reason.QueueFull, "")
    assert (list(tmp_path.iterdir()), capfd.readouterr(), log.dropped) == ([], ("", ""), 0)


def test_standard_streams(capfd: pytest.CaptureFixture[str]) -> None:
    with writer(to("stdout"), to("stderr", "w3c")) as log:
        log.exchange(exchange("one", Reason.QueueFull), 0.0, 0.0)
    out, err = capfd.readouterr()
    assert json.loads(out)["site"] == "one"
    assert err.startswith("#Software: frontd\n")
    assert err.splitlines()[4].split(" ")[11] == "QueueFull"


def test_a_closed_standard_stream_is_nobody_elses(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python says None where the process was started with the stream closed; its number may be a client's socket."""
    monkeypatch.setattr(sys, "__stdout__", None)
    with writer(to("stdout")) as log:
        log.exchange(exchange("one"), 0.0, 0.0)
    assert log.dropped == 1
    assert capfd.readouterr() == ("", "frontd: access log stdout: stdout is closed; 0 lines lost so far\n")


def test_a_long_remark_is_cut_between_characters(tmp_path: Path) -> None:
    with writer(error=to(tmp_path / "error.log", "w3c")) as log:
        log.remark("é" * 5000)
        log.remark("next")
    lines = (tmp_path / "error.log").read_bytes().splitlines()
    assert MAX_LINE - 2 <= len(lines[4]) < MAX_LINE
    assert lines[4].decode().endswith("é")
    assert lines[5].endswith(b" next")


# ---------------------------------------------------------------------------------------------------- rotation


def test_rotation_by_size(tmp_path: Path) -> None:
    """Every file within its size, the oldest gone, and no line torn, lost or twice."""
    path = tmp_path / "access.log"
    line = 450  # bytes, roughly
    with writer(to(path, keep=3)) as log:
        for number in range(4 * 65536 // line + 100):
            log.exchange(exchange(f"site{number:06d}"), 0.0, 0.0)
    files = [tmp_path / f"access.log{end}" for end in (".3", ".2", ".1", "")]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    sizes = [file.stat().st_size for file in files]
    assert all(65536 - 2 * line < size <= 65536 for size in sizes[:3])
    assert 0 < sizes[3] <= 65536
    found = sites(*files)
    last = 4 * 65536 // line + 99
    assert found == [f"site{number:06d}" for number in range(last - len(found) + 1, last + 1)]
    assert log.dropped == 0


def test_a_rotated_file_begins_with_its_directives(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with writer(to(path, "w3c")) as log:
        for number in range(700):
            log.exchange(exchange(f"site{number}" + "x" * 150), 0.0, 0.0)
    for file in (path, tmp_path / "access.log.1"):
        assert file.read_text().startswith("#Software: frontd\n#Version: 1.0\n#Date: ")


def test_a_file_that_stands_is_continued_and_its_size_counts(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text("x" * 65000 + "\n")
    with writer(to(path)) as log:
        log.exchange(exchange("one"), 0.0, 0.0)
        log.exchange(exchange("two"), 0.0, 0.0)
    assert sites(path) == ["two"]
    assert (tmp_path / "access.log.1").read_text().splitlines()[0] == "x" * 65000
    assert (tmp_path / "access.log.1").stat().st_size <= 65536


def test_a_link_is_never_renamed(tmp_path: Path) -> None:
    """``to: /dev/stdout`` is a link, ``/dev/null`` a device: renaming them would break the machine."""
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with writer(to(tmp_path / "link")) as log:
        for _ in range(300):
            log.exchange(exchange("one"), 0.0, 0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
    assert (tmp_path / "link").is_symlink()
    assert len(sites(tmp_path / "real")) == 300


def test_a_file_that_cannot_be_renamed_is_written_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "access.log"
    (tmp_path / "access.log.1").mkdir()
    (tmp_path / "access.log.1" / "full").touch()
    with writer(to(path, keep=1)) as log:
        for _ in range(500):
            log.exchange(exchange("one"), 0.0, 0.0)
    assert len(sites(path)) == 500
    assert log.dropped == 0
    err = capfd.readouterr().err
    assert err == f"frontd: access log {path}: not rotated: Is a directory; 0 lines lost so far\n"


def test_reopen_makes_a_file_at_once(tmp_path: Path) -> None:
    """logrotate's order: rename, signal, and whoever waits for the new file finds it without a request."""
    path, old = tmp_path / "access.log", tmp_path / "access.log-20260131"
    with writer(to(path)) as log:
        log.exchange(exchange("one"), 0.0, 0.0)
        wait_until(path, is_written=True)  # a file that is renamed while it is being opened is opened anew
        path.rename(old)
        log.exchange(exchange("two"), 0.0, 0.0)
        log.reopen()
        wait_until(path)
        log.exchange(exchange("three"), 0.0, 0.0)
    assert (sites(old), sites(path)) == (["one", "two"], ["three"])


def test_a_change_of_place_keeps_the_order_and_the_count(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with writer(to(first), to("/dev/full")) as log:
        log.exchange(exchange("one", Reason.QueueFull), 0.0, 0.0)
        log.change(to(second), OFF)
        log.exchange(exchange("two", Reason.QueueFull), 0.0, 0.0)
        log.change(to(second), to(tmp_path / "error"))
        log.exchange(exchange("three", Reason.QueueFull), 0.0, 0.0)
    assert (sites(first), sites(second), sites(tmp_path / "error")) == (["one"], ["two", "three"], ["three"])
    assert log.dropped == 1
    capfd.readouterr()


# ---------------------------------------------------------------------------------------------------- bad days


def test_a_full_disk_is_counted_and_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    with writer(to("/dev/full"), to("/dev/full", "w3c")) as log:
        for _ in range(3000):  # more than one batch
            log.exchange(exchange("one"), 0.0, 0.0)
        log.remark("hello")
    assert log.dropped == 3001
    access, error = sorted(capfd.readouterr().err.splitlines())
    assert access.startswith("frontd: access log /dev/full: No space left on device; ")
    assert error.startswith("frontd: error log /dev/full: No space left on device; ")


def test_a_torn_line_spoils_no_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The kernel takes a part of a write when the disk fills up (here: at the limit of a file's size)."""
    path = tmp_path / "access.log"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    settings = to(path, max_size=1 << 20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with writer(settings) as log:
            for number in range(200):
                log.exchange(exchange(f"site{number}"), 0.0, 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.stat().st_size == 50_000
    with writer(settings) as other:
        other.exchange(exchange("after"), 0.0, 0.0)
    lines = path.read_text().splitlines()
    assert json.loads(lines[-1])["site"] == "after"
    assert [json.loads(line)["site"] for line in lines[:-2]] == [f"site{n}" for n in range(len(lines) - 2)]
    assert 0 < len(lines[-2]) < len(lines[0])  # the torn one
    assert log.dropped == 200 - (len(lines) - 2)
    assert "File too large" in capfd.readouterr().err


def test_a_path_that_cannot_be_opened_is_told_before_the_first_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with writer(to(tmp_path / "file" / "access.log")):
        pass
    assert capfd.readouterr().err == (
        f"frontd: access log {tmp_path}/file/access.log: Not a directory; 0 lines lost so far\n"
    )


def test_a_pipe_that_nobody_reads_is_no_wait(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with writer(to(tmp_path / "pipe")) as log:
        log.exchange(exchange("one"), 0.0, 0.0)
    assert log.dropped == 1
    assert "No such device or address" in capfd.readouterr().err


def test_a_stuck_pipe_blocks_nobody_and_every_line_is_accounted_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The reader of a pipe sleeps: the buffer fills up to its bound, the rest is counted; then the reader wakes up."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    received = b""
    with writer(to(tmp_path / "pipe")) as log:
        name = "x" * 3000
        fits = BUFFERED // (3000 + OVERHEAD)
        total = fits + 1000
        began = time.monotonic()
        for number in range(total):
            log.exchange(exchange(f"{number}-{name}"), 0.0, 0.0)
        seconds = time.monotonic() - began
        dropped = log.dropped
        assert 900 < dropped <= 1000 + fits * 0.2  # the lines are a bit longer than their names
        os.set_blocking(reader, True)
        while received.count(b"\n") < total - dropped:
            received += os.read(reader, 1 << 20)
        log.exchange(exchange("after"), 0.0, 0.0)
        while b'"after"' not in received:
            received += os.read(reader, 1 << 20)
    os.close(reader)
    print(f"{total} lines of 3.4 KB into a stuck pipe: {seconds:.2f} s, {dropped} dropped")
    assert seconds < 10
    lines = [json.loads(line)["site"].partition("-")[0] for line in received.splitlines()]
    assert lines == [*map(str, range(total - dropped)), "after"]
    assert log.dropped == dropped
    assert capfd.readouterr().err == f"frontd: log buffer: it was full; {dropped} lines lost so far\n"


async def test_remarks_of_threads_and_lines_of_the_loop_lose_nothing(tmp_path: Path) -> None:
    """Plugins remark from threads; each line is counted in and out exactly once."""
    writer = LogWriter(LogFile(to=tmp_path / "access.log"), LogFile(to=tmp_path / "error.log", format="w3c"))

    def remark(number: int) -> None:
        for count in range(2000):
            writer.remark(f"{number} {count}")

    threads = [threading.Thread(target=remark, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    lines = [line for line in (tmp_path / "error.log").read_text().splitlines() if line.startswith("#Remark")]
    assert len(lines) == 8000
    assert (writer.dropped, writer._bytes_in + writer._remarked) == (0, writer._bytes_out)
