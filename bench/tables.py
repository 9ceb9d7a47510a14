"""The results as aligned text."""

from __future__ import annotations

from collections.abc import Sequence

from bench.cases import CASES
from bench.figures import Goal, Series, Verdict, median, ratios

WORDS = {"aim": "aim reached", "must": "must reached", "missed": "MISSED", "invalid": "INVALID", "skipped": "skipped"}


HEADING = [
    "case", "server", "cost", "unit", "to nginx", "(least-most)", "req/s", "p50 ms", "p99 ms", "peak MiB", "errors",
]  # fmt: skip


def table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Columns aligned, those in `left` to the left, two blanks between them; the first row is the heading."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) if at in left else cell.rjust(width)
                 for at, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: float) -> str:
    """Three significant digits, never an exponent."""
    if value == 0:
        return "0"
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def case_rows(measured: dict[str, dict[str, Series]]) -> list[list[str]]:
    """Each case and server, under a heading."""
    rows = [HEADING]
    for case, by_server in measured.items():
        for name, series in by_server.items():
            rows.append([case, name, *figures(case, series, by_server.get("nginx"))])
    return rows


def figures(case: str, series: Series, base: Series | None) -> list[str]:
    """The cells of one server."""
    if series.failed or not series.samples:
        return ["-", "-", "-", "-", "-", "-", "-", "-", series.fault]
    compared = ratios(series.samples, base.samples) if base is not None and not base.failed else []
    p50, p99 = (median([getattr(sample, key) for sample in series.samples]) for key in ("p50", "p99"))
    return [
        number(series.cost),
        CASES[case].unit,
        number(median(compared)) if compared else "-",
        f"({number(min(compared))}-{number(max(compared))})" if compared else "-",
        f"{series.rate:.0f}" if series.rate else "-",
        number(p50 / 1000) if p50 else "-",
        number(p99 / 1000) if p99 else "-",
        f"{series.peak_memory / 2**20:.0f}",
        series.fault or "0",
    ]


def limit(goal: Goal, value: float) -> str:
    """A must or an aim with its sign."""
    return f"{'≥' if goal.at_least else '≤'} {number(value)} {goal.unit}"


def goal_rows(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """Each goal with what was measured, under a heading."""
    rows = [["goal", "what", "must", "aim", "measured", "(least-most)", "", ""]]
    for verdict in verdicts:
        goal = verdict.goal
        known = verdict.value is not None
        rows.append([
            goal.id,
            goal.what,
            limit(goal, goal.must),
            limit(goal, goal.aim),
            f"{number(verdict.value)} {goal.unit}" if verdict.value is not None else "-",
            f"({number(verdict.low)}-{number(verdict.high)})" if known else "-",
            WORDS[verdict.reached],
            verdict.why,
        ])  # fmt: skip
    return rows


def report(measured: dict[str, dict[str, Series]], verdicts: Sequence[Verdict]) -> str:
    """Both tables."""
    parts = [table(case_rows(measured), (0, 1, 3, 10))] if measured else []
    return "\n\n".join([*parts, table(goal_rows(verdicts), (0, 1, 6, 7))])
