"""Basic against a KDC: what keeps somebody who pretends to be it from letting people in; what happens without one."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
from frontd_plugins import _directory as directories
from frontd_plugins import _gss as gss
from frontd_plugins import _low_priority as low_priority
from frontd_plugins import basic
from trio.testing import MockClock

from frontd import Context, Identity, MemoryStore, Refuse
from tests.plugins.exchanges import complaints
from tests.plugins.logons import basic_field, exchange, outcome
from tests.windows.realm import NAME, Realm, house, kdc, realm
from tests.wire import free_port, settled

__all__ = ["house", "kdc"]

SPN = "HTTP/a.test"


def desk(keytab: Path, spn: str = SPN, **more: object) -> basic.Basic:
    kerberos = directories.KerberosSettings(realm=NAME, keytab=keytab, spn=spn)
    settings = basic.Basic.Settings(kerberos=kerberos, **more)  # type: ignore[arg-type]
    return basic.Basic(settings, Context("main", MemoryStore(1 << 20), lambda text: None))


async def logon(it: basic.Basic, user: str, password: str) -> Identity | Refuse:
    found = it.authenticate(exchange(basic_field(user, password)))
    assert found is not None
    return found if isinstance(found, Identity | Refuse) else await found


async def test_a_right_password_and_a_wrong_one(house: Realm) -> None:
    it = desk(house.folder / "http.keytab")
    assert await logon(it, "alice", "secret") == Identity(f"alice@{NAME}", scheme="Basic")
    wrong = await logon(it, "alice", "guess")
    assert wrong == Refuse(401, "LogonFailed", substatus=1, log=f"alice@{NAME}: the password is wrong")
    stranger = await logon(it, "a password in the wrong field".replace(" ", "-"), "guess")
    assert stranger == Refuse(401, "LogonFailed", substatus=1, log="there is no such user")


async def test_a_kdc_without_our_key_lets_nobody_in(house: Realm, tmp_path: Path) -> None:
    """Another KDC of the same name knows the user, the password and a service of ours, but not our key."""
    with realm(tmp_path) as other:
        other.user("alice")
        keytab = other.service(SPN)
    found = await logon(desk(keytab), "alice", "secret")
    assert isinstance(found, Refuse)
    assert (found.status, found.reason) == (401, "LogonFailed")
    assert found.log.startswith("the answer of the KDC cannot be verified: ")


async def test_a_service_that_the_kdc_does_not_know(house: Realm) -> None:
    found = await logon(desk(house.folder / "http.keytab", "HTTP/nowhere.test"), "alice", "secret")
    assert isinstance(found, Refuse)
    assert (found.status, found.reason) == (503, "LogonBusy")
    assert "the KDC has no service of this name" in found.log


async def test_without_a_kdc_nobody_is_let_in_and_nothing_counts_as_a_guess(
    house: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = house.config.read_text().replace(f":{house.port}", f":{free_port()}")
    (away := house.folder / "away.conf").write_text(config)
    it = desk(house.folder / "http.keytab", failures_per_user=1)
    monkeypatch.setenv("KRB5_CONFIG", str(away))
    for _ in range(3):
        found = await logon(it, "alice", "secret")
        assert isinstance(found, Refuse)
        assert (found.status, found.reason, found.retry_after) == (503, "LogonBusy", 1)
        assert "Cannot contact any KDC" in found.log
    monkeypatch.setenv("KRB5_CONFIG", str(house.config))
    assert outcome(await logon(it, "alice", "secret")) == f"alice@{NAME}"
    assert outcome(await logon(it, "alice", "wrong")) == "LogonFailed"
    assert outcome(await logon(it, "alice", "wrong")) == "LogonThrottled"


async def test_what_is_remembered_ends_and_its_groups_are_those_of_the_last_logon(
    house: Realm, mock_clock: MockClock
) -> None:
    it = desk(house.folder / "http.keytab")
    assert outcome(await logon(it, "alice", "secret")) == f"alice@{NAME}"
    for user in ("alice", f"alice@{NAME.lower()}"):  # one user, however spelled
        assert isinstance(it.authenticate(exchange(basic_field(user, "secret"))), Identity)
    it._accounts[f"alice@{NAME}"] = basic.Account("", Identity(f"alice@{NAME}", ("new",), scheme="Basic"))
    found = it.authenticate(exchange(basic_field("alice", "secret")))
    assert isinstance(found, Identity)
    assert found.groups == ("new",)
    mock_clock.jump(60)
    found = it.authenticate(exchange(basic_field("alice", "secret")))
    assert not isinstance(found, Identity)  # the KDC is asked again
    assert await found == Identity(f"alice@{NAME}", scheme="Basic")  # type: ignore[misc]


async def test_the_same_logon_many_times_at_once_is_one_question(house: Realm) -> None:
    it, found = desk(house.folder / "http.keytab"), list[str]()

    async def one(password: str) -> None:
        found.append(outcome(await logon(it, "alice", password)))

    holders = [object() for _ in range(int(directories.THREADS.total_tokens))]
    async with trio.open_nursery() as nursery:
        for holder in holders:
            directories.THREADS.acquire_on_behalf_of_nowait(holder)
        for number in range(10):
            nursery.start_soon(one, "secret" if number % 2 else "wrong")
        await settled()
        assert directories.THREADS.statistics().tasks_waiting == 2
        for holder in holders:
            directories.THREADS.release_on_behalf_of(holder)
    assert sorted(found) == ["LogonFailed"] * 5 + [f"alice@{NAME}"] * 5


async def test_a_kdc_that_does_not_answer(house: Realm, mock_clock: MockClock) -> None:
    it, found = desk(house.folder / "http.keytab", queue=1), list[str]()

    async def one(password: str) -> None:
        found.append(outcome(await logon(it, "alice", password)))

    holders = [object() for _ in range(int(directories.THREADS.total_tokens))]
    for holder in holders:  # threads that do not come back
        directories.THREADS.acquire_on_behalf_of_nowait(holder)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "secret")
        await settled()
        nursery.start_soon(one, "another")  # the queue is full
        nursery.start_soon(one, "secret")  # waits for the first one's outcome, and shares it
        await settled()
        assert found == ["LogonBusy"]
        mock_clock.jump(directories.DEADLINE)
    assert found == ["LogonBusy"] * 3
    for holder in holders:
        directories.THREADS.release_on_behalf_of(holder)
    assert outcome(await logon(it, "alice", "secret")) == f"alice@{NAME}"


async def test_refusals_take_their_time(house: Realm) -> None:
    it = desk(house.folder / "http.keytab")
    for user in ("alice", "stranger"):
        began = trio.current_time()
        assert outcome(await logon(it, user, "wrong")) == "LogonFailed"
        assert trio.current_time() - began >= directories.FLOOR


async def test_keys_of_passwords_are_made_at_low_priority_and_no_more_at_once_than_there_are_cores(
    house: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes 5 ms of a core; the loop, which serves everybody else, has to get one when it wants it."""
    running, most, priorities, lock = 0, 0, set[int](), threading.Lock()
    password_logon = gss.password_logon

    def watched(*arguments: Any, **more: Any) -> gss.Logon:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            priorities.add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        try:
            return password_logon(*arguments, **more)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(gss, "password_logon", watched)
    it = desk(house.folder / "http.keytab", failures_per_user=None)
    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(logon, it, "alice", f"wrong {number}")
    assert 1 <= most <= max(2, low_priority.cores())
    assert priorities == {max(low_priority.NICE, os.getpriority(os.PRIO_PROCESS, os.getpid()))}
    assert outcome(await logon(it, "alice", "secret")) == f"alice@{NAME}"


ODD = {
    "another realm": "alice@OTHER.TEST",
    "a service": "HTTP/a.test",
    "an escape": "alice\\@x",
    "two realms": f"alice@{NAME}@{NAME}",
    "no name": f"@{NAME}",
    "a blank": "alice bob",
}


@pytest.mark.parametrize("odd", ODD)
async def test_names_that_mean_something_in_kerberos(house: Realm, odd: str) -> None:
    found = desk(house.folder / "http.keytab").authenticate(exchange(basic_field(ODD[odd], "secret")))
    assert isinstance(found, Refuse)  # at once: nobody is asked
    assert (found.status, found.reason) == (401, "LogonFailed")
    assert ODD[odd] not in found.log


# ---------------------------------------------------------------------------------------------------- settings


def said(keytab: Path, spn: str = SPN) -> list[str]:
    settings = directories.KerberosSettings(realm=NAME, keytab=keytab, spn=spn)
    return complaints(basic.Basic, kerberos=settings)


def test_check_opens_the_keytab(house: Realm, tmp_path: Path) -> None:
    keytab = house.folder / "http.keytab"
    assert said(keytab) == []
    (wrong,) = said(keytab, "HTTP/nowhere.test")
    assert wrong.startswith(f"{keytab} has no key for HTTP/nowhere.test@{NAME}; it has: HTTP/")
    assert said(tmp_path / "none") == [f"{tmp_path}/none: there is no such keytab"]


@pytest.mark.parametrize("more", [{}, {"users_file": "users", "winbind": {}}])
def test_one_of_them_knows_passwords(more: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="one of users_file, winbind, kerberos and ldap has to be there"):
        basic.Basic.Settings(**more)  # type: ignore[arg-type]


@pytest.mark.parametrize("spn", ["www.example.com", "HTTP/", "HTTP/a b", "HTTP/a@B", "a/b/c"])
def test_a_service_principal_name(spn: str) -> None:
    with pytest.raises(ValueError, match="is no service principal name"):
        directories.KerberosSettings(realm=NAME, keytab=Path("x"), spn=spn)


@pytest.mark.parametrize(
    ("typed", "spelled"),
    [
        ("bob", "frontd\\bob"),
        ("FRONTD\\Bob", "frontd\\bob"),
        ("OTHER\\bob", "other\\bob"),
        ("Bob@ad.frontd.test", "\\bob@ad.frontd.test"),
    ],
)
def test_spellings_of_windows(typed: str, spelled: str) -> None:
    assert directories.Domain(directories.WinbindSettings(domain="FRONTD")).spelled(typed) == spelled


@pytest.mark.parametrize("typed", ["a\\b\\c", "\\bob", "FRONTD\\"])
def test_what_is_no_name_of_windows(typed: str) -> None:
    with pytest.raises(ValueError, match="none of Windows"):
        directories.Domain(directories.WinbindSettings(domain="FRONTD")).spelled(typed)


async def test_guesses_are_counted_for_the_account_however_its_name_is_spelled(house: Realm) -> None:
    """A domain knows an account in any case and without accents, and would lock it."""
    it = desk(house.folder / "http.keytab", failures_per_user=3)
    for name in ("Alice", "ALICE", f"alicé@{NAME.lower()}"):
        assert outcome(await logon(it, name, "guess")) == "LogonFailed"
    assert outcome(await logon(it, "aLiCe", "guess")) == "LogonThrottled"
    assert outcome(await logon(it, "alice", "secret")) == "LogonThrottled"
    assert outcome(await logon(it, "bob", "guess")) == "LogonFailed"
