"""docs/benchmarks.md and its picture, from one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.cases import CASES
from bench.figures import Series, Verdict
from bench.picture import Bar, chart
from bench.tables import HEADING, WORDS, figures, goal_rows

PICTURE = "benchmarks.svg"
BEGIN = "<!-- measured: scripts/bench --write-docs writes this part -->"
END = "<!-- end of measured -->"


def bars(verdicts: Sequence[Verdict]) -> list[Bar]:
    """The goals as bars: where more is better the ratio is turned over; a plain figure is a share of its must."""
    found = []
    for verdict in verdicts:
        goal, value = verdict.goal, verdict.value
        must, aim = goal.must, goal.aim
        label = goal.what
        if not goal.against:  # an absolute figure: as a share of what it must reach
            label = f"{goal.what}, to its must"
            value, must, aim = (None if value is None else value / goal.must), 1.0, goal.aim / goal.must
        if goal.at_least:
            value = None if value is None else 1 / max(value, 1e-6)
            must, aim = 1 / must, 1 / aim
            label = "CPU to plain trio + h11" if goal.id == "plain" else label
        found.append(Bar(label, value, must, aim, verdict.reached, verdict.why))
    return found


def markdown_table(rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """A table of Markdown; the columns in `left` to the left."""
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    rule = ["---" if at in left else "--:" for at in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def measured_part(
    measured: dict[str, dict[str, Series]], verdicts: Sequence[Verdict], machine: dict[str, str], how: str
) -> str:
    """What stands between the markers: machine, goals, every server."""
    count = {word: sum(verdict.reached == word for verdict in verdicts) for word in WORDS}
    said = ", ".join(f"{count[word]} {WORDS[word].lower()}" for word in WORDS if count[word])
    goals = [["goal", "what", "must", "aim", "measured", "least-most", "", ""], *goal_rows(verdicts)[1:]]
    for cells in goals[1:]:
        cells[6] = f"**{cells[6].lower()}**" if cells[6] == WORDS["missed"] else cells[6].lower()
        cells[5] = cells[5].strip("()")
    parts = [
        f"![Ratio of each goal with its must and its aim]({PICTURE})",
        f"Of {len(verdicts)} goals: {said}.",
        markdown_table([row[:7] for row in goals], (0, 1, 6)),
    ]
    if silent := [f"* `{verdict.goal.id}`: {verdict.why}" for verdict in verdicts if verdict.value is None]:
        parts += ["No figure for:", "\n".join(silent)]
    for case, by_server in measured.items():
        unit = CASES[case].unit
        head = ["server", unit, *(name.replace("(least-most)", "least-most") for name in HEADING[4:])]
        rows = []
        for name, series in by_server.items():
            cost, _, *others = figures(case, series, by_server.get("nginx"))
            rows.append([name, cost, *(cell.strip("()") if at == 1 else cell for at, cell in enumerate(others))])
        empty = [at for at in range(len(head)) if at not in (0, 1) and all(row[at] == "-" for row in rows)]
        table = [[cell for at, cell in enumerate(row) if at not in empty] for row in (head, *rows)]
        parts += [f"### `{case}`: {CASES[case].what}", markdown_table(table, (0,))]
    parts += [
        "### The machine",
        markdown_table([["", ""], *([name, value] for name, value in machine.items()), ["run", how]], (0, 1)),
    ]
    return "\n\n".join(parts)


def with_measured(text: str, part: str) -> str:
    """The page with `part` between its markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no markers for what is measured")
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{after}"


def write(
    docs: Path,
    measured: dict[str, dict[str, Series]],
    verdicts: Sequence[Verdict],
    machine: dict[str, str],
    how: str,
) -> None:
    """Put a run into the page and draw its picture."""
    page = docs / "benchmarks.md"
    page.write_text(with_measured(page.read_text(), measured_part(measured, verdicts, machine, how)))
    subtitle = f"{machine['date']} · {machine['CPU']}, {machine['cores']} cores · {how}"
    (docs / PICTURE).write_text(chart("frontd compared with nginx, and with its own goals", subtitle, bars(verdicts)))
