"""The app's answer on its way to the client: its head, its body, or a tunnel.

How it works
------------
`receive` reads the head, shows it to plugins and relays the body; `send_and_receive` does so while the rest of the
request is still on its way to the app.  Both run in either lane until they have to wait for more than the app.

Invariants
----------
* A response that has begun is completed or cut, never ended cleanly in the middle.
* The lease is given back as soon as the app's part is complete, before a slow client has read everything.
* What is returned stands in place of the app's answer, of which nothing has been sent then.
"""

from __future__ import annotations

from typing import NamedTuple

import trio

from frontd.model.errors import FrontdError, Reason, UpstreamGone
from frontd.model.headers import Headers, announced_trailers
from frontd.model.messages import Exchange, Response
from frontd.net.streams import READ_SIZE
from frontd.net.traps import clock, others_first, readable, task_lane
from frontd.pipeline.answers import PHRASES
from frontd.pipeline.fields import downstream_headers, downstream_lines
from frontd.pipeline.files import SENDFILE_STATUS
from frontd.pipeline.forward import PARTS_IN_A_ROW, Downstream, Pump, RequestBody, next_size
from frontd.pipeline.pinned import note, over, rest_goes_on
from frontd.pipeline.reply import Captured, admit, framed, rewritten
from frontd.pipeline.tunnel import Tally, tunnel
from frontd.pipeline.world import Destination, Site, World
from frontd.protocol.framing import PLAIN_END, End
from frontd.protocol.scan import ResponseHead
from frontd.upstream.client import Upstream
from frontd.upstream.lease import Lease

PASSED_1XX = frozenset((102, 103))  # 100 is answered by whoever reads the body, 101 begins a tunnel


class NamedFile(NamedTuple):
    """The app has named a file to be sent in place of its answer; `headers` are those of that answer."""

    status: int
    headers: Headers


Instead = Response | NamedFile | Destination  # of the app's answer; a destination: it is asked there


async def send_and_receive(
    exchange: Exchange, down: Downstream, world: World, site: Site, lease: Lease, body: RequestBody
) -> Instead | None:
    """`receive` while the rest of the request body is still on its way (in the task lane)."""
    answer: Instead | None = None
    pump = Pump(lease.connection, exchange.request, body, site.timeouts.response_body)
    failure: Exception | None = None
    goes_on = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run_task, nursery.cancel_scope)
        try:
            answer = await receive(exchange, down, world, site, lease, pump)
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


async def receive(
    exchange: Exchange, down: Downstream, world: World, site: Site, lease: Lease, pump: Pump | None
) -> Instead | None:
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
            answer = await admit(exchange, world, phases, head, headers.copy())
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
