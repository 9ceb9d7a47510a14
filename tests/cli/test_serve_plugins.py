"""`frontd serve` with a plugin of its own making: what its process says on stderr.  Everything real."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from frontd.cli.children import spawn, stop
from frontd.cli.root import cli

CONFIG = """
plugins_dir: plugins
state_dir: state
control: {socket: control.sock}
listen: {http: {port: 0}}
sites: {a: {urls: ["http://*/"], plugins: [it], routes: {/: http://127.0.0.1:9}}}
"""


def files(folder: Path, source: str) -> Path:
    (folder / "plugins").mkdir()
    (folder / "plugins" / "it.py").write_text("import frontd\nimport trio\n" + textwrap.dedent(source))
    (folder / "frontd.yaml").write_text(CONFIG)
    return folder / "frontd.yaml"


@contextmanager
def serving(config: Path) -> Iterator[Iterator[str]]:
    """The lines on stderr of a front that serves `config`."""
    with started(config) as (_, lines):
        yield lines


@contextmanager
def started(config: Path) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[str]]]:
    """A front that serves `config`, or is about to, and its lines on stderr."""
    process = spawn(
        [sys.executable, "-m", "frontd", "serve", "-c", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        yield process, (line.decode() for line in process.stderr)
    finally:
        stop([process], grace=0)
        process.stderr.close()


def test_a_plugin_that_blocks_before_anything_is_served_is_named(tmp_path: Path) -> None:
    source = """
    import threading
    class It(frontd.Plugin):
        name = "it"
        async def run(self, *, task_status):
            while True:
                threading.Event().wait(1)
    """
    with serving(files(tmp_path, source)) as lines:
        assert "plugin it.run blocks the loop" in next(line for line in lines if "#Remark" in line)


def test_a_file_that_has_changed_is_told(tmp_path: Path) -> None:
    config = files(tmp_path, "class It(frontd.Plugin):\n    name = 'it'\n")
    with serving(config) as lines:
        assert any("frontd ready" in line for line in lines)
        file = tmp_path / "plugins" / "it.py"
        file.write_text(file.read_text() + "# changed\n")
        told = next(line for line in lines if "changed" in line)
        assert f"{file} has changed on disk: 'frontd upgrade' loads it" in told
        socket_path = ["--socket", str(tmp_path / "control.sock")]
        said = CliRunner().invoke(cli, ["reload", *socket_path])
        assert f"plugin file {file} has changed on disk: 'frontd upgrade' loads it" in said.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_does_not_end_can_be_ended(tmp_path: Path, number: int) -> None:
    source = """
    import sys
    class It(frontd.Plugin):
        name = "it"
        async def run(self, *, task_status):
            print("it waits", file=sys.stderr, flush=True)
            await trio.sleep_forever()
    """
    with started(files(tmp_path, source)) as (process, lines):
        assert any("it waits" in line for line in lines)
        process.send_signal(number)
        assert process.wait(10) == 0


def test_calls_are_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
    class It(frontd.Plugin):
        name = "it"
        async def filter_request(self, exchange):
            return frontd.Response(200, text="secret")
        def log(self, exchange):
            return None
    """
    monkeypatch.setenv("FRONTD_TRACE_PLUGINS", "1")
    with serving(files(tmp_path, source)) as lines:
        ready = next(line for line in lines if "frontd ready" in line)
        port = re.search(r":(\d+) ", ready)
        assert port is not None
        with socket.create_connection(("127.0.0.1", int(port[1])), 10) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            while sock.recv(4096):
                pass
        traced = [next(line for line in lines if line.startswith("trace:")) for _ in range(2)]
    assert re.fullmatch(r"trace: a: request \d+ it.filter_request \d+ us waited -> Response\n", traced[0])
    assert re.fullmatch(r"trace: a: request \d+ it.log \d+ us -> None\n", traced[1])
