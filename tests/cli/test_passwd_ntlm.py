"""`frontd passwd --ntlm`: lines that `ntlm` reads."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from frontd_plugins import _ntlm_users
from frontd_plugins import _passwords as passwords
from spnego._ntlm_raw.crypto import ntowfv1

from tests.cli.test_passwd import done, failed

HASH = ntowfv1("secret").hex()  # as pyspnego makes it


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nt-users"


def test_lines(file: Path) -> None:
    assert done("--ntlm", "alice") == f"alice:{HASH}\n"
    assert done("--ntlm", "--groups", "a,b", "CORP\\bob") == f"CORP\\bob:{HASH}:a,b\n"


def test_a_file(file: Path) -> None:
    done("--ntlm", "--groups", "staff", file, "alice")
    done("--ntlm", file, "CORP\\bob", said="e\u0301te\u0301\n" * 2)
    done("--ntlm", file, "alice", said="other\nother\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    users = _ntlm_users.read(file, _ntlm_users.local_names(["FRONTD"]))
    assert sorted(users.names) == [("", "ALICE"), ("CORP", "BOB")]
    assert users.records["alice"].groups == ("staff",)
    assert users.records["alice"].stored == ntowfv1("other").hex()
    assert users.records["CORP\\bob"].stored == ntowfv1("\u00e9t\u00e9").hex()
    done("--delete", file, "CORP\\bob")
    assert "CORP" not in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--ntlm", "--argon2", "alice"), "--ntlm has one kind of hash"),
        (("--ntlm", "--cost", "5", "alice"), "--ntlm has one kind of hash"),
        (("--ntlm", "--delete", "users", "alice"), "--delete goes with no other option"),
        (("--ntlm", "a\\b\\c"), "DOMAIN\\user"),
        (("--ntlm", "\\alice"), "DOMAIN\\user"),
        (("--ntlm", "a:b"), "no colon"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], what: str) -> None:
    assert what in failed(*arguments, code=2)


def test_passwords_that_are_not_taken(file: Path) -> None:
    assert "a password is not empty" in failed("--ntlm", file, "alice", said="\n\n")
    assert "no control characters" in failed("--ntlm", file, "alice", said="a\0b\n" * 2)
    assert not file.exists()
    assert len(done("--ntlm", "alice", said=f"{'x' * 1024}\n" * 2)) == len("alice:\n") + 32


def test_what_one_plugin_keeps_is_nothing_for_the_other(file: Path) -> None:
    done("--ntlm", file, "alice")
    with pytest.raises(passwords.BadUsers, match="no hash that is known here"):
        passwords.read(file)
    file.write_text(done("alice", "--cost", "4"))
    with pytest.raises(passwords.BadUsers, match="is no NT hash of 32 hexadecimal digits"):
        _ntlm_users.read(file, frozenset())
