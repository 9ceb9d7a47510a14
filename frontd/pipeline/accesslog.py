"""The lines of the access log and of the error log.

W3C extended with IIS's field names, or JSON with a fixed set of fields; the error log has HTTPERR's shape.  In the W3C
shapes ``-`` stands for "missing", and spaces, quotes and whatever is not printable become ``+`` (IIS's rule), so a
line can never be forged.  JSON lines are ASCII, the rest is escaped: no terminal and no reader of lines sees a second
line or a control sequence in them.

Invariant: no line with its line break is longer than `MAX_LINE` bytes: a pipe takes it whole (PIPE_BUF), so the lines
of processes do not mix.  A JSON line is valid all the same: its values are cut, never the line.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from functools import lru_cache

from frontd.model.errors import Reason
from frontd.model.messages import Client, Exchange, Request

MAX_LINE = 4096  # bytes; PIPE_BUF
MAX_URI = 640  # bytes of a URL in a line (HTTPERR cuts at 4096)
MAX_FIELD = 200  # bytes of any other value in a W3C line, characters in a JSON line

ACCESS_FIELDS = (
    "date time s-sitename s-ip cs-method cs-uri-stem cs-uri-query s-port cs-username c-ip cs-version cs(User-Agent) "
    "cs(Referer) cs-host sc-status sc-substatus sc-win32-status sc-bytes cs-bytes time-taken x-reason x-queue-wait "
    "x-target"
)
ERROR_FIELDS = (
    "date time c-ip c-port s-ip s-port cs-version cs-method cs-uri sc-status s-siteid s-reason s-queuename x-detail"
)

_UNSAFE = re.compile(r"[\x00-\x20\x7f\"]")
_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder for every line


def safe(text: str, limit: int = MAX_FIELD) -> str:
    """A value for a W3C line: ``-`` when empty; spaces, quotes and what is not printable as ``+``; at most `limit`
    bytes of UTF-8, cut between characters."""
    text = text[:limit]
    if not text.isascii():
        text = "".join(c if c.isprintable() else "+" for c in text)
        text = text.encode()[:limit].decode("utf-8", "ignore")
    return _UNSAFE.sub("+", text) or "-"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def stamp(seconds: float) -> str:
    """``2026-01-31 23:59:59`` in UTC (W3C logs are UTC always)."""
    return _second(int(seconds))


def iso(seconds: float) -> str:
    """``2026-01-31T23:59:59.125+00:00``."""
    whole = int(seconds)
    milliseconds = min(round((seconds - whole) * 1_000_000) // 1000, 999)
    return f"{_second(whole).replace(' ', 'T')}.{milliseconds:03d}+00:00"


def request_of(exchange: Exchange) -> Request | None:
    """The request, or None when the head meant none."""
    return exchange.request if exchange.is_understood else None


def w3c_line(exchange: Exchange, seconds: float, at: float) -> str:
    """One access line with IIS's field names; `seconds` is the time taken, `at` the wall clock (s since the epoch)."""
    request, client, fields = request_of(exchange), exchange.client, exchange.fields
    values = (
        stamp(at),
        safe(exchange.site),
        safe(client.local_address),
        safe(exchange.method),
        safe(request.path if request else exchange.uri, MAX_URI),
        safe(request.query, MAX_URI) if request else "-",
        str(client.local_port),
        safe(exchange.identity.name) if exchange.identity else "-",
        safe(client.address),
        f"HTTP/{exchange.version}" if exchange.version else "-",
        safe(fields.text(b"user-agent")) if fields else "-",
        safe(fields.text(b"referer")) if fields else "-",
        safe(request.authority.decode("latin-1")) if request else "-",
        str(exchange.status or "-"),
        str(exchange.substatus),
        "0",
        str(exchange.bytes_out),
        str(exchange.bytes_in),
        str(round(seconds * 1000)),
        exchange.reason.word if exchange.reason else "-",
        str(round(exchange.queue_wait * 1000)),
        safe(exchange.target),
    )
    return " ".join(values)


def json_line(exchange: Exchange, seconds: float, at: float) -> str:
    """One access line as JSON; the set of fields is part of the interface and only ever grows."""
    request, client, fields = request_of(exchange), exchange.client, exchange.fields
    return _fitting(
        {
            "time": iso(at),
            "request": exchange.number,
            "client": client.address,
            "listener": client.listener,
            "scheme": client.scheme,
            "tls": client.tls.version if client.tls else None,
            "method": exchange.method or None,
            "host": request.host[:MAX_FIELD] if request else None,
            "path": (request.path if request else exchange.uri)[:MAX_URI] or None,
            "query": request.query[:MAX_URI] if request and request.has_query else None,
            "version": exchange.version or None,
            "user_agent": (fields.text(b"user-agent")[:MAX_FIELD] if fields else "") or None,
            "referer": (fields.text(b"referer")[:MAX_FIELD] if fields else "") or None,
            "site": exchange.site or None,
            "route": exchange.route or None,
            "pool": exchange.pool or None,
            "target": exchange.target or None,
            "user": exchange.identity.name[:MAX_FIELD] if exchange.identity else None,
            "status": exchange.status or None,
            "substatus": exchange.substatus or None,
            "reason": exchange.reason.word if exchange.reason else None,
            "bytes_in": exchange.bytes_in,
            "bytes_out": exchange.bytes_out,
            "seconds": round(seconds, 6),
            "queue_wait": round(exchange.queue_wait, 6),
            "attempts": exchange.attempts,
            "generation": exchange.generation,
        }
    )


def w3c_error(
    client: Client, reason: Reason, detail: str, at: float, exchange: Exchange | None = None, status: int = 0
) -> str:
    """One line in HTTPERR's shape; works for connections that never became an exchange."""
    values = (
        stamp(at),
        safe(client.address),
        str(client.port),
        safe(client.local_address),
        str(client.local_port),
        f"HTTP/{exchange.version}" if exchange and exchange.version else "-",
        safe(exchange.method) if exchange else "-",
        safe(exchange.uri, MAX_URI) if exchange else "-",
        str(status or "-"),
        safe(exchange.site) if exchange else "-",
        reason.word,
        safe(exchange.pool) if exchange else "-",
        safe(detail),
    )
    return " ".join(values)


def json_error(
    client: Client, reason: Reason, detail: str, at: float, exchange: Exchange | None = None, status: int = 0
) -> str:
    """The same facts as JSON."""
    return _fitting(
        {
            "time": iso(at),
            "request": exchange.number if exchange else None,
            "client": client.address,
            "port": client.port,
            "local_address": client.local_address,
            "local_port": client.local_port,
            "version": (exchange.version if exchange else "") or None,
            "method": (exchange.method if exchange else "") or None,
            "uri": (exchange.uri if exchange else "")[:MAX_URI] or None,
            "status": status or None,
            "site": (exchange.site if exchange else "") or None,
            "reason": reason.word,
            "pool": (exchange.pool if exchange else "") or None,
            "detail": detail[:MAX_URI] or None,
        }
    )


def w3c_remark(text: str, at: float) -> str:
    """A message of the server itself as a W3C ``#Remark`` directive; it keeps its spaces, nothing follows it."""
    return f"#Remark: {stamp(at)} {''.join(c if c.isprintable() else '+' for c in text)}"


def json_remark(text: str, at: float) -> str:
    """A message of the server itself as JSON."""
    return _fitting({"time": iso(at), "remark": text})


def _fitting(line: dict[str, object]) -> str:
    """`line` as JSON in less than `MAX_LINE` bytes: long strings are halved until it fits."""
    text = _encode(line)
    limit = MAX_URI
    while len(text) >= MAX_LINE:
        limit //= 2
        text = _encode({key: value[:limit] if isinstance(value, str) else value for key, value in line.items()})
    return text


ACCESS: dict[str, Callable[[Exchange, float, float], str]] = {"w3c": w3c_line, "json": json_line}
ERRORS = {"w3c": (w3c_error, w3c_remark), "json": (json_error, json_remark)}
