"""What the connections of one front share: the current world, the log, counters, and who is connected."""

from __future__ import annotations

import base64
import math
import os
import traceback
import types
from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import trio

from frontd.lanes.driven import Life
from frontd.lanes.reactor import Reactor
from frontd.model.errors import Reason
from frontd.model.headers import Headers
from frontd.model.messages import Client, Exchange
from frontd.pipeline.logwriter import LogWriter
from frontd.pipeline.world import World

MOST_POOLS = 4096  # whose failures are counted


class Lives(NamedTuple):
    """What connections do: a turn when bytes have come, an end when they were idle for too long."""

    turn: Callable[[Any], Life]
    end: Callable[[Any], Life]


class Service:
    """`world` is replaced as a whole on reload; the rest lives as long as the front."""

    def __init__(self, world: World, log: LogWriter, lives: Lives) -> None:
        self.world = world
        self.log = log
        self.lives = lives
        self.reactor = Reactor(self.log_fault)
        self.reasons: Counter[str] = Counter()
        self.failed: dict[str, Counter[str]] = {}  # by pool: reasons, and "5xx" for answers with such a status
        self.connections: dict[Hashable, None] = {}  # a set of half the size
        self.by_listener: Counter[Hashable] = Counter()
        self.underscores = 0
        self.crowd = world.shared.slots.counter("connections")  # of all fronts
        self.draining = False
        self.idle_until = -math.inf  # until then (trio's clock) connections that are to end may be idle
        self.emptied = trio.Event()

    def enter(self, connection: Hashable, listener: Hashable) -> None:
        """A connection was accepted by `listener`."""
        self.connections[connection] = None
        self.by_listener[listener] += 1
        self.crowd.add(1)

    def leave(self, connection: Hashable, listener: Hashable) -> None:
        """A connection of `listener` has ended."""
        self.connections.pop(connection, None)
        self.by_listener[listener] -= 1
        self.crowd.add(-1)
        if not self.connections:
            self.emptied.set()
            self.emptied = trio.Event()

    def log_exchange(self, exchange: Exchange, seconds: float) -> None:
        """Count an exchange and write its line."""
        if exchange.reason is not None or exchange.status >= 500:
            self._count_failure(exchange)
        self.underscores += exchange.underscores
        for where, error in exchange.faults:
            self.log_fault(f"request {exchange.number}: plugin {where}", error, secrets_of(exchange))
            error.__traceback__ = None  # which leads back to the exchange
        self.log.exchange(exchange, seconds, exchange.started_at)

    def _count_failure(self, exchange: Exchange) -> None:
        counters = self.failed.get(exchange.pool)
        if counters is None:
            if len(self.failed) >= MOST_POOLS:  # targets without end, and nobody has asked for the counters
                self.failed.clear()
            counters = self.failed[exchange.pool] = Counter()
        if exchange.reason is not None:
            self.reasons[exchange.reason.word] += 1
            counters[exchange.reason.word] += 1
        if exchange.status >= 500:
            counters["5xx"] += 1

    def forget_failures(self, pools: Container[str]) -> None:
        """Keep those of `pools` alone; targets that plugins route to come and go."""
        for name in [name for name in self.failed if name not in pools]:
            del self.failed[name]

    def log_connection(self, client: Client, reason: Reason, detail: str) -> None:
        """Count and log a connection that ended without an exchange."""
        self.reasons[reason.word] += 1
        self.log.connection(client, reason, detail)

    def log_fault(self, what: str, error: BaseException, secrets: Iterable[str] = ()) -> None:
        """A fault of our own or of a plugin, with its traceback; `secrets` are covered, wherever they stand."""
        text = "".join(traceback.format_exception(type(error), error, _from_outside(error)))
        for secret in secrets:
            text = text.replace(secret, "***")
        for line in text.splitlines():
            self.log.remark(f"{what}: {line}")


def _from_outside(error: BaseException) -> types.TracebackType | None:
    """The traceback of `error` from the first place on that is not our own: a plugin's; all of it when there is
    none."""
    found = error.__traceback__
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        found = found.tb_next
    return found or error.__traceback__


_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
CREDENTIALS = (b"authorization", b"proxy-authorization", b"cookie")
SHORTEST_SECRET = 4  # characters; what is shorter stands in any text by chance


def secrets_of(exchange: Exchange) -> list[str]:
    """What the client of an exchange is known by, longest first: tokens, cookies, a password.  The text of an exception
    often repeats the value that it is about (``KeyError: 'the token'``)."""
    found: set[str] = set()
    fields = exchange.fields or Headers()
    for name in CREDENTIALS:
        for value in fields.get_all(name):
            words = value.decode("latin-1").replace(";", " ").split()
            found.update(words[1:] if name != b"cookie" else ())
            found.update(word.partition("=")[2] for word in words if name == b"cookie")
    for word in list(found):
        with suppress(ValueError):
            found.add(base64.b64decode(word, validate=True).decode().partition(":")[2])
    return sorted((word for word in found if len(word) >= SHORTEST_SECRET), key=len, reverse=True)
