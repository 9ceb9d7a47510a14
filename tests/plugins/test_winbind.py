"""Winbind against a real domain: who is let in, what is known of them, and what the log is told about all others.

Plays (the functions without ``test_``) happen on a member of the domain, see `tests.windows.ad`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from frontd_plugins import _wbclient as wbclient
from frontd_plugins import _winbind as winbind
from frontd_plugins import basic, ntlm
from frontd_plugins._ntlm import NtlmError, Response, Verified
from frontd_plugins._winbind import Winbind
from spnego._ntlm_raw import crypto, messages

import frontd
from tests.plugins.exchanges import complaints
from tests.windows.ad import LOCKOUT, MACHINE, NETBIOS, PASSWORDS, REALM, ROOT, Domain

CHALLENGE = bytes(range(8))


def ntlmv2(user: str, domain: str, password: str, *, padding: int = 0) -> tuple[Response, bytes]:
    """The response of pyspnego, `padding` characters longer than it need be, and its session key."""
    key = crypto.ntowfv2(user, crypto.ntowfv1(password), domain)
    info = messages.TargetInfo()
    info[messages.AvId.nb_domain_name] = NETBIOS
    info[messages.AvId.target_name] = "HTTP/" + "x" * padding
    nt, lm, session_key = crypto.compute_response_v2(key, CHALLENGE, b"c" * 8, messages.FileTime.now(), info)
    sent = Response(user, domain, "DESK", CHALLENGE, nt, lm, {}, 0, b"", b"")
    return sent, session_key


def told(found: Verified) -> dict[str, Any]:
    return found._asdict() | {"session_key": found.session_key.hex()}


async def by_password(domain: str, user: str, password: str) -> dict[str, Any]:
    """What winbind says to a password, or why it refuses it."""
    try:
        return told(await Winbind().password(domain, user, password))
    except NtlmError as error:
        return {"refused": str(error), "as": type(error).__name__, "known": getattr(error, "is_known", None)}


async def by_response(
    domain: str, user: str, password: str, padding: int = 0, change: str = "", machines: bool = False
) -> dict[str, Any]:
    """What winbind says to an NTLMv2 response, of which something may be changed after it was made."""
    sent, session_key = ntlmv2(user, domain, password, padding=padding)
    match change:
        case "challenge":
            sent = replace(sent, challenge=bytes(8))
        case "last byte":
            sent = replace(sent, nt=sent.nt[:-1] + bytes([sent.nt[-1] ^ 1]))
        case "NTLMv1":
            sent = replace(sent, nt=sent.nt[:24])
        case "all but LMv2":
            sent = replace(sent, nt=bytes(len(sent.nt)))
    try:
        found = told(await Winbind(machines=machines).verify(sent))
    except NtlmError as error:
        return {"refused": str(error), "as": type(error).__name__}
    return found | {"client_key": session_key.hex()}


# ---------------------------------------------------------------------------------------------------- let in


def test_a_right_password(domain: Domain) -> None:
    found = domain.play(by_password, domain=NETBIOS, user="bob", password=PASSWORDS["bob"])
    assert found["name"] == f"{NETBIOS}\\bob"
    facts = domain.facts
    assert {f"{NETBIOS}\\webusers", f"{NETBIOS}\\readers", f"{NETBIOS}\\Domain Users"} <= set(found["groups"])
    assert f"{NETBIOS}\\bob" not in found["groups"]
    ours = {sid for sid in facts["tokens"]["bob"] if sid.startswith("S-1-5-21-")}
    assert sorted(found["sids"]) == sorted(ours | {facts["users"]["bob"]})  # each once


@pytest.mark.parametrize("name", [NETBIOS.lower(), REALM])
def test_ways_to_write_the_domain(domain: Domain, name: str) -> None:
    found = domain.play(by_password, domain=name, user="BOB", password=PASSWORDS["bob"])
    assert found["name"] == f"{NETBIOS}\\bob"  # as the controller writes it


def test_a_user_principal_name(domain: Domain) -> None:
    found = domain.play(by_password, domain="", user=f"bob@{REALM.lower()}", password=PASSWORDS["bob"])
    assert found["name"] == f"{NETBIOS}\\bob"


def test_a_password_beyond_ascii(domain: Domain) -> None:
    found = domain.play(by_password, domain=NETBIOS, user="carol", password=PASSWORDS["carol"])
    assert found["name"] == f"{NETBIOS}\\carol"
    assert found["groups"] == [f"{NETBIOS}\\Büro", f"{NETBIOS}\\Domain Users"]


@pytest.mark.parametrize("padding", [0, 400])  # more than 128 bytes of response travel in another way
def test_an_ntlm_response(domain: Domain, padding: int) -> None:
    found = domain.play(by_response, domain=NETBIOS, user="bob", password=PASSWORDS["bob"], padding=padding)
    assert found["name"] == f"{NETBIOS}\\bob"
    assert found["session_key"] == found["client_key"]
    assert f"{NETBIOS}\\readers" in found["groups"]
    assert domain.facts["groups"]["readers"] in found["sids"]


async def without_a_domain() -> str:
    with pytest.raises(winbind.Denied) as caught:
        await Winbind().password("", "bob", PASSWORDS["bob"])
    return str(caught.value)


def test_the_accounts_of_the_machine_are_not_asked_for(domain: Domain) -> None:
    assert domain.play(without_a_domain) == "the user has no domain"


# ---------------------------------------------------------------------------------------------------- refused

REFUSED = {
    "a wrong password": ("bob", "Bob-pass2", "the password is wrong", True),
    "an unknown user": ("mallory", "Bob-pass1", "there is no such user", False),
    "a disabled account": ("dora", PASSWORDS["dora"], "the account is disabled", True),
    "an expired account": ("eve", PASSWORDS["eve"], "the account has expired", True),
    "a password that has to be changed": ("fred", PASSWORDS["fred"], "the password has to be changed first", True),
    "no password": ("bob", "", "the user name or password is empty", False),
    "no name": ("", "Bob-pass1", "the user name or password is empty", False),
    "another realm": ("bob@nowhere.test", PASSWORDS["bob"], "there is no such user", False),
    "a backslash": ("FRONTD\\bob", "Bob-pass1", "the user name has a backslash", False),
    "a NUL": ("bob", "Bob-pass1\0", "the password is longer than 255 bytes, or has a NUL", False),
    "a tail that the pipe cuts off": ("bob", "x" * 256, "the password is longer than 255 bytes, or has a NUL", False),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_passwords(domain: Domain, case: str) -> None:
    user, password, why, is_known = REFUSED[case]
    found = domain.play(by_password, domain=NETBIOS, user=user, password=password)
    assert found == {"refused": why, "as": "Denied", "known": is_known}


async def moments() -> list[float]:
    """How long refusals take: of somebody the domain knows, and of a stranger."""
    found = []
    for user in ("bob", "mallory"):
        sent, _ = ntlmv2(user, NETBIOS, "Bob-pass2")
        began = trio.current_time()
        with pytest.raises(winbind.Denied):
            await Winbind().verify(sent)
        found.append(trio.current_time() - began)
    await Winbind().password(NETBIOS, "bob", PASSWORDS["bob"])  # not counted any longer
    return found


def test_the_time_does_not_tell_strangers(domain: Domain) -> None:
    assert min(domain.play(moments)) >= winbind.FLOOR


def test_refused_responses(domain: Domain) -> None:
    wrong = domain.play(by_response, domain=NETBIOS, user="bob", password="Bob-pass2")
    assert wrong == {"refused": "the password is wrong", "as": "Denied"}
    disabled = domain.play(by_response, domain=NETBIOS, user="dora", password=PASSWORDS["dora"])
    assert disabled == {"refused": "the account is disabled", "as": "Denied"}
    domain.play(by_password, domain=NETBIOS, user="bob", password=PASSWORDS["bob"])  # not counted any longer


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("challenge", "the password is wrong"),
        ("last byte", "the password is wrong"),  # of the AV pairs: all of them are proved
        ("all but LMv2", "the password is wrong"),  # which is right, and proves nothing of the AV pairs
        ("NTLMv1", "the response is none of NTLMv2"),
    ],
)
def test_responses_that_were_changed(domain: Domain, change: str, why: str) -> None:
    found = domain.play(by_response, domain=NETBIOS, user="carol", password=PASSWORDS["carol"], change=change)
    assert found == {"refused": why, "as": "Denied"}
    domain.play(by_password, domain=NETBIOS, user="carol", password=PASSWORDS["carol"])  # not counted any longer


def test_accounts_of_machines(domain: Domain) -> None:
    pc1 = {"domain": NETBIOS, "user": "pc1$", "password": MACHINE}
    assert domain.play(by_response, **pc1) == {"refused": winbind.A_MACHINE, "as": "Denied"}
    assert domain.play(by_response, machines=True, **pc1)["name"] == f"{NETBIOS}\\pc1$"
    stranger = {"refused": "there is no such user", "as": "Denied", "known": False}
    assert domain.play(by_password, **pc1) == stranger  # to winbind passwords are those of people


def test_an_answer_about_a_machine_that_nobody_asked_for_is_no_logon() -> None:
    for flags in (0x40, 0x80, 0x100):  # of wbclient.h: WBC_ACB_DOMTRUST, WBC_ACB_WSTRUST, WBC_ACB_SVRTRUST
        info = wbclient.Info(account_name=b"pc1$", domain_name=NETBIOS.encode(), acct_flags=flags)
        with pytest.raises(winbind.Denied, match="the account of a machine"):
            winbind._account(info, machines=False)
        assert winbind._account(info, machines=True).name == f"{NETBIOS}\\pc1$"


async def guessed(times: int) -> list[str]:
    """Guess at gina's password, then know it."""
    found = []
    for password in (*["Wrong-pass1"] * times, PASSWORDS["gina"]):
        try:
            found.append((await Winbind().password(NETBIOS, "gina", password)).name)
        except NtlmError as error:
            found.append(str(error))
    return found


def test_an_account_that_guessing_has_locked(domain: Domain) -> None:
    assert domain.play(guessed, times=LOCKOUT)[-1] == "the account is locked out"


# ---------------------------------------------------------------------------------------------------- no winbind


def unprivileged() -> str:
    """Why winbind refuses an NTLM response to a user without rights, and that it does not refuse them a password."""
    drop = "os.setgroups([]); os.setgid(65534); os.setuid(65534)"  # once all modules are there: Python's may be root's
    text = f"import os, trio\nfrom {__name__} import both, bobs\nsent = bobs()\n{drop}\nprint(trio.run(both, sent))"
    return subprocess.run([sys.executable, "-c", text], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def bobs() -> Response:
    return ntlmv2("bob", NETBIOS, PASSWORDS["bob"])[0]


async def both(sent: Response) -> str:
    found = await Winbind().password(NETBIOS, "bob", PASSWORDS["bob"])
    assert found.name == f"{NETBIOS}\\bob"
    try:
        await Winbind().verify(sent)
    except winbind.Unavailable as error:
        return str(error)
    return "let in"


def test_the_privileged_pipe(domain: Domain) -> None:
    assert "put the user of frontd into the group winbindd_priv" in domain.play(unprivileged)


def is_missing() -> str:
    return winbind.missing()


def test_winbind_is_there(domain: Domain) -> None:
    assert domain.play(is_missing) == ""


def in_an_empty_place(text: str) -> str:
    """What a script prints where there is no winbind: /run/samba is empty."""
    script = 'mount -t tmpfs none /run/samba && exec "$0" -W error -c "$1"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, sys.executable, text]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def nowhere() -> list[str]:
    """On the member, but without its pipe."""
    text = "import trio\nfrom {0} import {1}\nprint({2}, end='')"
    return [
        in_an_empty_place(text.format(__name__, "is_missing", "is_missing()")),
        in_an_empty_place(text.format(__name__, "by_password", "trio.run(by_password, 'FRONTD', 'bob', 'x')")),
    ]


def test_no_winbind(domain: Domain) -> None:
    missing, refused = domain.play(nowhere)
    assert missing.startswith("winbindd does not answer on /run/samba/winbindd/pipe: start it")
    assert "'winbindd does not answer on /run/samba/winbindd/pipe'" in refused
    assert "'Unavailable'" in refused


async def restarted() -> list[str]:
    """bob before winbind ends, while there is none, and after it was started again."""
    found = [await bob()]
    pid, smb = members_winbind()
    os.kill(pid, signal.SIGTERM)
    await trio.to_thread.run_sync(os.waitpid, pid, 0)
    found.append(await bob())
    await trio.run_process(["winbindd", "-D", "--no-process-group", "-s", smb])
    while winbind.missing():
        await trio.lowlevel.checkpoint()
    return [*found, await bob()]


def members_winbind() -> tuple[int, str]:
    """The process and its configuration; beside it there is the controller's."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        words = place.read_bytes().decode().split("\0")
        if words[0] == "winbindd" and words[-2].endswith("/member/smb.conf"):
            return int(place.parent.name), words[-2]
    raise AssertionError("there is no winbindd of the member's")


async def bob() -> str:
    try:
        return (await Winbind().password(NETBIOS, "bob", PASSWORDS["bob"])).name
    except NtlmError as error:
        return str(error)


def test_a_winbind_that_is_restarted(domain: Domain) -> None:
    name = f"{NETBIOS}\\bob"
    assert domain.play(restarted) == [name, "winbindd does not answer on /run/samba/winbindd/pipe", name]


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    wbclient.library.cache_clear()
    monkeypatch.setattr(wbclient, "NAME", "libnowhere.so.0")
    try:
        assert winbind.missing().startswith("libnowhere.so.0 cannot be loaded")
    finally:
        wbclient.library.cache_clear()


async def test_a_winbind_that_does_not_answer(autojump_clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that never come back cost their logons the deadline, and those of others too, but not more."""
    busy = trio.CapacityLimiter(1)
    monkeypatch.setattr(winbind, "THREADS", busy)
    busy.acquire_on_behalf_of_nowait("a logon before")
    with pytest.raises(winbind.Unavailable, match="has not answered within 10 s"):
        await Winbind().password(NETBIOS, "bob", "x")
    assert trio.current_time() >= 10


@pytest.mark.parametrize(
    ("domain_name", "user"),
    [
        ("FRONTD", "bob"), ("frontd", "BOB"), ("ad.frontd.test", "bob"), ("", "bob"), (".", "bob"),
        ("", "bob@AD.FRONTD.TEST"), ("", "FRONTD\\bob"), ("FRONTD", "b\u00f6b"), ("FRONTD", "bo\u0308b"),
        ("FRONTD", "bob "), ("FRONTD", "bo\u00adb"), ("FRONTD", "\uff42ob"),
    ],
)  # fmt: skip
def test_guesses_are_counted_for_the_account_however_its_name_is_spelled(domain_name: str, user: str) -> None:
    sent = Response(user, domain_name, "DESK", CHALLENGE, b"", b"", {}, 0, b"", b"")
    assert Winbind().account(sent) == "bob"


# ---------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("plugin", "settings"),
    [(basic.Basic, {"winbind": {"domain": NETBIOS}}), (ntlm.Ntlm, {"verifier": "winbind"})],
)
def test_check_and_prepare_say_what_is_missing(
    plugin: type[frontd.Plugin], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wbclient.library.cache_clear()
    monkeypatch.setattr(wbclient, "NAME", "libnowhere.so.0")
    (said,) = complaints(plugin, **settings)
    assert said.startswith("libnowhere.so.0 cannot be loaded")
    with pytest.raises(ValueError, match="libnowhere"):
        winbind.names()
    wbclient.library.cache_clear()


def test_ntlm_has_one_verifier() -> None:
    for settings in ({}, {"verifier": "winbind", "users_file": "users"}, {"verifier": "users_file"}):
        with pytest.raises(ValueError, match="a users_file has to be there, or else verifier: winbind"):
            ntlm.Ntlm.Settings(**settings)  # type: ignore[arg-type]


def test_machines_are_those_of_a_domain() -> None:
    with pytest.raises(ValueError, match="machine_accounts are those of a domain: they need verifier: winbind"):
        ntlm.Ntlm.Settings(users_file=Path("users"), machine_accounts=True)


def both_names() -> list[str]:
    return list(winbind.names())


def test_challenges_tell_the_names_of_the_machine(domain: Domain) -> None:
    assert domain.play(both_names) == ["FRONT", NETBIOS]
