"""Whether reservations and pools that processes attach to fit the rest of the file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from frontd.config.build import Draft
from frontd.config.fill import Room, complain
from frontd.config.marks import find
from frontd.config.model import Listen
from frontd.config.units import clip, nearest
from frontd.model.reservations import Account, Denied, Holder, Namespace, Reservation, check_name
from frontd.model.urlprefix import UrlPrefix

_AUTHOR = Holder(Account("user", 0, "root"), is_admin=True)  # who writes the file may reserve anything


def attaching_fits(room: Room, draft: Draft) -> None:
    """Note every error about `urlacl` and about `attach` of pools."""
    _pools_can_be_attached_to(room, draft)
    _sockets_apart(room, draft)
    space = Namespace(schemes=schemes_of(draft.listen.values()))
    for index, entry in draft.urlacl.items():
        node = find(draft.root, "urlacl", index)
        if entry.pool is not None:
            _pool_takes_processes(room, draft, index, entry.pool)
        if draft.listeners_known and not is_served(entry.url, draft.listen.values()):
            complain(room, find(draft.root, "urlacl", index, "url"), f"no listener serves {entry.url}")
            continue
        try:
            space = space.reserve(_AUTHOR, Reservation(entry.url, entry.account(), entry.delegate))
        except Denied as denied:
            complain(room, node, denied.sentence)
        except ValueError as error:  # a name has ceased to exist in the meantime
            complain(room, node, str(error))


def schemes_of(listeners: Iterable[Listen]) -> tuple[tuple[int, str], ...]:
    """The scheme of every port that clients type."""
    return tuple((one.public_port, one.kind) for one in listeners if one.public_port)


def is_served(url: UrlPrefix, listeners: Iterable[Listen]) -> bool:
    """Whether a listener takes requests for `url`."""
    return any(one.kind == url.scheme and one.public_port in (url.port, None) for one in listeners)


def _pools_can_be_attached_to(room: Room, draft: Draft) -> None:
    for pool in draft.pools.values():
        if pool.attach is None:
            continue
        try:
            check_name(pool.name)
        except Denied as denied:
            complain(room, find(draft.root, "pools", pool.name), denied.sentence)


def _pool_takes_processes(room: Room, draft: Draft, index: int, name: str) -> None:
    pool = draft.pools.get(name)
    node = find(draft.root, "urlacl", index, "pool")
    if pool is None and name not in draft.pool_names:
        guess = nearest(name, draft.pool_names)
        complain(room, node, f"there is no pool {clip(name)}", f'did you mean "{guess}"?' if guess else "")
    elif pool is not None and pool.attach is None:
        complain(
            room, node, f"nobody can register anything for the pool {clip(name)}, which has no `attach`",
            f"write   {name}: {{attach: {{socket: /run/frontd/attach/{name}.sock}}}}   under `pools`",
        )  # fmt: skip


def _sockets_apart(room: Room, draft: Draft) -> None:
    """One socket is one tenant."""
    taken: dict[Path, str] = {}
    if draft.control is not None:
        taken[draft.control.socket] = "control.socket"
    for pool in draft.pools.values():
        path = pool.attach.socket if pool.attach is not None else None
        if path is None:
            continue
        if path in taken:
            node = find(draft.root, "pools", pool.name, "attach", "socket")
            complain(room, node, f"{path} is already {taken[path]}")
        taken.setdefault(path, f"pools.{pool.name}.attach.socket")
