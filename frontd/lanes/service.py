"""What the connections of one front share: the current world, the log, counters, and who is connected."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Hashable

import trio

from frontd.lanes.hangup import Hangups
from frontd.model.errors import Reason
from frontd.model.messages import Client, Exchange
from frontd.pipeline.logwriter import LogWriter
from frontd.pipeline.world import World


class Service:
    """`world` is replaced as a whole on reload; the rest lives as long as the front."""

    def __init__(self, world: World, log: LogWriter) -> None:
        self.world = world
        self.log = log
        self.hangups = Hangups()
        self.reasons: Counter[str] = Counter()
        self.connections: set[Hashable] = set()
        self.underscores = 0
        self.draining = False
        self.emptied = trio.Event()

    def leave(self, connection: Hashable) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        if not self.connections:
            self.emptied.set()
            self.emptied = trio.Event()

    def log_exchange(self, exchange: Exchange, seconds: float) -> None:
        """Count an exchange and write its line."""
        if exchange.reason is not None:
            self.reasons[exchange.reason.word] += 1
        self.underscores += exchange.underscores
        for where, error in exchange.faults:
            self.log_fault(f"request {exchange.number}: plugin {where}", error)
        self.log.exchange(exchange, seconds, exchange.started_at)

    def log_connection(self, client: Client, reason: Reason, detail: str) -> None:
        """Count and log a connection that ended without an exchange."""
        self.reasons[reason.word] += 1
        self.log.connection(client, reason, detail)

    def log_fault(self, what: str, error: Exception) -> None:
        """A fault of our own, with its traceback."""
        for line in "".join(traceback.format_exception(error)).splitlines():
            self.log.remark(f"{what}: {line}")
