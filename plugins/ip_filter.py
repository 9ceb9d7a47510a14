"""Rules and limits by the client's address (IIS ipSecurity and dynamicIpSecurity).

How it works
------------
Each request is judged by `exchange.client.address`: the address that is believed, behind trusted proxies the one they
report.  An IPv4 address in IPv6 clothes (``::ffff:10.0.0.1``) is the IPv4 address.

* Networks: who is in `deny` is refused.  Where `allow` names any, who is in none of them is refused.  `deny` wins,
  whichever is narrower.  A client whose address cannot be read is refused by either.
* Limits count each address by itself, IPv6 clients by network (`ipv6_prefix`, since one customer has a whole /64).
  ``concurrent_requests`` is what may be under way at once; a WebSocket counts until it ends.  ``requests`` per
  ``interval`` is a token bucket: that many at once, from then on one more every ``interval / requests``.  (IIS counts
  in fixed intervals.)  A request that is refused takes no token.

Refusals by network carry IIS's substatus 503, by concurrency 501, by rate 502.  IIS's actions `AbortRequest` and
`Unauthorized` do not exist: a hook answers requests and does not cut connections, and no logon changes an address.

Counting is done in each front process by itself, and by each instance: of one at the top, over all sites; of one at a
site, over this site.  Changed settings begin with fresh counts.

Invariants
----------
* What was counted up in `filter_request` is counted down in `log`, once: the exchange carries the note.
* Addresses with requests under way are `_busy`, and no more than there are connections; of the others at most `TABLE`
  are remembered, and the least recently seen leaves first.
* Nothing is refused in `log_only`; there is one remark for an address and `REMARK_EVERY` seconds.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import trio
from pydantic import Field

import frontd

TABLE = 65536  # addresses; about 200 bytes each
REMARK_EVERY = 60.0  # s
_STATUS = {"forbidden": 403, "not_found": 404, "too_many": 429}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Net = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(slots=True)
class Use:
    """What one address is doing: requests under way, tokens left as of `at`, when it was last remarked on (s)."""

    key: str
    active: int
    tokens: float
    at: float
    remarked: float


class IpFilter(frontd.Plugin):
    """Rules and limits by the client's address (see the module's text)."""

    name = "ip_filter"

    class Settings(frontd.Settings):
        """Networks that are let in or refused, and limits for each address."""

        allow: tuple[frontd.Network, ...] = Field(
            default=(),
            description="The only addresses and networks that are let in (IIS ipSecurity, allowUnlisted false).",
        )
        deny: tuple[frontd.Network, ...] = Field(
            default=(), description="Addresses and networks that are refused, also out of `allow` (IIS ipSecurity)."
        )
        action: Literal["forbidden", "not_found"] = Field(
            default="forbidden",
            description="How `allow` and `deny` refuse: `forbidden` (403.503) or `not_found` (404.503) (IIS "
            "denyAction: Forbidden).",
        )
        concurrent_requests: frontd.CountOrNone = Field(
            default=None,
            ge=1,
            description="Requests of one address under way at once; `none`: no limit (IIS denyByConcurrentRequests: "
            "off, 5 where it is on).",
        )
        requests: frontd.CountOrNone = Field(
            default=None,
            ge=1,
            le=1000000,
            description="Requests of one address per `interval`; `none`: no limit (IIS denyByRequestRate: off, 20 "
            "where it is on).",
        )
        interval: frontd.Duration = Field(
            default=0.2, gt=0, description="What `requests` are counted over (IIS requestIntervalInMilliseconds: 200)."
        )
        limit_action: Literal["too_many", "forbidden", "not_found"] = Field(
            default="too_many",
            description="How the limits refuse: `too_many` (429 with Retry-After, RFC 6585 4), `forbidden` (403) or "
            "`not_found` (404) (IIS denyAction: Forbidden).",
        )
        ipv6_prefix: int = Field(
            default=64,
            ge=1,
            le=128,
            description="Bits of an IPv6 address that the limits tell apart (64: one network, RFC 4291 2.5.4).",
        )
        log_only: bool = Field(
            default=False,
            description="Refuse nothing and write to the error log what would have been refused, once a minute for "
            "each address (IIS enableLoggingOnlyMode: false; there for the limits only).",
        )

    settings: Settings

    @classmethod
    def check(cls, settings: Settings, site: frontd.SiteFacts) -> Iterator[str]:
        """Settings that do nothing, or hide each other."""
        given = settings.model_fields_set
        if not (settings.allow or settings.deny or settings.concurrent_requests or settings.requests):
            yield "nothing is filtered; set allow, deny, concurrent_requests or requests"
        if "interval" in given and not settings.requests:
            yield "an interval without `requests` limits nothing"
        denied = [_plain_network(network) for network in settings.deny]
        for network in settings.allow:
            if wider := next((one for one in denied if _covers(one, _plain_network(network))), None):
                yield f"{network} in allow is refused all the same: deny has {wider}, and deny wins"

    def prepare(self) -> None:
        """Make the networks ready to be asked, and an empty table."""
        self._allow = tuple(_plain_network(network) for network in self.settings.allow)
        self._deny = tuple(_plain_network(network) for network in self.settings.deny)
        self._busy: dict[str, Use] = {}
        self._idle: OrderedDict[str, Use] = OrderedDict()
        # One client sends many requests, and reading an address takes longer than everything else here.
        self._judged = lru_cache(maxsize=4096)(self._judge)

    def filter_request(self, exchange: frontd.Exchange) -> frontd.Refuse | None:
        """A refusal by network, concurrency or rate."""
        given = self.settings
        is_outside, key = self._judged(exchange.client.address)
        if is_outside and not given.log_only:
            word = "AddressDenied" if given.action == "forbidden" else "Rejected"  # a 404 does not say why
            return frontd.Refuse(_STATUS[given.action], word, substatus=503, log="the address is outside of the rules")
        if is_outside or given.concurrent_requests or given.requests:
            return self._count(exchange, key, is_outside)
        return None

    def log(self, exchange: frontd.Exchange) -> None:
        """The request is no longer under way."""
        use: Use | None = exchange.state(self).pop("use", None)
        if use is not None:
            use.active -= 1
            if not use.active:
                self._rest(self._busy.pop(use.key))

    def _judge(self, address: str) -> tuple[bool, str]:
        """Whether the rules refuse an address, and under which name its requests are counted."""
        try:
            read = _plain_address(ipaddress.ip_address(address))
        except ValueError:
            return bool(self._allow or self._deny), address
        refused = _is_in(read, self._deny) or bool(self._allow and not _is_in(read, self._allow))
        if read.version == 4:
            return refused, str(read)
        bits = int(read) >> (128 - self.settings.ipv6_prefix) << (128 - self.settings.ipv6_prefix)
        return refused, f"{ipaddress.IPv6Address(bits)}/{self.settings.ipv6_prefix}"

    def _count(self, exchange: frontd.Exchange, key: str, is_outside: bool) -> frontd.Refuse | None:
        given, now = self.settings, trio.current_time()
        use = self._busy.get(key) or self._idle.pop(key, None)
        if use is None:
            use = Use(key, 0, float(given.requests or 0), now, -math.inf)
        refusal = None
        if is_outside:
            self._remark(use, now, "the address is outside of the rules")
        if given.concurrent_requests and use.active >= given.concurrent_requests:
            refusal = self._limit(use, now, 501, "concurrent_requests", 1)
        elif given.requests and not _take(use, given.requests, given.interval, now):
            wait = (1 - use.tokens) * given.interval / given.requests
            refusal = self._limit(use, now, 502, "requests", max(1, math.ceil(wait)))
        if refusal is None and given.concurrent_requests:
            use.active += 1
            self._busy[key] = use
            exchange.state(self)["use"] = use
        elif not use.active:
            self._rest(use)
        return refusal

    def _rest(self, use: Use) -> None:
        """Remember an address that has nothing under way as the most recently seen."""
        self._idle[use.key] = use
        if len(self._idle) > TABLE:
            self._idle.popitem(last=False)

    def _limit(self, use: Use, now: float, substatus: int, setting: str, retry_after: int) -> frontd.Refuse | None:
        given = self.settings
        if given.log_only:
            self._remark(use, now, f"more than {setting} allows")
            return None
        status = _STATUS[given.limit_action]
        word = "Rejected" if status == 404 else "RateLimit"
        after = retry_after if status == 429 else None
        return frontd.Refuse(status, word, substatus=substatus, log=f"{setting} of {use.key}", retry_after=after)

    def _remark(self, use: Use, now: float, what: str) -> None:
        if now - use.remarked >= REMARK_EVERY:
            use.remarked = now
            self.remark(f"{use.key} would be refused (log_only): {what}")


def _take(use: Use, most: int, interval: float, now: float) -> bool:
    """Take a token, if there is one."""
    use.tokens = min(float(most), use.tokens + (now - use.at) * most / interval)
    use.at = now
    if use.tokens < 1 - 1e-9:  # what a sum of binary fractions may lack
        return False
    use.tokens = max(0.0, use.tokens - 1)
    return True


# ---------------------------------------------------------------------------------------------------- addresses


def _plain_address(address: Address) -> Address:
    """IPv4 in IPv6 clothes as IPv4 (RFC 4291 2.5.5.2)."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def _plain_network(network: Net) -> Net:
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def _is_in(address: Address, networks: Iterable[Net]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _covers(wide: Net, narrow: Net) -> bool:
    return wide.version == narrow.version and narrow.prefixlen >= wide.prefixlen and narrow.network_address in wide
