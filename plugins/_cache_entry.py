"""What the response cache keeps, under which key, and what a request asks of it.

Invariant: everything of a request that an app may go by, and that the cache allows, is in the key: site, scheme,
authority, canonical path and query, and what a trusted proxy says of them (from anybody else that does not reach an
app).  A request with anything else that changes what it means (`OBSTACLES`) passes by.  The destination chooses among
what is stored of one URL.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

from frontd_plugins import freshness

import frontd

NAME = "response_cache"

# the plugin, site, scheme, authority as sent in lower case, path and query, what a trusted proxy says of the URL
Url = tuple[str, str, str, bytes, str, tuple[bytes, ...]]
Destination = tuple[str, str]  # route and pool

# Fields of a request that make it another one than its URL says.  The last five have some apps answer for another
# method or URL than the one on the request line, and that answer would be stored under this one.
OBSTACLES = frozenset(
    (
        b"range", b"if-range", b"if-match", b"if-unmodified-since", b"upgrade", b"x-http-method-override",
        b"x-http-method", b"x-method-override", b"x-original-url", b"x-rewrite-url",
    )
)  # fmt: skip
_WISHES = frozenset((b"cache-control", b"pragma"))
_CONDITIONS = frozenset((b"if-none-match", b"if-modified-since"))

# What a trusted proxy says of the URL and of who asks, beside all that begins with "x-forwarded-": apps make links and
# redirects of it.  From anybody else it does not reach them.
_FORWARDED = frozenset(
    (
        b"forwarded", b"x-scheme", b"x-url-scheme", b"front-end-https", b"x-host", b"x-original-host",
        b"x-http-host-override", b"remote-user", b"remote-groups",
    )
)  # fmt: skip
_QUOTED = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# A quote that is never closed reaches to the end, and is looked at once: the time is proportional to the length.
_FOR_AND_BY = re.compile(
    rb"(" + _QUOTED + rb')|\b(?:for|by)=(?:' + _QUOTED + rb'|[^;,"]*+)|(".*)', re.IGNORECASE | re.DOTALL
)

# Fields of one connection or of one client (RFC 9111 3.1, RFC 9110 11), which no answer that is kept has.
# Content-Length and Age are made anew.
NOT_KEPT = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"http2-settings", b"content-length", b"age",
        b"set-cookie", b"set-cookie2", b"www-authenticate", b"authentication-info", b"persistent-auth",
        b"proxy-authenticate", b"proxy-authentication-info", b"proxy-authorization",
        b"x-remote-user", b"x-remote-groups", b"x-auth-scheme",
    )
)  # fmt: skip

# RFC 9110 15.4.5; the last two tell how the answer came about.  Last-Modified only stands in for a missing ETag.
_IN_304 = frozenset(
    (b"cache-control", b"content-location", b"date", b"etag", b"expires", b"vary", b"via", b"cache-status")
)

# Bytes that an entry and one of its fields take beside what they hold (tracemalloc on Python 3.11, rounded up).
_ENTRY_COST = 2048
_FIELD_COST = 256


class Entry:
    """A stored answer.

    `born` is when it was made, on trio's clock, and `lifetime` how many seconds it is fresh from then on; `tag` and
    `modified` (seconds since the epoch) are its validators.

    What all its hits have in common is prepared, and the last one is kept: the next hit is equal before the age has
    changed again, which is between the moments `_after` and `_before` (an age is in whole seconds, so is a lifetime).
    """

    __slots__ = (
        "_after", "_before", "_hit", "_short", "_whole", "born", "is_shared", "lifetime", "modified", "size", "tag",
    )  # fmt: skip

    def __init__(self, answer: frontd.Response, decision: freshness.Admission, asked: float) -> None:
        """From a whole answer that was `asked` for at that moment of trio's clock."""
        headers = frontd.Headers(item for item in answer.headers if _is_kept(item[0]))
        self._whole = frontd.Response(answer.status, headers, answer.body or b"").prepare()
        self._short: frontd.Response | None = None  # the 304, once it was asked for
        self._hit = self._whole
        self._after = self._before = 0.0
        self.lifetime = decision.lifetime
        self.is_shared = decision.is_shared
        # RFC 9111 4.2.3: its age where it came from, and the time it was on its way, counted from the question
        self.born = asked - freshness.initial_age(answer.headers)
        self.tag = answer.headers.get(b"etag")
        modified = frontd.read_date(answer.headers.get(b"last-modified"))
        if modified is None:  # its Date stands in (RFC 9111 4.3.2)
            modified = frontd.read_date(answer.headers.get(b"date"))
        self.modified = sys.maxsize if modified is None else modified
        # a field stands in a list and in lines, of the whole answer, of the short one, and of the last hit
        fields = sum(_FIELD_COST + 5 * len(raw) + 4 * len(value) for _, raw, value in headers)
        self.size = _ENTRY_COST + fields + len(answer.body or b"")

    def hit(self, now: float) -> frontd.Response:
        """What `answer` gives as a hit to whom has no conditions, while it is fresh."""
        if not self._after < now < self._before:
            age = now - self.born
            self._hit = _told(self._whole, age, self.lifetime - age, "hit")
            self._after = self.born + int(age)
            self._before = self._after + (age > int(age))  # of the very moment of a change nothing is kept
        return self._hit

    def answer(
        self, request: frontd.Request, age: float, left: float, how: str, *, is_conditional: bool
    ) -> frontd.Response:
        """The answer to a GET or HEAD: 304 where the client's copy still holds.  `how` it came is for Cache-Status
        (RFC 9211 2)."""
        found = self._whole
        # the conditions of a request are about a 200 (RFC 9111 4.3.2)
        if is_conditional and found.status == 200 and frontd.still_good(request.headers, self.tag, self.modified):
            if self._short is None:
                fields = frontd.Headers(item for item in found.copy().headers if self._guides_copies(item[0]))
                self._short = frontd.Response(304, fields).prepare()
            found = self._short
        return _told(found, age, left, how)

    def _guides_copies(self, name: bytes) -> bool:
        return name in _IN_304 or (name == b"last-modified" and not self.tag)


def _told(answer: frontd.Response, age: float, left: float, how: str) -> frontd.Response:
    """`answer` with what a cache says of it (RFC 9111 5.1, RFC 9211)."""
    return answer.copy((b"Age", b"%d" % age), (b"Cache-Status", f"frontd; {how}; ttl={int(left)}".encode()))


def _is_kept(name: bytes) -> bool:
    """Whether a field is stored."""
    return frontd.normal_name(name) not in NOT_KEPT


# ---------------------------------------------------------------------------------------------------- requests


class Ask(NamedTuple):
    """What a request asks for beside its URL; `obstacle` is the word for why it passes by the cache, and
    `has_credentials` says that it tells the app who is asking.  `is_plain`: it asks for nothing, and any stored answer
    that may be given to it will do."""

    obstacle: str = ""
    wishes: freshness.Wishes = freshness.NO_WISHES
    is_conditional: bool = False
    has_credentials: bool = False
    is_plain: bool = False


# What a field may be to the cache, by its name; most are nothing.
_NOTHING, _CREDENTIALS, _CONDITION, _WISH, _OBSTACLE = 0, 1, 2, 4, 8
_roles: dict[bytes, int] = {}
_MOST_ROLES, _LONGEST_NAME = 4096, 64  # names as they come, of so many bytes

_PLAIN = Ask(is_plain=True)
_ONLY_CREDENTIALS = Ask(has_credentials=True, is_plain=True)


def _role(name: bytes) -> int:
    normal = frontd.normal_name(name)
    role = _NOTHING
    if normal in OBSTACLES or normal == b"translate":
        role = _OBSTACLE
    elif normal in _WISHES:
        role = _WISH
    elif normal in _CONDITIONS:
        role = _CONDITION
    elif name == b"authorization":
        role = _CREDENTIALS
    if len(name) <= _LONGEST_NAME:
        if len(_roles) >= _MOST_ROLES:
            _roles.clear()
        _roles[name] = role
    return role


def ask_of(request: frontd.Request) -> Ask:
    """What the fields of a request ask for."""
    roles, known = 0, _roles.get
    for item in request.headers.items:
        role = known(item[0])
        roles |= _role(item[0]) if role is None else role
    if roles <= _CREDENTIALS and not request.has_body:
        return _ONLY_CREDENTIALS if roles else _PLAIN
    return Ask(
        _obstacle(request),
        freshness.wishes(request.headers) if roles & _WISH else freshness.NO_WISHES,
        bool(roles & _CONDITION),
        bool(roles & _CREDENTIALS),
    )


def _obstacle(request: frontd.Request) -> str:
    """The word for what stands in the way of a stored answer; empty: nothing."""
    if request.has_body:
        return "body"
    names = {frontd.normal_name(item[0]) for item in request.headers}
    if not names.isdisjoint(OBSTACLES):
        return min(names & OBSTACLES).decode()
    # WebDAV: the source, please
    return "translate" if request.headers.get(b"translate").lower() == b"f" else ""


def url_of(exchange: frontd.Exchange) -> Url:
    """What an exchange asks for.  The authority is as sent: an app sees its port, and makes links of it."""
    request = exchange.request
    said = _said_by_proxy(request.headers) if exchange.client.is_trusted_proxy else ()
    return NAME, exchange.site, request.scheme, request.authority.lower(), request.uri, said


def _said_by_proxy(headers: frontd.Headers) -> tuple[bytes, ...]:
    """What a trusted proxy says of the URL, without whom it says it of: ``name:value`` for each name."""
    said: dict[bytes, list[bytes]] = {}
    for name, _, value in headers:
        like = frontd.normal_name(name)
        if like in _FORWARDED or (like.startswith(b"x-forwarded-") and like != b"x-forwarded-for"):
            said.setdefault(name, []).append(value)
    if b"forwarded" in said:
        rest = _FOR_AND_BY.sub(rb"\1\2", b",".join(said.pop(b"forwarded")))
        if rest.strip(b";, \t"):
            said[b"forwarded"] = [rest]
    return tuple(b"%s:%s" % (name, b",".join(said[name])) for name in sorted(said))


def url_size(url: Url) -> int:
    """Bytes of the texts in `url` that requests choose."""
    _, _, _, authority, uri, said = url
    return len(authority) + len(uri) + sum(map(len, said))


def is_personal(exchange: frontd.Exchange, ask: Ask) -> bool:
    """Whether the request says who is asking, to frontd or to the app."""
    tls = exchange.client.tls
    return ask.has_credentials or exchange.identity is not None or (tls is not None and tls.certificate is not None)
