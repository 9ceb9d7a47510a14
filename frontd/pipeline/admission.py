"""Who is asking, may they, and where to: the decisions before anything is forwarded.

Invariants: nobody gets past `admitted` anonymously on a site with an authenticator unless a plugin said `Allow`.  A
logon that belongs to a connection is nobody's on one that many clients share.  What a plugin raises, or answers with a
wrong type, has ended the exchange before (`phases.first` fails closed).
"""

from __future__ import annotations

from typing import cast

from frontd.model.errors import Reason
from frontd.model.messages import Exchange, Response
from frontd.model.verdicts import Allow, Continue, Identity, Redirect, Refuse, UseHttp11
from frontd.pipeline.phases import Phase, Phases, first, plugin_fault
from frontd.pipeline.world import Destination, Site, World

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
                pool = world.pools.get(chosen) or world.ondemand.get(chosen)
            except ValueError as error:
                raise plugin_fault(exchange, hook.where, error) from error
            exchange.route, exchange.pool = hook.where, pool.settings.name
            return Destination(hook.where, pool=pool), None
    return None, None


def by_routes(exchange: Exchange, site: Site) -> Destination | None:
    """Where the routes of the site say that the request goes; None: nowhere."""
    destination = site.routes.match(exchange.request.path)
    if destination is not None:
        exchange.route = destination.route
        if destination.pool is not None:
            exchange.pool = destination.pool.settings.name
    return destination
