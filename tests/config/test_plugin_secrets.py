"""Whatever is wrong with the settings of a plugin, and however: nothing of a secret is printed with the errors.

Where a value stands for what it should, its field says that it is secret; in a typo, nothing does.  So none of the
values in settings is shown.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from frontd_plugins.headers import Headers
from hypothesis import given
from hypothesis import strategies as st

import frontd
from frontd.config.load import ConfigProblems, loads
from frontd.config.marks import Stop, read
from frontd.config.pluginlist import hide_settings
from frontd.config.problems import Mark, Source
from tests.scenarios.plugged import of

from .helpers import HOME, NO_MOUNTS, flat

SECRET = "hunter2"


class Inner(frontd.Settings):
    """A part that holds a secret."""

    token: frontd.Secret


class SecretP(frontd.Plugin):
    """Takes secrets in every shape."""

    name = "secretp"

    class Settings(frontd.Settings):
        token: frontd.Secret | None = None
        limit: int = 1
        inner: Inner | None = None
        many: tuple[Inner, ...] = ()
        named: dict[str, Inner] = {}
        words: tuple[str, ...] = ()


def printed(text: str) -> str:
    """What is said about this configuration, which has errors."""
    with pytest.raises(ConfigProblems) as caught:
        loads(
            text, base=Path("/base"), environ=HOME, container=False, mountinfo=NO_MOUNTS, discover=of(SecretP, Headers)
        )
    return str(caught.value)


def site(plugins: str) -> str:
    """A site with these plugins, in flow style."""
    return f"sites:\n  a: {{urls: [http://a/], routes: {{/: http://b}}, plugins: {plugins}}}\n"


def block(plugins: str) -> str:
    """A site with these plugins, in block style."""
    lines = textwrap.indent(textwrap.dedent(plugins).strip("\n"), "      ")
    return f"sites:\n  a:\n    urls: [http://a/]\n    routes: {{/: http://b}}\n    plugins:\n{lines}\n"


FLOW = [
    "[{secretp: {tokn: hunter2}}]",
    "[secretp: {Token: hunter2}]",
    "[secretpp: {token: hunter2}]",
    "[secretp: hunter2]",
    "[secretp: [hunter2]]",
    "[secretp: {token: hunter2, token: hunter2}]",
    "[secretp: {token: 'hunter2', 'token': \"hunter2\"}]",
    "[secretp: {token: ab,hunter2}]",
    "[secretp: {token: ab, hunter2, limit: x}]",
    "[secretp: {token:hunter2}]",
    "[secretp: {limit: x}, token: hunter2]",
    "[{secretp: {limit: x}, token: hunter2}]",
    "[token: hunter2]",
    "[secretp: {named: {a: ab,hunter2}}]",
    "[secretp: {named: {a: hunter2}}]",
    "[secretp: {named: hunter2}]",
    "[secretp: {named: [hunter2]}]",
    "[secretp: {inner: hunter2}]",
    "[secretp: {inner: {tokn: hunter2}}]",
    "[secretp: {inner: {token: [hunter2]}}]",
    "[secretp: {many: hunter2}]",
    "[secretp: {many: [hunter2]}]",
    "[secretp: {many: {token: hunter2}}]",
    "[secretp: {many: [{token: ab, token: hunter2}]}]",
    "[secretp: {limit: x, token: hunter2} # hunter2\n    ]",
    "{secretp: {token: hunter2}}",
    "[[secretp, hunter2]]",
    "[headers: {set_request: {X-Api-Key: hunter2}, set_requset: {X-Api-Key: hunter2}}]",
    "[headers: {set_request: {X-Api-Key: hunter2, 'a b': hunter2}}]",
    # what ${…} is made of
    "[secretp: {token: 'ab$hunter2'}]",
    "[secretp: {token: 'ab${hunter2'}]",
    "[secretp: {token: 'ab${+hunter2}'}]",
    "[secretp: {token: 'ab${HOME+hunter2}'}]",
    "[secretp: {token: '${HOM:-hunter2}', limit: x}]",
    # what is not even YAML
    "[secretp: {token: @hunter2}]",
    "[secretp: {token: ab: hunter2}]",
    "[secretp: {token: *hunter2}]",
    "[secretp: {token: !hunter2 ab}]",
    "[secretp: {token: ab[hunter2}]",
    '[secretp: {token: "ab"hunter2}]',
    '[secretp: {token: "hunter2}]',
    "[secretp: {token: hunter2\x07}]",
]


@pytest.mark.parametrize("plugins", FLOW)
@pytest.mark.parametrize("key", ["plugins", '"plugins"', "plugin", "Plugins"])
def test_on_one_line(plugins: str, key: str) -> None:
    said = printed(site(plugins).replace("plugins:", f"{key}:"))
    assert SECRET not in said
    assert "***" in said
    top = printed(f"{key}: {plugins}\nsites: {{a: {{urls: [http://a/], routes: {{/: http://b}}}}}}\n")
    assert SECRET not in top


@pytest.mark.parametrize(
    "plugins",
    [
        "- secretp:\n    tokn: hunter2",
        "- secretp:\n    token: hunter2\n    token: hunter2",
        "- secretpp:\n    token: hunter2",
        "- secretp:\n    token:hunter2",
        "- secretp:\n    limit: 1\n    token:hunter2",
        "- secretp:\n    hunter2",
        "- secretp:\n  token: hunter2",
        "- secretp:\n    limit: x # hunter2",
        "- secretp:\n    token: @hunter2",
        "- secretp:\n    token: %hunter2",
        "- secretp:\n    token: ab: hunter2",
        "- secretp:\n    token: *hunter2",
        "- secretp:\n    token: !hunter2",
        "- secretp:\n    token: !hunter2 ab",
        "- secretp:\n    token: &ab hunter2\n    limit: *ab",
        "- secretp:\n    token: 'ab'hunter2",
        "- secretp:\n    words:\n    - @hunter2",
        "- secretp:\n    words: [a,\n      @hunter2]",
        "- secretp:\n    tokn: |\n      hunter2\n      hunter2",
        "- secretp:\n    tokn: |\n\thunter2",
        "- secretp: {tokn: 'hunter2\n     hunter2', limit: x, token: hunter2}",
        '- secretp: {token: "hunter2\n     hunter2", limit: x}',
        "- secretp: {token: hunter2\n     hunter2, limit: x}",
        "- secretp: {\n    token: hunter2, limit: x}",
        "- secretp: {limit: x,\n    token: ab\n  \thunter2, words: x}",
    ],
)
def test_on_several_lines(plugins: str) -> None:
    for text in (block(plugins), block(plugins).replace("\n      ", "\n    ")):
        assert SECRET not in printed(text)


def test_what_comes_in_by_an_anchor() -> None:
    text = "x-it: &it {tokn: hunter2, token: &word hunter2}\n"
    for plugins in ("[secretp: *it]", "[secretp: {<<: *it}]", "[secretp: {limit: *word}]", "[secretp: {named: *it}]"):
        said = printed(text + site(plugins))
        if plugins != "[secretp: {limit: *word}]":  # a number that is a word is no secret, wherever it was written
            assert SECRET not in said


def test_keys_words_and_carets_stay() -> None:
    assert printed(site("[secretp: {limit: 11, tokn: 'hunter2'}]")) == flat("""
        frontd.yaml:2:80: sites.a.plugins[0].secretp.tokn: unknown key
          |   a: {urls: [http://a/], routes: {/: http://b}, plugins: [secretp: {limit: **, tokn: *********}]}
          |                                                                                ^^^^
          = did you mean "token"?
    """)
    assert printed(block("- secretp:\n    limit: ab # why\n    words: [x]\n- secretpp")) == flat("""
        frontd.yaml:7:18: sites.a.plugins[0].secretp.limit: a whole number is expected, not 'ab'
          |           limit: ** * ***
          |                  ^^
        frontd.yaml:9:9: sites.a.plugins[1]: there is no plugin 'secretpp'
          |       - secretpp
          |         ^^^^^^^^
          = did you mean "secretp"?
    """)


def test_what_is_not_yaml_hides_whole_lines_of_plugins_and_of_nothing_else() -> None:
    assert printed(block("- secretp:\n    token: @ab {c}")) == flat("""
        frontd.yaml:7:18: this is not valid YAML: found character that cannot start any token while scanning for the next token
          |           token: *** ***
          |                  ^
          = a value that begins with @, ` or % needs quotes
    """)  # noqa: E501 - the line is one that is printed
    for after in ("    redirect_http: @x", "pools: {a: @x}", "plugins_dir: @x"):
        assert "@x" in printed(block("- secretp") + after)


def test_other_sections_are_shown() -> None:
    said = printed(site("[secretp]").replace("http://a/", "ftp://a/"))
    assert "ftp://a/], routes: {/: http://b}, plugins: [secretp]" in said


words = st.sampled_from(
    [
        "secretp", "limit", "token", "tokn", "x", "{", "}", "[", "]", ":", ": ", ", ", "'", '"', "|", "&a ", "*a",
        "!a ", "#", " ", "$", "\n", "\n      ", "\n      - ", "\n          ", "hunter2",
    ]
)  # fmt: skip


@given(st.lists(words, max_size=25).map("".join), st.booleans())
def test_whatever_stands_there(plugins: str, in_flow: bool) -> None:
    """Values at every place of the excerpts: none is shown, unless it is the word of a plugin or a key."""
    text = site(f"[secretp: {{token: {plugins}}}]") if in_flow else block(f"- secretp:\n    token: {plugins}")
    source = Source("frontd.yaml", text)
    try:
        root = read(source)
    except Stop:
        return
    if root is not None:
        hide_settings(source, root)
        for number, line in enumerate(text.splitlines(), 1):
            if f": {SECRET}" in line and "plugins" not in line.partition(SECRET)[2]:
                source.error(Mark(number, 1), "", str(number))
    assert all(f": {SECRET}" not in problem.excerpt for problem in source.problems)
