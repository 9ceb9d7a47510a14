from __future__ import annotations

import pytest

from frontd.cli.tables import duration, styled, table, use_colour


def test_columns_are_aligned_and_numbers_stand_right() -> None:
    assert table(["NAME", "COUNT", "NOTE"], [["a", 5, None], ["longer", 1234, "x\x1b[31m"]]).splitlines() == [
        "NAME     COUNT   NOTE",
        "a            5   -",
        "longer    1234   x?[31m",
    ]


def test_colour_does_not_move_columns() -> None:
    rows = [["app", "up", "x"], ["other", "down", "y"]]
    plain = table(["POOL", "STATE", "Z"], rows)
    coloured = table(["POOL", "STATE", "Z"], rows, colour=True, styles={"up": "green"})
    assert "\x1b[32mup\x1b[0m" in coloured
    for code in ("\x1b[32m", "\x1b[1m", "\x1b[0m"):
        coloured = coloured.replace(code, "")
    assert coloured == plain


def test_no_colour_without_a_terminal_or_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert not use_colour()  # pytest captures stdout
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert use_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_colour()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not use_colour()


def test_styled_leaves_text_alone_without_colour() -> None:
    assert styled("x", "red", False) == "x"
    assert styled("", "red", True) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (1.84, "1.8 s"), (59, "59 s"), (192, "3m 12s"), (7500, "2h 5m"), (360000, "4d 4h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
