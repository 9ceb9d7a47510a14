"""One downstream connection: its first bytes, TLS, and its requests one after the other (the task driver).

How it works
------------
    PROXY header → ClientHello → handshake → ( head → serve → body drained or not )* → close

Each connection is one trio task that carries the coroutine `converse`.  Its timers are HTTP.sys's: header wait from
accept for the first request and from the first byte for the next ones, idle time between requests; those inside an
exchange belong to the pipeline.

Invariants
----------
* Whatever happens to one connection is caught here, logged with a reason, and touches no other connection.
* A connection is kept only when both messages of an exchange are complete; everything else ends in a lingering close,
  and a cut answer in a reset.
* The next head is looked at only when the last exchange has ended: pipelined requests are answered in order.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import trio

from frontd.lanes.downstream import H1Downstream
from frontd.lanes.requests import make_request
from frontd.lanes.service import Service
from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import without_underscores
from frontd.model.messages import Client, Exchange, Request
from frontd.net.peek import NothingSent, peek
from frontd.net.streams import Broken, Stream
from frontd.net.tls import peek_hello, send_alert, shake_hands, wrap
from frontd.net.traps import carry, fault_of
from frontd.pipeline.answers import PHRASES, error_response
from frontd.pipeline.forward import reported_client
from frontd.pipeline.phases import Hook, Phases, ask, tell
from frontd.pipeline.plugin import Plugin
from frontd.pipeline.reply import refusal_of, refuse
from frontd.pipeline.serve import serve
from frontd.pipeline.world import Site, SiteState, World
from frontd.protocol.h1 import ServerConnection
from frontd.protocol.hello import MAX_PROXY_2, BadHello, read_proxy_header
from frontd.protocol.scan import RequestHead

PIPELINED_IN_A_ROW = 8
DRAINED_BODY = 262144  # bytes of an unwanted body that are read so that the connection can be kept; beyond: closed
GRACE = 5.0  # s to tell a client why it is refused, beyond its own timers


Identity = tuple[str | None, int, str]  # of a listener: address, port, and for free ports its name


@dataclass(slots=True, frozen=True)
class Door:
    """What a connection knows of the listener it came through."""

    name: str
    scheme: str
    public_port: int | None
    proxy_protocol: bool
    identity: Identity


class Connection:
    """One accepted socket and everything that is true for as long as it lives."""

    __slots__ = (
        "client", "closers", "door", "down", "http", "hung_up", "idle", "leaving", "scope", "service", "sock", "state",
        "stream",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, client: Client, door: Door, service: Service) -> None:
        self.sock = sock
        self.client = client
        self.door = door
        self.service = service
        self.stream = Stream(sock)
        self._end_watch(sock.fileno())
        self.http = ServerConnection()
        self.down: H1Downstream | None = None
        self.scope: trio.CancelScope | None = None  # of the exchange that is being answered
        self.idle: trio.CancelScope | None = None  # of the wait between two requests
        self.hung_up = False
        self.leaving = False  # after the answer that is being given
        self.state: SiteState | None = None  # of the site this connection counts for
        self.closers: dict[Plugin, Hook] = {}  # plugins that want to know when it ends

    def use(self, stream: Stream) -> None:
        """Go on with `stream`, TLS on the same socket."""
        self.stream = stream
        self._end_watch(stream.sock.fileno())

    def _end_watch(self, fd: int) -> None:
        self.stream.before_close = partial(self.service.hangups.forget, fd)

    def on_hangup(self) -> None:
        """The client has ended its side (called by `Hangups`)."""
        self.hung_up = True
        if self.scope is not None and not (self.down is not None and self.down.tunnelled):
            self.scope.cancel()

    def end(self) -> None:
        """Close at once; an answer that is not whole by a reset, so that nobody takes its end for the end."""
        http, stream = self.http, self.stream
        if stream.pending or (http.answered and not http.answer_complete):
            stream.abort()
        else:
            stream.close_now()

    def end_when_idle(self) -> None:
        """Shutting down: an idle connection ends now, a busy one after its answer."""
        self.leaving = True
        if self.idle is not None:
            self.idle.cancel()
        elif self.down is not None:
            self.down.closes = True

    def follow(self, door: Door | None) -> None:
        """After a reload: the listener may have another public port now, or be gone or of another kind, in which case
        nothing more can be asked through it."""
        if door is None or door.scheme != self.door.scheme:
            self.end_when_idle()
        else:
            self.door = door
            self.client = replace(self.client, listener=door.name, public_port=door.public_port)
        self._forget_plugins()

    def _forget_plugins(self) -> None:
        """Drop what plugins remembered of this connection that are there no more."""
        states, standing = self.client.states, set(self.service.world.plugins)
        for plugin in [one for one in states if one not in standing]:
            del states[plugin]

    def tell_plugins(self) -> None:
        """The connection has ended."""
        faults: list[tuple[str, Exception]] = []
        tell(tuple(self.closers.values()), self.client, faults)
        for where, error in faults:
            self.service.log_fault(f"plugin {where}", error)


async def handle(connection: Connection) -> None:
    """Serve one accepted, non-blocking socket to its end.  Never raises but for cancellation."""
    service = connection.service
    service.hangups.watch(connection.sock.fileno(), connection)
    try:
        await carry(converse(connection))
    except FrontdError as error:
        service.log_connection(connection.client, error.reason, error.detail)
    except NothingSent:
        pass  # like a plain client that leaves before its first byte: nobody's fault, no line
    except Broken as error:
        service.log_connection(connection.client, Reason.Connection_Dropped, str(error))
    except BaseException as error:  # the driver's net: a fault ends this connection, never the front
        if (fault := fault_of(error)) is None:
            raise
        service.log_fault("connection", fault)
        service.log_connection(connection.client, Reason.Internal, type(error).__name__)
    finally:
        service.leave(connection)
        if connection.state is not None:
            connection.state.connections -= 1
        connection.tell_plugins()
        connection.end()


async def refuse_at_door(sock: socket.socket) -> None:
    """Tell a plain client that the connection limit is reached, without reading its request."""
    stream = Stream(sock)
    try:
        await tell_refusal(stream, FrontdError(Reason.ConnLimit, retry_after=1))
    finally:
        stream.close_now()


async def tell_refusal(stream: Stream, error: FrontdError) -> None:
    """Answer a plain client that has not been read, and end the stream."""
    response = error_response(error, None, 0)
    http = ServerConnection()
    data = http.send_head(response.status, PHRASES[response.status], response.headers, close=True)
    with suppress(Broken):
        stream.send_now(data + http.send_body(response.body or b"") + http.send_end())
        await stream.close_gracefully()


async def converse(connection: Connection) -> None:
    """The first bytes, then one request after the other.

    Raises `FrontdError` and `Broken` for whatever ends it early.
    """
    deadline = trio.current_time() + connection.service.world.timeouts.header_wait
    if connection.door.proxy_protocol:
        await read_proxy(connection, deadline)
    if connection.service.world.server.accept_client:
        await accept(connection, deadline)
    if not await open_stream(connection, deadline):
        return
    stream = connection.stream
    requests = 0
    while True:
        head = await next_head(connection, stream, deadline)
        if head is None or not await answer(connection, stream, head):
            return
        requests += 1
        if requests % PIPELINED_IN_A_ROW == 0:  # a client with a long pipeline leaves the others their turn
            await trio.lowlevel.checkpoint()


async def read_proxy(connection: Connection, deadline: float) -> None:
    """Take the PROXY protocol header off the socket and believe it: the listener was told to."""
    try:
        header = await peek(connection.sock, read_proxy_header, MAX_PROXY_2, deadline)
    except (BadHello, Broken) as error:
        raise FrontdError(Reason.ProxyHeader, detail=str(error)) from None
    connection.sock.recv(header.size)
    if header.source is not None and header.destination is not None:
        address, port = header.source
        local, local_port = header.destination
        connection.client = replace(
            connection.client, address=address, peer=address, port=port, local_address=local, local_port=local_port
        )


async def accept(connection: Connection, deadline: float) -> None:
    """Ask the server's plugins whether this client may come in; one that fails lets nobody in.

    Raises `FrontdError` for a refusal, of which a plain client has been told then.
    """
    phases = connection.service.world.server
    connection.closers |= {hook.plugin: hook for hook in phases.client_closed}
    refusal: FrontdError | None = FrontdError(Reason.Timer_HeaderWait, detail="a plugin did not accept it in time")
    with trio.CancelScope(deadline=deadline):
        refusal = await ask_to_accept(connection, phases)
    if refusal is not None:
        if connection.door.scheme == "http":
            await tell_refusal(connection.stream, refusal)
        raise refusal


async def ask_to_accept(connection: Connection, phases: Phases) -> FrontdError | None:
    """The refusal of a plugin, or of one that failed; None: none."""
    for hook in phases.accept_client:
        try:
            answer = await ask(hook, connection.client)
        except BaseException as error:
            if (fault := fault_of(error)) is None:
                raise
            connection.service.log_fault(f"plugin {hook.where}", fault)
            return FrontdError(Reason.PluginFault, detail=f"{hook.where}: {type(error).__name__}")
        if answer is not None:
            return refusal_of(answer)
    return None


async def open_stream(connection: Connection, deadline: float) -> bool:
    """Shake hands on an https listener; False when the client was refused here."""
    if connection.door.scheme == "http":
        return True
    try:
        hello = await peek_hello(connection.sock, deadline)
        # a client of an IP address sends no name (RFC 6066 3); the address it came to says which one it meant
        name = hello.server_name or connection.client.local_address
        profile = connection.service.world.profiles.find(name)
        if profile is None:
            raise FrontdError(Reason.TlsHostname, detail=f"server name {hello.server_name or '(none)'}")
    except FrontdError as error:
        if error.reason is Reason.PlainHttp:
            await refuse_head(connection, connection.stream, error)
            return False
        send_alert(connection.sock, error)
        await connection.stream.close_gracefully()
        raise
    connection.use(wrap(connection.sock, profile))
    try:
        connection.client.tls = await shake_hands(connection.stream, hello, profile, deadline)
    except FrontdError:
        await connection.stream.close_gracefully()  # so that the client can read why: OpenSSL has sent an alert
        raise
    return True


# ---------------------------------------------------------------------------------------------------- heads


async def next_head(connection: Connection, stream: Stream, deadline: float) -> RequestHead | None:
    """The next request head; None when the client is done or was refused.

    The first head has until `deadline`, counted from accept.  Before the later ones the connection may be idle; from
    their first byte on the header wait runs.  Both timers are those of the site the connection was last used for.
    """
    http, last = connection.http, connection.down
    wire = connection.service.world.wire
    idle = not http.has_bytes
    if last is not None:
        deadline = trio.current_time() + (last.timeouts.idle_connection if idle else last.timeouts.header_wait)
    try:
        while (head := http.next_head(wire)) is None:
            if idle:
                reason = Reason.Timer_HeaderWait if last is None else Reason.Timer_ConnectionIdle
                data = await receive_idle(connection, stream, deadline, reason)
            else:
                data = await stream.receive(deadline, Reason.Timer_HeaderWait)
            if not data:
                if idle:
                    await stream.close_gracefully()
                    return None
                raise FrontdError(Reason.Connection_Dropped, detail="the connection ended inside a request head")
            if idle and last is not None:
                deadline = trio.current_time() + last.timeouts.header_wait
            idle = False
            http.receive(data)
    except Broken:
        if idle:  # a reset between two requests cuts nothing short
            return None
        raise
    except FrontdError as error:
        if idle:  # nothing was asked, so nothing is answered
            await stream.close_gracefully()
            raise
        if error.status == 0:
            raise
        await refuse_head(connection, stream, error)
        return None
    return head


async def receive_idle(connection: Connection, stream: Stream, deadline: float, reason: Reason) -> bytes:
    """The first bytes of a request; ``b""`` at the end of the stream, and when a shutdown ends the wait."""
    with trio.CancelScope() as connection.idle:
        try:
            if connection.leaving or connection.service.draining:
                connection.idle.cancel()
            return await stream.receive(deadline, reason)
        finally:
            connection.idle = None
    return stream.receive_now() or b""  # what has arrived meanwhile is a request like any other


async def refuse_head(connection: Connection, stream: Stream, error: FrontdError) -> None:
    """Answer something that never became a request, and close."""
    service = connection.service
    exchange = new_exchange(connection, None)
    down = H1Downstream(stream, connection.http, exchange, service.world.limits, service.world.timeouts)
    down.closes = True
    with trio.move_on_after(GRACE):
        await refuse(exchange, down, error)
    service.log_exchange(exchange, trio.current_time() - exchange.started)
    await stream.close_gracefully()


def new_exchange(connection: Connection, request: Request | None) -> Exchange:
    """The exchange of the head just read, in the current world; `request` is None when the head means no request."""
    world, client = connection.service.world, connection.client
    if request is not None and world.trusts(client.peer):
        address = reported_client(request.headers, client.peer, world.trusts)
        # other users come through the same connection: what a plugin remembers of it would be remembered of them
        client = replace(client, address=address, is_trusted_proxy=True, states={})
    if request is not None:
        request.scheme = scheme_of(request, client)
    exchange = Exchange(client, request, trio.current_time(), time.time())
    exchange.generation = world.generation
    head = connection.http.head
    if head is not None:
        exchange.method, exchange.uri = head.method.decode("ascii"), head.target.decode("ascii")
        exchange.version, exchange.fields, exchange.bytes_in = head.version.decode("ascii"), head.headers, head.size
    return exchange


def scheme_of(request: Request, client: Client) -> str:
    """What the client typed: as the connection says, or as a trusted proxy in front of frontd does."""
    said = set(request.headers.tokens(b"x-forwarded-proto")) if client.is_trusted_proxy else set()
    if len(said) > 1:  # one of them may be the client's: what is kept for https is then not given
        return "http"
    return "https" if said == {b"https"} else "http" if said == {b"http"} else client.scheme


# ---------------------------------------------------------------------------------------------------- exchanges


async def answer(connection: Connection, stream: Stream, head: RequestHead) -> bool:
    """Answer one request; whether the connection is kept."""
    service, http = connection.service, connection.http
    world = service.world
    try:
        request = make_request(head)
    except FrontdError as error:
        await refuse_head(connection, stream, error)
        return False
    exchange = new_exchange(connection, request)
    down = connection.down = H1Downstream(stream, http, exchange, world.limits, world.timeouts)
    down.closes = connection.leaving or service.draining
    try:
        with trio.CancelScope() as connection.scope:
            if connection.hung_up:
                connection.scope.cancel()
            await run(connection, exchange, down, world, head)
    finally:
        connection.scope = None
        service.log_exchange(exchange, trio.current_time() - exchange.started)
    return await settle(connection, stream, down)


def left_early(down: H1Downstream) -> Reason:
    """The reason for a client that left: HTTPERR tells apart whether its answer had begun."""
    return Reason.Client_Reset if down.can_answer else Reason.Connection_Dropped


async def run(connection: Connection, exchange: Exchange, down: H1Downstream, world: World, head: RequestHead) -> None:
    """The pipeline, and the one broad net under it: a fault of ours is a 500 for this exchange and nothing more.
    However it ends, the plugins of the site are told."""

    entered: Site | None = None

    def enter(site: Site) -> None:
        nonlocal entered
        entered = site
        enter_site(connection, exchange, down, site)

    try:
        await serve(exchange, down, world, enter, head.size)
    except BaseException as error:  # the driver's net
        if (fault := fault_of(error)) is None:
            exchange.reason = exchange.reason or (left_early(down) if connection.hung_up else Reason.AppShutdown)
            raise
        connection.service.log_fault(f"request {exchange.number}", fault)
        await refuse(exchange, down, FrontdError(Reason.Internal, detail=type(error).__name__))
    finally:
        if entered is not None:
            tell(entered.phases.log, exchange, exchange.faults)
    if exchange.reason is not None and entered is not None:
        entered.state.errors += 1


def enter_site(connection: Connection, exchange: Exchange, down: H1Downstream, site: Site) -> None:
    """The site is known: its limits and timers hold from here on, and the connection counts for it.

    Raises `FrontdError` with ``ConnLimit`` when the site has too many connections.
    """
    state = site.state
    if connection.state is not state:
        if connection.state is not None:
            connection.state.connections -= 1
            connection.state = None
        limit = site.limits.max_connections
        if limit is not None and state.connections >= limit:
            down.closes = True
            raise FrontdError(Reason.ConnLimit, detail=f"site {site.name}: {limit}", retry_after=1)
        connection.state = state
        state.connections += 1
    state.requests += 1
    down.limits, down.timeouts = site.limits, site.timeouts
    for hook in site.phases.client_closed:
        connection.closers[hook.plugin] = hook
    request = exchange.request
    if not site.keeps_underscores:
        request.headers, exchange.underscores = without_underscores(request.headers)


async def settle(connection: Connection, stream: Stream, down: H1Downstream) -> bool:
    """After an exchange: keep the connection, end it so that its answer arrives, or cut it."""
    http = connection.http
    if down.tunnelled or not http.answer_complete or stream.pending:
        connection.end()
        return False
    if not http.body_complete and not http.waits_for_100 and not http.closes_after_answer:
        try:
            await down.drain_body(DRAINED_BODY)
        except FrontdError:
            await stream.close_gracefully()  # the answer is whole and may still be on its way
            raise
    if http.must_close:
        await stream.close_gracefully()
        return False
    http.next_cycle()
    return True
