"""A users file is read where nobody waits: by the check of a configuration, for the instances made after it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from frontd_plugins import _passwords as passwords
from frontd_plugins import basic

from frontd import SiteFacts
from tests.plugins.logons import ALICE, BOB, Desk

FACTS = SiteFacts("main", (), ("basic",), has_authenticator=True)


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    """Nothing that other plays have read, and nothing for them."""
    basic._READ_AHEAD.clear()
    yield
    basic._READ_AHEAD.clear()


def checked(file: Path) -> list[str]:
    return list(basic.Basic.check(basic.Basic.Settings(users_file=file), FACTS))


def secretly_write(file: Path, text: str) -> None:
    """Change the file so that it looks as before: who reads it again sees this, who does not, sees what was there."""
    before = file.stat()
    assert before.st_size == len(text)
    file.write_text(text)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def users_of(desk: Desk) -> list[str]:
    return list(desk.plugin._users.records)


def test_what_the_check_has_read_is_not_read_again(tmp_path: Path) -> None:
    first = Desk(tmp_path)
    del first.plugin  # nobody uses the file any more
    file = tmp_path / "users"
    assert checked(file) == []
    secretly_write(file, (ALICE + BOB).replace("alice", "carol"))
    settings = basic.Basic.Settings(users_file=file)
    desks = [basic.Basic(settings, first.context) for _ in range(3)]
    assert [list(one._users.records) for one in desks] == [["alice", "bob"]] * 3
    assert not basic._READ_AHEAD  # it waits for one of them, and is shared from then on
    assert checked(file) == []
    basic._READ_AHEAD.clear()
    del desks
    assert list(basic.Basic(settings, first.context)._users.records) == ["carol", "bob"]


def test_what_has_changed_since_is_read_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert checked(desk.file) == []
    desk.write(BOB)
    assert list(basic.Basic(desk.plugin.settings, desk.context)._users.records) == ["bob"]
    assert checked(desk.file) == []
    desk.write("alice\n")
    with pytest.raises(passwords.BadUsers):
        basic.Basic(desk.plugin.settings, desk.context)
    desk.file.unlink()
    assert "there is no such users file" in checked(desk.file)[0]


async def test_a_running_site_takes_what_a_check_has_read(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.write(BOB + ALICE)
    assert checked(desk.file) == []
    secretly_write(desk.file, (BOB + ALICE).replace("alice", "carol"))
    await desk.plugin._look_again()
    assert users_of(desk) == ["bob", "alice"]
    assert not basic._READ_AHEAD


def test_what_nobody_takes_is_bounded(tmp_path: Path) -> None:
    for number in range(3 * basic.MOST_AHEAD):
        (tmp_path / str(number)).write_text(BOB)
        assert checked(tmp_path / str(number)) == []
    assert len(basic._READ_AHEAD) == basic.MOST_AHEAD
    assert list(basic._READ_AHEAD)[-1] == tmp_path / str(3 * basic.MOST_AHEAD - 1)


def test_many_users_are_few_objects(tmp_path: Path) -> None:
    """The collector of cycles stops everybody for as long as it takes to look at them."""
    file = tmp_path / "users"
    file.write_text("".join(f"user{number}:{ALICE.split(':', 1)[1]}" for number in range(20_000)))
    before = len(gc.get_objects())
    users = passwords.read(file)
    assert len(gc.get_objects()) - before < 1000
    assert len(users.records) == len(users.decoys) == 20_000
    assert users.records["user19999"].groups == ("staff", "admins")


async def test_how_many_accounts_are_made_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basic, "REMEMBERED", 2)
    desk = Desk(tmp_path, "".join(ALICE.replace("alice", name) for name in "abcd"))
    for name in "abcda":
        assert await desk.logon(name, "secret") == name
        assert len(desk.plugin._accounts) <= 2
