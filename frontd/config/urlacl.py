"""Reservations, and pools whose processes attach themselves, as people configure them (netsh http add urlacl)."""

from __future__ import annotations

import grp
import os
import pwd
import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from frontd.config import units
from frontd.config.leaves import Count, File, Flag, Part, Text, Url, json_scalar
from frontd.model.reservations import Account, Reservation

_MODE = re.compile(r"0?[0-7]{3}")


def _mode(value: object) -> str:
    word = units.text(value)
    if not _MODE.fullmatch(word):
        raise units.Refused(f"an octal mode such as 0660 is expected, not {units.clip(word)}", 'in quotes: "0660"')
    return word.zfill(4)


Mode = Annotated[str, BeforeValidator(_mode), json_scalar("string", "number"), units.Kind("octal mode")]


def _known_user(value: object) -> str:
    name = units.text(value)
    uid_of(name)
    return name


def _known_group(value: object) -> str:
    name = units.text(value)
    gid_of(name)
    return name


def uid_of(name: str) -> int:
    """The uid of a user.  Raises `ValueError` with a sentence when there is none of that name."""
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, UnicodeError):
        raise ValueError(f"there is no user {units.clip(name)} here (a number goes under `uid`)") from None


def gid_of(name: str) -> int:
    """The gid of a group.  Raises `ValueError` with a sentence when there is none of that name."""
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, UnicodeError):
        raise ValueError(f"there is no group {units.clip(name)} here") from None


UserName = Annotated[str, BeforeValidator(_known_user), json_scalar("string"), units.Kind("user name")]
GroupName = Annotated[str, BeforeValidator(_known_group), json_scalar("string"), units.Kind("group name")]


class UrlAcl(Part):
    """A URL reservation: who may register a prefix at run time, and everything below it."""

    url: Url = Field(description="The prefix, `scheme://host[:port][/path/]`, with the port clients type.")
    user: UserName | None = Field(default=None, description="The user whose processes may register it.")
    uid: Count | None = Field(default=None, ge=0, le=4294967294, description="That user, by number.")
    group: GroupName | None = Field(default=None, description="A group whose members may.")
    pool: Text | None = Field(
        default=None,
        description="A pool with `attach`: what comes through its socket may, and requests wait in its queue.",
    )
    delegate: Flag = Field(
        default=False, description="Whether they may reserve parts of it for others (netsh `delegate=`: no)."
    )

    @model_validator(mode="after")
    def _one_account(self) -> UrlAcl:
        if sum(one is not None for one in (self.user, self.uid, self.group, self.pool)) != 1:
            raise ValueError("a reservation is for exactly one of `user`, `uid`, `group` and `pool`")
        return self

    def account(self) -> Account:
        """Whom it is for.  Raises `ValueError` when a name has ceased to exist since it was checked."""
        if self.pool is not None:
            return Account("pool", -1, self.pool)
        if self.group is not None:
            return Account("group", gid_of(self.group), self.group)
        if self.user is not None:
            return Account("user", uid_of(self.user), self.user)
        assert self.uid is not None
        return user_account(self.uid)


class Attach(Part):
    """The control socket of a pool whose processes register themselves."""

    socket: File | None = Field(
        default=None,
        description="Unix socket that takes `frontd attach` for this pool and nothing else; who can open it is the "
        "tenant. Left out: they come by the main control socket, with frontd's own user.",
    )
    owner: UserName | None = Field(default=None, description="Owner of that socket; left out: frontd's user.")
    group: GroupName | None = Field(default=None, description="Group of that socket; left out: frontd's.")
    mode: Mode = Field(
        default="0660",
        description="Mode of that socket; `0666` where its directory is mounted into the tenant's container alone.",
    )

    @model_validator(mode="after")
    def _fits_sockaddr(self) -> Attach:
        if self.socket is not None and len(os.fsencode(self.socket)) > 107:  # sockaddr_un, unix(7)
            raise ValueError("the path of a Unix socket has at most 107 bytes")
        if self.socket is None and {"owner", "group", "mode"} & self.model_fields_set:
            raise ValueError("`owner`, `group` and `mode` belong to `socket`")
        return self


def user_account(uid: int) -> Account:
    """The account of a uid, with its name where it has one."""
    try:
        return Account("user", uid, pwd.getpwuid(uid).pw_name)
    except KeyError:
        return Account("user", uid, f"uid {uid}")


def fixed_reservations(entries: Iterable[UrlAcl]) -> tuple[Reservation, ...]:
    """What the configuration reserves.  Raises `ValueError` when a name has ceased to exist."""
    return tuple(Reservation(one.url, one.account(), one.delegate, is_fixed=True) for one in entries)
