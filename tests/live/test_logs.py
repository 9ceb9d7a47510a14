"""The logs of a real front: rotation by signal, a full disk, and a reader of its stdout that sleeps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

from tests.live.house import House, front


def urls(house: House, count: int, length: int = 0) -> list[str]:
    """Arguments for curl: `count` different URLs on one connection, each `length` characters longer than need be."""
    return [word for n in range(count) for word in ("-o", "/dev/null", house.url(f"/page/{n}?{'x' * length}", "http"))]


def codes(house: House, count: int, length: int = 0) -> set[bytes]:
    return set(house.curl("-w", "%{http_code}\n", *urls(house, count, length)).stdout.split())


def test_sigusr1_reopens_the_logs(app_url: str, tmp_path: Path) -> None:
    with front(tmp_path / "state", app_url) as house:
        house.curl(house.url("/before"))
        old = house.access_log.rename(tmp_path / "access.old")
        house.child.process.send_signal(signal.SIGUSR1)
        while not house.access_log.exists():  # made at once, without waiting for a request
            house.curl(house.url("/healthz"))
        house.curl(house.url("/after"))
        assert house.child.end() == 0
    before, after = old.read_text(), house.access_log.read_text()
    # a line that waited while another front made the new file goes there; it is in one of them, and in one alone
    assert (before + after).count('"path":"/before"') == 1
    assert '"path":"/after"' not in before
    assert '"path":"/after"' in after


def test_a_full_disk_does_not_stop_traffic(app_url: str, tmp_path: Path) -> None:
    with front(tmp_path / "state", app_url, "{access: /dev/full, error: {to: /dev/full}}") as house:
        assert codes(house, 200) == {b"200"}
        asked = house.curl("--unix-socket", f"{house.state}/control.sock", "http://localhost/status")
        while (dropped := json.loads(asked.stdout)["log"]["dropped"]) < 200:
            asked = house.curl("--unix-socket", f"{house.state}/control.sock", "http://localhost/status")
        assert house.child.end() == 0
    complaints = [line for line in house.child.said if "/dev/full" in line]
    told = Counter(line.partition(" log ")[0] for line in complaints)
    # each process that writes says it once: the fronts, and control, which has no access log
    assert told.keys() == {"frontd: access", "frontd: error"}
    assert 1 <= told["frontd: access"] < told["frontd: error"]
    assert all("No space left on device" in line for line in complaints)
    assert dropped >= 200


def test_a_sleeping_reader_of_stdout_does_not_stop_traffic(app_url: str, tmp_path: Path) -> None:
    """The pipe takes 64 KiB; the lines behind them wait, and come out in order when the reader wakes up."""
    with front(tmp_path / "state", app_url, "{access: stdout}", subprocess.PIPE) as house:
        assert codes(house, 400, 300) == {b"200"}
        stdout = house.child.process.stdout
        assert stdout is not None
        lines = [json.loads(stdout.readline()) for _ in range(400)]
        assert [line["path"] for line in lines] == [f"/page/{n}" for n in range(400)]
        assert house.child.end() == 0
        assert stdout.read() == b""


def test_a_reader_of_stdout_that_went_away_does_not_stop_traffic(app_url: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with front(tmp_path / "state", app_url, "{access: stdout}", writing) as house:
            assert codes(house, 50) == {b"200"}
            assert house.child.end() == 0
    finally:
        os.close(writing)
    assert [line for line in house.child.said if "Broken pipe" in line]
