"""What an author's test sees of a site: answers, what the app saw, the logs, and what is wrong with the settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

import frontd
from frontd.config.load import ConfigProblems, loads
from frontd.pipeline.discovery import Discovery
from frontd.testing import ConfigurationError, site

PLUGIN = """
import frontd

class Greeter(frontd.Plugin):
    name = "greeter"

    class Settings(frontd.Settings):
        word: str = "hello"
        file: frontd.File | None = None

    def filter_request(self, exchange):
        if exchange.request.path == "/greet":
            return frontd.Response(200, text=f"{self.settings.word} {exchange.client.address} {self.settings.file}")
"""


class Facts(frontd.Plugin):
    """Answers with what it knows of the client."""

    name = "facts"

    def filter_request(self, exchange: frontd.Exchange) -> frontd.Response:
        client, request = exchange.client, exchange.request
        tls = client.tls.version if client.tls else "none"
        return frontd.Response(200, text=f"{request.scheme} {client.scheme} {tls} {client.address} {request.host}")


class Tagged(frontd.Plugin):
    """Leaves its letter on the way in."""

    name = "tagged"

    class Settings(frontd.Settings):
        letter: str = "x"

    settings: Settings

    def rewrite_request(self, exchange: frontd.Exchange) -> None:
        exchange.request.headers.add("X-Tag", self.settings.letter)


class Gate(frontd.Plugin):
    """Refuses what its settings name."""

    name = "gate"

    class Settings(frontd.Settings):
        path: str = Field(default="/shut", description="The path that is refused.")

    settings: Settings

    def filter_request(self, exchange: frontd.Exchange) -> frontd.Refuse | None:
        if exchange.request.path == self.settings.path:
            return frontd.Refuse(404, "Rejected", substatus=19, log="shut")
        return None


# ---------------------------------------------------------------------------------------------------- answers


def test_the_app_is_asked_and_tells_what_it_saw() -> None:
    with site() as s:
        answer = s.post("/a/%7Eb?c=1", "to you", {"X-Mine": "1", "Connection": "x-hop", "X-Hop": "1"})
        assert answer.status == 200
        seen = answer.upstream
        assert seen is not None
        assert (seen.method, seen.target, seen.path, seen.body) == ("POST", "/a/~b?c=1", "/a/~b", b"to you")
        assert seen.headers["x-mine"] == seen.headers["X-MINE"] == "1"
        assert "X-Hop" not in seen.headers
        assert seen.headers["X-Forwarded-Proto"] == "https"
        assert answer.text.splitlines()[0] == "POST /a/~b?c=1"
        assert answer.text.endswith("to you")
        assert s.app.requests == [seen]


def test_an_answer_without_the_app_says_so() -> None:
    with site([Gate]) as s:
        answer = s.get("/shut")
        assert (answer.status, answer.upstream) == (404, None)
        assert "the app was not asked" in repr(answer)
        assert s.get("/open").upstream is not None
        assert s.get("/shut").upstream is None
        assert len(s.app.requests) == 1


def test_fields_are_found_by_any_case_and_a_missing_one_is_named() -> None:
    with site() as s:
        s.app.respond(200, [("Set-Cookie", "a=1"), ("X-One", "1"), ("set-cookie", "b=2")])
        headers = s.get("/").headers
        assert headers.get_all("SET-COOKIE") == ["a=1", "b=2"]
        assert headers["set-Cookie"] == "a=1"
        assert headers.get("nothing") is None
        assert "x-one" in set(headers)
        with pytest.raises(KeyError, match=r"x-two; there are: .*x-one"):
            headers["x-two"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({}, "https https TLSv1.3 192.0.2.1 test.example"),
        ({"scheme": "http"}, "http http none 192.0.2.1 test.example"),
        ({"client_address": "2001:db8::7"}, "https https TLSv1.3 2001:db8::7 test.example"),
        ({"urls": ["https://a.example:8443/", "http://b.example/"]}, "https https TLSv1.3 192.0.2.1 a.example"),
    ],
)
def test_a_site_looks_like_https_unless_it_is_told_otherwise(more: dict[str, Any], says: str) -> None:
    with site([Facts], **more) as s:
        assert s.get("/").text == says


def test_one_request_may_differ_from_the_others() -> None:
    with site([Facts], urls=["https://a.example/", "http://b.example/"]) as s:
        assert s.get("/", host="b.example", scheme="http").text == "http http none 192.0.2.1 b.example"
        assert s.get("/", client_address="198.51.100.9").text.split()[3] == "198.51.100.9"
        with s.connect(client_address="198.51.100.8") as c:
            assert c.get("/").text.split()[3] == "198.51.100.8"
        with pytest.raises(ValueError, match="the site has no gopher URL"):
            s.get("/", scheme="gopher")


def test_http_to_an_https_site_is_redirected_as_everywhere() -> None:
    with site([Gate]) as s:
        answer = s.get("/x", scheme="http")
        assert (answer.status, answer.headers["Location"]) == (308, "https://test.example/x")


# --------------------------------------------------------------------------------------------- plugins, configuration


def test_plugins_are_asked_in_their_order() -> None:
    with site([{Tagged: {"letter": "a"}}, {Tagged: {"letter": "b"}}], server_plugins=[{Tagged: {"letter": "s"}}]) as s:
        seen = s.get("/").upstream
        assert seen is not None
        assert seen.headers.get_all("x-tag") == ["s", "a", "b"]


def test_a_file_in_plugins_dir_is_a_plugin(tmp_path: Path) -> None:
    (tmp_path / "greeter.py").write_text(PLUGIN)
    for plugins in ({"greeter": {"word": "good day"}}, [{"greeter": {"word": "good day"}}]):
        with site(plugins, plugins_dir=tmp_path) as s:
            assert s.get("/greet").text.startswith("good day 192.0.2.1")
    with site(["greeter"], plugins_dir=tmp_path) as s:
        assert s.get("/greet").text.startswith("hello")


def test_relative_paths_begin_at_the_file_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "greeter.py").write_text(PLUGIN)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    play = """
def play(site):
    with site({"greeter": {"file": "data/words"}}, plugins_dir="plugins") as s:
        return s.get("/greet").text
"""
    names: dict[str, Any] = {"__file__": str(tmp_path / "test_mine.py")}
    exec(play, names)
    played: Callable[..., str] = names["play"]
    assert played(site) == f"hello 192.0.2.1 {tmp_path}/data/words"


def test_more_of_a_configuration_is_merged_in() -> None:
    more = {"sites": {"test": {"limits": {"max_body": 3}}}, "pools": {"other": {"targets": ["http://127.0.0.1:1"]}}}
    with site(routes={"/": "app", "/old/": {"redirect": "/new"}, "/other/": "other"}, config=more) as s:
        assert s.post("/", "123").status == 200
        assert s.post("/", "1234").status == 413
        assert s.log[-1].reason == "EntityTooLarge"
        assert s.get("/old/").headers["Location"].endswith("/new")


def test_environment_variables_stand_for_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHUT_PATH", "/here")
    with site({Gate: {"path": "${SHUT_PATH}"}}) as s:
        assert s.get("/here").status == 404


def test_wrong_settings_are_told_as_by_frontd_check(tmp_path: Path) -> None:
    (tmp_path / "greeter.py").write_text(PLUGIN)
    with pytest.raises(ConfigurationError) as told:
        with site({"greeter": {"wrod": "x"}}, plugins_dir=tmp_path):
            pass
    text = f"""
plugins_dir: {tmp_path}
sites:
  test:
    urls: ["http://test.example/"]
    plugins:
      - greeter: {{wrod: x}}
    routes: {{/: "http://app:80"}}
"""
    with pytest.raises(ConfigProblems) as checked:
        loads(text, environ={}, discover=Discovery().catalogue, container=False)
    problem = checked.value.problems[0]
    first, *rest = str(told.value).splitlines()
    assert first.split(": ", 1)[1] == f"{problem.path}: {problem.message}"
    assert problem.hint == 'did you mean "word"?'
    assert rest[-1] == f"  = {problem.hint}"


class Misspelt(frontd.Plugin):
    name = "misspelt"

    def authentcate(self, exchange: frontd.Exchange) -> None:
        return None


class Picky(frontd.Plugin):
    name = "picky"

    def prepare(self) -> None:
        raise ValueError("the moon is not full")


class Late(frontd.Plugin):
    name = "late"

    async def run(self, *, task_status: Any) -> None:
        raise OSError("no keys")


@pytest.mark.parametrize(
    ("plugins", "says"),
    [
        ([Misspelt], rf"{__file__}:\d+: Misspelt.authentcate is not a hook; did you mean authenticate"),
        ([Picky], "plugin picky of the site test: the moon is not full"),
        ([Late], "plugin late of the site test: OSError: no keys"),
        (["nobody"], "there is no plugin 'nobody'"),
    ],
)
def test_what_frontd_would_not_start_with_raises(plugins: list[Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        with site(plugins):
            pass


def test_what_is_no_plugin_at_all_is_told() -> None:
    with pytest.raises(TypeError, match="named by its word or its class, not by 5"):
        with site([5]):
            pass
    with pytest.raises(TypeError, match=r"a list or a map: \['basic'\]"):
        with site("basic"):
            pass
    with pytest.raises(ValueError, match="two classes are named 'facts'"):
        with site([Facts, type("Facts", (Facts,), {})]):
            pass


# ---------------------------------------------------------------------------------------------------- the logs


def test_the_log_says_how_each_exchange_ended() -> None:
    with site([Gate]) as s:
        s.get("/open?x=1")
        s.get("/shut")
        opened, shut = s.log
        assert (opened.method, opened.path, opened.status, opened.reason) == ("GET", "/open", 200, None)
        assert (opened.site, opened.route, opened.pool, opened.client) == ("test", "/", "app", "192.0.2.1")
        assert (shut.status, shut.substatus, shut.reason, shut.detail) == (404, 19, "Rejected", "shut")


def test_a_head_that_is_no_request_is_in_the_log() -> None:
    with site() as s, s.connect() as c:
        c.send(b"TRACE /a HTTP/1.1\r\nHost: test.example\r\n\r\n")
        assert c.receive().status == 501
        assert (s.log[-1].path, s.log[-1].reason) == ("/a", "N/I")


def test_who_has_logged_on_is_in_the_log() -> None:
    class Believer(frontd.Plugin):
        name = "believer"

        def authenticate(self, exchange: frontd.Exchange) -> frontd.Identity | None:
            name = exchange.request.headers.text("X-I-Am")
            return frontd.Identity(name, groups=("all",)) if name else None

    with site([Believer]) as s:
        assert s.get("/").status == 401
        assert (s.log[-1].reason, s.log[-1].user) == ("LogonRequired", None)
        assert s.get("/", {"X-I-Am": "ann"}).status == 200
        assert (s.log[-1].reason, s.log[-1].user, s.log[-1].groups) == (None, "ann", ("all",))


def test_a_connection_that_is_refused_is_in_the_log() -> None:
    class Door(frontd.Plugin):
        name = "door"

        def accept_client(self, client: frontd.Client) -> frontd.Refuse | None:
            if client.address == "192.0.2.66":
                return frontd.Refuse(403, "AddressDenied", log="shut")
            return None

    with site(server_plugins=[Door]) as s:
        assert s.get("/").status == 200
        with s.connect(client_address="192.0.2.66") as c:
            assert c.closed
        assert (s.log[-1].reason, s.log[-1].status, s.log[-1].client) == ("AddressDenied", 0, "192.0.2.66")


def test_what_a_plugin_remarks_is_kept() -> None:
    class Talker(frontd.Plugin):
        name = "talker"

        def prepare(self) -> None:
            self.remark("here I am")

    with site([Talker]) as s:
        assert s.remarks == ["plugin talker of the site test: here I am"]  # and nothing of frontd's own
        s.reload([])
        s.reload([Talker], server_plugins=[Talker])
        assert s.remarks[1:] == ["plugin talker: here I am", "plugin talker of the site test: here I am"]


class Spill(frontd.Plugin):
    """Moves what a pool has no app for, and what an app says is not its own."""

    name = "spill"

    def forward_failed(self, exchange: frontd.Exchange, error: frontd.FrontdError) -> str | None:
        return "app" if error.reason is frontd.Reason.AppOffline else None

    def admit_response(self, exchange: frontd.Exchange) -> str | None:
        return "app" if exchange.response.status == 421 and exchange.hand_overs < 2 else None


def test_a_request_is_handed_over(tmp_path: Path) -> None:
    away = {"targets": [f"unix:{tmp_path}/away"], "queue": {"wait": "1s"}}
    with site([Spill], routes={"/": "away"}, config={"pools": {"away": away}}) as s:
        answer = s.get("/x", advance=1.1)
        assert (answer.status, s.log[-1].pool, s.log[-1].attempts) == (200, "app", 1)
        s.app.respond(421)
        assert s.get("/x", advance=1.1).status == 421
        assert (s.log[-1].attempts, s.log[-1].pool) == (2, "app")
