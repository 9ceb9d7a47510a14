"""Access log and error log: lines from exchanges, and the one writer that never blocks the loop.

How it works
------------
A line is formatted where the exchange ends and appended to a bounded buffer; a thread writes what it finds there.  When
the buffer is full (a full disk, a stuck pipe), lines are dropped and counted, and traffic goes on.  Files rotate by
size and are reopened on request (SIGUSR1, as nginx does), so logrotate works too.

Formats: W3C extended with IIS's field names, or JSON with a fixed set of fields; the error log has HTTPERR's shape.  In
the W3C shapes ``-`` stands for "missing", and spaces and controls become ``+`` (IIS's rule), so a line can never be
forged.

Invariant: no line is longer than `MAX_LINE` bytes: a pipe takes it whole (PIPE_BUF), so the lines of processes do not
mix.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from frontd.config.model import LogFile
from frontd.model.errors import Reason
from frontd.model.messages import Client, Exchange

MAX_LINE = 4096  # PIPE_BUF
MAX_URI = 640  # bytes of a URL in a line (HTTPERR cuts at 4096)
MAX_FIELD = 200  # bytes of a header value in a line
BUFFERED = 16384  # lines that may wait for the writer

_UNSAFE = re.compile(r"[\x00-\x20\x7f-\xa0\"]")

ACCESS_FIELDS = (
    "date time s-sitename s-ip cs-method cs-uri-stem cs-uri-query s-port cs-username c-ip cs-version cs(User-Agent) "
    "cs(Referer) cs-host sc-status sc-substatus sc-win32-status sc-bytes cs-bytes time-taken x-reason x-queue-wait x-target"
)
ERROR_FIELDS = (
    "date time c-ip c-port s-ip s-port cs-version cs-method cs-uri sc-status s-siteid s-reason s-queuename x-detail"
)


def safe(text: str, limit: int = MAX_FIELD) -> str:
    """A value for a W3C line: ``-`` when empty, spaces, controls and quotes as ``+``, cut at `limit` characters."""
    return _UNSAFE.sub("+", text[:limit]) or "-"


def stamp(seconds: float) -> str:
    """``2026-01-31 23:59:59`` in UTC (W3C logs are UTC always)."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def w3c_line(exchange: Exchange, seconds: float, at: float) -> str:
    """One access line with IIS's field names; `seconds` is the time taken, `at` the wall clock (s since the epoch)."""
    request, client, fields = exchange.request, exchange.client, exchange.fields
    values = [
        stamp(at), safe(exchange.site), safe(client.local_address),
        safe(exchange.method),
        safe(request.path if request else exchange.uri, MAX_URI),
        safe(request.query or "", MAX_URI) if request else "-",
        str(client.local_port), "-", safe(client.address),
        f"HTTP/{exchange.version}" if exchange.version else "-",
        safe(fields.text(b"user-agent")) if fields else "-",
        safe(fields.text(b"referer")) if fields else "-",
        safe(request.authority.decode("latin-1")) if request else "-",
        str(exchange.status or "-"), "0", "0", str(exchange.bytes_out), str(exchange.bytes_in), str(round(seconds *
        1000)), safe(exchange.reason.word) if exchange.reason else "-", str(round(exchange.queue_wait * 1000)),
        safe(exchange.target),
    ]  # fmt: skip
    return " ".join(values)


def json_line(exchange: Exchange, seconds: float, at: float) -> str:
    """One access line as JSON; the set of fields is part of the interface and only ever grows."""
    request, client, fields = exchange.request, exchange.client, exchange.fields
    line = {
        "time": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
        "request": exchange.number,
        "client": client.address,
        "listener": client.listener,
        "scheme": client.scheme,
        "tls": client.tls.version if client.tls else None,
        "method": exchange.method or None,
        "host": request.host[:MAX_FIELD] if request else None,
        "path": (request.path if request else exchange.uri)[:MAX_URI] or None,
        "query": request.query[:MAX_URI] if request and request.query is not None else None,
        "version": exchange.version or None,
        "user_agent": (fields.text(b"user-agent")[:MAX_FIELD] if fields else "") or None,
        "referer": (fields.text(b"referer")[:MAX_FIELD] if fields else "") or None,
        "site": exchange.site or None,
        "route": exchange.route or None,
        "pool": exchange.pool or None,
        "target": exchange.target or None,
        "status": exchange.status or None,
        "reason": exchange.reason.word if exchange.reason else None,
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "seconds": round(seconds, 6),
        "queue_wait": round(exchange.queue_wait, 6),
        "attempts": exchange.attempts,
        "generation": exchange.generation,
    }
    return json.dumps(line, separators=(",", ":"), ensure_ascii=False)


def error_line(
    client: Client, reason: Reason, detail: str, at: float, exchange: Exchange | None = None, status: int = 0
) -> str:
    """One line in HTTPERR's shape; works for connections that never became an exchange."""
    values = [
        stamp(at), safe(client.address), str(client.port), safe(client.local_address), str(client.local_port),
        f"HTTP/{exchange.version}" if exchange and exchange.version else "-",
        safe(exchange.method) if exchange else "-",
        safe(exchange.uri, MAX_URI) if exchange else "-",
        str(status or "-"), safe(exchange.site if exchange else ""), reason.word, safe(exchange.pool if exchange else
        ""), safe(detail),
    ]  # fmt: skip
    return " ".join(values)


FORMATS: dict[str, Callable[[Exchange, float, float], str]] = {"w3c": w3c_line, "json": json_line}


class Sink:
    """One log's way out: a file with rotation, or a standard stream.  Used by the writer thread only."""

    def __init__(self, settings: LogFile, header: str) -> None:
        self._settings = settings
        self._header = header
        self._file: BinaryIO | None = None
        self._size = 0

    def write(self, lines: list[bytes]) -> None:
        """Write whole lines.  Raises `OSError`."""
        to = self._settings.to
        if isinstance(to, Path):
            if self._file is None:
                self._open(to)
            assert self._file is not None
            data = b"".join(lines)
            if self._size and self._size + len(data) > self._settings.max_size:
                self._rotate(to)
            self._file.write(data)
            self._size += len(data)
        else:
            stream = sys.stdout if to == "stdout" else sys.stderr
            for line in lines:  # one write for each: lines up to PIPE_BUF stay whole between processes
                os.write(stream.fileno(), line)

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._size = path.stat().st_size
        if self._header:
            self._size += self._file.write(self._header.format(date=stamp(time.time())).encode())

    def _rotate(self, path: Path) -> None:
        """access.log → access.log.1 → … ; the oldest of `keep` goes."""
        self.close()
        numbered = [path.with_name(f"{path.name}.{n}") for n in range(1, self._settings.keep + 1)]
        for older, newer in zip(reversed(numbered), [*reversed(numbered[:-1]), path], strict=False):
            if newer.exists():
                newer.replace(older)
        if not numbered:
            path.unlink()
        self._open(path)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class LogWriter:
    """Access and error log of one process.  The methods for lines never block and never raise."""

    def __init__(self, access: LogFile, error: LogFile) -> None:
        self.dropped = 0
        self._format = FORMATS[access.format] if access.to != "off" else None
        self._errors_on = error.to != "off"
        header = "" if access.format == "json" else _header(ACCESS_FIELDS)
        self._sinks = {"access": Sink(access, header), "error": Sink(error, _header(ERROR_FIELDS))}
        self._lines: deque[tuple[str, bytes]] = deque()
        self._wake = threading.Event()
        self._reopen = threading.Event()
        self._stop = False
        self._complained = 0.0
        self._thread = threading.Thread(target=self._run, name="frontd-log", daemon=True)
        self._thread.start()

    def exchange(self, exchange: Exchange, seconds: float, at: float) -> None:
        """The one line of an exchange, and one in the error log when it had a reason."""
        if self._format is not None:
            self._put("access", self._format(exchange, seconds, at))
        if exchange.reason is not None and self._errors_on:
            line = error_line(exchange.client, exchange.reason, exchange.detail, at, exchange, exchange.status)
            self._put("error", line)

    def connection(self, client: Client, reason: Reason, detail: str) -> None:
        """A connection that ended with a reason and without an exchange."""
        if self._errors_on:
            self._put("error", error_line(client, reason, detail, time.time()))

    def remark(self, text: str) -> None:
        """A message of the server itself (start, reload, audit), as a W3C ``#Remark`` directive."""
        if self._errors_on:
            clean = "".join(c if c.isprintable() else "+" for c in text)
            self._put("error", f"#Remark: {stamp(time.time())} {clean}")

    def _put(self, log: str, line: str) -> None:
        if len(self._lines) >= BUFFERED:
            self.dropped += 1
            return
        self._lines.append((log, line.encode("utf-8", "replace")[: MAX_LINE - 1] + b"\n"))
        if not self._wake.is_set():
            self._wake.set()

    def reopen(self) -> None:
        """Close and open the files again, for external rotation."""
        self._reopen.set()
        self._wake.set()

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most `timeout` seconds."""
        self._stop = True
        self._wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._reopen.is_set():
                self._reopen.clear()
                for sink in self._sinks.values():
                    sink.close()
            while self._lines:
                self._write_batch()
            if self._stop and not self._lines:
                for sink in self._sinks.values():
                    sink.close()
                return

    def _write_batch(self) -> None:
        batch: dict[str, list[bytes]] = {}
        for _ in range(min(len(self._lines), 1024)):
            log, line = self._lines.popleft()
            batch.setdefault(log, []).append(line)
        for log, lines in batch.items():
            try:
                self._sinks[log].write(lines)
            except (OSError, ValueError) as error:
                self.dropped += len(lines)
                self._sinks[log].close()
                self._complain(log, error)

    def _complain(self, log: str, error: Exception) -> None:
        """Say once a minute on stderr that lines are lost; nothing else can be done about a full disk here."""
        now = time.monotonic()
        if now - self._complained >= 60 or not self._complained:
            self._complained = now
            text = getattr(error, "strerror", None) or str(error)
            with contextlib.suppress(OSError):
                os.write(2, f"frontd: {log} log: {text}; {self.dropped} lines lost so far\n".encode())


def _header(fields: str) -> str:
    return f"#Software: frontd\n#Version: 1.0\n#Date: {{date}}\n#Fields: {fields}\n"
