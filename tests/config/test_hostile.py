"""Whatever the bytes: a configuration or `ConfigProblems`, in bounded time and memory."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontd.config.load import ConfigProblems, load, loads

from .helpers import NO_MOUNTS, errors_of

SEED = """\
x-a: &a {queue: {limit: 7, wait: 500ms}}
listen: {http: 80, https: {port: 8443, public_port: 443}, x: {kind: http, address: "::1", port: "${P:-81}"}}
tls:
  certificates: [{cert: a.crt, key: a.key}, {pfx: b.pfx, password: "${file:/nowhere}"}]
  hosts: {a.example: {client_certificate: required, ca: ca.pem, min_version: "1.3"}}
trusted_proxies: [10.0.0.0/8]
sites:
  a.example: http://app:8000
  b:
    urls: [http://b/, "http://+/x/", "https://*.c.example:8443/"]
    routes: {/: p, /r: {redirect: "https://x{path}", status: 301}, /t: {target: "unix:/run/x", strip_prefix: true}}
    limits: {max_body: 3MB}
    timeouts: {drain: 1h30m}
pools: {p: {<<: *a, targets: [http://p:1, "http://[::1]:2"], concurrency: 5}}
log: {access: {to: stdout, format: json}, error: off}
health: {listen: 127.0.0.1:9000}
state_dir: $$HOME
"""


PIECES = [
    "", "~", "{", "}", "[", "]", ": ", "\n", "\n  ", "- ", "*a", "&a ", "<<: ", "${P}", "${", "$", "-1", "no", "1e9",
    "0x10", "!!int ", "---\n", '"', "'", "#", "|\n", "\t", "\x00", "\ud800", "\u2028", "é", "http://", "unix:", "::",
]  # fmt: skip


def try_to_load(text: str) -> None:
    with contextlib.suppress(ConfigProblems):
        loads(text, base=Path("/nowhere"), environ={"P": "1"}, container=True, mountinfo=NO_MOUNTS)


def test_the_seed_is_understood() -> None:
    printed = errors_of(SEED, Path("/nowhere"))
    assert "cannot be read" in printed
    assert "unknown key" not in printed
    assert "not valid YAML" not in printed


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_files(data: st.DataObject) -> None:
    text = SEED
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        pieces = st.sampled_from(PIECES)
        text = text[:start] + data.draw(st.one_of(pieces, st.text(max_size=4))) + text[end:]
    try_to_load(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SEED.splitlines()), st.sampled_from(["", "~", "[]", "{}", "x", "[x]", "1"]))))
def test_lines_in_any_order_with_other_values(lines: list[tuple[str, str]]) -> None:
    try_to_load("\n".join(line if not value else line.partition(":")[0] + ": " + value for line, value in lines))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300))
def test_random_bytes(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "random.yaml"
    path.write_bytes(data)
    with contextlib.suppress(ConfigProblems):
        load(path, environ={}, container=False, mountinfo=NO_MOUNTS)


def test_a_file_of_more_than_one_mebibyte() -> None:
    assert errors_of("#" * (1 << 20) + "\nsites: {}\n") == "frontd.yaml: the file is larger than 1 MiB"


@pytest.mark.parametrize("text", ["[" * 500_000, "{a: " * 200_000, "- " * 300_000], ids=["lists", "maps", "block"])
def test_deep_nesting(text: str) -> None:
    assert "maps and lists are nested more than 32 deep" in errors_of(text)


def test_a_billion_laughs() -> None:
    lines = ["x-0: &a0 [" + ", ".join(["lol"] * 9) + "]"]
    lines += [f"x-{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 10)]
    assert "the file has more than 20,000 values, aliases followed" in errors_of("\n".join(lines))


def test_merge_keys_count_as_well() -> None:
    wide = "x-0: &a {" + ", ".join(f"k{n}: 1" for n in range(1000)) + "}\n"
    text = wide + "\n".join(f"x-m{n}: {{<<: [" + ", ".join(["*a"] * 100) + "]}" for n in range(100))
    assert "the file has more than 20,000 values, aliases followed" in errors_of(text)


def test_interpolation_is_bounded() -> None:
    text = "\n".join(f"x-{n}: '" + "${BIG}" * 60 + "'" for n in range(200))
    printed = errors_of(text, environ={"BIG": "x" * 1000, "HOME": "/"})
    assert "the file is larger than 4 MiB after ${…} is replaced" in printed
    assert "the text is longer than 64 KiB" in errors_of("x-a: '" + "${BIG}" * 70 + "'", environ={"BIG": "x" * 1000})
