"""What the pages about plugins and files say is what the program does.

Tutorials are followed as a reader would: files are written and commands run in the order of the page.  Signatures and
attributes are compared with the code, examples of hooks are asked, and each bundled plugin has its section.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
from click.testing import CliRunner
from pydantic import Field

import frontd
from frontd.cli.root import cli
from frontd.config.docs import settings_table
from frontd.model.messages import Body, TlsInfo
from frontd.pipeline.discovery import Discovery, installed_words
from frontd.pipeline.phases import SPECS
from frontd.testing import ConfigurationError, SiteUnderTest, site
from tests.test_docs import DOCS, files_of, first_cells, section

HUB = DOCS / "plugins.md"
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
    assert words[:3] == ["python", "-m", "pytest"], f"a tutorial runs python -m pytest and frontd, not {words[0]}"
    quiet = ["-q", "-W", "error", "-p", "no:cacheprovider"]
    alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # as in an environment of frontd and pytest alone
    command = [sys.executable, *words[1:], *quiet]
    done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True)
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
    assert sum(line.startswith("python -m pytest") for line in commands) >= 3
    assert "frontd check" in commands


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (
            "<!-- file: test_a.py -->\n```python\ndef test_a(): assert 1 == 2\n```\n"
            "```bash\npython -m pytest\n```\n",
            "1 == 2",
        ),
        ("<!-- file: frontd.yaml -->\n```yaml\nsites: {}\n```\n```bash\nfrontd check\n```\n", "frontd check"),
        ("```bash\nrm -r x\n```\n", "not rm"),
        ("```bash\npytest plugins\n```\n", "not pytest"),  # the shell may find one that knows nothing of frontd
    ],
)
def test_a_tutorial_that_does_not_work_is_noticed(page: str, says: str, desk: Path) -> None:
    with pytest.raises(AssertionError, match=re.escape(says)):
        follow(page, desk)


def test_what_the_tutorials_leave_behind_can_be_listed(tmp_path: Path) -> None:
    for page in TUTORIALS:
        for name, text in files_of(DOCS / page):
            (tmp_path / Path(name).name).write_text(text)
    found = Discovery().everything(tmp_path)
    assert found.faults == ()
    assert {"company_token", "remembering_token", "no_bots", "no_scripts", "slow_pages"} <= found.kinds.keys()


def test_the_package_of_the_filter_is_found_when_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(DOCS / "write-a-filter-plugin.md")
    project = tomllib.loads(dict(files)["pyproject.toml"])
    (module,) = project["tool"]["setuptools"]["py-modules"]
    (word, value), *_ = project["project"]["entry-points"]["frontd"].items()
    title, version = project["project"]["name"], project["project"]["version"]
    (tmp_path / f"{module}.py").write_text(dict(files)[f"plugins/{module}.py"])
    info = tmp_path / f"{title.replace('-', '_')}-{version}.dist-info"  # what pip leaves behind
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {title}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[frontd]\n{word} = {value}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        found = Discovery().catalogue(None, frozenset((word,)))
    finally:
        sys.modules.pop(module, None)
    assert found.faults == ()
    assert found.kinds[word].origin == f"{title} {version}"


# ---------------------------------------------------------------------------------------------------- the hub


def test_the_plugins_of_the_hub_do_what_it_says(desk: Path) -> None:
    for name, text in files_of(HUB):
        path = desk / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    run(["python", "-m", "pytest", "plugins"], desk)
    found = Discovery().everything(desk / "plugins")
    assert found.faults == ()
    (desk / "closed.txt").write_text("See you tomorrow.\n")
    opening_hours = found.kinds["opening_hours"].plugin
    with site({opening_hours: [*range(24)]}) as s:
        assert s.get("/").status == 200
    with site([{opening_hours: {"hours": [], "page": desk / "closed.txt"}}]) as s:
        assert (s.get("/").status, s.get("/").text) == (503, "See you tomorrow.\n")
    with pytest.raises(ConfigurationError, match="24 is no hour of the day"), site({opening_hours: [24]}):
        pass


def test_the_hub_names_every_phase_in_order() -> None:
    table = section(HUB, "When a plugin is asked")
    assert re.findall(r"^\| \[`(\w+)`\]", table, re.MULTILINE) == list(SPECS)


def test_the_picture_has_every_hook() -> None:
    picture = (DOCS / "plugin-phases.svg").read_text()
    assert [name for name in SPECS if not re.search(rf"[> ]{name}\b", picture)] == []


# ---------------------------------------------------------------------------------------------------- hooks


def test_the_signature_of_every_hook_stands_there_and_nothing_else() -> None:
    headings = re.findall(r"^##+ (.*)$", HOOKS.read_text(), re.MULTILINE)
    assert headings == [f"`{spec}`" for spec in SPECS.values()]


@pytest.mark.parametrize("name", SPECS)
def test_a_hook_says_what_each_answer_does_and_how_it_fails(name: str) -> None:
    text = section(HOOKS, f"`{SPECS[name]}`")
    for kind in SPECS[name].returns - {str}:
        assert f"`{kind.__name__}`" in text
    assert re.search(r"\b(fails? (closed|soft)|fault is logged)", text.replace("\n", " "), re.IGNORECASE)
    assert ("Plain." in text) == SPECS[name].is_plain


class Fixed(frontd.Plugin):
    """Knows everybody by their name in a field, and sends nobody away."""

    name = "fixed"

    def authenticate(self, exchange: frontd.Exchange) -> frontd.Identity | None:
        user = exchange.request.headers.text("X-User")
        return frontd.Identity(user) if user else None


BESIDE = {  # what the examples of some hooks need in order to have something to do
    "cache_lookup": ("admit_response",),
    "admit_response": ("cache_lookup",),
    "challenge": ("authenticate",),
}
HEAD = """
import frontd

class Example(frontd.Plugin):
    name = "example"

    class Settings(frontd.Settings):
        banned: tuple[str, ...] = ("203.0.113.66",)
        tokens: dict[str, str] = {"good": "ann"}

    def filter_request(self, exchange):
        exchange.client.state(self)["seen"] = True

"""


def example_of(hook: str) -> str:
    """The method that stands under a hook, ready to be put into a class."""
    whole = section_with_code(HOOKS, f"`{SPECS[hook]}`")
    (code,) = re.findall(r"^```python\n(.*?)^```$", whole, re.MULTILINE | re.DOTALL)
    return textwrap.indent(code, "    ")


def plugin_of(hook: str) -> type[frontd.Plugin]:
    """A plugin of the examples of a hook and of those beside it."""
    space: dict[str, Any] = {"__name__": f"examples_{hook}"}
    exec(HEAD + "\n".join(example_of(one) for one in (hook, *BESIDE.get(hook, ()))), space)
    made: type[frontd.Plugin] = space["Example"]
    return made


BEARER = {"Authorization": "Bearer good"}
SHORT_QUEUE = {"pools": {"app": {"queue": {"wait": "1s"}}}}
BETA = {"pools": {"beta": {"targets": ["unix:/nobody.sock"], "queue": {"wait": "0s"}}}}


def play_accept_client(s: SiteUnderTest) -> None:
    assert s.get("/").status == 200
    assert s.get("/", client_address="203.0.113.66").status == 403
    assert s.log[-1].reason == "AddressDenied"


def play_filter_request(s: SiteUnderTest) -> None:
    answer = s.get("/healthz")
    assert (answer.text, answer.upstream) == ("fine\n", None)
    assert s.get("/other").upstream is not None


def play_authenticate(s: SiteUnderTest) -> None:
    answer = s.get("/", headers=BEARER)
    assert answer.upstream is not None
    assert answer.upstream.headers["X-Remote-User"] == "ann"
    assert s.get("/", headers={"Authorization": "Bearer bad"}).status == 401
    assert s.log[-1].reason == "LogonFailed"
    assert s.get("/").status == 401
    assert s.log[-1].reason == "LogonRequired"


def play_challenge(s: SiteUnderTest) -> None:
    assert s.get("/").headers["WWW-Authenticate"] == 'Bearer realm="api"'


def play_authorize(s: SiteUnderTest) -> None:
    assert s.get("/", headers={"X-User": "ann"}).status == 403
    assert s.log[-1].detail == "not of the staff"
    assert s.get("/").status == 401  # nobody said Allow


def play_route(s: SiteUnderTest) -> None:
    assert s.get("/").status == 200
    assert s.get("/", headers={"X-Beta": "1"}).status == 503
    assert s.log[-1].pool == "beta"


def play_cache(s: SiteUnderTest) -> None:
    s.app.respond(200, {"Cache-Control": "public"}, "once")
    assert s.get("/").upstream is not None
    answer = s.get("/")
    assert (answer.text, answer.upstream) == ("once", None)
    assert s.get("/?other").upstream is not None


def play_rewrite_request(s: SiteUnderTest) -> None:
    upstream = s.get("/").upstream
    assert upstream is not None
    assert upstream.headers["X-Request-Id"].isdigit()


def play_forward_failed(s: SiteUnderTest) -> None:
    s.app.stop()
    answer = s.get("/", advance=5)
    assert (answer.status, answer.text) == (503, "We are moving house.\n")
    assert s.log[-1].reason == "AppOffline"


def play_rewrite_response(s: SiteUnderTest) -> None:
    s.app.respond(200, {"Server": "secret/1.0"})
    assert "Server" not in s.get("/").headers


def play_log(s: SiteUnderTest) -> None:
    s.app.respond(500)
    s.get("/broken")
    assert s.remarks[-1].endswith("500 for /broken")


def play_client_closed(s: SiteUnderTest) -> None:
    s.get("/", client_address="192.0.2.77")
    assert s.remarks[-1].endswith("192.0.2.77 has left")


PLAYS = {
    "accept_client": play_accept_client, "filter_request": play_filter_request, "authenticate": play_authenticate,
    "challenge": play_challenge, "authorize": play_authorize, "route": play_route, "cache_lookup": play_cache,
    "rewrite_request": play_rewrite_request, "forward_failed": play_forward_failed, "admit_response": play_cache,
    "rewrite_response": play_rewrite_response, "log": play_log, "client_closed": play_client_closed,
}  # fmt: skip


@pytest.mark.parametrize("hook", SPECS)
def test_the_example_of_a_hook_does_what_it_shows(hook: str) -> None:
    plugin = plugin_of(hook)
    beside = [Fixed] if hook == "authorize" else []
    config = BETA if hook == "route" else SHORT_QUEUE
    standing = {"server_plugins": [plugin]} if hook == "accept_client" else {"plugins": [*beside, plugin]}
    with site(config=config, **standing) as s:
        PLAYS[hook](s)
        assert s.errors == []


# ---------------------------------------------------------------------------------------------------- attributes


class Silent(frontd.Plugin):
    """Has what every plugin has."""

    name = "silent"


PARTS: dict[str, object] = {
    "`exchange`": frontd.Exchange,
    "`exchange.request`": frontd.Request,
    "`exchange.request.headers`": frontd.Headers,
    "`exchange.request.body`": Body,
    "`exchange.client`": frontd.Client,
    "`exchange.client.tls`": TlsInfo,
    "`exchange.identity`": frontd.Identity,
    "`exchange.response`": frontd.Response,
    "`Refuse`": frontd.Refuse,
    "`Redirect`": frontd.Redirect,
    "`Continue`": frontd.Continue,
    "`self`": Silent(frontd.Settings(), frontd.Context("", frontd.MemoryStore(0), print)),
    "`self.store`": frontd.MemoryStore(0),
    "`site` of `check`": frontd.SiteFacts,
}


OWN = "frontd's own, not for plugins"


@pytest.mark.parametrize("heading", PARTS)
def test_every_attribute_is_documented_and_no_other(heading: str) -> None:
    """In its own table, or in the one of what is not for plugins."""
    owned = [cell.rpartition(".") for cell in first_cells(section(EXCHANGE, OWN))]
    documented = first_cells(section(EXCHANGE, heading))
    documented += [name for part, _, name in owned if f"`{part}`" == heading]
    assert sorted(documented) == sorted(name for name in dir(PARTS[heading]) if not name.startswith("_"))


def test_what_is_not_for_plugins_belongs_to_something_they_see() -> None:
    parts = {f"`{cell.rpartition('.')[0]}`" for cell in first_cells(section(EXCHANGE, OWN))}
    assert parts <= PARTS.keys()


def test_the_signature_of_capture_is_right() -> None:
    (shown,) = re.findall(r"^\| `capture` \| `capture\((.*?)\)`", EXCHANGE.read_text(), re.MULTILINE)
    (told,) = re.findall(r"^`exchange\.response\.capture\((.*?)\)`", HOOKS.read_text(), re.MULTILINE)
    parameters = list(inspect.signature(frontd.Response.capture).parameters.values())[1:]
    made = inspect.Signature([one.replace(annotation=inspect.Parameter.empty) for one in parameters])
    assert shown == told == str(made)[1:-1]


def test_everything_that_can_be_imported_is_documented() -> None:
    assert sorted(first_cells(section(EXCHANGE, "What `import frontd` gives"))) == sorted(frontd.__all__)


def test_verdicts_without_attributes_have_none() -> None:
    assert [name for kind in (frontd.Allow, frontd.UseHttp11) for name in dir(kind) if not name.startswith("_")] == []


@pytest.mark.parametrize("name", ["Identity", "Refuse", "Redirect", "Continue", "Response"])
def test_the_signature_of_what_plugins_make_is_right(name: str) -> None:
    (shown,) = re.findall(rf"^`frontd\.{name}\((.*?)\)`", EXCHANGE.read_text(), re.MULTILINE)
    parameters = inspect.signature(getattr(frontd, name)).parameters.values()
    plain = [one for one in parameters if one.name != "reason" or name != "Response"]  # frontd's own
    made = inspect.Signature([one.replace(annotation=inspect.Parameter.empty) for one in plain])
    assert shown.replace('"', "'") == str(made)[1:-1]


# ---------------------------------------------------------------------------------------------------- bundled ones


def bundled() -> dict[str, type[frontd.Plugin]]:
    """The plugins that come with frontd, by word."""
    words = {word for word, package in installed_words().items() if package.startswith("frontd ")}
    found = Discovery().catalogue(None, frozenset(words))
    assert found.faults == ()
    return {name: kind.plugin for name, kind in found.kinds.items()}


def test_every_bundled_plugin_has_a_section_and_an_example() -> None:
    headings = re.findall(r"^## `(\w+)`$", BUNDLED.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(bundled())
    for name in headings:
        assert re.search(rf"^```yaml\n(.*\n)*? *- {name}\b", section_with_code(BUNDLED, f"`{name}`"), re.MULTILINE)


@pytest.mark.parametrize("name", sorted(bundled()))
def test_the_refusals_of_a_bundled_plugin_are_documented(name: str) -> None:
    """The Reasons that stand in its table are those that stand in its source."""
    source = Path(inspect.getfile(bundled()[name])).read_text()
    used = {reason.word for reason in frontd.Reason if f'"{reason.word}"' in source}
    rows = re.findall(r"^\| (\d{3}(?:\.\d+)?) \| \[?`(\w+)`", section_with_code(BUNDLED, f"`{name}`"), re.MULTILINE)
    assert {word for _, word in rows} == used
    known = {reason.word for reason in frontd.Reason}
    assert all(word in known for _, word in rows)


def section_with_code(page: Path, heading: str) -> str:
    """As `section`, but up to the next heading of the second level: comments in code are no headings."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found, heading
    return found.group(1)


def test_a_table_of_settings_has_those_inside_of_others_below() -> None:
    class Inner(frontd.Settings):
        """One of them."""

        word: Literal["a", "b"] = "a"

    class Outer(frontd.Settings):
        parts: tuple[Inner, ...] = Field(default=(), description="Several | many.")
        names: dict[str, str] = {}
        age: frontd.Duration = 172800.0
        size: frontd.Size = 65536
        old: frontd.Duration = 1.5
        count: int

    assert settings_table(frontd.Settings) == "It takes no settings."
    assert settings_table(Outer).splitlines() == [
        "| key | type | default | meaning |",
        "|---|---|---|---|",
        "| `parts` | list of maps | – | Several \\| many. |",
        "| `names` | map | – |  |",
        "| `age` | duration | `2d` |  |",
        "| `size` | size | `64KiB` |  |",
        "| `old` | duration | `1.5s` |  |",
        "| `count` | number | required |  |",
        "",
        "`parts[]`: One of them.",
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
        "| `word` | `a` or `b` | `a` |  |",
    ]


# ---------------------------------------------------------------------------------------------------- files


def test_the_files_page_tells_what_is_answered(tmp_path: Path) -> None:
    text = (DOCS / "files.md").read_text()
    (listing,) = re.findall(r"^```\n(index\.html .*?)\n```$", text, re.MULTILINE)
    for name, _, link in (entry.partition(" -> ") for entry in re.split(r" {3,}", listing)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(link) if link else path.write_text(name)
    table = section(DOCS / "files.md", "What is answered")
    rows = re.findall(r"^\| `(/[^`]*)` \| (\d{3}) \|(?: to `([^`]+)`)?", table, re.MULTILINE)
    assert len(rows) > 10
    with site(routes={"/": "app", "/static/": {"files": tmp_path}}) as s:
        for asked, status, to in rows:
            answer = s.get(asked)
            assert (asked, str(answer.status), answer.headers.get("Location", "")) == (asked, status, to)
