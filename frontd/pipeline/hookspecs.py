"""The hooks: what a plugin may define, when each is asked, and what it may return.

A method of a `Plugin` that is named like one of these *is* that hook.  Each may be a ``def``, an ``async def``, or a
``def`` that returns a coroutine only when it has to wait this time, except where "plain def" is said.  None means "go
on". Everything up to `rewrite_request` fails closed: what a hook raises, and a value of a type that is not listed, is a
500 ``PluginFault``.  Everything after it fails soft: the fault is logged and the exchange goes on.

The order of the functions here is the order of a request's life.
"""

from __future__ import annotations

import pluggy

from frontd.model.errors import FrontdError
from frontd.model.messages import Client, Exchange, Response
from frontd.model.verdicts import Allow, Continue, Identity, Redirect, Refuse, UseHttp11

GROUP = "frontd"  # of entry points, and pluggy's project name
PLAIN = frozenset(("challenge", "log", "client_closed"))  # asked where nothing can wait: never an ``async def``
hookspec = pluggy.HookspecMarker(GROUP)


@hookspec
def accept_client(client: Client) -> Refuse | None:
    """A connection was accepted; nothing of it but a PROXY header was read.  For plugins of the whole server only.

    A refusal ends the connection: a plain client is told why, a TLS client sees its handshake fail.
    """


@hookspec
def filter_request(exchange: Exchange) -> Refuse | Response | None:
    """The site is known, nobody has logged on yet.  The first answer ends the phase."""


@hookspec
def authenticate(exchange: Exchange) -> Identity | Continue | UseHttp11 | Refuse | None:
    """Who is asking?  None: these are not credentials of mine.  The first answer ends the phase.

    When all say None the client is anonymous, which the site's `authorize` rules must allow.
    """


@hookspec
def challenge(exchange: Exchange) -> str | None:
    """A 401 goes out: the value of a ``WWW-Authenticate`` field.

    Every plugin is asked, the strongest scheme first.  Plain def.
    """


@hookspec
def authorize(exchange: Exchange) -> Allow | Refuse | Response | None:
    """May they?  Every plugin is asked until one refuses or answers.

    On a site with an authenticator an anonymous client is let in only when one of them says `Allow`.
    """


@hookspec
def route(exchange: Exchange) -> str | Redirect | None:
    """Where to: the name of a pool, a target such as ``https://app:8443``, or a redirect; None: as the routes say.

    The first answer ends the phase.  The destination is part of the key of whatever is cached.
    """


@hookspec
def cache_lookup(exchange: Exchange) -> Response | None:
    """An answer that is at hand already.  The first ends the phase, and no app is asked."""


@hookspec
def rewrite_request(exchange: Exchange) -> None:
    """`exchange.request.headers` are now the fields that go to the app, frontd's own among them.

    Every plugin is asked.
    The fields that carry the identity and the framing are set again afterwards; nobody can forge or remove them.
    """


@hookspec
def forward_failed(exchange: Exchange, error: FrontdError) -> Response | str | None:
    """The app gave no answer: `error.reason` says why.  The first answer is sent instead of the error page; a text is
    the pool or the target that is asked instead."""


@hookspec
def admit_response(exchange: Exchange) -> Response | str | None:
    """The head of the app's answer is here (`exchange.response`, its body None).  The last moment to replace it.

    What is stored is what it is at the end of this phase.  The first answer ends it; a text is the pool or the target
    that is asked instead.
    """


@hookspec
def rewrite_response(exchange: Exchange) -> None:
    """Every answer passes here on its way out: the app's, a plugin's, a cached one, a file, an error page."""


@hookspec
def log(exchange: Exchange) -> None:
    """The exchange is over, however it ended; asked exactly once for each exchange of the site.  Plain def."""


@hookspec
def client_closed(client: Client) -> None:
    """A connection on which this plugin may have been asked has ended.  Plain def."""
