"""The tree of the file becomes a draft of the configuration: shorthands expanded, defaults of this machine filled in,
site limits merged, listeners derived, implicit pools made.

A draft holds what was right, so that `checks` can look at it although something else was wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frontd.config import places
from frontd.config.fill import Room, check_keys, complain, fill, section
from frontd.config.leaves import File, FrontCount, Network
from frontd.config.listening import derived_listeners, listener
from frontd.config.marks import ListNode, MapNode, Node, ScalarNode
from frontd.config.model import (
    Cache,
    Certificate,
    Config,
    Control,
    Health,
    IdentityToken,
    Limits,
    Listen,
    Log,
    LogFile,
    Part,
    Pool,
    Route,
    Site,
    Target,
    Timeouts,
    Tls,
    TlsHost,
    UrlAcl,
    tls_host_name,
)
from frontd.config.pluginlist import plugin_list, words_in
from frontd.config.plugins import NO_PLUGINS, Catalogue, PluginEntry
from frontd.config.problems import Mark
from frontd.config.reserving import reserved_status, urlacl_list
from frontd.config.sitelimits import PER_SITE, armed, merged, refuse_global
from frontd.config.units import Scalar, clip, text
from frontd.model.urlprefix import UrlPrefix, canonical_prefix, path_key

_TOP = Mark()


@dataclass(slots=True)
class Draft:
    """The parts that could be made.  `listeners_known` and `certificates_known` say that none is missing."""

    root: MapNode
    state_dir: Path
    container: bool
    listen: dict[str, Listen] = field(default_factory=dict)
    listeners_known: bool = True
    tls_default: str | None = None
    certificates: dict[int, Certificate] = field(default_factory=dict)
    certificates_known: bool = True
    tls_hosts: dict[str, TlsHost] = field(default_factory=dict)
    trusted_proxies: list[Network] = field(default_factory=list)
    catalogue: Catalogue = NO_PLUGINS
    plugins_dir: Path | None = None
    plugins: tuple[PluginEntry, ...] = ()
    plugins_known: bool = True
    fronts: int | None = None
    urlacl: dict[int, UrlAcl] = field(default_factory=dict)  # by position
    reserved_status: int = 503
    cache: Cache = field(default_factory=Cache)
    sites: dict[str, Site] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    pool_names: set[str] = field(default_factory=set)
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    identity: IdentityToken | None = None
    log: Log | None = None
    control: Control | None = None
    health: Health | None = None

    def config(self) -> Config:
        """The whole configuration; only when no error was noted."""
        assert self.log is not None
        assert self.control is not None
        tls = Tls(certificates=tuple(self.certificates.values()), default=self.tls_default, hosts=self.tls_hosts)
        return Config(
            listen=self.listen,
            tls=tls,
            trusted_proxies=tuple(self.trusted_proxies),
            plugins=self.plugins,
            plugins_dir=self.plugins_dir,
            sites=self.sites,
            pools=self.pools,
            urlacl=tuple(self.urlacl.values()),
            reserved_status=self.reserved_status,
            fronts=self.fronts,
            cache=self.cache,
            limits=self.limits,
            timeouts=self.timeouts,
            identity=self.identity,
            log=self.log,
            control=self.control,
            health=self.health,
            state_dir=self.state_dir,
        )


def build(room: Room, root: Node | None, environ: Mapping[str, str], container: bool) -> Draft | None:
    """Make a draft of everything in the tree; errors are noted on the room's source."""
    if root is None:
        room.source.error(_TOP, "", "the file is empty; it needs at least `sites`")
        return None
    top = section(room, root)
    if top is None:
        return None
    top.values = {key: value for key, value in top.values.items() if not key.startswith("x-")}
    top.entries = [entry for entry in top.entries if not entry.key.scalar.startswith("x-")]
    check_keys(room, Config, top)
    draft = Draft(top, _state_dir(room, top, environ, container), container)
    _plugins(room, top, draft)
    _limits_and_timeouts(room, top, draft)
    draft.identity = _identity(room, top, None)
    _tls(room, top.values.get("tls"), draft)
    _pools(room, top.values.get("pools"), draft)
    _sites(room, top, draft)
    _listen(room, top.values.get("listen"), draft)
    _trusted(room, top.values.get("trusted_proxies"), draft)
    _log(room, top.values.get("log"), draft)
    _control(room, top.values.get("control"), draft)
    if (fronts := top.values.get("fronts")) is not None and not _is_nothing(fronts):
        made = fill(room, _Fronts, MapNode(fronts.mark, path="", values={"fronts": fronts}))
        draft.fronts = made.fronts if made else None
    draft.urlacl, draft.reserved_status = urlacl_list(room, top), reserved_status(room, top)
    if (cache := top.values.get("cache")) is not None:
        draft.cache = fill(room, Cache, cache) or draft.cache
    if (health := top.values.get("health")) is not None and not _is_nothing(health):
        draft.health = fill(room, Health, health)
    return draft


def _is_nothing(node: Node | None) -> bool:
    return node is None or (isinstance(node, ScalarNode) and node.is_null)


def _named(room: Room, node: Node | None) -> dict[str, Node]:
    """A map by name; a name without a value is an error, since nobody can tell what was meant."""
    if node is None or (found := section(room, node)) is None:
        return {}
    for value in found.values.values():
        if _is_nothing(value):
            complain(room, value, "the key has no value", "write one, or leave the key out")
    return {name: value for name, value in found.values.items() if not _is_nothing(value)}


def _state_dir(room: Room, top: MapNode, environ: Mapping[str, str], container: bool) -> Path:
    node = top.values.get("state_dir")
    default = places.default_state_dir(environ, container)
    if node is None:
        return default
    made = fill(room, _StateDir, MapNode(node.mark, path=node.path, values={"state_dir": node}))
    return made.state_dir if made else default


class _StateDir(Part):
    state_dir: File


class _PluginsDir(Part):
    plugins_dir: File


class _Fronts(Part):
    fronts: FrontCount


def _plugins(room: Room, top: MapNode, draft: Draft) -> None:
    """Find the plugins that are named anywhere, then those of the whole server."""
    node = top.values.get("plugins_dir")
    if node is not None and not _is_nothing(node):
        made = fill(room, _PluginsDir, MapNode(node.mark, path="", values={"plugins_dir": node}))
        draft.plugins_dir = made.plugins_dir if made else None
    words = words_in(top.values.get("plugins"))
    sites = top.values.get("sites")
    for site in sites.values.values() if isinstance(sites, MapNode) else ():
        words |= words_in(site.values.get("plugins")) if isinstance(site, MapNode) else frozenset()
    draft.catalogue = room.discover(draft.plugins_dir, words)
    where = (node or top.values.get("plugins") or top).at
    for fault in draft.catalogue.faults:
        room.source.error(where, "plugins_dir" if node is not None else "plugins", fault)
    draft.plugins, draft.plugins_known = plugin_list(room, draft.catalogue, "", top.values.get("plugins"))


def _limits_and_timeouts(room: Room, top: MapNode, draft: Draft) -> None:
    for key, model in PER_SITE:
        if key in top.values and (made := fill(room, model, top.values[key])) is not None:
            setattr(draft, key, made)


def _identity(room: Room, values: MapNode, outer: IdentityToken | None) -> IdentityToken | None:
    """What stands under ``identity`` in a map; else `outer`."""
    node = values.values.get("identity")
    return outer if node is None or _is_nothing(node) else fill(room, IdentityToken, node)


# ---------------------------------------------------------------------------------------------------- tls, pools


def _tls(room: Room, node: Node | None, draft: Draft) -> None:
    if node is None or (values := section(room, node)) is None:
        return
    check_keys(room, Tls, values)
    certificates = values.values.get("certificates")
    if isinstance(certificates, ListNode):
        for index, item in enumerate(certificates.items):
            made = fill(room, Certificate, item)
            if made is None:
                draft.certificates_known = False
            else:
                draft.certificates[index] = made if made.name else made.model_copy(update={"name": str(index)})
    elif not _is_nothing(certificates):
        assert certificates is not None
        draft.certificates_known = False
        complain(room, certificates, f"a list is expected, not {certificates.what}", "each certificate begins with -")
    if (default := values.values.get("default")) is not None:
        rest = fill(room, Tls, MapNode(default.mark, path=values.path, values={"default": default}))
        if rest is not None and rest.default is not None:
            draft.tls_default = _default_certificate(rest.default, draft.certificates)
    for key, value in _named(room, values.values.get("hosts")).items():
        try:
            host = tls_host_name(key)
        except ValueError as error:
            complain(room, value, str(error))
            continue
        made_host = fill(room, TlsHost, value)
        if host in draft.tls_hosts:
            complain(room, value, f"the host {host} is already there")
        elif made_host is not None:
            draft.tls_hosts[host] = made_host


def _default_certificate(word: str, certificates: Mapping[int, Certificate]) -> str:
    """``tls.default`` as the rest of the program reads it: the name of a certificate, or a canonical host."""
    if word in (certificate.name for certificate in certificates.values()):
        return word
    by_position = {str(index): certificate.name for index, certificate in certificates.items()}
    try:
        return by_position.get(word) or tls_host_name(word)
    except ValueError:
        return word


def _pools(room: Room, node: Node | None, draft: Draft) -> None:
    for name, value in _named(room, node).items():
        draft.pool_names.add(name)
        pool = fill(room, Pool, value, {"name": name})
        if pool is None:
            continue
        draft.pools[name] = pool
        if is_target(name) and [str(target) for target in pool.targets] != [name]:
            complain(room, value, "a pool that is named like a target has exactly this target")


def is_target(word: str) -> bool:
    """Whether a word in place of a route is a target and not the name of a pool."""
    return "://" in word or word.startswith("unix:")


# ---------------------------------------------------------------------------------------------------- sites


def _sites(room: Room, top: MapNode, draft: Draft) -> None:
    node = top.values.get("sites")
    if node is None:
        room.source.error(
            top.at, "", "the key `sites` is missing", "the smallest site is   shop.example.com: http://app:8000"
        )
        return
    named = _named(room, node)
    if _is_nothing(node) or (isinstance(node, MapNode) and not node.values):
        complain(room, node, "at least one site is needed")
    for name, value in named.items():
        draft.sites[name] = _site(room, top, draft, name, value)
    for name, target in room.targets.items():
        if name not in draft.pool_names:
            draft.pools[name] = Pool(name=name, targets=(target,))


def _site(room: Room, top: MapNode, draft: Draft, name: str, node: Node) -> Site:
    """A site; one with an error keeps what is right of it, so that its URLs and routes are checked all the same."""
    if isinstance(node, ScalarNode):
        route = _route(room, node)
        room.routes[name, "/"] = node
        routes = {"/": route} if route else {}
        sizes: dict[str, Any] = {key: merged(room, model, top.values.get(key), None) for key, model in PER_SITE}
        sizes["limits"] = armed(sizes["limits"], draft.plugins, _pools_of(draft, routes))
        sizes["identity"] = draft.identity
        return Site.model_construct(None, name=name, urls=_key_as_url(room, name, node), routes=routes, **sizes)
    values = section(room, node)
    if values is None:
        return Site.model_construct(name=name, urls=(), routes={}, plugins=())
    urls = _urls(room, name, values.values["urls"]) if "urls" in values.values else _key_as_url(room, name, values)
    given: dict[str, Any] = {"name": name, "urls": urls, "routes": _routes(room, name, values)}
    for key, model in PER_SITE:
        given[key] = merged(room, model, top.values.get(key), values.values.get(key))
    own, complete = plugin_list(room, draft.catalogue, name, values.values.get("plugins"))
    draft.plugins_known = draft.plugins_known and complete
    given["plugins"] = own
    given["limits"] = armed(given["limits"], (*draft.plugins, *own), _pools_of(draft, given["routes"]))
    given["identity"] = _identity(room, values, draft.identity)
    refuse_global(room, top, values)
    if given["urls"] and given["routes"]:
        made = fill(room, Site, values, given)
        if made is not None:
            return made
    else:
        check_keys(room, Site, values)
    return Site.model_construct(None, **given)


def _pools_of(draft: Draft, routes: Mapping[str, Route]) -> list[Pool | None]:
    return [draft.pools.get(route.pool or "") for route in routes.values()]


def _key_as_url(room: Room, name: str, node: Node) -> tuple[UrlPrefix, ...]:
    try:
        if "/" in name or (":" in name and not name.startswith("[")) or "]:" in name:
            raise ValueError(f"{clip(name)} is not a host name")
        url = UrlPrefix.parse(f"https://{name}/")
    except ValueError as error:
        message = f"a site without `urls` has its host as key, but {error}"
        room.source.error(node.key or node.mark, node.path, message, "give it a name and write   urls: [https://host/]")
        return ()
    # the key is where the URL is written
    room.urls[name, url] = ScalarNode(node.key or node.mark, Scalar.of(name), path=node.path)
    return (url,)


def _urls(room: Room, site: str, node: Node) -> tuple[UrlPrefix, ...]:
    if not isinstance(node, ListNode):
        if not (isinstance(node, ScalarNode) and node.broken):
            complain(room, node, f"a list is expected, not {node.what}", "write it as [https://host/]")
        return ()
    if not node.items:
        complain(room, node, "at least one is needed")
    found: list[UrlPrefix] = []
    for item in node.items:
        if isinstance(item, ScalarNode) and item.broken:
            continue
        if not isinstance(item, ScalarNode) or item.is_null:
            complain(room, item, f"a URL is expected, not {item.what}")
            continue
        try:
            found.append(UrlPrefix.parse(text(item.scalar)))
            room.urls[site, found[-1]] = item
        except ValueError as error:
            complain(room, item, str(error))
    return tuple(found)


def _routes(room: Room, name: str, site: MapNode) -> dict[str, Route]:
    node = site.values.get("routes")
    if node is None:
        room.source.error(
            site.at,
            site.path,
            "the key `routes` is missing",
            "write   routes: {/: POOL}   or   routes: {/: http://app:8000}",
        )
        return {}
    found: dict[str, Route] = {}
    seen: dict[str, str] = {}
    named = _named(room, node)
    if _is_nothing(node) or (isinstance(node, MapNode) and not node.values):
        complain(room, node, "at least one route is needed")
    for key, value in named.items():
        route = _route(room, value)
        try:
            prefix = canonical_prefix(key)
        except ValueError as error:
            hint = f'did you mean "/{key}"?' if not key.startswith("/") else ""
            room.source.error(value.key or value.mark, value.path, str(error), hint)
            continue
        room.routes[name, prefix] = value
        if path_key(prefix) in seen:
            room.source.error(
                value.key or value.mark,
                value.path,
                f"this is the same path as {seen[path_key(prefix)]} (a final / and letter case do not count)",
            )
        seen[path_key(prefix)] = key
        if route is not None:
            found[prefix] = route
    return found


def _route(room: Room, node: Node) -> Route | None:
    """A route: a target, the name of a pool, or a map.  Targets are noted on the room, for implicit pools."""
    if isinstance(node, ScalarNode) and not node.is_null:
        if node.broken:
            return None
        key = "target" if is_target(node.scalar) else "pool"
        node = MapNode(node.mark, key=node.key, path=node.path, values={key: node})
    values = section(room, node)
    if values is None:
        return None
    target = values.values.get("target")
    if target is None:
        return fill(room, Route, values)
    if {"pool", "files", "redirect"} & values.values.keys():
        complain(room, node, "a route has exactly one of `pool`, `target`, `files` and `redirect`")
        return None
    if not isinstance(target, ScalarNode) or target.is_null:
        complain(room, target, f"a target is expected, not {target.what}")
        return None
    if target.broken:
        return None
    try:
        parsed = Target.parse(text(target.scalar), room.base)
    except ValueError as error:
        complain(room, target, str(error))
        return None
    room.targets[str(parsed)] = parsed
    return fill(room, Route, values, {"pool": str(parsed)})


# ---------------------------------------------------------------------------------------------------- listen


def _listen(room: Room, node: Node | None, draft: Draft) -> None:
    values = section(room, node)
    if node is not None and values is None:
        draft.listeners_known = False
        return
    if values is None or not values.values:
        draft.listen = derived_listeners(draft.sites)
        return
    for name, value in values.values.items():
        one = listener(room, name, value)
        if one is None:
            draft.listeners_known = False
        else:
            draft.listen[name] = one


# ---------------------------------------------------------------------------------------------------- the rest


def _trusted(room: Room, node: Node | None, draft: Draft) -> None:
    if node is None or _is_nothing(node):
        return
    made = fill(room, _Trusted, MapNode(node.mark, path="", values={"trusted_proxies": node}))
    draft.trusted_proxies = list(made.trusted_proxies) if made else []


class _Trusted(Part):
    trusted_proxies: tuple[Network, ...]


def _log(room: Room, node: Node | None, draft: Draft) -> None:
    made = fill(room, Log, node) if node is not None and not _is_nothing(node) else None
    where: str | Path = "stdout" if draft.container else draft.state_dir / "log/access.log"
    given = made.model_fields_set if made else set()
    access = _complete(made.access if made and "access" in given else None, where, "access")
    error = _complete(made.error if made and "error" in given else None, "stderr", "error")
    draft.log = Log(access=access, error=error, events=made.events if made else None)


def _complete(log: LogFile | None, where: str | Path, which: str) -> LogFile:
    """A log with what was left out decided by where its lines go."""
    given = {name: getattr(log, name) for name in log.model_fields_set} if log else {}
    to = given.setdefault("to", where)
    given.setdefault("format", "json" if which == "access" and to in ("stdout", "stderr", "off") else "w3c")
    return LogFile(**given)


def _control(room: Room, node: Node | None, draft: Draft) -> None:
    made = fill(room, Control, node) if node is not None and not _is_nothing(node) else None
    given = {name: getattr(made, name) for name in made.model_fields_set} if made else {}
    draft.control = Control(**{"socket": places.default_control_socket(draft.state_dir), **given})
