"""``${…}``: on scalars, never on text that becomes YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontd.config.interpolate import Expansion, Refused, expand

from .helpers import errors_of, load_text

ENVIRON = {"A": "a", "EMPTY": "", "PORT": "8080"}


def expanded(text: str, base: Path = Path("/nowhere")) -> str:
    return expand(text, Expansion(ENVIRON, base))


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("x${A}y${A}", "xaya"),
        ("${EMPTY}", ""),
        ("${EMPTY:-d}", "d"),
        ("${NO:-}", ""),
        ("${NO:-x:-y}", "x:-y"),
        ("${NO:-${A}b}", "ab"),
        ("${NO:-${NO:-${PORT}}}", "8080"),
        ("${A:?never}", "a"),
        ("$$", "$"),
        ("$${A}", "${A}"),
        ("$$$${A}", "$${A}"),
        ("${NO:-$$}", "$"),
        ("a}b{c", "a}b{c"),
    ],
)
def test_what_comes_out(text: str, result: str) -> None:
    assert expanded(text) == result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${NO}", "the variable NO is not set"),
        ("${NO:?tell me}", "the variable NO is not set: tell me"),
        ("${EMPTY:?}", "the variable EMPTY is not set: it is required"),
        ("${A", "no closing }"),
        ("$A", "a single $ stands here"),
        ("a$", "a single $ stands here"),
        ("${}", "does not name a variable"),
        ("${a-b}", "'-b' after the variable name is not understood"),
        ("${A:+x}", "not understood"),
        ("${file:}", "names no file"),
        ("${file:/nowhere/x}", "/nowhere/x cannot be read: No such file or directory"),
        ("${N:-${N:-${N:-${N:-${N:-${N:-x}}}}}}", "nested more than 4 deep"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(Refused) as caught:
        expanded(text)
    assert message in str(caught.value)


def test_a_file_loses_one_final_line_break(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one\ntwo\n\n")
    assert expanded("<${file:a}>", tmp_path) == "<one\ntwo\n>"
    (tmp_path / "b").write_bytes(b"x\r\n")
    assert expanded("${file:b}", tmp_path) == "x"
    (tmp_path / "big").write_bytes(b"x" * 65537)
    with pytest.raises(Refused, match="larger than 64 KiB"):
        expanded("${file:big}", tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(Refused, match="not valid UTF-8"):
        expanded("${file:binary}", tmp_path)


def test_a_secret_cannot_become_structure(folder: Path) -> None:
    text = "sites: {a: {urls: [http://a/], routes: {/: {redirect: '/${X}'}}}}"
    assert "controls" in errors_of(text, environ={"X": "b, pool: x\nstate_dir: /"})


def test_types_are_found_after_interpolation() -> None:
    text = """\
    listen: {plain: {kind: http, port: "${PORT}", public_port: 80}, "${N}": {kind: http, port: "${NO:-81}"}}
    sites:
      a:
        urls: ["http://${A}/"]
        redirect_http: ${FLAG}
        routes: {"/${A}/": "http://app:${PORT}"}
        limits: {max_body: "${NONE}"}
    timeouts:
      drain: ${WAIT:-1m}
    """
    config = load_text(text, environ={**ENVIRON, "FLAG": "false", "N": "name", "NONE": "none"}).config
    assert config.listen["plain"].port == 8080
    assert config.listen["name"].port == 81
    site = config.sites["a"]
    assert (str(site.urls[0]), site.redirect_http, site.limits.max_body) == ("http://a:80/", False, None)
    assert site.routes["/a/"].pool == "http://app:8080"
    assert config.timeouts.drain == 60.0


def test_an_empty_variable_is_not_a_value_left_out() -> None:
    text = "sites: {a: {urls: [http://a/], routes: {/: http://app}}}\nstate_dir: ${EMPTY}\n"
    assert "state_dir: the key has no value (from $EMPTY)" in errors_of(text, environ=ENVIRON)
