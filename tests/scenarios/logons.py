"""An app that logs connections on, as IIS does with NTLM, and what its users say to it.

Whatever comes over a connection after a logon is that user's.  `Logons` is the book of it: who was logged on over which
connection, and which connections each user's answers came over.
"""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.wire import App, Line, app

HELLO = base64.b64encode(b"NTLMSSP\0\1").decode()  # in place of a NEGOTIATE_MESSAGE (MS-NLMP 2.2.1.1)


@dataclass
class Logons:
    """What the app has seen: requests by connection, in order; users by connection."""

    asked: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    users: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    bodies: list[bytes] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)  # connections that frontd has ended
    app: App | None = None

    @property
    def connections(self) -> int:
        assert self.app is not None
        return self.app.connections

    @property
    def url(self) -> str:
        assert self.app is not None
        return self.app.url

    async def serve(self, line: Line) -> None:
        """One connection; `user` is who has logged on over it, `nonce` what the handshake that goes on began with."""
        user = nonce = ""
        while True:
            head, body = await line.message()
            if not head:
                self.ended.append(line.number)
                return
            path = head.split(b" ")[1].decode()
            scheme, token = credentials(head)
            self.asked[line.number].append(f"{path} {scheme}".rstrip())
            if body:
                self.bodies.append(body)
            challenge = ""
            if scheme == "ntlm" and token == HELLO:
                user, nonce = "", f"nonce-{line.number}-{len(self.asked[line.number])}"
                challenge = f"NTLM {nonce}"
            elif scheme == "ntlm":
                name, _, answered = token.partition(":")
                user, nonce = (name if nonce and answered == nonce else ""), ""
            elif scheme == "negotiate":  # one leg, and the connection remembers it: what makes pools dangerous
                user = token
            if user:
                self.users[line.number].add(user)
                text = f"{user} {line.number}".encode()
                kept = "close" if path == "/close" else "keep-alive"
                more = "Cache-Control: max-age=60\r\n" if path == "/cached" else ""
                await line.send(
                    f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\nPersistent-Auth: true\r\n{more}"
                    f"Connection: {kept}\r\n\r\n".encode() + text
                )
                if kept == "close":
                    return
            elif path == "/open":
                await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nnobody")
            else:
                challenges = challenge or "Negotiate\r\nWWW-Authenticate: NTLM"
                await line.send(
                    f"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {challenges}\r\nContent-Length: 0\r\n\r\n".encode()
                )


def credentials(head: bytes) -> tuple[str, str]:
    """Scheme in lower case and token of ``Authorization``; empty when there is none."""
    found = re.search(rb"(?i)\r\nauthorization: *(\S+) *([^\r]*)", head)
    return (found[1].decode().lower(), found[2].decode()) if found else ("", "")


@asynccontextmanager
async def logons(port: int = 0) -> AsyncIterator[Logons]:
    """The app, running."""
    book = Logons()
    async with app(book.serve, port) as book.app:
        yield book


def status(head: bytes) -> int:
    """The status of an answer; 0 when the connection ended without one."""
    return int(head.split(b" ")[1]) if head.startswith(b"HTTP/") else 0


async def hello(line: Line, path: str = "/") -> str:
    """The first leg; the nonce."""
    head, _ = await line.get(path, f"Authorization: NTLM {HELLO}")
    found = re.search(rb"WWW-Authenticate: NTLM (\S+)", head)
    assert status(head) == 401, head
    assert found, head
    return found[1].decode()


async def log_on(line: Line, user: str, path: str = "/") -> tuple[bytes, bytes]:
    """Both legs; the answer to the second one."""
    nonce = await hello(line, path)
    return await line.get(path, f"Authorization: NTLM {user}:{nonce}")
