"""What is reserved and registered, as an overlay over the configuration.

How it works
------------
    effective configuration = overlay(configuration, namespace)

The namespace (`frontd.model.reservations`) is what the configuration reserves and what control keeps beside it.  Every
claimed prefix gets an entrance of its own in the table of UrlPrefixes, so HTTP.sys's precedence holds for it by itself
and it is never passed to a broader one.  Behind that entrance stands the configured site that covers the prefix, with
its plugins, limits and timers, and with other routes: the claimed prefix leads to its queue, or nowhere while there is
none, and what the site routes below it stays.  Where no site covers it, it is a site of its own with the plugins of the
whole server.

Runtime and `frontd explain` both ask `served_claims`, so what is told is what is done.

Invariants
----------
* What the file routes or has as a URL at exactly the claimed prefix stands: the administrator has registered it.
* The configuration itself is not touched: `overlay` of the same two is the same.
* A queue that only the namespace knows never takes the name of a configured pool, and what was registered for it never
  goes there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from frontd.config.aclchecks import is_served, schemes_of
from frontd.config.model import Attach, Config, Pool, Route, Site
from frontd.config.sitelimits import armed
from frontd.config.urlacl import fixed_reservations
from frontd.model.reservations import Claim, Namespace, Queue, compared, covers
from frontd.model.urlprefix import UrlPrefix, is_under, path_key

NOBODY = "(reserved)"  # the name of the site of what no site covers


class Standing(NamedTuple):
    """A claim as it is served: by the site of that name (`NOBODY`: its own), with `routes` besides its queue's."""

    claim: Claim
    site: str
    routes: dict[str, Route]


def whole(config: Config, kept: Namespace) -> Namespace:
    """What the configuration reserves and what is `kept` beside it; at one prefix the configuration's stands.

    Raises `ValueError` when a name in the configuration has ceased to exist.
    """
    fixed = fixed_reservations(config.urlacl)
    taken = {compared(one.url) for one in fixed}
    rest = tuple(one for one in kept.reservations if compared(one.url) not in taken)
    return Namespace((*fixed, *rest), kept.queues, schemes_of(config.listen.values()))


def overlay(config: Config, kept: Namespace) -> Config:
    """The configuration with what is claimed laid over it.  Raises `ValueError` like `whole`."""
    space = whole(config, kept)
    space = replace(space, queues=tuple(one for one in space.queues if one.name not in config.pools or is_pools(one)))
    pools = {queue.name: Pool(name=queue.name, attach=Attach()) for queue in space.queues}
    pools = {name: pool for name, pool in pools.items() if name not in config.pools}
    able = {name for name, pool in {**pools, **config.pools}.items() if pool.attach is not None}
    claims = [claim if claim.queue in able else claim._replace(queue="") for claim in space.claims()]
    return config.claimed(tuple(claims), pools)


def is_pools(queue: Queue) -> bool:
    """Whether a queue is that of the pool of its name, and not somebody's who had the name before."""
    return queue.owner.kind == "pool" and queue.owner.name == queue.name


def served_claims(config: Config) -> Iterator[Standing]:
    """The claims of an effective configuration, each with the site behind it."""
    for claim in config.claims:
        if not is_served(claim.url, config.listen.values()) or registered_in_file(config, claim.url):
            continue
        site = covering_site(config, claim.url)
        if site is None:
            yield Standing(claim, NOBODY, {})
            continue
        own = path_key(claim.url.path)
        below = {path: route for path, route in site.routes.items() if is_under(path_key(path), own)}
        yield Standing(claim, site.name, below)


def covering_site(config: Config, url: UrlPrefix) -> Site | None:
    """The configured site with the longest URL that covers `url`: same scheme, host and port."""
    found = [(len(one.path), site) for site in config.sites.values() for one in site.urls if covers(one, url)]
    return max(found, key=lambda pair: pair[0], default=(0, None))[1]


def registered_in_file(config: Config, url: UrlPrefix) -> str:
    """What the configuration itself has at exactly this prefix, in words; empty: nothing."""
    key = compared(url)
    for site in config.sites.values():
        if any(compared(one) == key for one in site.urls):
            return f"the URL of the site {site.name}"
    covering = covering_site(config, url)
    for path in covering.routes if covering is not None else ():
        if path_key(path) == key.path:
            assert covering is not None
            return f"the route {path} of the site {covering.name}"
    return ""


def queue_in_file(config: Config, url: UrlPrefix) -> str:
    """The pool that the configuration itself routes exactly this prefix to; empty: none."""
    key = compared(url)
    for site in config.sites.values():
        if any(covers(one, url) for one in site.urls):
            for path, route in site.routes.items():
                if path_key(path) == key.path:
                    return route.pool or ""
    return ""


def site_of_nobody(config: Config) -> Site:
    """The site of what no site covers: the settings of the whole server."""
    return Site.model_construct(
        None, name=NOBODY, urls=(), routes={}, plugins=(), limits=armed(config.limits, config.plugins),
        timeouts=config.timeouts, identity=config.identity, redirect_http=True, underscores_in_headers=False,
        challenges=(),
    )  # fmt: skip
