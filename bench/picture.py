"""A bar chart as SVG, for light and dark pages: each goal as a ratio, with its must and its aim.

The axis is logarithmic, so that a bar off by a factor of ten still fits.  What is missed has its own colour and its
word, not less room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, ROW, TOP, LEFT, RIGHT = 900, 30, 64, 300, 130
STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }
  .small { font-size: 11px; fill: #59636e }
  .value { font-weight: 600 }
  .grid { stroke: #d1d9e0; stroke-width: 1 }
  .one { stroke: #59636e; stroke-width: 1.5 }
  .limit { stroke: #1f2328; stroke-width: 2.5 }
  .aimed { stroke: #1f2328; stroke-width: 1.5; stroke-dasharray: 2 2 }
  .aim { fill: #1a7f37 } .must { fill: #0969da } .missed { fill: #cf222e } .none { fill: #818b98 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .small { fill: #9198a1 }
    .grid { stroke: #3d444d } .one { stroke: #9198a1 } .limit, .aimed { stroke: #f0f6fc }
    .aim { fill: #3fb950 } .must { fill: #4493f8 } .missed { fill: #f85149 } .none { fill: #9198a1 }
  }
"""


@dataclass(frozen=True)
class Bar:
    """One goal: how many times what it is compared with; below 1 is better."""

    label: str
    value: float | None
    must: float
    aim: float
    kind: str  # aim, must, missed, invalid or skipped
    note: str = ""  # instead of a bar


def chart(title: str, subtitle: str, bars: Sequence[Bar]) -> str:
    """The chart as a document of its own."""
    known = [bar.value for bar in bars if bar.value] + [bar.must for bar in bars] + [bar.aim for bar in bars]
    low, high = min([0.5, *known]) * 0.9, max([2.0, *known]) * 1.1
    span = WIDTH - LEFT - RIGHT

    def across(value: float) -> float:
        return LEFT + span * math.log(value / low) / math.log(high / low)

    height = TOP + ROW * len(bars) + 44
    bottom = height - 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{attribute(title)}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<text x="8" y="22" class="value">{escape(title)}</text>',
        f'<text x="8" y="42" class="small">{escape(subtitle)}</text>',
    ]
    for step in steps(low, high):
        x, kind = across(step), "one" if step == 1 else "grid"
        parts.append(f'<line class="{kind}" x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="small" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{step:g} ×</text>')
    for at, bar in enumerate(bars):
        parts += row(bar, TOP + ROW * at, across)
    key = "bars: times what it is compared with (1 × is equal, less is better) · solid line: must · dotted line: aim"
    parts.append(f'<text x="8" y="{height - 8}" class="small">{key}</text>')
    return "\n".join([*parts, "</svg>", ""])


def row(bar: Bar, top: float, across: object) -> list[str]:
    """One bar with its label, its limits and its figure."""
    assert callable(across)
    middle = top + ROW / 2
    parts = [f'<text x="{LEFT - 12}" y="{middle + 4:.1f}" text-anchor="end">{escape(bar.label)}</text>']
    if bar.value is None:
        words = f"{bar.kind}: {bar.note}" if bar.note else bar.kind
        parts.append(f'<text class="small" x="{LEFT + 6}" y="{middle + 4:.1f}">{escape(words[:90])}</text>')
        return parts
    end = across(bar.value)
    place = f'x="{LEFT}" y="{top + 7:.1f}" width="{max(1.0, end - LEFT):.1f}" height="{ROW - 14}"'
    parts.append(f'<rect class="{bar.kind}" {place} rx="2"/>')
    for kind, value in (("limit", bar.must), ("aimed", bar.aim)):
        x = across(value)
        parts.append(f'<line class="{kind}" x1="{x:.1f}" y1="{top + 3:.1f}" x2="{x:.1f}" y2="{top + ROW - 3:.1f}"/>')
    word = {"aim": "aim", "must": "must", "missed": "missed"}[bar.kind]
    x = max(end, across(bar.must), across(bar.aim)) + 8
    figure = f"{bar.value:.2f}" if bar.value < 10 else f"{bar.value:.1f}"
    parts.append(f'<text class="value" x="{x:.1f}" y="{middle + 4:.1f}">{figure} × {word}</text>')
    return parts


def steps(low: float, high: float) -> list[float]:
    """Round numbers between the two, 1-2-5."""
    found = (factor * 10.0**power for power in range(-3, 5) for factor in (1, 2, 5))
    return [step for step in found if low <= step <= high]


def attribute(text: str) -> str:
    """Text inside a quoted attribute."""
    return escape(text, {'"': "&quot;"})
