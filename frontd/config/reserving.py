"""Reservations as the file lists them."""

from __future__ import annotations

from pydantic import Field

from frontd.config.fill import Room, complain, fill
from frontd.config.leaves import Count, Part
from frontd.config.marks import ListNode, MapNode, ScalarNode
from frontd.config.urlacl import UrlAcl


class _ReservedStatus(Part):
    reserved_status: Count = Field(default=503, ge=400, le=599)


def urlacl_list(room: Room, top: MapNode) -> dict[int, UrlAcl]:
    """What stands under ``urlacl``, by position."""
    node = top.values.get("urlacl")
    if isinstance(node, ListNode):
        made = {index: fill(room, UrlAcl, item) for index, item in enumerate(node.items)}
        return {index: one for index, one in made.items() if one is not None}
    if node is not None and not (isinstance(node, ScalarNode) and (node.is_null or node.broken)):
        complain(room, node, f"a list is expected, not {node.what}", "each reservation begins with -")
    return {}


def reserved_status(room: Room, top: MapNode) -> int:
    """What stands under ``reserved_status``, or the default."""
    node = top.values.get("reserved_status")
    if node is None or (isinstance(node, ScalarNode) and node.is_null):
        return _ReservedStatus().reserved_status
    made = fill(room, _ReservedStatus, MapNode(node.mark, path="", values={"reserved_status": node}))
    return (made or _ReservedStatus()).reserved_status
