"""What the control sockets answer about reservations and queues: who may, what changes, and who is attached.

How it works
------------
| call | by whom | |
|---|---|---|
| ``GET /urlacl``, ``GET /queues`` | administrators | all reservations; all queues with their processes |
| ``POST /urlacl``, ``DELETE /urlacl?url=`` | administrators, holders of a delegate right | a reservation |
| ``POST /attach`` | whom a reservation allows | register prefixes for a queue and attach to it |
| ``DELETE /queues?name=`` | the queue's creator, administrators | a queue with its registrations |

Who calls is known in one of two ways.  A pool's own attach socket (`pools.NAME.attach.socket`) is the identity of
whoever can open it: its calls are the pool's, whatever the kernel says of the process, and it takes ``POST /attach``
and nothing else.  On the main control socket it is the uid and the groups that the kernel says (SO_PEERCRED,
SO_PEERGROUPS).

``POST /attach`` is one exchange that lasts: its answer begins with a line of JSON, with which the listening socket
comes (SCM_RIGHTS), and has no end as long as the process is attached.  When the process closes its half, it is
detached, and then frontd ends the answer; when the process dies, the kernel does the same for it.

Invariants
----------
* uid 65534 and pid 0 mean that the kernel does not know the caller here (another user or pid namespace): such a caller
  holds nothing, unless it is root by the main control socket.
* Every change, and every refusal, is written down: who, what, from where, what came of it.  Of one caller's refusals
  at most `MOST_REFUSALS` a second are; how many were not, the next line says.
* An answer says whose reservation stands in the way, and nothing else about others.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from frontd.config.aclchecks import is_served
from frontd.config.urlacl import gid_of, uid_of, user_account
from frontd.model.errors import Reason
from frontd.model.reservations import Account, Denied, Holder, Namespace, Reservation, Word, check_name
from frontd.model.urlprefix import UrlPrefix
from frontd.net.streams import Broken, Stream
from frontd.processes.attached import Attached, Places
from frontd.processes.calls import Answerer, Call, Caller, Reply, as_json, may_call
from frontd.processes.claims import queue_in_file, registered_in_file
from frontd.processes.doors import Doors
from frontd.processes.family import Family
from frontd.processes.registry import Registry
from frontd.processes.runtime import BuildProblem
from frontd.processes.statefiles import StateProblem
from frontd.processes.status import iso

MOST_REFUSALS = 10  # lines of the log a second, of one caller
MOST_CALLERS = 1024  # that are remembered for it
UNKNOWN = 65534  # the overflow uid (user_namespaces(7))
MODES = ("create", "attach", "create-or-attach")
_STATUS = {Word.ACCESS_DENIED: 403, Word.ALREADY_EXISTS: 409, Word.NOT_FOUND: 404, Word.SCHEME_CONFLICT: 409,
           Word.INVALID: 400, Word.TOO_MANY: 429}  # fmt: skip

Do = Callable[[Holder, Call], Awaitable[tuple[str, Reply]]]


class Tenants:
    """Answers for reservations and queues."""

    def __init__(self, family: Family, registry: Registry, places: Places) -> None:
        self.family = family
        self.registry = registry
        self.places = places
        self.doors = Doors(family, self.answer_pool, places.expect)
        self._refusals: dict[str, tuple[int, int]] = {}  # by who: the second, and how many came in it
        self.endpoints: dict[tuple[str, str], Answerer] = {
            ("GET", "/urlacl"): self.list_reservations,
            ("POST", "/urlacl"): partial(self._answer, "urlacl add", self.add_reservation),
            ("DELETE", "/urlacl"): partial(self._answer, "urlacl delete", self.delete_reservation),
            ("GET", "/queues"): self.list_queues,
            ("DELETE", "/queues"): partial(self._answer, "queue delete", self.delete_queue),
            ("POST", "/attach"): partial(self._answer, "attach", partial(self.attach, pool="")),
        }
        # what others than administrators may ask for; who holds what is looked at for each call
        self.open = frozenset({("POST", "/urlacl"), ("DELETE", "/urlacl"), ("DELETE", "/queues"), ("POST", "/attach")})

    # ------------------------------------------------------------------ who calls

    async def answer_pool(self, pool: str, call: Call) -> Reply:
        """The reply to one request on the attach socket of `pool`."""
        if (call.method, call.path) != ("POST", "/attach"):
            outcome = "this socket only attaches"
            self._audit_refusal(f"{call.method} {call.path}", call.caller, f"pool {pool}", outcome)
            return as_json({"error": "this socket takes POST /attach and nothing else"}, 403)
        holder = Holder(Account("pool", -1, pool))
        return await self._do("attach", partial(self.attach, pool=pool), holder, call)

    async def _answer(self, what: str, do: Do, call: Call) -> Reply:
        """The reply to one request on the main control socket."""
        try:
            holder = holder_of(call.caller)
        except Denied as denied:
            self._audit_refusal(what, call.caller, "nobody known", str(denied))
            return refusal(denied)
        return await self._do(what, do, holder, call)

    async def _do(self, what: str, do: Do, holder: Holder, call: Call) -> Reply:
        try:
            outcome, reply = await do(holder, call)
        except ValueError as error:
            outcome, reply = str(error), refusal(Denied(Word.INVALID, str(error)))
        except Denied as denied:
            outcome, reply = str(denied), refusal(denied)
        except (StateProblem, BuildProblem, OSError) as error:
            outcome, reply = str(error), as_json({"error": str(error)}, 503)
        else:
            self._audit(what, call.caller, str(holder), outcome)
            return reply
        self._audit_refusal(what, call.caller, str(holder), outcome)
        return reply

    def _audit_refusal(self, what: str, caller: Caller, who: str, outcome: str) -> None:
        """Write a refusal down; a caller that asks without end does not fill the disk."""
        now = int(time.monotonic())
        second, count = self._refusals.get(who, (now, 0))
        unsaid = 0
        if second != now:
            unsaid, count = max(0, count - MOST_REFUSALS), 0
        elif who not in self._refusals and len(self._refusals) >= MOST_CALLERS:
            self._refusals.clear()
        self._refusals[who] = (now, count + 1)
        if count < MOST_REFUSALS:
            also = f"; {unsaid} more were refused before" if unsaid else ""
            self._audit(what, caller, who, f"refused, {outcome[:900]}{also}")

    def _audit(self, what: str, caller: Caller, who: str, outcome: str) -> None:
        self.family.remark(f"audit: {what} by {printable(who)} ({caller}): {printable(outcome)}")

    # ------------------------------------------------------------------ reservations

    async def list_reservations(self, _: Call) -> Reply:
        """Every reservation, with netsh's names."""
        space = self.registry.whole(self.family)
        queues = {str(claim.url): claim.queue for claim in space.claims()}
        return as_json({
            "reservations": [
                {
                    "url": str(one.url), "user": str(one.account), "listen": True, "delegate": one.delegate,
                    "configured": one.is_fixed, "queue": queues.get(str(one.url), ""),
                }
                for one in space.reservations
            ]
        })  # fmt: skip

    async def add_reservation(self, holder: Holder, call: Call) -> tuple[str, Reply]:
        """Reserve a prefix."""
        data = call.data()
        known = {"url", "user", "uid", "group", "pool", "delegate"}
        if strange := data.keys() - known:
            raise ValueError(f"{', '.join(sorted(strange))}: unknown; known are {', '.join(sorted(known))}")
        wanted = Reservation(url_in(data.get("url")), account_in(data), flag_in(data.get("delegate", False)))
        if wanted.account.kind == "pool":
            pool = self.family.base.pools.get(wanted.account.name)
            if pool is None or pool.attach is None:
                raise ValueError(f"there is no pool {wanted.account.name} with `attach` in the configuration")
        await self.registry.change(self.family, lambda space: space.reserve(holder, wanted))
        return f"{wanted.url} for {wanted.account}, ok", as_json({"url": str(wanted.url), "user": str(wanted.account)})

    async def delete_reservation(self, holder: Holder, call: Call) -> tuple[str, Reply]:
        """Take a reservation back."""
        url = url_in(call.argument("url"))
        await self.registry.change(self.family, lambda space: space.unreserve(holder, url))
        return f"{url}, ok", as_json({"url": str(url)})

    # ------------------------------------------------------------------ queues

    async def list_queues(self, _: Call) -> Reply:
        """Every queue that processes attach to, with those that are attached."""
        base, space = self.family.base, self.registry.whole(self.family)
        names = [*(name for name, pool in base.pools.items() if pool.attach), *(one.name for one in space.queues)]
        urls: dict[str, list[str]] = {}
        for claim in space.claims():
            urls.setdefault(claim.queue, []).append(str(claim.url))
        return as_json({
            "queues": [
                {
                    "name": name, "configured": name in base.pools,
                    "owner": str(owner.owner) if (owner := space.queue(name)) else f"pool {name}",
                    "urls": urls.get(name, []),
                    "processes": [
                        {
                            "pid": one.pid, "user": one.who, "since": iso(one.since), "concurrency": one.concurrency,
                            "address": one.address, "state": "attached" if one.who else "expected back",
                        }
                        for one in self.places.of(name)
                    ],
                }
                for name in dict.fromkeys(names)
            ]
        })  # fmt: skip

    async def delete_queue(self, holder: Holder, call: Call) -> tuple[str, Reply]:
        """Take a queue away to which nobody is attached."""
        name = call.argument("name")

        def without(space: Namespace) -> Namespace:  # asked when nobody else changes anything
            if not holder.is_admin:
                space.open(holder, name)  # others do not learn who is attached
            if count := len(self.places.of(name)):
                raise Denied(Word.ALREADY_EXISTS, f"{count} processes are attached to the queue {name}: end them first")
            return space.delete(holder, name)

        await self.registry.change(self.family, without)
        return f"{name}, ok", as_json({"name": name})

    async def attach(self, holder: Holder, call: Call, *, pool: str) -> tuple[str, Reply]:
        """Register and attach; `pool` is that of the socket, empty on the main one."""
        if call.caller.address:
            raise Denied(Word.ACCESS_DENIED, "processes attach through a Unix socket, which can hand one over")
        data = call.data()
        urls = [url_in(text) for text in strings_in(data, "urls")]
        mode, again = word_in(data, "mode") or "create-or-attach", word_in(data, "place")
        if mode not in MODES:
            raise ValueError(f"the mode is one of {', '.join(MODES)}")
        concurrency = count_in(data.get("concurrency"))
        name = word_in(data, "queue") or pool or (name_from(urls[0]) if urls else "")
        if not name:
            raise ValueError("name a queue, or a URL to register")
        if pool and name != pool:
            raise Denied(Word.ACCESS_DENIED, f"this socket is for the queue {pool}, not for {name}")
        if again:
            self.places.check_back(name, again)
        await self.registry.change(self.family, partial(self._registered, holder, name, mode, urls, again))
        place, fd = self.places.attach(name, str(holder), call.caller.pid, concurrency, again)
        self.places.tell([name])
        first = {"queue": name, "place": place.name, "urls": [str(url) for url in urls], "socket": fd is not None}
        reply = as_json(first)
        files = () if fd is None else (fd,)
        what = f"queue {name}{'' if fd is not None else ' again'}, {', '.join(map(str, urls)) or 'no URL'}, ok"
        return what, Reply(200, reply.content_type, reply.body, files=files, then=partial(self._accompany, place))

    def _registered(
        self, holder: Holder, name: str, mode: str, urls: list[UrlPrefix], again: str, space: Namespace
    ) -> Namespace:
        """The namespace with `urls` registered for the queue `name`, which is made if need be.  Raises `Denied`."""
        base = self.family.base
        check_name(name)
        configured = base.pools.get(name)
        exists = configured is not None or space.queue(name) is not None
        if configured is not None and not (
            configured.attach is not None and (holder.is_admin or holder.has(Account("pool", -1, name)))
        ):
            raise Denied(Word.ACCESS_DENIED, f"the pool {name} of the configuration is not {holder}'s to attach to")
        if mode == "create" and exists and not again:
            raise Denied(Word.ALREADY_EXISTS, f"there is a queue {name} already")
        if mode == "attach" and not exists:
            raise Denied(Word.NOT_FOUND, f"there is no queue {name}")
        wanted = [url for url in urls if not self._is_in_file(holder, name, url, space)]
        if configured is not None and not wanted:
            return space
        if space.queue(name) is None:
            owner = Holder(Account("pool", -1, name)) if configured is not None else holder
            space = space.create(owner, name)
        space = space.register(holder, name, wanted)
        if not exists and not holder.is_admin and not wanted:
            raise Denied(
                Word.ACCESS_DENIED, f"there is no queue {name}, and {holder} makes one only for a URL that is reserved"
            )
        return space

    def _is_in_file(self, holder: Holder, name: str, url: UrlPrefix, space: Namespace) -> bool:
        """Whether the configuration itself leads `url` to the queue.  Raises `Denied` when it leads it elsewhere."""
        base = self.family.base
        if not is_served(url, base.listen.values()):
            raise Denied(Word.INVALID, f"no listener serves {url}")
        there = registered_in_file(base, url)
        if not there:
            return False
        if queue_in_file(base, url) == name:
            return True
        space.granted(holder, url, name)  # who may not even ask is told so
        raise Denied(Word.ALREADY_EXISTS, f"{url} is {there} in the configuration")

    async def _accompany(self, place: Attached, stream: Stream) -> None:
        """Until the process has ended its half of the connection; what it says is of no interest.

        When it is control that ends, the process stays attached, and calls the next one.
        """
        try:
            with suppress(Broken), place.line:
                while await stream.receive(float("inf"), Reason.Timer_HeaderWait):
                    pass
        except trio.Cancelled:
            place.who = ""  # control ends, or the attach socket is another one now: it is expected back
            raise
        await self.places.detach(place)
        self.family.remark(f"audit: detach of {printable(place.who)} pid {place.pid}: queue {place.queue}")


# ---------------------------------------------------------------------------------------------------- callers


def holder_of(caller: Caller) -> Holder:
    """Who calls on the main control socket.  Raises `Denied` when the kernel cannot say."""
    if caller.address:  # the admin listener: who has its token is an administrator
        return Holder(Account("user", -1, f"the token, from {caller.address}"), is_admin=True)
    if caller.uid == 0 or (may_call(caller) and caller.uid != UNKNOWN):
        return Holder(user_account(caller.uid), caller.groups | {caller.gid}, is_admin=True)
    if caller.uid in (UNKNOWN, 2**32 - 1) or caller.pid <= 0:
        raise Denied(
            Word.ACCESS_DENIED, "the kernel cannot say who calls (another user or pid namespace): use the attach "
            "socket of a pool (`pools.NAME.attach.socket`)",
        )  # fmt: skip
    return Holder(user_account(caller.uid), caller.groups | {caller.gid})


def refusal(denied: Denied) -> Reply:
    """The answer to what is refused."""
    return as_json({"error": str(denied), "word": denied.word.value}, _STATUS[denied.word])


def printable(text: str) -> str:
    """`text` fit for a line of the log."""
    return "".join(char if char.isprintable() else "?" for char in text)[:1000]


# ---------------------------------------------------------------------------------------------------- what they say


def url_in(value: object) -> UrlPrefix:
    """A UrlPrefix.  Raises `ValueError`."""
    if not isinstance(value, str) or not value or len(value) > 4096:
        raise ValueError("a URL is expected: scheme://host:port/path/")
    return UrlPrefix.parse(value)


def word_in(data: dict[str, Any], key: str) -> str:
    """A text; empty: none.  Raises `ValueError`."""
    value = data.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"`{key}` is a text")
    return value


def strings_in(data: dict[str, Any], key: str) -> list[str]:
    """A list of texts.  Raises `ValueError`."""
    value = data.get(key) or []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"`{key}` is a list of texts")
    return value


def count_in(value: object) -> int | None:
    """A number of requests at once; None: any.  Raises `ValueError`."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 100000:
        raise ValueError("`concurrency` is a number from 1 to 100000")
    return value


def flag_in(value: object) -> bool:
    """Yes or no.  Raises `ValueError`."""
    if value in (True, "yes", "true"):
        return True
    if value in (False, "no", "false"):
        return False
    raise ValueError("`delegate` is yes or no")


def account_in(data: dict[str, Any]) -> Account:
    """Whom a reservation is for; a name must exist.  Raises `ValueError`."""
    given = [key for key in ("user", "uid", "group", "pool") if data.get(key) is not None]
    if len(given) != 1:
        raise ValueError("a reservation is for exactly one of user, uid, group and pool")
    key, value = given[0], data[given[0]]
    if key == "uid":
        text = str(value)
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,10}", text) or int(text) >= UNKNOWN_ID:
            raise ValueError("`uid` is a number")
        return user_account(int(text))
    if not isinstance(value, str) or not value:
        raise ValueError(f"`{key}` is a name")
    if key == "user":
        return Account("user", uid_of(value), value)
    return Account("group", gid_of(value), value) if key == "group" else Account("pool", -1, value)


UNKNOWN_ID = 2**32 - 1  # (uid_t) -1: nobody has it


def name_from(url: UrlPrefix) -> str:
    """The name of a queue that nobody has named: made of the prefix."""
    host = {"+": "", "*": "any-"}.get(url.host, f"{url.host}-")
    return re.sub(r"[^A-Za-z0-9_]+", "-", f"{url.scheme}-{url.port}-{host}{url.path.strip('/')}").strip("-")[:200]
