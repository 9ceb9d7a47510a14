"""Who has logged on is told to the app by frontd and by nobody else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontd import Allow, Client, Exchange, Headers, Identity, Plugin
from frontd.lanes.requests import make_request
from frontd.model.headers import IDENTITY_FIELDS, announced_trailers
from frontd.pipeline.fields import seal, upstream_headers
from frontd.protocol.scan import WireLimits, scan_request
from tests.scenarios.plugged import PluginClass, fields, made, plugged, reload, says, status, text, told
from tests.scenarios.test_plugin_doors import ALICE, GUARD
from tests.scenarios.test_upgrade import AGREED, ASK
from tests.wire import OK, Line, app

NAMES = ["X-Remote-User", "X-Remote-Groups", "X-Auth-Scheme", "X-Frontd-Identity"]
SEPARATORS = "!#$%&'*+-.^_`|~"  # all that may stand in a field name beside letters and digits (RFC 9110 5.6.2)
EVERYBODY = made("everybody", authorize=says(Allow()))


def as_cgi(head: bytes) -> dict[str, list[str]]:
    """A head as the variables that CGI-style apps make of it, in the most generous reading: whatever is neither a
    letter nor a digit becomes ``_``."""
    found: dict[str, list[str]] = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            variable = "".join(c if c.isalnum() and c.isascii() else "_" for c in name.upper())
            found.setdefault(variable, []).append(value.strip())
    return found


def identity_in(head: bytes) -> list[list[str]]:
    seen = as_cgi(head)
    return [seen.get(name.upper().replace("-", "_"), []) for name in NAMES]


@st.composite
def spellings(draw: st.DrawFn) -> str:
    """A field name that some app takes for one of frontd's."""
    name = draw(st.sampled_from(NAMES))
    letters = [draw(st.sampled_from([c.lower(), c.upper()])) if c != "-" else draw(st.sampled_from(SEPARATORS))
               for c in name]  # fmt: skip
    return "".join(letters)


FORGED = st.lists(st.tuples(spellings(), st.sampled_from(["mallory", "", "admins,users"])), max_size=6)
CLIENT = Client("192.0.2.1", 1, "192.0.2.1", "192.0.2.2", 80, "http", "http", 80)


def sent(headers: Headers) -> bytes:
    return b"GET / HTTP/1.1\r\n" + b"".join(b"%s: %s\r\n" % pair for pair in headers.pairs())


@given(FORGED, st.booleans(), st.booleans(), st.sampled_from([None, Identity("alice", ("a", "b"), scheme="Token")]))
def test_no_spelling_passes(
    forged: list[tuple[str, str]], is_nominated: bool, is_proxy: bool, identity: Identity | None
) -> None:
    """Not from a trusted proxy either, and nothing that ``Connection`` names goes missing of what frontd says."""
    lines = [f"{name}: {value}\r\n" for name, value in forged]
    if is_nominated:
        lines.insert(0, f"Connection: {', '.join(['x-remote-user', 'X-Auth-Scheme', *(n for n, _ in forged)])}\r\n")
    received = scan_request(bytearray(f"GET / HTTP/1.1\r\nHost: a\r\n{''.join(lines)}\r\n".encode()), WireLimits())
    assert received is not None
    request = make_request(received)
    client = replace(CLIENT, is_trusted_proxy=is_proxy)
    headers = upstream_headers(request, client, frozenset())
    assert identity_in(sent(headers)) == [[], [], [], []]  # as rewrite_request sees it
    for name, value in forged:  # what a plugin may do in rewrite_request
        headers.add(name, value)
    seal(headers, request, identity)
    assert identity_in(sent(headers)) == ([["alice"], ["a,b"], ["Token"], []] if identity else [[], [], [], []])


@given(FORGED)
def test_no_spelling_passes_as_a_trailer(forged: list[tuple[str, str]]) -> None:
    announced = Headers.of(*((b"Trailer", name.encode()) for name, _ in forged), (b"Trailer", b"X-Sum"))
    trailers = Headers.of(*((name.encode(), value.encode()) for name, value in forged), (b"X-Sum", b"7"))
    assert announced_trailers(announced, trailers).pairs() == [(b"X-Sum", b"7")]


LIES = [
    "X-Remote-User: mallory", "x-remote-user: mallory", "X_Remote_User: mallory", "X.Remote.User: mallory",
    "X-Remote_User: mallory", "X-REMOTE-USER: mallory", "X-Remote-User: mallory", "X-Remote-Groups: admins",
    "X_Remote_Groups: admins", "X-Auth-Scheme: Token", "X_AUTH_SCHEME: Token", "X~Auth~Scheme: Token",
    "X-Frontd-Identity: eyJ", "x_frontd_identity: eyJ",
    "Connection: X-Remote-User, X-Auth-Scheme, X-Remote-Groups, X-Frontd-Identity",
]  # fmt: skip


@pytest.mark.parametrize("site", ["", "underscores_in_headers: true"])
@pytest.mark.parametrize("plugins", [[], [EVERYBODY], [GUARD]], ids=["none", "no authenticator", "armed"])
async def test_on_every_site(tmp_path: Path, site: str, plugins: list[PluginClass]) -> None:
    logon = [ALICE] if GUARD in plugins else []
    async with app() as it, plugged(tmp_path, it.url, *plugins, site=site) as stage:
        line = await stage.connect()
        assert (await line.get("/", *LIES, *logon, "X_Other: 1"))[1] == b"ok"
        lines = "".join(f"{one}\r\n" for one in [*LIES, *logon])
        assert (await (await stage.connect()).ask(f"GET / HTTP/1.0\r\n{lines}\r\n".encode()))[1] == b"ok"
        expected = [["alice"], [], ["Token"], []] if logon else [[], [], [], []]
        assert [identity_in(head) for head in it.heads] == [expected] * 2
        assert fields(it.heads[0], "X_Other") == (["1"] if site else [])


async def test_in_trailers_and_upgrades(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def script(line: Line) -> None:
        head = await line.head()
        is_upgrade = b"Upgrade: websocket" in head
        seen.append(head + (b"" if is_upgrade else await line.read_until(b"0\r\nX-Sum: 1\r\n\r\n")))
        await line.send(AGREED if is_upgrade else OK)

    async with app(script) as it, plugged(tmp_path, it.url, GUARD, site="underscores_in_headers: true") as stage:
        chunked = (
            f"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n{ALICE}\r\n"
            "Trailer: X-Remote-User, X_Remote_Groups, X.Auth.Scheme, X-Sum\r\n\r\n"
            "0\r\nX-Remote-User: mallory\r\nX_Remote_Groups: admins\r\nX.Auth.Scheme: x\r\nX-Sum: 1\r\n\r\n"
        )
        line = await stage.connect()
        assert (await line.ask(chunked.encode()))[1] == b"ok"
        upgrade = ASK.replace(b"\r\nUpgrade", b"\r\nX-Remote-User: mallory\r\n" + ALICE.encode() + b"\r\nUpgrade")
        await (await stage.connect()).ask(upgrade)
        assert [identity_in(head) for head in seen] == [[["alice"], [], ["Token"], []]] * 2
        assert not any(b"mallory" in head or b"admins" in head for head in seen)


def changes(change: Callable[[Headers], object]) -> PluginClass:
    def rewrite(self: Plugin, exchange: Exchange) -> None:
        change(exchange.request.headers)

    return made("changes", rewrite_request=rewrite)


@pytest.mark.parametrize(
    "change",
    [
        lambda headers: headers.set("X-Remote-User", "mallory"),
        lambda headers: headers.add("X_Remote_User", "mallory"),
        lambda headers: headers.add("X.Remote.Groups", "admins"),
        lambda headers: headers.remove("X-Remote-User"),
        lambda headers: headers.add("Connection", "X-Remote-User, X-Remote-Groups, X-Auth-Scheme, Content-Length"),
        lambda headers: headers.items.__delitem__(slice(1, None)),  # all but Host
        lambda headers: headers.set("Content-Length", "0"),
        lambda headers: headers.add("Content-Length", "99"),
        lambda headers: headers.set("Transfer-Encoding", "chunked"),
        lambda headers: headers.set("Upgrade", "websocket"),
        lambda headers: headers.set("Expect", "100-continue"),
    ],
)
async def test_nor_can_a_plugin_forge_or_remove_it(tmp_path: Path, change: Callable[[Headers], object]) -> None:
    """Who has logged on, and the framing of the message."""
    who = made("who", authenticate=says(Identity("alice", ("staff",), scheme="Token")))
    async with app() as it, plugged(tmp_path, it.url, who, changes(change)) as stage:
        line = await stage.connect()
        for _ in range(2):
            assert (await line.ask(b"PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc"))[1] == b"ok"
        assert [identity_in(head) for head in it.heads] == [[["alice"], ["staff"], ["Token"], []]] * 2
        assert it.bodies == [b"abc"] * 2
        for head in it.heads:
            seen = as_cgi(head)
            assert seen["CONTENT_LENGTH"] == ["3"]
            assert not {"TRANSFER_ENCODING", "UPGRADE", "EXPECT", "CONNECTION"} & seen.keys()


@pytest.mark.parametrize(
    "change",
    [
        lambda headers: headers.remove("Host"),
        lambda headers: headers.add("Host", "b.test"),
        lambda headers: headers.items.clear(),
        lambda headers: headers.items.append(("x-a", "X-A", "text")),
        lambda headers: headers.items.append(None),
    ],
)
async def test_a_request_that_is_none_is_not_sent(tmp_path: Path, change: Callable[[Headers], object]) -> None:
    async with app() as it, plugged(tmp_path, it.url, changes(change)) as stage:
        line = await stage.connect()
        for _ in range(2):
            assert status((await line.get())[0]) == 500
        assert it.heads == []
        assert stage.reasons == {"PluginFault": 2}
        assert ": plugin changes.rewrite_request: ValueError: " in await told(stage)


async def test_what_a_plugin_adds_is_for_the_app_alone(tmp_path: Path) -> None:
    """Phases after it see what the client sent: its ``Authorization`` is there, the plugin's own field is not."""
    seen: list[tuple[bytes, bytes]] = []

    def admit(self: Plugin, exchange: Exchange) -> None:
        headers = exchange.request.headers
        seen.append((headers.get("authorization"), headers.get("x-new")))

    look = made("look", admit_response=admit)
    async with app() as it, plugged(tmp_path, it.url, changes(lambda h: h.add("X-New", "1")), GUARD, look) as stage:
        await (await stage.connect()).get("/", ALICE)
        assert fields(it.heads[0], "X-New") == ["1"]
        assert seen == [(b"Token alice", b"")]


async def test_how_names_are_written(tmp_path: Path) -> None:
    """UTF-8 as it is; the commas of a group's own name are escaped, so that nobody is in a group of another name."""
    identity = Identity("José, M.", ("a,b", "100%", "c%2Cd"), scheme="Token")
    async with app() as it, plugged(tmp_path, it.url, made("who", authenticate=says(identity))) as stage:
        assert (await (await stage.connect()).get())[1] == b"ok"
        assert "X-Remote-User: José, M.\r\n".encode() in it.heads[0]
        assert fields(it.heads[0], "X-Remote-Groups") == ["a%2Cb,100%25,c%252Cd"]


# ---------------------------------------------------------------------------------------------------- Authorization


CREDENTIALS = [
    ("Token alice", False), ("token alice", False), ("TOKEN alice", False), ("Token", False), ("Token  alice", False),
    ("Basic YTpi", True), ("Tokens alice", True), ("Bearer token", True), ("alice", True),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "passes"), CREDENTIALS)
async def test_credentials_that_a_plugin_consumes_end_here(tmp_path: Path, sent: str, passes: bool) -> None:
    """Those of another scheme are the app's business, and so are all on a site without such a plugin."""
    async with app() as it, plugged(tmp_path, it.url, GUARD, EVERYBODY) as stage:
        line = await stage.connect()
        await line.get("/", f"Authorization: {sent}")
        for head in it.heads:  # "Token" alone is a failed logon
            assert fields(head, "Authorization") == ([sent] if passes else [])
        assert (await reload(stage, text(it.url, []))).ok
        await line.get("/", f"Authorization: {sent}")
        assert fields(it.heads[-1], "Authorization") == [sent]


async def test_of_several_those_that_are_consumed_end_here(tmp_path: Path) -> None:
    async with app() as it, plugged(tmp_path, it.url, GUARD, EVERYBODY) as stage:
        await (await stage.connect()).get("/", "Authorization: Basic YTpi", "Authorization: tOKEN alice")
        assert fields(it.heads[0], "Authorization") == ["Basic YTpi"]
        assert identity_in(it.heads[0]) == [[], [], [], []]  # two logons are none


def test_the_names_are_these() -> None:
    assert {name.lower().encode() for name in NAMES} == IDENTITY_FIELDS
