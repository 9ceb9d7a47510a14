"""The views of what serves: each is a question to the fronts, and one answer made of theirs.

How it works
------------
Some are made of what ``/status`` gathers (`servicestate`, `requestq`, `counters`, `iplisten`), some of the
configuration (`timeout`), and for `requests` and `sslcert` the fronts are asked (`frontd.processes.frontviews`).
Counters are those of all fronts together, and of each under ``fronts``.

Invariant: a view changes nothing, so whoever may ask at all may ask for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from frontd.config.load import Loaded
from frontd.processes.calls import Answerer, Call, Reply, as_json
from frontd.processes.frontviews import MOST_REQUESTS
from frontd.processes.rates import QUEUE, SITE, Key, Rates, counted
from frontd.processes.served import Served
from frontd.processes.servicestate import Processes, requestq_view, session_view, timers
from frontd.processes.status import Facts, merged

Data = dict[str, Any]


class Views:
    """Answers ``show NOUN``."""

    def __init__(self, served: Served, version: str) -> None:
        self.served = served
        self.version = version
        self.rates = Rates()
        self.processes: Callable[[], Processes] = dict
        self.endpoints: dict[tuple[str, str], Answerer] = {
            ("GET", "/servicestate"): self.servicestate,
            ("GET", "/requestq"): self.requestq,
            ("GET", "/requests"): self.requests,
            ("GET", "/sslcert"): self.sslcert,
            ("GET", "/iplisten"): self.iplisten,
            ("GET", "/timeout"): self.timeout,
            ("GET", "/counters"): self.counters,
        }

    async def run(self) -> None:
        """Keep the rates."""
        await self.rates.run(self.served.facts, self.served.log_fault)

    @property
    def loaded(self) -> Loaded:
        """The configuration that serves."""
        return self.served.loaded

    async def servicestate(self, call: Call) -> Reply:
        """netsh's ``servicestate``; ``view=session`` or ``view=requestq``."""
        view = call.argument("view", "session")
        if view not in ("session", "requestq"):
            return as_json({"error": f"there is no view {view}; use view=session or view=requestq"}, 400)
        make = session_view if view == "session" else requestq_view
        pools = merged(await self.served.facts())["pools"]
        return as_json(make(self.loaded.config, pools, self.processes(), self.version, self.served.state))

    async def requestq(self, _: Call) -> Reply:
        """The request queues with their counters."""
        every = await self.served.facts()
        return as_json({"window": self.window, "request_queues": self.queues(every)})

    async def counters(self, _: Call) -> Reply:
        """Everything that is counted."""
        every = await self.served.facts()
        total, now = merged(every), counted(every)
        fronts = [
            {**one["front"], "rates": self._rates(now, [one], "front", "", ("requests",))} for one in every
        ]
        groups = [
            {
                "name": site["name"], **{counter: site[counter] for counter in SITE},
                "rates": self._rates(now, every, "site", site["name"], SITE),
            }
            for site in total["sites"]
        ]  # fmt: skip
        return as_json({
            "window": self.window, "connections": total["connections"], "fronts": fronts, "url_groups": groups,
            "request_queues": self.queues(every), "reasons": total["reasons"], "log": total["log"],
        })  # fmt: skip

    def queues(self, every: list[Facts]) -> list[Data]:
        """A row for each queue: size, age of its oldest (s), totals and rates, of all fronts and of each."""
        now = counted(every)
        rows = []
        for pool in merged(every)["pools"]:
            name, queue = pool["name"], pool["queue"]
            having = [(one, mine) for one in every for mine in one["pools"] if is_same(mine, pool)]
            rows.append({
                "name": name, "on_demand": pool["on_demand"], "size": queue["length"], "max_requests": queue["limit"],
                "timeout": queue["wait"], "oldest": queue["longest"],
                **pool["counters"], "reasons": pool["reasons"],
                "rates": self._rates(now, every, "pool", name, QUEUE),
                "active": sum(target["active"] for target in pool["targets"]),
                "targets": len(pool["targets"]),
                "up": sum(target["state"] == "up" for target in pool["targets"]),
                "fronts": [
                    {
                        "index": one["front"]["index"], "size": mine["queue"]["length"],
                        "oldest": mine["queue"]["longest"],
                        **mine["counters"], "reasons": mine["reasons"],
                        "rates": self._rates(now, [one], "pool", name, QUEUE),
                    }
                    for one, mine in having
                ],
            })  # fmt: skip
        return rows

    @property
    def window(self) -> float | None:
        """The seconds that rates are over; None: there are none yet."""
        over = self.rates.over
        return None if over is None else round(over, 3)

    def _rates(
        self, now: dict[Key, int], every: Iterable[Facts], noun: str, name: str, counters: Iterable[str]
    ) -> dict[str, float | None]:
        """Per second, by counter; None: not known yet."""
        pids = [one["front"]["pid"] for one in every]
        return {
            counter: self.rates.per_second(now, [(pid, noun, name, counter) for pid in pids]) for counter in counters
        }

    def rates_of(self, every: list[Facts], name: str) -> dict[str, float | None]:
        """What happens per second in a request queue."""
        return self._rates(counted(every), every, "pool", name, QUEUE)

    async def requests(self, call: Call) -> Reply:
        """What runs now, the oldest first: for at least ``older`` seconds, at most ``most`` of them."""
        try:
            older, most = float(call.argument("older", "0")), int(call.argument("most", str(MOST_REQUESTS)))
            if not (0 <= older < math.inf and 1 <= most <= MOST_REQUESTS):
                raise ValueError
        except ValueError:
            return as_json({"error": f"older is in seconds, and most is a number from 1 to {MOST_REQUESTS}"}, 400)
        found = await self.served.ask_each({"do": "requests", "older": older, "most": most})
        rows = [{"front": index, **row} for index, told in found.items() for row in told.get("requests", ())]
        rows.sort(key=lambda row: str(row["since"]))
        total = sum(told.get("total", 0) for told in found.values())
        silent = [index for index, told in found.items() if "requests" not in told]
        return as_json({"total": total, "requests": rows[:most], "more": max(total - most, 0), "silent": silent})

    async def sslcert(self, _: Call) -> Reply:
        """Which certificate answers for which name, on the ports that clients type."""
        found = await self.served.ask_each({"do": "bindings"})
        rows: list[Data] = next((told["bindings"] for told in found.values() if "bindings" in told), [])
        ports = [one.public_port for one in self.loaded.config.listen.values() if one.kind == "https"]
        return as_json({"bindings": [{"port": port, **row} for port in dict.fromkeys(ports) for row in rows]})

    async def iplisten(self, _: Call) -> Reply:
        """The addresses that are listened on."""
        return as_json({"listeners": merged(await self.served.facts())["listeners"]})

    async def timeout(self, _: Call) -> Reply:
        """The timers: of the whole server, of sites where they differ, and how long a request may be queued."""
        config = self.loaded.config
        common = timers(config.timeouts)
        sites = {
            site.name: {name: value for name, value in timers(site.timeouts).items() if value != common[name]}
            for site in config.sites.values()
        }
        return as_json({
            "timeouts": common,
            "sites": {name: own for name, own in sites.items() if own},
            "request_queues": {pool.name: pool.queue.wait for pool in config.pools.values()},
        })


def is_same(one: Data, other: Data) -> bool:
    """Whether two fronts speak of the same pool."""
    return bool(one["name"] == other["name"] and one["on_demand"] == other["on_demand"])
