"""Exchanges and plugin instances made by hand, out of the bytes that a client sends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import frontd
from frontd.lanes.requests import make_request
from frontd.protocol.scan import WireLimits, scan_request

P = TypeVar("P", bound=frontd.Plugin)


def placed(plugin: type[P], *, remarks: list[str] | None = None, **settings: Any) -> P:
    """An instance with these settings; what it remarks goes to `remarks`."""
    said: list[str] = [] if remarks is None else remarks
    return plugin(plugin.Settings(**settings), frontd.Context("site", frontd.MemoryStore(1 << 20), said.append))


def asked(
    target: str = "/", *fields: str, method: str = "GET", user: str = "", groups: Iterable[str] = (),
    sids: Iterable[str] = (), address: str = "192.0.2.1", scheme: str = "https",
) -> frontd.Exchange:  # fmt: skip
    """The exchange of a request with these field lines; `user` has logged on (empty: nobody has)."""
    lines = "".join(f"{field}\r\n" for field in ("Host: a.test", *fields))
    head = scan_request(bytearray(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")), WireLimits())
    assert head is not None
    request = make_request(head)
    request.scheme = scheme
    client = frontd.Client(address, 50000, address, "192.0.2.2", 443, "https", scheme, 443)
    exchange = frontd.Exchange(client, request, 0.0, 0.0)
    exchange.identity = frontd.Identity(user, tuple(groups), tuple(sids)) if user else None
    return exchange


def complaints(
    plugin: type[frontd.Plugin],
    *,
    has_authenticator: bool = True,
    untold: Mapping[str, frozenset[str]] | None = None,
    **settings: Any,
) -> list[str]:
    """What the plugin's own check says about these settings on a site."""
    facts = frontd.SiteFacts("site", (), (plugin.name,), has_authenticator, untold=untold or {})
    return list(plugin.check(plugin.Settings(**settings), facts))
