"""Plugins with which `frontd serve` cannot serve: said in a sentence with the place, and not as a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = """import frontd


class Hello(frontd.Plugin):
    name = "hello"

    def filter_request(self, exchange):
        return frontd.Response(200, text="hello")
"""
RUN = """
    async def run(self, *, task_status):
        raise RuntimeError("no keys")
"""
PREPARE = """
    def prepare(self):
        raise ValueError("no keys")
"""
CONFIG = """
listen: {http: {port: 0}}
plugins_dir: plugins
state_dir: state
control: {socket: c.sock}
sites: {web: {urls: ["http://*/"], plugins: [hello], routes: {/: http://127.0.0.1:1}}}
"""


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        (PLUGIN + RUN, "cannot be served: plugin hello of the site web: RuntimeError: no keys"),
        (PLUGIN + PREPARE, "cannot be served: plugin hello of the site web: no keys"),
        ("import frontd\n1 +\n", "plugins/hello.py:2: invalid syntax"),
        ("import nonsense\n", "plugins/hello.py:1: ModuleNotFoundError: No module named 'nonsense'"),
        ("import sys\nsys.exit(0)\n", "plugins/hello.py:2: SystemExit: 0"),
        (PLUGIN.replace("filter_request", "filter_requests"), "plugins/hello.py:7: Hello.filter_requests is "),
    ],
    ids=["run", "prepare", "syntax", "import", "exit", "hook"],
)
def test_why_it_does_not_serve(tmp_path: Path, plugin: str, said: str) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "hello.py").write_text(plugin)
    (tmp_path / "frontd.yaml").write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, "-m", "frontd", "serve", "-c", str(tmp_path / "frontd.yaml")],
        capture_output=True, text=True, check=False, timeout=20, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
