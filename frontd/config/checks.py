"""What only the whole can tell: whether every name leads somewhere and every URL is served and covered.

Each check looks at one rule and works on a draft that may lack what was wrong elsewhere; where a missing part would
make a rule speak nonsense, the rule is silent.  Rules that forbid come first, rules that warn after them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from frontd.config import places
from frontd.config.aclchecks import attaching_fits
from frontd.config.build import Draft, is_target
from frontd.config.certificates import (
    CertificateFacts,
    Unusable,
    file_bytes,
    read_authorities,
    read_certificate,
    read_revocations,
)
from frontd.config.fill import Room, complain, warn
from frontd.config.marks import MapNode, Node, find
from frontd.config.model import Listen, Site, tls_host_name
from frontd.config.pluginchecks import plugins_fit
from frontd.config.problems import Mark
from frontd.config.signing import read_signing_key
from frontd.config.target import Target
from frontd.config.tokens import read_token
from frontd.config.units import clip, nearest
from frontd.model.addresses import bracketed
from frontd.model.urlprefix import Category, UrlPrefix, is_under, path_key


def check(room: Room, draft: Draft, file_path: Path | None, mounts: frozenset[str]) -> None:
    """Note every error and warning about `draft`.  `file_path` is the configuration file (None: none), `mounts` the
    mount points of this process."""
    _pools_exist(room, draft)
    _one_site_per_url(room, draft)
    _listeners_apart(room, draft)
    _urls_served(room, draft)
    facts = _certificates(room, draft)
    _urls_covered(room, draft, facts)
    _tls_default(room, draft, facts)
    _tls_hosts_enforced(room, draft, facts)
    _other_files(room, draft)
    _directories(room, draft)
    plugins_fit(room, draft)
    attaching_fits(room, draft)
    _logons_of_one(room, draft)
    _tls_hosts_used(room, draft, facts)
    _shadowed(room, draft)
    _redirects_to_itself(room, draft)
    _tls_without_https(room, draft)
    _loopback_targets(room, draft)
    _pools_used(room, draft)
    _everybody_trusted(room, draft)
    _mounts(room, draft, file_path, mounts)


def _route_node(room: Room, site: Site, prefix: str, key: str) -> Node:
    node = room.routes[site.name, prefix]
    return find(node, key) if isinstance(node, MapNode) else node


# ---------------------------------------------------------------------------------------------------- errors


def _pools_exist(room: Room, draft: Draft) -> None:
    known = draft.pool_names | set(draft.pools)
    for site in draft.sites.values():
        for prefix, route in site.routes.items():
            if route.pool is None or route.pool in known:
                continue
            goal = _as_target(route.pool)
            guess = None if goal else nearest(route.pool, (name for name in known if not is_target(name)))
            hint = (
                f'did you mean "{guess}"?'
                if guess
                else f"write it under `pools`, or write a target: {goal or f'http://{route.pool}:8000'}"
            )
            complain(room, _route_node(room, site, prefix, "pool"), f"there is no pool {clip(route.pool)}", hint)


def _as_target(word: str) -> str | None:
    """The target that somebody meant who wrote a port or ``host:port`` alone; None when it is neither."""
    digits = word.isascii() and word.isdigit()
    host, colon, port = word.rpartition(":")
    if not digits and not (host and colon and port.isascii() and port.isdigit()):
        return None
    try:
        return str(Target.parse(f"http://127.0.0.1:{word}" if digits else f"http://{word}"))
    except ValueError:
        return "http://app:8000"


def _one_site_per_url(room: Room, draft: Draft) -> None:
    owners: dict[UrlPrefix, Site] = {}
    for site in draft.sites.values():
        for url in site.urls:
            key = dataclasses.replace(url, path=path_key(url.path))
            if key in owners:
                complain(room, room.urls[site.name, url], f"{url} already leads to the site {owners[key].name}")
            else:
                owners[key] = site


def _listeners_apart(room: Room, draft: Draft) -> None:
    bound: list[tuple[str | None, int, str]] = []
    sockets: list[tuple[str | None, int, str, Node]]
    sockets = [(one.address, one.port, one.name, find(draft.root, "listen", one.name)) for one in draft.listen.values()]
    if draft.health is not None:
        sockets.append((*draft.health.listen, "health", find(draft.root, "health", "listen")))
    if draft.control is not None and draft.control.listen is not None:
        sockets.append((*draft.control.listen, "control", find(draft.root, "control", "listen")))
    for address, port, name, node in sockets:
        for other_address, other_port, other in bound:
            if port and port == other_port and (address == other_address or None in (address, other_address)):
                complain(
                    room,
                    node,
                    f"{name} and {other} would both bind port {port} of {address or other_address or 'every address'}",
                )
                break
        bound.append((address, port, name))


def _urls_served(room: Room, draft: Draft) -> None:
    if not draft.listeners_known:
        return
    for site in draft.sites.values():
        for url in site.urls:
            same_kind = [one for one in draft.listen.values() if one.kind == url.scheme]
            if any(one.public_port in (url.port, None) for one in same_kind):
                continue
            complain(room, room.urls[site.name, url], f"no listener serves {url}", _served_hint(draft, url, same_kind))


def _served_hint(draft: Draft, url: UrlPrefix, same_kind: list[Listen]) -> str:
    if not same_kind:
        name = url.scheme if url.scheme not in draft.listen else f"{url.scheme}-{url.port}"
        return f"add the listener   {name}: {url.port}   under `listen`, or change the URL"
    one = same_kind[0]
    assert one.public_port is not None
    other = str(dataclasses.replace(url, port=one.public_port))
    return (
        f"the listener {one.name} is reached on port {one.public_port}: give it `public_port: {url.port}` if "
        f"that is what clients type, "
        f"or write the URL as {other}"
    )


def _certificates(room: Room, draft: Draft) -> dict[int, CertificateFacts]:
    facts: dict[int, CertificateFacts] = {}
    names: dict[str, int] = {}
    for index, certificate in draft.certificates.items():
        node = find(draft.root, "tls", "certificates", index)
        try:
            facts[index] = read_certificate(certificate)
        except Unusable as unusable:
            draft.certificates_known = False
            place = find(node, unusable.key) if isinstance(node, MapNode) else node
            complain(room, place, str(unusable), unusable.hint)
        else:
            for warning in facts[index].warnings:
                warn(
                    room, find(draft.root, "tls", "certificates", index, "pfx" if certificate.pfx else "cert"), warning
                )
        if certificate.name in names:
            complain(
                room,
                find(draft.root, "tls", "certificates", index, "name"),
                f"the name {clip(certificate.name)} is already taken",
            )
        names[certificate.name] = index
    return facts


def _covered(facts: dict[int, CertificateFacts], host: str) -> bool:
    return any(one.covers(host) for one in facts.values())


def _urls_covered(room: Room, draft: Draft, facts: dict[int, CertificateFacts]) -> None:
    if not draft.certificates_known:
        return
    for site in draft.sites.values():
        for url in site.urls:
            if url.scheme != "https" or (url.host in ("+", "*") and facts) or _covered(facts, url.host):
                continue
            node = room.urls[site.name, url]
            hosts = sorted({host for one in facts.values() for host in one.hosts})
            have = (
                f"the certificates cover {', '.join(hosts[:8])}{', …' if len(hosts) > 8 else ''}"
                if hosts
                else "there are none"
            )
            message = f"no certificate covers {url.host if url.host not in ('+', '*') else url}; {have}"
            if draft.tls_default is not None and facts:
                warn(room, node, message, "clients get the certificate of `tls.default`, and most will refuse it")
            else:
                complain(
                    room,
                    node,
                    message,
                    f"add one under `tls.certificates`, or serve it without TLS:   urls: [{_as_http(url)}]",
                )


def _as_http(url: UrlPrefix) -> str:
    host = bracketed(url.host)
    return f"http://{host}{url.path}"


def _tls_default(room: Room, draft: Draft, facts: dict[int, CertificateFacts]) -> None:
    wanted = draft.tls_default
    if wanted is None or not draft.certificates_known:
        return
    names = [certificate.name for certificate in draft.certificates.values()]
    if wanted in names or _covered(facts, wanted):
        return
    guess = nearest(wanted, [*names, *(host for one in facts.values() for host in one.hosts)])
    hint = f'did you mean "{guess}"?' if guess else "a host, the name of a certificate, or its position from 0"
    complain(room, find(draft.root, "tls", "default"), f"no certificate covers or is named {clip(wanted)}", hint)


def _tls_hosts_enforced(room: Room, draft: Draft, facts: dict[int, CertificateFacts]) -> None:
    """A demand that would silently not be made is an error, since somebody relies on it."""
    if not draft.certificates_known:
        return
    named = {name for one in facts.values() for name in one.hosts}
    for host in draft.tls_hosts:
        node = _tls_host_node(draft, host)
        if not _covered(facts, host):
            complain(room, node, f"no certificate covers {host}", "add one under `tls.certificates`")
        for name in sorted(named - draft.tls_hosts.keys()) if host.startswith("*.") else ():
            if name != host and name.partition(".")[2] == host[2:]:
                message = f"a certificate names {name} itself, so the demands of {host} do not reach it"
                complain(room, node, message, f"add {name} here, with its own demands")


def _other_files(room: Room, draft: Draft) -> None:
    for host, demands in draft.tls_hosts.items():
        node = _tls_host_node(draft, host)
        for key, path, read in (("ca", demands.ca, read_authorities), ("crl", demands.crl, read_revocations)):
            if path is not None:
                _try_file(room, node, key, path, read)
    for pool in draft.pools.values():
        if pool.tls.ca is not None:
            _try_file(room, find(draft.root, "pools", pool.name, "tls"), "ca", pool.tls.ca, read_authorities)
        if pool.workers is not None and pool.workers.splash is not None:
            _try_file(room, find(draft.root, "pools", pool.name, "workers"), "splash", pool.workers.splash, file_bytes)
    tokens = [(draft.identity, find(draft.root, "identity"))]
    tokens += [
        (site.identity, find(draft.root, "sites", site.name, "identity"))
        for site in draft.sites.values()
        if site.identity is not draft.identity
    ]
    for token, node in tokens:
        if token is not None:
            _try_file(room, node, "jwt_key", token.jwt_key, read_signing_key)
    if draft.control is not None and draft.control.token_file is not None:
        _try_file(room, find(draft.root, "control"), "token_file", draft.control.token_file, read_token)


def _directories(room: Room, draft: Draft) -> None:
    named = [
        (route.files, _route_node(room, site, prefix, "files"))
        for site in draft.sites.values()
        for prefix, route in site.routes.items()
        if route.files is not None
    ]
    named += [
        (pool.sendfile_from, find(draft.root, "pools", pool.name, "sendfile_from"))
        for pool in draft.pools.values()
        if pool.sendfile_from is not None
    ]
    for path, node in named:
        if not path.is_dir():
            complain(room, node, f"there is no directory {path}")


def _try_file(room: Room, node: Node, key: str, path: Path, read: Callable[[Path, str], object]) -> None:
    try:
        read(path, key)
    except Unusable as unusable:
        complain(room, find(node, key) if isinstance(node, MapNode) else node, str(unusable), unusable.hint)


def _logons_of_one(room: Room, draft: Draft) -> None:
    """One scheme is frontd's or the apps': what a plugin consumes never reaches them."""
    for site in draft.sites.values():
        own = {entry.kind.plugin.scheme.lower(): entry.name for entry in (*draft.plugins, *site.plugins)}
        for prefix, route in site.routes.items():
            pool = draft.pools.get(route.pool or "")
            for scheme in pool.pass_through if pool is not None else ():
                if scheme in own:
                    message = (
                        f"the plugin {own[scheme]} asks who it is by {scheme}, and the pool {clip(route.pool)} leaves "
                        f"that to its apps (pass_through)"
                    )
                    hint = (
                        f"take `{scheme}` out of `pools.{route.pool}.pass_through`, or the plugin {own[scheme]} off "
                        f"this site"
                    )
                    complain(room, _route_node(room, site, prefix, "pool"), message, hint)


# ---------------------------------------------------------------------------------------------------- warnings


def _tls_host_node(draft: Draft, host: str) -> Node:
    hosts = find(draft.root, "tls", "hosts")
    if not isinstance(hosts, MapNode):
        return hosts
    for written, node in hosts.values.items():
        try:
            if tls_host_name(written) == host:
                return node
        except ValueError:
            continue
    return hosts


def _tls_hosts_used(room: Room, draft: Draft, facts: dict[int, CertificateFacts]) -> None:
    urls = [url for site in draft.sites.values() for url in site.urls if url.scheme == "https"]
    for host in draft.tls_hosts:
        if not any(_meant(url.host, host) for url in urls):
            warn(room, _tls_host_node(draft, host), f"no site has an https URL for {host}; this has no effect")


def _meant(pattern: str, host: str) -> bool:
    """Whether a URL with the host `pattern` can be asked for under the TLS host `host`; both may be ``*.name``."""
    if pattern in ("+", "*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:])):
        return True
    return host.startswith("*.") and pattern.partition(".")[2] == host[2:]


def _shadowed(room: Room, draft: Draft) -> None:
    strong = [(url, site) for site in draft.sites.values() for url in site.urls if url.category is Category.STRONG]
    for site in draft.sites.values():
        lost = [(url, by) for url in site.urls for by in _shadows(url, strong)]
        dead = {url for url, _ in lost}
        for url, (shadow, owner) in lost:
            which = (
                f"the site {site.name} can never be reached"
                if dead == set(site.urls)
                else f"{url} can never be reached"
            )
            warn(
                room,
                room.urls[site.name, url],
                f"{which}: {shadow} of the site {owner.name} comes first",
                "+ wins over every name; * is asked last",
            )


def _shadows(url: UrlPrefix, strong: Iterable[tuple[UrlPrefix, Site]]) -> list[tuple[UrlPrefix, Site]]:
    if url.category is Category.STRONG:
        return []
    key = path_key(url.path)
    found = (
        (other, site)
        for other, site in strong
        if (other.scheme, other.port) == (url.scheme, url.port) and is_under(key, path_key(other.path))
    )
    return list(found)[:1]


def _redirects_to_itself(room: Room, draft: Draft) -> None:
    for site in draft.sites.values():
        route = site.routes.get("/")
        if (
            route is None
            or route.redirect is None
            or not route.redirect.endswith("{path}")
            or route.redirect.startswith("/")
        ):
            continue
        try:
            goal = UrlPrefix.parse(route.redirect.removesuffix("{path}"))
        except ValueError:
            continue
        if goal in site.urls and len(site.routes) == 1:
            warn(
                room,
                _route_node(room, site, "/", "redirect"),
                f"{goal} is redirected to itself, for ever",
                "leave it out of `urls` here",
            )


def _tls_without_https(room: Room, draft: Draft) -> None:
    for pool in draft.pools.values():
        if pool.tls.model_fields_set and all(target.scheme != "https" for target in pool.targets):
            warn(
                room, find(draft.root, "pools", pool.name, "tls"), "no target of this pool is https; this has no effect"
            )


def _loopback_targets(room: Room, draft: Draft) -> None:
    """One warning for all of them: a file written on a workstation has one at every route."""
    if not draft.container:
        return
    found: dict[str, Node] = {}
    for pool in draft.pools.values():
        for index, target in enumerate(pool.targets):
            if not target.is_loopback:
                continue
            if pool.name in draft.pool_names:
                _note_first(found, str(target), find(draft.root, "pools", pool.name, "targets", index))
            for site in draft.sites.values() if pool.name not in draft.pool_names else ():
                for prefix, route in site.routes.items():
                    if route.pool == pool.name:
                        _note_first(found, str(target), _route_node(room, site, prefix, "target"))
    if found:
        targets = sorted(found, key=lambda name: _place(found[name]))
        warn(
            room,
            found[targets[0]],
            f"{', '.join(targets)}: {'these are' if len(targets) > 1 else 'this is'} the container itself, "
            "not the host and not another container",
            "name the app's service instead, as in compose: http://app:8000",
        )


def _note_first(found: dict[str, Node], name: str, node: Node) -> None:
    if name not in found or _place(node) < _place(found[name]):
        found[name] = node


def _place(node: Node) -> tuple[int, int]:
    return node.at.line, node.at.column


def _pools_used(room: Room, draft: Draft) -> None:
    used = {route.pool for site in draft.sites.values() for route in site.routes.values()}
    chosen = any(
        "route" in entry.kind.hooks
        for plugins in (draft.plugins, *(site.plugins for site in draft.sites.values()))
        for entry in plugins
    )
    if room.source.failed or chosen:
        return  # what is wrong may be the route that leads here, or a plugin leads here
    for name, pool in draft.pools.items():
        if name in draft.pool_names and name not in used and pool.attach is None:
            warn(room, find(draft.root, "pools", pool.name), "no route leads to this pool")


def _everybody_trusted(room: Room, draft: Draft) -> None:
    for index, network in enumerate(draft.trusted_proxies):
        if network.prefixlen == 0:
            warn(
                room,
                find(draft.root, "trusted_proxies", index),
                f"{network} is everybody: any client can claim any address",
            )


def _mounts(room: Room, draft: Draft, file_path: Path | None, mounts: frozenset[str]) -> None:
    if file_path is not None and str(file_path) in mounts:
        room.source.warning(
            Mark(), "", "this file is itself a bind mount: most editors save by replacing it, and then the old "
                "one stays visible here",
            "mount its directory instead: ./frontd:/etc/frontd:ro",
        )  # fmt: skip
    if draft.container and mounts and places.mounted_on(draft.state_dir, mounts) == "/":
        room.source.warning(
            find(draft.root, "state_dir").at if "state_dir" in draft.root.values else Mark(), "state_dir",
            f"{draft.state_dir} is not on a volume: what frontd keeps there is lost with the container",
            f"in compose: volumes: [frontd-state:{draft.state_dir}]",
        )  # fmt: skip
