"""Kerberos towards the app with a real KDC: whom it sees, what is refused, and what of its answers reaches the client.

Delegation itself takes a domain: tests/windows/test_delegation.py.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from frontd_plugins import _gss_initiate as initiate
from frontd_plugins._gss import GssBusy, GssError
from frontd_plugins.upstream_kerberos import Realms, UpstreamKerberos
from hypothesis import given
from hypothesis import strategies as st

import frontd
from frontd.testing import ConfigurationError, SiteUnderTest, site
from tests.plugins.logons import ALICE
from tests.windows.backend import seen
from tests.windows.realm import NAME, Realm, house, kdc, negotiate, token

__all__ = ["house", "kdc"]  # fixtures

APP, US = "HTTP/app.test", "frontd/us"


@pytest.fixture(scope="module")
def keys(kdc: Realm) -> Path:
    """Our own key; that of the app is in ``app.keytab`` beside it."""
    kdc.service(APP, keytab="app.keytab")
    return kdc.service(US, keytab="us.keytab")


def armed(keys: Path, **settings: Any) -> dict[str, Any]:
    return {"upstream_kerberos": {"pools": {"app": APP}, "keytab": str(keys), "mode": "own", **settings}}


def users(folder: Path) -> dict[str, Any]:
    """Logons with passwords, of which no KDC knows."""
    (folder / "users").write_text(ALICE)
    return {"basic": {"users_file": str(folder / "users")}}


def as_alice() -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(b'alice:secret').decode()}"}


def refusal(s: SiteUnderTest) -> str:
    """Why the app was not asked, after a look at what everybody can see of it."""
    entry = s.log[-1]
    assert (entry.status, entry.reason) == (502, "DelegationFailed")
    return entry.detail


# ---------------------------------------------------------------------------------------------------- in our own name


def test_the_app_sees_us(house: Realm, keys: Path) -> None:
    with site(armed(keys)) as s:
        tokens = []
        for _ in range(3):
            answer = s.get("/")
            assert answer.status == 200
            assert answer.upstream is not None
            tokens.append(answer.upstream.headers["Authorization"])
            assert seen(tokens[-1], house.folder / "app.keytab") == f"{US}@{NAME}"
        assert len(set(tokens)) == 3  # each is good once
        assert not [line for line in s.errors if "YII" in line]  # what tokens begin with


def test_what_the_client_says_of_itself_is_replaced(house: Realm, keys: Path) -> None:
    with site(armed(keys)) as s:
        answer = s.get("/", {"Authorization": "Bearer of-the-client"})
        assert answer.upstream is not None
        assert seen(answer.upstream.headers["Authorization"], house.folder / "app.keytab") == f"{US}@{NAME}"


def test_other_pools_are_left_alone(house: Realm, keys: Path) -> None:
    with site(armed(keys, pools={"https://reports.test:8443": APP})) as s:
        answer = s.get("/", {"Authorization": "Bearer of-the-client"})
        assert answer.upstream is not None
        assert answer.upstream.headers["Authorization"] == "Bearer of-the-client"
        s.app.respond(401, {"WWW-Authenticate": "Negotiate"})
        assert s.get("/").status == 401


def test_one_of_several_principals(house: Realm, keys: Path) -> None:
    both = str(house.service("frontd/more", keytab="both.keytab"))
    house.admin(f"ktadd -k {both} -norandkey {US}")
    with pytest.raises(ConfigurationError, match=r"has keys for 2 principals, so say which one we are"):
        site(armed(keys, keytab=both)).__enter__()
    with site(armed(keys, keytab=both, principal=f"frontd/more@{NAME}")) as s:
        answer = s.get("/")
        assert answer.upstream is not None
        assert seen(answer.upstream.headers["Authorization"], house.folder / "app.keytab") == f"frontd/more@{NAME}"


# ---------------------------------------------------------------------------------------------------- in the user's

DELEG, MUTUAL = 0x1, 0x2  # GSS_C_DELEG_FLAG, GSS_C_MUTUAL_FLAG


def delegating(house: Realm, keys: Path, **settings: Any) -> dict[str, Any]:
    """Logons with tickets, and what they delegate goes to the app."""
    keytab = str(house.folder / "http.keytab")
    return {"negotiate": {"keytab": keytab, "delegation": True, **settings}} | armed(keys, mode="delegate")


def ticket(house: Realm, user: str, flags: int = DELEG | MUTUAL) -> dict[str, str]:
    return {"Authorization": negotiate(token(house.ticket(user), "test.example", flags=flags))}


@pytest.mark.parametrize("persist", ["request", "connection"])
def test_the_app_sees_who_has_forwarded_a_ticket(house: Realm, keys: Path, persist: str) -> None:
    with site(delegating(house, keys, persist=persist)) as s, s.connect() as c:
        for user in ("alice", "bob", "alice"):
            for fields in (ticket(house, user), {}):
                answer = c.get("/", fields)
                if persist == "request" and not fields:
                    assert (answer.status, answer.upstream) == (401, None)
                    continue
                assert answer.upstream is not None
                name = f"{user}@{NAME}"
                assert answer.upstream.headers["X-Remote-User"] == name
                assert seen(answer.upstream.headers["Authorization"], house.folder / "app.keytab") == name


def test_whoever_has_forwarded_none_is_not_delegated(house: Realm, keys: Path) -> None:
    """MIT's database has no list of who may delegate whom, and so the evidence is of no use."""
    with site(delegating(house, keys)) as s:
        assert s.get("/", ticket(house, "alice", MUTUAL)).upstream is None
        assert refusal(s).startswith(
            f"the account may not delegate to {APP}@{NAME}, or the user may not be delegated ("
        )


def test_people_log_on_although_nothing_can_be_delegated(
    house: Realm, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = [ticket(house, "alice", MUTUAL), ticket(house, "alice", MUTUAL), ticket(house, "alice")]
    monkeypatch.setenv("KRB5_CONFIG", str(nowhere(house)))
    plugins = delegating(house, keys)
    plugins["upstream_kerberos"]["pools"] = {"https://other.test": APP}
    with site(plugins) as s:
        assert s.get("/", fields[0]).status == 200
    with site(delegating(house, keys)) as s:
        s.get("/", fields[1])
        assert s.log[-1].user == f"alice@{NAME}"
        assert refusal(s).startswith("nothing was delegated: the KDC cannot be asked: ")
        monkeypatch.setenv("KRB5_CONFIG", str(house.config))
        assert s.get("/", fields[2]).status == 200  # with a ticket of his we need none of our own


def test_a_logon_delegates_nothing_that_is_not_asked_for(house: Realm, keys: Path) -> None:
    plugins = delegating(house, keys)
    plugins["negotiate"]["delegation"] = False
    with site(plugins) as s:
        assert s.get("/", ticket(house, "alice")).upstream is None
        assert refusal(s) == f"negotiate has no delegation: true, for alice@{NAME}"


def nowhere(house: Realm) -> Path:
    """A configuration of the realm in which its KDC is not there."""
    path = house.folder / "nowhere.conf"
    path.write_text(house.config.read_text().replace(f"127.0.0.1:{house.port}", "127.0.0.1:1"))
    return path


# ---------------------------------------------------------------------------------------------------- refused


def test_a_service_that_the_kdc_does_not_know(house: Realm, keys: Path) -> None:
    with site(armed(keys, pools={"app": "HTTP/nowhere.test"})) as s:
        answer = s.get("/")
        assert answer.upstream is None
        assert "nowhere" not in answer.text
        assert refusal(s).startswith(f"the KDC has no service HTTP/nowhere.test@{NAME} (")


def test_a_key_that_is_not_ours_any_more_is_not_tried_again_and_again(house: Realm, keys: Path) -> None:
    old = house.service("frontd/old", keytab="old.keytab", more="+requires_preauth")
    house.admin("cpw -randkey frontd/old")
    with site(armed(keys, keytab=str(old))) as s:
        for _ in range(3):
            s.get("/")
            assert refusal(s).startswith(f"the keytab's key is not that of frontd/old@{NAME} (")
        told = (house.folder / "kdc.log").read_text()
        assert told.count("PREAUTH_FAILED") == 1, told  # it counts for a lock-out
        house.admin(f"ktadd -k {old} -norandkey frontd/old")
        s.get("/")
        assert s.log[-1].status == 502
        s.clock.advance(initiate.REFUSED)
        assert s.get("/").status == 200


def test_a_kdc_that_cannot_be_reached(house: Realm, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRB5_CONFIG", str(nowhere(house)))
    with site(armed(keys)) as s:
        answer = s.get("/")
        assert (answer.status, answer.headers["Retry-After"], answer.upstream) == (503, "1", None)
        assert s.log[-1].reason == "DelegationFailed"
        assert s.log[-1].detail.startswith("the KDC cannot be asked: Cannot contact any KDC")
        monkeypatch.setenv("KRB5_CONFIG", str(house.config))
        assert s.get("/").status == 503
        s.clock.advance(initiate.PAUSE)
        assert s.get("/").status == 200


def test_logons_that_delegate_nothing(house: Realm, keys: Path, tmp_path: Path) -> None:
    plugins = users(tmp_path) | {"negotiate": {"keytab": str(house.folder / "http.keytab")}}
    with site(plugins | armed(keys, mode="delegate")) as s:
        assert s.get("/", as_alice()).upstream is None
        assert refusal(s) == "a logon by Basic delegates nothing (mode: transition is for those), for alice"


def test_nobody_gets_to_the_app_as_somebody(house: Realm, keys: Path, tmp_path: Path) -> None:
    """Whom the connection to the app belongs to is not known: it may have seen somebody on it."""
    anybody = {"authorize": [{"allow": ["anonymous"]}]}
    with site(users(tmp_path) | anybody | armed(keys, mode="transition")) as s:
        answer = s.get("/")
        assert (answer.status, answer.upstream) == (401, None)
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
        assert (s.log[-1].reason, s.log[-1].detail) == ("LogonRequired", "app is sent known users alone")


def test_users_of_our_own_are_no_users_of_the_realm(house: Realm, keys: Path, tmp_path: Path) -> None:
    with site(users(tmp_path) | armed(keys, mode="transition")) as s:
        assert s.get("/", as_alice()).upstream is None
        assert refusal(s) == "the user has neither domain nor realm (default_realm), for alice"


def test_an_account_that_may_not_take_other_names(house: Realm, keys: Path, tmp_path: Path) -> None:
    """MIT's database has no list of who may delegate whom: nobody may."""
    with site(users(tmp_path) | armed(keys, mode="transition", default_realm=NAME)) as s:
        assert s.get("/", as_alice()).upstream is None
        assert refusal(s).startswith(f"the account may not delegate to HTTP/app.test@{NAME}, or the user may not be ")


# ---------------------------------------------------------------------------------------------------- names


REALMS = Realms({"CORP": "CORP.EXAMPLE"}, {"CORP.EXAMPLE": "CORP.EXAMPLE", NAME: NAME}, "HOME.EXAMPLE")


@pytest.mark.parametrize(
    ("name", "principal"),
    [
        ("CORP\\bob", "bob@CORP.EXAMPLE"),
        ("corp\\Bob Jones", "Bob Jones@CORP.EXAMPLE"),
        ("bob@corp.example", "bob@CORP.EXAMPLE"),
        (f"bob@{NAME}", f"bob@{NAME}"),
        ("bob", "bob@HOME.EXAMPLE"),
        ("zoë", "zoë@HOME.EXAMPLE"),
    ],
)
def test_names_of_users(name: str, principal: str) -> None:
    assert REALMS.principal(name) == principal


@pytest.mark.parametrize(
    "name",
    ["OTHER\\bob", "\\bob", "CORP\\", "a\\CORP\\bob", "bob@home.example", "bob@", "@CORP.EXAMPLE", "a@b@CORP.EXAMPLE",
     "CORP\\bob@OTHER", "CORP\\krbtgt/OTHER", "bob/admin", "CORP\\bob\0", "bob\n"],
)  # fmt: skip
def test_names_that_are_nobodys(name: str) -> None:
    with pytest.raises(GssError):
        REALMS.principal(name)


@given(st.text(min_size=1) | st.from_regex(r"\A(CORP\\|OTHER\\)?[a-z/\\@ ]{0,6}(@CORP.EXAMPLE|@X)?\Z"))
def test_whatever_the_name_a_principal_has_one_part_and_a_realm_of_ours(name: str) -> None:
    try:
        user, _, realm = REALMS.principal(name).partition("@")
    except GssError:
        return
    assert user
    assert not set("/\\@\0\n") & set(user)
    assert realm in ("CORP.EXAMPLE", "HOME.EXAMPLE", NAME)


# ---------------------------------------------------------------------------------------------------- what comes back


def test_the_apps_side_of_the_handshake_ends_here(house: Realm, keys: Path) -> None:
    with site(armed(keys)) as s:
        challenges = [
            ("WWW-Authenticate", "Negotiate oYG3"),
            ("WWW-Authenticate", "Bearer"),
            ("Persistent-Auth", "true"),
        ]
        s.app.respond(200, challenges)
        answer = s.get("/")
        assert (answer.status, answer.headers.get_all("WWW-Authenticate")) == (200, ["Bearer"])
        assert "Persistent-Auth" not in answer.headers
        s.app.respond(401, [("WWW-Authenticate", "Bearer")])  # of the app's own affairs
        assert s.get("/").status == 401


@pytest.mark.parametrize("challenge", ["Negotiate", "NTLM", 'Basic realm="x", negotiate', "KERBEROS x"])
def test_an_app_that_refuses_the_token(house: Realm, keys: Path, challenge: str) -> None:
    with site(armed(keys)) as s:
        s.app.respond(401, {"WWW-Authenticate": challenge})
        answer = s.get("/")
        assert (answer.status, answer.headers.get_all("WWW-Authenticate")) == (502, [])
        assert s.remarks[-1].endswith("app refuses the token")
        s.app.echo()
        assert s.get("/").status == 200


def test_a_new_key_of_the_app(house: Realm, keys: Path) -> None:
    """The ticket that we keep is of the old one: after one refusal there is another one."""
    rotated = house.service("HTTP/rotated.test", keytab="rotated.keytab")
    with site(armed(keys, pools={"app": "HTTP/rotated.test"})) as s:
        assert s.get("/").status == 200
        rotated = house.rotated("HTTP/rotated.test", "new.keytab")
        stale = s.get("/").upstream
        assert stale is not None
        with pytest.raises(Exception, match=r"(?i)key"):
            seen(stale.headers["Authorization"], rotated)
        s.app.respond(401, {"WWW-Authenticate": "Negotiate"})
        assert s.get("/").status == 502
        s.app.echo()
        fresh = s.get("/").upstream
        assert fresh is not None
        assert seen(fresh.headers["Authorization"], rotated) == f"{US}@{NAME}"


# ---------------------------------------------------------------------------------------------------- bounds


async def test_tickets_that_do_not_come(house: Realm, keys: Path, autojump_clock: Any, monkeypatch: Any) -> None:
    """Threads that never come back cost a request the deadline, and the others are told at once when too many wait."""
    busy = trio.CapacityLimiter(1)
    monkeypatch.setattr(initiate, "THREADS", busy)
    busy.acquire_on_behalf_of_nowait("somebody before")
    account = initiate.Account(keys, f"{US}@{NAME}")
    with pytest.raises(GssBusy, match="the KDC has not answered for 10 s"):
        await account.token(APP)
    monkeypatch.setattr(initiate, "QUEUE", 0)
    with pytest.raises(GssBusy, match="0 requests wait for tickets"):
        await initiate.token(None, APP)


async def test_one_logon_for_all_that_wait_for_it(house: Realm, keys: Path) -> None:
    principal = "frontd/once"
    account = initiate.Account(house.service(principal, keytab="once.keytab"), f"{principal}@{NAME}")
    tokens: list[bytes] = []

    async def one() -> None:
        tokens.append(await account.token(APP))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)
    assert len(set(tokens)) == 20
    lines = (house.folder / "kdc.log").read_text().splitlines()
    assert len([line for line in lines if "AS_REQ" in line and "ISSUE" in line and principal in line]) == 1


# ---------------------------------------------------------------------------------------------------- check


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"pools": {}}, "pools: at least one is needed"),
        (
            {"pools": {"app": "app.test"}},
            "'app.test' is no service principal name; one is written HTTP/app.example.com",
        ),
        ({"pools": {"apps": APP}}, 'there is no pool apps; did you mean "app"?'),
        ({"principal": "frontd/them"}, "us.keytab has no key for frontd/them; it has: frontd/us@TEST.FRONTD version 1"),
        ({"keytab": "nowhere.keytab"}, "there is no such keytab"),
        ({"mode": "delegate"}, "mode: delegate is for users who have logged on, and no plugin here logs anybody on"),
        ({"mode": "transition"}, "mode: transition is for users who have logged on, and no plugin"),
    ],
)
def test_what_cannot_work_is_said(house: Realm, keys: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        site(armed(keys, **settings)).__enter__()
    assert says in str(caught.value)


def test_an_app_that_logs_clients_on_itself_gets_no_tokens_of_ours(keys: Path) -> None:
    """A pool with ``pass_through`` is one client's by its logon; a token of ours would be another."""
    settings = UpstreamKerberos.Settings(pools={"app": APP, "plain": APP}, keytab=keys, mode="own")
    facts = frontd.SiteFacts("a", (), ("upstream_kerberos",), False, pools=frozenset({"app", "plain"}))
    assert list(UpstreamKerberos.check(settings, facts)) == []
    (said,) = UpstreamKerberos.check(settings, replace(facts, passing=frozenset({"app", "other"})))
    assert said == (
        "the pool app leaves logons to its apps (pass_through), and cannot get tokens of ours too: take `pass_through` "
        "out of `pools.app`, or `app` out of the pools here"
    )


def test_delegation_takes_negotiate(house: Realm, keys: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="mode: delegate is for logons of negotiate, which is not armed here"):
        site(users(tmp_path) | armed(keys, mode="delegate")).__enter__()
