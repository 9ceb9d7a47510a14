"""The first bytes of a connection: PROXY header, the server's plugins, ClientHello, handshake.

Invariant: whatever ends it here is told to the client where its protocol has a word for it, and logged with a reason.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace

import trio

from frontd.lanes.connection import Connection
from frontd.lanes.turn import dealt_with, refuse_head
from frontd.model.errors import FrontdError, Reason
from frontd.net.peek import peek
from frontd.net.streams import Broken, Stream
from frontd.net.tls import peek_hello, send_alert, shake_hands, wrap
from frontd.net.traps import clock, fault_of, task_lane
from frontd.pipeline.answers import PHRASES, error_response
from frontd.pipeline.phases import Hook, checked
from frontd.pipeline.reply import refusal_of
from frontd.protocol.h1 import ServerConnection
from frontd.protocol.hello import MAX_PROXY_2, BadHello, read_proxy_header


def begin(connection: Connection) -> None:
    """Have an accepted connection driven from here on."""
    service, door = connection.service, connection.door
    world = service.world
    connection.header_deadline = clock.now() + world.timeouts.header_wait
    service.enter(connection, door.identity)
    plain = door.scheme == "http" and not door.proxy_protocol and not world.server.accept_client
    service.reactor.welcome(connection, None if plain else opening(connection))


async def opening(connection: Connection) -> None:
    """Everything before the first request; afterwards the connection is idle, or over."""
    try:
        deadline = connection.header_deadline
        if connection.door.proxy_protocol:
            await read_proxy(connection, deadline)
        if connection.service.world.server.accept_client:
            await accept(connection, deadline)
        if connection.door.scheme == "https":
            await open_tls(connection, deadline)
    except BaseException as error:
        if not dealt_with(connection, error):
            raise


async def read_proxy(connection: Connection, deadline: float) -> None:
    """Take the PROXY protocol header off the socket and believe it: the listener was told to."""
    stream = connection.stream
    try:
        header = await peek(stream, read_proxy_header, MAX_PROXY_2, deadline)
    except (BadHello, Broken) as error:
        raise FrontdError(Reason.ProxyHeader, detail=str(error)) from None
    stream.sock.recv(header.size)
    stream.ready = True  # what came behind it waits
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
    if phases.client_closed:
        connection.closers = {hook.plugin: hook for hook in phases.client_closed}
    for hook in phases.accept_client:
        refusal = await ask_to_accept(connection, hook, deadline)
        if refusal is not None:
            if connection.door.scheme == "http":
                await task_lane()
                await tell_refusal(connection.stream, refusal)
            raise refusal


async def ask_to_accept(connection: Connection, hook: Hook, deadline: float) -> FrontdError | None:
    """The refusal of a plugin, or of one that failed; None: none."""
    try:
        answer = hook.function(connection.client)
        if isinstance(answer, Awaitable):
            await task_lane()
            with trio.CancelScope(deadline=deadline) as scope:
                answer = await checked(hook, answer)
            if scope.cancelled_caught:
                return FrontdError(Reason.Timer_HeaderWait, detail="a plugin did not accept it in time")
        else:
            answer = await checked(hook, answer)
    except BaseException as error:
        if (fault := fault_of(error)) is None:
            raise
        connection.service.log_fault(f"plugin {hook.where}", fault)
        return FrontdError(Reason.PluginFault, detail=f"{hook.where}: {type(error).__name__}")
    return refusal_of(answer) if answer is not None else None


async def open_tls(connection: Connection, deadline: float) -> None:
    """Shake hands on an https listener.  Raises `FrontdError` when that fails; the client was told why then."""
    try:
        hello = await peek_hello(connection.stream, deadline)
        # a client of an IP address sends no name (RFC 6066 3); the address it came to says which one it meant
        name = hello.server_name or connection.client.local_address
        profile = connection.service.world.profiles.find(name)
        if profile is None:
            raise FrontdError(Reason.TlsHostname, detail=f"server name {hello.server_name or '(none)'}")
    except FrontdError as error:
        if error.reason is Reason.PlainHttp:
            await refuse_head(connection, error)
            return
        send_alert(connection.stream.sock, error)
        await connection.stream.linger()
        raise
    connection.use(wrap(connection.stream.sock, profile))
    try:
        connection.client.tls = await shake_hands(connection.stream, hello, profile, deadline)
    except FrontdError:
        await connection.stream.linger()  # so that the client can read why: OpenSSL has sent an alert
        raise


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
