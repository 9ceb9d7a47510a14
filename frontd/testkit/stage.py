"""A running site in memory, and what a test does with it.

How it works
------------
A `Front` as it serves in production runs in the loop's thread.  Only its two ends are others: nobody listens, since
clients are handed in as socket pairs; and the log is kept in lists.  The pair carries plain bytes whatever the site's
scheme; the client's facts say that TLS was spoken.  So two things are not as on a socket: whom `accept_client` refuses
on an https site can read why, and ``limits.max_connections`` of the whole server counts for nothing.

Invariant: when a method returns, everything that could happen has happened (see `frontd.testkit.loop`).
"""

from __future__ import annotations

import itertools
import socket
from dataclasses import replace
from typing import Any

from frontd.config.load import Loaded
from frontd.config.model import Listen
from frontd.lanes.connection import Connection, Door
from frontd.lanes.listener import Listener
from frontd.lanes.opening import begin
from frontd.lanes.service import Service
from frontd.model.messages import Client as Peer
from frontd.model.messages import TlsInfo, TlsPolicy
from frontd.processes.front import Front
from frontd.processes.runtime import BuildProblem, build
from frontd.testkit.app import App
from frontd.testkit.client import Client, Habits, Headers
from frontd.testkit.document import ConfigurationError, Document, Plugins
from frontd.testkit.loop import Loop
from frontd.testkit.messages import Answer, Entry
from frontd.testkit.record import KeptLog, KeptService, Record

CLIENT_ADDRESS = "192.0.2.1"  # RFC 5737
SERVER_ADDRESS = "198.51.100.1"


class SiteUnderTest:
    """One site, its app, its clock and its log.  Made by `frontd.testing.site`.

    `app` is the app behind it, `clock` its time.  `split` sends every request in pieces of so many bytes.
    """

    def __init__(
        self, loop: Loop, document: Document, scheme: str, host: str, client_address: str, split: int | None
    ) -> None:
        self.clock = Clock(loop)
        self.app = App(document.socket, loop)
        self.scheme = scheme
        self.host = host
        self.client_address = client_address
        self.split = split
        self._record = Record()
        self._loop = loop
        self._document = document
        self._clients: list[Client] = []
        self._ports = itertools.count(40001)
        self._front: Front | None = None
        self._server_plugins: Plugins = ()

    # ------------------------------------------------------------------ requests

    def connect(self, *, client_address: str | None = None, scheme: str | None = None) -> Client:
        """A connection that is kept, as a context manager: ``with s.connect() as c: c.get("/")``.

        `client_address` is the client's IP address, `scheme` http or https; left out, they are the site's.
        """
        ours, theirs = socket.socketpair()
        try:
            self._loop.run(self._welcome, theirs, client_address or self.client_address, scheme or self.scheme)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        client = Client(ours, self._loop, self.app, Habits(self.host, self.split))
        self._clients.append(client)
        self._loop.settle()
        return client

    def get(self, path: str = "/", headers: Headers = (), **more: Any) -> Answer:
        """GET on a connection of its own; see `request`."""
        return self.request("GET", path, headers, **more)

    def post(self, path: str = "/", body: bytes | str = b"", headers: Headers = (), **more: Any) -> Answer:
        """POST on a connection of its own; see `request`."""
        return self.request("POST", path, headers, body, **more)

    def request(
        self, method: str, path: str = "/", headers: Headers = (), body: bytes | str = b"", *, host: str | None = None,
        auth: tuple[str, str] | None = None, split: int | None = None, advance: float = 0.0,
        client_address: str | None = None, scheme: str | None = None,
    ) -> Answer:  # fmt: skip
        """One request on a connection of its own; see `Client.request` and `connect` for what can be said."""
        with self.connect(client_address=client_address, scheme=scheme) as client:
            return client.request(method, path, headers, body, host=host, auth=auth, split=split, advance=advance)

    # ------------------------------------------------------------------ what was noted

    @property
    def log(self) -> list[Entry]:
        """What the access and the error log say, newest last."""
        return self._record.entries

    @property
    def remarks(self) -> list[str]:
        """What plugins remarked, newest last: ``plugin NAME of the site test: TEXT``, without ``of the site test`` for
        one of the whole server."""
        return self._record.remarks

    @property
    def errors(self) -> list[str]:
        """What plugins raised, with tracebacks.  They also go to stderr, which pytest shows when a test fails.

        A fault fails the test at the end, unless the test has looked here after it: also one that was answered with
        500, since a test that asks only whether something was refused would not notice.
        """
        self._record.unseen.clear()
        return self._record.faults

    # ------------------------------------------------------------------ the configuration

    def reload(self, plugins: Plugins, *, server_plugins: Plugins | None = None) -> list[str]:
        """Replace the plugins, as a reload of the configuration does; returns what changed, in words.

        Raises `ConfigurationError` when the new configuration is refused; the old one serves on then.
        """
        server = self._server_plugins if server_plugins is None else server_plugins
        loaded = self._document.load(plugins, server)
        assert self._front is not None
        report = self._loop.call(self._front.reload, lambda: loaded)
        self._loop.settle()
        if not report.ok:
            raise ConfigurationError("\n".join(report.errors))
        self._server_plugins = server
        return list(report.changed)

    # ------------------------------------------------------------------ begin and end

    def open(self, plugins: Plugins, server_plugins: Plugins) -> None:
        """Start the app and the front.  Raises `ConfigurationError`."""
        self._server_plugins = server_plugins
        loaded = self._document.load(plugins, server_plugins)
        self.app.start()
        try:
            self._loop.call(self._serve, loaded)
        except BuildProblem as error:
            raise ConfigurationError(str(error)) from error
        self._loop.settle()

    async def _serve(self, loaded: Loaded) -> None:
        log = KeptLog(self._record)
        try:
            world = build(loaded.config, 1, None, log.remark)
        except BaseException:
            log.close()
            raise
        listeners: list[Listener] = [_MemoryListener(settings) for settings in loaded.config.listen.values()]
        self._front = Front(loaded, listeners, KeptService(world, log, self._record))
        await self._loop.nursery.start(self._front.run)

    def check(self) -> None:
        """Raises `AssertionError` when a plugin failed and the test did not look at `errors` afterwards."""
        self._loop.settle()
        self._record.check()

    def close(self) -> None:
        """End everything.  Raises what went wrong in the loop."""
        for client in self._clients:
            client.abandon()
        try:
            self._loop.close()
        finally:
            if self._front is not None:
                self._front.service.log.close()

    def _welcome(self, sock: socket.socket, address: str, scheme: str) -> None:
        front = self._front
        assert front is not None
        listener = next((one for one in front.listeners if one.settings.kind == scheme), None)
        if listener is None:
            raise ValueError(f"the site has no {scheme} URL")
        settings = listener.settings
        peer = Peer(
            address=address, port=next(self._ports), peer=address, local_address=SERVER_ADDRESS,
            local_port=settings.port, listener=settings.name, scheme=settings.kind, public_port=listener.public_port,
        )  # fmt: skip
        if settings.kind == "https":
            peer.tls = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", self.host, None, TlsPolicy())
        begin(_MemoryConnection(sock, peer, replace(listener.door, scheme="http"), front.service))


class Clock:
    """The clock of the test, which stands still until it is moved.  It is trio's; ``time.time()`` is not changed."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    @property
    def now(self) -> float:
        """Seconds since the site was started."""
        return self._loop.now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass; every timer on the way expires in its turn."""
        self._loop.advance(seconds)


# ------------------------------------------------------------------------------------------------ the ends of a front


class _MemoryListener(Listener):
    """A listener at which nobody can knock; its settings are those of the configuration."""

    def __init__(self, settings: Listen) -> None:
        super().__init__(settings, socket.socket())

    async def run(self, service: Service, nursery: object) -> None:
        """Do nothing: there is nothing to accept."""


class _MemoryConnection(Connection):
    """A connection of plain bytes that passes for one of its listener's kind."""

    __slots__ = ()

    def follow(self, door: Door | None) -> None:
        super().follow(door and replace(door, scheme="http"))
