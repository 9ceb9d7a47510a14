"""Who a Kerberos user is: the account, whatever name of it the KDC was asked for.

Plays (the functions without ``test_``) happen on a member of the domain, see `tests.windows.ad`.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from frontd_plugins import _gss as gss
from frontd_plugins import _pac as pac
from hypothesis import given
from hypothesis import strategies as st

from frontd.testing import site
from tests.plugins.logons import basic_field
from tests.plugins.test_negotiate import armed, logon, refusal
from tests.windows.ad import BARE, FRONT, MACHINE, PASSWORDS, REALM, Domain
from tests.windows.realm import NAME, Realm, house, kdc, needs_gssapi, negotiate, token
from tests.wire import app, front, one_pool

__all__ = ["house", "kdc"]  # fixtures

Told = dict[str, Any]
HOST = "front.frontd.test"
NAMES = {
    "as it is": ("bob", "bob", ()),
    "in other letters": ("BoB", "bob", ()),
    "a UPN that is somebody else's name": ("boss", "evil", ()),
    "a UPN as an enterprise name": (f"boss@{REALM}", "evil", ("-E",)),
    "a machine": ("pc1", "pc1$", ()),
    "a service": (FRONT, "svc-front", ()),
}
SECRETS = {"bob": PASSWORDS["bob"], "evil": PASSWORDS["evil"], "pc1$": MACHINE, "svc-front": "Svc-pass2!"}


@pytest.fixture(autouse=True)
def _gssapi() -> None:
    needs_gssapi()


def ticket(folder: str, name: str, password: str, *options: str) -> Path:
    """A new credential cache with a ticket-granting ticket in it."""
    path = Path(folder, "cc")
    command = ["kinit", *options, "-c", f"FILE:{path}", name]
    done = subprocess.run(
        command, input=f"{password}\n", text=True, capture_output=True, check=False, timeout=20, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return path


async def come(
    keytab: str, name: str, password: str, options: list[str], plugins: str = "", settings: str = ""
) -> Told:
    """Somebody who gets himself a ticket as `name`: the status, whom the app sees, and the error log."""
    text = f"plugins: [{{negotiate: {{keytab: {keytab}{settings}}}}}{plugins}]"
    with tempfile.TemporaryDirectory() as folder:
        cache = ticket(folder, name, password, *options)
        return await told(text, f"Authorization: {negotiate(token(cache, HOST))}", folder)


async def by_password(keytab: str, name: str, password: str, spn: str = FRONT, settings: str = "") -> Told:
    """The same, where the front asks the KDC."""
    verifier = f"kerberos: {{realm: {REALM}, keytab: {keytab}, spn: {spn}{settings}}}"
    text = f"plugins: [{{basic: {{{verifier}, allow_http: true}}}}]"
    with tempfile.TemporaryDirectory() as folder:
        return await told(text, f"Authorization: {basic_field(name, password).decode()}", folder)


async def told(text: str, field: str, folder: str) -> Told:
    async with app() as it, front(one_pool(it.url, site=text), Path(folder)) as stage:
        line = await stage.connect()
        head, _ = await line.get("/", field, host=HOST)
        seen = re.findall(r"\r\nX-Remote-User: (.*)\r\n", it.heads[0].decode()) if it.heads else []
        return {"status": int(head.split()[1]), "seen": seen, "log": stage.log("error").replace("+", " ")}


@pytest.mark.parametrize("case", NAMES)
def test_a_user_is_the_account(domain: Domain, case: str) -> None:
    name, account, options = NAMES[case]
    keytab = str(domain.folder / "front.keytab")
    found = domain.play(come, keytab=keytab, name=name, password=SECRETS[account], options=[*options])
    assert (found["status"], found["seen"]) == (200, [f"{account}@{REALM}"]), found


def test_a_rule_against_somebody_is_not_evaded_by_another_name(domain: Domain) -> None:
    keytab = str(domain.folder / "front.keytab")
    rules = f", {{authorize: [{{allow: [authenticated], deny: ['evil@{REALM}']}}]}}"
    found = domain.play(come, keytab=keytab, name="boss", password=PASSWORDS["evil"], options=[], plugins=rules)
    assert (found["status"], found["seen"]) == (403, [])


@pytest.mark.parametrize(("name", "account"), [("BoB", "bob"), ("boss", "evil"), ("pc1", "pc1$")])
def test_a_password_is_that_of_the_account(domain: Domain, name: str, account: str) -> None:
    keytab = str(domain.folder / "front.keytab")
    found = domain.play(by_password, keytab=keytab, name=name, password=SECRETS[account])
    assert (found["status"], found["seen"]) == (200, [f"{account}@{REALM}"]), found


# ---------------------------------------------------------------------------------------------------- without a PAC


@pytest.mark.parametrize(("name", "account"), [("boss", "evil"), ("bob", "bob")])
def test_a_user_of_the_domain_cannot_have_the_pac_left_out(domain: Domain, name: str, account: str) -> None:
    """Without it the ticket has the name that was asked for, and nothing of the account."""
    who = {"name": name, "password": SECRETS[account], "options": ["--no-request-pac"]}
    keytab = str(domain.folder / "front.keytab")
    found = domain.play(come, keytab=keytab, **who)
    assert (found["status"], found["seen"]) == (401, [])
    assert gss.NO_PAC in found["log"]
    found = domain.play(come, keytab=keytab, settings=", require_pac: false", **who)
    assert (found["status"], found["seen"]) == (200, [f"{name}@{REALM}"])  # which is why it is no default


def test_an_account_of_ours_for_which_the_domain_leaves_it_out(domain: Domain) -> None:
    where = {"keytab": str(domain.folder / "bare.keytab"), "spn": BARE}
    found = domain.play(by_password, name="boss", password=SECRETS["evil"], **where)
    assert (found["status"], found["seen"]) == (401, [])
    assert gss.NO_PAC in found["log"]
    found = domain.play(by_password, name="boss", password=SECRETS["evil"], settings=", require_pac: false", **where)
    assert (found["status"], found["seen"]) == (200, [f"boss@{REALM}"])


def test_without_it_where_the_kdc_makes_one_for_everybody(house: Realm) -> None:
    cache = house.ticket("alice", "secret", "--no-request-pac")
    with site(armed(house)) as s:
        assert s.get("/", logon(cache)).status == 401
        assert refusal(s) == gss.NO_PAC
    with site(armed(house, require_pac=False)) as s:
        answer = s.get("/", logon(cache))
        assert answer.upstream is not None
        assert answer.upstream.headers["X-Remote-User"] == "alice@TEST.FRONTD"


def test_a_password_without_it(house: Realm) -> None:
    keytab = house.service("HTTP/bare.example", keytab="bare.keytab", more="+no_auth_data_required")
    for settings, status in (({}, 401), ({"require_pac": False}, 200)):
        kerberos = {"realm": NAME, "keytab": str(keytab), "spn": "HTTP/bare.example", **settings}
        with site({"basic": {"kerberos": kerberos}}) as s:
            assert s.get("/", {"Authorization": basic_field("alice", "secret").decode()}, advance=1).status == status
            assert (gss.NO_PAC in s.log[-1].detail) == (status == 401)


def test_a_kdc_without_windows_names_its_users_itself(house: Realm) -> None:
    """Its PAC has nothing but that name, and checksums."""
    with site(armed(house)) as s:
        answer = s.get("/", logon(house.ticket("alice")))
        assert answer.upstream is not None
        assert answer.upstream.headers["X-Remote-User"] == "alice@TEST.FRONTD"


class Part(NamedTuple):
    """What the library says of a part of the PAC."""

    values: frozenset[bytes]
    authenticated: bool = True


def whole(*types: int) -> bytes:
    """A PAC with empty buffers."""
    return struct.pack("<II", len(types), 0) + b"".join(struct.pack("<IIQ", number, 0, 0) for number in types)


ODD_PACS = {
    "a domain controller's without logon information": ({gss.PAC: Part(frozenset({whole(6, 7, 10, 12)}))}, "type [12]"),
    "attributes and requestor, as in a ticket for a KDC": (
        {gss.PAC: Part(frozenset({whole(10, 17, 6, 18, 7)}))},
        "type [17, 18]",
    ),
    "not signed": ({gss.PAC: Part(frozenset({whole(6, 7, 10)}), authenticated=False)}, "not signed by the KDC"),
    "logon information that is not signed": (
        {
            gss.PAC: Part(frozenset({whole(1, 6, 7, 10)}), authenticated=False),
            gss.LOGON_INFO: Part(frozenset({b""}), authenticated=False),
        },
        "not signed by the KDC",
    ),
    "cut off": ({gss.PAC: Part(frozenset({whole(6, 7, 10)[:-1]}))}, "cannot be read: it ends too early"),
    "of a later version": ({gss.PAC: Part(frozenset({b"\0\0\0\0\1\0\0\0"}))}, "version 1"),
    "without an end": ({gss.PAC: Part(frozenset({struct.pack("<II", 1 << 31, 0) + bytes(99)}))}, "buffers"),
    "something else": ({b"urn:other": Part(frozenset({b""}))}, "the ticket has no PAC"),
}


@pytest.mark.parametrize("odd", ODD_PACS)
def test_odd_pacs(odd: str) -> None:
    attributes, why = ODD_PACS[odd]
    with pytest.raises(gss.GssError) as caught:
        gss._info(SimpleNamespace(attributes=attributes), requires_pac=True)
    assert why in str(caught.value)


@given(st.binary(max_size=200))
def test_buffers_of_whatever(data: bytes) -> None:
    with contextlib.suppress(pac.BadPac):
        assert len(pac.buffers(data)) <= pac.BUFFERS


@pytest.mark.parametrize("name", ["alice\\@TEST.FRONTD", "alice/admin"])
def test_where_no_account_is_told_of_a_name_has_to_be_a_plain_one(house: Realm, name: str) -> None:
    house.admin(f'addprinc -pw secret "{name}"')
    cache = house.folder / "cc-odd"
    house.run("kinit", "-c", f"FILE:{cache}", name, said="secret\n")
    with site(armed(house)) as s:
        assert s.get("/", logon(cache)).status == 401
        assert refusal(s) == "the ticket tells of no account, and its name is none of a user (RFC 1964 2.1.1)"


ODD_ACCOUNTS = ("", "a@OTHER.TEST", "a/b", "CORP\\a", "a\nb")


@pytest.mark.parametrize("account", ODD_ACCOUNTS)
def test_an_account_that_could_be_taken_for_another_is_refused(account: str) -> None:
    with pytest.raises(gss.GssError, match="a name that is none of a user"):
        gss._name("ann@TEST.FRONTD", pac.LogonInfo(account, "TEST", ()))


@pytest.mark.parametrize("asked", ["ann", "ann@", "ann\\@TEST.FRONTD", "ann@X\\@TEST.FRONTD"])
def test_a_realm_has_to_be_plain_also_with_a_pac(asked: str) -> None:
    with pytest.raises(gss.GssError, match="the realm in the ticket is none"):
        gss._name(asked, pac.LogonInfo("ann", "TEST", ()))
