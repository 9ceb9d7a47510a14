"""What the plays about logons share: a `Basic` with a users file, exchanges by hand, and threads that are all busy."""

from __future__ import annotations

import base64
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from frontd_plugins import _passwords as passwords
from frontd_plugins import basic

from frontd import Client, Context, Exchange, Headers, Identity, MemoryStore, Refuse, Request

ADDRESS = "192.0.2.1"
ALICE = f"alice:{passwords.make('secret', cost=4)}:staff,admins\n"
BOB = f"bob:{passwords.make('hunter2', cost=4)}\n"


class Desk:
    """A `Basic` on the site "main"; what it remarks can be awaited."""

    def __init__(self, folder: Path, text: str = ALICE + BOB, *, site: str = "main", **settings: object) -> None:
        self.file = folder / "users"
        self.write(text)
        self._remark, self._remarks = trio.open_memory_channel[str](100)
        self.context = Context(site, MemoryStore(1 << 20), self._remark.send_nowait)
        self.plugin = basic.Basic(basic.Basic.Settings(users_file=self.file, **settings), self.context)  # type: ignore[arg-type]

    def write(self, text: str) -> None:
        """Put another file in the place of the users file, as an editor does."""
        beside = self.file.with_name("beside")
        beside.write_text(text)
        os.replace(beside, self.file)

    async def remark(self) -> str:
        """The next remark."""
        return await self._remarks.receive()

    def at_once(self, it: Exchange) -> Identity | Refuse | None:
        """What is answered without waiting; a coroutine fails the play."""
        found = self.plugin.authenticate(it)
        if inspect.iscoroutine(found):
            found.close()
            raise AssertionError("it had to be hashed")
        assert not inspect.isawaitable(found)
        return found

    async def answer(self, it: Exchange) -> Identity | Refuse | None:
        """What is answered, however long it takes; as on a front, others have their turn before a coroutine begins."""
        found = self.plugin.authenticate(it)
        await trio.lowlevel.checkpoint()
        return await found if inspect.iscoroutine(found) else found  # type: ignore[return-value]

    async def logon(self, user: str, password: str, address: str = ADDRESS) -> str:
        """The user's name, or the reason of the refusal."""
        return outcome(await self.answer(exchange(basic_field(user, password), address=address)))

    def remembered(self, user: str, password: str, address: str = ADDRESS) -> str:
        """The same, but it may not take a hash."""
        return outcome(self.at_once(exchange(basic_field(user, password), address=address)))


def outcome(found: Identity | Refuse | None) -> str:
    """The name of who was let in, or the reason why nobody was."""
    assert found is not None
    return found.name if isinstance(found, Identity) else str(found.reason)


def basic_field(user: str, password: str) -> bytes:
    """The value of ``Authorization``."""
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


def exchange(*authorization: bytes, address: str = ADDRESS, scheme: str = "https", site: str = "main") -> Exchange:
    """A request for ``/`` with these ``Authorization`` fields."""
    client = Client(address, 50000, address, "192.0.2.80", 443, scheme, scheme, 443)
    headers = Headers.of(*((b"Authorization", value) for value in authorization))
    request = Request("GET", b"/", "/", "", "a.test", b"a.test", "1.1", headers, scheme=scheme)
    it = Exchange(client, request, 0.0, 0.0)
    it.site = site
    return it


@contextmanager
def no_thread_is_free() -> Iterator[None]:
    """While this lasts, whatever has to be hashed waits in line."""
    holders = [object() for _ in range(int(basic.THREADS.total_tokens))]
    for holder in holders:
        basic.THREADS.acquire_on_behalf_of_nowait(holder)
    try:
        yield
    finally:
        for holder in holders:
            basic.THREADS.release_on_behalf_of(holder)


def in_line() -> int:
    """How many hashes wait for a thread."""
    return basic.THREADS.statistics().tasks_waiting
