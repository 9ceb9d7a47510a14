"""What control answers for: a front that is alone, or all of a family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from frontd.config.load import Loaded
from frontd.processes.reload import ReloadReport
from frontd.processes.status import Facts


class Served(Protocol):
    """The configuration that serves, and the fronts that serve it."""

    loaded: Loaded
    started_at: float
    loaded_at: float
    last_reload: ReloadReport | None
    state: str

    @property
    def generation(self) -> int:
        """Of the configuration that serves."""

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted."""

    async def facts(self) -> list[Facts]:
        """Of every front, as `frontd.processes.status` gathers them."""

    async def ask_each(self, question: dict[str, Any]) -> dict[int, dict[str, Any]]:
        """What each front that serves answers to a view of `frontd.processes.frontviews`, by its number; nothing when
        it does not answer in time."""

    async def reload(self, read: Callable[[], Loaded]) -> ReloadReport:
        """Read and replace the configuration."""

    def log_fault(self, what: str, error: Exception) -> None:
        """Write a fault of our own into the error log, with its traceback."""

    def remark(self, text: str) -> None:
        """Write a line into the error log."""
