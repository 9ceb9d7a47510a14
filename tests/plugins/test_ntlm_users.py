"""The users file of ntlm: who is meant by a name, and what cannot stand in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from frontd_plugins import _ntlm_users as users
from frontd_plugins._ntlm import NtlmError, Response
from frontd_plugins._ntlm_crypto import nt_hash
from frontd_plugins._passwords import BadUsers

from tests.plugins.ntlmclients import Forger, acceptor, type1

HASH = nt_hash("secret").hex()
LOCAL = ("FRONTD", "OFFICE")


def opened(folder: Path, *lines: str) -> users.UsersFile:
    (folder / "users").write_text("".join(f"{line}\n" for line in lines))
    return users.UsersFile(folder / "users", LOCAL, lambda _: None)


def response(user: str, domain: str = "", password: str = "secret") -> Response:
    it = acceptor()
    return it.response(Forger(user=user, domain=domain, password=password).type3(it.challenge(type1())))


async def found(file: users.UsersFile, user: str, domain: str = "", password: str = "secret") -> str:
    return (await file.verify(response(user, domain, password))).name


async def test_who_is_meant(tmp_path: Path) -> None:
    file = opened(tmp_path, f"Ann:{HASH}:staff", f"CORP\\ann:{HASH}", f"Corp\\Bob:{HASH.upper()}")
    for domain in ("", ".", "frontd", "Office"):
        assert await found(file, "aNN", domain) == "Ann"
    assert await found(file, "ann", "corp") == "CORP\\ann"
    assert await found(file, "BOB", "CORP") == "Corp\\Bob"
    verified = await file.verify(response("ann"))
    assert (verified.groups, verified.sids, len(verified.session_key)) == (("staff",), (), 16)
    for user, domain in (("bob", ""), ("bob", "FRONTD"), ("ann", "OTHER"), ("CORP\\ann", ""), ("", "CORP")):
        with pytest.raises(NtlmError, match=r"no such user|without a user name"):
            await found(file, user, domain)
    with pytest.raises(NtlmError, match="the password for Corp\\\\Bob is wrong"):
        await found(file, "bob", "corp", "Secret")


async def test_capitals_of_letters_beyond_ascii(tmp_path: Path) -> None:
    file = opened(tmp_path, f"jürgen:{HASH}")
    assert await found(file, "JÜRGEN") == "jürgen"
    with pytest.raises(NtlmError, match="no such user"):
        await found(file, "JURGEN")


async def test_guesses_are_counted_under_one_name(tmp_path: Path) -> None:
    file = opened(tmp_path, f"ann:{HASH}")
    spellings = [(user, domain) for user in ("ann", "ANN") for domain in ("", ".", "OFFICE", "frontd")]
    names = {file.account(response(user, domain)) for user, domain in spellings}
    assert len(names) == 1
    assert file.account(response("ann", "CORP")) not in names
    assert file.account(response("who", "corp")) == file.account(response("WHO", "CORP"))  # there or not


def test_what_a_logon_stands_on(tmp_path: Path) -> None:
    before, after = opened(tmp_path, f"ann:{HASH}:staff", f"bob:{HASH}"), opened(tmp_path, f"ann:{HASH}", f"bob:{HASH}")
    assert before.standing("ann") != after.standing("ann")
    assert before.standing("bob") == after.standing("bob")
    assert after.standing("carol") is None


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["ann"], ":1: a line is user:hash"),
        (["ann:secret"], ":1: what follows the name is no NT hash of 32 hexadecimal digits; make the line anew with: "),
        ([f"ann:{HASH}0"], "is no NT hash"),
        ([f"ann:0123:{HASH}:::"], "is no NT hash"),  # pwdump's
        (["", "# x", f"ann:{HASH}:a:b"], ":3: too many colons"),
        ([f"ann:{HASH}:a,,b"], ":1: a group is not empty"),
        ([f"ann:{HASH}", f"ANN:{HASH}"], ":2: ANN stands in line 1 already"),
        ([f"a\\b\\c:{HASH}"], "a name is user or DOMAIN\\user"),
        ([f"corp\\:{HASH}"], "a name is user or DOMAIN\\user"),
        ([f"ann:{HASH}", f"office\\ann:{HASH}"], "ann and office\\ann are one user"),
    ],
)
def test_lines_that_cannot_be_used(tmp_path: Path, lines: list[str], says: str) -> None:
    with pytest.raises(BadUsers) as caught:
        opened(tmp_path, *lines)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)
    assert HASH not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadUsers, match="make it with: frontd passwd --ntlm"):
        users.UsersFile(tmp_path / "users", LOCAL, lambda _: None)
    with pytest.raises(BadUsers, match="not a regular file"):
        users.UsersFile(tmp_path, LOCAL, lambda _: None)
