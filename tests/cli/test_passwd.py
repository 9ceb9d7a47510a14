"""`frontd passwd`: lines that `basic` reads, files that survive whatever happens, no password where it can be seen."""

from __future__ import annotations

import os
import resource
import select
import stat
import subprocess
import sys
import termios
import threading
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from frontd_plugins import _passwords as passwords

from frontd.cli.passwd import passwd

CHEAP = ("--cost", "4")


def run(*arguments: str | Path, said: str | bytes = "secret\nsecret\n") -> Result:
    return CliRunner().invoke(passwd, [str(argument) for argument in arguments], input=said)


def done(*arguments: str | Path, said: str | bytes = "secret\nsecret\n") -> str:
    """What a run prints that ends well."""
    result = run(*arguments, said=said)
    assert result.exit_code == 0, result.output
    return result.stdout


def failed(*arguments: str | Path, said: str | bytes = "secret\nsecret\n", code: int = 1) -> str:
    """What a run says on stderr that does not."""
    result = run(*arguments, said=said)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return result.stderr


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "users"


# ---------------------------------------------------------------------------------------------------- a line


def test_a_line_on_standard_output(tmp_path: Path, file: Path) -> None:
    line = done("alice", "--groups", " staff, admins ,staff")
    assert line.startswith("alice:$2b$10$")
    file.write_text(line)
    (record,) = passwords.read(file).records.values()
    assert (record.name, record.groups) == ("alice", ("staff", "admins"))
    assert passwords.verify(record.stored, "secret")
    assert os.listdir(tmp_path) == ["users"]


def test_the_kinds_of_hashes() -> None:
    assert done("alice", "--cost", "5").startswith("alice:$2b$05$")
    assert done("alice", "--argon2", said=f"{'x' * 1024}\n" * 2).startswith("alice:$argon2id$v=19$m=65536,t=3,p=4$")
    (cost,) = (option for option in passwd.params if option.name == "cost")
    assert isinstance(cost.type, click.IntRange)
    assert (cost.type.min, cost.type.max) == (passwords.COSTS[0], passwords.COSTS[-1])


@pytest.mark.parametrize("said", ["secret\r\nsecret\r\n", "secret\nsecret", "secret\nsecret\nand more\n"])
def test_two_lines_of_standard_input(file: Path, said: str) -> None:
    done(file, "alice", *CHEAP, said=said)
    assert passwords.verify(passwords.read(file).records["alice"].stored, "secret")


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("", "in its first two lines, twice"),
        ("secret\n", "in its first two lines, twice"),
        ("secret\nSecret\n", "the two passwords differ; nothing was changed"),
        ("\n\n", "a password is not empty"),
        (b"secr\xe9t\n" * 2, "not UTF-8"),
        ("sec\0ret\n" * 2, "no control characters"),
        ("x" * 73 + "\n" + "x" * 73, "bcrypt takes at most 72 bytes of a password; argon2id takes longer ones"),
        ("x" * 1025 + "\n" + "x" * 1025, "at most 1024 bytes"),
        ("x" * 100_000, "too long"),
    ],
)
def test_passwords_that_are_not_taken(file: Path, said: str | bytes, what: str) -> None:
    assert what in failed(file, "alice", said=said)
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("a:b",), "a user name has no colon"),
        (("",), "a user name is not empty"),
        ((" alice",), "no blanks at its ends"),
        (("#alice",), "is a comment"),
        (("users", "alice", "bob"), "one FILE and one USER"),
        ((), "Missing argument"),
        (("alice", "--groups", "a,,b"), "a group is not empty"),
        (("alice", "--groups", "a:b"), "neither colon nor comma"),
        (("alice", "--argon2", "--cost", "12"), "--cost is of bcrypt"),
        (("alice", "--cost", "17"), "4<=x<=16"),
        (("alice", "--delete"), "--delete needs the FILE"),
        (("users", "alice", "--delete", "--groups", "a"), "--delete goes with no other option"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], what: str) -> None:
    assert what in failed(*arguments, code=2)


# ---------------------------------------------------------------------------------------------------- a file


def test_a_new_file_is_for_its_owner_only(file: Path) -> None:
    assert done(file, "alice", *CHEAP) == ""
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(passwords.read(file).records) == ["alice"]


def test_others_stay_as_they_are(file: Path) -> None:
    before = b"# who\n\nbob:$apr1$x$y \r\n  alice:old:staff\t\n# caf\xe9\nalice:twice\ncarol:topsecret"
    file.write_bytes(before)
    assert "alice in" in run(file, "alice", *CHEAP).stderr
    lines = file.read_bytes().split(b"\n")
    assert lines[:3] == before.split(b"\n")[:3]
    assert lines[3].startswith(b"alice:$2b$04$")
    assert lines[3].endswith(b":staff")
    assert lines[4:] == [b"# caf\xe9", b"carol:topsecret", b""]


def test_the_mode_and_the_owner_are_kept(file: Path) -> None:
    file.write_text("")
    file.chmod(0o640)
    if os.getuid() == 0:
        os.chown(file, 1234, 2345)
    before = file.stat()
    done(file, "alice", *CHEAP)
    after = file.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino  # renamed into place, so nobody ever reads half of it


def test_a_link_leads_to_the_same_file_afterwards(tmp_path: Path, file: Path) -> None:
    (tmp_path / "real").write_text("")
    file.symlink_to("real")
    done(file, "alice", *CHEAP)
    assert file.is_symlink()
    assert "alice" in (tmp_path / "real").read_text()


def test_groups_are_kept_changed_and_taken_away(file: Path) -> None:
    def groups(*option: str) -> tuple[str, ...]:
        done(file, "alice", *CHEAP, *option)
        return passwords.read(file).records["alice"].groups

    assert groups("--groups", "a,b") == ("a", "b")
    assert groups() == ("a", "b")
    assert groups("--groups", "c") == ("c",)
    assert groups("--groups", "") == ()


def test_a_user_is_removed(file: Path) -> None:
    file.write_text("# who\n")
    for user in ("alice", "bob"):
        done(file, user, *CHEAP)
    done(file, "alice", "--delete", said="")
    assert list(passwords.read(file).records) == ["bob"]
    assert f"{file}: there is no user alice" in failed(file, "alice", "--delete")
    done(file, "bob", "--delete", said="")
    assert file.read_text() == "# who\n"
    assert "No such file or directory" in failed(file.with_name("none"), "bob", "--delete")
    assert not file.with_name("none").exists()


def test_one_user_however_the_name_is_composed(file: Path) -> None:
    done(file, "ren\u00e9", *CHEAP)
    done(file, "rene\u0301", *CHEAP)
    assert list(passwords.read(file).records) == ["ren\u00e9"]


def test_no_second_user_in_other_letters(file: Path) -> None:
    done(file, "alice", *CHEAP)
    assert "alice is in" in failed(file, "Alice", *CHEAP)
    assert "there is no user Alice" in failed(file, "Alice", "--delete")
    assert list(passwords.read(file).records) == ["alice"]


def test_what_cannot_be_written_is_said_and_nothing_is_left_behind(tmp_path: Path, file: Path) -> None:
    assert "No such file or directory" in failed(tmp_path / "none" / "users", "alice", *CHEAP)
    assert "Not a directory" in failed(Path(__file__) / "users", "alice", *CHEAP)
    file.mkdir()
    assert "not a regular file" in failed(file, "alice", *CHEAP)
    assert os.listdir(tmp_path) == ["users"]


def test_a_full_disk_changes_nothing(tmp_path: Path, file: Path) -> None:
    done(file, "alice", *CHEAP)
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        assert "File too large" in failed(file, "bob", *CHEAP)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["users"]


def test_two_at_once_do_not_undo_each_other(file: Path) -> None:
    command = [sys.executable, "-c", "from frontd.cli.passwd import passwd; passwd()", str(file), *CHEAP]
    codes: list[int] = []

    def add(user: str) -> None:
        ended = subprocess.run([*command, user], input=b"secret\nsecret\n", capture_output=True, check=False)
        codes.append(ended.returncode)

    threads = [threading.Thread(target=add, args=(f"user{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 6
    assert sorted(passwords.read(file).records) == [f"user{number}" for number in range(6)]


# ---------------------------------------------------------------------------------------------------- a terminal


def test_a_terminal_is_asked_twice_and_shows_nothing(file: Path) -> None:
    ours, theirs = os.openpty()
    # a session of its own, whose controlling terminal (which getpass opens as /dev/tty) is the other end
    start = "import fcntl, os, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    code = start + "from frontd.cli.passwd import passwd; passwd()"
    command = [sys.executable, "-c", code, str(file), "alice"]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    shown = b""

    def until(mark: bytes) -> None:
        nonlocal shown
        while mark not in shown:
            assert select.select([ours], [], [], 20)[0], shown
            shown += os.read(ours, 1000)

    try:
        for prompt in (b"Password: ", b"The same again: "):
            until(prompt)
            assert not termios.tcgetattr(ours)[3] & termios.ECHO  # getpass turns it off before it asks
            os.write(ours, b"secret\n")
        until(b"alice is added")
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()
        os.close(theirs)
        os.close(ours)
    assert b"secret" not in shown
    assert passwords.verify(passwords.read(file).records["alice"].stored, "secret")


def test_what_it_imports_before_it_is_used() -> None:
    code = "import sys, frontd.cli.passwd; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert not {"bcrypt", "argon2", "trio", "pydantic", "frontd_plugins"} & set(loaded)
