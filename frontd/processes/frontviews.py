"""What one front answers when a view is asked for that it alone can tell.

Each question is a small JSON object whose ``do`` is the view; the answer is plain data.  `frontd.processes.family` puts
the questions to all fronts, `frontd.processes.views` makes one answer of theirs.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from frontd.lanes.running import running
from frontd.lanes.service import Service
from frontd.net.tls import Profile

MOST_REQUESTS = 1000  # that one front tells of
_END = "-----END CERTIFICATE-----"


async def requests(service: Service, question: Mapping[str, Any]) -> dict[str, Any]:
    """What runs now: for at least ``older`` seconds, at most ``most``."""
    most = min(int(question.get("most", MOST_REQUESTS)), MOST_REQUESTS)
    return await running(service.connections, float(question.get("older", 0)), most)


async def bindings(service: Service, _: Mapping[str, Any]) -> dict[str, Any]:
    """Which certificate answers for which host, and what the client must bring."""
    table = service.world.profiles
    rows = [{"host": host, **binding(profile)} for host, profile in table.by_host]
    if table.default is not None:
        rows.append({"host": None, **binding(table.default)})
    return {"bindings": rows}


def binding(profile: Profile) -> dict[str, Any]:
    """A TLS profile as ``frontd show sslcert`` shows it."""
    policy, certificate = profile.policy, profile.certificate
    return {
        "hash": fingerprint(certificate.chain), "source": certificate.source,
        "not_after": certificate.not_after.isoformat(), "client_certificate": policy.client_certificate,
        "revocation": bool(policy.revocation), "min_version": policy.min_version,
    }  # fmt: skip


def fingerprint(chain: bytes) -> str:
    """SHA-256 of the first certificate of a PEM chain, in hex."""
    first, _, _ = chain.decode("ascii").partition(_END)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first[first.index("-----BEGIN") :] + _END)).hexdigest()


VIEWS: dict[str, Callable[[Service, Mapping[str, Any]], Awaitable[dict[str, Any]]]] = {
    "requests": requests,
    "bindings": bindings,
}
