"""The service state as `netsh http show servicestate` tells it: sessions, URL groups, request queues.

A server session is frontd as a whole, a URL group is a site, a request queue is that of a pool.  Names and fields are
netsh's where there is a counterpart; what frontd has none for (bandwidth, ids) is left out.  Pure over the
configuration and what the fronts told of themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from frontd.config.model import Config, Site, Timeouts
from frontd.processes.explain import plugins_on

Data = dict[str, Any]
# netsh's words for HTTP.sys's timers; frontd's others follow in its own
TIMERS = ("entity_body", "drain_entity_body", "idle_connection", "header_wait", "min_send_rate")


class Attached(NamedTuple):
    """The processes that drain a queue, where frontd knows them; `off`: none of them shall."""

    pids: list[int]
    off: bool = False


Processes = Mapping[str, Attached]  # by request queue


def session_view(config: Config, pools: Iterable[Data], processes: Processes, version: str, state: str) -> Data:
    """The session, its URL groups, and the request queues beside them."""
    return {
        "view": "session",
        "session": session(config, version, state),
        "url_groups": [url_group(config, site) for site in config.sites.values()],
        "request_queues": [request_queue(pool, processes) for pool in pools],
    }


def requestq_view(config: Config, pools: Iterable[Data], processes: Processes, version: str, state: str) -> Data:
    """The same, inverted: each request queue with the URL groups that lead to it."""
    groups = [url_group(config, site) for site in config.sites.values()]
    return {
        "view": "requestq",
        "session": session(config, version, state),
        "request_queues": [
            {
                **request_queue(pool, processes),
                "url_groups": [one for one in groups if pool["name"] in one["request_queues"]],
            }
            for pool in pools
        ],
    }


def session(config: Config, version: str, state: str) -> Data:
    """frontd as a whole: what holds where a URL group says nothing else."""
    return {
        "version": version, "state": "Active" if state == "serving" else state,
        "max_connections": config.limits.max_connections, "timeouts": timers(config.timeouts),
    }  # fmt: skip


def url_group(config: Config, site: Site) -> Data:
    """A site; `timeouts` and `max_connections` are None where those of the session hold."""
    own, common = timers(site.timeouts), timers(config.timeouts)
    pools = [route.pool for route in site.routes.values() if route.pool is not None]
    return {
        "name": site.name, "state": "Active", "request_queues": list(dict.fromkeys(pools)),
        "max_connections": site.limits.max_connections,
        "timeouts": {name: value for name, value in own.items() if value != common[name]} or None,
        "authentication": schemes_of(config, site), "urls": [str(url) for url in site.urls],
    }  # fmt: skip


def schemes_of(config: Config, site: Site) -> list[str]:
    """The authentication schemes by which clients may log on."""
    kinds = [entry.kind for entry in plugins_on(config, site.name) if "challenge" in entry.kind.hooks]
    return list(dict.fromkeys(kind.plugin.scheme for kind in kinds if kind.plugin.scheme))


VERBOSITY = {"reset": "Basic", "status": "Limited", "reason": "Full"}  # HTTP.sys's words for ``refuse_with``


def request_queue(pool: Data, processes: Processes) -> Data:
    """The queue of a pool, and who drains it; `pool` is as ``/status`` has it.  `processes` is None where the apps are
    no processes of frontd's."""
    attached = None if pool["on_demand"] else processes.get(pool["name"])
    return {
        "name": pool["name"], "on_demand": pool["on_demand"],
        "state": "Inactive" if attached is not None and attached.off else "Active",
        "processes": None if attached is None else attached.pids,
        "verbosity": VERBOSITY[pool["queue"]["refuse_with"]], "max_requests": pool["queue"]["limit"],
        "timeout": pool["queue"]["wait"], "size": pool["queue"]["length"],
        "targets": [{"address": one["address"], "state": one["state"]} for one in pool["targets"]],
    }  # fmt: skip


def timers(timeouts: Timeouts) -> Data:
    """Seconds by frontd's names, HTTP.sys's timers first; `min_send_rate` is in bytes per second."""
    names = [*TIMERS, *(name for name in Timeouts.model_fields if name not in TIMERS)]
    return {name: getattr(timeouts, name) for name in names}
