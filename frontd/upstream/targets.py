"""What a pool is told of itself: its targets as configured, and its settings."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from frontd.upstream.client import Address, Dialect


@dataclass(frozen=True, slots=True)
class Target:
    """A destination as configured: `text` for people, `host` an IP, a name to look up, or a socket path (`port` 0)."""

    text: str
    host: str
    port: int
    dialect: Dialect


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Times in seconds; `concurrency` per address (None: unlimited)."""

    name: str
    targets: tuple[Target, ...]
    concurrency: int | None
    queue_limit: int
    queue_wait: float
    resolve: float
    keep_alive: float
    connect: float
    replay_body: int
    replay_memory: int = 16 << 20  # bytes, for all exchanges in this front
    sendfile_from: Path | None = None  # the directory whose files an app may have sent
    refuse_with: str = "reason"  # or ``status``, ``reset``: what clients are told that the queue refuses
    pass_through: frozenset[str] = frozenset()  # schemes by which the apps log connections on: ``ntlm``, ``negotiate``
    splash: bytes = b""  # HTML for browsers while there is no place
    told: Target | None = None  # for what control tells the addresses of (workers); it has the dialect


def address_of(text: str) -> Address:
    """The address that `text` names: ``unix:/path``, or an IP and a port.  Raises `ValueError`."""
    if text.startswith("unix:"):
        return Address(text.removeprefix("unix:"), 0)
    host, _, port = text.rpartition(":")
    return Address(host.strip("[]"), int(port))


def literal_address(target: Target) -> Address | None:
    """The address of a target that needs no look-up."""
    if not target.port:
        return Address(target.host, 0)
    try:
        return Address(str(ipaddress.ip_address(target.host)), target.port)
    except ValueError:
        return None
