"""One turn of a connection: the requests that have come, each answered, until there is nothing more to read.

How it works
------------
A turn is a coroutine.  It begins when an idle connection has something to read and ends when it is idle again, or over.
It waits by the traps of `net.traps` alone, so that the reactor can drive it by plain calls for as long as nothing has
to be waited for but bytes, and a task whenever there is more.

Invariants
----------
* A connection is kept only when both messages of an exchange are complete; everything else ends in a lingering close,
  and a cut answer in a reset.
* The next head is looked at only when the last exchange has ended: pipelined requests are answered in order.
* Exactly one log line for each exchange, also when the client leaves or the front ends.
"""

from __future__ import annotations

import time
from dataclasses import replace

import trio

from frontd.lanes.connection import Connection
from frontd.lanes.downstream import DRAINED_BODY, H1Downstream
from frontd.lanes.requests import make_request, plain_request
from frontd.lanes.service import Lives
from frontd.model.errors import FrontdError, Reason
from frontd.model.messages import Exchange, Request
from frontd.net.peek import NothingSent
from frontd.net.streams import Broken
from frontd.net.traps import clock, fault_of, readable, task_lane
from frontd.pipeline.fields import reported_client
from frontd.pipeline.phases import tell
from frontd.pipeline.reply import refuse
from frontd.pipeline.serve import serve
from frontd.protocol.scan import RequestHead

PIPELINED_IN_A_ROW = 8
GRACE = 5.0  # s to tell a client why it is refused, beyond its own timers


async def turn(connection: Connection) -> None:
    """Bytes have come, or the end: answer what is asked, until nothing is left to read."""
    service, http, stream = connection.service, connection.http, connection.stream
    answered, deadline = 0, 0.0
    try:
        while True:
            head = http.next_head(service.world.wire)
            if head is not None:
                if not await answer(connection, head):
                    return
                answered += 1
                deadline = 0.0  # of that head
                if not http.has_bytes and not stream.ready and not connection.leaving:
                    return  # by far the commonest end; reading on would find nothing
                if answered == PIPELINED_IN_A_ROW:  # a client with a long pipeline leaves the others their turn
                    connection.more = True
                    return
                continue
            data = stream.receive_now()
            if data:
                http.receive(data)
            elif not http.has_bytes:
                if data is not None:
                    stream.end_writing()
                    connection.finish()
                elif connection.leaving and connection.at_rest() <= clock.now():
                    await close(connection)
                return
            elif data is not None:
                raise FrontdError(Reason.Connection_Dropped, detail="the connection ended inside a request head")
            else:
                deadline = deadline or header_deadline(connection)
                await readable(stream, deadline, Reason.Timer_HeaderWait)
    except FrontdError as error:
        if error.status == 0:
            dealt_with(connection, error)
        else:
            await refuse_head(connection, error)
    except BaseException as error:
        quiet = isinstance(error, Broken) and not http.has_bytes  # between two requests: it cuts nothing short
        if not quiet and not dealt_with(connection, error):
            raise
        connection.finish()


def header_deadline(connection: Connection) -> float:
    """Until when a head that has begun must be there: the first one counts from accept."""
    timeouts = connection.timeouts
    return connection.header_deadline if timeouts is None else clock.now() + timeouts.header_wait


async def end(connection: Connection) -> None:
    """The connection was idle for too long."""
    if not connection.leaving:
        reason = Reason.Timer_HeaderWait if connection.timeouts is None else Reason.Timer_ConnectionIdle
        connection.service.log_connection(connection.client, reason, "")
    await close(connection)


async def close(connection: Connection) -> None:
    """End an idle connection; lingering, since the next request may be on its way."""
    await connection.stream.linger()


def dealt_with(connection: Connection, error: BaseException) -> bool:
    """The one broad net under a connection: say what ended it, and end it.  False when it is not the connection that
    ends but the front."""
    service = connection.service
    if isinstance(error, FrontdError):
        service.log_connection(connection.client, error.reason, error.detail)
    elif isinstance(error, Broken):
        service.log_connection(connection.client, Reason.Connection_Dropped, str(error))
    elif not isinstance(error, NothingSent):  # like a plain client that leaves before its first byte: nobody's fault
        if (fault := fault_of(error)) is None:
            return False
        service.log_fault("connection", fault)
        service.log_connection(connection.client, Reason.Internal, type(error).__name__)
    connection.finish()
    return True


async def refuse_head(connection: Connection, error: FrontdError) -> None:
    """Answer something that never became a request, and close."""
    service, stream = connection.service, connection.stream
    exchange = new_exchange(connection, None)
    down = H1Downstream(stream, connection.http, exchange, service.world.limits, service.world.timeouts)
    down.closes = True
    await task_lane()
    with trio.move_on_after(GRACE):
        await refuse(exchange, down, error)
    service.log_exchange(exchange, clock.now() - exchange.started)
    await stream.linger()


# ---------------------------------------------------------------------------------------------------- exchanges


def new_exchange(connection: Connection, request: Request | None) -> Exchange:
    """The exchange of the head just read, in the current world; `request` is None when the head means no request."""
    service, client = connection.service, connection.client
    world = service.world
    if request is not None:
        if world.trusted_proxies and world.trusts(client.peer):
            address = reported_client(request.headers, client.peer, world.trusts)
            # other users come through the same connection: what a plugin remembers of it would be remembered of them
            client = replace(client, address=address, is_trusted_proxy=True, states=None)
            request.scheme = scheme_of(request, client.scheme)
        else:
            request.scheme = client.scheme
    exchange = Exchange(client, request, clock.now(), time.time())
    exchange.generation = world.generation
    head = connection.http.head
    if head is not None:
        exchange.method = request.method if request is not None else head.method.decode("ascii")
        exchange.version = request.version if request is not None else head.version.decode("ascii")
        exchange.uri, exchange.fields, exchange.bytes_in = head.target.decode("ascii"), head.headers, head.size
    return exchange


def scheme_of(request: Request, scheme: str) -> str:
    """What the client of a trusted proxy typed, as that proxy says; `scheme` is that of the proxy's own connection."""
    said = set(request.headers.tokens(b"x-forwarded-proto"))
    if len(said) > 1:  # one of them may be the client's: what is kept for https is then not given
        return "http"
    return "https" if said == {b"https"} else "http" if said == {b"http"} else scheme


async def answer(connection: Connection, head: RequestHead) -> bool:
    """Answer one request; whether the connection is kept."""
    service, http, stream = connection.service, connection.http, connection.stream
    world = service.world
    try:
        request = plain_request(head) if head.plain else make_request(head)
    except FrontdError as error:
        await refuse_head(connection, error)
        return False
    exchange = new_exchange(connection, request)
    down = connection.down = H1Downstream(stream, http, exchange, world.limits, world.timeouts)
    down.closes = connection.leaving or service.draining
    if stream.ending:
        connection.on_hangup()
    try:
        try:
            await serve(exchange, down, world, connection.enter, head.size)
        except BaseException as error:  # the net under the pipeline: a fault of ours is a 500 for this exchange alone
            if (fault := fault_of(error)) is None:
                exchange.reason = exchange.reason or (left_early(down) if connection.hung_up else Reason.AppShutdown)
                raise
            service.log_fault(f"request {exchange.number}", fault)
            await refuse(exchange, down, FrontdError(Reason.Internal, detail=type(error).__name__))
        finally:
            site, connection.site = connection.site, None
            if site is not None and site.phases.log:
                tell(site.phases.log, exchange, exchange.faults)
        if exchange.reason is not None and site is not None:
            site.state.errors += 1
    finally:
        connection.down = None
        service.log_exchange(exchange, clock.now() - exchange.started)
    if stream.pending or down.tunnelled or not http.recycle():
        return await settle(connection, down)
    return True


def left_early(down: H1Downstream) -> Reason:
    """The reason for a client that left: HTTPERR tells apart whether its answer had begun."""
    return Reason.Client_Reset if down.can_answer else Reason.Connection_Dropped


async def settle(connection: Connection, down: H1Downstream) -> bool:
    """After an exchange: keep the connection, end it so that its answer arrives, or cut it."""
    http, stream = connection.http, connection.stream
    if down.tunnelled or not http.answer_complete or stream.pending:
        if down.resets:
            stream.abort()
        connection.finish()
        return False
    if not http.body_complete and not http.waits_for_100 and not http.closes_after_answer:
        await task_lane()
        try:
            await down.drain_body(DRAINED_BODY)
        except FrontdError as error:
            await stream.linger()  # the answer is whole and may still be on its way
            if down.drains and error.reason is Reason.Connection_Dropped:  # they log on through another connection
                connection.finish()
            else:
                dealt_with(connection, error)
            return False
    if http.recycle():
        return True
    await stream.linger()
    return False


LIVES = Lives(turn, end)
