"""What is wrong with the plugins of a site together: what they say themselves, and what only their neighbours show.

Plugins are asked about their settings by their own `check`; the rest is ours.
"""

from __future__ import annotations

from collections.abc import Iterable

from frontd.config.build import Draft
from frontd.config.fill import Room, complain, warn
from frontd.config.marks import MapNode, Node, find
from frontd.config.model import Site
from frontd.config.plugins import PluginEntry, SiteFacts
from frontd.config.sitelimits import OF_HEADS, needed
from frontd.config.units import clip, nearest


def plugins_fit(room: Room, draft: Draft) -> None:
    """What plugins themselves say about their settings, hooks that a site never asks, challenges that nobody has, and
    limits that a plugin cannot live with."""
    if not draft.plugins_known:
        return
    sites = [*draft.sites.values()]
    everywhere = tuple(entry.name for entry in draft.plugins)
    urls = tuple(url for site in sites for url in site.urls)
    guarded = [_authenticates([*draft.plugins, *site.plugins]) for site in sites]
    behind = bool(draft.trusted_proxies)
    pools = frozenset(draft.pool_names | set(draft.pools))
    passing = frozenset(name for name, pool in draft.pools.items() if pool.pass_through)
    untold = _untold([*draft.plugins, *(entry for site in sites for entry in site.plugins)])
    facts = SiteFacts("", urls, everywhere, bool(guarded) and all(guarded), behind, pools, passing, untold)
    for index, entry in enumerate(draft.plugins):
        _plugin_fits(room, room.plugins["", index], entry, facts)
    for site, has_authenticator in zip(sites, guarded, strict=True):
        words = (*everywhere, *(entry.name for entry in site.plugins))
        untold = _untold((*draft.plugins, *site.plugins))
        facts = SiteFacts(site.name, tuple(site.urls), words, has_authenticator, behind, pools, passing, untold)
        for index, entry in enumerate(site.plugins):
            node = room.plugins[site.name, index]
            if "accept_client" in entry.kind.hooks:
                hint = "write it under `plugins` at the top: connections are accepted before the site is known"
                complain(room, node, f"{entry.name} is a plugin of the whole server", hint)
            _plugin_fits(room, node, entry, facts)
        _challengers_exist(room, draft, site)
        _heads_fit(room, draft, site)


def _challengers_exist(room: Room, draft: Draft, site: Site) -> None:
    known = [entry.name for entry in (*draft.plugins, *site.plugins) if "challenge" in entry.kind.hooks]
    for index, word in enumerate(site.challenges):
        node = find(draft.root, "sites", site.name, "challenges", index)
        if word not in known:
            guess = nearest(word, known)
            hint = f'did you mean "{guess}"?' if guess else f"there are: {', '.join(known)}" if known else ""
            complain(room, node, f"no plugin {clip(word)} asks anybody to log on to this site", hint)
        elif word in site.challenges[:index]:
            complain(room, node, f"{word} is already there")


def _heads_fit(room: Room, draft: Draft, site: Site) -> None:
    """Somebody wrote a limit that is smaller than a plugin of the site asks for."""
    for key in OF_HEADS:
        wanted, name = needed((*draft.plugins, *site.plugins), key)
        if wanted > getattr(site.limits, key):
            own = find(draft.root, "sites", site.name, "limits")
            node = find(own, key) if isinstance(own, MapNode) and key in own.values else find(draft.root, "limits", key)
            message = f"{name} needs {wanted} bytes on the site {site.name}: longer credentials will be refused"
            warn(room, node, message, f"leave `{key}` out, or write {wanted}")


def _authenticates(entries: Iterable[PluginEntry]) -> bool:
    return any("authenticate" in entry.kind.hooks for entry in entries)


def _untold(entries: Iterable[PluginEntry]) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for entry in entries:
        if "authenticate" in entry.kind.hooks and (untold := getattr(entry.kind.plugin, "untold", None)) is not None:
            try:
                missing = frozenset(untold(entry.settings))
            except Exception:  # a fault of the plugin: rules do not rely on it
                missing = frozenset({"groups", "sids"})
            found[entry.name] = found.get(entry.name, frozenset()) | missing
    return found


def _plugin_fits(room: Room, node: Node, entry: PluginEntry, facts: SiteFacts) -> None:
    try:
        for sentence in entry.kind.check(entry.settings, facts):
            complain(room, node, f"{entry.name}: {sentence}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a fault of the plugin is its author's, and is told like any other, also sys.exit
        complain(room, node, f"{entry.name}: its check failed: {type(error).__name__}: {error}")
