"""UrlPrefixes, the one canonical path, and the table that finds what a URL belongs to.

How it works
------------
A *UrlPrefix* is HTTP.sys's registration string ``scheme://host:port/path/``.  Its host decides the category:

1. strong wildcard ``+``: any host, and nothing below it is asked any more;
2. explicit: the name in the Host field; ``*.example.com`` stands in this category after the exact names;
3. IP-bound: whatever arrived on that local address;
4. weak wildcard ``*``: whatever nothing above matched.

The first category with a match wins; inside it the longest prefix of *complete* segments (HTTP.sys, "Routing Incoming
Requests"): ``/app/`` covers ``/app``, ``/app/`` and ``/app/x`` but never ``/apple``.

Path rules, written down once
-----------------------------
Everything that looks at a path (UrlPrefixes, routes, rules of plugins) compares `path_key` of the canonical path:

* the canonical path has no dot segments, no escaped unreserved character, and upper-case hex in every escape that stays
  (RFC 3986 6.2.2); ``%2F`` and other reserved escapes stay escaped, since decoding them would change the segments;
* comparison ignores ASCII case, as HTTP.sys does; what is forwarded keeps the client's case.

Invariants: `canonical_path` is idempotent; a canonical path begins with ``/`` and contains no ``.`` or ``..`` segment.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

import idna

from frontd.model.addresses import bracketed
from frontd.model.errors import FrontdError, Reason

T = TypeVar("T")

DEFAULT_PORTS = {"http": 80, "https": 443}
MOST_REMEMBERED = 4096  # hosts; requests repeat the same few, and a stranger's many only empty the memory


class Category(IntEnum):
    """The four kinds of host in a UrlPrefix, in the order they are asked (HTTP.sys)."""

    STRONG = 0
    EXPLICIT = 1
    IP_BOUND = 2
    WEAK = 3


# ---------------------------------------------------------------------------------------------------- paths

_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PLAIN_PATH = re.compile(r"(?:/[A-Za-z0-9_~!$&'()*+,;=:@-][A-Za-z0-9._~!$&'()*+,;=:@-]*)+/?|/")
_TO_ESCAPE = re.compile(r'[ "<>?\[\]^`{|}]')
_NEVER = re.compile(r"[\x00-\x1f\x7f\\#]|[^\x00-\x7f]")


def _normal_escape(match: re.Match[str]) -> str:
    digits = match.group(1)
    if digits is None:
        raise FrontdError(Reason.URL, detail="a % in the path is not followed by two hex digits")
    character = chr(int(digits, 16))
    if character in "\0\\":
        raise FrontdError(Reason.URL, detail=f"%{digits} in the path")
    return character if character in _UNRESERVED else "%" + digits.upper()


def canonical_path(path: str | bytes) -> str:
    """The path of a request target (no query) in the one form used for matching and for forwarding.

    Dot segments are removed (RFC 3986 5.2.4), escaped unreserved characters are decoded, other escapes keep their
    escape in upper case, characters that RFC 3986 does not allow are escaped.  Raises `FrontdError` with
    `Reason.URL` (400) for ``%00``, ``%5C``, a backslash, a ``#``, a control character, an incomplete escape, or a path
    that does not begin with ``/``.
    """
    text = path.decode("latin-1") if isinstance(path, bytes) else path
    if _PLAIN_PATH.fullmatch(text):  # by far the commonest: nothing to normalise, no segment begins with a dot
        return text
    if not text.startswith("/"):
        raise FrontdError(Reason.URL, detail="the path does not begin with /")
    if _NEVER.search(text):
        raise FrontdError(Reason.URL, detail="a backslash, #, control or non-ASCII character in the path")
    text = _ESCAPE.sub(_normal_escape, text)
    text = _TO_ESCAPE.sub(lambda match: f"%{ord(match.group()):02X}", text)
    segments: list[str] = []
    parts = text.split("/")[1:]
    for part in parts:
        if part == "..":
            if segments:
                segments.pop()
        elif part != ".":
            segments.append(part)
    if parts[-1] in (".", ".."):  # "/a/b/.." is the directory "/a/"
        segments.append("")
    return "/" + "/".join(segments)


def path_key(path: str) -> str:
    """A canonical path in the form in which two paths are compared: ASCII case does not count (HTTP.sys)."""
    return path.lower()


def is_under(key: str, prefix_key: str) -> bool:
    """Whether the compared path `key` lies under `prefix_key` (which ends in ``/``) by complete segments."""
    return key.startswith(prefix_key) or key + "/" == prefix_key


def canonical_prefix(path: str) -> str:
    """A path prefix as people write it in a configuration, made canonical: escaped, with its final ``/``.

    Raises `ValueError` with a sentence when it is not an absolute path.
    """
    if not path.startswith("/"):
        raise ValueError("a path prefix begins with /")
    if "?" in path or "#" in path:
        raise ValueError("a path prefix has no query and no fragment")
    escaped = "".join(c if c.isascii() and c > " " else "".join(f"%{b:02X}" for b in c.encode()) for c in path)
    try:
        prefix = canonical_path(escaped)
    except FrontdError as error:
        raise ValueError(error.detail) from None
    return prefix if prefix.endswith("/") else prefix + "/"


# ---------------------------------------------------------------------------------------------------- hosts

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


@lru_cache(maxsize=4096)  # requests repeat the same few names; a stranger's many names push each other out
def canonical_host(host: str) -> str:
    """A host name or IP literal (IPv6 without brackets) in compared form: lower case, A-labels, no final dot.

    Raises `ValueError` with a sentence when it is neither (RFC 1123 2.1, RFC 5890).
    """
    name = host[:-1] if host.endswith(".") else host
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode()
        except idna.IDNAError as error:
            raise ValueError(f"{host!r} is not a host name: {error}") from None
    name = name.lower()
    labels = name.split(".")
    if not name or len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{host!r} is not a host name")
    if labels[-1].isdigit():
        raise ValueError(f"{host!r} is neither a host name nor an IP address")
    return name


def is_ip(host: str) -> bool:
    """Whether a canonical host is an IP literal."""
    return ":" in host or host.rpartition(".")[2].isdigit()


# ---------------------------------------------------------------------------------------------------- UrlPrefix

_URL_PREFIX = re.compile(r"(?P<scheme>[^:/]*)://(?P<host>\[[^\]/]*\]|[^:/\[\]]*)(?::(?P<port>[^/]*))?(?P<path>/.*)?")


@dataclass(frozen=True, slots=True)
class UrlPrefix:
    """One UrlPrefix.  `host` is ``+``, ``*``, ``*.name``, a name or an IP literal; `port` is the public port, the one
    clients type; `path` is canonical and ends in ``/``."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> UrlPrefix:
        """Read ``scheme://host[:port][/path/]``.

        Differs from HTTP.sys where it is kinder: a missing port means the scheme's, a missing final ``/`` is added.
        Raises `ValueError` whose text says what is wrong.
        """
        match = _URL_PREFIX.fullmatch(text)
        if match is None:
            raise ValueError("a URL has the form scheme://host:port/path/")
        scheme, host, port, path = match.group("scheme", "host", "port", "path")
        if scheme not in DEFAULT_PORTS:
            lower = scheme.lower()
            hint = f", written {lower!r} in lower case" if lower in DEFAULT_PORTS else ""
            raise ValueError(f"the scheme is http or https{hint}, not {scheme!r}")
        if not host:
            raise ValueError("the host is missing (use + or * for any host)")
        return cls(scheme, _prefix_host(host), _prefix_port(scheme, port), canonical_prefix(path or "/"))

    @property
    def category(self) -> Category:
        """The category that its host decides."""
        if self.host == "+":
            return Category.STRONG
        if self.host == "*":
            return Category.WEAK
        return Category.IP_BOUND if is_ip(self.host) else Category.EXPLICIT

    def __str__(self) -> str:
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}{self.path}"


def _prefix_host(host: str) -> str:
    if host in ("+", "*"):
        return host
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise ValueError(f"{host} is not an IPv6 address in brackets") from None
    if host.startswith("*."):
        parent = canonical_host(host[2:])
        if is_ip(parent):
            raise ValueError(f"{host!r}: a wildcard stands before a name, not before an address")
        return "*." + parent
    if "*" in host or "+" in host:
        raise ValueError(f"{host!r}: a wildcard is the whole host, or the first label as in *.example.com")
    return canonical_host(host)


def _prefix_port(scheme: str, port: str | None) -> int:
    if port is None:
        return DEFAULT_PORTS[scheme]
    if not port.isascii() or not port.isdigit() or port.startswith("0") or not 1 <= int(port) <= 65535:
        raise ValueError(f"the port is a number from 1 to 65535 without leading zeros, not {port!r}")
    return int(port)


# ---------------------------------------------------------------------------------------------------- tables


class PathTable(Generic[T]):
    """Path prefixes and what they lead to; the longest prefix of complete segments wins."""

    __slots__ = ("_entries", "_everything")

    def __init__(self, entries: Iterable[tuple[str, T]]) -> None:
        pairs = [(path_key(prefix), value) for prefix, value in entries]
        self._entries = tuple(sorted(pairs, key=lambda pair: -len(pair[0])))
        # every canonical path begins with "/", so where that is the only prefix there is nothing to compare
        self._everything = self._entries[0][1] if len(pairs) == 1 and pairs[0][0] == "/" else None

    def match(self, path: str) -> T | None:
        """What the canonical `path` leads to, or None."""
        if self._everything is not None:
            return self._everything
        key = path_key(path)
        for prefix, value in self._entries:
            if is_under(key, prefix):
                return value
        return None


class PrefixMatch(NamedTuple, Generic[T]):
    """`value` is None when no path matched; `host_known` then tells 404 (known) from 400 ``Hostname`` (unknown)."""

    value: T | None
    host_known: bool


class PrefixTable(Generic[T]):
    """All UrlPrefixes and what they lead to, matched as HTTP.sys does (see the module's text)."""

    def __init__(self, pairs: Iterable[tuple[UrlPrefix, T]]) -> None:
        grouped: dict[tuple[str, int | None, str], list[tuple[str, T]]] = {}
        for prefix, value in pairs:
            # None stands for "whatever the port": a listener on a free port is matched by host alone
            for port in (prefix.port, None):
                grouped.setdefault((prefix.scheme, port, prefix.host), []).append((prefix.path, value))
        self._tables = {key: PathTable(entries) for key, entries in grouped.items()}
        self._found: dict[tuple[str, int | None, str, str], tuple[PathTable[T], ...]] = {}

    def match(self, scheme: str, port: int | None, host: str, local_address: str, path: str) -> PrefixMatch[T]:
        """Find what a request belongs to.

        `port` is the listener's public port (None: any), `host` the canonical host of the request, `local_address`
        the IP the connection came in on, `path` the canonical path.
        """
        tables = self._found.get((scheme, port, host, local_address))
        if tables is None:
            tables = self._tables_of(scheme, port, host, local_address)
        for table in tables:
            value = table.match(path)
            if value is not None:
                return PrefixMatch(value, True)
        return PrefixMatch(None, bool(tables))

    def _tables_of(self, scheme: str, port: int | None, host: str, local_address: str) -> tuple[PathTable[T], ...]:
        """The tables that may cover a request for `host`, in the order in which they are asked; remembered."""
        found = (self._tables.get((scheme, port, candidate)) for candidate in _candidates(host, local_address))
        tables = tuple(table for table in found if table is not None)
        if len(self._found) >= MOST_REMEMBERED:
            self._found.clear()
        self._found[scheme, port, host, local_address] = tables
        return tables


def _candidates(host: str, local_address: str) -> list[str]:
    """The hosts of the table that may cover a request, in the order of the categories."""
    names = ["+"]
    if is_ip(host):
        # A published port changes the local address, so the address a client typed counts as well.
        names.append(host)
    else:
        names.append(host)
        rest = host
        while "." in rest:
            rest = rest.partition(".")[2]
            names.append("*." + rest)
    if local_address != host:
        names.append(local_address)
    names.append("*")
    return names
