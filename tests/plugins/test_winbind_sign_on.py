"""Windows sign-on on a member of a domain: NTLM that winbind verifies, Kerberos with the groups of the PAC.

Plays (the functions without ``test_``) happen on the member, see `tests.windows.ad`.  Clients are curl and
requests-ntlm.
"""

from __future__ import annotations

import base64
import os
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
import spnego
import trio
from frontd_plugins import _winbind as winbind
from requests_ntlm import HttpNtlmAuth

from tests.plugins.test_winbind import in_an_empty_place
from tests.windows.ad import MACHINE, NETBIOS, PASSWORDS, REALM, Domain
from tests.windows.realm import needs_gssapi
from tests.wire import app, front, one_pool

HOST = "front.frontd.test"
NTLM = "plugins: [{ntlm: {verifier: winbind}}]"
Told = dict[str, Any]
BOB = f"{NETBIOS}\\bob"


SIDS = """
import frontd

class Sids(frontd.Plugin):
    name = "sids"

    def rewrite_request(self, exchange):
        exchange.request.headers.set("X-Sids", ",".join(exchange.identity.sids))
"""


async def curl(site: str, options: list[str]) -> Told:
    """What curl is answered, which fields the app is sent, how many connections came, and the error log."""
    with tempfile.TemporaryDirectory() as folder:
        (place := Path(folder, "plugins")).mkdir()
        (place / "sids.py").write_text(SIDS)
        more = f"plugins_dir: {place}\nplugins: [sids]"
        async with app() as it, front(one_pool(it.url, site=site, extra=more), Path(folder)) as stage:
            url = f"http://{HOST}:{stage.port()}/"
            found = f"{HOST}:{stage.port()}:127.0.0.1"
            count = "%{http_code} %{num_connects}"
            command = ["curl", "-sS", "-o", "/dev/null", "-w", count, "--resolve", found, *options, url]
            done = await trio.run_process(command, capture_stdout=True)
            return {
                "answer": done.stdout.decode(), "fields": fields(it.heads), "log": stage.log("error").replace("+", " ")
            }  # fmt: skip


def fields(heads: list[bytes]) -> dict[str, str]:
    """What the app was told at last about who it is."""
    return dict(re.findall(r"(?m)^(X-Remote-\w+|X-Auth-\w+|X-Sids): (.*)\r", heads[-1].decode())) if heads else {}


# ---------------------------------------------------------------------------------------------------- NTLM


@pytest.mark.parametrize("user", [BOB, "bob", f"bob@{REALM}"])
def test_curl_by_ntlm(domain: Domain, user: str) -> None:
    told = domain.play(curl, site=NTLM, options=["--ntlm", "-u", f"{user}:{PASSWORDS['bob']}"])
    groups = ",".join(f"{NETBIOS}\\{name}" for name in ("Domain Users", "readers", "webusers"))
    assert told["answer"] == "200 1"  # one connection for both legs
    assert set(told["fields"].pop("X-Sids").split(",")) == of_the_domain(domain, "bob")
    assert told["fields"] == {"X-Remote-User": BOB, "X-Remote-Groups": groups, "X-Auth-Scheme": "NTLM"}


@pytest.mark.parametrize(
    ("user", "password", "why"),
    [
        (BOB, "Bob-pass2", "NTLM, leg 2: the password is wrong"),
        (f"{NETBIOS}\\mallory", "Bob-pass1", "NTLM, leg 2: there is no such user"),
        (f"{NETBIOS}\\dora", PASSWORDS["dora"], "NTLM, leg 2: the account is disabled"),
    ],
)
def test_curl_is_refused(domain: Domain, user: str, password: str, why: str) -> None:
    told = domain.play(curl, site=NTLM, options=["--ntlm", "-u", f"{user}:{password}"])
    assert told["answer"] == "401 1"
    assert told["fields"] == {}
    assert why in told["log"]
    assert "mallory" not in told["log"]


def test_a_machine_gets_in_where_machines_may(domain: Domain) -> None:
    options = ["--ntlm", "-u", f"{NETBIOS}\\pc1$:{MACHINE}"]
    told = domain.play(curl, site=NTLM, options=options)
    assert (told["answer"], told["fields"]) == ("401 1", {})
    assert "it is the account of a machine, and machine_accounts does not let those in" in told["log"]
    told = domain.play(curl, site="plugins: [{ntlm: {verifier: winbind, machine_accounts: true}}]", options=options)
    assert (told["answer"], told["fields"]["X-Remote-User"]) == ("200 1", f"{NETBIOS}\\pc1$")


async def twice() -> list[str]:
    """requests-ntlm, which sends a MIC: who the app is told that it is, on one connection and without a new logon."""
    with tempfile.TemporaryDirectory() as folder:
        async with app() as it, front(one_pool(it.url, site=NTLM), Path(folder)) as stage:
            await trio.to_thread.run_sync(partial(get_twice, f"http://127.0.0.1:{stage.port()}/"))
            return [fields([head])["X-Remote-User"] for head in it.heads]


def get_twice(url: str) -> None:
    with requests.Session() as session:
        session.trust_env = False
        session.get(url, auth=HttpNtlmAuth(BOB, PASSWORDS["bob"]), timeout=10).raise_for_status()
        session.get(url, timeout=10).raise_for_status()


def test_a_mic_is_verified_with_the_session_key_of_the_controller(domain: Domain) -> None:
    assert domain.play(twice) == [BOB, BOB]


async def inside_of_spnego(keytab: str, password: str) -> Told:
    """pyspnego without a ticket: what the legs were answered, who the app is told that it is, and the error log."""
    site = f"plugins: [{{negotiate: {{keytab: {keytab}, mechanisms: [kerberos, ntlm], ntlm: {{verifier: winbind}}}}}}]"
    with tempfile.TemporaryDirectory() as folder:
        async with app() as it, front(one_pool(it.url, site=site), Path(folder)) as stage:
            line, answer, statuses = await stage.connect(), b"", []
            options = spnego.NegotiateOptions.use_negotiate
            client = spnego.client(BOB, password, HOST, "HTTP", protocol="negotiate", options=options)
            while token := client.step(answer or None):
                head, _ = await line.get("/", f"Authorization: Negotiate {base64.b64encode(token).decode()}", host=HOST)
                statuses.append(int(head.split()[1]))
                told = re.search(rb"\r\nWWW-Authenticate: Negotiate (\S+)\r", head)
                if told is None:
                    break
                answer = base64.b64decode(told[1])
            statuses.append(client.complete)
            return {"statuses": statuses, "fields": fields(it.heads), "log": stage.log("error").replace("+", " ")}


def test_ntlm_inside_of_spnego(domain: Domain) -> None:
    needs_gssapi()
    keytab = str(domain.folder / "front.keytab")
    told = domain.play(inside_of_spnego, keytab=keytab, password=PASSWORDS["bob"])
    assert told["statuses"] == [401, 200, True], told  # the client has verified our mechListMIC
    assert told["fields"]["X-Remote-User"] == BOB
    told = domain.play(inside_of_spnego, keytab=keytab, password="Bob-pass2")
    assert told["statuses"] == [401, 401, False]
    assert "the password is wrong" in told["log"]


# ---------------------------------------------------------------------------------------------------- Kerberos


async def with_a_ticket(keytab: str, user: str = "bob", settings: str = "", more: str = "") -> Told:
    """curl with a ticket."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KRB5CCNAME"] = f"FILE:{folder}/ccache"
        await trio.run_process(["kinit", user], stdin=PASSWORDS[user].encode(), capture_stdout=True)
        site = f"plugins: [{{negotiate: {{keytab: {keytab}{settings}}}}}{more}]"
        return await curl(site, ["--negotiate", "-u", ":"])


def test_the_groups_of_a_ticket_are_those_of_the_directory(domain: Domain) -> None:
    needs_gssapi()
    told = domain.play(with_a_ticket, keytab=str(domain.folder / "front.keytab"))
    assert told["answer"].startswith("200 "), told
    sids = set(told["fields"].pop("X-Sids").split(","))
    assert told["fields"] == {"X-Remote-User": f"bob@{REALM}", "X-Auth-Scheme": "Negotiate"}
    assert {sid for sid in sids if sid.startswith("S-1-5-21-")} == of_the_domain(domain, "bob")


BY_NAME = ", group_names: winbind"


def test_the_groups_of_a_ticket_have_names_where_winbind_knows_them(domain: Domain) -> None:
    needs_gssapi()
    keytab = str(domain.folder / "front.keytab")
    told = domain.play(with_a_ticket, keytab=keytab, settings=BY_NAME)
    assert told["answer"].startswith("200 "), told
    names = {f"{NETBIOS}\\{name}" for name in ("Domain Users", "readers", "webusers")}
    assert set(told["fields"]["X-Remote-Groups"].split(",")) >= names
    assert f"{NETBIOS}\\bob" not in told["fields"]["X-Remote-Groups"]
    assert told["fields"]["X-Remote-User"] == f"bob@{REALM}"


@pytest.mark.parametrize(("user", "status"), [("bob", "200"), ("carol", "403")])
def test_rules_know_the_groups_of_a_ticket_by_name(domain: Domain, user: str, status: str) -> None:
    needs_gssapi()
    rules = f", {{authorize: [{{allow: ['group:{NETBIOS}\\readers'], deny: ['group:{NETBIOS}\\Büro']}}]}}"
    keytab = str(domain.folder / "front.keytab")
    told = domain.play(with_a_ticket, keytab=keytab, user=user, settings=BY_NAME, more=rules)
    assert told["answer"].startswith(status), told


def without_winbind(keytab: str) -> str:
    """The same where there is no winbind any more: /run/samba is empty."""
    text = f"import trio\nfrom {__name__} import nameless\nprint(trio.run(nameless, {keytab!r}))"
    return in_an_empty_place(text)


async def nameless(keytab: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winbind, "missing", lambda: "")  # it was there when the configuration was checked
        told = await with_a_ticket(keytab, settings=BY_NAME)
    return f"{told['answer']} {told['fields']} {told['log']}"


def test_nobody_comes_without_the_names_of_his_groups(domain: Domain) -> None:
    """A rule may refuse somebody by one of them."""
    needs_gssapi()
    told = domain.play(without_winbind, keytab=str(domain.folder / "front.keytab"))
    assert told.startswith("503 ")
    assert " {} " in told
    assert "the names of the groups: winbind does not tell what the groups are called" in told


def of_the_domain(domain: Domain, user: str) -> set[str]:
    """The SIDs of a user and of their groups, without those that are built in, as the directory has them."""
    return {domain.facts["users"][user], *(sid for sid in domain.facts["tokens"][user] if sid.startswith("S-1-5-21-"))}
