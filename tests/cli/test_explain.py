"""`explain`: the winner of each step and why the others lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

import frontd
from frontd.cli import devca
from frontd.cli.explain import explain_text
from frontd.cli.root import cli
from frontd.config.load import loads
from frontd.config.model import Config
from frontd.pipeline.discovery import Discovery
from frontd.pipeline.phases import SPECS, freeze
from frontd.pipeline.plugin import Context
from frontd.pipeline.store import MemoryStore
from frontd.processes.explain import BEFORE_LOGON, explain

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
    routes: {/: web, /own/: own}
pools:
  web: {targets: ["http://web:80"]}
  api: {targets: ["http://api1:8000", "http://api2:8000"], concurrency: 8}
  own: {workers: {command: [app, "{fd}"], count: 2, concurrency: 4}}
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
        ("http://plain.localhost:8080/own/x", "plain", "forwarded to a worker (app {fd}) as /own/x"),
        ("http://shop.localhost:8080/x?y=1", "shop", "308 redirect to https://shop.localhost/x?y=1"),
        ("http://nobody.example:8080/", None, "400 Hostname"),
    ],
)
def test_where_it_ends(text: str, url: str, site: str | None, answer: str) -> None:
    chosen, _, said = ask(text, url)
    assert chosen["site"] == site
    assert said.startswith(answer)


# ------------------------------------------------------------------------------------------- plugins

PLUGINS = """
import frontd

class Gate(frontd.Plugin):
    name = "gate"

    def accept_client(self, client):
        return None

    def filter_request(self, exchange):
        return None

class Counter(frontd.Plugin):
    name = "counter"

    def log(self, exchange):
        pass

class Token(frontd.Plugin):
    name = "token"

    def authenticate(self, exchange):
        return None

    def challenge(self, exchange):
        return "Token"

class Rules(frontd.Plugin):
    name = "rules"

    def authorize(self, exchange):
        return None

class Mover(frontd.Plugin):
    name = "mover"

    def route(self, exchange):
        return None

    def filter_request(self, exchange):
        return None
"""


@pytest.fixture
def plugged(text: str, tmp_path: Path) -> Config:
    """Gate and counter on every site, more on the shop."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "all.py").write_text(PLUGINS)
    shop = "  shop:\n"
    text = text.replace(shop, f"{shop}    plugins: [mover, token, rules]\n")
    text += f"plugins_dir: {folder}\nplugins: [gate, counter]\n"
    return loads(text, discover=Discovery().catalogue, container=False).config


def step(config: Config, url: str, name: str) -> dict[str, Any]:
    (found,) = [step for step in explain(config, url)["steps"] if step["step"] == name]
    return cast("dict[str, Any]", found)


def test_plugins_are_named_by_what_they_are_asked(plugged: Config) -> None:
    assert step(plugged, "https://shop.localhost/", "plugins") == {
        "step": "plugins",
        "chosen": "gate, counter, mover, token, rules",
        "why": "accept_client: gate\n"
        "filter_request: gate, mover\n"
        "authenticate: token\n"
        "challenge: token\n"
        "authorize: rules\n"
        "route: mover\n"
        "log: counter\n"
        "token asks who it is; whoever has not logged on gets 401, unless rules lets them in\n"
        "mover may send it elsewhere; what follows is what the routes say",
        "lost": [],
    }
    names = [step["step"] for step in explain(plugged, "https://shop.localhost/")["steps"]]
    assert names == ["listener", "certificate", "site", "plugins", "route", "pool", "target"]


LOGONS = """
import frontd

class _Guard(frontd.Plugin):
    def authenticate(self, exchange):
        return None

    def challenge(self, exchange):
        return self.scheme

class Basic(_Guard):
    name = "password"
    scheme = "Basic"

class Ticket(_Guard):
    name = "ticket"
    scheme = "Negotiate"
    limits = {"max_head": 65536}
"""


@pytest.mark.parametrize(
    ("more", "schemes"),
    [
        ("plugins: [password, ticket]", "schemes, strongest first: Negotiate (ticket), Basic (password)"),
        (
            "plugins: [password, ticket]\n    challenges: [password]",
            "schemes, in the order of `challenges`: Basic (password), Negotiate (ticket)",
        ),
        ("plugins: [ticket]", "scheme: Negotiate (ticket)"),
    ],
)
def test_the_schemes_in_force_are_named(text: str, tmp_path: Path, more: str, schemes: str) -> None:
    (tmp_path / "logons.py").write_text(LOGONS)
    (tmp_path / "jwt.key").write_bytes(bytes(range(128, 160)))
    text = text.replace("  shop:\n", f"  shop:\n    {more}\n    identity: {{jwt_key: {tmp_path}/jwt.key}}\n")
    config = loads(f"{text}plugins_dir: {tmp_path}\n", discover=Discovery().catalogue, container=False).config
    why = step(config, "https://shop.localhost/", "plugins")["why"].splitlines()
    assert why[-3:] == [
        schemes,
        "heads may have 65536 bytes; ticket asks for 65536",
        f"apps are told who it is in X-Frontd-Identity, too, signed by {tmp_path}/jwt.key",
    ]


def test_a_site_without_plugins_of_its_own_has_those_of_the_server(plugged: Config) -> None:
    found = step(plugged, "http://plain.localhost:8080/", "plugins")
    assert (found["chosen"], found["why"]) == (
        "gate, counter",
        "accept_client: gate\nfilter_request: gate\nlog: counter",
    )


def test_before_a_redirect_to_https_nobody_logs_on(plugged: Config) -> None:
    found = step(plugged, "http://shop.localhost:8080/x", "plugins")
    assert found["chosen"] == "gate, counter, mover"
    assert found["why"] == "accept_client: gate\nfilter_request: gate, mover\nlog: counter"


def test_what_is_asked_before_a_redirect_is_what_the_pipeline_asks() -> None:
    def hook(self: frontd.Plugin, exchange: frontd.Exchange) -> None: ...

    def of_client(self: frontd.Plugin, client: frontd.Client) -> None: ...

    def of_failure(self: frontd.Plugin, exchange: frontd.Exchange, error: Exception) -> None: ...

    others = {"accept_client": of_client, "client_closed": of_client, "forward_failed": of_failure}
    every = type("Every", (frontd.Plugin,), {"name": "every", **dict.fromkeys(SPECS, hook), **others})
    phases = freeze([every(frontd.Settings(), Context("", MemoryStore(0), print))]).before_logon()
    asked = {"accept_client"} | {name for name in SPECS if getattr(phases, name)}  # a client is met before any site
    assert list(BEFORE_LOGON) == [name for name in SPECS if name in asked]


# ------------------------------------------------------------------------------------------- files


@pytest.fixture
def files(text: str, tmp_path: Path) -> Config:
    """The shop with a route to a directory."""
    www = tmp_path / "www"
    (www / "sub").mkdir(parents=True)
    (www / "a b.txt").write_text("hello")
    (www / "sub" / "index.html").write_text("index")
    (www / "link").symlink_to("a b.txt")
    (www / "out").symlink_to("/etc/passwd")
    (www / "esc\x1b[31m").write_text("")
    text = text.replace("      /: web\n", f"      /: web\n      /www/: {{files: {www}}}\n", 1)
    return loads(text, container=False).config


@pytest.mark.parametrize(
    ("path", "chosen", "answer"),
    [
        ("/www/a%20b.txt?x", "WWW/a b.txt", "the file WWW/a b.txt, 5 bytes"),
        ("/WWW/sub/", "WWW/sub/index.html", "the file WWW/sub/index.html, 5 bytes"),
        ("/www/link", "WWW/a b.txt", "the file WWW/a b.txt, 5 bytes"),
        ("/www/esc%1B%5B31m", "WWW/esc?[31m", "the file WWW/esc?[31m, 0 bytes"),
        ("/www/sub?x=1", None, "308 redirect to /www/sub/?x=1"),
        ("/www/nothing", None, "404 NotFound: "),
        ("/www/out", None, "404 NotFound: "),
        ("/www/.git/config", None, "404 NotFound: "),
        ("/www/", None, "404 NotFound: "),
    ],
)
def test_a_file(files: Config, tmp_path: Path, path: str, chosen: str | None, answer: str) -> None:
    www = str(tmp_path / "www")
    said = explain(files, f"https://shop.localhost{path}")
    last = said["steps"][-1]
    assert last["step"] == "file"
    assert last["chosen"] == (chosen and chosen.replace("WWW", www))
    assert said["answer"].startswith(answer.replace("WWW", www))
    assert www in last["why"]


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
