"""The text of errors is product: each small file in ``errors/`` has its full expected output beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .helpers import TLS, errors_of

CASES = sorted((Path(__file__).parent / "errors").glob("*.yaml"))
ENVIRON = {"PORT": "http", "HOST": "a b", "APP_PORT": "99999", "HOME": "/"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_what_is_printed(case: Path, folder: Path) -> None:
    printed = errors_of(case.read_text(), folder, ENVIRON).replace(str(folder), "FOLDER")
    assert printed + "\n" == case.with_suffix(".txt").read_text()


def test_an_empty_file() -> None:
    assert errors_of("") == "frontd.yaml: the file is empty; it needs at least `sites`"
    assert errors_of("# nothing\n") == errors_of("")


_INDENT = "keys that belong together begin in the same column"


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("sites:\n  a: http://app\n   b:\n", "3:5", _INDENT),
        ("sites:\n  a:\n    urls: [http://a/]\n   routes: {/: http://b}\n", "4:4", _INDENT),
        ("sites:\n    a: http://app:8000\n  b: http://app:8000\n", "3:3", _INDENT),
        ("sites:\n  a: {urls: ['http://a/],\n    routes: {/: x: y}}\n\n", "2:14", "opened in line 2 is never closed"),
        ("sites:\n  a: 'http://a\n  b: 'http://b'\n", "3:7", "closes one that was opened in an earlier line"),
        ("sites:\n  a: {urls: [http://a/], routes: {/: x}},\n", "2:41", "take it away"),
        ("sites:\n  a: http://a,\n  b: 'http://b',\n", "3:16", "take it away"),
        ("sites: {a: {urls: [http://a/, , http://b/]}}\n", "1:31", "a comma too many"),
        ("sites:\n  a:\n    urls: [http://a/\n    routes: {/: x}\n", "4:11", "is the [ opened in line 3 closed?"),
        ("sites:\n  a\n  # b\n  b: http://x\n", "4:3", "does it lack its colon?"),
        ("sites:\n  a: http://app: 8000\n", "2:16", "a value that contains a colon followed by a blank needs quotes"),
        ("sites:\n  a: 'x' y\n", "2:10", ""),
    ],
)
def test_hints_at_what_is_wrong_with_the_yaml(text: str, place: str, hint: str) -> None:
    printed = errors_of(text)
    assert printed.startswith(f"frontd.yaml:{place}: this is not valid YAML")
    _, equals, said = printed.partition("\n  = ")
    assert hint in said
    assert bool(hint) == bool(equals)


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("app:8000", "http://app:8000"),
        ("127.0.0.1:29002", "http://127.0.0.1:29002"),
        ("[::1]:9000", "http://[::1]:9000"),
        ("9000", "http://127.0.0.1:9000"),
        ("app", "http://app:8000"),
        ("99999", "http://app:8000"),
    ],
)
def test_a_target_without_scheme(written: str, hint: str) -> None:
    printed = errors_of(f"sites: {{a: {{urls: [http://a/], routes: {{/: '{written}'}}}}}}")
    assert f"there is no pool '{written}'" in printed
    assert printed.endswith(f"or write a target: {hint}")


def test_a_secret_is_never_printed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2 http://\n")
    secret = '"${file:secret}"'
    text = f"""\
    listen: {{http: {secret}}}
    sites:
      a: {{urls: [{secret}], routes: {{/: {{pool: {secret}}}, /b: {{target: {secret}}}}}, redirect_http: {secret}}}
    limits: {{max_body: {secret}, max_fields: {secret}}}
    timeouts: {{drain: {secret}}}
    trusted_proxies: [{secret}]
    """
    printed = errors_of(text, tmp_path)
    assert "hunter2" not in printed
    assert printed.count("the value is not valid here") == 8
    assert f"(from {tmp_path}/secret)" in printed


def test_nothing_of_the_file_moves_the_cursor() -> None:
    printed = errors_of('"a\\e[31mb": 1\nsites: {"\\r": "\\x07"}\n')
    assert all(character.isprintable() or character == "\n" for character in printed)


def test_a_long_line_is_cut_around_the_mark() -> None:
    text = (
        "sites: {" + ", ".join(f"a{n}: {{routes: {{/: http://a}}, urls: [http://a{n}/], x: 1}}" for n in range(9)) + "}"
    )
    problem = errors_of(text).split("\n")
    lines = [line for line in problem if line.startswith("  | ")]
    assert max(map(len, lines)) <= 104
    for shown, caret in zip(lines[::2], lines[1::2], strict=True):
        assert shown[caret.index("^")] == "x"


def test_an_error_in_a_global_limit_is_told_once(folder: Path) -> None:
    text = "limits: {max_fields: x}\nsites:\n" + "".join(
        f"  s{n}: {{urls: [http://s{n}/], routes: {{/: http://a}}, limits: {{max_body: 1}}}}\n" for n in range(3)
    )
    assert errors_of(text, folder).count("a whole number is expected") == 1


def test_a_variable_in_a_key(folder: Path) -> None:
    printed = errors_of(
        TLS + "sites: {'${NAME}': http://app, '${NO}': http://app, '${NO}x': x}", folder, {"NAME": "a b"}
    )
    assert "sites.a b: a site without `urls` has its host as key, but 'a b' is not a host name" in printed
    assert printed.count("the variable NO is not set") == 2
    assert "already" not in printed


@pytest.mark.parametrize("written", ["a b, {c", '"x, y} z"', "'it''s, x'"])
def test_a_password_in_the_file_is_not_shown_either(written: str, folder: Path) -> None:
    block = errors_of(f"tls:\n  certificates:\n    - password: {written}\n", folder)
    assert f"  |     - password: {'*' * len(written)}\n" in block
    written = written.replace(", {", "")
    flow = errors_of(f"tls: {{certificates: [{{password: {written}, cert: x}}]}}", folder)
    assert f"password: {'*' * len(written)}, cert: x" in flow


def test_where_a_password_comes_from_is_shown(folder: Path) -> None:
    assert "password: ${X:-1}${Y}" in errors_of("tls: {certificates: [{password: '${X:-1}${Y}'}]}", folder).replace(
        "'", ""
    )
