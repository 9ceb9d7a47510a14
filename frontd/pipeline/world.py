"""The world an exchange lives in: an immutable snapshot of sites, routes, TLS profiles and limits.

Built by `processes.runtime` from a configuration and swapped as a whole.  An exchange keeps the `World` it began with,
so it is never answered by a mixture of two configurations.  Counters and pools inside are State: they outlive the
snapshot.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import NamedTuple

from frontd.config.model import Limits, Timeouts
from frontd.model.errors import FrontdError, Reason
from frontd.model.messages import URGENCY, Client, Request, TlsPolicy
from frontd.model.urlprefix import MOST_REMEMBERED, PathTable, PrefixTable
from frontd.net.shared import Counter, LocalSlots
from frontd.net.tickets import FamilySecret
from frontd.net.tls import ProfileTable
from frontd.pipeline.assertion import Signer
from frontd.pipeline.fileroot import FileRoot
from frontd.pipeline.phases import NO_PHASES, Phases
from frontd.pipeline.plugin import Plugin
from frontd.pipeline.store import MemoryStore
from frontd.protocol.scan import WireLimits
from frontd.upstream.ondemand import OnDemandPools
from frontd.upstream.pool import Pool

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

OPEN_POLICY = TlsPolicy()


@dataclass(frozen=True, slots=True)
class Shared:
    """What the fronts of a family have in common: the slots in which they count together, and the secret that session
    tickets are made of (None: one process, which makes its own)."""

    slots: LocalSlots = field(default_factory=LocalSlots)
    secret: FamilySecret | None = field(default=None, repr=False)


@dataclass(slots=True)
class SiteState:
    """Counters of a site, kept over reloads: requests begun, exchanges with a reason, and the connections that are its
    now, which are counted together with the other fronts'."""

    requests: int = 0
    errors: int = 0
    crowd: Counter = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a route leads: a pool, the files of a directory, or a redirect with its status; `strip` is the path prefix
    taken off on the way, `urgency` that of its requests where they wait.  What is `reserved` leads nowhere yet."""

    route: str
    pool: Pool | None = None
    files: FileRoot | None = None
    redirect: str = ""
    status: int = 308
    strip: str = ""
    urgency: int = URGENCY
    reserved: int = 0  # the status for what is reserved and has no queue yet


@dataclass(frozen=True, slots=True)
class Site:
    """What a set of UrlPrefixes leads to."""

    name: str
    routes: PathTable[Destination]
    limits: Limits
    timeouts: Timeouts
    state: SiteState
    keeps_underscores: bool = False
    phases: Phases = NO_PHASES
    signer: Signer | None = None  # of who has logged on
    small: tuple[int, int, int, int] = field(init=False)

    def __post_init__(self) -> None:
        """`small`: bytes of a head, fields, characters of a path and of its segments that are within all limits."""
        limits = self.limits
        sizes = (limits.max_head, limits.max_field, limits.max_query, limits.max_url)
        heads = min(size for size in sizes if size is not None)
        object.__setattr__(self, "small", (heads, limits.max_fields, limits.max_segment, limits.max_segments))


class Entrance(NamedTuple):
    """A site as one of its UrlPrefixes leads to it; `host` is that prefix's."""

    site: Site
    host: str


@dataclass(frozen=True, slots=True)
class World:
    """One generation of the configuration, built.  `wire` holds the largest head limits of all sites: what a listener
    reads before the site is known; `server` are the phases that are asked before it is; `plugins` are the instances of
    all sites, `store` the memory they share; `policies` remembers what hosts demand of TLS.  `ondemand` has pools for
    targets that no configuration names; `shared` is what other processes have a part in."""

    generation: int
    sites: PrefixTable[Entrance]
    all_sites: tuple[Site, ...]
    pools: dict[str, Pool]
    profiles: ProfileTable
    trusted_proxies: tuple[Network, ...]
    limits: Limits
    timeouts: Timeouts
    wire: WireLimits
    server: Phases
    plugins: tuple[Plugin, ...]
    store: MemoryStore
    ondemand: OnDemandPools
    shared: Shared
    policies: dict[tuple[str, str | None], tuple[TlsPolicy, ...]] = field(default_factory=dict)

    def trusts(self, address: str) -> bool:
        """Whether what this peer says about its clients is believed."""
        if not self.trusted_proxies:
            return False
        ip = ipaddress.ip_address(address)
        return any(ip in network for network in self.trusted_proxies)

    def site_for(self, request: Request, client: Client) -> Site:
        """The site of a request.

        Raises `FrontdError`: ``Hostname`` (400) for an unknown host, ``NotFound`` for a path outside every prefix of a
        known host, ``Misdirected`` (421) when the host's TLS policy is not the one this connection was made under.
        """
        host = request.host or client.local_address
        entrance, known = self.sites.match(
            client.scheme, client.public_port, host, client.local_address, request.path
        )
        if client.tls is not None:
            self._check_policy(client.tls.policy, host, entrance)
        if entrance is not None:
            return entrance.site
        raise FrontdError(Reason.NotFound if known else Reason.Hostname, detail=f"host {host}")

    def _check_policy(self, policy: TlsPolicy, host: str, entrance: Entrance | None) -> None:
        """Raises `FrontdError` with ``Misdirected`` where another TLS policy is demanded."""
        key = (host, entrance.host if entrance else None)
        demanded = self.policies.get(key)
        if demanded is None:
            if len(self.policies) >= MOST_REMEMBERED:
                self.policies.clear()
            demanded = self.policies[key] = tuple(self._policies(host, entrance))
        for one in demanded:
            if one is not policy and one != policy:
                raise FrontdError(Reason.Misdirected)

    def _policies(self, host: str, entrance: Entrance | None) -> list[TlsPolicy]:
        """What a request for `host` must have been made under: that host's policy, and the one of the UrlPrefix that
        lets it in when that one demands a certificate (``*.example.com`` covers any number of labels, an IP-bound
        prefix covers every name): else a name that has a certificate of its own would get round the demand.
        """
        named, door = self.profiles.named(host), self.profiles.named(entrance.host) if entrance else None
        profile = named or door or self.profiles.default
        policies = [profile.policy if profile else OPEN_POLICY]
        if door is not None and door.policy.client_certificate != "none":
            policies.append(door.policy)
        return policies


def check_limits(site: Site, request: Request, head_size: int) -> None:
    """The sizes of one site, once it is known.  Raises `FrontdError` that names the key of the limit."""
    heads, most_fields, longest, most_segments = site.small
    path = request.path
    few = len(request.headers.items) <= most_fields and path.count("/") <= most_segments
    if few and head_size <= heads and len(path) <= longest:
        return  # so small that no part of it can be too large
    limits = site.limits
    if head_size > limits.max_head:
        raise FrontdError(Reason.RequestLength, hint=f"The limit is limits.max_head ({limits.max_head} bytes).")
    if len(request.headers) > limits.max_fields:
        raise FrontdError(Reason.FieldLength, hint=f"The limit is limits.max_fields ({limits.max_fields} fields).")
    if any(len(name) + len(value) > limits.max_field for _, name, value in request.headers):
        raise FrontdError(Reason.FieldLength, hint=f"The limit is limits.max_field ({limits.max_field} bytes).")
    segments = request.path.split("/")[1:]
    if len(segments) > limits.max_segments:
        raise FrontdError(Reason.URL_Length, hint=f"The limit is limits.max_segments ({limits.max_segments} segments).")
    if any(len(segment) > limits.max_segment for segment in segments):
        raise FrontdError(Reason.URL_Length, hint=f"The limit is limits.max_segment ({limits.max_segment} characters).")
    query = request.query
    if limits.max_query is not None and len(query) > limits.max_query:
        raise FrontdError(Reason.URL_Length, hint=f"The limit is limits.max_query ({limits.max_query} bytes).")
    if limits.max_url is not None and len(request.path) + len(query) > limits.max_url:
        raise FrontdError(Reason.URL_Length, hint=f"The limit is limits.max_url ({limits.max_url} bytes).")


def body_too_large(limit: int, name: str = "limits.max_body") -> FrontdError:
    """The refusal (413) of a request body beyond `limit` bytes; it names the key to change, if there is one."""
    what = f"{name} ({limit} bytes)" if name else f"{limit} bytes"
    return FrontdError(Reason.EntityTooLarge, hint=f"The limit is {what}.")
