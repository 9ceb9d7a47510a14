"""The class that plugins derive from.

Only the public door: what an author needs to know is on `Plugin`, `Settings` and in `hookspecs`.  How the class is
found is `discovery`, how its methods become phases is `phases`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, ParamSpec, TypeVar

import trio

from frontd.config.plugins import Settings, SiteFacts
from frontd.pipeline.store import MemoryStore

P = ParamSpec("P")
T = TypeVar("T")

BLOCKING_THREADS = 8


@dataclass(frozen=True, slots=True)
class Context:
    """What a plugin instance is told of where it stands: the `site`'s name (empty: every site), the memory that all
    plugins of the process share, and where its remarks go."""

    site: str
    store: MemoryStore
    remark: Callable[[str], None]


class Plugin:
    """One class is one plugin; methods named like hooks are hooks (see `hookspecs`).

    An instance stands on one site, or on the whole server, and is made when the configuration is loaded.  It is kept
    over a reload when its settings are equal.  `name` is the word in the configuration.
    """

    name: ClassVar[str] = ""
    scheme: ClassVar[str] = ""  # of authentication; ``Authorization`` with it is not shown to the app
    limits: ClassVar[Mapping[str, int]] = {}  # defaults of the site's `limits` where this plugin stands
    # Hooks that are passed over in exchanges in which an earlier one left nothing in `exchange.state(self)`
    follow_ups: ClassVar[frozenset[str]] = frozenset()
    Settings: ClassVar[type[Settings]] = Settings

    def __init__(self, settings: Any, context: Context) -> None:
        self.settings = settings
        self.site = context.site
        self.store = context.store
        self.remark = context.remark
        self.prepare()

    def prepare(self) -> None:
        """Called once, when the instance is made; raise `ValueError` with a sentence when it cannot serve."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Runs beside the requests, once for each front, from before the first request until a reload drops the
        instance.

        Call ``task_status.started()`` when requests may come.  When it ends by an error it is started again.
        """
        task_status.started()

    @classmethod
    def check(cls, settings: Any, site: SiteFacts) -> Iterable[str]:
        """Sentences about what is wrong with these settings on this site; asked by ``frontd check`` and at every
        load."""
        return ()

    @classmethod
    def untold(cls, settings: Any) -> frozenset[str]:
        """Which of ``groups`` and ``sids`` identities of this authenticator may lack, although the users have some:
        a rule that denies by these would not hold for them."""
        return frozenset()


def blocking(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Decorates a hook that blocks (files, DNS, a library without async): it runs in a thread, at most eight at once.

    Raises `TypeError` for an ``async def``, which would block the loop all the same.
    """
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"@frontd.blocking is for a plain def, and {function.__qualname__} is an async def")
    limiter = trio.CapacityLimiter(BLOCKING_THREADS)

    @functools.wraps(function)
    async def in_thread(*args: P.args, **kwargs: P.kwargs) -> T:
        call = functools.partial(function, *args, **kwargs)
        return await trio.to_thread.run_sync(call, limiter=limiter, abandon_on_cancel=True)

    return in_thread


def members(plugin: type[Plugin]) -> Iterator[tuple[type, str, Any]]:
    """What the authors of a class and of its bases wrote in it: the class, the name, the value; nearest class first."""
    for owner in plugin.__mro__:
        if owner not in (Plugin, object):
            yield from ((owner, name, value) for name, value in vars(owner).items())
