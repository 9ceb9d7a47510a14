"""Answers that are frontd's or a plugin's own, and what plugins may do to any answer on its way out.

Invariant: whatever plugins did to the fields of an answer, its framing is ours and no field breaks out of its line.
"""

from __future__ import annotations

from collections.abc import Callable

from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import HOP_BY_HOP, Headers
from frontd.model.messages import BODYLESS, Capture, Exchange, Response
from frontd.model.verdicts import Redirect, Refuse, UseHttp11
from frontd.net.traps import fault_at_once, task_lane
from frontd.pipeline.admission import Answer, handed_over
from frontd.pipeline.answers import PHRASES, complete, error_response, now, redirect_to
from frontd.pipeline.forward import Downstream
from frontd.pipeline.phases import NO_PHASES, Hook, Phases, bad_status, first_soft, plugin_fault, tell, unsendable
from frontd.pipeline.world import Destination, World
from frontd.protocol.scan import ResponseHead


async def give(exchange: Exchange, down: Downstream, phases: Phases, answer: Answer) -> None:
    """Send what a plugin answered.  Raises `FrontdError` for what is answered with an error page."""
    is_leg = False
    if isinstance(answer, Response):
        answer = answer.copy()  # what is added on the way out must not stay on one that a plugin gives again
        if answer.status == 401 and b"www-authenticate" not in answer.headers:
            challenge(exchange, phases, answer.headers)
    elif isinstance(answer, Refuse):
        raise refusal_of(answer)
    elif isinstance(answer, UseHttp11):
        if exchange.request.version == "1.1":
            raise plugin_fault(exchange, "authenticate", TypeError("UseHttp11 for a request that is HTTP/1.1 already"))
        raise FrontdError(Reason.Version_NS, hint="This needs HTTP/1.1.")
    elif isinstance(answer, Redirect):
        answer = redirect_to(answer.url, answer.status)
    else:
        is_leg = True
        answer = Response(401, [(b"WWW-Authenticate", f"{answer.scheme} {answer.token}")], text="401 Unauthorized\n")
    await send_answer(exchange, down, phases, answer, is_leg=is_leg)


def refusal_of(answer: Refuse) -> FrontdError:
    """A plugin's refusal as everything that ends an exchange, or a connection."""
    return FrontdError(
        answer.word, detail=answer.log, hint=answer.hint, status=answer.status, retry_after=answer.retry_after,
        substatus=answer.substatus, fields=Response(answer.status, answer.headers).headers.pairs(),
    )  # fmt: skip


def challenge(exchange: Exchange, phases: Phases, headers: Headers) -> None:
    """Add the challenges of all authenticators of the site to a 401 (RFC 9110 15.5.2), in their order."""
    for value in tell(phases.challenge, exchange, exchange.faults):
        headers.add(b"WWW-Authenticate", value)


async def refuse(exchange: Exchange, down: Downstream, error: FrontdError, phases: Phases = NO_PHASES) -> None:
    """Answer with the error's page; where no answer is possible any more, or none is to be given, the client's
    connection will be cut."""
    exchange.reason, exchange.detail, exchange.substatus = error.reason, error.detail, error.substatus
    if error.status == 0 or not down.can_answer:
        return
    if error.verbosity == "reset":
        down.resets = True
        return
    response = error_response(error, exchange.fields, exchange.number)
    if response.status == 401:
        challenge(exchange, phases, response.headers)
    try:
        await send_answer(exchange, down, phases, response)
    except FrontdError as gone:  # the client left while it was told
        exchange.detail = f"{error.detail} ({gone.reason.word} while answering)".lstrip()


async def send_answer(
    exchange: Exchange, down: Downstream, phases: Phases, response: Response, *, is_leg: bool = False
) -> None:
    """Send an answer that is whole; `is_leg`: it is one leg of a handshake."""
    if phases.sees_response:
        exchange.response = response
        states = exchange.states
        for hook in phases.rewrite_response:
            if not hook.follows or (states is not None and hook.plugin in states):
                await _changed(exchange, hook)
    if response.status == 401 and phases.authenticate:
        down.keep_for_logon(is_leg=is_leg)
    ready = response.ready
    if ready is not None:
        exchange.status = status = ready.status
        lines = ready.lines if ready.is_dated else b"%bDate: %b\r\n" % (ready.lines, now())
        if not down.answer(status, PHRASES.get(status, b""), lines, ready.body):
            await task_lane()
            await down.flush()
        return
    complete(response)
    begin(exchange, down, response)
    if response.body and exchange.method != "HEAD" and response.status not in BODYLESS:
        down.send(response.body)
    await finish(down)


def begin(exchange: Exchange, down: Downstream, response: Response) -> None:
    """Start an answer that is not the app's; the connection ends with it when the request's body is not all there."""
    exchange.status = response.status
    phrase = PHRASES.get(response.status, b"")
    down.start(response.status, phrase, response.headers, close=not down.skip_body())


async def finish(down: Downstream) -> None:
    """End an answer, and wait until the client's kernel can have it."""
    if not down.finish():
        await task_lane()
        await down.flush()


async def rewritten(exchange: Exchange, phases: Phases) -> None:
    """Let plugins change the answer, one after the other (this phase fails soft)."""
    for hook in phases.rewrite_response:
        if hook.concerns(exchange):
            await _changed(exchange, hook)


async def _changed(exchange: Exchange, hook: Hook) -> Response | str | None:
    """Ask a hook that may change the answer.  Where it leaves what cannot be sent, the answer is as it was before."""
    response = exchange.response
    status, headers, body = response.status, response.headers.copy(), response.body
    answer: Response | str | None = await first_soft((hook,), exchange)
    if fault := _misfit(exchange, response, status, body):
        exchange.faults.append((hook.where, ValueError(fault)))
        exchange.response = response
        response.status, response.headers, response.body = status, headers, body
    return answer


def _misfit(exchange: Exchange, response: Response, status: int, body: bytes | None) -> str:
    """Why an answer cannot be sent as a plugin left it; `status` and `body` are those of before.  Empty: it can."""
    if exchange.response is not response:
        return "an answer is replaced by what admit_response returns; exchange.response may only be changed"
    if response.status != status and (fault := bad_status(response.status)):
        return fault
    if body is None and response.body is not None:
        return "an app's body is on its way; what admit_response returns may replace it"
    if body is None and response.status != status and {response.status, status} & BODYLESS:
        return f"the status {response.status} cannot stand before this body"
    return unsendable(response)


# ---------------------------------------------------------------------------------------------------- the app's answer


async def admit(
    exchange: Exchange, world: World, phases: Phases, head: ResponseHead, headers: Headers
) -> Response | Destination | None:
    """Show plugins the head of the app's answer; what one of them answers instead, or where it is asked for, or
    None."""
    response = exchange.response = Response(head.status, headers, None, reason=head.reason)
    faults = len(exchange.faults)
    answer: Response | Destination | None = None
    for hook in phases.admit_response:
        if not hook.concerns(exchange):
            continue
        chosen = await _changed(exchange, hook)
        if isinstance(chosen, str):
            answer = handed_over(exchange, world, hook.where, chosen, is_answered=True)
        else:
            answer = chosen
        for want in response.captures:
            want.where = want.where or hook.where
        if answer is not None:
            break
    if len(exchange.faults) > faults:  # whoever failed may have been the one to forbid that it is kept
        response.captures.clear()
    return answer


def framed(headers: Headers, received: Headers) -> Headers:
    """`headers` as plugins left them, with the framing of the answer that was received."""
    headers.items = [item for item in headers.items if item[0] not in HOP_BY_HOP and item[0] != b"content-length"]
    headers.items += [item for item in received.items if item[0] == b"content-length"]
    return headers


class Captured:
    """The whole of an answer, collected while it passes, for whoever asked for it in `admit_response`."""

    __slots__ = ("_faults", "_headers", "_parts", "_reason", "_size", "_status", "_wants")

    def __init__(self, exchange: Exchange) -> None:
        response, self._faults = exchange.response, exchange.faults
        # as of now: what happens to the answer on its way out is not kept
        self._status, self._reason, self._headers = response.status, response.reason, response.headers.copy()
        self._wants = response.captures  # the list itself: who asked sees that an answer got too long
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        """One part of the body has passed."""
        self._size += len(part)
        if too_long := [want for want in self._wants if want.max_bytes < self._size]:
            self._wants[:] = [want for want in self._wants if want.max_bytes >= self._size]
            for want in too_long:
                if want.dropped is not None:
                    self._call(want, want.dropped)
        if self._wants:
            self._parts.append(part)
        else:
            self._parts.clear()

    def complete(self) -> None:
        """The answer is complete: hand out copies."""
        body = b"".join(self._parts)
        for want in self._wants:
            self._call(want, want.then, Response(self._status, self._headers.copy(), body, reason=self._reason))

    def _call(self, want: Capture, function: Callable[..., None], *answer: Response) -> None:
        try:
            function(*answer)
        except BaseException as error:  # after forwarding, plugins fail soft
            self._faults.append((f"{want.where} (capture)", fault_at_once(error)))
