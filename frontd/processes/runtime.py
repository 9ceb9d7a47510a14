"""Config → World: the whole new world is built beside the one that serves, then swapped in one assignment.

Build touches nothing that is serving; whatever fails raises `BuildProblem` and the old world stays.  State is kept
where its configuration is unchanged: pools with their connections and queues, TLS contexts with their tickets, plugins
with what they know, counters of sites.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pluggy import PluginValidationError

from frontd.config.certificates import KeyPair, Unusable, file_bytes, read_authorities, read_key_pair
from frontd.config.model import Config, IdentityToken, Route, TlsHost
from frontd.config.model import Pool as PoolConfig
from frontd.config.model import Site as SiteConfig
from frontd.config.model import Target as TargetConfig
from frontd.config.signing import read_signing_key
from frontd.model.urlprefix import PathTable, PrefixTable, UrlPrefix
from frontd.net import tickets
from frontd.net.shared import LocalSlots
from frontd.net.tickets import FamilySecret
from frontd.net.tls import CertificateProblem, Profile, ProfileTable, build_profile, client_context
from frontd.pipeline.assertion import Signer
from frontd.pipeline.fileroot import FileRoot
from frontd.pipeline.phases import Phases, freeze
from frontd.pipeline.store import MemoryStore
from frontd.pipeline.world import Destination, Entrance, Shared, Site, SiteState, World
from frontd.processes.claims import NOBODY, Standing, served_claims, site_of_nobody
from frontd.processes.plugins import PluginProblem, instances
from frontd.protocol.scan import WireLimits
from frontd.upstream.client import Dialect
from frontd.upstream.ondemand import OnDemandPools
from frontd.upstream.pool import Pool
from frontd.upstream.targets import PoolSettings, Target


class BuildProblem(Exception):
    """A configuration that is valid on paper cannot be served; the text says what and why."""


def only_problem(group: BaseExceptionGroup[BaseException]) -> BuildProblem | None:
    """The reason why it could not serve at all, out of the nurseries it came through."""
    found = group.subgroup(BuildProblem)
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]  # type: ignore[assignment]
    return found


def build(
    config: Config, generation: int, previous: World | None, remark: Callable[[str], None], shared: Shared | None = None
) -> World:
    """The world of `config`; what is unchanged is taken over from `previous`.

    `remark` is where plugins write to; `shared` is what this process shares with other fronts, if there are any: it is
    given once and then taken over as well.  Raises `BuildProblem`.
    """
    shared = previous.shared if previous else shared or Shared()
    store = previous.store if previous else MemoryStore(config.cache.memory)
    standing = previous.plugins if previous else ()
    try:
        plugins = instances(config, standing, store, remark)
        phases = {name: freeze([*plugins[""], *plugins[name]], site.challenges) for name, site in config.sites.items()}
        signers = {name: build_signer(site.identity) for name, site in config.sites.items()}
        profiles = build_profiles(config, previous.profiles.profiles if previous else [], shared.secret)
        pools = {name: build_pool(pool, config, previous, shared.slots) for name, pool in config.pools.items()}
    except (CertificateProblem, Unusable, PluginProblem, PluginValidationError) as error:
        raise BuildProblem(str(error)) from None
    if previous is None and profiles.profiles and (why := tickets.verdict()):
        remark(f"TLS sessions resume only at the front that made them: {why}")
    states = {site.name: site.state for site in previous.all_sites} if previous else {}
    sites = {
        name: build_site(site, pools, phases[name], signers[name], states.get(name) or site_state(name, shared.slots))
        for name, site in config.sites.items()
    }
    claims = list(served_claims(config))
    if any(one.site == NOBODY for one in claims):
        nobody, state = site_of_nobody(config), states.get(NOBODY) or site_state(NOBODY, shared.slots)
        sites[NOBODY] = build_site(nobody, pools, freeze(plugins[""]), build_signer(nobody.identity), state)
    pairs = [(prefix, sites[name]) for name, site in config.sites.items() for prefix in site.urls]
    pairs += [(one.claim.url, claimed_site(one, sites, pools, config.reserved_status)) for one in claims]
    pairs += [(prefix, redirect_site(sites[name], to)) for prefix, name, to in redirects_to_https(config)]
    entrances = [(prefix, Entrance(site, prefix.host)) for prefix, site in pairs]
    return World(
        generation=generation,
        sites=PrefixTable(entrances),
        all_sites=tuple(sites.values()),
        pools=pools,
        profiles=profiles,
        trusted_proxies=config.trusted_proxies,
        limits=config.limits,
        timeouts=config.timeouts,
        wire=largest_heads(config),
        server=freeze(plugins[""]),
        plugins=tuple(plugin for of_site in plugins.values() for plugin in of_site),
        store=store,
        ondemand=ondemand_pools(config, previous, shared.slots),
        shared=shared,
    )


def ondemand_pools(config: Config, previous: World | None, slots: LocalSlots) -> OnDemandPools:
    """Pools for targets that plugins route to; those that stand stay."""

    def make(target: str) -> Pool:
        settings = PoolConfig(name=target, targets=(TargetConfig.parse(target),))
        try:
            return build_pool(settings, config, None, slots)
        except CertificateProblem as error:
            raise ValueError(str(error)) from None

    return previous.ondemand.following(make) if previous else OnDemandPools(make)


# ---------------------------------------------------------------------------------------------------- TLS


def build_profiles(config: Config, previous: list[Profile], secret: FamilySecret | None = None) -> ProfileTable:
    """Profiles by host: every name of every certificate under the open policy, then hosts with demands of their own."""
    certificates = [read_key_pair(certificate) for certificate in config.tls.certificates]
    hosts: dict[str, Profile] = {}
    made = list(previous)

    def profile(certificate: KeyPair, demands: TlsHost) -> Profile:
        found = build_profile(certificate, demands, made, secret)
        made.append(found)
        return found

    for certificate in certificates:
        for host in certificate.hosts:  # the first certificate for a name wins, as the order in the file says
            hosts.setdefault(host, profile(certificate, TlsHost()))
    table = ProfileTable(hosts, None)
    for host, demand in config.tls.hosts.items():
        found = table.find(host)
        if found is None:
            raise BuildProblem(f"tls.hosts.{host}: no certificate covers it")
        hosts[host] = profile(found.certificate, demand)
    default = config.tls.default
    if default is not None:
        names = [c.name for c in config.tls.certificates]
        chosen = hosts.get(default) or (
            profile(certificates[names.index(default)], TlsHost()) if default in names else table.find(default)
        )
        if chosen is None:
            raise BuildProblem(f"tls.default: no certificate is named or covers {default!r}")
        table.default = chosen
    return table


# ---------------------------------------------------------------------------------------------------- sites


def site_state(name: str, slots: LocalSlots) -> SiteState:
    """The counters of a site that was not there before."""
    return SiteState(crowd=slots.counter(f"site {name}"))


def claimed_site(one: Standing, sites: dict[str, Site], pools: dict[str, Pool], status: int) -> Site:
    """The site behind a prefix that is reserved or registered, as it is there: the prefix leads to its queue, or with
    `status` nowhere."""
    path, queue = one.claim.url.path, one.claim.queue
    to = Destination(path, pool=pools[queue]) if queue else Destination(path, reserved=status)
    routes = [(path, to), *((key, destination(key, route, pools)) for key, route in one.routes.items())]
    return replace(sites[one.site], routes=PathTable(routes))


def build_signer(settings: IdentityToken | None) -> Signer | None:
    """Who signs the identities of a site.  Raises `Unusable`."""
    if settings is None:
        return None
    key = read_signing_key(settings.jwt_key)
    return Signer(key, settings.issuer, settings.audience, settings.lifetime)


def build_site(
    config: SiteConfig, pools: dict[str, Pool], phases: Phases, signer: Signer | None, state: SiteState
) -> Site:
    """A site as the pipeline reads it, which counts in `state`."""
    return Site(
        name=config.name,
        routes=PathTable((path, destination(path, route, pools)) for path, route in config.routes.items()),
        limits=config.limits,
        timeouts=config.timeouts,
        state=state,
        keeps_underscores=config.underscores_in_headers,
        phases=phases,
        signer=signer,
    )


def destination(path: str, route: Route, pools: dict[str, Pool]) -> Destination:
    """Where a route leads, with the pool itself instead of its name."""
    if route.redirect is not None:
        return Destination(path, redirect=route.redirect, status=route.status)
    if route.files is not None:
        return Destination(path, files=FileRoot(route.files, route.index), strip=path)
    assert route.pool is not None
    strip = path if route.strip_prefix else ""
    return Destination(path, pool=pools[route.pool], strip=strip, urgency=route.urgency)


def redirects_to_https(config: Config) -> list[tuple[UrlPrefix, str, Destination]]:
    """http for hosts that have only https URLs: a redirect to the same URL there (308, so that methods are kept).

    Each with the UrlPrefix it stands under and the name of the site it belongs to.
    """
    http_ports = [listen.public_port for listen in config.listen.values() if listen.kind == "http"]
    taken = {(prefix.host, prefix.port) for site in config.sites.values() for prefix in site.urls
             if prefix.scheme == "http"}  # fmt: skip
    redirects: list[tuple[UrlPrefix, str, Destination]] = []
    for site in config.sites.values():
        for prefix in site.urls:
            if prefix.scheme != "https" or not site.redirect_http:
                continue
            port = "" if prefix.port == 443 else f":{prefix.port}"
            to = Destination("/", redirect=f"https://{{host}}{port}{{path}}", status=308)
            for http_port in http_ports:
                where = UrlPrefix("http", prefix.host, http_port or 80, "/")
                if (prefix.host, where.port) not in taken:
                    taken.add((prefix.host, where.port))
                    redirects.append((where, site.name, to))
    return redirects


def redirect_site(site: Site, to: Destination) -> Site:
    """A site that redirects every path, with the limits of `site` and counting for it.  Nobody is asked to log on
    there: a password would go over http."""
    return replace(site, routes=PathTable([("/", to)]), phases=site.phases.before_logon())


def largest_heads(config: Config) -> WireLimits:
    """What must be read before the site is known: the largest head any site accepts."""
    every = [config.limits, *(site.limits for site in config.sites.values())]
    return WireLimits(
        max(limits.max_head for limits in every),
        max(limits.max_field for limits in every),
        max(limits.max_fields for limits in every),
    )


# ---------------------------------------------------------------------------------------------------- pools


def build_pool(config: PoolConfig, whole: Config, previous: World | None, slots: LocalSlots) -> Pool:
    """The pool of `config`; the one that stands is kept when nothing about it changed.

    Raises `CertificateProblem` and `Unusable`.
    """
    kept = previous.pools.get(config.name) if previous else None
    contexts = client_contexts(config, kept)
    settings = PoolSettings(
        name=config.name,
        targets=tuple(build_target(target, config, contexts) for target in config.targets),
        concurrency=config.workers.concurrency if config.workers else config.concurrency,
        queue_limit=config.queue.limit,
        queue_wait=config.queue.wait,
        resolve=config.resolve,
        keep_alive=whole.timeouts.keep_alive,
        connect=whole.timeouts.connect,
        replay_body=config.replay_body,
        replay_memory=config.replay_memory,
        sendfile_from=config.sendfile_from,
        refuse_with=config.refuse_with,
        pass_through=frozenset(config.pass_through),
        splash=splash_of(config),
        told=Target("workers" if config.workers else "attached", "", 0, contexts["unix"])
        if config.workers or config.attach
        else None,
    )
    return kept if kept is not None and kept.settings == settings else Pool(settings, slots)


def splash_of(config: PoolConfig) -> bytes:
    """The page for browsers while no worker is ready, if there is one.  Raises `Unusable`."""
    path = config.workers.splash if config.workers else None
    return file_bytes(path, "splash") if path is not None else b""


def client_contexts(config: PoolConfig, kept: Pool | None) -> dict[str, Dialect]:
    """How to speak to this pool's targets; the TLS context of a pool that stands serves on while its CA is the same."""
    plain = Dialect(lenient=config.lenient_responses)
    if not any(target.scheme == "https" for target in config.targets):
        return {"http": plain, "unix": plain}
    authority = read_authorities(config.tls.ca, "ca") if config.tls.ca else b""
    for target in kept.settings.targets if kept else ():
        if target.dialect.context is not None and target.dialect.authority == authority:
            secure = Dialect(target.dialect.context, "", config.lenient_responses, authority)
            return {"http": plain, "unix": plain, "https": secure}
    secure = Dialect(client_context(authority), "", config.lenient_responses, authority)
    return {"http": plain, "unix": plain, "https": secure}


def build_target(target: TargetConfig, config: PoolConfig, dialects: dict[str, Dialect]) -> Target:
    """A target with how to speak to it; `dialects` holds one for each scheme of the pool."""
    dialect = dialects[target.scheme]
    if dialect.context is not None:
        dialect = dialect.to(config.tls.server_name or target.host)
    return Target(str(target), target.path or target.host, target.port, dialect)


# ---------------------------------------------------------------------------------------------------- differences


def differences(old: Config, new: Config) -> list[str]:
    """What a reload changed, in words, by top-level noun and by name."""
    changes: list[str] = []
    for noun in ("sites", "pools", "listen"):
        before, after = getattr(old, noun), getattr(new, noun)
        one = noun.rstrip("s") if noun != "listen" else "listener"
        changes += [f"{one} {name} added" for name in after if name not in before]
        changes += [f"{one} {name} removed" for name in before if name not in after]
        changes += [f"{one} {name} changed" for name in after if name in before and after[name] != before[name]]
    before_claims, after_claims = ({str(one.url): one for one in config.claims} for config in (old, new))
    changes += [f"{url} claimed" for url in after_claims if url not in before_claims]
    changes += [f"{url} no longer claimed" for url in before_claims if url not in after_claims]
    changes += [f"{url} claimed anew" for url, one in after_claims.items() if before_claims.get(url, one) != one]
    for noun in type(new).model_fields:
        if noun in ("sites", "pools", "listen"):
            continue
        if getattr(old, noun) != getattr(new, noun):
            changes.append(f"{noun} changed")
    return changes
