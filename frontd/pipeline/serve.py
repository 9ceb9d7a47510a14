"""The life of one request, top to bottom.

How it works
------------
`serve` is one coroutine.  It decides synchronously and waits only through the traps of `net.traps`, until `task_lane`
has moved it into a task; so a driver that makes plain calls can run everything up to the first real wait.

    find the site → check its limits → route → (redirect) → lease → send → read the head → relay the body → log

Invariants
----------
* Exactly one answer or one cut connection for each exchange, and exactly one log line, whatever happens.
* A response that has begun is completed or cut, never ended cleanly in the middle.
* A request is sent a second time only before the first byte of a response, and only when it is safe to repeat
  (RFC 9110 9.2.2: idempotent, or nothing of it was written) and its body is still at hand.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from frontd.model.errors import FrontdError, Reason, UpstreamGone
from frontd.model.headers import announced_trailers
from frontd.model.messages import Exchange, Request
from frontd.net.traps import readable, task_lane
from frontd.pipeline.answers import PHRASES, error_response, redirect_response
from frontd.pipeline.forward import (
    PARTS_IN_A_ROW,
    Downstream,
    Pump,
    RequestBody,
    downstream_headers,
    send_request_now,
    upstream_headers,
    upstream_target,
)
from frontd.pipeline.tunnel import Tally, tunnel
from frontd.pipeline.world import Destination, Site, World, check_limits
from frontd.protocol.h1 import End
from frontd.protocol.scan import ResponseHead
from frontd.upstream.balance import BACKOFF_FIRST
from frontd.upstream.client import Upstream
from frontd.upstream.pool import Lease, Pool

MOST_ATTEMPTS = 4
PASSED_1XX = frozenset((102, 103))  # 100 is answered by whoever reads the body, 101 begins a tunnel


async def serve(
    exchange: Exchange, down: Downstream, world: World, enter: Callable[[Site], None], head_size: int
) -> None:
    """Answer one request.  `enter` is called with the site once it is known, and may refuse (its connection limit).

    Never raises `FrontdError`: whatever fails is answered or cuts the connection here.
    """
    request = exchange.request
    assert request is not None
    try:
        site = world.site_for(request, exchange.client)
        exchange.site = site.name
        enter(site)
        check_limits(site, request, head_size)
        destination = site.routes.match(request.path)
        if destination is None:
            raise FrontdError(Reason.NotFound, detail="no route covers the path")
        exchange.route = destination.route
        if destination.pool is None:
            await redirect(exchange, down, destination, request)
        else:
            with destination.pool.exchange():
                await forward(exchange, down, site, destination, destination.pool)
    except FrontdError as error:
        await refuse(exchange, down, error)


async def redirect(exchange: Exchange, down: Downstream, destination: Destination, request: Request) -> None:
    """Answer with the redirect of the route."""
    response = redirect_response(destination, request, exchange.client.local_address)
    exchange.status = response.status
    down.start(response.status, PHRASES[response.status], response.headers, close=not down.skip_body())
    await finish(down, response.body, exchange.method)


async def refuse(exchange: Exchange, down: Downstream, error: FrontdError) -> None:
    """Answer with the error's page; where no answer is possible any more the client's connection will be cut."""
    exchange.reason, exchange.detail = error.reason, error.detail
    if error.status == 0 or not down.can_answer:
        return
    response = error_response(error, exchange.fields, exchange.number)
    exchange.status = response.status
    try:
        phrase = PHRASES.get(response.status, b"")
        down.start(response.status, phrase, response.headers, close=not down.skip_body())
        await finish(down, response.body, exchange.method)
    except FrontdError as gone:  # the client left while it was told
        exchange.detail = f"{error.detail} ({gone.reason.word} while answering)".lstrip()


async def finish(down: Downstream, body: bytes, method: str) -> None:
    """Send the whole body of an answer of our own and its end."""
    if body and method != "HEAD":
        down.send(body)
    if not down.finish():
        await task_lane()
        await down.flush()


# ---------------------------------------------------------------------------------------------------- forwarding


async def forward(exchange: Exchange, down: Downstream, site: Site, destination: Destination, pool: Pool) -> None:
    """Lease a connection, send the request, relay the answer; once more on another connection when that is safe."""
    request = exchange.request
    assert request is not None
    exchange.pool = pool.settings.name
    target, headers = upstream_target(request, destination.strip), upstream_headers(request, exchange.client)
    body = RequestBody(down, pool.settings.replay_body)
    retried = False
    while True:
        lease = pool.lease_nowait()
        if lease is None:
            await task_lane()
            asked = trio.current_time()
            try:
                lease = await pool.lease(site.timeouts.connect)
            finally:
                exchange.queue_wait += trio.current_time() - asked
        upstream = lease.connection
        exchange.attempts += 1
        exchange.target = str(lease.place.address)
        written = upstream.stream.sent
        try:
            complete = send_request_now(upstream, request, target, headers, body)
            if complete:
                if upstream.stream.pending:
                    await task_lane()
                    await upstream.flush(site.timeouts.response_body)
                await receive(exchange, down, site, lease, None)
            else:
                await task_lane()
                await send_and_receive(exchange, down, site, lease, body)
            return
        except UpstreamGone as gone:
            # A kept connection that the app closed meanwhile says nothing about the app: it does not count as the one
            # retry, though it cannot go on for ever either.
            exhausted = (retried and lease.is_fresh) or exchange.attempts == MOST_ATTEMPTS
            retried = retried or lease.is_fresh
            pool.app_gone(lease)
            unwritten = upstream.stream.sent == written
            if exhausted or not body.can_rewind or not (request.is_idempotent or unwritten):
                raise FrontdError(
                    Reason.Connection_Abandoned_By_ReqQueue, detail=f"{lease.place.address}: {gone}"
                ) from None
            body.rewind()
            if retried:  # where processes share a listener, the last one accepts for a moment what none will answer
                await task_lane()
                await trio.sleep(BACKOFF_FIRST)
        finally:
            lease.discard()  # without effect after give_back


async def send_and_receive(exchange: Exchange, down: Downstream, site: Site, lease: Lease, body: RequestBody) -> None:
    """Relay the answer while the rest of the request body is still on its way (in the task lane)."""
    assert exchange.request is not None
    pump = Pump(lease.connection, exchange.request, body, site.timeouts.response_body)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run_task, nursery.cancel_scope)
        try:
            await receive(exchange, down, site, lease, pump)
        except (FrontdError, UpstreamGone) as error:
            failure = error
        nursery.cancel_scope.cancel()
    if pump.error is not None and down.can_answer:
        raise pump.error
    if failure is not None:
        raise failure
    if pump.error is not None:
        raise pump.error


async def receive(exchange: Exchange, down: Downstream, site: Site, lease: Lease, pump: Pump | None) -> None:
    """Read the response head, then relay the body; gives the lease back when the exchange is complete."""
    request, upstream = exchange.request, lease.connection
    assert request is not None
    while True:
        head = await read_head(upstream, site.timeouts.response_head, pump)
        if head.status >= 200 or head.status == 101:
            break
        await task_lane()
        await trio.lowlevel.checkpoint()  # an app with interim answers without end leaves the others their turn
        passes = head.status in PASSED_1XX and request.version == "1.1"
        if passes and not down.inform(head.status, downstream_headers(head)):
            await down.flush()
    exchange.status = head.status
    if head.status == 101:
        await upgrade(exchange, down, site, lease, head)
        return
    down.start(head.status, head.reason, downstream_headers(head))
    turns = 0
    while True:
        turns += 1
        if turns % PARTS_IN_A_ROW == 0:  # a fast app with a fast client leaves the others their turn
            await task_lane()
            await trio.lowlevel.checkpoint()
        part = upstream.body_now()
        if isinstance(part, End):
            done = down.finish(announced_trailers(head.headers, part.trailers))
            break
        if part is None:
            if not down.push():
                await task_lane()
                await down.flush()
            timeout = site.timeouts.response_body
            await app_readable(upstream, trio.current_time() + timeout, timeout, Reason.Timer_ResponseBody, pump)
        elif not down.send(part):
            await task_lane()
            await down.flush()
    lease.give_back()  # before the client has read everything: the app is free for the next request
    if not done:
        await task_lane()
        await down.flush()


async def read_head(upstream: Upstream, timeout: float, pump: Pump | None) -> ResponseHead:
    """The next response head, within `timeout` seconds."""
    deadline = trio.current_time() + timeout
    while (head := upstream.head_now()) is None:
        deadline = await app_readable(upstream, deadline, timeout, Reason.Timer_Response, pump)
    return head


async def app_readable(
    upstream: Upstream, deadline: float, timeout: float, reason: Reason, pump: Pump | None
) -> float:
    """Wait until the app has sent something; returns the deadline that holds now.

    Raises `FrontdError(reason)` at `deadline`, unless the request was still on its way less than `timeout` seconds ago:
    an app that waits for the client's upload is not slow.
    """
    while True:
        try:
            await readable(upstream.stream, deadline, reason)
            return deadline
        except FrontdError:
            if pump is None or pump.progress + timeout <= trio.current_time():
                raise
            deadline = pump.progress + timeout


async def upgrade(exchange: Exchange, down: Downstream, site: Site, lease: Lease, head: ResponseHead) -> None:
    """Answer 101 and relay bytes both ways (RFC 9110 7.8)."""
    request, upstream = exchange.request, lease.connection
    assert request is not None
    if not request.upgrade or head.headers.get(b"upgrade").lower() != request.upgrade:
        raise FrontdError(Reason.BadUpstreamHead, detail="101 that was not asked for")
    headers = downstream_headers(head)
    headers.set(b"Connection", b"Upgrade")
    headers.set(b"Upgrade", request.upgrade)
    await task_lane()
    client, early = down.begin_tunnel(headers)
    tally = Tally()
    try:
        await tunnel(client, early, upstream.stream, upstream.http.rest(), site.timeouts.tunnel_idle, tally)
    finally:
        exchange.bytes_in += tally.up
        exchange.bytes_out += tally.down
