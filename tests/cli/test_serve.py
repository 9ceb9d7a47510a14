"""`serve` and `proxy` as processes, with the verbs that ask them: everything real, on free ports."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from frontd.cli import devca
from frontd.cli.children import spawn, stop
from frontd.cli.proxy import answers
from frontd.cli.root import cli


@pytest.fixture
def app() -> Iterator[int]:
    """The port of a running sample app."""
    process = spawn(
        [sys.executable, "-m", "frontd.cli.sample_app", "--port", "0", "--name", "it"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    port = int(process.stdout.readline().decode().rpartition(":")[2])
    yield port
    stop([process])


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Front:
    """`frontd` with arguments, as a child; `words` are its lines on stderr up to the one that says it is ready."""

    def __init__(self, *arguments: str) -> None:
        self.began = time.monotonic()
        self.process = spawn(
            [sys.executable, "-m", "frontd", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert self.process.stderr is not None
        self.words: list[str] = []
        for raw in self.process.stderr:
            self.words.append(raw.decode().rstrip())
            if "ready" in self.words[-1]:
                break
        # nobody reads the rest but this thread, so that the pipe never fills
        self.rest = threading.Thread(target=self.process.stderr.read)
        self.rest.start()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(10)
        self.close()
        return code

    def close(self) -> None:
        stop([self.process], grace=0)
        self.rest.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


def get(port: int, ca: Path, path: str = "/") -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection(
        "localhost", port, context=ssl.create_default_context(cafile=str(ca)), timeout=10
    )
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_proxy_answers_within_two_seconds(app: int, free_port: int, state_dir: Path) -> None:
    front = Front("proxy", "--from", f"https://localhost:{free_port}", "--to", f"127.0.0.1:{app}")
    try:
        assert "frontd ready: " in front.words[-1], front.words
        assert f":{free_port}" in front.words[-1]
        ca = state_dir / "dev" / "ca.crt"
        assert any(f"curl --cacert {ca} https://localhost:{free_port}/" in line for line in front.words)
        status, body = get(free_port, ca)
        assert time.monotonic() - front.began < 2
        assert status == 200
        assert b"'it'" in body
        assert f"Host: localhost:{free_port}".encode() in body
        assert front.end() == 0
    finally:
        front.close()


def test_what_proxy_prints_serve_runs(app: int, free_port: int, state_dir: Path, tmp_path: Path) -> None:
    arguments = ["--from", f"https://localhost:{free_port}", "--to", str(app), "--print-config"]
    printed = CliRunner().invoke(cli, ["proxy", *arguments]).stdout
    (tmp_path / "frontd.yaml").write_text(printed)
    front = Front("serve", "-c", str(tmp_path / "frontd.yaml"))
    try:
        assert get(free_port, state_dir / "dev" / "ca.crt")[0] == 200
        assert front.end(signal.SIGINT) == 0
    finally:
        front.close()


def test_the_verbs_against_a_real_front(app: int, free_port: int, state_dir: Path, tmp_path: Path) -> None:
    made = devca.ensure(state_dir)
    file, control = tmp_path / "frontd.yaml", tmp_path / "control.sock"

    def write(routes: str) -> None:
        file.write_text(
            f"listen: {{https: {free_port}}}\n"
            f"tls: {{certificates: [{{cert: {made.cert}, key: {made.key}}}]}}\n"
            f"sites:\n  web:\n    urls: ['https://localhost:{free_port}/']\n    routes: {routes}\n"
            f"control: {{socket: {control}}}\n"
            "log: {access: stdout}\n"
            "timeouts: {drain: 1s}\n"
        )

    def ask(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, [*arguments, "--socket", str(control)])
        return result.exit_code, result.output

    write(f"{{/: 'http://127.0.0.1:{app}'}}")
    front = Front("serve", "-c", str(file))
    try:
        assert answers(control)
        assert ask("healthcheck") == (0, "ready\n")
        assert get(free_port, made.ca)[0] == 200
        code, text = ask("status")
        assert code == 0
        assert "serving" in text
        assert f"http://127.0.0.1:{app}" in text
        code, text = ask("explain", f"https://localhost:{free_port}/x")
        assert code == 0
        assert text.endswith(f"→ forwarded to http://127.0.0.1:{app} as /x\n")
        code, text = ask("show", "config", "live")
        assert code == 0
        assert "routes:" in text
        write("{/: nowhere}")
        code, text = ask("reload")
        assert code == 3
        assert "there is no pool" in text
        assert get(free_port, made.ca)[0] == 200
        assert "failed" in ask("status")[1]
        write(f"{{/: 'http://127.0.0.1:{app}', /new/: {{redirect: 'https://localhost/x'}}}}")
        code, text = ask("reload")
        assert code == 0, text
        assert "site web" in text
        assert get(free_port, made.ca, "/new/")[0] == 308
        assert front.end() == 0
    finally:
        front.close()
    assert ask("healthcheck")[0] == 4


def test_a_port_that_is_taken_is_a_runtime_error(free_port: int, state_dir: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        file = tmp_path / "frontd.yaml"
        file.write_text(
            f"listen: {{http: '127.0.0.1:{free_port}'}}\n"
            f"sites: {{web: {{urls: ['http://localhost:{free_port}/'], routes: {{/: 'http://127.0.0.1:1'}}}}}}\n"
        )
        done = subprocess.run(
            [sys.executable, "-m", "frontd", "serve", "-c", str(file)],
            capture_output=True, text=True, check=False, timeout=20, env=dict(os.environ),
        )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(free_port) in done.stderr
