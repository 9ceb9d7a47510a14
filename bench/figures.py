"""What is measured, and the arithmetic on it: samples, medians, ratios of the same round, goals and whether they are
reached.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One server in one round."""

    cost: float  # what the case is judged by, in its unit: CPU us per request where it does not say otherwise
    rate: float = 0.0  # requests per second
    requests: int = 0
    errors: int = 0
    detail: str = ""  # which errors
    p50: float = 0.0  # us
    p99: float = 0.0  # us


@dataclass
class Series:
    """One server in one case: its rounds, and the peak of its memory in bytes."""

    samples: list[Sample] = field(default_factory=list)
    peak_memory: int = 0
    failed: str = ""  # why it could not be measured

    @property
    def cost(self) -> float:
        """Median over the rounds."""
        return median([sample.cost for sample in self.samples])

    @property
    def rate(self) -> float:
        """Median over the rounds."""
        return median([sample.rate for sample in self.samples])

    @property
    def errors(self) -> int:
        """Of all rounds."""
        return sum(sample.errors for sample in self.samples)

    @property
    def fault(self) -> str:
        """Why its figures are worth nothing; empty: they are good."""
        if self.failed or not self.samples:
            return self.failed or "not measured"
        if self.errors:
            said = sorted({sample.detail for sample in self.samples if sample.detail})
            return f"{self.errors} errors ({'; '.join(said)})" if said else f"{self.errors} errors"
        return ""


@dataclass(frozen=True)
class Goal:
    """What a case must reach: `subject` against another server of the same rounds, or by itself."""

    id: str
    what: str
    case: str  # whose rounds are used
    must: float
    aim: float
    subject: str = "frontd"
    against: str = "nginx"  # empty: the figure itself is judged
    at_least: bool = False  # the more the better
    unit: str = "×"


@dataclass(frozen=True)
class Verdict:
    """A goal with the figure that was measured, or why there is none."""

    goal: Goal
    value: float | None
    low: float = 0.0
    high: float = 0.0
    why: str = ""

    @property
    def reached(self) -> str:
        """`aim`, `must`, `missed`, `invalid` or `skipped`."""
        if self.value is None:
            return "invalid" if self.why.startswith("invalid") else "skipped"
        for word, limit in (("aim", self.goal.aim), ("must", self.goal.must)):
            if self.value >= limit if self.goal.at_least else self.value <= limit:
                return word
        return "missed"


def median(values: Sequence[float]) -> float:
    """The median; 0 of nothing."""
    return statistics.median(values) if values else 0.0


def ratios(one: Sequence[Sample], other: Sequence[Sample]) -> list[float]:
    """`one` to `other` in each round that both have."""
    return [a.cost / b.cost for a, b in zip(one, other, strict=False) if b.cost > 0]


def judge(goal: Goal, measured: dict[str, Series] | None, skipped: str = "") -> Verdict:
    """Whether a goal is reached, from the series of its case by server."""
    if measured is None:
        return Verdict(goal, None, why=skipped or "not measured")
    for name in filter(None, (goal.subject, goal.against)):
        series = measured.get(name)
        if series is None:
            return Verdict(goal, None, why=f"{name} is not here")
        if series.failed:
            return Verdict(goal, None, why=f"{name}: {series.failed}")
        if series.fault:
            return Verdict(goal, None, why=f"invalid: {name}: {series.fault}")
    subject = measured[goal.subject].samples
    values = ratios(subject, measured[goal.against].samples) if goal.against else [one.cost for one in subject]
    if not values:
        return Verdict(goal, None, why="invalid: no round has both")
    return Verdict(goal, median(values), min(values), max(values))


def as_json(results: dict[str, dict[str, Series]], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Everything measured, for a program to read."""
    return {
        "cases": {
            case: {
                name: {
                    "median_cost": series.cost,
                    "median_rate": series.rate,
                    "peak_memory": series.peak_memory,
                    "fault": series.fault,
                    "rounds": [asdict(sample) for sample in series.samples],
                }
                for name, series in measured.items()
            }
            for case, measured in results.items()
        },
        "goals": [
            {
                "id": verdict.goal.id,
                "what": verdict.goal.what,
                "must": verdict.goal.must,
                "aim": verdict.goal.aim,
                "value": verdict.value,
                "low": verdict.low,
                "high": verdict.high,
                "reached": verdict.reached,
                "why": verdict.why,
            }
            for verdict in verdicts
        ],
    }
