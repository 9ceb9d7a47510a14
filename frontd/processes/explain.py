"""Which way a URL goes through a configuration: listener → certificate → site → plugins → route → pool → target.

How it works: each step asks the same functions that serve requests (`PrefixTable`, `PathTable`, `redirects_to_https`,
certificate names by SNI, `requested_file`) for the winner, then says of every other candidate why it lost.  Pure over
`Config`, except that certificate files are read for their names and that a file of a ``files:`` route is opened, as for
a GET.  A step that finds nothing ends the way; `answer` then says what a client would see.

Plugins are named and not asked: what they decide depends on the whole request, and on what they remember.

Invariant: what is `chosen` comes from the matching tables alone; the reasons beside it are for people.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

from frontd.config.certificates import CertificateFacts, Unusable, read_certificate
from frontd.config.model import Config, Listen, Pool, Route, Site, Workers
from frontd.config.plugins import PluginEntry
from frontd.config.sitelimits import needed
from frontd.model.addresses import bracketed
from frontd.model.errors import FrontdError, Reason
from frontd.model.headers import Headers
from frontd.model.messages import Request
from frontd.model.urlprefix import (
    DEFAULT_PORTS,
    Category,
    PathTable,
    PrefixTable,
    UrlPrefix,
    canonical_host,
    canonical_path,
    is_ip,
    is_under,
    path_key,
)
from frontd.model.verdicts import Redirect
from frontd.pipeline.fileroot import FileRoot, OpenFile
from frontd.pipeline.files import requested_file
from frontd.pipeline.phases import SPECS, challenge_rank
from frontd.pipeline.world import Destination
from frontd.processes.claims import NOBODY, Standing, served_claims, site_of_nobody
from frontd.processes.runtime import redirects_to_https

_CATEGORY = {
    Category.STRONG: "strong wildcard +",
    Category.EXPLICIT: "explicit host",
    Category.IP_BOUND: "IP-bound",
    Category.WEAK: "weak wildcard *",
}

# The hooks on the way of a redirect to https (`Phases.before_logon`), and the one that comes before every site.
BEFORE_LOGON = ("accept_client", "filter_request", "rewrite_response", "log", "client_closed")


@dataclass(slots=True)
class Way:
    """What is asked, and the steps so far."""

    config: Config
    url: str
    scheme: str
    host: str
    port: int
    path: str
    query: str
    steps: list[dict[str, Any]] = field(default_factory=list)

    def step(self, name: str, chosen: str | None, why: str, lost: list[tuple[str, str]]) -> None:
        self.steps.append(
            {"step": name, "chosen": chosen, "why": why, "lost": [{"what": what, "why": cause} for what, cause in lost]}
        )


def explain(config: Config, url: str) -> dict[str, Any]:
    """The way of `url` as ``{"url", "steps": [{"step", "chosen", "why", "lost": [{"what", "why"}]}], "answer"}``.

    Raises `ValueError` with a sentence when `url` is not an http or https URL.
    """
    way, refused = _read(config, url)
    answer = refused or _listener(way)
    return {"url": way.url, "steps": way.steps, "answer": answer}


def _read(config: Config, url: str) -> tuple[Way, str]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from None
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f"{url!r} is not a URL such as https://shop.example.com/path")
    host = canonical_host(parts.hostname)
    way = Way(config, url, scheme, host, DEFAULT_PORTS[scheme] if port is None else port, "/", parts.query)
    try:
        way.path = canonical_path(parts.path or "/")
    except FrontdError as error:
        return way, f"{error.status} {error.reason}: {error.detail}"
    return way, ""


def _listener(way: Way) -> str:
    """The listener: by kind and by the port that clients type."""
    fits = [one for one in way.config.listen.values() if one.kind == way.scheme and one.public_port in (way.port, None)]
    lost = []
    for one in way.config.listen.values():
        if one in fits[:1]:
            continue
        if one in fits:
            lost.append((_listener_name(one), "serves this URL as well; the address that a client connects to decides"))
        elif one.kind != way.scheme:
            lost.append((_listener_name(one), f"it speaks {one.kind}, the URL says {way.scheme}"))
        else:
            lost.append((_listener_name(one), f"clients reach it on port {one.public_port}, the URL says {way.port}"))
    if not fits:
        way.step("listener", None, f"no {way.scheme} listener has public port {way.port}", lost)
        return f"no connection: nothing listens for {way.scheme} on port {way.port}"
    chosen = fits[0]
    if chosen.public_port is None:
        why = "it is on a free port, so sites are matched by host alone"
    elif chosen.public_port != chosen.port:
        why = f"it speaks {way.scheme}; clients reach it on port {chosen.public_port}, published to {chosen.port}"
    else:
        why = f"it speaks {way.scheme} on port {chosen.port}"
    way.step("listener", _listener_name(chosen), why, lost)
    if way.scheme == "https":
        refused = _certificate(way)
        if refused:
            return refused
    return _site(way, chosen)


def _listener_name(one: Listen) -> str:
    address = bracketed(one.address or "*")
    return f"{one.name} ({address}:{one.port})"


# ---------------------------------------------------------------------------------------------------- certificate


def _certificate(way: Way) -> str:
    """The certificate by the name in the TLS hello; returns what the client sees when there is none."""
    known: list[tuple[str, CertificateFacts]] = []
    lost: list[tuple[str, str]] = []
    for certificate in way.config.tls.certificates:
        label = str(certificate.pfx or certificate.cert)
        try:
            known.append((label, read_certificate(certificate)))
        except Unusable as error:
            lost.append((label, f"it cannot be used: {error}"))
    # RFC 6066 3: a literal address is never sent as a server name; the address the client came to stands for it
    name = None if is_ip(way.host) else way.host
    chosen, why = _by_name(known, way.host)
    if chosen is None:
        chosen, why = _default(way.config, known, name)
    lost += [(one[0], _why_not(one[1], name, chosen)) for one in known if one is not chosen]
    if chosen is None:
        way.step("certificate", None, why, lost)
        return "the TLS handshake is refused (unrecognized_name): " + Reason.TlsHostname.sentence
    exact = name is None or any(name in one[1].hosts for one in known) or name in way.config.tls.hosts
    demands = way.config.tls.hosts.get(way.host if exact else "*." + way.host.partition(".")[2])
    if demands is not None and demands.client_certificate != "none":
        why += f"; a client certificate is {demands.client_certificate}"
    if not chosen[1].covers(way.host):
        why += f"; clients will not accept it for {way.host}, it is for {', '.join(chosen[1].hosts) or 'no host'}"
    way.step("certificate", chosen[0], why, lost)
    return ""


Known = tuple[str, CertificateFacts]


def _by_name(known: list[Known], name: str) -> tuple[Known | None, str]:
    for one in known:
        if name in one[1].hosts:
            return one, f"it names {name}"
    wildcard = "*." + name.partition(".")[2]
    for one in known:
        if wildcard in one[1].hosts:
            return one, f"its {wildcard} covers {name}"
    return None, ""


def _default(config: Config, known: list[Known], name: str | None) -> tuple[Known | None, str]:
    """The certificate of ``tls.default``: a host it covers, its name, or its position."""
    nothing = f"no certificate covers {name}"
    if name is None:
        nothing = "the URL has an address, so the TLS hello has no name"
    wanted = config.tls.default
    if wanted is None:
        return None, f"{nothing}, and there is no tls.default"
    labels = {str(c.pfx or c.cert): (c.name, str(i)) for i, c in enumerate(config.tls.certificates)}
    for one in known:
        if wanted in labels[one[0]] or one[1].covers(wanted.lower()):
            return one, f"{nothing}; tls.default is {wanted}"
    return None, f"{nothing}, and tls.default ({wanted}) cannot be used"


def _why_not(facts: CertificateFacts, name: str | None, chosen: Known | None) -> str:
    if name is not None and facts.covers(name):
        if chosen is not None and name in chosen[1].hosts and name not in facts.hosts:
            return "its wildcard covers the name too, but an exact name comes first"
        return "it covers the name too, but comes later in the list"
    hosts = ", ".join(facts.hosts) or "no host"
    return f"it is for {hosts}" + ("" if name is None else f", not for {name}")


# ---------------------------------------------------------------------------------------------------- site


def _site(way: Way, listener: Listen) -> str:
    """The site by UrlPrefix; redirects from http to https stand in the same table, as when requests are served."""
    pairs: list[tuple[UrlPrefix, Entry]] = [
        (url, (site.name, url, None)) for site in way.config.sites.values() for url in site.urls
    ]
    claims = {one.claim.url: one for one in served_claims(way.config)}
    pairs += [(url, (one.site, url, None)) for url, one in claims.items()]
    pairs += [(url, (name, url, to)) for url, name, to in redirects_to_https(way.config)]
    port = None if listener.public_port is None else way.port
    local = listener.address or (way.host if is_ip(way.host) else "")
    match = PrefixTable(pairs).match(way.scheme, port, way.host, local, way.path)
    winner = match.value
    lost = [
        (f"{name}: {url}", _why_url_lost(way, port, local, url, winner[1] if winner else None))
        for url, (name, _, redirect) in pairs
        if redirect is None and (winner is None or (name, url) != winner[:2])
    ]
    if winner is None:
        if match.host_known:
            way.step("site", None, f"{way.host} is known, but no URL covers {way.path}", lost)
            return f"404 {Reason.NotFound}: {Reason.NotFound.sentence}"
        way.step("site", None, f"no site has {way.scheme} URLs for {way.host}", lost)
        return f"400 {Reason.Hostname}: {Reason.Hostname.sentence}"
    name, url, redirect = winner
    if redirect is not None:
        way.step("site", name, f"{way.host} has https URLs only, so http redirects there (redirect_http)", lost)
        _plugins(way, name, BEFORE_LOGON)
        return _redirect(way, redirect.redirect, redirect.status)
    if url in claims:
        return _claimed(way, claims[url], lost)
    why = f"{url} covers it ({_CATEGORY[url.category]})"
    if way.path != (urlsplit(way.url).path or "/"):
        why += f"; the path is read as {way.path}"
    way.step("site", name, why, lost)
    _plugins(way, name, SPECS)
    return _route(way, way.config.sites[name])


def _claimed(way: Way, one: Standing, lost: list[tuple[str, str]]) -> str:
    """What is reserved or registered: the site that covers it, with the queue of the prefix in place of its routes."""
    claim = one.claim
    what = f"registered for the queue {claim.queue}" if claim.queue else "reserved"
    whose = (
        "its site covers it" if one.site in way.config.sites else "no site covers it: the plugins of the server hold"
    )
    way.step("site", one.site, f"{claim.url} is {what} ({claim.owner}); {whose}", lost)
    _plugins(way, one.site, SPECS)
    site = way.config.sites.get(one.site) or site_of_nobody(way.config)
    routes = {claim.url.path: Route(pool=claim.queue or NOBODY), **one.routes}
    if claim.queue or PathTable((path, path) for path in routes).match(way.path) != claim.url.path:
        return _route(way, site.model_copy(update={"routes": routes}))
    way.step("route", claim.url.path, f"it is reserved for {claim.owner}, and nobody has registered it yet", [])
    return f"{way.config.reserved_status} {Reason.AppOffline}: {Reason.AppOffline.sentence}"


Entry = tuple[str, UrlPrefix, Destination | None]


def _redirect(way: Way, to: str, status: int) -> str:
    host = bracketed(way.host)
    path = way.path + (f"?{way.query}" if way.query else "")
    return f"{status} redirect to {to.replace('{host}', host).replace('{path}', path)}"


def _names(url: UrlPrefix, host: str, local: str) -> bool:
    """Whether the host part of a UrlPrefix covers `host`."""
    if url.host in ("+", "*", host) or (local and url.host == local):
        return True
    return url.host.startswith("*.") and not is_ip(host) and host.endswith(url.host[1:])


def _why_url_lost(way: Way, port: int | None, local: str, url: UrlPrefix, winner: UrlPrefix | None) -> str:
    if url.scheme != way.scheme:
        return f"it is for {url.scheme}"
    if port is not None and url.port != port:
        return f"it is for port {url.port}"
    if not _names(url, way.host, local):
        return f"it is for the host {url.host}"
    if not is_under(path_key(way.path), path_key(url.path)):
        return f"{way.path} is not under {url.path}"
    if winner is None:
        return "it does not match"
    if url.category != winner.category:
        return f"a {_CATEGORY[url.category]} is asked after a {_CATEGORY[winner.category]}"
    if url.host != winner.host:
        return f"{winner.host} is more exact than {url.host}"
    return f"{winner.path} is longer than {url.path}"


# ---------------------------------------------------------------------------------------------------- plugins


def plugins_on(config: Config, site: str) -> list[PluginEntry]:
    """The plugins that are asked on a site, in their order: the whole server's, then its own."""
    return [*config.plugins, *(config.sites[site].plugins if site in config.sites else ())]


def hooks_of(entry: PluginEntry) -> list[str]:
    """The hooks that a plugin defines, in the order of a request's life."""
    return [hook for hook in SPECS if hook in entry.kind.hooks]


def _plugins(way: Way, site: str, hooks: Iterable[str]) -> None:
    """Who is asked at which of `hooks`; nothing is said where nobody is."""
    asked = {hook: [one.name for one in plugins_on(way.config, site) if hook in one.kind.hooks] for hook in hooks}
    names = [one.name for one in plugins_on(way.config, site) if not one.kind.hooks.isdisjoint(asked)]
    if not names:
        return
    lines = [f"{hook}: {', '.join(found)}" for hook, found in asked.items() if found]
    if guards := asked.get("authenticate"):
        doors = asked["authorize"]
        unless = f", unless {' or '.join(doors)} lets them in" if doors else ""
        lines.append(f"{' or '.join(guards)} asks who it is; whoever has not logged on gets 401{unless}")
        lines += _schemes(plugins_on(way.config, site), way.config.sites.get(site) or site_of_nobody(way.config))
    if movers := asked.get("route"):
        lines.append(f"{' or '.join(movers)} may send it elsewhere; what follows is what the routes say")
    way.step("plugins", ", ".join(names), "\n".join(lines), [])


def _schemes(entries: list[PluginEntry], site: Site) -> Iterable[str]:
    """The authentication schemes in force, as a 401 offers them; and what they do to the limits."""
    asking = [entry for entry in entries if "challenge" in entry.kind.hooks and entry.kind.plugin.scheme]
    asking.sort(key=lambda entry: challenge_rank(entry.name, entry.kind.plugin.scheme, site.challenges))
    if asking:
        order = "in the order of `challenges`" if site.challenges else "strongest first"
        schemes = ", ".join(f"{entry.kind.plugin.scheme} ({entry.name})" for entry in asking)
        yield f"schemes, {order}: {schemes}" if len(asking) > 1 else f"scheme: {schemes}"
    wanted, name = needed(entries, "max_head")
    if wanted:
        yield f"heads may have {site.limits.max_head} bytes; {name} asks for {wanted}"
    if site.identity is not None:
        yield f"apps are told who it is in X-Frontd-Identity, too, signed by {site.identity.jwt_key}"


# ---------------------------------------------------------------------------------------------------- route to target


def _route(way: Way, site: Site) -> str:
    entries = [(prefix, (prefix, route)) for prefix, route in site.routes.items()]
    found = PathTable(entries).match(way.path)
    chosen = found[0] if found else None
    lost = []
    for prefix in site.routes:
        if prefix == chosen:
            continue
        if not is_under(path_key(way.path), path_key(prefix)):
            lost.append((prefix, f"{way.path} is not under it"))
        else:
            lost.append((prefix, f"{chosen} is longer"))
    if found is None:
        way.step("route", None, f"no route of {site.name} covers {way.path}", lost)
        return f"404 {Reason.NotFound}: {Reason.NotFound.sentence}"
    prefix, route = found
    if route.redirect is not None:
        way.step("route", prefix, f"it redirects to {route.redirect}", lost)
        return _redirect(way, route.redirect, route.status)
    why = "the only route" if len(site.routes) == 1 else f"the longest one that covers {way.path}"
    way.step("route", prefix, why, lost)
    if route.files is not None:
        return _file(way, prefix, FileRoot(route.files, route.index))
    return _pool(way, prefix, route)


def _file(way: Way, prefix: str, root: FileRoot) -> str:
    """The file below the directory of a route, found as this process finds it."""
    request = Request(
        "GET", b"", way.path, way.query, way.host, b"", "1.1", Headers(), has_query=bool(way.query), scheme=way.scheme
    )
    try:
        found = requested_file(root, request, prefix)
    except FrontdError as error:
        way.step("file", None, f"below {root.path}: {error.detail}", [])
        return f"{error.status} {error.reason}: {error.reason.sentence}"
    if isinstance(found, Redirect):
        way.step("file", None, f"below {root.path} it has one URL, and this is another", [])
        return f"{found.status} redirect to {found.url}"
    with found:
        name, size = _path_of(found), found.size
    why = f"what follows {prefix}, below {root.path}"
    if way.path.endswith("/"):
        why = f"the first of {', '.join(root.index)} that is there, below {root.path}"
    way.step("file", name, why, [])
    return f"the file {name}, {size} bytes"


def _path_of(file: OpenFile) -> str:
    """Where a file really lies, symbolic links followed (proc(5)); for people, so what cannot be shown is a ``?``."""
    path = os.readlink(f"/proc/self/fd/{file.fd}".encode()).decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "?" for char in path)


def _pool(way: Way, prefix: str, route: Route) -> str:
    pool = way.config.pools[cast("str", route.pool)]
    queue = f"up to {pool.queue.limit} requests wait there for up to {pool.queue.wait:g} s"
    of_each = pool.concurrency if pool.workers is None else pool.workers.concurrency
    what = "target" if pool.workers is None else "worker"
    busy = f"while no {what} can be reached" if of_each is None else f"while no {what} is free"
    way.step("pool", pool.name, f"the route leads to it; {busy}, {queue}", [])
    if pool.pass_through:
        schemes = " or ".join(dict.fromkeys(pool.pass_through))
        way.step("logon", schemes, "the app's own: a client that uses it has a connection of its own to the app", [])
    forwarded = _forwarded(way.path, prefix) if route.strip_prefix else way.path
    if way.query:
        forwarded += f"?{way.query}"
    return _target(way, pool, forwarded)


def _forwarded(path: str, prefix: str) -> str:
    """The path without the route's prefix; the case of the client stays."""
    return "/" + path[len(prefix) :] if len(path) >= len(prefix) else "/"


def _workers(way: Way, workers: Workers, forwarded: str) -> str:
    program = workers.app or " ".join(workers.command)
    many = f"{workers.count} workers" if workers.count > 1 else "one worker"
    limit = "" if workers.concurrency is None else f", each with at most {workers.concurrency} requests at once"
    first = "started by the first request, which waits" if workers.start == "on_demand" else "always there"
    way.step("workers", program, f"{many} that frontd runs, {first}{limit}, asked for {forwarded}", [])
    return f"forwarded to a worker ({program}) as {forwarded}"


def _target(way: Way, pool: Pool, forwarded: str) -> str:
    if pool.workers is not None:
        return _workers(way, pool.workers, forwarded)
    if pool.attach is not None:
        way.step("target", None, f"whichever process is attached to the queue, asked for {forwarded}", [])
        return f"forwarded to a process that is attached to the queue {pool.name} as {forwarded}"
    targets = [str(target) for target in pool.targets]
    limit = "" if pool.concurrency is None else f", each with at most {pool.concurrency} requests at once"
    if len(targets) == 1:
        way.step("target", targets[0], f"the only one of the pool{limit}, asked for {forwarded}", [])
    else:
        why = f"in turn (round robin){limit}, asked for {forwarded}"
        way.step("target", " | ".join(targets), why, [])
    return f"forwarded to {' or '.join(targets)} as {forwarded}"
