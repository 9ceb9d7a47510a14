"""`frontd plugin new`: a plugin in one file, with its test, to begin with."""

from __future__ import annotations

import keyword
import os
import re
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from frontd.cli.common import Failure

NAME = re.compile(r"[a-z][a-z0-9_]*")  # what the configuration can name

FILTER = '''\
"""@NAME@: refuses requests of clients that say a wrong word in User-Agent."""

from __future__ import annotations

import frontd
from pydantic import Field


class @CLASS@(frontd.Plugin):
    """One class is one plugin; methods named like hooks are hooks ('frontd plugins --hooks' lists them)."""

    name = "@NAME@"

    class Settings(frontd.Settings):
        """What stands under `@NAME@:` in frontd.yaml."""

        words: tuple[str, ...] = Field(default=("badbot",), description="Words that no User-Agent may hold.")

    settings: Settings

    def filter_request(self, exchange: frontd.Exchange) -> frontd.Refuse | None:
        """Return a Refuse or a Response to answer at once, None to let the request go on."""
        agent = exchange.request.headers.text("User-Agent").lower()
        for word in self.settings.words:
            if word.lower() in agent:
                return frontd.Refuse(403, "Rejected", log=f"User-Agent holds {word!r}")
        return None
'''

FILTER_TEST = '''\
"""Run it with pytest, of the environment that has frontd: python -m pytest."""

from __future__ import annotations

import pytest
from frontd.testing import ConfigurationError, site


def test_a_wrong_word_is_refused() -> None:
    with site({"@NAME@": {"words": ["grabber"]}}, plugins_dir=".") as s:
        answer = s.get("/", headers={"User-Agent": "Grabber/1.0"})
        assert answer.status == 403
        assert answer.upstream is None  # the app was not asked
        assert s.log[-1].reason == "Rejected"
        assert s.log[-1].detail == "User-Agent holds 'grabber'"


def test_everybody_else_gets_through() -> None:
    with site({"@NAME@": None}, plugins_dir=".") as s:
        answer = s.get("/page?x=1", headers={"User-Agent": "Firefox"})
        assert answer.status == 200
        assert answer.upstream is not None
        assert answer.upstream.target == "/page?x=1"


def test_a_wrong_setting_is_told() -> None:
    with pytest.raises(ConfigurationError, match='did you mean "words"'):
        with site({"@NAME@": {"wrods": []}}, plugins_dir="."):
            pass
'''

AUTHENTICATOR = '''\
"""@NAME@: logs clients on that send a token, as ``Authorization: Bearer TOKEN``."""

from __future__ import annotations

import hmac

import frontd
from pydantic import Field


class @CLASS@(frontd.Plugin):
    """One class is one plugin; methods named like hooks are hooks ('frontd plugins --hooks' lists them).

    A site with an authenticator refuses whoever has not logged on, unless an `authorize` rule lets them in.
    """

    name = "@NAME@"
    scheme = "Bearer"  # so that the app is not shown the token

    class Settings(frontd.Settings):
        """What stands under `@NAME@:` in frontd.yaml."""

        tokens: dict[str, frontd.Secret] = Field(description="The token of each user, by user name.")

    settings: Settings

    def authenticate(self, exchange: frontd.Exchange) -> frontd.Identity | frontd.Refuse | None:
        """Return the Identity, a Refuse for wrong credentials, None for those of another scheme or none."""
        scheme, token = exchange.request.credentials
        if scheme != "bearer" or token is None:
            return None
        for user, secret in self.settings.tokens.items():
            # a comparison that takes as long for a nearly right token as for any other
            if hmac.compare_digest(token.encode(), secret.get_secret_value().encode()):
                return frontd.Identity(user, scheme="Bearer")
        return frontd.Refuse(401, "LogonFailed", log="nobody has this token")

    def challenge(self, exchange: frontd.Exchange) -> str:
        """What a 401 says in WWW-Authenticate."""
        return 'Bearer realm="@NAME@"'
'''

AUTHENTICATOR_TEST = '''\
"""Run it with pytest, of the environment that has frontd: python -m pytest."""

from __future__ import annotations

import pytest
from frontd.testing import ConfigurationError, site

SETTINGS = {"tokens": {"ann": "t-4711"}}


def test_nobody_gets_in_without_a_token() -> None:
    with site({"@NAME@": SETTINGS}, plugins_dir=".") as s:
        answer = s.get("/")
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="@NAME@"'
        assert answer.upstream is None  # the app was not asked
        assert s.log[-1].reason == "LogonRequired"


def test_the_app_learns_who_it_is_and_not_the_token() -> None:
    with site({"@NAME@": SETTINGS}, plugins_dir=".") as s:
        answer = s.get("/", headers={"Authorization": "Bearer t-4711", "X-Remote-User": "root"})
        assert answer.status == 200
        assert answer.upstream is not None
        assert answer.upstream.headers["X-Remote-User"] == "ann"
        assert "Authorization" not in answer.upstream.headers
        assert s.log[-1].user == "ann"


def test_a_wrong_token_is_refused() -> None:
    with site({"@NAME@": SETTINGS}, plugins_dir=".") as s:
        assert s.get("/", headers={"Authorization": "Bearer t-4712"}).status == 401
        assert s.log[-1].reason == "LogonFailed"


def test_tokens_are_needed() -> None:
    with pytest.raises(ConfigurationError, match="the key `tokens` is missing"):
        with site({"@NAME@": None}, plugins_dir="."):
            pass
'''

KINDS = {
    "filter": (FILTER, FILTER_TEST, "words: [badbot]"),
    "authenticator": (AUTHENTICATOR, AUTHENTICATOR_TEST, "tokens: {ann: '${ANNS_TOKEN}'}"),
}


@click.group(short_help="Write a plugin of your own.")
def plugin() -> None:
    """Write a plugin of your own."""


@plugin.command(short_help="A plugin and its test, to begin with.")
@click.argument("name")
@click.option(
    "--dir", "directory", type=click.Path(file_okay=False, path_type=Path), default=Path(),
    help="Where the files go; made if it is not there.  [default: here]",
)  # fmt: skip
@click.option("--kind", type=click.Choice(list(KINDS)), default="filter", show_default=True, help="What it begins as.")
def new(name: str, directory: Path, kind: str) -> None:
    """Write NAME.py, a plugin, and test_NAME.py, its test, which passes at once.

    NAME is the word in the configuration.  Files that exist are not overwritten.
    """
    if fault := name_fault(name):
        raise click.BadParameter(fault, param_hint="NAME")
    source, test, settings = KINDS[kind]
    files = {directory / f"{name}.py": source, directory / f"test_{name}.py": test}
    write(
        {path: text.replace("@NAME@", name).replace("@CLASS@", class_name(name)) for path, text in files.items()}
    )
    told = "\n".join(f"  {path}" for path in files)
    click.echo(f"Written:\n{told}\n\n{next_steps(name, directory, settings)}")


def name_fault(name: str) -> str:
    """Why a plugin cannot have this name, as a sentence; empty: it can."""
    from frontd.pipeline.discovery import installed_words

    words = installed_words()
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        return "a plugin's name is lower-case letters, digits and _, and begins with a letter"
    if name in words:
        return f"there is a plugin of this name already, in {words[name]}"
    if name.startswith("test_") or name == "conftest":
        return f"files named {name}.py are taken for tests, not for plugins"
    if name in sys.stdlib_module_names or name in _installed_modules():
        return f"{name}.py would hide the module {name} from its own test"
    return ""


def _installed_modules() -> set[str]:
    from importlib.metadata import packages_distributions

    return set(packages_distributions())


def class_name(name: str) -> str:
    """``no_bots`` → ``NoBots``."""
    return "".join(part.capitalize() for part in name.split("_"))


def write(files: dict[Path, str]) -> None:
    """Write new files, all or none.  Raises `Failure` when one exists or cannot be written."""
    there = [path for path in files if os.path.lexists(path)]
    if there:
        raise Failure(f"{there[0]} exists; it is not overwritten")
    written: list[Path] = []
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise Failure(f"cannot write {error.filename or path}: {error.strerror}") from None


def python_command() -> str:
    """How to call the interpreter that runs this, from here: `pytest` alone may be one that knows nothing of frontd."""
    found, ours = shutil.which("python"), sys.executable
    if not ours or (found and os.path.dirname(found) == os.path.dirname(ours)):  # a virtual environment that is active
        return "python"
    here = os.path.relpath(ours)
    return ours if here.startswith(os.pardir) else here


def next_steps(name: str, directory: Path, settings: str) -> str:
    """What to do with the files, as text."""
    python = shlex.quote(python_command())
    commands = [f"{python} -m pytest {shlex.quote(str(directory / f'test_{name}.py'))}"]
    heading = "Try it"
    if find_spec("pytest") is None:
        heading += " (pytest is not in the environment that has frontd)"
        commands.insert(0, f"{python} -m pip install pytest")
    tried = "\n".join(f"  {command}" for command in commands)
    return f"""{heading}:
{tried}

Arm it, in frontd.yaml:
  plugins_dir: {os.path.abspath(directory)}
  sites:
    YOUR_SITE:
      plugins:
        - {name}:
            {settings}

Look at it:
  frontd check
  frontd plugins"""
