"""Header fields, set, appended and removed on the way to the app and back, and HSTS.

How it works
------------
Fields are changed in the order remove, set, append.  *Set* replaces every field of that name by one; *append* adds one
more line (RFC 9110 5.3), so it is refused for fields that stand alone; *remove* takes all lines.  Values are sent as
they are written, letter for letter: there are no placeholders.  (``${VAR}`` in the file is replaced when it is read.)

Answers are changed on their way out, whatever made them: the app, a cache, a file, an error page.

``Strict-Transport-Security`` is sent over https only, whether `hsts` or `set_response` says it: over http it must not
be (RFC 6797 7.2), and browsers ignore it there (8.1).

Some fields are not this plugin's to change: those that frame a message or end at each hop, those that tell the app who
the client is and who has logged on, and those that describe a body which is not changed along with them.  ``Host``
may be set for the app, since exactly one must be there (RFC 9112 3.2); ``X-Forwarded-Host`` keeps what the client said.
What is set is part of the configuration and shown with it: a password in a field is better off in the app.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import AfterValidator, Field

import frontd

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.1
_VALUE = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?|")  # RFC 9110 5.5, without obs-text
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_NOT_ALNUM = re.compile(r"[^a-z0-9]")

_HOP = {
    "connection", "content-length", "expect", "http2-settings", "keep-alive", "proxy-authenticate",
    "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
}  # fmt: skip
_BODY = {"content-encoding", "content-range"}
_CLIENT = {
    "forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix",
    "x-forwarded-proto", "x-forwarded-server", "x-real-ip",
}  # fmt: skip
_IDENTITY = {"x-remote-user", "x-remote-groups", "x-auth-scheme"}
_ALONE = {
    "access-control-allow-credentials", "access-control-allow-origin", "access-control-max-age", "age",
    "authorization", "content-disposition", "content-location", "content-type", "cookie", "date", "etag", "expires",
    "from", "host", "if-modified-since", "if-range", "if-unmodified-since", "last-modified", "location",
    "max-forwards", "origin", "range", "referer", "retry-after", "server", "strict-transport-security", "user-agent",
}  # fmt: skip
STS = "Strict-Transport-Security"
YEAR = 365 * 86400


def _names(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is not a field name (RFC 9110 5.1)")
        if name.lower() in seen:
            raise ValueError(f"{name!r} stands there twice; case does not count")
        seen.add(name.lower())


def _list_of_names(names: tuple[str, ...]) -> tuple[str, ...]:
    _names(names)
    return names


def _fields(fields: dict[str, str]) -> dict[str, str]:
    _names(fields)
    for name, value in fields.items():
        if not _VALUE.fullmatch(value):
            raise ValueError(
                f"the value of {name!r} is not a field value: printable ASCII without blanks around it (RFC 9110 5.5)"
            )
        if name.lower() == "host" and not _HOST.fullmatch(value):
            raise ValueError(f"{value!r} is not a host, or a host and a port")
    return fields


Names = Annotated[tuple[str, ...], AfterValidator(_list_of_names)]
Fields = Annotated[dict[str, str], AfterValidator(_fields)]


class Hsts(frontd.Settings):
    """HTTP Strict Transport Security (RFC 6797): browsers then use https alone."""

    max_age: frontd.Duration = Field(
        default=float(YEAR),
        description="How long browsers remember it, 366 days at most; `0` makes them forget (one year, what the "
        "preload list asks for; IIS: 0).",
    )
    include_subdomains: bool = Field(
        default=False, description="Names below the host as well (RFC 6797 6.1.2; IIS includeSubDomains: false)."
    )
    preload: bool = Field(
        default=False,
        description="Browser makers may ship the host in their lists; hard to take back (IIS preload: false).",
    )

    def __str__(self) -> str:
        parts = [f"max-age={int(self.max_age)}"]
        parts += ["includeSubDomains"] if self.include_subdomains else []
        parts += ["preload"] if self.preload else []
        return "; ".join(parts)


class Headers(frontd.Plugin):
    """Header fields, set, appended and removed both ways (see the module's text)."""

    name = "headers"

    class Settings(frontd.Settings):
        """What is done to header fields; nothing unless it is said (IIS customHeaders: response fields only)."""

        set_request: Fields = Field(default={}, description="Fields to the app: name and the one value.")
        append_request: Fields = Field(default={}, description="Fields to the app, beside those the client sent.")
        remove_request: Names = Field(default=(), description="Fields of the client that the app does not get.")
        set_response: Fields = Field(default={}, description="Fields of every answer: name and the one value.")
        append_response: Fields = Field(default={}, description="Fields of every answer, beside those it has.")
        remove_response: Names = Field(
            default=(), description="Fields that no answer has, such as Server (IIS removeServerHeader: false)."
        )
        hsts: Hsts | None = Field(
            default=None, description="Strict-Transport-Security on https answers; `{}` for one year (IIS hsts: off)."
        )

    settings: Settings

    @classmethod
    def check(cls, settings: Settings, site: frontd.SiteFacts) -> Iterator[str]:
        """Fields that are not this plugin's, and settings that contradict each other."""
        given = settings
        for key in ("set_request", "append_request", "remove_request"):
            yield from _owned(key, getattr(given, key), _HOP | _BODY | _CLIENT | _IDENTITY)
        for key in ("set_response", "append_response", "remove_response"):
            yield from _owned(key, getattr(given, key), _HOP | _BODY | {"www-authenticate"})
        if "host" in (name.lower() for name in given.remove_request):
            yield "remove_request: Host cannot be removed; every request has exactly one (RFC 9112 3.2)"
        for key in ("append_request", "append_response"):
            for name in getattr(given, key):
                if name.lower() in _ALONE:
                    yield f"{key}: {name} stands alone in a message; use {key.replace('append', 'set')}"
        for side in ("request", "response"):
            replaced = {name.lower() for name in getattr(given, f"set_{side}")}
            for name in getattr(given, f"remove_{side}"):
                if name.lower() in replaced:
                    yield f"remove_{side}: {name} is in set_{side}, which replaces it anyway"
        if given.hsts and STS.lower() in (name.lower() for name in (*given.set_response, *given.remove_response)):
            yield f"{STS} is said by hsts and by another key"
        if given.hsts and given.hsts.preload and not (given.hsts.include_subdomains and given.hsts.max_age >= YEAR):
            yield "hsts: the preload list asks for include_subdomains and a max_age of one year (365d) at least"
        if settings == cls.Settings():
            yield "nothing is changed; name at least one field"

    def prepare(self) -> None:
        """Encode names and values once."""
        given = self.settings
        self._request = _Changes(given.remove_request, given.set_request, given.append_request)
        every = {**given.set_response, **({STS: str(given.hsts)} if given.hsts else {})}
        self._secure = _Changes(given.remove_response, every, given.append_response)
        plain = {name: value for name, value in every.items() if name.lower() != STS.lower()}
        self._plain = _Changes(given.remove_response, plain, given.append_response)

    def rewrite_request(self, exchange: frontd.Exchange) -> None:
        """Change what goes to the app."""
        self._request.make(exchange.request.headers)

    def rewrite_response(self, exchange: frontd.Exchange) -> None:
        """Change what goes to the client."""
        changes = self._secure if exchange.request.scheme == "https" else self._plain
        changes.make(exchange.response.headers)


class _Changes:
    """What is done to one header section."""

    __slots__ = ("_append", "_remove", "_set")

    def __init__(self, remove: Iterable[str], replace: dict[str, str], append: dict[str, str]) -> None:
        self._remove = tuple(name.encode() for name in remove)
        self._set = tuple((name.encode(), value.encode()) for name, value in replace.items())
        self._append = tuple((name.encode(), value.encode()) for name, value in append.items())

    def make(self, headers: frontd.Headers) -> None:
        for name in self._remove:
            headers.remove(name)
        for name, value in self._set:
            headers.set(name, value)
        for name, value in self._append:
            headers.add(name, value)


def _owned(key: str, names: Iterable[str], owned: set[str]) -> Iterator[str]:
    """A sentence for each name that may not be changed.  Compared as CGI-style apps see names: ``X_Remote.User`` is
    ``X-Remote-User``."""
    for name in names:
        like_cgi = _NOT_ALNUM.sub("-", name.lower())
        if like_cgi not in owned:
            continue
        if like_cgi in _IDENTITY:
            why = "it tells the app who has logged on, and frontd alone says that"
        elif like_cgi in _CLIENT:
            why = "it tells the app where the request came from, and frontd alone says that"
        elif like_cgi in _BODY:
            why = "it describes the body, which stays as it is"
        elif like_cgi == "www-authenticate":
            why = "challenges are the authenticators'"
        else:
            why = "it frames the message or ends at each hop, and frontd writes it anew"
        yield f"{key}: {name} cannot be changed here: {why}"
