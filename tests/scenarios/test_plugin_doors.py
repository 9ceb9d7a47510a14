"""A site with an authenticator lets nobody in anonymously, whatever door they try."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trustme

import frontd
from frontd import Allow, Continue, Exchange, Identity, Plugin, Redirect, Refuse, Response, UseHttp11
from frontd.pipeline.phases import SPECS
from tests.scenarios.plugged import fields, made, of, plugged, reload, says, status, text, told
from tests.scenarios.test_upgrade import ASK
from tests.wire import app, front

Hook = Callable[..., object]


def by_token(self: Plugin, exchange: Exchange) -> Identity | Refuse | None:
    """``Authorization: Token NAME`` is believed for alice and bob."""
    scheme, token = exchange.request.credentials
    if scheme != "token":
        return None
    return Identity(token, scheme="Token") if token in ("alice", "bob") else Refuse(401, "LogonFailed")


GUARD = made("guard", scheme="Token", authenticate=by_token, challenge=says('Token realm="a"'))
OTHER = made("other", authenticate=says(None), challenge=says("Other"))
ALICE = "Authorization: Token alice"
SECRET = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret"

DOORS = {
    "GET": b"GET /%s HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "HEAD": b"HEAD /%s HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "OPTIONS": b"OPTIONS /%s HTTP/1.1\r\nHost: a.test\r\nOrigin: http://b.test\r\n"
               b"Access-Control-Request-Method: GET\r\n\r\n",
    "a method of their own": b"get /%s HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "absolute form": b"GET http://a.test/%s HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "HTTP/1.0": b"GET /%s HTTP/1.0\r\n\r\n",
    "a body": b"POST /%s HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nbody",
    "a body that is too long": b"POST /%s HTTP/1.1\r\nHost: a.test\r\nContent-Length: 99999\r\n\r\n",
    "a chunked body": b"POST /%s HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    "a body that waits": b"POST /%s HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n",
    "WebSocket": ASK.replace(b"/chat", b"/%s"),
    "a name of their own": b"GET /%s HTTP/1.1\r\nHost: a.test\r\nX-Remote-User: alice\r\nX_Remote_User: alice\r\n\r\n",
    "two logons": b"GET /%s HTTP/1.1\r\nHost: a.test\r\nAuthorization: Token alice\r\nAuthorization: Token bob\r\n\r\n",
    "an empty logon": b"GET /%s HTTP/1.1\r\nHost: a.test\r\nAuthorization:\r\n\r\n",
    "somebody else's scheme": b"GET /%s HTTP/1.1\r\nHost: a.test\r\nAuthorization: Basic YWxpY2U6\r\n\r\n",
    "a scheme that begins alike": b"GET /%s HTTP/1.1\r\nHost: a.test\r\nAuthorization: Token\talice\r\n\r\n",
}  # fmt: skip
PLACES = ["", "file/x.txt", "file/none", "gone/", "nowhere", "missing/%2e%2e/"]


@pytest.mark.parametrize("door", DOORS)
async def test_every_door_is_shut(tmp_path: Path, door: str) -> None:
    """To pools, files, redirects and paths that no route covers: what is there is not even told."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "x.txt").write_text("secret")
    routes = f"/app: app, /missing/: app, /file/: {{files: {tmp_path}/files}}, /gone/: {{redirect: 'http://secret/'}}"
    async with app(SECRET) as it:
        async with plugged(tmp_path, it.url, GUARD, OTHER, routes=routes, site="limits: {max_body: 9}") as stage:
            for place in ["app", *PLACES]:
                line = await stage.connect()
                await line.send(DOORS[door] % place.encode())
                head = await line.head()
                assert status(head) == 401, place
                assert fields(head, "WWW-Authenticate") == ['Token realm="a"', "Other"]
                answer = head + (b"" if door == "HEAD" else (await line.read()))
                assert b"secret" not in answer
                await line.close()
            assert it.heads == []
            assert set(stage.reasons) == {"LogonRequired"}


async def test_the_one_door_is_open(tmp_path: Path) -> None:
    """The same places, with a logon: what the test above proves is not that nothing works."""
    (tmp_path / "x.txt").write_text("a file")
    routes = f"/: app, /file/: {{files: {tmp_path}}}, /gone/: {{redirect: 'http://b.test/'}}"
    async with app() as it, plugged(tmp_path, it.url, OTHER, GUARD, routes=routes) as stage:
        line = await stage.connect()
        assert (await line.get("/", ALICE))[1] == b"ok"
        assert (await line.get("/file/x.txt", ALICE))[1] == b"a file"
        assert status((await line.get("/gone/", ALICE))[0]) == 308
        assert status((await line.get("/", "Authorization: TOKEN mallory"))[0]) == 401
        assert fields(it.heads[0], "X-Remote-User") == ["alice"]
        assert stage.reasons == {"LogonFailed": 1}


async def test_one_guard_for_every_site(tmp_path: Path) -> None:
    """A plugin of the whole server stands before sites that name no plugin at all, and before those that do."""
    written = """
listen: {http: {port: 0}}
plugins: [guard]
sites:
  one: {urls: ["http://one.test/"], routes: {/: "%s"}}
  two: {urls: ["http://two.test/"], plugins: [], routes: {/: "%s"}}
  three: {urls: ["http://three.test/"], plugins: [other], routes: {/: "%s"}}
"""
    async with app(SECRET) as it, front(written % ((it.url,) * 3), tmp_path, of(GUARD, OTHER)) as stage:
        line = await stage.connect()
        for name in ("one", "two", "three"):
            assert status((await line.get(host=f"{name}.test"))[0]) == 401
            assert (await line.get("/", ALICE, host=f"{name}.test"))[1] == b"secret"
            assert status((await line.get(host=f"{name}.test"))[0]) == 401
        assert len(it.heads) == 3


async def test_the_legs_of_a_handshake(tmp_path: Path) -> None:
    """They are 401s on one connection; what was begun on it is not finished on another."""

    def authenticate(self: Plugin, exchange: Exchange) -> Identity | Continue | None:
        scheme, token = exchange.request.credentials
        if scheme != "ntlm":
            return None
        memory = exchange.client.state(self)
        if token == "1":
            memory["begun"] = True
            return Continue("challenge", "NTLM")
        return Identity("alice") if memory.pop("begun", False) else Continue("begin again", "NTLM")

    legs = made("legs", scheme="NTLM", authenticate=authenticate, challenge=says("NTLM"))
    async with app() as it, plugged(tmp_path, it.url, legs) as stage:
        line, other = await stage.connect(), await stage.connect()
        expected = {"1": ["NTLM challenge"], "2": ["NTLM begin again"], "": ["NTLM"]}
        for who, token in ((line, ""), (line, "1"), (other, "2"), (line, "")):
            head, _ = await who.get("/", *([f"Authorization: NTLM {token}"] if token else []))
            assert (status(head), fields(head, "WWW-Authenticate")) == (401, expected[token])
            assert fields(head, "Connection") == []
        assert (await line.get("/", "Authorization: NTLM 2"))[1] == b"ok"
        assert fields(it.heads[0], "Authorization") == []
        assert status((await line.get())[0]) == 401


async def test_another_version_is_asked_for_where_that_makes_sense(tmp_path: Path) -> None:
    async with plugged(tmp_path, "http://127.0.0.1:1", made("old", authenticate=says(UseHttp11()))) as stage:
        assert status((await (await stage.connect()).ask(b"GET / HTTP/1.0\r\n\r\n"))[0]) == 505
        assert status((await (await stage.connect()).get())[0]) == 500
        assert stage.reasons == {"Version_N/S": 1, "PluginFault": 1}


async def test_a_logon_is_for_one_request(tmp_path: Path) -> None:
    """Pipelined behind alice's, on her connection, in the same write."""
    async with app(SECRET) as it, plugged(tmp_path, it.url, GUARD) as stage:
        line = await stage.connect()
        await line.send(
            f"GET /1 HTTP/1.1\r\nHost: a.test\r\n{ALICE}\r\n\r\n".encode()
            + b"GET /2 HTTP/1.1\r\nHost: a.test\r\n\r\n"
            + f"GET /3 HTTP/1.1\r\nHost: a.test\r\n{ALICE}\r\n\r\n".replace("alice", "bob").encode()
        )
        answers = [await line.message() for _ in range(3)]
        assert [status(head) for head, _ in answers] == [200, 401, 200]
        assert [fields(head, "X-Remote-User") for head in it.heads] == [["alice"], ["bob"]]


async def test_what_is_cached_is_behind_the_logon(tmp_path: Path) -> None:
    asked: list[str] = []

    def lookup(self: Plugin, exchange: Exchange) -> Response:
        asked.append(exchange.identity.name if exchange.identity else "nobody")
        return Response(200, text="secret")

    cache = made("store", cache_lookup=lookup)
    async with app() as it, plugged(tmp_path, it.url, cache, GUARD) as stage:
        line = await stage.connect()
        assert status((await line.get())[0]) == 401
        assert asked == []
        assert (await line.get("/", ALICE))[1] == b"secret"
        assert asked == ["alice"]
        assert it.heads == []


async def test_no_plugin_chooses_a_destination_for_the_anonymous(tmp_path: Path) -> None:
    chosen = made("chosen", route=says(Redirect("http://b.test/")))
    async with plugged(tmp_path, "http://127.0.0.1:1", chosen, GUARD) as stage:
        line = await stage.connect()
        assert status((await line.get())[0]) == 401
        assert status((await line.get("/", ALICE))[0]) == 308


def later(value: object) -> Hook:
    """A hook that is an ``async def``."""

    async def hook(self: Plugin, exchange: Exchange) -> object:
        if isinstance(value, Exception):
            raise value
        return value

    return hook


def never(value: object) -> Hook:
    """A hook whose coroutine answers with another coroutine, which nobody waits for."""

    async def hook(self: Plugin, exchange: Exchange) -> object:
        return later(value)(self, exchange)

    return hook


WRONG: list[object] = [
    True, 1, b"alice", {"user": "alice"}, ["alice"], ("alice",), object(), Identity, Allow, 200,
    KeyError("alice"), TypeError(), ValueError("x" * 99999), trio.TooSlowError(), ExceptionGroup("", [KeyError()]),
]  # fmt: skip
RIGHT: dict[str, list[object]] = {
    "filter_request": [Refuse(404, "Rejected")], "authenticate": [Identity("alice")], "authorize": [Allow()],
    "route": ["app", Redirect("/")], "cache_lookup": [Response(200)],
}  # fmt: skip


@pytest.mark.parametrize("hook", RIGHT)
@pytest.mark.parametrize("deliver", [says, later, never])
async def test_a_wrong_answer_opens_nothing(tmp_path: Path, hook: str, deliver: Callable[[object], Hook]) -> None:
    """Before forwarding, what a plugin answers wrongly or raises ends the exchange, and the log names the plugin.

    What is right for another hook is wrong for this one, and a coroutine that nobody waited for is no answer at all.
    """
    values = [*WRONG, *(value for other in RIGHT if other != hook for value in RIGHT[other])]
    values = [value for value in values if type(value) not in SPECS[hook].returns]
    values = [*values, *RIGHT[hook]] if deliver is never else values
    now: list[object] = [None]
    bad = made("broken", **{hook: lambda self, exchange: deliver(now[0])(self, exchange)})
    faults = 0
    async with app(SECRET) as it, plugged(tmp_path, it.url, bad, GUARD) as stage:
        line = await stage.connect()
        for now[0] in values:
            for logon in ([], [ALICE]):  # whoever logs on gets no further
                head, body = await line.get("/", *logon)
                not_asked = hook in ("route", "cache_lookup") and not logon
                assert status(head) == (401 if not_asked else 500), (now, logon)
                assert b"secret" not in body
                faults += not not_asked
        assert it.heads == []
        told_of = set(re.findall(rf" request (\d+): plugin broken\.{hook}: ", await told(stage)))
        assert len(told_of) == faults


async def test_a_hook_may_fail_with_a_reason(tmp_path: Path) -> None:
    """As what reads a body does; it is an answer like any refusal, challenges and all."""
    tired = made("tired", authorize=says(frontd.FrontdError(frontd.Reason.LogonRequired)))
    async with plugged(tmp_path, "http://127.0.0.1:1", tired, GUARD) as stage:
        head, _ = await (await stage.connect()).get("/", ALICE)
        assert (status(head), fields(head, "WWW-Authenticate")) == (401, ['Token realm="a"'])


async def test_allow_and_refuse_in_both_orders(tmp_path: Path) -> None:
    allow, refuse = made("allow", authorize=says(Allow())), made("refuse", authorize=says(Refuse(404, "Rejected")))
    for order in ([GUARD, allow, refuse], [refuse, allow, GUARD], [allow, GUARD, refuse], [refuse, GUARD, allow]):
        async with app(SECRET) as it, plugged(tmp_path, it.url, *order) as stage:
            line = await stage.connect()
            assert status((await line.get())[0]) == 404
            assert status((await line.get("/", ALICE))[0]) == 404
            assert it.heads == []


async def test_a_rule_lets_the_anonymous_in(tmp_path: Path) -> None:
    def public(self: Plugin, exchange: Exchange) -> Allow | None:
        return Allow() if exchange.request.path.startswith("/public/") else None

    rules = made("rules", authorize=public)
    async with app() as it, plugged(tmp_path, it.url, rules, GUARD, OTHER) as stage:
        line = await stage.connect()
        assert (await line.get("/public/x"))[1] == b"ok"
        assert status((await line.get("/x"))[0]) == 401
        assert status((await line.get("/public/../x"))[0]) == 401
        assert fields(it.heads[0], "X-Remote-User") == []


async def test_what_is_forbidden_asks_the_anonymous_to_log_on(tmp_path: Path) -> None:
    """403 for those who are known; 401 with the challenges for those who are not.  Another reason stays what it is."""
    forbid = made("forbid", authorize=says(Refuse(403, "Forbidden", substatus=2)))
    async with plugged(tmp_path, "http://127.0.0.1:1", forbid, OTHER, GUARD) as stage:
        line = await stage.connect()
        head, _ = await line.get()
        assert (status(head), fields(head, "WWW-Authenticate")) == (401, ["Other", 'Token realm="a"'])
        head, _ = await line.get("/", ALICE)
        assert (status(head), fields(head, "WWW-Authenticate")) == (403, [])
        assert stage.reasons == {"LogonRequired": 1, "Forbidden": 1}
    address = made("address", authorize=says(Refuse(403, "AddressDenied")))
    async with plugged(tmp_path, "http://127.0.0.1:1", address, GUARD) as stage:
        assert status((await (await stage.connect()).get())[0]) == 403


async def test_forbidden_without_an_authenticator_is_forbidden(tmp_path: Path) -> None:
    """There is nobody to log on to."""
    forbid = made("forbid", authorize=says(Refuse(403, "Forbidden")))
    async with plugged(tmp_path, "http://127.0.0.1:1", forbid) as stage:
        assert status((await (await stage.connect()).get())[0]) == 403


@pytest.mark.parametrize(
    "broken",
    [ValueError("x"), 7, "", b"Basic", "Basic\r\nSet-Cookie: a=b", "Basic\x00", " Basic", "B\ud800", later("Basic")],
    ids=repr,
)
async def test_a_challenge_that_fails_hides_no_other(tmp_path: Path, broken: object) -> None:
    hook = (lambda self, exchange: broken(self, exchange)) if callable(broken) else says(broken)
    sick = made("sick", authenticate=says(None), challenge=hook)
    async with plugged(tmp_path, "http://127.0.0.1:1", OTHER, sick, GUARD) as stage:
        line = await stage.connect()
        for _ in range(2):
            head, _ = await line.get()
            assert status(head) == 401
            assert fields(head, "WWW-Authenticate") == ["Other", 'Token realm="a"']
            assert b"Set-Cookie" not in head
        assert "plugin sick.challenge: " in await told(stage)


async def test_the_redirect_to_https_never_asks_for_a_password(tmp_path: Path) -> None:
    seen = "1"
    refuse = made(
        "refuse", filter_request=lambda self, exchange: _rejected(exchange),
        rewrite_response=lambda self, exchange: exchange.response.headers.set("X-Seen", seen),
    )  # fmt: skip
    written = text("http://127.0.0.1:1", [refuse, GUARD], urls='"https://a.test/"')
    written = written.replace("{http: {port: 0}}", "{http: {port: 0}, https: {port: 0}}")
    async with front(with_certificate(written, tmp_path), tmp_path, of(refuse, GUARD)) as stage:
        line = await stage.connect()
        for extra in ([], [ALICE]):
            head, _ = await line.get("/", *extra)
            assert (status(head), fields(head, "Location")) == (308, ["https://a.test/"])
            assert fields(head, "WWW-Authenticate") == []
            assert fields(head, "X-Seen") == [seen]
        head, _ = await line.get("/rejected")  # a filter is asked there all the same, and even its 401 is a bare one
        assert (status(head), fields(head, "WWW-Authenticate")) == (401, [])


def _rejected(exchange: Exchange) -> Refuse | None:
    return Refuse(401, "LogonRequired") if exchange.request.path == "/rejected" else None


def with_certificate(written: str, tmp_path: Path) -> str:
    certificate = trustme.CA().issue_cert("a.test")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "a.pem"))
    return written + f"tls: {{certificates: [{{cert: {tmp_path}/a.pem, key: {tmp_path}/a.pem}}]}}\n"


async def test_a_reload_in_the_middle(tmp_path: Path) -> None:
    """An exchange keeps the rules it began with; the next one has the new ones."""
    held, let_go = trio.Event(), trio.Event()

    async def hold(self: Plugin, exchange: Exchange) -> None:
        if exchange.request.path == "/held":
            held.set()
            await let_go.wait()

    slow = made("slow", filter_request=hold)
    async with app(SECRET) as it, plugged(tmp_path, it.url, slow, GUARD) as stage:
        line = await stage.connect()
        await line.send(b"GET /held HTTP/1.1\r\nHost: a.test\r\n\r\n")
        await held.wait()
        assert (await reload(stage, text(it.url, [slow]), slow)).ok  # nobody has to log on any more
        other = await stage.connect()
        assert (await other.get())[1] == b"secret"
        let_go.set()
        assert status((await line.message())[0]) == 401
        assert (await line.get())[1] == b"secret"
        assert (await reload(stage, text(it.url, [GUARD]), GUARD)).ok
        assert status((await line.get())[0]) == 401
        assert status((await other.get())[0]) == 401
