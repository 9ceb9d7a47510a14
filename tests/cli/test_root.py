"""The command line as a whole: help that is quick, names that are nearly right, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from frontd import __version__
from frontd.cli.root import cli

HEAVY = ("pydantic", "trio", "cryptography", "yaml", "h11", "ssl", "http.client")
VERBS = ["demo", "proxy", "serve", "check", "explain", "status", "reload", "upgrade", "healthcheck", "show"]
VERBS += ["show config", "show servicestate", "show requests", "pool", "top", "attach", "urlacl", "urlacl add", "queue"]
VERBS += ["plugins", "plugin", "plugin new", "passwd"]

IMPORTS = """
import json, sys
from frontd.__main__ import main
try:
    main()
except SystemExit as end:
    code = end.code
print(json.dumps({"code": code, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_imports_nothing_heavy(verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *verb.split(), "--help"], capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stderr)
    heavy = [name for name in HEAVY if name in seen["modules"]]
    assert (seen["code"], heavy) == (0, [])
    assert "Usage: frontd" in done.stdout


def test_version(runner: CliRunner) -> None:
    assert runner.invoke(cli, ["--version"], prog_name="frontd").output == f"frontd {__version__}\n"


def test_every_verb_has_a_short_help_that_is_not_cut_off(runner: CliRunner) -> None:
    output = runner.invoke(cli, ["--help"]).output
    listed = output.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == [verb for verb in VERBS if " " not in verb]
    assert not [line for line in listed if line.endswith("...")]


@pytest.mark.parametrize(
    ("arguments", "hint"), [(["stauts"], "Did you mean 'status'?"), (["show", "confg"], "Did you mean 'config'?")]
)
def test_a_typo_gets_a_hint_and_exit_code_2(runner: CliRunner, arguments: list[str], hint: str) -> None:
    result = runner.invoke(cli, arguments)
    assert result.exit_code == 2
    assert hint in result.output
