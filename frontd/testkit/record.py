"""What a site under test has to tell: the entries of its logs, what plugins remarked, and what they raised."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field

from frontd.config.model import LogFile
from frontd.lanes.service import Service
from frontd.lanes.turn import LIVES
from frontd.model.errors import Reason
from frontd.model.messages import Client, Exchange
from frontd.pipeline.logwriter import LogWriter
from frontd.pipeline.world import World
from frontd.testkit.messages import Entry

BY_PLUGIN = "plugin "  # how a remark of a plugin begins, which is then named


@dataclass(slots=True)
class Record:
    """Everything noted so far, newest last.  `unseen` are the faults since the test looked at them."""

    entries: list[Entry] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    def note_fault(self, text: str) -> None:
        """Keep a fault, and show it."""
        self.faults.append(text)
        self.unseen.append(text)
        sys.stderr.write(text)

    def check(self) -> None:
        """Raises `AssertionError` when there is an unseen fault."""
        if self.unseen:
            raise AssertionError(f"a plugin failed, and the test did not look at `errors`:\n{self.unseen[0]}")


class KeptLog(LogWriter):
    """A log that writes nothing; what plugins remark goes to the record."""

    def __init__(self, record: Record) -> None:
        off = LogFile(to="off", format="w3c")
        super().__init__(off, off)
        self._record = record

    def remark(self, text: str) -> None:
        """Keep a message of a plugin; those of the server (``serving: …``, ``reloaded: …``) would be in its way."""
        if text.startswith(BY_PLUGIN):
            self._record.remarks.append(text)


class KeptService(Service):
    """A service that keeps in the record what it logs."""

    def __init__(self, world: World, log: LogWriter, record: Record) -> None:
        super().__init__(world, log, LIVES)
        self._record = record

    def log_exchange(self, exchange: Exchange, seconds: float) -> None:
        """Count an exchange and keep its entry."""
        super().log_exchange(exchange, seconds)
        self._record.entries.append(Entry.of(exchange, seconds))

    def log_connection(self, client: Client, reason: Reason, detail: str) -> None:
        """Count a connection that ended without an exchange, and keep its entry."""
        super().log_connection(client, reason, detail)
        self._record.entries.append(Entry.of_connection(client, reason, detail))

    def log_fault(self, what: str, error: BaseException, secrets: Iterable[str] = ()) -> None:
        """Keep a fault with its traceback."""
        self._record.note_fault(f"{what}: {''.join(traceback.format_exception(error))}")
