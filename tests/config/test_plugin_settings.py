"""What is said about a plugin's setting of the wrong type: in our words, and with what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

import frontd
from frontd.config.load import ConfigProblems, loads
from tests.scenarios.plugged import of

from .helpers import HOME, NO_MOUNTS


class Hsts(frontd.Settings):
    """A part that needs nothing."""

    age: frontd.Duration = 5.0


class Wide(frontd.Plugin):
    """Settings of every type that has something to be said about."""

    name = "wide"

    class Settings(frontd.Settings):
        hsts: Hsts | None = None
        parts: tuple[Hsts, ...] = ()
        allow: tuple[str, ...] = ()
        users: frozenset[str] = frozenset()
        word: str = ""
        mode: Literal["a", "b", "c"] = "a"
        only: Literal["a"] = "a"
        names: dict[str, str] = {}
        short: Annotated[str, Field(min_length=2, max_length=4, pattern="^[a-z]+$")] = "aa"
        one: Annotated[str, Field(min_length=1)] = "a"
        few: Annotated[tuple[str, ...], Field(max_length=2)] = ()
        many: Annotated[tuple[str, ...], Field(min_length=2)] = ("a", "b")
        pair: tuple[int, int] = (1, 2)
        count: int = 1
        share: float = 0.5
        on: bool = True
        flag: frontd.Flag = True
        size: frontd.Size = 1
        network: frontd.Network | None = None
        token: frontd.Secret | None = None
        tokens: dict[str, frontd.Secret] = {}


def errors(settings: str) -> str:
    text = f"sites: {{a: {{urls: [http://a/], routes: {{/: http://b}}, plugins: [wide: {{{settings}}}]}}}}\n"
    with pytest.raises(ConfigProblems) as caught:
        loads(text, base=Path("/base"), environ=HOME, container=False, mountinfo=NO_MOUNTS, discover=of(Wide))
    return str(caught.value)


def told(settings: str) -> list[str]:
    """Place and sentence of each error."""
    lines = [line for line in errors(settings).splitlines() if line.startswith("frontd.yaml")]
    return [line.partition("sites.a.plugins[0].wide.")[2] for line in lines]


def hints(settings: str) -> list[str]:
    return [line[4:] for line in errors(settings).splitlines() if line.startswith("  = ")]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("hsts: true", "hsts: a map is expected, not 'true'"),
        ("hsts: [a]", "hsts: a map is expected, not a list"),
        ("names: x", "names: a map is expected, not 'x'"),
        ("allow: group:staff", "allow: a list is expected, not 'group:staff'"),
        ("users: {a: b}", "users: a list is expected, not a map"),
        ("allow: [group: staff]", "allow[0]: a text is expected, not a map"),
        ("word: [a]", "word: a text is expected, not a list"),
        ("word: ", "word: a text is expected, not nothing"),
        ("names: {a: {b: c}}", "names.a: a text is expected, not a map"),
        ("mode: x", "mode: 'a', 'b' or 'c' is expected, not 'x'"),
        ("mode: [x]", "mode: 'a', 'b' or 'c' is expected, not a list"),
        ("mode: ", "mode: 'a', 'b' or 'c' is expected, not nothing"),
        ("only: x", "only: 'a' is expected, not 'x'"),
        ("short: a", "short: a text of at least 2 characters is expected, not 'a'"),
        ("one: ''", "one: a text of at least 1 character is expected, not ''"),
        ("short: aaaaa", "short: a text of at most 4 characters is expected, not 'aaaaa'"),
        ("short: A9", "short: a text that matches ^[a-z]+$ is expected, not 'A9'"),
        ("few: [a, b, c]", "few: at most 2 are allowed"),
        ("pair: [1]", "pair: the item [1] is missing"),
        ("pair: [1, 2, 3]", "pair: at most 2 are allowed"),
        ("many: [a]", "many: at least 2 are needed"),
        ("pair: [a, 1]", "pair[0]: a whole number is expected, not 'a'"),
        ("count: 1.5", "count: a whole number is expected, not '1.5'"),
        ("share: x", "share: a number is expected, not 'x'"),
        ("on: maybe", "on: true or false is expected, not 'maybe'"),
        ("flag: [a]", "flag: true or false is expected, not a list"),
        ("size: {a: 1}", "size: a size such as 30MB, 32MiB or a number of bytes is expected, not a map"),
        ("hsts: {age: [1]}", "hsts.age: a duration such as 30s, 1h30m or 500ms is expected, not a list"),
        ("hsts: {age: }", "hsts.age: a duration such as 30s, 1h30m or 500ms is expected, not nothing"),
        ("network: [x]", "network: a text is expected, not a list"),
        ("token: {a: b}", "token: a text is expected, not a map"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_in_plain_words(settings: str, says: str) -> None:
    assert told(settings) == [says]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("hsts: true", ["write hsts: {}"]),
        ("hsts: ON", ["write hsts: {}"]),
        ("hsts: false", ["leave hsts out"]),
        ("hsts: x", []),
        ("allow: group:staff", ['write ["group:staff"]']),
        ("allow: 'say \"x\"'", ['write ["say \\"x\\""]']),
        ("users: ann", ['write ["ann"]']),
        (f"allow: {'x' * 81}", []),
        ("parts: [true]", []),
        ("allow: ", []),
        ("allow: {a: b}", []),
        ("allow: [group: staff]", ['quote it: "group: staff"']),
        ("word: {a: b}", ['quote it: "a: b"']),
        ("word: {a: b, c: d}", []),
        ("word: {a: [b]}", []),
        ("word: [a]", []),
    ],
)
def test_what_to_write_instead(settings: str, says: list[str]) -> None:
    assert hints(settings) == says


def test_what_is_hinted_can_be_written() -> None:
    text = """
        sites:
          a:
            urls: [http://a/]
            routes: {/: http://b}
            plugins:
              - wide: {hsts: {}, allow: ["group:staff", "group: staff", "say \\"x\\""]}
    """
    found = loads(text, base=Path("/base"), environ=HOME, container=False, mountinfo=NO_MOUNTS, discover=of(Wide))
    settings = found.config.sites["a"].plugins[0].settings
    assert isinstance(settings, Wide.Settings)
    assert settings.hsts == Hsts()
    assert settings.allow == ("group:staff", "group: staff", 'say "x"')


@pytest.mark.parametrize(
    "settings",
    ["token: {a: hunter2}", "token: {hunter2: a}", "token: [hunter2]", "tokens: hunter2", "tokens: {a: {b: hunter2}}"],
)
def test_a_secret_of_the_wrong_type_is_not_repeated(settings: str) -> None:
    lines = errors(settings).splitlines()
    assert not any("hunter2" in line for line in lines if not line.startswith("  |"))
