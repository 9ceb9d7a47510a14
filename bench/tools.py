"""The tools of the benchmark: which are here, how wrk and h2load are called, what their output says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# What each tool comes with in Debian.
PACKAGES = {"nginx": "nginx-light", "haproxy": "haproxy", "wrk": "wrk", "h2load": "nghttp2-client"}


class ToolError(Exception):
    """A tool failed or said something that cannot be read."""


@dataclass(frozen=True)
class Load:
    """What a load tool saw."""

    requests: int  # answered
    seconds: float
    errors: int  # answers other than 2xx and 3xx, and errors of sockets
    detail: str = ""  # which errors

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds if self.seconds else 0.0


def find(tool: str) -> str | None:
    """The path of a tool; /usr/sbin is searched too, where Debian puts servers."""
    return shutil.which(tool, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


def missing(tools: Sequence[str]) -> list[str]:
    """Those that are not here, each with its package."""
    return [f"{tool} (package {PACKAGES[tool]})" for tool in tools if find(tool) is None]


def wrk(
    url: str,
    cores: Iterable[int],
    seconds: float,
    connections: int = 64,
    fields: Sequence[str] = (),
    script: Path | None = None,
) -> Load:
    """Run wrk with a thread for each of these cores.

    Raises:
        ToolError: wrk ended with an error.
    """
    tool = find("wrk")
    if tool is None:
        raise ToolError("wrk is not here")
    cores = set(cores)
    command = [f"-t{len(cores)}", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s"]
    for one in fields:
        command += ["-H", one]
    if script is not None:
        command += ["-s", str(script)]
    return parse_wrk(output([tool, *command, url], cores, seconds + 30))


def parse_wrk(text: str) -> Load:
    """The counts in the output of wrk.

    Raises:
        ToolError: the line with the number of requests is missing.
    """
    total = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m|h)\b", text)
    if total is None:
        raise ToolError(f"wrk said: {text.strip()[-300:]}")
    seconds = float(total[2]) * {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}[total[3]]
    errors, detail = 0, []
    if bad := re.search(r"Non-2xx or 3xx responses: (\d+)", text):
        errors += int(bad[1])
        detail.append(f"{bad[1]} not 2xx")
    if sockets := re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text):
        for what, count in zip(("connect", "read", "write", "timeout"), sockets.groups(), strict=True):
            errors += int(count)
            if int(count):
                detail.append(f"{count} {what} errors")
    return Load(int(total[1]), seconds, errors, ", ".join(detail))


def output(command: Sequence[str], cores: set[int], wait: float) -> str:
    """What a command prints, run on these cores.

    Raises:
        ToolError: it failed, or did not end in `wait` s.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=wait,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{Path(command[0]).name} did not end") from error
    if done.returncode:
        raise ToolError(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


# ---------------------------------------------------------------------------------------------------- latency


STAGGER = 7  # ms; no divisor of the steps that come up


@dataclass(frozen=True)
class Latency:
    """Times of answers in us at a fixed rate."""

    p50: float
    p99: float
    count: int
    errors: int
    rate: float  # reached, 1/s


def h2load_at_rate(url: str, core: int, seconds: float, rate: float, connections: int, log: Path) -> Latency:
    """Ask at `rate` requests per second in all, HTTP/1.1, and read the log.

    The connections begin `STAGGER` ms after each other: h2load lets each of them ask at equal steps from its
    beginning, and all at once would be a burst at every step.

    Raises:
        ToolError: h2load ended with an error.
    """
    tool = find("h2load")
    if tool is None:
        raise ToolError("h2load is not here")
    log.unlink(missing_ok=True)  # it appends
    count = round(rate * seconds / connections) * connections
    command = [tool, "--h1", f"-c{connections}", "-n", str(count), f"--rps={rate / connections:g}"]
    command += ["-r1", f"--rate-period={STAGGER}ms", f"--log-file={log}", url]
    output(command, {core}, seconds + 30)
    return parse_h2load_log(log.read_text(), (connections + 1) * STAGGER / 1000)


def parse_h2load_log(text: str, margin: float) -> Latency:
    """Percentiles of a log of h2load: start in us, status (-1: failed), us until the end of the answer.

    `margin` s at the begin and at the end do not count but for errors: there not all connections take part.

    Raises:
        ToolError: there is no line.
    """
    rows = [tuple(map(int, line.split("\t")[:3])) for line in text.splitlines() if line.strip()]
    if not rows:
        raise ToolError("h2load logged nothing")
    begin = min(row[0] for row in rows) + margin * 1e6
    end = max(row[0] for row in rows) - margin * 1e6
    kept = sorted(row[2] for row in rows if begin <= row[0] <= end and row[1] > 0)
    errors = sum(not 200 <= row[1] < 400 for row in rows)
    if not kept or end <= begin:
        return Latency(0.0, 0.0, 0, errors, 0.0)
    return Latency(percentile(kept, 50), percentile(kept, 99), len(kept), errors, len(kept) / (end - begin) * 1e6)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the sorted values lie, interpolated."""
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
