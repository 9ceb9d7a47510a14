"""The life of one request, top to bottom.

How it works
------------
`serve` is one coroutine.  It decides synchronously and waits only through the traps of `net.traps`, until `task_lane`
has moved it into a task; so a driver that makes plain calls can run everything up to the first real wait.

    find the site → check its limits → filter → who is asking → may they → route → (cached, redirect, file)
    → lease → send → read the head → admit → relay the body → log

Invariants
----------
* Exactly one answer or one cut connection for each exchange, and exactly one log line, whatever happens.
* A response that has begun is completed or cut, never ended cleanly in the middle.
* A request is sent a second time only before the first byte of a response, and only when it is safe to repeat
  (RFC 9110 9.2.2: idempotent, or nothing of it was written) and its body is still at hand.
* What a plugin raises or mistypes before the request is forwarded ends the exchange; after that it is logged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import trio

from frontd.model.errors import FrontdError, Reason, Source, UpstreamGone
from frontd.model.headers import Headers, announced_trailers, bad_field
from frontd.model.messages import NO_BODY, Exchange, Response
from frontd.model.verdicts import Redirect
from frontd.net.streams import READ_SIZE
from frontd.net.traps import clock, others_first, readable, task_lane
from frontd.pipeline.admission import Answer, admitted, by_routes, identified, routed
from frontd.pipeline.answers import PHRASES, redirect_response
from frontd.pipeline.fields import (
    downstream_headers,
    downstream_lines,
    seal,
    upstream_headers,
    upstream_lines,
    upstream_target,
)
from frontd.pipeline.fileroot import OpenFile
from frontd.pipeline.files import SENDFILE_STATUS, named_file, requested_file, select, send_pieces
from frontd.pipeline.forward import (
    PARTS_IN_A_ROW,
    Downstream,
    Pump,
    RequestBody,
    next_size,
    queueing,
    send_request_now,
)
from frontd.pipeline.phases import NO_PHASES, Phases, bad_fields, first, first_soft, plugin_fault
from frontd.pipeline.pinned import Pin, logon_in, note, over, pin_for, rest_goes_on
from frontd.pipeline.reply import Captured, admit, begin, finish, framed, give, refuse, rewritten, send_answer
from frontd.pipeline.tunnel import Tally, tunnel
from frontd.pipeline.world import Destination, Site, World, check_limits
from frontd.protocol.framing import PLAIN_END, End
from frontd.protocol.scan import ResponseHead
from frontd.upstream.balance import BACKOFF_FIRST
from frontd.upstream.client import Upstream
from frontd.upstream.lease import NOBODY, Lease
from frontd.upstream.pool import Pool

MOST_ATTEMPTS = 4
PASSED_1XX = frozenset((102, 103))  # 100 is answered by whoever reads the body, 101 begins a tunnel

async def serve(
    exchange: Exchange, down: Downstream, world: World, enter: Callable[[Site], None], head_size: int
) -> None:
    """Answer one request.  `enter` is called with the site once it is known, and may refuse (its connection limit).

    Never raises `FrontdError`: whatever fails is answered or cuts the connection here.  The last phase, `log`, is the
    driver's: only it knows why an exchange ended that was cancelled.
    """
    request, phases = exchange.request, NO_PHASES
    try:
        site = world.site_for(request, exchange.client)
        exchange.site = site.name
        phases = site.phases
        enter(site)
        check_limits(site, request, head_size)
        request.max_body = site.limits.max_body
        body: RequestBody | None = None
        if request.content_length or request.chunked:
            body = request.body = RequestBody(down, request)
        answer: Answer | None = None
        if phases.filter_request:
            answer = await first(phases.filter_request, exchange)
        if answer is None and phases.authenticate:
            answer = await identified(exchange, phases)
        if answer is None and (phases.authorize or phases.authenticate):
            answer = await admitted(exchange, phases)
        destination: Destination | None = None
        if answer is None:
            if phases.route:
                destination, answer = await routed(exchange, world, phases)
            if answer is None and destination is None:
                destination = by_routes(exchange, site)
        if answer is None and phases.cache_lookup and destination is not None and may_be_cached(destination.pool):
            answer = await first(phases.cache_lookup, exchange)
        if answer is not None:
            await give(exchange, down, phases, answer)
        elif destination is None:
            raise FrontdError(Reason.NotFound, detail="no route covers the path")
        elif destination.pool is not None:
            await forward(exchange, down, site, destination, destination.pool, body)
        elif destination.files is not None:
            found = requested_file(destination.files, request, destination.route)
            if isinstance(found, Redirect):
                await give(exchange, down, phases, found)
            else:
                await send_file(exchange, down, phases, found)
        else:
            response = redirect_response(destination, request, exchange.client.local_address)
            await send_answer(exchange, down, phases, response)
    except FrontdError as error:
        await refuse(exchange, down, error, phases)
    finally:
        request.body = NO_BODY  # which refers to the request: nothing of an exchange is left to the collector of cycles


async def send_file(
    exchange: Exchange, down: Downstream, phases: Phases, file: OpenFile, app: Headers | None = None
) -> None:
    """Answer with a file; `app` are the fields of the app that named it."""
    with file:
        response, pieces = select(exchange.request, file, app)
        if phases.sees_response:
            received = response.headers.copy()
            exchange.response = response
            await rewritten(exchange, phases)
            framed(response.headers, received)
        begin(exchange, down, response)
        await send_pieces(down, file, pieces)
    await finish(down)


# ---------------------------------------------------------------------------------------------------- forwarding


async def sealed_headers(exchange: Exchange, site: Site) -> Headers:
    """The header fields that go to the app, as plugins leave them, and who has logged on.

    Raises `FrontdError`: ``Loop``, ``PluginFault``.
    """
    request, phases = exchange.request, site.phases
    headers = upstream_headers(request, exchange.client, phases.schemes)
    received, request.headers = request.headers, headers
    try:
        for hook in phases.rewrite_request:
            await first((hook,), exchange)
            fault = bad_fields(request.headers)
            if not fault and len(request.headers.get_all(b"host")) != 1:
                fault = "a request has one Host field (RFC 9112 3.2)"
            if fault:
                raise plugin_fault(exchange, hook.where, ValueError(fault))
    finally:  # what later phases decide by is what the client sent
        headers, request.headers = request.headers, received
    seal(headers, request, exchange.identity, signed(exchange, site))
    if exchange.identity is not None and (fault := bad_field(headers)):
        raise plugin_fault(exchange, "identity", ValueError(fault))
    return headers


def signed(exchange: Exchange, site: Site) -> bytes:
    """Who has logged on as the site signs it; empty: nobody has, or it does not."""
    identity = exchange.identity
    if identity is None or site.signer is None:
        return b""
    return site.signer.token(identity, exchange.request.host or exchange.client.local_address)


async def forward(
    exchange: Exchange, down: Downstream, site: Site, destination: Destination, pool: Pool, body: RequestBody | None
) -> None:
    """Have the app answer; where it does not, a plugin may, and else the error says so.

    Leases a connection, sends the request and relays the answer; once more on another connection when that is safe.
    """
    request, phases = exchange.request, site.phases
    headers: Headers | bytes
    answer: Instead | None
    pin: Pin | None = None
    if body is not None:
        body.check_length()
        body.limit = max(body.limit, pool.settings.replay_body)
    pool.exchanges += 1
    try:
        if phases.rewrite_request or exchange.identity is not None:
            headers = await sealed_headers(exchange, site)
        else:
            headers = upstream_lines(request, exchange.client, phases.schemes)
        target = upstream_target(request, destination.strip)
        logon = logon_in(headers) if isinstance(headers, Headers) else ""
        if pool.passes_logons:
            pin = pin_for(exchange, down, pool, logon)
        retried = False
        while True:
            if pin is not None:
                lease = await pin.lease(exchange, down, site.timeouts.connect)
            elif (idle := pool.lease_nowait()) is not None:
                lease = idle
            else:
                lease = await waited_for(exchange, pool, site.timeouts.connect)
            if logon and pin is None:
                lease.keeper = NOBODY
            upstream = lease.upstream
            assert upstream is not None
            exchange.attempts += 1
            exchange.target = lease.place.name
            written = upstream.stream.sent
            try:
                if not request.is_idempotent and not lease.is_fresh and not upstream.is_alive():
                    # nothing of it was written, so it could be sent again all the same; now it need not
                    raise UpstreamGone("ended while it was idle")
                if send_request_now(upstream, request, target, headers, body):
                    if upstream.stream.pending:
                        await task_lane()
                        await upstream.flush(site.timeouts.response_body)
                    answer = await receive(exchange, down, site, lease, None)
                else:
                    await task_lane()
                    assert body is not None
                    answer = await send_and_receive(exchange, down, site, lease, body)
                break
            except UpstreamGone as gone:
                if pin is not None:
                    raise pin.lost(lease, gone) from None
                # A kept connection that the app closed meanwhile says nothing about the app: it does not count as the
                # one retry, though it cannot go on for ever either.
                exhausted = (retried and lease.is_fresh) or exchange.attempts == MOST_ATTEMPTS
                retried = retried or lease.is_fresh
                pool.app_gone(lease)
                unwritten = upstream.stream.sent == written
                replays = body is None or body.can_rewind
                if exhausted or not replays or not (request.is_idempotent or unwritten):
                    raise FrontdError(
                        Reason.Connection_Abandoned_By_ReqQueue, detail=f"{lease.place.address}: {gone}"
                    ) from None
                if body is not None:
                    body.rewind()
                if retried:  # where processes share a listener, the last one accepts for a moment what none answers
                    await task_lane()
                    await trio.sleep(BACKOFF_FIRST)
            finally:
                if not lease.ended:
                    lease.discard()
    except FrontdError as error:
        if error.reason.source is not Source.UPSTREAM or not down.can_answer or not phases.forward_failed:
            raise
        answer = await first_soft(phases.forward_failed, exchange, error)
        if answer is None:
            raise
        exchange.reason, exchange.detail = error.reason, error.detail
    finally:
        pool.exchange_over()
    if isinstance(answer, NamedFile):
        assert pool.settings.sendfile_from is not None
        file = named_file(answer.status, answer.headers, pool.settings.sendfile_from)
        assert file is not None
        await send_file(exchange, down, phases, file, answer.headers)
    elif answer is not None:
        await give(exchange, down, phases, answer)


def may_be_cached(pool: Pool | None) -> bool:
    """Whether answers of a destination may be kept: of apps that log connections on none may, since a request of
    somebody who has logged on need not show it."""
    return pool is not None and not pool.passes_logons


async def waited_for(exchange: Exchange, pool: Pool, connect_timeout: float) -> Lease:
    """A lease from the queue, or on a new connection.  Raises `FrontdError` like `Pool.lease`."""
    await task_lane()
    with queueing(exchange):
        return await pool.lease(connect_timeout)


class NamedFile(NamedTuple):
    """The app has named a file to be sent in place of its answer; `headers` are those of that answer."""

    status: int
    headers: Headers


Instead = Response | NamedFile  # of the app's answer


async def send_and_receive(
    exchange: Exchange, down: Downstream, site: Site, lease: Lease, body: RequestBody
) -> Instead | None:
    """`receive` while the rest of the request body is still on its way (in the task lane)."""
    answer: Instead | None = None
    pump = Pump(lease.connection, exchange.request, body, site.timeouts.response_body)
    failure: Exception | None = None
    goes_on = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run_task, nursery.cancel_scope)
        try:
            answer = await receive(exchange, down, site, lease, pump)
        except (FrontdError, UpstreamGone) as error:
            failure = error
        goes_on = failure is None and answer is None and rest_goes_on(lease)
        if goes_on:
            nursery.cancel_scope.deadline = trio.current_time() + site.timeouts.drain_entity_body
        else:
            nursery.cancel_scope.cancel()
    if goes_on:
        over(lease)
    if pump.error is not None and down.can_answer:
        raise pump.error
    if failure is not None:
        raise failure
    if pump.error is not None:
        raise pump.error
    return answer


async def receive(exchange: Exchange, down: Downstream, site: Site, lease: Lease, pump: Pump | None) -> Instead | None:
    """Read the response head, then relay the body; gives the lease back when the exchange is complete.

    Returns what stands in place of the app's answer, of which nothing was sent then.
    """
    request, upstream, phases, timeouts = exchange.request, lease.connection, site.phases, site.timeouts
    stream = upstream.stream
    while True:
        timeout = timeouts.response_head
        deadline = clock.now() + timeout
        if pump is None and not upstream.http.started:
            await readable(stream, deadline, Reason.Timer_Response)  # nothing can be there yet
        while (head := upstream.head_now()) is None:
            if pump is None:
                await readable(stream, deadline, Reason.Timer_Response)
            else:
                deadline = await app_readable(upstream, deadline, timeout, Reason.Timer_Response, pump)
        if head.status >= 200 or head.status == 101:
            break
        await task_lane()
        await trio.lowlevel.checkpoint()  # an app with interim answers without end leaves the others their turn
        passes = head.status in PASSED_1XX and request.version == "1.1"
        if passes and not down.inform(head.status, downstream_headers(head)):
            await down.flush()
    exchange.status = head.status
    passes_on = lease.pool.passes_answers_on
    if head.status == 401 or lease.keeper is not None or not passes_on:
        note(exchange, down, lease, head)
    if head.status == 101:
        await upgrade(exchange, down, site, lease, head)
        return None
    captured = None
    if passes_on and not phases.sees_response:
        down.start(head.status, head.reason, downstream_lines(head), length=head.content_length)
        if head.plain and isinstance(begun := upstream.body_now(), bytes):
            if len(begun) == head.content_length or upstream.http.is_over:  # mostly all of it comes at once
                if pump is not None:
                    await pump.sees_its_end()
                if lease.keeper is None:
                    lease.give_back()
                else:
                    over(lease)
                if not down.send_last(begun):
                    await task_lane()
                    await down.flush()
                return None
            if not down.send(begun):
                await task_lane()
                await down.flush()
    else:
        headers, response = downstream_headers(head), None
        if phases.sees_response:
            answer = await admit(exchange, phases, head, headers.copy())
            if answer is not None:
                return answer
            response = exchange.response
        sent = response.headers if response is not None else headers
        if lease.pool.settings.sendfile_from is not None and b"x-sendfile" in sent:
            if head.status in SENDFILE_STATUS:
                if isinstance(upstream.body_now(), End):  # mostly empty; what else comes is not worth waiting for
                    lease.give_back()
                return NamedFile(head.status, sent)
            sent.remove(b"x-sendfile")
        if response is not None:
            captured = Captured(exchange) if response.captures else None
            await rewritten(exchange, phases)
            exchange.status, headers = response.status, framed(response.headers, headers)
        phrase = head.reason if exchange.status == head.status else PHRASES.get(exchange.status, b"")
        down.start(exchange.status, phrase, headers, length=head.content_length)
    turns, size = 0, READ_SIZE
    while True:
        if turns >= PARTS_IN_A_ROW:  # a fast app with a fast client
            turns = 0
            await others_first(stream)
        part = upstream.part_now(size) if captured is None else upstream.body_now()
        if isinstance(part, End):
            if captured is not None:
                captured.complete()
            done = down.finish() if part is PLAIN_END else down.finish(announced_trailers(head.headers, part.trailers))
            break
        if part is None:
            if not down.push():
                await task_lane()
                await down.flush()
            turns, timeout = 0, timeouts.response_body
            deadline = clock.now() + timeout
            if pump is None:
                await readable(stream, deadline, Reason.Timer_ResponseBody)
            else:
                await app_readable(upstream, deadline, timeout, Reason.Timer_ResponseBody, pump)
        else:
            if captured is not None:
                captured.add(bytes(part))
            if upstream.http.is_over:  # the end came with it
                if captured is not None:
                    captured.complete()
                done = down.send_last(part)
                break
            turns += len(part) // READ_SIZE or 1
            taken = down.send(part)
            size = next_size(size, part, taken)
            if not taken:
                await task_lane()
                await down.flush()
    if pump is not None:
        await pump.sees_its_end()
    over(lease)  # before the client has read everything: the app is free for the next request
    if not done:
        await task_lane()
        await down.flush()
    return None


async def app_readable(
    upstream: Upstream, deadline: float, timeout: float, reason: Reason, pump: Pump
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
            if pump.progress + timeout <= trio.current_time():
                raise
            deadline = pump.progress + timeout


async def upgrade(exchange: Exchange, down: Downstream, site: Site, lease: Lease, head: ResponseHead) -> None:
    """Answer 101 and relay bytes both ways (RFC 9110 7.8)."""
    request, upstream = exchange.request, lease.connection
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
