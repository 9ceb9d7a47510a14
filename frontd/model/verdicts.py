"""What a hook may answer, and who was found to be asking.

A hook returns None to let the exchange go on, or one of these.  They are plain frozen values: what they do is decided
by the pipeline, so that a plugin can be tested by comparing what it returns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from frontd.model.errors import Reason
from frontd.model.headers import TextOrBytes

REDIRECTS = frozenset((301, 302, 303, 307, 308))


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is asking.

    `name` and `groups` are what rules compare and what the app is told; `sids` are Windows security identifiers;
    `scheme` the authentication scheme; `expires` is in seconds since the epoch (None: not told);
    `connection_bound` says that the identity belongs to the connection and not to the request (NTLM).  `fits` is set
    once its texts were found to be sendable, so that of an identity that is given again and again it is asked once.
    Raises `ValueError` when `name` is empty: nobody is None, not an empty name.
    """

    name: str
    groups: tuple[str, ...] = ()
    sids: tuple[str, ...] = ()
    scheme: str = ""
    expires: float | None = None
    connection_bound: bool = False
    fits: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("an identity needs a name; an anonymous client has none (return None)")
        for key in ("groups", "sids"):  # a list is what people write; a text would become one group per letter
            value = getattr(self, key)
            if isinstance(value, str):
                raise ValueError(f"{key} is a tuple of texts, not one text")
            object.__setattr__(self, key, tuple(value))


@dataclass(frozen=True, slots=True)
class Allow:
    """`authorize`: a rule lets this exchange in, although nobody may have logged on.

    It does not end the phase: a later `authorize` can still refuse.
    """


@dataclass(frozen=True, slots=True)
class Continue:
    """`authenticate`: one leg of a handshake.  Answered with 401 and ``WWW-Authenticate: scheme token``; the connection
    is kept."""

    token: str
    scheme: str


@dataclass(frozen=True, slots=True)
class UseHttp11:
    """`authenticate`: this works on HTTP/1.1 only (RFC 9113 7, HTTP_1_1_REQUIRED)."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """`route`: send the client to `url` with `status` (301, 302, 303, 307, 308)."""

    url: str
    status: int = 308

    def __post_init__(self) -> None:
        if self.status not in REDIRECTS:
            raise ValueError(f"a redirect has status 301, 302, 303, 307 or 308, not {self.status}")
        if not self.url.isascii() or any(c <= " " or c == "\x7f" for c in self.url):
            raise ValueError("a redirect's URL has no blanks, controls or characters beyond ASCII")


@dataclass(frozen=True, slots=True)
class Refuse:
    """The exchange ends here, with the error page of `reason`.

    `status` is 400 to 599; `reason` a word of `Reason` ("Rejected", "LogonFailed", …: the vocabulary is closed);
    `substatus` IIS's second number (404.19: 19); `log` is for the log alone, `hint` is shown to the client; `headers`
    are added to the answer; `retry_after` is in seconds.  A 401 is completed with the site's challenges.
    Raises `ValueError` for an unknown reason or a status that is no error.
    """

    status: int
    reason: str | Reason
    substatus: int = 0
    log: str = ""
    hint: str = ""
    headers: Iterable[tuple[TextOrBytes, TextOrBytes]] = ()
    retry_after: int | None = None
    word: Reason = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 400 <= self.status <= 599:
            raise ValueError(f"a refusal has a status from 400 to 599, not {self.status}")
        known = _BY_WORD.get(str(self.reason))
        if known is None:
            raise ValueError(f"there is no reason {self.reason!r}; docs/errors.md lists them")
        object.__setattr__(self, "word", known)
        object.__setattr__(self, "headers", tuple(self.headers))  # once: it may be a generator
        if self.retry_after is not None and (type(self.retry_after) is not int or self.retry_after < 0):
            raise ValueError(f"retry_after is a number of seconds, not {self.retry_after!r}")


_BY_WORD = {reason.word: reason for reason in Reason}
