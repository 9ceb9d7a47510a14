"""Plugins in the configuration: how they are named, and what is said about settings that are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, field_validator

import frontd
from frontd.config.effective import effective
from frontd.config.load import ConfigProblems, Loaded, loads
from frontd.config.plugins import SiteFacts
from tests.scenarios.plugged import PluginClass, made, of, says

from .helpers import HOME, NO_MOUNTS, flat


class Rule(frontd.Settings):
    """A part of the settings below."""

    path: str
    status: int = 403


class Full(frontd.Plugin):
    """Settings of every shape."""

    name = "full"

    class Settings(frontd.Settings):
        shorthand: ClassVar[str] = "rules"
        rules: tuple[Rule, ...] = ()
        limit: int = Field(default=5, ge=1, le=10)
        wait: frontd.Duration = 3.0
        on: bool = False
        by: dict[str, Rule] = {}
        token: frontd.Secret | None = None
        tokens: dict[str, list[frontd.Secret]] = {}


class Needs(frontd.Plugin):
    """A setting that has no default, and a validator with a fault of its own."""

    name = "needs"

    class Settings(frontd.Settings):
        issuer: str

        @field_validator("issuer")
        @classmethod
        def _known(cls, value: str) -> str:
            return {"a": "A"}[value]


class Gate(frontd.Plugin):
    """A plugin of the whole server."""

    name = "gate"

    def accept_client(self, client: frontd.Client) -> None:
        """Everybody may."""


PLAIN = made("plain")
KNOWN: tuple[PluginClass, ...] = (Full, Needs, Gate, PLAIN)


def load(plugins: str, *, top: str = "", known: Iterable[PluginClass] = KNOWN) -> Loaded:
    text = f"{top}sites:\n  a: {{urls: [http://a/], routes: {{/: http://b}}, plugins: {plugins}}}\n"
    return loads(text, base=Path("/base"), environ=HOME, container=False, mountinfo=NO_MOUNTS, discover=of(*known))


def errors(plugins: str, **more: Any) -> str:
    with pytest.raises(ConfigProblems) as caught:
        load(plugins, **more)
    return str(caught.value)


def told(plugins: str, **more: Any) -> list[str]:
    """The first line of each error, without the file's name and the site's path."""
    lines = [line for line in errors(plugins, **more).splitlines() if not line.startswith("  ")]
    return [line.removeprefix("frontd.yaml:").replace("sites.a.plugins", "") for line in lines]


# ---------------------------------------------------------------------------------------------------- fine


def test_a_word_or_a_word_with_its_settings() -> None:
    entries = load("[plain, full, full: {}, full: , full: {limit: 7, wait: 1m, on: true}]").config.sites["a"].plugins
    assert [entry.name for entry in entries] == ["plain", "full", "full", "full", "full"]
    assert entries[1] == entries[2] == entries[3]
    settings = entries[4].settings
    assert isinstance(settings, Full.Settings)
    assert (settings.limit, settings.wait, settings.on) == (7, 60.0, True)


def test_the_order_is_that_of_the_file() -> None:
    words = ["plain", "full", "plain", "full"]
    found = load(str(words), top="plugins: [gate, full, gate]\n").config
    assert [entry.name for entry in found.sites["a"].plugins] == words
    assert [entry.name for entry in found.plugins] == ["gate", "full", "gate"]


def test_what_is_no_map_stands_for_one_field() -> None:
    (entry,) = load("[full: [{path: /a}, {path: /b, status: 404}]]").config.sites["a"].plugins
    assert entry.settings == Full.Settings(rules=(Rule(path="/a"), Rule(path="/b", status=404)))


@pytest.mark.parametrize("nothing", ["", "[]", "~"])
def test_no_plugins(nothing: str) -> None:
    assert load(nothing).config.sites["a"].plugins == ()


def test_settings_from_the_environment_and_merged() -> None:
    text = "{<<: {limit: 3, on: true}, limit: '${NUMBER:-4}', token: '${HOME}'}"
    (entry,) = load(f"[full: {text}]").config.sites["a"].plugins
    assert isinstance(entry.settings, Full.Settings)
    assert (entry.settings.limit, entry.settings.on) == (4, True)
    assert entry.settings.token is not None
    assert entry.settings.token.get_secret_value() == "/home/u"


# ---------------------------------------------------------------------------------------------------- wrong


def test_the_place_and_the_excerpt() -> None:
    assert errors("[full: {limit: 11}]") == flat("""
        frontd.yaml:2:73: sites.a.plugins[0].full.limit: must be at most 10, not 11
          |   a: {urls: [http://a/], routes: {/: http://b}, plugins: [full: {limit: **}]}
          |                                                                         ^^
    """)


@pytest.mark.parametrize(
    ("plugins", "said"),
    [
        ("[ful]", ["[0]: there is no plugin 'ful'"]),
        ("[full: {rulez: []}]", ["[0].full.rulez: unknown key"]),
        ("[plain: {a: 1}]", ["[0].plain.a: unknown key"]),
        ("[plain: x]", ["[0].plain: the settings of plain are a map, not a text"]),
        ("[plain: [x]]", ["[0].plain: the settings of plain are a map, not a list"]),
        ("[full: x]", ["[0].full: a list is expected, not 'x'"]),
        ("[full: {limit: x}]", ["[0].full.limit: a whole number is expected, not 'x'"]),
        ("[full: {limit: [1]}]", ["[0].full.limit: a whole number is expected, not a list"]),
        ("[full: {limit: }]", ["[0].full.limit: a whole number is expected, not nothing"]),
        ("[full: {on: maybe}]", ["[0].full.on: true or false is expected, not 'maybe'"]),
        ("[full: {wait: -1}]", ["[0].full.wait: a duration from 0 to one year is expected, not '-1'"]),
        ("[full: {limit: 0, on: 2}]", [
            "[0].full.limit: must be at least 1, not 0", "[0].full.on: true or false is expected, not '2'",
        ]),
        ("[full: [{path: /}, {pth: /a}, x, {path: /, status: no}]]", [
            "[0].full[1]: the key `path` is missing", "[0].full[1].pth: unknown key",
            "[0].full[2]: a map is expected, not 'x'",
            "[0].full[3].status: a whole number is expected, not 'no'",
        ]),
        ("[full: {by: {x: {path: /, statsu: 3}}}]", ["[0].full.by.x.statsu: unknown key"]),
        ("[full: {by: {x: [1]}}]", ["[0].full.by.x: a map is expected, not a list"]),
        ("[needs]", ["[0]: the key `issuer` is missing"]),
        ("[plain, needs: {}]", ["[1].needs: the key `issuer` is missing"]),
        ("[full: '${NOPE}']", ["[0].full: the variable NOPE is not set"]),
        ("{full: {}}", [": a list is expected, not a map"]),
        ("full", [": a list is expected, not a text"]),
        ("[[full]]", ["[0]: a plugin is a word, or one word with its settings, not a list"]),
        ("[~]", ["[0]: a plugin is a word, or one word with its settings, not nothing"]),
        ("[{full: {}, plain: {}}]", ["[0]: a plugin is a word, or one word with its settings, not a map"]),
        ("[7, True]", ["[0]: there is no plugin '7'", "[1]: there is no plugin 'True'"]),
        ("[gate]", ["[0]: gate is a plugin of the whole server"]),
    ],
)  # fmt: skip
def test_what_is_wrong_and_where(plugins: str, said: list[str]) -> None:
    """All of it in one run, each at its place."""
    found = [line.split(" ", 1) for line in told(plugins)]
    assert [rest for _, rest in found] == said
    line = f"  a: {{urls: [http://a/], routes: {{/: http://b}}, plugins: {plugins}}}"
    for place, _ in found:
        assert place.startswith("2:")
        assert 0 < int(place.split(":")[1]) <= len(line)


@pytest.mark.parametrize(
    ("plugins", "hint"),
    [
        ("[ful]", 'did you mean "full"?'),
        ("[xyzzy]", "there are: full, gate, needs, plain"),
        ("[full: {rulez: []}]", 'did you mean "rules"?'),
        ("[full: {by: {x: {path: /, statsu: 3}}}]", 'did you mean "status"?'),
        ("[full: [{path: /, xyzzy: 1}]]", "known here: path, status"),
        ("[plain: {a: 1}]", "it takes no settings"),
        ("full", "write it as [full]"),
        ("{full: {}}", "each plugin begins with -"),
        ("[{full: ~, limit: 3}]", "is a - missing, or are the settings not indented?"),
        ("[gate]", "write it under `plugins` at the top"),
    ],
)
def test_hints(plugins: str, hint: str) -> None:
    assert f"\n  = {hint}" in errors(plugins)


def test_the_same_for_the_whole_server() -> None:
    assert told("[plain]", top="plugins: [full: {limit: 11}]\n") == [
        "1:25: plugins[0].full.limit: must be at most 10, not 11"
    ]


def test_a_validator_that_fails_is_its_authors_fault() -> None:
    (said,) = told("[needs: {issuer: b}]")
    assert "needs: its settings cannot be checked: KeyError (" in said
    assert Path(__file__).name in said
    (entry,) = load("[needs: {issuer: a}]").config.sites["a"].plugins
    assert entry.settings.model_dump() == {"issuer": "A"}


@pytest.mark.parametrize(
    "plugins",
    [
        "[full: {token: hunter2, limit: x}]",
        "[full: {limit: x, token: 'hunter2'}]",
        "[full: {tokens: {ann: [hunter2, \"hunter2\"], bob: hunter2}, limit: x}]",
        "[full: {token: [hunter2]}]",
        "[full: {token: hunter2}, plain: x]",
        "[full: {token: hunter2, tokn: x}]",
    ],
)
def test_secrets_are_not_shown(plugins: str) -> None:
    """Neither where they are wrong themselves nor beside what is."""
    printed = errors(plugins)
    assert "hunter2" not in printed
    assert "*******" in printed


# ---------------------------------------------------------------------------------------------------- their own checks


def checked(check: Callable[[type[frontd.Plugin], Any, SiteFacts], Iterable[str]], **hooks: object) -> PluginClass:
    return made("checked", check=classmethod(check), **hooks)


def test_what_a_plugin_says_itself() -> None:
    plugin = checked(lambda cls, settings, site: ["it rains", f"the site is {site.name}"])
    assert told("[plain, checked]", known=[PLAIN, plugin]) == [
        "2:66: [1]: checked: it rains", "2:66: [1]: checked: the site is a",
    ]  # fmt: skip


def test_a_check_that_fails() -> None:
    def check(cls: type[frontd.Plugin], settings: Any, site: SiteFacts) -> Iterable[str]:
        yield "one thing"
        raise KeyError("x")

    said = told("[checked]", known=[checked(check)])
    assert [line.split(": ", 1)[1] for line in said] == [
        "[0]: checked: one thing", "[0]: checked: its check failed: KeyError: 'x'",
    ]  # fmt: skip


def test_what_it_is_told_of_the_site() -> None:
    seen: list[SiteFacts] = []

    def check(cls: type[frontd.Plugin], settings: Any, site: SiteFacts) -> Iterable[str]:
        seen.append(site)
        return ()

    plugin = checked(check)
    logon = made("logon", authenticate=says(None))
    load("[checked, logon]", top="plugins: [checked, plain]\n", known=[plugin, logon, PLAIN])
    everywhere, here = seen
    assert (everywhere.name, everywhere.plugins, everywhere.has_authenticator) == ("", ("checked", "plain"), True)
    assert (here.name, here.plugins) == ("a", ("checked", "plain", "checked", "logon"))
    assert [str(url) for url in here.urls] == ["http://a:80/"]
    assert here.has_authenticator
    seen.clear()
    load("[checked]", known=[plugin])
    assert not seen[0].has_authenticator
    seen.clear()
    more = "pools: {app: {targets: ['http://a.test'], pass_through: [ntlm]}, plain: {targets: ['http://b.test']}}\n"
    load("[checked]", top="plugins: [checked]\n" + more, known=[plugin])
    assert [facts.passing for facts in seen] == [{"app"}, {"app"}]
    assert seen[0].passing < seen[0].pools


def test_limits_that_a_plugin_brings() -> None:
    """They are defaults: what is written wins, at the top and at the site."""
    small = made("small", limits={"max_query": 2048, "max_url": 4096})
    for top, site, query in (("", "", 2048), ("limits: {max_query: 99}\n", "", 99)):
        found = load(f"[small{site}]", top=top, known=[small]).config
        assert found.sites["a"].limits.max_query == query
        assert found.sites["a"].limits.max_url == 4096
    everywhere = load("[]", top="plugins: [small]\n", known=[small]).config
    assert everywhere.sites["a"].limits.max_url == 4096
    assert everywhere.limits.max_url is None


BIG = made("big", limits={"max_head": 65536, "max_field": 60000})
BIGGER = made("bigger", limits={"max_head": 131072})
MODEST = made("modest", limits={"max_head": 100})


@pytest.mark.parametrize(
    ("top", "plugins", "expected"),
    [
        ("", "[big]", (65536, 60000)),
        ("", "[bigger, big]", (131072, 60000)),
        ("", "[big, bigger]", (131072, 60000)),
        ("plugins: [bigger]\n", "[big, modest]", (131072, 60000)),
        ("", "[modest]", (16384, 16384)),
        ("limits: {max_head: 1MiB}\n", "[big]", (1 << 20, 60000)),
    ],
)
def test_the_largest_head_that_a_plugin_needs_counts(top: str, plugins: str, expected: tuple[int, int]) -> None:
    found = load(plugins, top=top, known=[BIG, BIGGER, MODEST])
    limits = found.config.sites["a"].limits
    assert (limits.max_head, limits.max_field) == expected
    assert effective(found.config)["sites"]["a"]["limits"]["max_head"] == expected[0]  # what `show config` says
    assert found.config.limits.max_head == (1 << 20 if top.startswith("limits") else 16384)
    assert found.warnings == []


def test_a_smaller_limit_that_somebody_wrote_stays_and_is_warned_about() -> None:
    found = load("[big]", top="limits: {max_head: 8KiB, max_field: 64KiB}\n", known=[BIG])
    assert (found.config.sites["a"].limits.max_head, found.config.sites["a"].limits.max_field) == (8192, 65536)
    (warning,) = found.warnings
    assert (warning.path, warning.severity) == ("limits.max_head", "warning")
    assert warning.message == "big needs 65536 bytes on the site a: longer credentials will be refused"
    assert warning.hint == "leave `max_head` out, or write 65536"


# ---------------------------------------------------------------------------------------------------- mutated


YAML = st.recursive(
    st.sampled_from(["full", "plain", "needs", "x", "7", "-1", "~", "true", "''", "/", "'*'", "1s"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(
            st.sampled_from(["full", "plain", "rules", "limit", "path", "by", "token", "tokens", "x", "issuer"]), inner,
            max_size=3,
        ).map(lambda items: f"{{{', '.join(f'{key}: {value}' for key, value in items.items())}}}"),
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=60)
@given(YAML)
def test_whatever_is_written_is_loaded_or_told(plugins: str) -> None:
    try:
        entries = load(plugins).config.sites["a"].plugins
    except ConfigProblems as problems:
        wrong, entries = [problem.line for problem in problems.problems if problem.severity == "error"], None
    if entries is None:
        assert set(wrong) == {2}
    else:
        assert all(isinstance(entry.settings, entry.kind.settings) for entry in entries)
