"""The users file: which lines are taken, what is said about the others, and that nothing of them leaks."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from frontd_plugins import _passwords as passwords
from frontd_plugins._passwords import BadUsers, Record, read
from hypothesis import given
from hypothesis import strategies as st

# of "secret"
HASH = "$2b$04$2yoznx4PCF.gO53oZMYDrunxoq4vF3nJof.UEz1GWm3fVICClkMYu"
ARGON = "$argon2id$v=19$m=8,t=1,p=1$7S/3hgWC30ZL7iH8p+QAew$msV8X0VIU/SN7gQzyAE1Hv7YS03BqGZuZSVIG9l9eFw"


def users(folder: Path, text: str | bytes) -> Mapping[str, Record]:
    """The records of a file with `text`."""
    (folder / "users").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(folder / "users").records


def refused(folder: Path, text: str | bytes) -> tuple[str, ...]:
    """What is said about a file with `text`; the path is left out."""
    with pytest.raises(BadUsers) as caught:
        users(folder, text)
    return tuple(sentence.replace(str(folder / "users"), "FILE") for sentence in caught.value.sentences)


def test_lines(tmp_path: Path) -> None:
    text = f"# who may come in\n\n  \t\nalice:{HASH}\nbob:{ARGON}:a, b,a\r\n carol c:{HASH}: \n  # the end"
    assert list(users(tmp_path, text).values()) == [
        Record("alice", HASH), Record("bob", ARGON, ("a", "b")), Record("carol c", HASH),
    ]  # fmt: skip


def test_a_byte_order_mark_and_no_line_at_all(tmp_path: Path) -> None:
    assert list(users(tmp_path, b"\xef\xbb\xbfalice:" + HASH.encode())) == ["alice"]
    assert users(tmp_path, "") == {}
    assert passwords.verify(read(tmp_path / "users").decoy("alice"), "secret") is False


@pytest.mark.parametrize(
    ("stored", "kind"),
    [
        ("$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/", "MD5 (apr1)"),
        ("$1$abcdefgh$irWbblnpmw.5z7wgBnprh0", "MD5 (crypt)"),
        ("$5$rounds=5000$salt$abcdef", "SHA-256 (crypt)"),
        ("$6$salt$abcdef", "SHA-512 (crypt)"),
        ("$y$j9T$salt$abcdef", "yescrypt or scrypt"),
        ("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "SHA-1"),
        ("{SSHA}abcdef", "salted SHA-1"),
        ("rqXexS6ZhobKA", "DES (crypt)"),
        ("$2x$04$" + HASH[7:], "bcrypt before 2011"),
        (ARGON.replace("argon2id", "argon2i"), "argon2, but not argon2id"),
    ],
)
def test_hashes_of_other_kinds(tmp_path: Path, stored: str, kind: str) -> None:
    (said,) = refused(tmp_path, f"# old\nalice b:{stored}\n")
    assert said == (
        f"FILE:2: what follows the name is a hash of another kind: {kind}; "
        "make the line anew with: frontd passwd FILE USER"
    )


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("topsecret", "a line is user:hash or user:hash:group,group, and this one has no colon"),
        ("alice:topsecret", "what follows the name is no hash that is known here, perhaps a plain password; …"),
        ("alice:", "what follows the name is no hash that is known here, perhaps a plain password; …"),
        (f"alice:{HASH[:-1]}", "what follows the name is a damaged hash; …"),
        (f"alice:{HASH[:28]}9{HASH[29:]}", "what follows the name is a damaged hash; …"),
        (f"alice:{ARGON[:-1]}", "what follows the name is a damaged argon2id hash; …"),  # bits are left over
        (f"alice:{ARGON[:-2]}", "what follows the name is a damaged argon2id hash; …"),
        (f"alice:{ARGON[:-30]}", "what follows the name is a damaged argon2id hash; …"),
        (f"alice:$2b$03${HASH[7:]}", "what follows the name is bcrypt of cost 3; a cost from 4 to 16 is accepted; …"),
        (f"alice:$2b$31${HASH[7:]}", "what follows the name is bcrypt of cost 31; a cost from 4 to 16 is accepted; …"),
        (
            "alice:" + ARGON.replace("m=8,", "m=4194304,"),
            "what follows the name is argon2id with m=4194304,t=1,p=1; at most m=262144,t=32,p=16 and at least 8 KiB "
            "for each lane are accepted; …",
        ),
        (
            "alice:" + ARGON.replace("p=1", "p=2"),
            "what follows the name is argon2id with m=8,t=1,p=2; at most m=262144,t=32,p=16 and at least 8 KiB "
            "for each lane are accepted; …",
        ),
        ("alice:" + ARGON.replace("v=19", "v=16"), "what follows the name is a damaged hash; …"),
        (f":{HASH}", "a user name is not empty"),
        (f"alice :{HASH}", "a user name has no control characters, and no blanks at its ends"),
        (f"al\x07ice:{HASH}", "a user name has no control characters, and no blanks at its ends"),
        (f"{'a' * 256}:{HASH}", "a user name has at most 255 bytes"),
        (f"alice:{HASH}:a,,b", "a group is not empty"),
        (f"alice:{HASH}:a\x07", "a group has no control characters, and no blanks at its ends"),
        (f"alice:{HASH}:a:b", "too many colons; a line is user:hash or user:hash:group,group"),
    ],
)
def test_lines_that_are_errors(tmp_path: Path, line: str, what: str) -> None:
    (said,) = refused(tmp_path, line)
    assert said == "FILE:1: " + what.replace("…", "make the line anew with: frontd passwd FILE USER")
    assert "topsecret" not in said


def test_every_error_at_once_and_not_too_many(tmp_path: Path) -> None:
    said = refused(tmp_path, b"alice:x\nb\xff\n" + b"alice:y\n" * 30)
    assert len(said) == passwords.SENTENCES + 1
    assert said[0].startswith("FILE:1: what follows the name")
    assert said[1] == "FILE:2: the line is not UTF-8"
    assert said[-1] == "FILE: 12 more lines cannot be used"


def test_one_user_twice_however_it_is_written(tmp_path: Path) -> None:
    assert refused(tmp_path, f"ren\u00e9:{HASH}\nrene\u0301:{HASH}\n") == (
        "FILE:2: ren\u00e9 stands in line 1 already; remove one of them",
    )


def test_one_user_in_other_letters(tmp_path: Path) -> None:
    """Rules take the two for one, so the second would have the rights of the first."""
    assert refused(tmp_path, f"admin:{HASH}\nAdmin:{HASH}\n") == (
        "FILE:2: Admin stands in line 1 already; remove one of them",
    )


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"")
    os.truncate(tmp_path / "large", passwords.FILE_MAX + 1)
    for path, what in (
        (tmp_path, "cannot be read: it is not a regular file"),
        (tmp_path / "fifo", "cannot be read: it is not a regular file"),
        (tmp_path / "large", "cannot be read: it is longer than 16 MiB"),
        (tmp_path / "none", "there is no such users file"),
        (tmp_path / "large" / "users", "cannot be read: Not a directory"),
    ):
        with pytest.raises(BadUsers, match=re.escape(what)):
            read(path)


# ---------------------------------------------------------------------------------------------------- bytes gone wrong


def cheap(stored: str) -> bool:
    """Whether a check takes a moment: a changed digit may ask for minutes."""
    numbers = [int(number) for number in re.findall(r"(?:[mtp]=|^\$2.\$)(\d+)", stored)]
    return max(numbers, default=0) <= (4 if stored.startswith("$2") else 99)


@given(
    line=st.sampled_from([f"alice:{HASH}:a,b", f"alice:{ARGON}", f"alice:{HASH}"]),
    at=st.floats(0, 1),
    size=st.integers(0, 3),
    put=st.binary(max_size=3) | st.sampled_from([b":", b"$", b",", b"=", b"\n", b"\r", b"#", b"0", b"9"]),
)
def test_a_damaged_line_is_an_error_or_can_be_checked(
    tmp_path_factory: pytest.TempPathFactory, line: str, at: float, size: int, put: bytes
) -> None:
    whole = line.encode()
    place = int(at * len(whole))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(whole[:place] + put + whole[place + size :])
    try:
        found = read(path)
    except BadUsers as error:
        for sentence in error.sentences:  # nothing of a hash is shown, wherever the line is broken
            assert not re.search(r"[./A-Za-z0-9+$]{14}", sentence.replace(str(path), ""))
        return
    for record in found.records.values():
        if cheap(record.stored):
            passwords.verify(record.stored, "secret")
            assert not passwords.verify(found.decoy("x"), "secret")


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode), st.text(max_size=3))
def test_credentials_are_what_was_sent_or_an_error(sent: bytes, after: str) -> None:
    try:
        user, password = passwords.credentials(base64.b64encode(sent).decode() + after)
    except ValueError:
        return
    assert not after.strip()
    assert f"{user}:{password}" == passwords.normal(sent.decode())
    assert user
    assert password
    assert user == user.strip()
    assert all(letter >= " " and not "\x7f" <= letter < "\xa0" for letter in user + password)


# ---------------------------------------------------------------------------------------------------- hashes


@pytest.mark.parametrize("argon2id", [False, True])
def test_a_hash_that_is_made_is_one_that_is_taken(tmp_path: Path, argon2id: bool) -> None:
    stored = passwords.make("Grüße 🙂", argon2id=argon2id)
    assert users(tmp_path, f"alice:{stored}")["alice"].stored == stored
    assert passwords.verify(stored, "Grüße 🙂")
    assert not passwords.verify(stored, "Grusse 🙂")
    assert not passwords.verify(stored, "")


def test_the_costs_are_as_documented() -> None:
    assert passwords.make("x").startswith("$2b$10$")
    assert passwords.make("x", argon2id=True).startswith("$argon2id$v=19$m=65536,t=3,p=4$")


@pytest.mark.parametrize("password", ["", "a\0b", "a\nb", "x" * 1025, "x" * 73])
def test_passwords_that_get_no_hash(password: str) -> None:
    with pytest.raises(ValueError, match=r"password|bcrypt") as caught:
        passwords.make(password)
    assert not password or password not in str(caught.value)


def test_a_line_of_htpasswd(tmp_path: Path) -> None:
    """The example of Apache's "Password Formats"."""
    line = "myName:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC"
    assert passwords.verify(users(tmp_path, line)["myName"].stored, "myPassword")
