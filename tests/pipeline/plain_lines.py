"""The access lines spelled out, with nothing remembered: what the quick ones are held against."""

from __future__ import annotations

import json
import re
import time

from frontd.model.messages import Exchange, Request

MAX_LINE = 4096  # bytes
MAX_URI = 640  # bytes, or characters in JSON
MAX_FIELD = 200  # bytes, or characters in JSON


def safe(text: str, limit: int = MAX_FIELD) -> str:
    """A value of a W3C line."""
    text = text[:limit]
    text = "".join(c if c.isprintable() else "+" for c in text)
    text = text.encode()[:limit].decode("utf-8", "ignore")
    return re.sub(r"[\x00-\x20\x7f\"]", "+", text) or "-"


def encode(value: object) -> str:
    """JSON without blanks."""
    return json.dumps(value, separators=(",", ":"))


def stamp(seconds: float) -> str:
    """A second in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(int(seconds)))


def iso(seconds: float) -> str:
    """The same with milliseconds."""
    whole = int(seconds)
    milliseconds = min(round((seconds - whole) * 1_000_000) // 1000, 999)
    return f"{stamp(seconds).replace(' ', 'T')}.{milliseconds:03d}+00:00"


def request_of(exchange: Exchange) -> Request | None:
    """The request, or None when the head meant none."""
    return exchange.request if exchange.is_understood else None


def w3c_line(exchange: Exchange, seconds: float, at: float) -> str:
    """The W3C line of an exchange."""
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
    """The JSON line of an exchange."""
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


def _fitting(line: dict[str, object]) -> str:
    """`line` as JSON in less than `MAX_LINE` bytes: long strings are halved until it fits."""
    text = encode(line)
    limit = MAX_URI
    while len(text) >= MAX_LINE:
        limit //= 2
        text = encode({key: value[:limit] if isinstance(value, str) else value for key, value in line.items()})
    return text
