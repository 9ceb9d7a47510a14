"""Listeners: as the file names them, and as the sites' URLs ask for them."""

from __future__ import annotations

from collections.abc import Mapping

from frontd.config.fill import Room, complain, fill, section
from frontd.config.marks import Node, ScalarNode
from frontd.config.model import Listen, Site
from frontd.config.units import address_and_port
from frontd.model.urlprefix import DEFAULT_PORTS


def listener(room: Room, name: str, node: Node) -> Listen | None:
    """One listener, from a port, an ``address:port`` or a map.  None, and an error noted, when it is none."""
    implied = name if name in DEFAULT_PORTS else None
    if isinstance(node, ScalarNode):
        if node.broken:
            return None
        if node.is_null:
            complain(room, node, "the key has no value", "write a port, or leave the key out")
            return None
        try:
            address, port = address_and_port(node.scalar)
        except ValueError as error:
            complain(room, node, str(error))
            return None
        if implied is None:
            complain(
                room,
                node,
                "a listener that is not named http or https needs its kind",
                f"write   {name}: {{kind: https, port: {port}}}",
            )
            return None
        return Listen(name=name, kind="http" if implied == "http" else "https", address=address, port=port)
    values = section(room, node)
    if values is None:
        return None
    kind = values.values.get("kind")
    if implied is None:
        return fill(room, Listen, values, {"name": name})
    if isinstance(kind, ScalarNode) and kind.scalar in DEFAULT_PORTS and kind.scalar != implied:
        complain(room, kind, f"a listener named {name} is of kind {name}", "give the listener another name")
        return None
    return fill(room, Listen, values, {"name": name} if kind is not None else {"name": name, "kind": implied})


def derived_listeners(sites: Mapping[str, Site]) -> dict[str, Listen]:
    """The listeners that the sites' URLs ask for, and http on 80 where something is to be redirected from there."""
    wanted = sorted({(url.scheme, url.port) for site in sites.values() for url in site.urls})
    redirects = any(url.scheme == "https" for site in sites.values() if site.redirect_http for url in site.urls)
    if redirects and not any(scheme == "http" for scheme, _ in wanted):
        wanted.insert(0, ("http", 80))
    found: dict[str, Listen] = {}
    for scheme, port in wanted:
        only = port == DEFAULT_PORTS[scheme] or [s for s, _ in wanted].count(scheme) == 1
        name = scheme if only else f"{scheme}-{port}"
        found[name] = Listen(name=name, kind="http" if scheme == "http" else "https", port=port)
    return found
