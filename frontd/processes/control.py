"""What the control socket and the health listener answer, in HTTP and JSON (`frontd.processes.calls`).

Who may call: the kernel says who is at the other end of a Unix socket (SO_PEERCRED); the same uid as frontd or root,
nobody else.  Every call that changes something is written to the log: who, what, what came of it.  The health listener
on TCP, when configured, knows ``/livez`` and ``/readyz`` and nothing more.

What there is stands in `Control.endpoints`; docs/control-api.yaml describes each of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime

import yaml

from frontd.config.effective import effective
from frontd.config.load import Loaded
from frontd.processes.calls import Answerer, Call, Caller, Reply, answer_by, as_json, as_text, may_call
from frontd.processes.explain import explain, hooks_of, plugins_on
from frontd.processes.served import Served
from frontd.processes.status import iso, merged
from frontd.processes.views import Views

# The health listener is open to strangers: silent ones must not keep an orchestrator waiting until it gives up on us.
HEALTH_PATIENCE = 1.0  # s
HEALTH_CALLERS = 512


class Control:
    """What the control socket answers.  `read` reads the configuration again; None: there is nothing to read.  `pid` is
    the process that takes signals."""

    def __init__(
        self, served: Served, version: str, read: Callable[[], Loaded] | None, pid: int | None = None
    ) -> None:
        self.served = served
        self.version = version
        self.read = read
        self.pid = pid or os.getpid()
        self.views = Views(served, version)
        self.open: frozenset[tuple[str, str]] = frozenset()  # whose answerers look at the caller themselves
        self.endpoints: dict[tuple[str, str], Answerer] = {
            ("GET", "/livez"): self.health,
            ("GET", "/readyz"): self.health,
            ("GET", "/status"): self.status,
            ("GET", "/config"): self.config,
            ("GET", "/explain"): self.explain,
            ("POST", "/reload"): self.reload,
            **self.views.endpoints,
        }

    async def answer(self, call: Call) -> Reply:
        """The reply to one request on the control socket."""
        if not may_call(call.caller) and (call.method, call.path) not in self.open:
            self.audit(f"{call.method} {call.path}", call.caller, "refused, wrong uid")
            error = f"uid {call.caller.uid} may not use this socket; use frontd's own uid or root"
            return as_json({"error": error}, 403)
        return await answer_by(self.endpoints, call)

    async def health(self, call: Call) -> Reply:
        """``/livez``: this process answers.  ``/readyz``: requests are accepted as well (503 while starting or
        draining)."""
        if call.path not in ("/livez", "/readyz"):
            return as_text("only /livez and /readyz are here", 404)
        if call.method not in ("GET", "HEAD"):
            return as_text("use GET", 405)
        if call.path == "/livez" or self.served.is_ready:
            return as_text("ok")
        return as_text(self.served.state, 503)

    async def reload(self, call: Call) -> Reply:
        """Reload on behalf of the caller; 422 with every error when the old configuration stays."""
        if self.read is None:
            self.audit("reload", call.caller, "refused, there is no file to read again")
            return as_json({"errors": ["this frontd was started without a file to read again"]}, 422)
        report = await self.served.reload(self.read)
        self.audit("reload", call.caller, "ok" if report.ok else "refused")
        if not report.ok:
            return as_json({"errors": report.errors}, 422)
        generation = self.served.generation
        return as_json({"generation": generation, "changed": report.changed, "warnings": report.warnings})

    async def config(self, _: Call) -> Reply:
        """The configuration that serves, secrets hidden."""
        loaded = self.served.loaded
        config = effective(loaded.base or loaded.config)
        return as_json({"yaml": yaml.safe_dump(config, sort_keys=False, allow_unicode=True)})

    def audit(self, what: str, caller: Caller, outcome: str) -> None:
        """Write down who did what, and what came of it."""
        self.served.remark(f"audit: {what} by {caller}: {outcome}")

    async def explain(self, call: Call) -> Reply:
        """Where ``url`` leads in the running configuration; 400 for what is no URL."""
        try:
            return as_json(explain(self.served.loaded.config, call.argument("url")))
        except ValueError as error:
            return as_json({"error": str(error)}, 400)

    async def status(self, _: Call) -> Reply:
        """Everything `frontd status` shows."""
        served = self.served
        facts = await served.facts()
        every = merged(facts)
        for pool in every["pools"]:
            pool["rates"] = self.views.rates_of(facts, pool["name"])
        report, config = served.last_reload, served.loaded.config
        for site in every["sites"]:
            known = config.sites.get(site["name"])  # a front may be one reload behind
            site["urls"] = [str(url) for url in known.urls] if known else []
            site["plugins"] = self.plugins(site["name"]) if known else []
        return as_json({
            "version": self.version,
            "pid": self.pid,
            "started": iso(served.started_at),
            "uptime": round(datetime.now(UTC).timestamp() - served.started_at, 3),
            "ready": served.is_ready,
            "state": served.state,
            "generation": served.generation,
            "window": self.views.window,
            "config": {"file": served.loaded.name, "loaded": iso(served.loaded_at)},
            "last_reload": report
            and {"at": iso(report.at), "ok": report.ok, "changed": report.changed, "errors": report.errors},
            **every,
        })  # fmt: skip

    def plugins(self, site: str) -> list[dict[str, object]]:
        """The plugins that are asked on a site, in their order; `server` marks those of the whole server."""
        config = self.served.loaded.config
        return [
            {"name": entry.name, "server": at < len(config.plugins), "hooks": hooks_of(entry)}
            for at, entry in enumerate(plugins_on(config, site))
        ]
