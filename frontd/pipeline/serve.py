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

import trio

from frontd.model.errors import FrontdError, Reason, Source, UpstreamGone
from frontd.model.headers import Headers, bad_field
from frontd.model.messages import NO_BODY, Exchange, Response
from frontd.model.verdicts import Redirect
from frontd.net.traps import task_lane
from frontd.pipeline.admission import Answer, admitted, by_routes, handed_over, identified, routed
from frontd.pipeline.answers import redirect_response, wanted_type
from frontd.pipeline.fields import (
    seal,
    upstream_headers,
    upstream_lines,
    upstream_target,
)
from frontd.pipeline.fileroot import OpenFile
from frontd.pipeline.files import named_file, requested_file, select, send_pieces
from frontd.pipeline.forward import (
    Downstream,
    RequestBody,
    queueing,
    send_request_now,
)
from frontd.pipeline.phases import NO_PHASES, Phases, bad_fields, first, first_soft, plugin_fault
from frontd.pipeline.pinned import Pin, logon_in, pin_for
from frontd.pipeline.relay import Instead, NamedFile, receive, send_and_receive
from frontd.pipeline.reply import begin, finish, framed, give, refuse, rewritten, send_answer
from frontd.pipeline.world import Destination, Site, World, check_limits
from frontd.upstream.balance import BACKOFF_FIRST
from frontd.upstream.lease import NOBODY, Lease
from frontd.upstream.pool import Pool

MOST_ATTEMPTS = 4
MOST_HANDED = 2  # apps that may have had one request and died: one that kills them does not kill them all
OF_THE_QUEUE = frozenset((Reason.QueueFull, Reason.Timer_ReqQueue, Reason.AppOffline))

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
            instead = await forward(exchange, down, world, site, destination, body)
            while isinstance(instead, Destination):  # handed over to another queue
                destination = instead
                instead = await forward(exchange, down, world, site, destination, body)
            if instead is not None:
                await give_instead(exchange, down, phases, destination, instead)
        elif destination.files is not None:
            found = requested_file(destination.files, request, destination.route)
            if isinstance(found, Redirect):
                await give(exchange, down, phases, found)
            else:
                await send_file(exchange, down, phases, found)
        elif destination.reserved:
            raise FrontdError(
                Reason.AppOffline, status=destination.reserved, detail=f"{destination.route} is reserved", retry_after=5
            )
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
    exchange: Exchange, down: Downstream, world: World, site: Site, destination: Destination, body: RequestBody | None
) -> Instead | None:
    """Have the app answer; where it does not, a plugin may, and else the error says so.

    Leases a connection, sends the request and relays the answer; once more on another connection when that is safe.
    Returns what stands in place of the app's answer.  Raises `FrontdError`.
    """
    pool = destination.pool
    assert pool is not None
    request, phases = exchange.request, site.phases
    headers: Headers | bytes
    answer: Instead | None
    pin: Pin | None = None
    if body is not None:
        body.check_length()
        body.keep_in(pool.replay, pool.settings.replay_body)
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
        tries, handed, again = 0, 0, False
        urgency = destination.urgency if exchange.urgency is None else exchange.urgency
        while True:
            if pin is not None:
                lease = await pin.lease(exchange, down, site.timeouts.connect, urgency)
            elif not again and (idle := pool.lease_nowait()) is not None:
                lease = idle
            else:
                lease = await waited_for(exchange, pool, site.timeouts.connect, urgency, again=again)
            if logon and pin is None:
                lease.keeper = NOBODY
            upstream = lease.upstream
            assert upstream is not None
            exchange.attempts += 1
            tries += 1
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
                    answer = await receive(exchange, down, world, site, lease, None)
                else:
                    await task_lane()
                    assert body is not None
                    answer = await send_and_receive(exchange, down, world, site, lease, body)
                return answer
            except UpstreamGone as gone:
                if pin is not None:
                    raise pin.lost(lease, gone) from None
                handed += was_handed(lease, gone, written, body)
                is_fresh = lease.is_fresh
                pool.app_gone(lease)
                unwritten = upstream.stream.sent == written
                replays = body is None or body.can_rewind
                exhausted = handed == MOST_HANDED or tries == MOST_ATTEMPTS
                if exhausted or not replays or not (request.is_idempotent or unwritten):
                    detail = f"{lease.place.address}: {gone}"
                    if body is not None and body.is_crowded_out:
                        detail += "; its body was not kept, replay_memory was full"
                    raise FrontdError(Reason.Connection_Abandoned_By_ReqQueue, detail=detail) from None
                if body is not None:
                    body.rewind()
                again = True
                if is_fresh:  # where processes share a listener, the last one accepts for a moment what none answers
                    await task_lane()
                    await trio.sleep(BACKOFF_FIRST)
            finally:
                if not lease.ended:
                    lease.discard()
    except FrontdError as error:
        if error.reason in OF_THE_QUEUE and not error.page:
            error.verbosity = pool.settings.refuse_with
        if error.reason.source is not Source.UPSTREAM or not down.can_answer or not phases.forward_failed:
            raise
        answer = await spared(exchange, world, phases, error)
        if answer is None:
            raise
        return answer
    finally:
        pool.exchange_over()
        if body is not None:
            body.release()


async def give_instead(
    exchange: Exchange, down: Downstream, phases: Phases, destination: Destination, instead: Response | NamedFile
) -> None:
    """Answer with what stands in place of the app's answer."""
    if isinstance(instead, Response):
        await give(exchange, down, phases, instead)
        return
    assert destination.pool is not None
    assert destination.pool.settings.sendfile_from is not None
    file = named_file(instead.status, instead.headers, destination.pool.settings.sendfile_from)
    assert file is not None
    await send_file(exchange, down, phases, file, instead.headers)


async def spared(
    exchange: Exchange, world: World, phases: Phases, error: FrontdError
) -> Response | Destination | None:
    """What plugins have instead of an error of the app's, or where they have the request asked for instead."""
    for hook in phases.forward_failed:
        answer = await first_soft((hook,), exchange, error)
        if isinstance(answer, str):
            destination = handed_over(exchange, world, hook.where, answer, is_answered=False)
            if destination is not None:
                return destination
        elif isinstance(answer, Response):
            exchange.reason, exchange.detail = error.reason, error.detail
            return answer
    return None


def was_handed(lease: Lease, gone: UpstreamGone, written: int, body: RequestBody | None) -> bool:
    """Whether an app may have had the request, so that it may be what it died of.

    A kept connection that the app closed before the request came says nothing about it; one that it closed after it had
    read everything does.  A Unix socket says which it was: it is reset only while something has not been read.
    """
    if lease.connection.stream.sent == written:
        return False
    if gone.is_end or not lease.is_fresh:
        return gone.is_end
    return bool(lease.place.address.port) or body is not None


def may_be_cached(pool: Pool | None) -> bool:
    """Whether answers of a destination may be kept: of apps that log connections on none may, since a request of
    somebody who has logged on need not show it."""
    return pool is not None and not pool.passes_logons


async def waited_for(exchange: Exchange, pool: Pool, connect_timeout: float, urgency: int, *, again: bool) -> Lease:
    """A lease from the queue, or on a new connection.

    Raises `FrontdError` like `Pool.lease`; for a browser, where the pool has a page for it, at once while there is no
    app.
    """
    if pool.settings.splash and not pool.places and not pool.off and exchange.request.method in ("GET", "HEAD"):
        pool.ask_for_places()
        if wanted_type(exchange.request.headers) == "text/html":
            error = FrontdError(Reason.AppOffline, detail="no worker is ready", retry_after=1)
            error.page = pool.settings.splash
            raise error
    await task_lane()
    with queueing(exchange):
        return await pool.lease(connect_timeout, urgency=urgency, again=again)
