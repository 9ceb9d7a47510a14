"""The processes that are attached to queues: their sockets, and what the fronts are told of them.

How it works
------------
A process that attaches gets a listening Unix socket of its own, which is bound here, in a directory that only frontd's
user can enter, and handed over with the answer (SCM_RIGHTS).  From then on it is a *place* of its queue, until the
connection ends on which it was attached:

    attach ──▶ bind control.places/QUEUE-ID ──▶ answer with the socket ──▶ fronts: the places of this queue are …
    end    ──▶ fronts: without it

Control keeps no copy of the socket: when the process dies, a connect is refused at once.  Its file is removed when
somebody else attaches and nobody listens on it any more: some servers remove it themselves, and fail when it is gone.
The name of the socket says
which queue it is of (a hash), so whoever was attached when control died is found again in the directory: such a place
stays for `COMES_BACK` seconds in which its process is expected to call again.  Fronts keep their places meanwhile.

Invariants
----------
* A place is told to fronts only while its process is attached, or expected back.
* A process may only take a place over that is of the queue it attaches to.
* A place never outlives its queue: whoever makes another queue of that name, or configures a pool of it, does not get
  the processes that were attached before.
* Who has detached, and listens all the same, has no place any more: its socket's file is marked (mode 0).
* Bounded: `MOST_OF_QUEUE` places of a queue, `MOST` in all.
* A front that has just begun to serve is told everything; what it is told of another control's places is the same.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import trio

from frontd.config.model import Config
from frontd.model.reservations import Denied, Word
from frontd.net.binding import bind_unix
from frontd.processes.family import Family, Member

MOST = 1024
MOST_OF_QUEUE = 64
COMES_BACK = 20.0  # s for the process of a control that has died to call again; its back-off is 2 s at most

SO_ACCEPTCON = 0x10000  # a flag of the table; net.h calls it __SO_ACCEPTCON

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{8})")  # short: sockaddr_un has 107 bytes


@dataclass(eq=False, slots=True)
class Attached:
    """One process that is attached, or was when control died: then `who` is empty until it calls again."""

    queue: str
    name: str  # for the process itself, to say which one it is
    path: Path
    who: str = ""
    pid: int = 0
    concurrency: int | None = None
    since: float = field(default_factory=time.time)  # s since the epoch
    is_pools: bool = False  # the queue is a pool's of the configuration
    line: trio.CancelScope = field(default_factory=trio.CancelScope)  # of the connection on which it is attached

    @property
    def address(self) -> str:
        """As fronts are told."""
        return f"unix:{self.path}"


class Places:
    """The attached processes of all queues; `folder` is for their sockets."""

    def __init__(self, family: Family, folder: Path) -> None:
        self.family = family
        self.folder = folder
        self.attached: dict[str, Attached] = {}  # by name

    def of(self, queue: str) -> list[Attached]:
        """The places of a queue."""
        return [one for one in self.attached.values() if one.queue == queue]

    def queues(self) -> dict[str, list[Attached]]:
        """The places of every queue that has some."""
        return {queue: self.of(queue) for queue in dict.fromkeys(one.queue for one in self.attached.values())}

    # ------------------------------------------------------------------ what comes and goes

    def attach(
        self, queue: str, who: str, pid: int, concurrency: int | None, again: str
    ) -> tuple[Attached, int | None]:
        """A place for a process, with the listening socket for it; with the name of the place it had (`again`), that
        place and no socket.

        Raises `Denied` and `OSError`.
        """
        if again:
            self.check_back(queue, again)
            if again not in self.attached:
                self._check_room(queue)
            found = self.attached.setdefault(again, Attached(queue, again, self.folder / again))
            found.who, found.pid, found.concurrency = who, pid, concurrency
            found.is_pools, found.line = self._is_pools(queue), trio.CancelScope()
            return found, None
        self._check_room(queue)
        self._tidy()
        name = f"{hash_of(queue)}-{os.urandom(4).hex()}"
        place = Attached(queue, name, self.folder / name, who, pid, concurrency, is_pools=self._is_pools(queue))
        fd = self._listen(place.path)
        self.attached[name] = place
        return place, fd

    def _check_room(self, queue: str) -> None:
        if len(self.of(queue)) >= MOST_OF_QUEUE:
            raise Denied(Word.TOO_MANY, f"{MOST_OF_QUEUE} processes are attached to the queue {queue} already")
        if len(self.attached) >= MOST:
            raise Denied(Word.TOO_MANY, f"{MOST} processes are attached already")

    def _is_pools(self, queue: str) -> bool:
        return queue in self.family.base.pools

    def check_back(self, queue: str, name: str) -> None:
        """Raises `Denied` unless the place `name` can be taken again."""
        if not _NAME.fullmatch(name) or not name.startswith(hash_of(queue)):
            raise Denied(Word.INVALID, f"that is no place of the queue {queue}")
        place = self.attached.get(name)
        if place is not None and place.who:
            raise Denied(Word.ALREADY_EXISTS, "another process has this place")
        if place is None and (is_left(self.folder / name) or not listens(self.folder / name)):
            raise Denied(Word.NOT_FOUND, f"there is no such place any more in the queue {queue}; attach anew")

    def _listen(self, path: Path) -> int:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return bind_unix(path).detach()

    async def detach(self, place: Attached, *, may_come_back: bool = False) -> None:
        """A process has ended its connection; returns when no front sends it anything any more."""
        if self.attached.get(place.name) is not place:
            return
        self._drop(place, may_come_back=may_come_back)
        self.tell([place.queue])
        with trio.CancelScope(shield=True):
            await self.family.ask_all({"do": "load"})  # answered after what was told before it

    def _drop(self, place: Attached, *, may_come_back: bool = False) -> None:
        del self.attached[place.name]
        if not may_come_back:
            with suppress(OSError):
                place.path.chmod(0)
        place.line.cancel()

    # ------------------------------------------------------------------ fronts

    def tell(self, queues: Iterable[str], member: Member | None = None) -> None:
        """Tell the fronts, or one of them, where the processes of `queues` are."""
        data: dict[str, Any] = {"do": "places", "pools": {}, "off": {}, "limits": {}}
        for queue in queues:
            data["pools"][queue] = [one.address for one in self.of(queue)]
            data["limits"] |= {one.address: one.concurrency for one in self.of(queue) if one.concurrency}
        if not data["pools"]:
            return
        if member is not None:
            member.line.tell(data)
        else:
            self.family.tell_all(data)

    def ready(self, member: Member) -> None:
        """A front has begun to serve."""
        self.tell(dict.fromkeys(one.queue for one in self.attached.values()), member)

    def wanted(self, pools: list[str]) -> None:
        """Nobody is started here: whoever is to come comes by himself."""

    def committed(self, config: Config) -> None:
        """Another configuration serves: new pools among it learn their places, and places whose queue has gone, or is a
        pool's now, are none any more."""
        changed = [
            one for one in self.attached.values()
            if one.queue not in config.pools or one.is_pools != self._is_pools(one.queue)
        ]  # fmt: skip
        for place in changed:
            self._drop(place)
            self.family.remark(f"the queue {place.queue} is not what pid {place.pid} was attached to: it is detached")
        self.tell([queue for queue in config.pools if self.of(queue) or any(one.queue == queue for one in changed)])

    def check(self, config: Config) -> None:
        """Nothing of a configuration can be wrong here."""

    # ------------------------------------------------------------------ another control's

    def adopt(self, queues: Iterable[str]) -> None:
        """Take the places over that another control has left."""
        self.attached |= {one.name: one for one in self._left({hash_of(queue): queue for queue in queues})}

    async def expect(self) -> None:
        """Let those go whose process does not call in time."""
        before = list(self.attached.values())
        if before:
            await trio.sleep(COMES_BACK)
        for place in before:
            if not place.who:
                self.family.remark(f"the queue {place.queue}: a process that was attached has not come back")
                await self.detach(place, may_come_back=True)

    def _left(self, queues: dict[str, str]) -> Iterator[Attached]:
        """The sockets in the folder on which somebody listens."""
        with suppress(FileNotFoundError):
            for path in sorted(self.folder.iterdir()):
                found = _NAME.fullmatch(path.name)
                if found is None:
                    continue
                if found[1] in queues and not is_left(path) and listens(path):
                    queue = queues[found[1]]
                    yield Attached(queue, path.name, path, is_pools=self._is_pools(queue))

    def _tidy(self) -> None:
        """Remove the files of places that are nobody's."""
        table: frozenset[str] | None = None  # read once: there may be many
        with suppress(OSError):
            for path in self.folder.iterdir():
                if path.name in self.attached:
                    continue
                if table is None:
                    table = bound_here()
                if str(path) not in table if table is not None else not takes_connections(path):
                    path.unlink(missing_ok=True)


def hash_of(queue: str) -> str:
    """What stands for the name of a queue in the name of a file; nobody finds another queue with the same."""
    return blake2b(queue.encode(), digest_size=8).hexdigest()


def is_left(path: Path) -> bool:
    """Whether its process has detached."""
    try:
        return not path.stat().st_mode & 0o777
    except OSError:  # some servers remove it, and still listen
        return False


def listens(path: Path, table: Path = Path("/proc/net/unix")) -> bool:
    """Whether a process listens on a Unix socket that was bound here (proc(5)); where the kernel shows no such table,
    a connect shows it, which the process may wonder about."""
    found = bound_here(table)
    return takes_connections(path) if found is None else str(path) in found


def bound_here(table: Path = Path("/proc/net/unix")) -> frozenset[str] | None:
    """The paths of the Unix sockets that listen; None: the kernel shows no table of them."""
    try:
        lines = table.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    every = (line.split(None, 7) for line in lines)  # Num RefCount Protocol Flags Type St Inode Path
    return frozenset(
        words[7] for words in every
        if len(words) == 8 and words[7].startswith("/") and int(words[3], 16) & SO_ACCEPTCON
    )  # fmt: skip


def takes_connections(path: Path) -> bool:
    """Whether a process accepts on a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:  # its backlog is full
            return True
        except OSError:
            return False
    return True
