"""`explain`: the winner of each step and why the others lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from frontd.cli import devca
from frontd.cli.explain import explain_text
from frontd.cli.root import cli
from frontd.config.load import loads
from frontd.processes.explain import explain

TEXT = """
listen:
  http: 8080
  https: {port: 8443, public_port: 443}
  other: {kind: https, address: 127.0.0.1, port: 9443}
tls:
  certificates:
    - {cert: CA/localhost.crt, key: CA/localhost.key}
sites:
  shop:
    urls: ["https://shop.localhost/", "https://shop.localhost:9443/deep/"]
    routes:
      /: web
      /api/: {pool: api, strip_prefix: true}
      /old/: {redirect: "https://shop.localhost/new{path}", status: 301}
  admin:
    urls: ["https://shop.localhost/admin/"]
    routes: {/admin/x/: web}
  rest:
    urls: ["https://*.localhost/"]
    routes: {/: "http://127.0.0.1:7000"}
  plain:
    urls: ["http://plain.localhost:8080/"]
    routes: {/: web}
pools:
  web: {targets: ["http://web:80"]}
  api: {targets: ["http://api1:8000", "http://api2:8000"], concurrency: 8}
"""


@pytest.fixture
def text(tmp_path: Path) -> str:
    made = devca.ensure(tmp_path, "shop.localhost")
    return TEXT.replace("CA", str(made.ca.parent))


def ask(text: str, url: str) -> tuple[dict[str, str | None], dict[str, dict[str, str]], str]:
    """(step → chosen, step → what lost → why, answer)"""
    answer = explain(loads(text, container=False).config, url)
    assert answer["url"] == url
    chosen = {step["step"]: step["chosen"] for step in answer["steps"]}
    lost = {step["step"]: {one["what"]: one["why"] for one in step["lost"]} for step in answer["steps"]}
    return chosen, lost, answer["answer"]


def test_the_whole_way(text: str) -> None:
    chosen, lost, answer = ask(text, "https://shop.localhost/API/v1?x=1")
    assert list(chosen) == ["listener", "certificate", "site", "route", "pool", "target"]
    assert chosen["listener"] == "https (*:8443)"
    assert chosen["site"] == "shop"
    assert chosen["route"] == "/api/"
    assert chosen["pool"] == "api"
    assert chosen["target"] == "http://api1:8000 | http://api2:8000"
    assert answer == "forwarded to http://api1:8000 or http://api2:8000 as /v1?x=1"
    assert lost["listener"] == {
        "http (*:8080)": "it speaks http, the URL says https",
        "other (127.0.0.1:9443)": "clients reach it on port 9443, the URL says 443",
    }
    assert lost["site"] == {
        "shop: https://shop.localhost:9443/deep/": "it is for port 9443",
        "admin: https://shop.localhost:443/admin/": "/API/v1 is not under /admin/",
        "rest: https://*.localhost:443/": "shop.localhost is more exact than *.localhost",
        "plain: http://plain.localhost:8080/": "it is for http",
    }
    assert lost["route"] == {"/": "/api/ is longer", "/old/": "/API/v1 is not under it"}


@pytest.mark.parametrize(
    ("url", "site", "answer"),
    [
        ("https://shop.localhost/", "shop", "forwarded to http://web as /"),
        ("https://shop.localhost/a/../b%7E", "shop", "forwarded to http://web as /b~"),
        ("https://shop.localhost/api", "shop", "forwarded to http://api1:8000 or http://api2:8000 as /"),
        ("wss://shop.localhost/api/", "shop", "forwarded to http://api1:8000 or http://api2:8000 as /"),
        ("https://shop.localhost/old/a?b", "shop", "301 redirect to https://shop.localhost/new/old/a?b"),
        ("https://shop.localhost/admin/x/1", "admin", "forwarded to http://web as /admin/x/1"),
        ("https://shop.localhost/admin/", "admin", "404 NotFound"),
        ("https://other.localhost/x", "rest", "forwarded to http://127.0.0.1:7000 as /x"),
        ("https://shop.localhost:9443/", None, "404 NotFound"),
        ("http://plain.localhost:8080/", "plain", "forwarded to http://web as /"),
        ("http://shop.localhost:8080/x?y=1", "shop", "308 redirect to https://shop.localhost/x?y=1"),
        ("http://nobody.example:8080/", None, "400 Hostname"),
    ],
)
def test_where_it_ends(text: str, url: str, site: str | None, answer: str) -> None:
    chosen, _, said = ask(text, url)
    assert chosen["site"] == site
    assert said.startswith(answer)


def test_no_listener(text: str) -> None:
    chosen, _, answer = ask(text, "https://shop.localhost:1234/")
    assert chosen == {"listener": None}
    assert answer == "no connection: nothing listens for https on port 1234"


def test_no_certificate_and_no_default(text: str) -> None:
    chosen, lost, answer = ask(text, "https://nobody.example/")
    assert chosen["certificate"] is None
    assert "not for nobody.example" in next(iter(lost["certificate"].values()))
    assert answer.startswith("the TLS handshake is refused")


def test_the_default_certificate(text: str) -> None:
    config = loads(text.replace("tls:\n", "tls:\n  default: localhost\n"), container=False).config
    steps = {step["step"]: step for step in explain(config, "https://nobody.example/")["steps"]}
    assert steps["certificate"]["chosen"].endswith("localhost.crt")
    assert "tls.default is localhost; clients will not accept it for nobody.example" in steps["certificate"]["why"]


def test_a_path_that_is_refused(text: str) -> None:
    assert ask(text, "https://shop.localhost/a%00")[2].startswith("400 URL")


@pytest.mark.parametrize("url", ["ftp://x/", "https://", "https://a b/", "https://x:99999/"])
def test_what_is_not_a_url(text: str, url: str) -> None:
    with pytest.raises(ValueError, match=r"not a URL|not a host name"):
        explain(loads(text, container=False).config, url)


def test_the_command_reads_a_file(text: str, tmp_path: Path, runner: CliRunner) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(text)
    result = runner.invoke(cli, ["explain", "shop.localhost/api/x", "-c", str(file)])
    assert result.exit_code == 0, result.output
    assert "site          shop\n" in result.output
    assert "not /: /api/ is longer" in result.output
    assert result.output.endswith("→ forwarded to http://api1:8000 or http://api2:8000 as /x\n")
    as_json = runner.invoke(cli, ["explain", "shop.localhost/api/x", "-c", str(file), "--json"])
    assert json.loads(as_json.output)["url"] == "https://shop.localhost/api/x"
    assert runner.invoke(cli, ["explain", "ftp://x", "-c", str(file)]).exit_code == 2


def test_text_of_an_answer_with_nothing_chosen() -> None:
    answer: dict[str, Any] = {
        "url": "https://x/", "steps": [{"step": "listener", "chosen": None, "why": "none", "lost": []}], "answer": "no",
    }  # fmt: skip
    assert explain_text(answer) == "https://x/\n\nlistener   none\n           none\n\n→ no"
