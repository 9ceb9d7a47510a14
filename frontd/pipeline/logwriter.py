"""The writer of the logs, which never blocks the loop.

How it works
------------
A line is formatted where the exchange ends and appended to a bounded buffer; a thread writes what it finds there.  When
the buffer is full (a stuck pipe), or a write fails (a full disk), lines are dropped and counted, traffic goes on, and
stderr is told, once a minute at most.  The thread waits a moment after it was woken, so that a busy front wakes it once
for many lines.  Files rotate by size and are reopened on request (SIGUSR1, as nginx does), so logrotate works too.
There is one thread for both logs: while one of them is stuck, both wait in the buffer.

Invariants
----------
* Lines are appended by the loop and, remarks only, by threads of plugins and of the watchdog: one at a time (`_adding`,
  0.2 us).  Only the writer's thread opens, writes and renames.
* A line is in the log, in the buffer, or counted as dropped.
* A line that could not be written whole is ended by a line break before the next one, so that it spoils no other.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path

from frontd.config.model import LogFile
from frontd.model.errors import Reason
from frontd.model.messages import Client, Exchange
from frontd.pipeline.accesslog import ACCESS, ACCESS_FIELDS, ERROR_FIELDS, ERRORS, MAX_LINE, stamp

BUFFERED = 8 * 1024 * 1024  # bytes of lines that may wait for the writer: about a second of 15,000 requests each second
OVERHEAD = 100  # bytes that a waiting line costs beside its text
GATHER = 0.02  # s the writer waits for company of a first line
COMPLAIN_EVERY = 60.0  # s


def _header(fields: str) -> str:
    return f"#Software: frontd\n#Version: 1.0\n#Date: {stamp(time.time())}\n#Fields: {fields}\n"


class Sink:
    """One log's way out: a file with rotation, or a standard stream.  Used by the writer thread only."""

    def __init__(self, name: str, settings: LogFile, fields: str, complain: Callable[[str, str], None]) -> None:
        self.name = name
        self.settings = settings
        self.label = f"{name} {settings.to}"
        self.is_on = settings.to != "off"
        self._fields = fields if settings.format == "w3c" else ""
        self._complain = complain
        self._fd: int | None = None
        self._size = 0
        self._rotates = False
        self._torn = False  # what was written last does not end in a line break
        self._written = 0  # bytes of what is being written

    def open(self) -> None:
        """Open what is not open yet, and begin with the directives of the format.  Raises `OSError`."""
        to = self.settings.to
        if self._fd is not None or not self.is_on:
            return
        if isinstance(to, Path):
            self._open_file(to)
        else:
            if (sys.__stdout__ if to == "stdout" else sys.__stderr__) is None:
                # whatever has this number by now is not ours to write to
                raise OSError(errno.EBADF, f"{to} is closed")
            self._fd = 1 if to == "stdout" else 2
        if self._fields:
            self._write(_header(self._fields).encode())

    def _open_file(self, path: Path) -> None:
        with suppress(FileExistsError):  # not a directory: `open` says it better
            path.parent.mkdir(parents=True, exist_ok=True)
        # O_NONBLOCK means nothing to a file; a FIFO that nobody reads is an error with it and not a wait
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        self._fd = os.open(path, flags, 0o666)
        self._size = os.fstat(self._fd).st_size
        # Only what has this name itself is renamed: never a device such as /dev/null, nor a link such as /dev/stdout.
        self._rotates = stat.S_ISREG(path.lstat().st_mode)
        if self._rotates:
            self._torn = self._size > 0 and not _ends_in_line_break(path)

    def write(self, lines: deque[bytes]) -> None:
        """Write whole lines; each leaves `lines` once it is written.  Raises `OSError`."""
        while lines:
            self.open()
            count = self._how_many(lines)
            if not count:
                self._rotate()
                continue
            data = b"".join(islice(lines, count))
            try:
                self._write(data)
            finally:
                for _ in range(data.count(b"\n", 0, self._written)):
                    lines.popleft()

    def _how_many(self, lines: deque[bytes]) -> int:
        """How many of `lines` go out in one write."""
        if not isinstance(self.settings.to, Path):
            return 1  # lines up to PIPE_BUF stay whole between processes when each is one write
        if not self._rotates:
            return len(lines)
        left = self.settings.max_size - self._size
        count = 0
        for line in lines:
            left -= len(line)
            if left < 0:
                break
            count += 1
        return count

    def _write(self, data: bytes) -> None:
        """Write `data`, after the line break that is owed.  Raises `OSError`; `_written` bytes of it are out then."""
        assert self._fd is not None
        self._written = 0
        owed = int(self._torn)
        view = memoryview(b"\n" * owed + data)
        while view:
            try:
                size = os.write(self._fd, view)
            except BlockingIOError:  # somebody made the stream non-blocking; this thread may wait
                writable = select.poll()
                writable.register(self._fd, select.POLLOUT)
                writable.poll()
                continue
            self._torn = view[size - 1] != 0x0A
            self._written += size - owed
            self._size += size
            view, owed = view[size:], 0

    def _rotate(self) -> None:
        """access.log → access.log.1 → … ; the oldest of `keep` goes.  A file that cannot be renamed is written on."""
        path = self.settings.to
        assert isinstance(path, Path)
        numbered = [path, *(path.with_name(f"{path.name}.{n}") for n in range(1, self.settings.keep + 1))]
        try:
            for newer, older in reversed(list(pairwise(numbered))):
                with suppress(FileNotFoundError):
                    newer.replace(older)
        except OSError as error:
            self._size = 0  # the next try is a whole `max_size` away
            self._complain(self.label, f"not rotated: {error.strerror}")
            return
        self.close()

    def close(self) -> None:
        """Close a file; a standard stream stays open."""
        if self._fd is not None and isinstance(self.settings.to, Path):
            os.close(self._fd)
            self._fd = None


def _ends_in_line_break(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
    except OSError:  # a file that may be written and not read
        return True


class LogWriter:
    """Access and error log of one process.  The methods for lines never block and never raise."""

    def __init__(self, access: LogFile, error: LogFile) -> None:
        self._adding = threading.Lock()
        self._lines: deque[tuple[Sink, bytes]] = deque()
        self._sinks: list[Sink] = []
        self._retired: list[Sink] = []
        self._bytes_in = 0  # under `_adding`, as are the lines that overflowed
        self._overflowed = 0
        self._bytes_out = 0  # the writer's
        self._unwritten = 0  # lines, the writer's
        self._wake = threading.Event()
        self._reopen = threading.Event()
        self._stop = threading.Event()
        self._complained: dict[str, float] = {}
        self.change(access, error)
        self._thread = threading.Thread(target=self._run, name="frontd-log", daemon=True)
        self._thread.start()

    def change(self, access: LogFile, error: LogFile) -> None:
        """Write to `access` and `error` from the next line on; the lines before it go where they were meant to go."""
        self._format = ACCESS[access.format]
        self._error, self._remark = ERRORS[error.format]
        before = self._sinks
        self._access_to = self._sink("access log", access, ACCESS_FIELDS)
        self._error_to = self._sink("error log", error, ERROR_FIELDS)
        self._sinks = [self._access_to, self._error_to]
        self._retired += [sink for sink in before if sink not in self._sinks]
        self._wake.set()

    def _sink(self, name: str, settings: LogFile, fields: str) -> Sink:
        standing = [sink for sink in self._sinks if sink.name == name and sink.settings == settings]
        return standing[0] if standing else Sink(name, settings, fields, self._complain)

    @property
    def dropped(self) -> int:
        """Lines lost since the start: the buffer was full, or they could not be written."""
        return self._overflowed + self._unwritten

    def exchange(self, exchange: Exchange, seconds: float, at: float) -> None:
        """The one line of an exchange, and one in the error log when it had a reason."""
        if self._access_to.is_on:
            self._put(self._access_to, self._format(exchange, seconds, at))
        # the first request of a browser that has to log on is no failure; the access log has its reason
        if exchange.reason not in (None, Reason.LogonRequired) and self._error_to.is_on:
            assert exchange.reason is not None
            line = self._error(exchange.client, exchange.reason, exchange.detail, at, exchange, exchange.status)
            self._put(self._error_to, line)

    def connection(self, client: Client, reason: Reason, detail: str) -> None:
        """A connection that ended with a reason and without an exchange."""
        if self._error_to.is_on:
            self._put(self._error_to, self._error(client, reason, detail, time.time()))

    def remark(self, text: str) -> None:
        """A message of the server itself (start, reload, audit)."""
        if self._error_to.is_on:
            self._put(self._error_to, self._remark(text, time.time()))

    def _put(self, sink: Sink, line: str) -> None:
        data = line.encode("utf-8", "replace")
        if len(data) >= MAX_LINE:  # a remark; everything else fits by its making
            data = data[: MAX_LINE - 1].decode("utf-8", "ignore").encode()
        cost = len(data) + OVERHEAD
        with self._adding:
            if self._bytes_in - self._bytes_out + cost > BUFFERED:
                self._overflowed += 1
                return
            self._bytes_in += cost
            self._lines.append((sink, data + b"\n"))
        if not self._wake.is_set():
            self._wake.set()

    def reopen(self) -> None:
        """Close and open the files again, for external rotation."""
        self._reopen.set()
        self._wake.set()

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most `timeout` seconds."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout)

    # --- the writer thread

    def _run(self) -> None:
        self._open()  # a path that cannot be opened is told at once, not after the first request
        told = 0
        while True:
            self._wake.wait()
            self._stop.wait(GATHER)
            self._wake.clear()
            retired, self._retired = self._retired, []
            reopen = self._reopen.is_set()
            while self._lines:  # before anything is closed: they were meant for the files that are open
                self._write_batch()
            if reopen:
                self._reopen.clear()
                self._close(self._sinks)
            self._close(retired)
            self._open()
            if self._overflowed > told:
                told = self._overflowed
                self._complain("log buffer", "it was full")
            if self._stop.is_set() and not self._lines:
                self._close(self._sinks)
                return

    def _write_batch(self) -> None:
        batch: dict[Sink, deque[bytes]] = {}
        taken = 0
        for _ in range(min(len(self._lines), 1024)):
            sink, line = self._lines.popleft()
            batch.setdefault(sink, deque()).append(line)
            taken += len(line) - 1 + OVERHEAD
        for sink, lines in batch.items():
            try:
                sink.write(lines)
            except (OSError, ValueError) as error:
                self._unwritten += len(lines)
                self._give_up(sink, error)
        self._bytes_out += taken  # only now: what is on its way out still takes room

    def _open(self) -> None:
        for sink in self._sinks:
            try:
                sink.open()
            except (OSError, ValueError) as error:  # ValueError: a path with a NUL
                self._give_up(sink, error)

    def _close(self, sinks: list[Sink]) -> None:
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
