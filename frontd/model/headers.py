"""Header fields: an ordered multi-map of bytes, and the rules for what a proxy may pass on.

Facts that decide the shape (RFC 9110 5): field order between different names means nothing, between equal names it
does; names are case-insensitive, but some backends care about the case they receive, so the case that came in is kept;
values are bytes (obs-text is legal), so no decoding happens unless somebody asks for `text`.

Invariant: every item is ``(lower-case name, name as received, value without outer white space)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

Item = tuple[bytes, bytes, bytes]
TextOrBytes = str | bytes

# RFC 9110 7.6.1 with the names that RFC 2616 listed and old software still sends.  Transfer-Encoding is listed because
# messages are always framed anew.  Trailer stays: it announces fields that do pass (RFC 9110 6.6.2).
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)

# The length of a message is decided when its head is checked, and no field of the message can take that away again.
FRAMING = frozenset((b"content-length", b"transfer-encoding"))

# Fields that a trailer section never carries on (RFC 9110 6.5.1: framing, routing, authentication, request modifiers).
NOT_IN_TRAILERS = HOP_BY_HOP | frozenset(
    (
        b"content-length", b"host", b"trailer", b"authorization", b"cookie", b"set-cookie", b"content-encoding",
        b"content-type", b"content-range", b"expect", b"range", b"cache-control", b"max-forwards", b"age", b"date",
        b"location", b"retry-after", b"vary", b"www-authenticate", b"forwarded", b"via", b"x-forwarded-for",
        b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-server", b"x-forwarded-prefix",
        b"x-real-ip",
    )
)  # fmt: skip


def octets(value: TextOrBytes) -> bytes:
    """A name or value as it stands on the wire; text as UTF-8."""
    return value.encode() if isinstance(value, str) else bytes(value)


class Block:
    """The fields of one head as they were received, remembered because they come again and again.

    `items` and what they say of the message (its length in bytes or that it is chunked, whether its connection is
    kept) never change; `relayed` is what whoever relays such fields makes of them, as field lines (None: not known
    yet).
    """

    __slots__ = ("chunked", "content_length", "has_date", "items", "keep_alive", "relayed")

    def __init__(
        self, items: list[Item], content_length: int | None, *, chunked: bool = False, keep_alive: bool = True
    ) -> None:
        self.items = items
        self.chunked = chunked
        self.content_length = content_length
        self.keep_alive = keep_alive
        self.has_date = any(item[0] == b"date" for item in items)
        self.relayed: bytes | None = None


class Headers:
    """A case-insensitive multi-map of header fields.

    Names and values are bytes.  Names may be given in any case; what is given as text is encoded as UTF-8.
    """

    __slots__ = ("block", "items")

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self.items: list[Item] = list(items)
        self.block: Block | None = None  # that they were read from, if it is remembered; they may have changed since

    @classmethod
    def of(cls, *pairs: tuple[bytes, bytes]) -> Headers:
        """Headers from (name, value) pairs."""
        return cls((name.lower(), name, value) for name, value in pairs)

    def copy(self) -> Headers:
        """The same fields in a multi-map of their own."""
        return Headers(self.items)

    def get(self, name: TextOrBytes, default: bytes = b"") -> bytes:
        """The first value of `name`, or `default`."""
        lower = name.lower() if type(name) is bytes else octets(name).lower()
        for key, _, value in self.items:
            if key == lower:
                return value
        return default

    def get_all(self, name: TextOrBytes) -> list[bytes]:
        """All values of `name`, in the order received."""
        lower = name.lower() if type(name) is bytes else octets(name).lower()
        return [value for key, _, value in self.items if key == lower]

    def text(self, name: TextOrBytes, default: str = "") -> str:
        """The first value of `name` as text; bytes that are not UTF-8 become U+FFFD."""
        value = self.get(name, default.encode())
        return value.decode("utf-8", "replace")

    def tokens(self, name: TextOrBytes) -> list[bytes]:
        """All values of a comma-separated field as lower-case tokens (RFC 9110 5.6.1)."""
        return [
            token for value in self.get_all(name) for part in value.split(b",") if (token := part.strip(b" \t").lower())
        ]

    def add(self, name: TextOrBytes, value: TextOrBytes) -> None:
        """Append one field."""
        if type(name) is not bytes or type(value) is not bytes:
            name, value = octets(name), octets(value)
        self.items.append((name.lower(), name, value))

    def set(self, name: TextOrBytes, value: TextOrBytes) -> None:
        """Replace all fields of `name` by one."""
        self.remove(name)
        self.add(name, value)

    def remove(self, name: TextOrBytes) -> None:
        """Remove all fields of `name`; a name that is not there is fine."""
        lower = name.lower() if type(name) is bytes else octets(name).lower()
        self.items = [item for item in self.items if item[0] != lower]

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """(name as received, value), in order: what goes on the wire."""
        return [(raw, value) for _, raw, value in self.items]

    def __contains__(self, name: TextOrBytes) -> bool:
        lower = name.lower() if type(name) is bytes else octets(name).lower()
        return any(item[0] == lower for item in self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        # Values may be secrets (Authorization, Cookie): a repr ends up in tracebacks.
        return f"<Headers {[raw.decode('latin-1') for _, raw, _ in self.items]}>"


# Fields by which the app learns who has logged on: set by frontd alone.  CGI-style apps see X_Remote_User, and some see
# X.Remote.User, as the same variable, so names are compared with every character but letters and digits as "-".
IDENTITY_FIELDS = frozenset((b"x-remote-user", b"x-remote-groups", b"x-auth-scheme", b"x-frontd-identity"))
_LIKE_CGI = bytes(c if chr(c).isascii() and chr(c).isalnum() else 45 for c in range(256))


def normal_name(lower: bytes) -> bytes:
    """A lower-case field name as CGI-style apps may see it: whatever is neither letter nor digit is ``-``."""
    return lower.translate(_LIKE_CGI)


_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def bad_field(headers: Headers) -> str:
    """What is wrong with the first field that may not be sent (RFC 9110 5.1, 5.5), as a sentence; empty: nothing."""
    for _, name, value in headers.items:
        if not _TOKEN.fullmatch(name):
            return f"{name!r} is not a field name"
        if _NOT_IN_VALUE.search(value) or value != value.strip(b" \t"):
            return f"the value of {name.decode()} holds a control character or begins or ends with a blank"
    return ""


def end_to_end(headers: Headers) -> Headers:
    """The fields that pass a proxy: without hop-by-hop fields and those that Connection names (RFC 9110 7.6.1).

    ``Connection: content-length`` takes nothing away: the body that follows would lose its length.
    """
    named = set(headers.tokens(b"connection")) - FRAMING
    if not named:
        return Headers(item for item in headers.items if item[0] not in HOP_BY_HOP)
    dropped = HOP_BY_HOP.union(named)
    return Headers(item for item in headers.items if item[0] not in dropped)


def without_underscores(headers: Headers) -> tuple[Headers, int]:
    """Drop fields whose name contains ``_`` and say how many they were.

    CGI-style apps (WSGI) read ``X_Remote_User`` and ``X-Remote-User`` as one variable, so such a name forges a field
    that the front set.  nginx's precedent: ``underscores_in_headers off``.
    """
    for item in headers.items:
        name = item[0]
        if name not in _without:
            if b"_" in name:
                kept = [item for item in headers.items if b"_" not in item[0]]
                return Headers(kept), len(headers.items) - len(kept)
            if len(_without) < MOST_NAMES and len(name) <= LONGEST_NAME:
                _without.add(name)
    return headers, 0


MOST_NAMES, LONGEST_NAME = 1024, 64  # names that are remembered, and bytes of one
_without: set[bytes] = set()  # names without "_"; looking into a short text costs four times as much as knowing it


def announced_trailers(head: Headers, trailers: Headers) -> Headers:
    """The trailer fields that may pass: announced in ``Trailer``, of no forbidden kind (RFC 9110 6.5.1, 6.6.2)."""
    announced = set(head.tokens(b"trailer")) - NOT_IN_TRAILERS
    return Headers(
        item
        for item in trailers.items
        if item[0] in announced and b"_" not in item[0] and normal_name(item[0]) not in IDENTITY_FIELDS
    )
