"""Supervised workers of a pool, as people configure them (WAS: application pools).

The numbers of IIS stand beside each setting.  What surprises people who come from containers (recycling after a day,
stopping when idle) is off unless asked for; ``profile: iis`` turns IIS's numbers on.
"""

from __future__ import annotations

import math
import re
import resource
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from frontd.config import units
from frontd.config.leaves import (
    Count,
    CountOrNone,
    File,
    Flag,
    Part,
    Seconds,
    Size,
    Text,
    choice,
    json_scalar,
)

PLACEHOLDERS = ("{socket}", "{fd}", "{port}")
NEVER = math.inf
RLIMITS = {name[7:].lower(): getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
_APP = re.compile(r"(asgi|wsgi):[A-Za-z_][\w.]*:[A-Za-z_][\w.]*(\(\))?")


def _seconds_or_never(value: object) -> float:
    return NEVER if value in ("never", NEVER) else units.seconds(value)


def _time_of_day(value: object) -> str:
    word = units.text(value)
    if not _TIME.fullmatch(word):
        raise units.Refused(f"a time of day such as 03:00 is expected, not {units.clip(word)}", 'in quotes: "03:00"')
    return word.zfill(5)


def _app(value: object) -> str:
    word = units.text(value)
    if not _APP.fullmatch(word):
        raise units.Refused(
            f"asgi:module:attribute or wsgi:module:attribute is expected, not {units.clip(word)}",
            "any other program goes under `command`",
        )
    return word


def _environment(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("a map of names and texts is expected")
    found = {str(name): units.text(word) for name, word in value.items()}
    for name in found:
        if not name or "=" in name or "\0" in name + found[name]:
            raise ValueError(f"{units.clip(name)} is no name of an environment variable")
    return found


def _rlimits(value: object) -> dict[str, int]:
    if not isinstance(value, dict):
        raise ValueError("a map of limits is expected")
    found = {}
    for name, number in value.items():
        if str(name) not in RLIMITS:
            guess = units.nearest(str(name), RLIMITS)
            hint = f'did you mean "{guess}"?' if guess else f"known: {', '.join(sorted(RLIMITS))}"
            raise units.Refused(f"{units.clip(name)} is no limit of setrlimit(2)", hint)
        found[str(name)] = units.size(number)
    return found


SecondsOrNever = Annotated[
    float,
    BeforeValidator(_seconds_or_never),
    json_scalar("number", "string", pattern=r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$|^[0-9]+(\.[0-9]+)?$|^never$"),
    units.Kind("duration or `never`"),
]
TimeOfDay = Annotated[str, BeforeValidator(_time_of_day), json_scalar("string"), units.Kind("time of day (UTC)")]
App = Annotated[str, BeforeValidator(_app), json_scalar("string"), units.Kind("`asgi:` or `wsgi:`, module:attribute")]
_WORDS = {"type": ["string", "number"]}
Environment = Annotated[
    dict[str, str],
    BeforeValidator(_environment),
    WithJsonSchema({"type": "object", "additionalProperties": _WORDS}),
    units.Kind("map of texts"),
]
Rlimits = Annotated[
    dict[str, int],
    BeforeValidator(_rlimits),
    WithJsonSchema({"type": "object", "propertyNames": {"enum": sorted(RLIMITS)}, "additionalProperties": _WORDS}),
    units.Kind("map of limits"),
]
_START, _START_SCHEMA, _START_KIND = choice("on_demand", "always")
_PROFILE, _PROFILE_SCHEMA, _PROFILE_KIND = choice("iis")
_ACTION, _ACTION_SCHEMA, _ACTION_KIND = choice("log", "recycle", "kill")


class Recycle(Part):
    """When a worker is replaced by a fresh one, which is warm before the old one gives its place up."""

    every: Seconds | None = Field(default=None, ge=1, description="After this time (IIS 29h; here off).")
    requests: Count | None = Field(default=None, ge=1, description="After so many requests (IIS: off).")
    private_memory: Size | None = Field(
        default=None, ge=1048576,
        description="When the memory that its processes share with nobody else is larger (IIS: off).",
    )  # fmt: skip
    at: tuple[TimeOfDay, ...] = Field(default=(), description="At these times of the day, in UTC (IIS: off).")


class Ping(Part):
    """Whether a worker still answers: any answer, and any byte that moves in either direction, says that it does."""

    path: Text = Field(
        default="*", description="Path to `GET`; left out: `OPTIONS *` (RFC 9110 9.3.7), which no app sees as a page."
    )
    every: Seconds = Field(default=30.0, ge=0.1, description="Between two pings (IIS pingInterval: 30s).")
    wait: Seconds = Field(
        default=90.0, ge=0.1, description="How long an answer may take, then it is killed (IIS pingResponseTime: 90s)."
    )


class RapidFail(Part):
    """A pool whose workers fail again and again is taken out of service: 503 `AppOffline` at once."""

    failures: Count = Field(default=5, ge=1, le=1000, description="So many failures (IIS: 5)…")
    within: Seconds = Field(default=300.0, ge=1, description="…in this time (IIS: 5 min).")
    retry_after: SecondsOrNever = Field(
        default=300.0,
        description="Until it is tried again; `never`: until `frontd pool start` (IIS; here 5m, so that a broken "
        "dependency that comes back needs nobody's hand).",
    )


class Cpu(Part):
    """What happens to a worker whose processes compute too much."""

    limit: Count = Field(ge=1, le=100000, description="Percent of one core, on average…")
    over: Seconds = Field(default=300.0, ge=1, description="…over this time (IIS resetInterval: 5 min).")
    action: Annotated[Literal["log", "recycle", "kill"], _ACTION, _ACTION_SCHEMA, _ACTION_KIND] = Field(
        default="log", description="Say so in the event log, replace it, or kill it (IIS: NoAction)."
    )


class Workers(Part):
    """App processes that frontd starts, watches and replaces (WAS)."""

    app: App | None = Field(
        default=None,
        description="Python app: `asgi:module:attribute` by uvicorn or hypercorn, whichever is installed, "
        "`wsgi:module:attribute` by gunicorn; forwarded fields are trusted, since they are ours.",
    )
    command: tuple[Text, ...] = Field(
        default=(),
        description="Any program. `{fd}`: the number of a listening Unix socket that it inherits; `{socket}`: the path "
        "of a Unix socket to listen on; `{port}`: a port on 127.0.0.1 to listen on.",
    )
    count: Count = Field(default=1, ge=1, le=256, description="Workers at a time (IIS maxProcesses: 1).")
    concurrency: CountOrNone = Field(
        default=None, ge=1,
        description="Requests at once in one worker; more wait in the queue (unlimited, as IIS; with `wsgi:` 1, and as "
        "many threads).",
    )  # fmt: skip
    start: Annotated[Literal["on_demand", "always"], _START, _START_SCHEMA, _START_KIND] = Field(
        default="on_demand", description="With the first request, which waits, or with frontd (IIS: OnDemand)."
    )
    start_limit: Seconds = Field(
        default=90.0, ge=0.1, description="Until a worker must answer; then it is killed (IIS startupTimeLimit: 90s)."
    )
    stop_limit: Seconds = Field(
        default=90.0, ge=0, description="Until a worker that is to end is killed (IIS shutdownTimeLimit: 90s)."
    )
    idle_stop: Seconds | None = Field(
        default=None, ge=0.1, description="Without requests for this time, workers are stopped (IIS 20m; here off)."
    )
    warm_up: tuple[Text, ...] = Field(
        default=(),
        description="Paths that a new worker must answer below 500 before it gets requests (IIS "
        "applicationInitialization); left out: `OPTIONS *`, answered by anything.",
    )
    splash: File | None = Field(
        default=None,
        description="HTML page that browsers get with 503 while no worker is ready, in place of waiting (IIS: "
        "`remapManagedRequestsTo`); whoever does not ask for HTML waits.",
    )
    recycle: Recycle = Field(default_factory=Recycle, description="When workers are replaced.")
    ping: Ping | None = Field(default=None, description="Ask workers whether they live; left out: no (IIS: on).")
    rapid_fail: RapidFail = Field(default_factory=RapidFail, description="When to stop trying.")
    cpu: Cpu | None = Field(default=None, description="Bound on computing; left out: none (IIS).")
    orphan: tuple[Text, ...] = Field(
        default=(),
        description="Command that is run with `{pid}` when a ping is missed: the worker is left alive for it to look "
        "at, and another one takes its place (IIS orphanWorkerProcess).",
    )
    environment: Environment = Field(
        default_factory=dict, description="Variables beside those of frontd's own environment."
    )
    clear_environment: Flag = Field(
        default=False, description="Give workers `PATH`, `LANG`, `HOME` and `environment` alone."
    )
    directory: File | None = Field(default=None, description="Working directory; left out: that of frontd.")
    rlimits: Rlimits = Field(default_factory=dict, description="Limits of setrlimit(2) by name: `{nofile: 4096}`.")
    cpus: tuple[Count, ...] = Field(default=(), description="Cores that they may use; left out: all.")
    user: Text | None = Field(
        default=None,
        description="User that they run as, where frontd runs as root; left out: frontd's own user, so workers are "
        "trusted code.",
    )
    profile: Annotated[Literal["iis"], _PROFILE, _PROFILE_SCHEMA, _PROFILE_KIND] | None = Field(
        default=None,
        description="`iis`: what is not written is as in IIS: `recycle.every: 29h`, `idle_stop: 20m`, `ping` every "
        "30s, `rapid_fail.retry_after: never`.",
    )

    @model_validator(mode="after")
    def _one_program(self) -> Workers:
        if (self.app is None) == (not self.command):
            raise ValueError("workers have exactly one of `app` and `command`")
        if self.command and not any(mark in word for word in self.command for mark in PLACEHOLDERS):
            raise units.Refused(
                "the command does not say where it listens", "put {fd}, {socket} or {port} into one of its words"
            )
        if self.command and sum(any(mark in word for word in self.command) for mark in PLACEHOLDERS) > 1:
            raise ValueError("the command listens in one place: one of {fd}, {socket} and {port}")
        if any(not path.startswith("/") for path in self.warm_up):
            raise ValueError("`warm_up` has absolute paths, such as /healthz")
        if self.start == "always" and self.idle_stop is not None:
            raise ValueError("workers that are always there are not stopped when idle: `start: on_demand`")
        if self.ping is not None and self.ping.path != "*" and not self.ping.path.startswith("/"):
            raise ValueError("`ping.path` is an absolute path, such as /healthz")
        return self

    @model_validator(mode="after")
    def _one_thread(self) -> Workers:
        # What a thread is not free for would lie in the server's backlog, and die with it.
        if self.app is not None and self.app.startswith("wsgi:") and self.concurrency is None:
            object.__setattr__(self, "concurrency", 1)
        return self

    @model_validator(mode="after")
    def _numbers_of_iis(self) -> Workers:
        if self.profile == "iis":
            # object.__setattr__: the model is frozen for everybody else
            if "every" not in self.recycle.model_fields_set:
                object.__setattr__(self, "recycle", self.recycle.model_copy(update={"every": 29 * 3600.0}))
            if "idle_stop" not in self.model_fields_set and self.start == "on_demand":
                object.__setattr__(self, "idle_stop", 20 * 60.0)
            if "ping" not in self.model_fields_set:
                object.__setattr__(self, "ping", Ping())
            if "retry_after" not in self.rapid_fail.model_fields_set:
                object.__setattr__(self, "rapid_fail", self.rapid_fail.model_copy(update={"retry_after": NEVER}))
        return self
