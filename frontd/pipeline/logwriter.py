"""The writer of the logs, which never blocks the loop.

How it works
------------
A line is formatted where the exchange ends and appended to a bounded buffer; a thread writes what it finds there.  When
the buffer is full (a stuck pipe), or a write fails (a full disk), lines are dropped and counted, traffic goes on, and
stderr is told, once a minute at most.  The thread waits a moment after it was woken, so that a busy front wakes it once
for many lines and many lines are one write.  Files rotate by size and are reopened on request (SIGUSR1, as nginx does),
so logrotate works too.  There is one thread for both logs: while one of them is stuck, both wait in the buffer.

Each front has a writer of its own; several of them may write to one file or pipe (see `logsink`).

Invariants
----------
* Lines of exchanges and connections are appended by the loop alone, without a lock: each counter has one thread that
  changes it.  Remarks come from any thread (plugins, the watchdog), one at a time (`_remarking`).
* Only the writer's thread opens, writes and renames.
* A line is in the log, in the buffer, or counted as dropped.
* The thread says that it is going to wait (`_is_idle`) before it looks for lines the last time, and whoever appends
  looks at that afterwards: no line is left waiting.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from frontd.config.model import LogFile
from frontd.model.errors import Reason
from frontd.model.messages import Client, Exchange
from frontd.pipeline.accesslog import ACCESS, ACCESS_FIELDS, ERROR_FIELDS, ERRORS, MAX_LINE
from frontd.pipeline.logsink import Sink

BUFFERED = 8 * 1024 * 1024  # bytes of lines that may wait for the writer: about a second of 15,000 requests each second
OVERHEAD = 100  # bytes that a waiting line costs beside its text
GATHER = 0.02  # s the writer waits for company of a first line
BATCH = 1024  # lines taken at a time
COMPLAIN_EVERY = 60.0  # s


class LogWriter:
    """Access and error log of one process.  The methods for lines never block and never raise.

    `leads`: streams and pipes that get W3C lines get the directives of the format first; of several processes that
    write to the same ones, one leads.  Files have them in any case.
    """

    def __init__(self, access: LogFile, error: LogFile, leads: bool = True) -> None:
        self._leads = leads
        self._remarking = threading.Lock()
        self._sinks: list[Sink] = []
        self._retired: deque[Sink] = deque()
        self._bytes_in = 0  # the loop's
        self._overflowed = 0  # lines, the loop's
        self._remarked = 0  # bytes, under `_remarking`
        self._unheard = 0  # lines, under `_remarking`
        self._bytes_out = 0  # the writer's
        self._unwritten = 0  # lines, the writer's
        self._is_idle = False
        self._wake = threading.Event()
        self._reopen = threading.Event()
        self._stop = threading.Event()
        self._complained: dict[str, float] = {}
        self.change(access, error)
        self._thread = threading.Thread(target=self._run, name="frontd-log", daemon=True)
        self._thread.start()

    def change(self, access: LogFile, error: LogFile) -> None:
        """Write to `access` and `error` from the next line on; the lines before it go where they were meant to go."""
        with self._remarking:  # a remark that has chosen its sink is in it before that is retired
            before = self._sinks
            self._format = ACCESS[access.format]
            self._error, self._remark = ERRORS[error.format]
            self._access_to = self._sink("access log", access, ACCESS_FIELDS)
            self._error_to = self._sink("error log", error, ERROR_FIELDS)
            self._has_access = self._access_to.is_on
            self._add_access = self._access_to.lines.append
            self._sinks = [self._access_to, self._error_to]
            self._retired.extend(sink for sink in before if sink not in self._sinks)
        self._wake_up()

    def _sink(self, name: str, settings: LogFile, fields: str) -> Sink:
        standing = [sink for sink in self._sinks if sink.name == name and sink.settings == settings]
        return standing[0] if standing else Sink(name, settings, fields, self._complain, self._leads)

    @property
    def dropped(self) -> int:
        """Lines lost since the start: the buffer was full, or they could not be written."""
        return self._overflowed + self._unheard + self._unwritten

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to be written."""
        return self._is_idle

    def exchange(self, exchange: Exchange, seconds: float, at: float) -> None:
        """The one line of an exchange, and one in the error log when it had a reason."""
        if self._has_access:
            line = self._format(exchange, seconds, at).encode("utf-8", "replace")
            bytes_in = self._bytes_in + len(line) + OVERHEAD
            if bytes_in + self._remarked - self._bytes_out > BUFFERED:
                self._overflowed += 1
            else:
                self._bytes_in = bytes_in
                self._add_access(line)
                if self._is_idle:
                    self._wake_up()
        reason = exchange.reason
        # the first request of a browser that has to log on is no failure; the access log has its reason
        if reason is not None and reason is not Reason.LogonRequired and self._error_to.is_on:
            self._put(self._error(exchange.client, reason, exchange.detail, at, exchange, exchange.status))

    def connection(self, client: Client, reason: Reason, detail: str) -> None:
        """A connection that ended with a reason and without an exchange."""
        if self._error_to.is_on:
            self._put(self._error(client, reason, detail, time.time()))

    def _put(self, text: str) -> None:
        """Append a line of the loop's to the error log."""
        line = text.encode("utf-8", "replace")
        bytes_in = self._bytes_in + len(line) + OVERHEAD
        if bytes_in + self._remarked - self._bytes_out > BUFFERED:
            self._overflowed += 1
            return
        self._bytes_in = bytes_in
        self._error_to.lines.append(line)
        if self._is_idle:
            self._wake_up()

    def remark(self, text: str) -> None:
        """A message of the server itself (start, reload, audit); from any thread."""
        with self._remarking:
            if not self._error_to.is_on:
                return
            line = self._remark(text, time.time()).encode("utf-8", "replace")
            if len(line) >= MAX_LINE:  # everything else fits by its making
                line = line[: MAX_LINE - 1].decode("utf-8", "ignore").encode()
            cost = len(line) + OVERHEAD
            if self._bytes_in + self._remarked + cost - self._bytes_out > BUFFERED:
                self._unheard += 1
                return
            self._remarked += cost
            self._error_to.lines.append(line)
        if self._is_idle:
            self._wake_up()

    def reopen(self) -> None:
        """Close and open the files again, for external rotation."""
        self._reopen.set()
        self._wake_up()

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most `timeout` seconds."""
        self._stop.set()
        self._wake_up()
        self._thread.join(timeout)

    def _wake_up(self) -> None:
        self._is_idle = False
        self._wake.set()

    # --- the writer thread

    def _run(self) -> None:
        self._open()  # a path that cannot be opened is told at once, not after the first request
        told = 0
        while True:
            self._wake.clear()
            self._is_idle = True
            if not self._has_work():
                self._wake.wait()
            self._is_idle = False
            self._stop.wait(GATHER)
            reopen = self._reopen.is_set()
            retired = [self._retired.popleft() for _ in range(len(self._retired))]
            for sink in (*retired, *self._sinks):  # before anything is closed: they were meant for what is open
                self._write_what_waits(sink)
            if reopen:
                self._reopen.clear()
                self._close(self._sinks)
            self._close(retired)
            self._open()
            overflowed = self._overflowed + self._unheard
            if overflowed > told:
                told = overflowed
                self._complain("log buffer", "it was full")
            if self._stop.is_set() and not self._retired and not any(sink.lines for sink in self._sinks):
                self._close(self._sinks)
                return

    def _has_work(self) -> bool:
        asked = self._stop.is_set() or self._reopen.is_set()
        return asked or bool(self._retired) or any(sink.lines for sink in self._sinks)

    def _write_what_waits(self, sink: Sink) -> None:
        """Lines that come meanwhile wait for company of their own: else a busy front would have a write for each."""
        left = len(sink.lines)
        while left:
            batch = [sink.lines.popleft() for _ in range(min(left, BATCH))]
            left -= len(batch)
            try:
                sink.write(batch)
            except (OSError, ValueError) as error:
                self._unwritten += len(batch) - sink.done
                self._give_up(sink, error)
            # only now: what is on its way out still takes room
            self._bytes_out += sum(map(len, batch)) + len(batch) * OVERHEAD

    def _open(self) -> None:
        for sink in self._sinks:
            try:
                sink.open()
            except (OSError, ValueError) as error:  # ValueError: a path with a NUL
                self._give_up(sink, error)

    def _close(self, sinks: Iterable[Sink]) -> None:
        for sink in sinks:
            sink.close()

    def _give_up(self, sink: Sink, error: Exception) -> None:
        sink.close()
        self._complain(sink.label, getattr(error, "strerror", None) or str(error))

    def _complain(self, what: str, problem: str) -> None:
        """Say once a minute on stderr that lines are lost; nothing else can be done about a full disk here."""
        now = time.monotonic()
        last = self._complained.get(what)
        if last is None or now - last >= COMPLAIN_EVERY:
            self._complained[what] = now
            with suppress(OSError):
                os.write(2, f"frontd: {what}: {problem}; {self.dropped} lines lost so far\n".encode())
