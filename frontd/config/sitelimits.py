"""The limits and timers of one site: its own over the global ones, and both over what its plugins and pools need.

A plugin brings defaults of its own, where nobody wrote anything.  Of the sizes of a head it needs at least as much as
it says (a Kerberos ticket is long), so the largest counts, and never less than without it.
"""

from __future__ import annotations

from collections.abc import Iterable

from frontd.config.fill import Room, complain, fill, section
from frontd.config.limits import FOR_TOKENS
from frontd.config.marks import MapNode, Node
from frontd.config.model import Limits, Pool, Timeouts
from frontd.config.plugins import PluginEntry
from frontd.config.problems import Mark

PER_SITE: tuple[tuple[str, type[Limits] | type[Timeouts]], ...] = (("limits", Limits), ("timeouts", Timeouts))
OF_HEADS = ("max_head", "max_field")


def needed(plugins: Iterable[PluginEntry], key: str) -> tuple[int, str]:
    """The largest value of one of `OF_HEADS` that `plugins` ask for, and who does; (0, "") when nobody does."""
    wanted = [(entry.kind.limits.get(key, 0), entry.name) for entry in plugins]
    return max(wanted, default=(0, ""), key=lambda one: one[0])


def armed(limits: Limits, plugins: Iterable[PluginEntry], pools: Iterable[Pool | None] = ()) -> Limits:
    """The limits of a site with `plugins` and `pools`: what they bring is the default of what nobody wrote."""
    standing = tuple(plugins)
    tokens = FOR_TOKENS if any(pool and pool.pass_through for pool in pools) else {}
    brought = tokens | {key: value for entry in standing for key, value in entry.kind.limits.items()}
    for key in OF_HEADS:
        if key in brought:
            brought[key] = max(needed(standing, key)[0], tokens.get(key, 0), getattr(limits, key))
    unset = {key: value for key, value in brought.items() if key not in limits.model_fields_set}
    return limits.model_copy(update=unset) if unset else limits


def refuse_global(room: Room, top: MapNode, site: MapNode) -> None:
    """Refuse timers that no site can have: pools outlive sites' exchanges, and a shutdown is everybody's."""
    own = section(room, site.values.get("timeouts"))
    if own is None:
        return
    everybody = merged(room, Timeouts, top.values.get("timeouts"), None)
    for key in ("keep_alive", "drain"):
        node = own.values.get(key)
        mine = fill(room, Timeouts, MapNode(own.mark, values={key: node})) if node is not None else None
        if node is not None and mine is not None and getattr(mine, key) != getattr(everybody, key):
            complain(room, node, f"`{key}` is one timer for all sites", "write it under `timeouts` at the top")


def merged(
    room: Room, model: type[Limits] | type[Timeouts], outer: Node | None, inner: Node | None
) -> Limits | Timeouts:
    """The limits or timeouts of a site: its own over the global ones."""
    own = section(room, inner)
    both = MapNode(own.mark, key=own.key, path=own.path) if own else MapNode(Mark())
    if isinstance(outer, MapNode):
        both.values.update(outer.values)
    if own:
        both.values.update(own.values)
        both.entries = own.entries
    return fill(room, model, both) or model()
