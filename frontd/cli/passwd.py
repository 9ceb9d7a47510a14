"""`frontd passwd`: the lines of a users file, as the plugins `basic` and `ntlm` read them.

The file is written beside itself and renamed, so a running frontd reads the old lines or the new ones and never half of
them; an exclusive `flock` on its directory keeps two of us from undoing each other.  Lines of other users, comments and
blank lines stay as they are, byte for byte, even those that `basic` would refuse: that is how a file of older hashes is
mended user by user.  Passwords are never taken from the command line, where every user of the machine can read them.
"""

from __future__ import annotations

import errno
import fcntl
import getpass
import os
import secrets
import sys
from pathlib import Path

import click

from frontd.cli.common import Failure

_LINE = 4096  # bytes of a password line from standard input that are looked at; four times what is allowed


@click.command(short_help="Write or print a line of a users file.")
@click.argument("words", nargs=-1, required=True, metavar="[FILE] USER")
@click.option("--argon2", is_flag=True, help="argon2id instead of bcrypt.")
@click.option("--cost", type=click.IntRange(4, 16), help="Of bcrypt: one more takes twice the time.  [default: 10]")
@click.option("--ntlm", is_flag=True, help="The NT hash, for the plugin ntlm; USER may be DOMAIN\\USER.")
@click.option("--groups", metavar="A,B", help="Groups of the user; '' for none.  [default: those the user has]")
@click.option("--delete", is_flag=True, help="Remove the user's line.")
def passwd(
    words: tuple[str, ...], argon2: bool, cost: int | None, ntlm: bool, groups: str | None, delete: bool
) -> None:
    """Write the line of USER to the users file FILE, or print it.

    The password is asked for twice; when standard input is no terminal, it is read from its first two lines.  A FILE
    that does not exist is made, readable for its owner only.  A running frontd follows within a second or two.
    """
    from frontd_plugins import _passwords as passwords

    if len(words) > 2:
        raise click.UsageError("one FILE and one USER, or one USER")
    file = Path(words[0]) if len(words) == 2 else None
    user = passwords.normal(words[-1])
    if wrong := passwords.bad_user(user):
        raise click.UsageError(wrong)
    if user.startswith("#"):
        raise click.UsageError("a line that begins with # is a comment, so no user name does")
    if delete:
        if file is None:
            raise click.UsageError("--delete needs the FILE")
        if argon2 or cost is not None or ntlm or groups is not None:
            raise click.UsageError("--delete goes with no other option")
        _write(file, user, None, None)
        return
    if argon2 and cost is not None:
        raise click.UsageError("--cost is of bcrypt, and does not go with --argon2")
    if ntlm and (argon2 or cost is not None):
        raise click.UsageError("--ntlm has one kind of hash, and goes with neither --argon2 nor --cost")
    if ntlm and (wrong := _bad_nt_name(user)):
        raise click.UsageError(wrong)
    try:
        listed = None if groups is None else ",".join(passwords.groups_of(groups))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        if ntlm:
            stored = _nt_hash(_ask())
        else:
            stored = passwords.make(_ask(), argon2id=argon2, cost=passwords.COST if cost is None else cost)
    except ValueError as error:
        raise Failure(str(error)) from None
    if file is None:
        click.echo(_line(user, stored, listed or ""))
    else:
        _write(file, user, stored, listed)


def _bad_nt_name(user: str) -> str:
    from frontd_plugins import _ntlm_users

    return _ntlm_users.bad_name(user)


def _nt_hash(password: str) -> str:
    """The NT hash of a password, in hexadecimal.  Raises `ValueError` with a sentence for one that cannot be used."""
    from frontd_plugins import _ntlm_crypto
    from frontd_plugins import _passwords as passwords

    password = passwords.normal(password)
    if wrong := passwords.bad_password(password):
        raise ValueError(wrong)
    return _ntlm_crypto.nt_hash(password).hex()


def _line(user: str, stored: str, groups: str) -> str:
    return f"{user}:{stored}:{groups}" if groups else f"{user}:{stored}"


def _ask() -> str:
    """The password, which came twice.  Raises `Failure` when it did not."""
    if sys.stdin.isatty():
        first, second = getpass.getpass("Password: "), getpass.getpass("The same again: ")
    else:
        stream = sys.stdin.buffer
        first, second = _password(stream.readline(_LINE)), _password(stream.readline(_LINE))
    if first != second:
        raise Failure("the two passwords differ; nothing was changed")
    return first


def _password(line: bytes) -> str:
    if not line:
        raise Failure("standard input is no terminal, so the password is expected in its first two lines, twice")
    if len(line) == _LINE:
        raise Failure("the password on standard input is too long")
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeError:
        raise Failure("the password on standard input is not UTF-8") from None


def _write(file: Path, user: str, stored: str | None, groups: str | None) -> None:
    """Put the user's line into the file, or take it out (`stored` None), and say so.  Raises `Failure`."""
    path = Path(os.path.realpath(file))  # a link stays, and what it leads to is replaced
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            had = _rewrite(path, user, stored, groups)
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        hint = "\nIt is mounted by itself: change it where it comes from." if error.errno == errno.EBUSY else ""
        raise Failure(f"{file}: {error.strerror or error}{hint}") from None
    if stored is None:
        done = f"{user} is removed from {file}"
    else:
        done = f"the password of {user} in {file} is changed" if had else f"{user} is added to {file}"
    click.echo(done, err=True)


def _rewrite(path: Path, user: str, stored: str | None, groups: str | None) -> bool:
    """Whether the user was there already; `groups` None keeps those that the line had."""
    from frontd_plugins import _passwords as passwords

    try:
        status, data = passwords.content(path)
    except FileNotFoundError:
        if stored is None:
            raise
        status, data = None, b""
    lines = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff").split("\n")
    if not lines[-1]:
        lines.pop()  # what follows the last line feed
    names = [passwords.name_of(line) for line in lines]
    at = [number for number, name in enumerate(names) if name == user]
    like = passwords.alike(user)
    others = [name for name in names if name and name != user and passwords.alike(name) == like]
    if others and stored is not None:
        raise Failure(f"{others[0]} is in {path} already, and names that differ in case alone are one user")
    if stored is None:
        if not at:
            raise Failure(f"{path}: there is no user {user}")
        lines = [line for number, line in enumerate(lines) if number not in at]
    elif at:
        if groups is None:
            groups = ":".join(lines[at[0]].strip(" \t\r").split(":")[2:])
        lines[at[0]] = _line(user, stored, groups)
        lines = [line for number, line in enumerate(lines) if number not in at[1:]]
    else:
        lines.append(_line(user, stored, groups or ""))
    _replace(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"), status)
    return bool(at)


def _replace(path: Path, data: bytes, status: os.stat_result | None) -> None:
    """Write beside the file and rename over it, with the mode and the owner that it had (0600 and ourselves if it is
    new): a front that runs as another user must be able to read it afterwards."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if status is not None:
                mine = os.fstat(descriptor)
                if (mine.st_uid, mine.st_gid) != (status.st_uid, status.st_gid):
                    os.fchown(descriptor, status.st_uid, status.st_gid)
                os.fchmod(descriptor, status.st_mode & 0o777)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
