"""IP addresses as they are shown and compared."""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def bracketed(host: str) -> str:
    """A host as it stands in URLs, in Host fields and before a port: an IPv6 address in brackets (RFC 3986 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def plain_ip(address: str | bytes | Address) -> str:
    """An address (text, packed bytes or object) in the one form that is shown, logged and compared.

    An IPv4 address mapped into IPv6 (RFC 4291 2.5.5.2), which is how a dual-stack socket or balancer shows it, is an
    IPv4 address; a scope identifier (RFC 4007) means something on one machine only and is left out.  Raises
    `ValueError`.
    """
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return str(found).partition("%")[0]
