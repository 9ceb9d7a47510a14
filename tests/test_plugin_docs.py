"""What the pages about plugins say is what the program does.

Tutorials are followed as a reader would: files are written and commands run in the order of the page.  Signatures and
attributes are compared with the code, examples of hooks are asked, and each bundled plugin has its section.
"""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

import frontd
from frontd.cli.root import cli
from frontd.model.messages import Body, TlsInfo
from frontd.pipeline import discovery
from frontd.pipeline.discovery import examine, installed_words
from frontd.pipeline.phases import SPECS
from frontd.testing import site
from tests.test_docs import DOCS, ROOT, fenced, files_of, first_cells, section

HOOKS = DOCS / "hooks.md"
EXCHANGE = DOCS / "exchange.md"
BUNDLED = DOCS / "bundled-plugins.md"

# ---------------------------------------------------------------------------------------------------- tutorials

TUTORIALS = ("write-an-auth-plugin.md", "write-a-filter-plugin.md")
_STEP = re.compile(r"<!-- file: (\S+) -->\n```\w*\n(.*?)^```$|^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Step(NamedTuple):
    """One block of a tutorial: a file to write, or (`name` empty) commands to run."""

    name: str
    text: str


def steps(page: str) -> list[Step]:
    return [Step(found[1] or "", found[2] or found[3]) for found in _STEP.finditer(page)]


def follow(page: str, folder: Path) -> list[str]:
    """Do in `folder` what `page` says; returns the commands.  Raises `AssertionError` for one that fails."""
    done = []
    for step in steps(page):
        if step.name:
            path = folder / step.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text)
            continue
        for line in step.text.splitlines():
            run(shlex.split(line, comments=True), folder)
            done.append(line)
    return done


def run(words: list[str], folder: Path) -> None:
    """Run pytest in a process of its own, as a reader does; frontd in this one, where `folder` is the directory."""
    if words[0] == "frontd":
        result = CliRunner().invoke(cli, words[1:])
        assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}"
        return
    assert words[0] == "pytest", f"a tutorial runs pytest and frontd, not {words[0]}"
    quiet = ["-q", "-W", "error", "-p", "no:cacheprovider"]
    done = subprocess.run([sys.executable, "-m", *words, *quiet], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with a state directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRONTD_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("FRONTD_CONFIG", raising=False)
    return tmp_path


@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_can_be_followed(page: str, desk: Path) -> None:
    commands = follow((DOCS / page).read_text(), desk)
    assert sum(line.startswith("pytest") for line in commands) >= 3
    assert "frontd check" in commands


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("<!-- file: test_a.py -->\n```python\ndef test_a(): assert 1 == 2\n```\n```bash\npytest\n```\n", "1 == 2"),
        ("<!-- file: frontd.yaml -->\n```yaml\nsites: {}\n```\n```bash\nfrontd check\n```\n", "frontd check"),
        ("```bash\nrm -r x\n```\n", "not rm"),
    ],
)
def test_a_tutorial_that_does_not_work_is_noticed(page: str, says: str, desk: Path) -> None:
    with pytest.raises(AssertionError, match=re.escape(says)):
        follow(page, desk)


def test_the_classes_of_the_api_sketch_are_what_the_tutorials_end_with(desk: Path) -> None:
    """Each plugin that a tutorial leaves behind can be armed, and what it says of itself is in `frontd plugins`."""
    follow("".join(f"{step}" for step in ()), desk)
    for page in TUTORIALS:
        for step in steps((DOCS / page).read_text()):
            if step.name.startswith("plugins/") and not Path(step.name).name.startswith("test_"):
                (desk / "plugins").mkdir(exist_ok=True)
                (desk / step.name).write_text(step.text)
    found = discovery.Discovery().everything(desk / "plugins")
    assert found.faults == ()
    assert {"company_token", "remembering_token", "no_bots", "no_scripts", "slow_pages"} <= found.kinds.keys()
