"""Basic against a domain: a front on a member of it, asked by a client over http, and what it finds out and logs.

Plays (the functions without ``test_``) happen on the member, see `tests.windows.ad`.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from frontd_plugins import _directory as directories
from frontd_plugins import _winbind as winbind

from tests.plugins.logons import basic_field
from tests.windows.ad import FRONT, NETBIOS, PASSWORDS, REALM, Domain
from tests.windows.realm import needs_gssapi
from tests.wire import app, front, one_pool

WINBIND = "winbind: {}"
Told = dict[str, Any]


def site(verifier: str, more: str = "") -> str:
    return f"plugins: [{{basic: {{{verifier}, allow_http: true}}}}{more}]"


def kerberos(keytab: object, spn: str = FRONT) -> str:
    return f"kerberos: {{realm: {REALM}, keytab: {keytab}, spn: {spn}}}"


async def logons(verifier: str, users: list[tuple[str, str]], more: str = "") -> Told:
    """What each user with a password is answered, which fields the app is sent, and the error log."""
    with tempfile.TemporaryDirectory() as folder:
        async with app() as it, front(one_pool(it.url, site=site(verifier, more)), Path(folder)) as stage:
            line, answers = await stage.connect(), []
            for user, password in users:
                it.heads.clear()
                head, _ = await line.get("/", f"Authorization: {basic_field(user, password).decode()}")
                sent = it.heads.pop().decode() if it.heads else ""
                answers.append(
                    (int(head.split()[1]), dict(re.findall(r"(?m)^(X-Remote-\w+|X-Auth-\w+): (.*)\r", sent)))
                )
            return {"answers": answers, "log": stage.log("error").replace("+", " ")}


def refused(domain: Domain, verifier: str, user: str, password: str) -> str:
    """The error log of a logon that has to fail with 401."""
    told = domain.play(logons, verifier=verifier, users=[(user, password)])
    assert told["answers"] == [[401, {}]]
    assert password not in told["log"]
    return str(told["log"])


# ---------------------------------------------------------------------------------------------------- winbind


def test_winbind_says_who_it_is(domain: Domain) -> None:
    names = ["bob", f"{NETBIOS}\\bob", f"bob@{REALM}", "BOB"]
    told = domain.play(logons, verifier=WINBIND, users=[(name, PASSWORDS["bob"]) for name in names])
    groups = ",".join(f"{NETBIOS}\\{name}" for name in ("Domain Users", "readers", "webusers"))
    who = {"X-Remote-User": f"{NETBIOS}\\bob", "X-Remote-Groups": groups, "X-Auth-Scheme": "Basic"}
    assert told["answers"] == [[200, who]] * len(names)


def test_rules_see_the_groups_of_the_domain(domain: Domain) -> None:
    rules = f", {{authorize: [{{allow: ['group:{NETBIOS}\\webusers']}}]}}"
    users = [(name, PASSWORDS[name]) for name in ("bob", "carol")]
    told = domain.play(logons, verifier=WINBIND, users=users, more=rules)
    assert [status for status, _ in told["answers"]] == [200, 403]


@pytest.mark.parametrize(
    ("user", "password", "why"),
    [
        ("bob", "Bob-pass2", f"{NETBIOS.lower()}\\bob: the password is wrong"),
        ("mallory", "Bob-pass1", "there is no such user"),
        ("dora", PASSWORDS["dora"], f"{NETBIOS.lower()}\\dora: the account is disabled"),
        ("NOWHERE\\bob", PASSWORDS["bob"], "there is no such user"),
        ("a\\b\\c", PASSWORDS["bob"], "the user name is none of Windows"),
    ],
)
def test_winbind_refuses(domain: Domain, user: str, password: str, why: str) -> None:
    log = refused(domain, f"winbind: {{domain: {NETBIOS}}}", user, password)
    assert why in log
    assert "mallory" not in log


async def pages(verifier: str, users: list[str]) -> list[str]:
    """What clients see of a wrong password of each: head and page, but for what is of the request alone."""
    with tempfile.TemporaryDirectory() as folder:
        async with app() as it, front(one_pool(it.url, site=site(verifier)), Path(folder)) as stage:
            line, found = await stage.connect(), []
            for user in users:
                head, body = await line.get("/", f"Authorization: {basic_field(user, 'Wrong-pass1').decode()}")
                seen = head.decode() + body.decode().split("Request:")[0]
                found.append(re.sub(r"(?m)^(Date|Content-Length|X-Request-ID): .*$", "", seen))
            return found


@pytest.mark.parametrize("by", ["winbind", "kerberos"])
def test_a_client_cannot_tell_why(domain: Domain, by: str) -> None:
    """A wrong password, a stranger, and an account that is disabled."""
    needs_gssapi()
    verifier = WINBIND if by == "winbind" else kerberos(domain.folder / "front.keytab")
    (page,) = set(domain.play(pages, verifier=verifier, users=["carol", "mallory", "dora"]))
    assert page.startswith("HTTP/1.1 401 ")
    assert "Reason: LogonFailed" in page
    domain.play(logons, verifier=verifier, users=[("carol", PASSWORDS["carol"])])  # not counted any longer


async def remembered() -> list[int]:
    """bob, and then bob and carol while no thread is free to ask winbind."""
    with tempfile.TemporaryDirectory() as folder:
        text = site(f"{WINBIND}, queue: 0")
        async with app() as it, front(one_pool(it.url, site=text), Path(folder)) as stage:
            line, found = await stage.connect(), []
            for user in ("bob", "bob", "carol"):
                head, _ = await line.get("/", f"Authorization: {basic_field(user, PASSWORDS[user]).decode()}")
                found.append(int(head.split()[1]))
                if len(found) == 1:
                    for holder in (holders := [object() for _ in range(int(winbind.THREADS.total_tokens))]):
                        winbind.THREADS.acquire_on_behalf_of_nowait(holder)
            for holder in holders:
                winbind.THREADS.release_on_behalf_of(holder)
            return found


def test_right_passwords_are_remembered(domain: Domain) -> None:
    assert domain.play(remembered) == [200, 200, 503]


# ---------------------------------------------------------------------------------------------------- Kerberos


def test_a_kdc_says_who_it_is(domain: Domain) -> None:
    needs_gssapi()
    verifier = kerberos(domain.folder / "front.keytab")
    names = ["bob", f"bob@{REALM.lower()}"]
    told = domain.play(logons, verifier=verifier, users=[(name, PASSWORDS["bob"]) for name in names])
    assert told["answers"] == [[200, {"X-Remote-User": f"bob@{REALM}", "X-Auth-Scheme": "Basic"}]] * 2


async def sids(folder: str) -> list[str]:
    """What the PAC says about bob."""
    settings = directories.KerberosSettings(realm=REALM, keytab=Path(folder) / "front.keytab", spn=FRONT)
    return list((await directories.Realm(settings).ask(f"bob@{REALM}", PASSWORDS["bob"])).sids)


def test_a_kdc_says_which_groups(domain: Domain) -> None:
    needs_gssapi()
    found = set(domain.play(sids, folder=str(domain.folder)))
    facts = domain.facts
    assert {sid for sid in found if sid.startswith("S-1-5-21-")} == {
        facts["users"]["bob"], *(sid for sid in facts["tokens"]["bob"] if sid.startswith("S-1-5-21-"))
    }  # fmt: skip


@pytest.mark.parametrize(
    ("user", "password", "why"),
    [
        ("bob", "Bob-pass2", f"bob@{REALM}: the password is wrong"),
        ("mallory", "Bob-pass1", "there is no such user"),
        ("dora", PASSWORDS["dora"], f"dora@{REALM}: the account is disabled, locked out or has expired"),
        ("fred", PASSWORDS["fred"], f"fred@{REALM}: the password has expired"),
        ("bob@OTHER.TEST", PASSWORDS["bob"], "the user is not of the realm that may log on here"),
        ("HTTP/front.frontd.test", PASSWORDS["bob"], "the user name is none of a person in Kerberos"),
    ],
)
def test_a_kdc_refuses(domain: Domain, user: str, password: str, why: str) -> None:
    needs_gssapi()
    log = refused(domain, kerberos(domain.folder / "front.keytab"), user, password)
    assert why in log
    assert "mallory" not in log
