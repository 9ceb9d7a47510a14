"""What a plugin does wrong: closed before the request is forwarded, soft after it, in the log, never on the wire."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from frontd import Continue, Exchange, Identity, Plugin, Redirect, Refuse, Response
from tests.scenarios.plugged import PluginClass, fields, made, plugged, says, status, told
from tests.wire import app

BREAK = "x\r\nSet-Cookie: stolen=1"
INJECTED = re.compile(rb"(?i)set-cookie|stolen")


def plainly_wrong() -> None:
    raise RuntimeError("something in a plugin")


def failing(self: Plugin, exchange: Exchange) -> None:
    plainly_wrong()


async def failing_later(self: Plugin, exchange: Exchange) -> None:
    plainly_wrong()


CLOSED = ["filter_request", "authenticate", "authorize", "route", "cache_lookup", "rewrite_request"]
SOFT = ["admit_response", "rewrite_response"]


@pytest.mark.parametrize("hook", CLOSED)
@pytest.mark.parametrize("how", [failing, failing_later])
async def test_closed_before_forwarding(tmp_path: Path, hook: str, how: Callable[..., object]) -> None:
    async with app() as it, plugged(tmp_path, it.url, made("bad", **{hook: how})) as stage:
        line = await stage.connect()
        for _ in range(2):  # it costs neither the connection nor the front
            head, body = await line.get()
            assert status(head) == 500
            assert b"Reason: PluginFault\n" in body
            assert b"something" not in body
            assert b"bad" not in body
        assert it.heads == []
        assert stage.reasons == {"PluginFault": 2}
        log = await told(stage)
        assert re.search(rf" 500 main PluginFault \S+ bad\.{hook}:\+RuntimeError\n", log)
        assert f": plugin bad.{hook}: RuntimeError: something in a plugin\n" in log
        assert "in plainly_wrong" in log
        assert __file__ in log


@pytest.mark.parametrize("hook", SOFT)
@pytest.mark.parametrize("wrong", [failing, failing_later, says(1), says(True), says(Refuse(404, "NotFound"))])
async def test_soft_after_it(tmp_path: Path, hook: str, wrong: Callable[..., object]) -> None:
    """The answer goes out, and the plugins behind the one that failed are asked all the same."""
    mark = made("mark", rewrite_response=lambda self, exchange: exchange.response.headers.set("X-Mark", "1"))
    async with app() as it, plugged(tmp_path, it.url, made("bad", **{hook: wrong}), mark) as stage:
        line = await stage.connect()
        for _ in range(2):
            head, body = await line.get()
            assert (status(head), body, fields(head, "X-Mark")) == (200, b"ok", ["1"])
        assert stage.reasons == {}
        assert f": plugin bad.{hook}: " in await told(stage)


@pytest.mark.parametrize("wrong", [failing, says(1), failing_later])
async def test_a_log_that_fails(tmp_path: Path, wrong: Callable[..., object]) -> None:
    """Also one that cannot be asked at all, since it would have to be waited for."""
    ended: list[int] = []
    hook = (lambda self, exchange: wrong(self, exchange)) if wrong is failing_later else wrong
    after = made("after", log=lambda self, exchange: ended.append(exchange.status))
    async with app() as it, plugged(tmp_path, it.url, made("bad", log=hook), after) as stage:
        assert (await (await stage.connect()).get())[1] == b"ok"
        assert (await (await stage.connect()).get())[1] == b"ok"
        assert ended[0] == 200
        assert ": plugin bad.log: " in await told(stage)
        assert stage.log().count('"status":200') == 2


async def test_forward_failed_that_fails(tmp_path: Path) -> None:
    """The error of the app is what the client is told."""
    bad = made("bad", forward_failed=lambda self, exchange, error: plainly_wrong())
    pool = "queue: {limit: 1, wait: 10ms}"
    async with plugged(tmp_path, "http://127.0.0.1:1", bad, pool=pool) as stage:
        assert status((await (await stage.connect()).get())[0]) == 503
        assert stage.reasons == {"AppOffline": 1}
        assert ": plugin bad.forward_failed: " in await told(stage)


# ---------------------------------------------------------------------------------------------------- the wire


@pytest.mark.parametrize(
    ("hook", "value", "code"),
    [
        ("filter_request", Response(200, [("X-A", BREAK)]), 500),
        ("filter_request", Response(200, [("X-A\r\nSet-Cookie", "stolen")]), 500),
        ("filter_request", Response(200, [("", "stolen")]), 500),
        ("filter_request", Response(401, [("WWW-Authenticate", BREAK)]), 500),
        ("filter_request", Refuse(403, "Forbidden", headers=[("X-A", BREAK)]), 500),
        ("filter_request", Refuse(403, "Forbidden", headers=[("X A", "stolen")]), 500),
        ("authenticate", Continue(BREAK, "NTLM"), 500),
        ("authenticate", Continue("x", BREAK), 500),
        ("authenticate", Identity(BREAK), 500),
        ("authenticate", Identity("alice", groups=(BREAK,)), 500),
        ("authenticate", Identity("alice", scheme=BREAK), 500),
        ("authenticate", Identity("a\x00"), 500),
        ("authenticate", Identity("\ud800"), 500),
        ("authenticate", Identity(" alice"), 500),
        ("authenticate", Identity(7), 500),  # type: ignore[arg-type]
        ("authenticate", Identity("alice", groups=(7,)), 500),  # type: ignore[arg-type]
        ("route", BREAK, 500),
        ("route", "", 500),
        ("cache_lookup", Response(200, [("Age", BREAK)]), 500),
        ("cache_lookup", Response(200, body=None), 500),
        ("admit_response", Response(200, [("X-A", BREAK)]), 200),
        ("rewrite_request", lambda exchange: exchange.request.headers.set("X-A", BREAK), 500),
        ("rewrite_request", lambda exchange: exchange.request.headers.add("X-A: 1\r\nSet-Cookie", "stolen"), 500),
        ("admit_response", lambda exchange: exchange.response.headers.set("X-A", BREAK), 200),
        ("rewrite_response", lambda exchange: exchange.response.headers.set("X-A", BREAK), 200),
        ("rewrite_response", lambda exchange: exchange.response.headers.set(BREAK, "1"), 200),
        ("rewrite_response", lambda exchange: exchange.response.headers.set("X-A", "\x00"), 200),
    ],
    ids=lambda value: value if isinstance(value, str) and value != BREAK else None,
)
async def test_no_field_breaks_out_of_its_line(tmp_path: Path, hook: str, value: object, code: int) -> None:
    """Nor does anything else that cannot be sent; and it is known whose it was."""
    asked = (lambda self, exchange: value(exchange)) if callable(value) else says(value)
    async with app() as it, plugged(tmp_path, it.url, made("bad", **{hook: asked})) as stage:
        line = await stage.connect()
        for _ in range(2):
            head, body = await line.get()
            assert status(head) == code
            assert not INJECTED.search(head + body)
        assert not INJECTED.search(b"".join(it.heads))
        assert len(it.heads) == (2 if code == 200 else 0)
        log = await told(stage)
        assert f": plugin bad.{hook}: " in log
        assert max(map(len, log.splitlines())) <= 4096


def shared(answer: object, hook: str) -> PluginClass:
    return made("shared", **{hook: says(answer)}, challenge=says("Basic"), authenticate=says(None))


async def test_an_answer_that_is_given_again_and_again(tmp_path: Path) -> None:
    """Kept in the plugin's module, as people do: nothing that is added on its way out may stay on it."""
    mark = made("mark", rewrite_response=lambda self, exchange: exchange.response.headers.add("X-Mark", "1"))
    denied = Response(401, [("X-Own", "1")], text="no")
    async with plugged(tmp_path, "http://127.0.0.1:1", shared(denied, "filter_request"), mark) as stage:
        line = await stage.connect()
        for _ in range(3):
            head, body = await line.get()
            assert [fields(head, name) for name in ("X-Mark", "X-Own", "WWW-Authenticate")] == [["1"], ["1"], ["Basic"]]
            assert body == b"no"
        assert [name for name, _, _ in denied.headers] == [b"x-own", b"content-type"]


# ---------------------------------------------------------------------------------------------------- rewrite_response


def replaced(exchange: Exchange) -> None:
    exchange.response = Response(200, text="another")


@pytest.mark.parametrize(
    "change",
    [
        lambda exchange: setattr(exchange.response, "status", 101),
        lambda exchange: setattr(exchange.response, "status", 99),
        lambda exchange: setattr(exchange.response, "status", 600),
        lambda exchange: setattr(exchange.response, "status", 204),
        lambda exchange: setattr(exchange.response, "status", "404"),
        lambda exchange: setattr(exchange.response, "status", None),
        lambda exchange: setattr(exchange.response, "body", b"another"),
        lambda exchange: setattr(exchange.response, "headers", {}),
        lambda exchange: setattr(exchange.response, "headers", None),
        lambda exchange: exchange.response.headers.items.append(("x", "y", "z")),
        lambda exchange: exchange.response.headers.items.append(None),
        replaced,
    ],
)
@pytest.mark.parametrize("hook", ["admit_response", "rewrite_response"])
async def test_changes_that_an_answer_cannot_have(
    tmp_path: Path, change: Callable[[Exchange], object], hook: str
) -> None:
    """The answer is what it was before that plugin; what the others did stays."""
    first, last = (
        made(name, **{hook: lambda self, exchange: exchange.response.headers.add("X-Mark", self.name)})
        for name in ("first", "last")
    )
    bad = made("bad", **{hook: lambda self, exchange: change(exchange) and None})
    async with app() as it, plugged(tmp_path, it.url, first, bad, last) as stage:
        line = await stage.connect()
        for _ in range(2):
            head, body = await line.get()
            assert (status(head), body) == (200, b"ok")
            assert fields(head, "X-Mark") == ["first", "last"]
        assert stage.reasons == {}
        assert f": plugin bad.{hook}: ValueError: " in await told(stage)


@pytest.mark.parametrize("hook", ["admit_response", "rewrite_response"])
@pytest.mark.parametrize(("code", "phrase"), [(404, b"404 Not Found"), (299, b"299 "), (599, b"599 ")])
async def test_changes_that_it_can_have(tmp_path: Path, code: int, phrase: bytes, hook: str) -> None:
    def change(self: Plugin, exchange: Exchange) -> None:
        response = exchange.response
        response.status = code
        response.headers.set("X-New", "1")
        for name in ("Content-Length", "Connection", "Transfer-Encoding"):  # the framing is not theirs
            response.headers.set(name, "7")

    async with app() as it, plugged(tmp_path, it.url, made("good", **{hook: change})) as stage:
        line = await stage.connect()
        for _ in range(2):
            head, body = await line.get()
            assert head.startswith(b"HTTP/1.1 " + phrase)
            assert (body, fields(head, "X-New"), fields(head, "Content-Length")) == (b"ok", ["1"], ["2"])
            assert fields(head, "Transfer-Encoding") == []
        assert f'"status":{code}' in stage.log()
        assert (await told(stage)).count("plugin good") == 0


async def test_the_body_of_an_answer_that_is_whole_may_change(tmp_path: Path) -> None:
    """An error page, or what a plugin answered: it is all there, so that its length follows."""
    polite = made("polite", rewrite_response=lambda self, exchange: setattr(exchange.response, "body", b"so sorry"))
    async with plugged(tmp_path, "http://127.0.0.1:1", polite, routes="/x: app") as stage:
        head, body = await (await stage.connect()).get()
        assert (status(head), body, fields(head, "Content-Length")) == (404, b"so sorry", ["8"])


# ---------------------------------------------------------------------------------------------------- secrets


TOKEN = "eyJhbGciOiJIUzI1NiJ9.c2VjcmV0"


@pytest.mark.parametrize(
    "field", [f"Authorization: Bearer {TOKEN}", f"Cookie: a=b; session={TOKEN}", f"Proxy-Authorization: Basic {TOKEN}"]
)
async def test_credentials_do_not_get_into_the_log(tmp_path: Path, field: str) -> None:
    """The commonest slip: a dict of tokens, asked for one that it does not have."""
    users: dict[str, str] = {}

    def authenticate(self: Plugin, exchange: Exchange) -> Identity:
        sent = exchange.request.headers.text(field.partition(":")[0])
        return Identity(users[sent.rpartition("=")[2].rpartition(" ")[2]])

    async with plugged(tmp_path, "http://127.0.0.1:1", made("bad", authenticate=authenticate)) as stage:
        assert status((await (await stage.connect()).get("/", field))[0]) == 500
        log = await told(stage) + stage.log()
        assert "plugin bad.authenticate: KeyError: '***'" in log
        assert TOKEN not in log


async def test_a_password_does_not_get_into_the_log(tmp_path: Path) -> None:
    def authenticate(self: Plugin, exchange: Exchange) -> Identity:
        _, sent = exchange.request.credentials
        raise ValueError(f"no such logon: {base64.b64decode(sent or '').decode()}")

    async with plugged(tmp_path, "http://127.0.0.1:1", made("bad", authenticate=authenticate)) as stage:
        await (await stage.connect()).get("/", "Authorization: Basic YWxpY2U6d29uZGVybGFuZA==")
        log = await told(stage)
        assert "no such logon: alice:***" in log
        assert "wonderland" not in log


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda: Redirect("http://a/\r\nx: y"), "no blanks, controls"),
        (lambda: Redirect("http://a/", 200), "301, 302"),
        (lambda: Refuse(200, "NotFound"), "from 400 to 599"),
        (lambda: Refuse(404, "Nonsense"), "no reason 'Nonsense'"),
        (lambda: Identity(""), "needs a name"),
        (lambda: Identity("a", groups="admins"), "not one text"),  # type: ignore[arg-type]
        (lambda: Response(99), "from 200 to 599"),
        (lambda: Response(200, body=b"x", text="y"), "not both"),
    ],
)
def test_some_slips_fail_where_they_are_made(wrong: Callable[[], object], why: str) -> None:
    """So that the traceback names their line."""
    with pytest.raises(ValueError, match=why):
        wrong()
