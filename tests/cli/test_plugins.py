"""`frontd plugins` and `frontd plugin new`: what is listed is what is asked, and what is written works at once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from frontd.cli.plugin_new import KINDS, class_name, plugin
from frontd.cli.plugins import plugins
from frontd.config import places
from frontd.pipeline.discovery import installed_words
from frontd.pipeline.phases import SPECS
from frontd.testing import site

ROOT = Path(__file__).parent.parent.parent
MARKERS = """
import frontd

class First(frontd.Plugin):
    name = "first"
    def filter_request(self, exchange): exchange.request.headers.add("X-Asked", self.name)
    def log(self, exchange): pass

class Second(frontd.Plugin):
    name = "second"
    def filter_request(self, exchange): exchange.request.headers.add("X-Asked", self.name)

class Doorman(frontd.Plugin):
    name = "doorman"
    def accept_client(self, client): return None
    def filter_request(self, exchange): exchange.request.headers.add("X-Asked", self.name)

class Unused(frontd.Plugin):
    name = "unused"
    def authorize(self, exchange): return None
"""
CONFIG = """
plugins_dir: plugins
plugins: [doorman]
sites:
  shop:
    urls: ["http://shop.test/"]
    plugins: [second, first, second]
    routes: {/: "http://app:80"}
  api:
    urls: ["http://api.test/"]
    plugins: [first]
    routes: {/: "http://app:80"}
"""


@pytest.fixture(autouse=True)
def _here(state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "SYSTEM_CONFIG", tmp_path / "none.yaml")
    (tmp_path / "plugins").mkdir()


@pytest.fixture
def armed(tmp_path: Path) -> Path:
    """A configuration with plugins of its own; returns their file."""
    file = tmp_path / "plugins" / "mine.py"
    file.write_text(MARKERS)
    (tmp_path / "frontd.yaml").write_text(CONFIG)
    return file


def listed(runner: CliRunner, *arguments: str) -> list[dict[str, Any]]:
    """What `plugins --json` says."""
    result = runner.invoke(plugins, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


# ---------------------------------------------------------------------------------------------------- the lists


def test_without_a_configuration_the_plugins_of_packages_are_listed(runner: CliRunner) -> None:
    result = runner.invoke(plugins)
    assert result.exit_code == 0, result.output
    heads, *rows = result.stdout.splitlines()
    assert heads.split() == ["PLUGIN", "FROM", "HOOKS"]
    assert [row.split()[0] for row in rows] == sorted(installed_words())
    assert {row.split()[1] for row in rows} == {"bundled"}


def test_the_list_says_where_plugins_come_from_and_where_they_stand(runner: CliRunner, armed: Path) -> None:
    result = runner.invoke(plugins)
    assert result.exit_code == 0, result.output
    heads, *rows = result.stdout.splitlines()
    assert heads.split() == ["PLUGIN", "FROM", "HOOKS", "ON"]
    by_name = {row.split()[0]: [cell.strip() for cell in row.split("   ") if cell.strip()] for row in rows}
    assert by_name["first"] == ["first", f"{armed}:4", "filter_request, log", "shop, api"]
    assert by_name["second"][3] == "shop (2)"
    assert by_name["doorman"][2:] == ["accept_client, filter_request", "every site"]
    assert by_name["unused"][3] == "-"
    assert by_name["basic"][1] == "bundled"


def test_the_list_as_json(runner: CliRunner, armed: Path) -> None:
    facts = {one["plugin"]: one for one in listed(runner)}
    assert facts["second"] == {
        "plugin": "second", "from": f"{armed}:9", "hooks": ["filter_request"], "sites": ["shop", "shop"]
    }  # fmt: skip
    assert facts["doorman"]["sites"] == ["every site"]


def test_hooks_are_listed_in_the_order_of_a_requests_life(runner: CliRunner, armed: Path) -> None:
    facts = listed(runner, "--hooks")
    assert [one["hook"] for one in facts] == list(SPECS)
    by_name = {one["hook"]: one for one in facts}
    assert by_name["filter_request"]["sites"] == {
        "shop": ["doorman", "second", "first", "second"], "api": ["doorman", "first"]
    }  # fmt: skip
    assert by_name["accept_client"]["sites"] == {"every site": ["doorman"]}
    assert by_name["route"]["sites"] == {}
    assert by_name["authorize"]["plugins"] == ["authorize", "unused"]
    assert by_name["authenticate"]["signature"].startswith("authenticate(exchange) -> ")


def test_plugins_are_asked_in_the_order_that_is_listed(runner: CliRunner, armed: Path) -> None:
    (filters,) = [one for one in listed(runner, "--hooks") if one["hook"] == "filter_request"]
    with site(["second", "first", "second"], server_plugins=["doorman"], plugins_dir=armed.parent) as s:
        seen = s.get("/").upstream
        assert seen is not None
        assert seen.headers.get_all("x-asked") == filters["sites"]["shop"]


def test_hooks_as_text(runner: CliRunner, armed: Path) -> None:
    parts = runner.invoke(plugins, ["--hooks"]).stdout.strip().split("\n\n")
    assert [part.partition("(")[0] for part in parts] == list(SPECS)
    (filters,) = [part for part in parts if part.startswith("filter_request(exchange) -> ")]
    assert filters.splitlines()[1:] == [
        f"  {SPECS['filter_request'].doc.splitlines()[0]}",
        "  shop: doorman, second, first, second",
        "  api: doorman, first",
    ]
    os.remove("frontd.yaml")
    assert "  defined by: authorize" in runner.invoke(plugins, ["--hooks"]).stdout.splitlines()


def test_a_configuration_with_errors_is_told(runner: CliRunner, armed: Path) -> None:
    Path("bad.yaml").write_text(CONFIG.replace("[first]", "[frist]"))
    result = runner.invoke(plugins, ["-c", "bad.yaml"])
    assert (result.exit_code, result.stdout) == (3, "")
    assert 'did you mean "first"?' in result.stderr
    missing = runner.invoke(plugins, ["-c", "missing.yaml"])
    assert (missing.exit_code, missing.stdout) == (3, "")


def test_a_plugin_file_with_an_error_is_told_with_its_line(runner: CliRunner, armed: Path) -> None:
    (armed.parent / "broken.py").write_text("import frontd\n\nnonsense\n")
    result = runner.invoke(plugins)
    assert result.exit_code == 3
    assert f"{armed.parent}/broken.py:3: NameError" in result.stderr


# ---------------------------------------------------------------------------------------------------- a new one


def test_new_plugins_pass_their_tests_and_every_check_at_once(runner: CliRunner, tmp_path: Path) -> None:
    for kind in KINDS:
        result = runner.invoke(plugin, ["new", f"my_{kind}", "--dir", "mine", "--kind", kind])
        assert result.exit_code == 0, result.output
    run = [sys.executable, "-W", "error", "-m"]
    tests = [*run, "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(tmp_path / "mine")]
    checks = (
        tests,
        [*run, "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache"), "mine"],
        [*run, "ruff", "check", "--isolated", "--select", "E,F,I,B,UP", "--line-length", "120", "mine"],
    )
    found_by_mypy = os.environ | {"MYPYPATH": str(ROOT)}  # which knows nothing of an editable install
    for check in checks:
        done = subprocess.run(check, capture_output=True, text=True, cwd=tmp_path, env=found_by_mypy)
        assert done.returncode == 0, done.stdout + done.stderr
    assert subprocess.run(tests, capture_output=True, cwd="/").returncode == 0  # from anywhere


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_test_of_a_new_plugin_can_fail(runner: CliRunner, tmp_path: Path, kind: str) -> None:
    runner.invoke(plugin, ["new", "my_first", "--kind", kind])
    file = tmp_path / "my_first.py"
    file.write_text(file.read_text().replace("return frontd.Refuse(", "return None and frontd.Refuse("))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_first.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stdout


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_next_steps_can_be_followed(
    runner: CliRunner, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANNS_TOKEN", "t")
    result = runner.invoke(plugin, ["new", "my_first", "--dir", "mine", "--kind", kind])
    steps = result.output.partition("frontd.yaml:\n")[2].partition("\n\n")[0]
    arming = yaml.safe_load(steps)
    arming["sites"]["YOUR_SITE"] |= {"urls": ["http://a.test/"], "routes": {"/": "http://app:80"}}
    Path("frontd.yaml").write_text(yaml.safe_dump(arming))
    facts = {one["plugin"]: one for one in listed(runner)}
    assert facts["my_first"]["sites"] == ["YOUR_SITE"]
    assert facts["my_first"]["from"].startswith(str(tmp_path / "mine" / "my_first.py"))
    (command,) = re.findall(r"^  (.* -m pytest .*)$", result.output, re.MULTILINE)
    shell = subprocess.run(["sh", "-c", f"{command} -q -p no:cacheprovider"], capture_output=True, text=True)
    assert shell.returncode == 0, shell.stdout + shell.stderr


def interpreter(folder: Path, name: str = "python") -> Path:
    """An interpreter that is only looked for."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


def test_the_test_is_run_by_the_interpreter_that_has_frontd(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by whichever pytest the shell finds first, which may know nothing of frontd."""
    ours, other = interpreter(tmp_path / "my venv" / "bin"), interpreter(tmp_path / "other")
    found = []
    for number, (executable, path) in enumerate([
        (ours, other.parent),
        (ours, ours.parent),
        (interpreter(ours.parent, "python3"), ours.parent),  # `python` beside it is the same
        (other, tmp_path / "nowhere"),
        (Path("/usr/bin/python3.99"), ours.parent),
    ]):  # fmt: skip
        monkeypatch.setattr(sys, "executable", str(executable))
        monkeypatch.setenv("PATH", str(path))
        output = runner.invoke(plugin, ["new", f"my_{number}"]).output
        found += re.findall(r"^  (.*) -m pytest test_my_\d\.py$", output, re.MULTILINE)
    assert found == ["'my venv/bin/python'", "python", "python", "other/python", "/usr/bin/python3.99"]


def test_a_missing_pytest_is_told(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pip install" not in runner.invoke(plugin, ["new", "my_first"]).output
    monkeypatch.setitem(sys.modules, "pytest", None)  # as if it could not be imported
    output = runner.invoke(plugin, ["new", "my_second"]).output
    assert re.search(r"\n  (.+) -m pip install pytest\n  \1 -m pytest test_my_second\.py\n", output)
    assert "pytest is not in the environment that has frontd" in output


@pytest.mark.parametrize("there", ["mine.py", "test_mine.py"])
def test_nothing_is_overwritten(runner: CliRunner, there: str) -> None:
    Path(there).write_text("precious")
    result = runner.invoke(plugin, ["new", "mine"])
    assert result.exit_code == 1
    assert f"{there} exists; it is not overwritten" in result.stderr
    assert Path(there).read_text() == "precious"
    assert len(list(Path().glob("*mine.py"))) == 1


def test_where_nothing_can_be_written_is_told(runner: CliRunner) -> None:
    Path("file").write_text("")
    result = runner.invoke(plugin, ["new", "mine", "--dir", "file/below"])
    assert result.exit_code == 1
    assert "cannot write" in result.stderr


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no-bots", "lower-case letters"),
        ("NoBots", "lower-case letters"),
        ("2fast", "lower-case letters"),
        ("class", "lower-case letters"),
        ("../up", "lower-case letters"),
        ("basic", "there is a plugin of this name already, in frontd"),
        ("test_mine", "taken for tests"),
        ("conftest", "taken for tests"),
        ("random", "would hide the module random"),
        ("trio", "would hide the module trio"),
        ("frontd", "would hide the module frontd"),
    ],
)
def test_names_that_cannot_be(runner: CliRunner, tmp_path: Path, name: str, says: str) -> None:
    result = runner.invoke(plugin, ["new", name])
    assert result.exit_code == 2
    assert says in result.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "plugins"]


def test_class_names() -> None:
    assert [class_name(name) for name in ("a", "no_bots", "x2_y")] == ["A", "NoBots", "X2Y"]
