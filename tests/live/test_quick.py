"""What a user waits for: the help, and the first answer.  The figures are printed, since machines differ."""

from __future__ import annotations

import http.client
import os
import resource
import ssl
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.live.house import Child
from tests.wire import free_port

HELP = 0.3  # s of CPU
FIRST_ANSWER = 2.0  # s from the start of the process
TRIES = 3  # the best counts: the machine has other work too


def report(what: str, figures: list[float]) -> None:
    listed = ", ".join(f"{figure:.3f}" for figure in figures)
    print(f"{what}: best {min(figures):.3f} s of {listed}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("arguments", [["--help"], ["proxy", "--help"], ["serve", "--help"]])
def test_help_is_cheap(arguments: list[str]) -> None:
    figures = []
    for _ in range(TRIES):
        before = cpu_of_children()
        done = subprocess.run([sys.executable, "-m", "frontd", *arguments], capture_output=True, check=True)
        figures.append(cpu_of_children() - before)
        assert b"Usage: frontd" in done.stdout
    report(f"CPU of frontd {' '.join(arguments)}", figures)
    assert min(figures) <= HELP


def test_the_first_answer_of_proxy(app_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From nothing: the development CA and certificate are made on the way."""
    figures = []
    for attempt in range(TRIES):
        state = tmp_path / str(attempt)
        monkeypatch.setenv("FRONTD_STATE_DIR", str(state))
        port = free_port()
        child = Child("frontd", "proxy", "--from", f"https://localhost:{port}", "--to", app_url)
        try:
            child.wait_for("^frontd ready: ")
            context = ssl.create_default_context(cafile=state / "dev/ca.crt")
            with closing(http.client.HTTPSConnection("localhost", port, context=context, timeout=20)) as client:
                client.request("GET", "/healthz")
                response = client.getresponse()
                assert (response.status, response.read()) == (200, b"ok\n")
            figures.append(time.monotonic() - child.began)
            assert child.end() == 0
        finally:
            child.close()
    report("first HTTPS answer of frontd proxy", figures)
    assert min(figures) <= FIRST_ANSWER
