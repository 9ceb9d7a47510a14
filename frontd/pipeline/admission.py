"""Who is asking, may they, and where to: the decisions before anything is forwarded.

A request that has been in a queue may be moved to another one (`handed_over`) as long as no byte of its body has gone
to an app.

Invariants: nobody gets past `admitted` anonymously on a site with an authenticator unless a plugin said `Allow`.  A
logon that belongs to a connection is nobody's on one that many clients share.  What a plugin raises, or answers with a
wrong type, has ended the exchange before (`phases.first` fails closed).
"""

from __future__ import annotations

from typing import cast

from frontd.model.errors import Reason
from frontd.model.messages import Exchange, Response
from frontd.model.verdicts import Allow, Continue, Identity, Redirect, Refuse, UseHttp11
from frontd.pipeline.forward import RequestBody
from frontd.pipeline.phases import Phase, Phases, first, plugin_fault
from frontd.pipeline.world import Destination, Site, World

MOST_HAND_OVERS = 3  # of one exchange, so that two queues do not pass it to and fro for ever
Answer = Response | Refuse | Continue | UseHttp11 | Redirect


async def identified(exchange: Exchange, phases: Phases) -> Answer | None:
    """Ask who it is; an answer when that ends the exchange, else `exchange.identity` is set or nobody has logged on."""
    if exchange.client.states is not None:
        _forget(exchange, phases.authenticate)
    found = await first(phases.authenticate, exchange)
    if isinstance(found, Identity):
        if found.connection_bound and exchange.client.is_trusted_proxy:
            # others come through the same connection, and would be taken for whoever logged on through it
            log = f"{found.scheme or 'the'} logon belongs to a connection that a trusted proxy shares among its clients"
            return Refuse(401, Reason.LogonFailed, log=log)
        exchange.identity = found
        return None
    return cast("Answer | None", found)


def _forget(exchange: Exchange, phase: Phase) -> None:
    """Drop what authenticators remember of the connection when credentials come that are for another one of them.

    Credentials begin a new logon, and whoever is asked before must not answer for the old one; several fields, which
    contradict each other, end every logon.  Credentials of a scheme that nobody here consumes are the app's.
    """
    states, sent = exchange.client.states, exchange.request.headers.get_all(b"authorization")
    if not sent or states is None:
        return
    scheme = exchange.request.credentials[0]
    theirs = {hook.plugin for hook in phase if scheme is not None and hook.plugin.scheme.lower() == scheme}
    if scheme is None or theirs:
        for hook in phase:
            if hook.plugin not in theirs:
                states.pop(hook.plugin, None)


async def admitted(exchange: Exchange, phases: Phases) -> Answer | None:
    """None when they may come in.  An anonymous client on a site with an authenticator needs an `Allow`, and where the
    rules forbid it is asked to log on."""
    anonymous = exchange.identity is None and bool(phases.authenticate)
    allowed = not anonymous
    for hook in phases.authorize:
        verdict = await first((hook,), exchange)
        if isinstance(verdict, Allow):
            allowed = True
        elif isinstance(verdict, Refuse) and verdict.word is Reason.Forbidden and anonymous:
            return Refuse(401, Reason.LogonRequired, log=verdict.log, substatus=verdict.substatus)
        elif verdict is not None:
            return cast("Answer", verdict)
    return None if allowed else Refuse(401, Reason.LogonRequired)


async def routed(exchange: Exchange, world: World, phases: Phases) -> tuple[Destination | None, Answer | None]:
    """Where a plugin says that the request goes, or its redirect; (None, None): none of them says anything."""
    for hook in phases.route:
        chosen = await first((hook,), exchange)
        if isinstance(chosen, Redirect):
            return None, chosen
        if chosen is not None:
            try:
                return _sent_to(exchange, world, hook.where, chosen), None
            except ValueError as error:
                raise plugin_fault(exchange, hook.where, error) from error
    return None, None


def _sent_to(exchange: Exchange, world: World, where: str, chosen: str) -> Destination:
    """The pool or target that a plugin's hook (`where`) has `chosen`.  Raises `ValueError` when it is neither."""
    pool = world.pools.get(chosen) or world.ondemand.get(chosen)
    exchange.route, exchange.pool = where, pool.settings.name
    return Destination(where, pool=pool)


def handed_over(
    exchange: Exchange, world: World, where: str, chosen: str, *, is_answered: bool
) -> Destination | None:
    """The queue to which a plugin's hook (`where`) moves an exchange that was in another one; None: it must not, which
    is noted as a fault of the plugin.  `is_answered`: an app has read its head and answered.

    The rule is HTTP.sys's for delegation: the head may have been read, of the body nothing (HttpDelegateRequestEx).
    """
    request, fault = exchange.request, ""
    if isinstance(request.body, RequestBody) and request.body.is_sent:
        fault = "a byte of its body has gone to an app already"
    elif exchange.attempts and not is_answered and not request.is_idempotent:
        fault = "an app may have done it already"
    elif exchange.hand_overs == MOST_HAND_OVERS:
        fault = f"it was handed over {MOST_HAND_OVERS} times"
    try:
        if fault:
            raise ValueError(f"the request cannot go to {chosen}: {fault}")
        destination = _sent_to(exchange, world, where, chosen)
    except ValueError as error:
        exchange.faults.append((where, error))
        return None
    exchange.hand_overs += 1
    exchange.status = 0
    del exchange.response
    return destination


def by_routes(exchange: Exchange, site: Site) -> Destination | None:
    """Where the routes of the site say that the request goes; None: nowhere."""
    destination = site.routes.match(exchange.request.path)
    if destination is not None:
        exchange.route = destination.route
        if destination.pool is not None:
            exchange.pool = destination.pool.settings.name
    return destination
