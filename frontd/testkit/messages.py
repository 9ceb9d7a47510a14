"""What a test looks at: header fields as text, a request as the app saw it, an answer, an entry of the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from frontd.model.errors import Reason
from frontd.model.messages import Client, Exchange

SHOWN = 200  # characters of a body in a repr, which is what a failed assertion prints


class Fields(Mapping[str, str]):
    """Header fields: names in any case, values as text; ``[]`` is the first value of a name, `get_all` every one."""

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.pairs = [(name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in pairs]
        """(name as sent, value), in order."""

    def get_all(self, name: str) -> list[str]:
        """Every value of `name`, in order."""
        return [value for key, value in self.pairs if key.lower() == name.lower()]

    def __getitem__(self, name: str) -> str:
        found = self.get_all(name)
        if not found:
            raise KeyError(f"{name}; there are: {', '.join(self)}")
        return found[0]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.lower() for name, _ in self.pairs))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"<Fields {self.pairs}>"


@dataclass(frozen=True, slots=True)
class AppRequest:
    """A request as the app saw it.  `target` is path and query as they arrived, `body` whole and without framing."""

    method: str
    target: str
    headers: Fields
    body: bytes = b""

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got.

    `upstream` is the request as the app saw it; None when the app was not asked.  `interim` holds the status codes
    before the final one (100, 103).
    """

    status: int
    headers: Fields
    body: bytes = b""
    upstream: AppRequest | None = None
    interim: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= SHOWN else f"{self.text[:SHOWN]}…"
        asked = "" if self.upstream else ", the app was not asked"
        return f"<Answer {self.status} {dict(self.headers.pairs)} {text!r}{asked}>"


@dataclass(frozen=True, slots=True)
class Entry:
    """What the logs say of one exchange, or of a connection that ended with a reason and without one (`status` 0).

    `reason` is the word of `frontd.Reason`, None when nothing went wrong; `detail` is for the log alone; `user` is the
    identity's name; `seconds` are counted by the clock of the test.
    """

    method: str = ""
    path: str = ""
    status: int = 0
    substatus: int = 0
    reason: str | None = None
    detail: str = ""
    user: str | None = None
    groups: tuple[str, ...] = ()
    site: str = ""
    route: str = ""
    pool: str = ""
    client: str = ""
    seconds: float = 0.0
    attempts: int = 0

    @classmethod
    def of(cls, exchange: Exchange, seconds: float) -> Entry:
        """The entry of an exchange that is over."""
        identity = exchange.identity
        return cls(
            method=exchange.method,
            path=exchange.request.path if exchange.is_understood else exchange.uri,
            status=exchange.status,
            substatus=exchange.substatus,
            reason=exchange.reason.word if exchange.reason else None,
            detail=exchange.detail,
            user=identity.name if identity else None,
            groups=identity.groups if identity else (),
            site=exchange.site,
            route=exchange.route,
            pool=exchange.pool,
            client=exchange.client.address,
            seconds=seconds,
            attempts=exchange.attempts,
        )

    @classmethod
    def of_connection(cls, client: Client, reason: Reason, detail: str) -> Entry:
        """The entry of a connection that ended without an exchange."""
        return cls(reason=reason.word, detail=detail, client=client.address)
