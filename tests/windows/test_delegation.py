"""Delegation in a domain: whom the app behind sees, who may not be delegated, and that nobody passes for another.

Plays (the functions without ``test_``) happen on a member of the domain, see `tests.windows.ad`.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from frontd_plugins import _gss_initiate as initiate
from frontd_plugins._gss import GssError

from tests.plugins.logons import basic_field
from tests.windows.ad import BACKEND, FRONT, NETBIOS, PASSWORDS, REALM, Domain
from tests.windows.backend import backend
from tests.windows.realm import needs_gssapi, negotiate, token
from tests.wire import App, Stage, app, front, one_pool

HOST = "front.frontd.test"
CONTROLLER = "HOST/dc1.ad.frontd.test"
MAY_NOT = f"the account may not delegate to {BACKEND}@{REALM}, or the user may not be delegated ("
Told = dict[str, Any]


@pytest.fixture(autouse=True)
def _gssapi() -> None:
    needs_gssapi()


# ---------------------------------------------------------------------------------------------------- on the member


def ticket(folder: Path, user: str, *options: str) -> Path:
    """A new credential cache in which a user has a ticket-granting ticket."""
    handle, path = tempfile.mkstemp(prefix="cc-", dir=folder)
    os.close(handle)
    command = ["kinit", *options, "-c", f"FILE:{path}", user]
    subprocess.run(command, input=f"{PASSWORDS[user]}\n", text=True, check=True, capture_output=True, timeout=20)
    return Path(path)


def kerberos(keytab: Path, **settings: str) -> str:
    more = "".join(f", {key}: {value}" for key, value in settings.items())
    return f"negotiate: {{keytab: {keytab}/front.keytab{more}}}"


def upstream(keytab: Path, mode: str, *, spn: str = BACKEND, keys: str = "front.keytab", **settings: str) -> str:
    more = "".join(f", {key}: {value}" for key, value in settings.items())
    return f"upstream_kerberos: {{pools: {{app: {spn}}}, keytab: {keytab}/{keys}, mode: {mode}{more}}}"


@asynccontextmanager
async def stage(keytab: Path, *plugins: str, app_keys: str = "backend.keytab") -> AsyncIterator[tuple[Stage, App]]:
    """A front with these plugins, and behind it an app that answers with the user it sees; without keys one that does
    not look."""
    text = f"plugins: [{', '.join(f'{{{one}}}' for one in plugins)}]"
    with tempfile.TemporaryDirectory() as folder:
        behind = backend(keytab / app_keys) if app_keys else app()
        async with behind as it, front(one_pool(it.url, site=text), Path(folder)) as running:
            yield running, it


async def asked(running: Stage, *fields: str) -> tuple[int, str]:
    """Status and body of a GET on a connection of its own."""
    line = await running.connect()
    head, body = await line.get("/", *fields, host=HOST)
    return int(head.split()[1]), body.decode()


def by_ticket(cache: Path) -> str:
    return f"Authorization: {negotiate(token(cache, HOST))}"


def by_password(user: str) -> str:
    return f"Authorization: {basic_field(user, PASSWORDS[user]).decode()}"


def why(running: Stage, it: App) -> Told:
    """What the error log says, for the end of a play, and how often the app was asked."""
    log = running.log("error").replace("+", " ")
    found = re.findall(r" (\d+) main DelegationFailed \S+ (.*)", log)
    assert "Negotiate YI" not in log
    return {"refused": [[int(status), text] for status, text in found], "asked": len(it.heads), "log": log}


# ---------------------------------------------------------------------------------------------------- the app sees


async def own(folder: str) -> tuple[int, str]:
    async with stage(Path(folder), upstream(Path(folder), "own")) as (running, _):
        return await asked(running)


def test_frontd_itself(domain: Domain) -> None:
    assert domain.play(own, folder=str(domain.folder)) == [200, f"{FRONT}@{REALM}"]


async def evidence(folder: str, options: list[str], persist: str = "request") -> Told:
    """bob comes with curl; what the app has seen of him."""
    keytab = Path(folder)
    plugins = kerberos(keytab, delegation="true", persist=persist), upstream(keytab, "delegate")
    async with stage(keytab, *plugins) as (running, it):
        cache = ticket(keytab, "bob")
        url = f"http://{HOST}:{running.port()}/"
        command = [
            "curl",
            "-q",
            "-sS",
            "--noproxy",
            "*",
            "--max-time",
            "20",
            "--resolve",
            f"{HOST}:{running.port()}:127.0.0.1",
        ]
        command += ["--negotiate", "-u", ":", *options, url, url, url]
        done = await trio.run_process(
            command, capture_stdout=True, check=True, env=os.environ | {"KRB5CCNAME": f"FILE:{cache}"}
        )
        return {"seen": done.stdout.decode(), **why(running, it)}


@pytest.mark.parametrize("options", [[], ["--delegation", "always"]], ids=["S4U2Proxy", "forwarded"])
@pytest.mark.parametrize("persist", ["request", "connection"])
def test_a_user_with_a_ticket(domain: Domain, options: list[str], persist: str) -> None:
    told = domain.play(evidence, folder=str(domain.folder), options=options, persist=persist)
    assert told["seen"] == f"bob@{REALM}" * 3
    assert told["refused"] == []
    assert told["asked"] == 3


async def elsewhere(folder: str, forwards: bool) -> Told:
    """bob, where the app is a service to which our account may not delegate."""
    keytab = Path(folder)
    plugins = kerberos(keytab, delegation="true"), upstream(keytab, "delegate", spn=CONTROLLER)
    async with stage(keytab, *plugins, app_keys="") as (running, it):
        flags = 0x2 | (0x1 if forwards else 0)  # GSS_C_DELEG_FLAG
        field = f"Authorization: {negotiate(token(ticket(keytab, 'bob'), HOST, flags=flags))}"
        return {"answer": await asked(running, field), **why(running, it)}


def test_a_forwarded_ticket_is_what_is_used(domain: Domain) -> None:
    """It opens every door, which our account does not."""
    assert domain.play(elsewhere, folder=str(domain.folder), forwards=True)["answer"] == [200, "ok"]


async def transition(folder: str, users: list[str], **settings: str) -> Told:
    """Users who log on by their passwords, and what the app has seen of them."""
    keytab = Path(folder)
    plugins = "basic: {winbind: {}, allow_http: true}", upstream(keytab, "transition", **settings)
    async with stage(keytab, *plugins) as (running, it):
        answers = [await asked(running, by_password(user)) for user in users]
        return {"answers": answers, **why(running, it)}


def test_users_with_passwords(domain: Domain) -> None:
    realms = f"{{{NETBIOS}: {REALM}}}"
    told = domain.play(transition, folder=str(domain.folder), users=["bob", "carol", "bob"], realms=realms)
    assert told["answers"] == [[200, f"{name}@{REALM}"] for name in ("bob", "carol", "bob")]
    assert told["refused"] == []


# ---------------------------------------------------------------------------------------------------- refused


def refused(told: Told, status: int = 502) -> str:
    """Why a single request was refused, and that nothing of it came to the app."""
    assert told["answer"][0] == status
    ((noted, text),) = told["refused"]
    assert (noted, told["asked"]) == (status, 0)
    return str(text)


def test_a_service_to_which_our_account_may_not_delegate(domain: Domain) -> None:
    told = refused(domain.play(elsewhere, folder=str(domain.folder), forwards=False))
    assert told.startswith(f"the account may not delegate to {CONTROLLER}@{REALM}, or the user may not be delegated (")
    assert told.endswith(f", for bob@{REALM}")


async def one(folder: str, plugins: list[str], user: str = "bob", options: list[str] | None = None) -> Told:
    """A single request with a ticket."""
    async with stage(Path(folder), *plugins) as (running, it):
        field = by_ticket(ticket(Path(folder), user, *(options or [])))
        return {"answer": await asked(running, field), **why(running, it)}


def test_a_service_that_there_is_not(domain: Domain) -> None:
    keytab = domain.folder
    plugins = [kerberos(keytab, delegation="true"), upstream(keytab, "delegate", spn="HTTP/nowhere.frontd.test")]
    told = refused(domain.play(one, folder=str(keytab), plugins=plugins))
    assert told.startswith(f"the KDC has no service HTTP/nowhere.frontd.test@{REALM} (")


def test_a_logon_whose_delegation_nobody_keeps(domain: Domain) -> None:
    plugins = [kerberos(domain.folder), upstream(domain.folder, "delegate")]
    told = refused(domain.play(one, folder=str(domain.folder), plugins=plugins))
    assert told == f"negotiate has no delegation: true, for bob@{REALM}"


def test_a_ticket_that_may_not_be_delegated(domain: Domain) -> None:
    plugins = [kerberos(domain.folder, delegation="true"), upstream(domain.folder, "delegate")]
    told = refused(domain.play(one, folder=str(domain.folder), plugins=plugins, options=["-F"]))
    assert told.startswith(MAY_NOT)


async def acting(keytab: str, principal: str, users: list[str]) -> list[str]:
    """What becomes of users in whose names an account asks for tokens."""
    account, found = initiate.Account(Path(keytab), f"{principal}@{REALM}"), []
    for user in users:
        try:
            await account.token_of(f"{user}@{REALM}", BACKEND)
            found.append("let in")
        except GssError as error:
            found.append(str(error))
    return found


def written(keytab: str, principal: str, password: str) -> None:
    """Write a keytab with the key that a password makes."""
    made = f"addent -password -p {principal}@{REALM} -k 1 -e aes256-cts-hmac-sha1-96 -f\n{password}\nwkt {keytab}\n"
    subprocess.run(["ktutil"], input=made, text=True, check=True, capture_output=True, timeout=20)


def test_an_account_that_may_not_delegate(domain: Domain) -> None:
    keytab = str(domain.folder / "svc-backend.keytab")
    domain.play(written, keytab=keytab, principal="svc-backend", password="Svc-pass2!")
    (bob,) = domain.play(acting, keytab=keytab, principal="svc-backend", users=["bob"])
    assert bob.startswith(MAY_NOT)


def test_users_who_may_not_be_delegated(domain: Domain) -> None:
    keytab = str(domain.folder / "front.keytab")
    users = ["dora", "eve", "mallory", "svc-backend"]
    dora, eve, mallory, service = domain.play(acting, keytab=keytab, principal=FRONT, users=users)
    assert dora.startswith(f"the KDC refuses tickets in the name of dora@{REALM} (")
    assert eve.startswith(f"the account of eve@{REALM} has expired (")
    assert mallory.startswith(f"the KDC has no user mallory@{REALM} (")
    assert service == "let in"
    database = domain.folder / "dc" / "private" / "sam.ldb"
    domain.play(sensitive, user="svc-backend", database=str(database))
    (service,) = domain.play(acting, keytab=keytab, principal=FRONT, users=["svc-backend"])
    assert service.startswith(MAY_NOT)


def sensitive(user: str, database: str) -> None:
    """Write of an account that it may not be delegated (MS-ADTS 2.2.16, ND)."""
    subprocess.run(["samba-tool", "user", "sensitive", user, "on", "-H", database], check=True, timeout=30)


# ---------------------------------------------------------------------------------------------------- never another


async def crowd(folder: str, users: list[str], times: int) -> Told:
    """Users with tickets and with passwords, all at once, through one pool of few connections that stay open."""
    keytab = Path(folder)
    plugins = (
        kerberos(keytab, delegation="true"),
        "basic: {winbind: {}, allow_http: true}",
        "authorize: [{allow: [anonymous]}]",
        upstream(keytab, "transition", realms=f"{{{NETBIOS}: {REALM}}}"),
    )
    caches = {user: ticket(keytab, user) for user in users}
    wrong: list[Any] = []
    counts = {"right": 0, "nobody": 0}
    async with stage(keytab, *plugins) as (running, it):

        async def go(user: str, has_ticket: bool) -> None:
            line = await running.connect()
            for _ in range(times):
                field = by_ticket(caches[user]) if has_ticket else by_password(user)
                head, body = await line.get("/", field, host=HOST)
                if (head.split()[1], body) != (b"200", f"{user}@{REALM}".encode()):
                    wrong.append((user, head.decode(), body.decode()))
                counts["right"] += 1

        async def nobody() -> None:
            line = await running.connect()
            for _ in range(times):
                head, body = await line.get("/", host=HOST)
                if head.split()[1] != b"401" or b"@" in body:
                    wrong.append(("nobody", head.decode(), body.decode()))
                counts["nobody"] += 1

        async with trio.open_nursery() as nursery:
            for user in users:
                for has_ticket in (True, False) * 2:
                    nursery.start_soon(go, user, has_ticket)
            nursery.start_soon(nobody)
        told = why(running, it)
        tokens = [re.search(rb"Authorization: (\S+ \S+)", head) for head in it.heads]
        said = told["log"] + running.log()
        secrets = [found[1].decode().partition(" ")[2] for found in tokens if found]
        leaked = [secret for secret in secrets if secret[40:80] in said]
        return {"wrong": wrong[:3], **counts, "connections": it.connections, "asked": told["asked"],
                "tokens": len(set(secrets)), "leaked": leaked}  # fmt: skip


def test_users_are_never_taken_for_each_other(domain: Domain) -> None:
    told = domain.play(crowd, folder=str(domain.folder), users=["bob", "carol"], times=30)
    assert told["wrong"] == []
    assert (told["right"], told["nobody"]) == (240, 30)
    assert told["asked"] == told["tokens"] == 240  # each with a token of its own, and nobody without
    assert told["connections"] >= 240  # none of them was anybody else's before or after
    assert told["leaked"] == []
