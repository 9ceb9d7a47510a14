"""The lines of the access log and of the error log.

W3C extended with IIS's field names, or JSON with a fixed set of fields; the error log has HTTPERR's shape.  In the W3C
shapes ``-`` stands for "missing", and spaces, quotes and whatever is not printable become ``+`` (IIS's rule), so a
line can never be forged.  JSON lines are ASCII, the rest is escaped: no terminal and no reader of lines sees a second
line or a control sequence in them.

How it works
------------
There is an access line for every request, so it is put together from finished pieces.  What comes again and again
(site, addresses, host, user agent, names of routes and pools) is escaped once and looked up from then on; an exchange
with a value that is not known yet gets its line by the rules, `_w3c_by_rules` and `_json_by_rules`, and what could be
learned from it is kept for the next one.  Path, query and referer are escaped anew each time: they may hold tokens,
which are not to stay in memory.

Invariants
----------
* No line with its line break is longer than `MAX_LINE` bytes: a pipe takes it whole (PIPE_BUF), so the lines of
  processes do not mix.  A JSON line is valid all the same: its values are cut, never the line.
* Both ways make the same line of the same exchange.
* What is known is bounded: `KNOWN` values of each kind, none of them longer than `MAX_FIELD`.
* Access lines are made by one thread, the loop's; remarks by any.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import TypeVar

from frontd.model.errors import Reason
from frontd.model.headers import Headers
from frontd.model.messages import Client, Exchange, Request

MAX_LINE = 4096  # bytes; PIPE_BUF
MAX_URI = 640  # bytes of a URL in a line (HTTPERR cuts at 4096)
MAX_FIELD = 200  # bytes of any other value in a W3C line, characters in a JSON line
KNOWN = 512  # values of one kind

ACCESS_FIELDS = (
    "date time s-sitename s-ip cs-method cs-uri-stem cs-uri-query s-port cs-username c-ip cs-version cs(User-Agent) "
    "cs(Referer) cs-host sc-status sc-substatus sc-win32-status sc-bytes cs-bytes time-taken x-reason x-queue-wait "
    "x-target"
)
ERROR_FIELDS = (
    "date time c-ip c-port s-ip s-port cs-version cs-method cs-uri sc-status s-siteid s-reason s-queuename x-detail"
)

_UNSAFE = re.compile(r"[\x00-\x20\x7f\"]")
_is_unsafe = _UNSAFE.search
_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder for every line
_quote: Callable[[str], str] = encode_basestring_ascii


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


Value = TypeVar("Value")


def _learn(known: dict[Value, str], value: Value, piece: str) -> None:
    """Keep what a value looks like in a line.  The longest ones are not worth it, and might be meant to fill memory."""
    if isinstance(value, str | bytes) and len(value) > MAX_FIELD:
        return
    if len(known) >= KNOWN:
        known.clear()
    known[value] = piece


# --- access, W3C

_safe: dict[str, str] = {}
_safe_agents: dict[bytes | None, str] = {}
_safe_hosts: dict[bytes, str] = {}
_versions: dict[str, str] = {}
_numbers: dict[int, str] = {}  # ports and statuses
_this_second = (0, stamp(0))


def w3c_line(exchange: Exchange, seconds: float, at: float) -> str:
    """One access line with IIS's field names; `seconds` is the time taken, `at` the wall clock (s since the epoch)."""
    global _this_second
    second, date = _this_second
    if not 0.0 <= at - second < 1.0:
        second, date = _this_second = int(at), stamp(at)
    try:
        if exchange.is_understood:
            request = exchange.request
            path, query, host = request.path, request.query, _safe_hosts[request.authority]
        else:
            path, query, host = exchange.uri, "", "-"
        if len(path) > MAX_URI or not path.isascii() or _is_unsafe(path):
            path = safe(path, MAX_URI)
        agent: bytes | None = None
        referer: bytes | None = None
        if exchange.fields is not None:
            for name, _, value in exchange.fields.items:
                if name == b"user-agent":
                    if agent is None:
                        agent = value
                elif name == b"referer" and referer is None:
                    referer = value
        client, identity, reason = exchange.client, exchange.identity, exchange.reason
        substatus, wait = exchange.substatus, exchange.queue_wait
        return " ".join(
            (
                date,
                _safe[exchange.site],
                _safe[client.local_address],
                _safe[exchange.method],
                path or "-",
                safe(query, MAX_URI) if query else "-",
                _numbers[client.local_port],
                "-" if identity is None else _safe[identity.name],
                _safe[client.address],
                _versions[exchange.version],
                _safe_agents[agent],
                safe(referer.decode("utf-8", "replace")) if referer else "-",
                host,
                _numbers[exchange.status] if exchange.status else "-",
                str(substatus) if substatus else "0",
                "0",
                str(exchange.bytes_out),
                str(exchange.bytes_in),
                str(round(seconds * 1000)),
                "-" if reason is None else reason.word,
                str(round(wait * 1000)) if wait else "0",
                _safe[exchange.target],
            )
        )
    except KeyError:
        _learn_w3c(exchange)
        return _w3c_by_rules(exchange, seconds, at)


def _learn_w3c(exchange: Exchange) -> None:
    client, request, identity = exchange.client, request_of(exchange), exchange.identity
    names = (exchange.site, client.local_address, exchange.method, client.address, exchange.target)
    for name in names if identity is None else (*names, identity.name):
        _learn(_safe, name, safe(name))
    for number in (client.local_port, exchange.status):
        _learn(_numbers, number, str(number))
    _learn(_versions, exchange.version, f"HTTP/{exchange.version}" if exchange.version else "-")
    if request is not None:
        _learn(_safe_hosts, request.authority, safe(request.authority.decode("latin-1")))
    agent = _agent(exchange)
    _learn(_safe_agents, agent, safe(_text(agent)))


def _agent(exchange: Exchange) -> bytes | None:
    """The first User-Agent; None when there is none."""
    fields = exchange.fields or Headers()
    return fields.get(b"user-agent") if b"user-agent" in fields else None


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("utf-8", "replace")


def _w3c_by_rules(exchange: Exchange, seconds: float, at: float) -> str:
    """What `w3c_line` says, field by field."""
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


# --- access, JSON

# What a value looks like with its key before it: as few pieces as can be.
_clients: dict[str, str] = {}
_listeners: dict[str, str] = {}
_schemes: dict[str, str] = {}
_methods: dict[str, str] = {}
_hosts: dict[str, str] = {}
_http: dict[str, str] = {}
_agents: dict[bytes | None, str] = {}
_sites: dict[str, str] = {}
_routes: dict[str, str] = {}
_pools: dict[str, str] = {}
_targets: dict[str, str] = {}
_users: dict[str, str] = {}
_statuses: dict[int, str] = {}
_this_iso_second = (0, '{"time":"1970-01-01T00:00:00')
_MILLISECONDS = [f'.{min(n, 999):03d}+00:00","request":' for n in range(1001)]
_TINY = {f"{n / 1e6:.6f}": repr(n / 1e6) for n in range(101)}  # below 0.1 ms JSON has exponents


def json_line(exchange: Exchange, seconds: float, at: float) -> str:
    """One access line as JSON; the set of fields is part of the interface and only ever grows."""
    global _this_iso_second
    second, date = _this_iso_second
    if not 0.0 <= at - second < 1.0:
        if at < 0.0:
            return _json_by_rules(exchange, seconds, at)
        second, date = _this_iso_second = int(at), f'{{"time":"{stamp(at).replace(" ", "T")}'
    try:
        query = ',"query":null'
        if exchange.is_understood:
            request = exchange.request
            path, host = request.path, _hosts[request.host]
            if request.has_query:
                query = f',"query":{_quote(request.query[:MAX_URI])}'
        else:
            path, host = exchange.uri, ',"host":null,"path":'
        agent: bytes | None = None
        referer: bytes | None = None
        if exchange.fields is not None:
            for name, _, value in exchange.fields.items:
                if name == b"user-agent":
                    if agent is None:
                        agent = value
                elif name == b"referer" and referer is None:
                    referer = value
        client, identity, reason = exchange.client, exchange.identity, exchange.reason
        tls, substatus, wait = client.tls, exchange.substatus, exchange.queue_wait
        line = "".join(
            (
                date,
                _MILLISECONDS[round((at - second) * 1_000_000) // 1000],
                str(exchange.number),
                _clients[client.address],
                _listeners[client.listener],
                _schemes[client.scheme],
                ',"tls":null' if tls is None else f',"tls":{_quote(tls.version)}',
                _methods[exchange.method],
                host,
                _quote(path[:MAX_URI]) if path else "null",
                query,
                _http[exchange.version],
                _agents[agent],
                _quote(referer.decode("utf-8", "replace")[:MAX_FIELD]) if referer else "null",
                _sites[exchange.site],
                _routes[exchange.route],
                _pools[exchange.pool],
                _targets[exchange.target],
                ',"user":null' if identity is None else _users[identity.name],
                _statuses[exchange.status],
                str(substatus) if substatus else "null",
                ',"reason":null,"bytes_in":' if reason is None else f',"reason":{_quote(reason.word)},"bytes_in":',
                f'{exchange.bytes_in},"bytes_out":{exchange.bytes_out},"seconds":',
                _decimal(seconds),
                f',"queue_wait":{_decimal(wait)}' if wait else ',"queue_wait":0.0',
                f',"attempts":{exchange.attempts},"generation":{exchange.generation}}}',
            )
        )
    except KeyError:
        _learn_json(exchange)
        return _json_by_rules(exchange, seconds, at)
    return line if len(line) < MAX_LINE else _json_by_rules(exchange, seconds, at)


def _decimal(seconds: float) -> str:
    """Seconds with at most six decimals, as JSON has them: ``0.012346``, ``0.25``, ``4.2e-05``."""
    text = f"{seconds:.6f}"
    if not 0.0001 <= seconds < 1e6:
        return _TINY.get(text) or _encode(round(seconds, 6))
    if text[-1] == "0":
        text = text.rstrip("0")
        return f"{text}0" if text[-1] == "." else text
    return text


def _learn_json(exchange: Exchange) -> None:
    client, request, identity = exchange.client, request_of(exchange), exchange.identity
    _learn(_clients, client.address, f',"client":{_quote(client.address)}')
    _learn(_listeners, client.listener, f',"listener":{_quote(client.listener)}')
    _learn(_schemes, client.scheme, f',"scheme":{_quote(client.scheme)}')
    _learn(_methods, exchange.method, f',"method":{_given(exchange.method)}')
    if request is not None:
        _learn(_hosts, request.host, f',"host":{_quote(request.host)},"path":')
    _learn(_http, exchange.version, f',"version":{_given(exchange.version)}')
    agent = _agent(exchange)
    _learn(_agents, agent, f',"user_agent":{_given(_text(agent)[:MAX_FIELD])},"referer":')
    _learn(_sites, exchange.site, f',"site":{_given(exchange.site)}')
    _learn(_routes, exchange.route, f',"route":{_given(exchange.route)}')
    _learn(_pools, exchange.pool, f',"pool":{_given(exchange.pool)}')
    _learn(_targets, exchange.target, f',"target":{_given(exchange.target)}')
    if identity is not None:
        _learn(_users, identity.name, f',"user":{_quote(identity.name)}')
    _learn(_statuses, exchange.status, f',"status":{exchange.status or "null"},"substatus":')


def _given(text: str) -> str:
    return _quote(text) if text else "null"


def _json_by_rules(exchange: Exchange, seconds: float, at: float) -> str:
    """What `json_line` says, key by key, cut where it would be too long."""
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


# --- errors


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
