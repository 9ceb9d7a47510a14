"""The benchmark reads its tools rightly, divides rightly, and shows what lost like what won; nothing is timed."""

from __future__ import annotations

import statistics
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from bench.__main__ import chosen, listed, named
from bench.cases import CASES, GOALS
from bench.figures import Goal, Sample, Series, Verdict, as_json, judge, median, ratios
from bench.page import BEGIN, END, bars, markdown_table, measured_part, with_measured
from bench.picture import Bar, chart, steps
from bench.processes import SLACK, Cpu, descendants, stat_fields
from bench.servers import STARTS
from bench.tables import case_rows, goal_rows, number, report, table
from bench.tools import ToolError, parse_h2load_log, parse_wrk, percentile

DOCS = Path(__file__).parent.parent / "docs"

WRK = """Running 2s test @ http://127.0.0.1:20001/1k
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.73ms  318.29us  10.93ms   91.50%
    Req/Sec    37.06k     1.98k   39.68k    80.00%
  73718 requests in 2.00s, 88.65MB read
Requests/sec:  36827.16
Transfer/sec:     44.29MB
"""

# ---------------------------------------------------------------------------------------------------- tools


def test_wrk_is_read() -> None:
    load = parse_wrk(WRK)
    assert (load.requests, load.seconds, load.errors, load.detail) == (73718, 2.0, 0, "")
    assert load.rate == pytest.approx(36859)


@pytest.mark.parametrize(
    ("line", "errors", "detail"),
    [
        ("  Non-2xx or 3xx responses: 7\n", 7, "7 not 2xx"),
        (
            "  Socket errors: connect 1, read 20, write 0, timeout 300\n",
            321,
            "1 connect errors, 20 read errors, 300 timeout errors",
        ),
    ],
)
def test_errors_that_wrk_saw_are_counted(line: str, errors: int, detail: str) -> None:
    load = parse_wrk(WRK.replace("Requests/sec", f"{line}Requests/sec"))
    assert (load.errors, load.detail) == (errors, detail)


def test_wrk_says_long_times_in_minutes() -> None:
    assert parse_wrk("  600 requests in 1.50m, 1MB read").seconds == 90


def test_a_wrk_that_says_nothing_is_an_error() -> None:
    with pytest.raises(ToolError, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1:1 Connection refused")


def log_of(*rows: tuple[float, int, int]) -> str:
    """A log of h2load from (second, status, us)."""
    return "".join(f"{1_700_000_000_000_000 + round(at * 1e6)}\t{status}\t{took}\n" for at, status, took in rows)


def test_h2load_is_read_without_its_begin_and_end() -> None:
    middle = [(1 + at / 100, 200, at + 1) for at in range(100)]
    seen = parse_h2load_log(log_of((0.0, 200, 90_000), *middle, (3.0, 200, 90_000)), margin=0.5)
    assert (seen.count, seen.errors) == (100, 0)
    assert seen.p50 == 50.5
    assert seen.p99 == pytest.approx(99.01)
    assert seen.rate == pytest.approx(50)


def test_failures_count_wherever_they_are() -> None:
    seen = parse_h2load_log(log_of((0.0, -1, 1), (1.0, 200, 5), (1.1, 503, 5), (2.0, 200, 1)), margin=0.1)
    assert (seen.errors, seen.count) == (2, 2)


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_log_is_an_error(text: str) -> None:
    with pytest.raises(ToolError):
        parse_h2load_log(text, 0)


def test_a_log_shorter_than_its_margins_has_no_figures() -> None:
    assert parse_h2load_log(log_of((0, 200, 5), (0.1, 200, 5)), margin=0.2).count == 0


@given(some.lists(some.integers(0, 10**6), min_size=2, max_size=300), some.integers(1, 99))
def test_percentiles_are_those_of_the_library(values: list[int], percent: int) -> None:
    expected = statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
    assert percentile(sorted(values), percent) == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------------- arithmetic


def series(*costs: float, errors: int = 0) -> Series:
    return Series([Sample(cost, rate=1000 / cost, requests=100, errors=errors, detail="x" * errors) for cost in costs])


def test_ratios_are_taken_within_a_round() -> None:
    slow_machine_in_round_two = series(30, 300, 33), series(20, 200, 22)
    assert ratios(slow_machine_in_round_two[0].samples, slow_machine_in_round_two[1].samples) == [1.5, 1.5, 1.5]


def test_the_median_of_ratios_is_not_the_ratio_of_medians() -> None:
    verdict = judge(Goal("a", "", "a", 1.6, 1.2), {"frontd": series(10, 40, 30), "nginx": series(10, 10, 30)})
    assert (verdict.value, verdict.low, verdict.high) == (1.0, 1.0, 4.0)


def test_the_median_of_nothing_is_nothing() -> None:
    assert median([]) == 0
    assert Series().cost == 0


@pytest.mark.parametrize(
    ("cost", "at_least", "reached"),
    [
        (11, False, "aim"), (12, False, "aim"), (13, False, "must"), (16, False, "must"), (17, False, "missed"),
        (17, True, "aim"), (16, True, "aim"), (13, True, "must"), (12, True, "must"), (11, True, "missed"),
    ],
)  # fmt: skip
def test_a_limit_itself_is_reached(cost: float, at_least: bool, reached: str) -> None:
    must, aim = (1.2, 1.6) if at_least else (1.6, 1.2)
    goal = Goal("a", "", "a", must, aim, at_least=at_least)
    assert judge(goal, {"frontd": series(cost), "nginx": series(10)}).reached == reached


def test_a_figure_without_comparison_is_judged_itself() -> None:
    goal = Goal("idle", "", "idle", 1.5, 0.8, against="", unit="KiB")
    verdict = judge(goal, {"frontd": series(1.2, 9, 1.1)})
    assert (verdict.value, verdict.reached) == (1.2, "must")


@pytest.mark.parametrize("bad", ["frontd", "nginx"])
def test_errors_on_either_side_make_a_case_invalid(bad: str) -> None:
    measured = {"frontd": series(1), "nginx": series(1)} | {bad: series(1, errors=3)}
    verdict = judge(Goal("a", "", "a", 1.6, 1.2), measured)
    assert (verdict.value, verdict.reached) == (None, "invalid")
    assert bad in verdict.why
    assert "3 errors (xxx)" in verdict.why


def test_what_was_not_measured_says_why() -> None:
    goal = Goal("a", "", "a", 1.6, 1.2)
    assert judge(goal, None, "not here: wrk (package wrk)").why == "not here: wrk (package wrk)"
    assert judge(goal, {"frontd": series(1)}).why == "nginx is not here"
    assert judge(goal, {"frontd": Series(failed="it ended"), "nginx": series(1)}).why == "frontd: it ended"
    assert judge(goal, None).reached == judge(goal, {"frontd": series(1)}).reached == "skipped"


def test_the_ticks_are_used_where_a_thread_has_ended() -> None:
    assert Cpu(1_000_000_000, 1_000_000_000 + SLACK).used == 1_000_000_000
    assert Cpu(100_000_000, 900_000_000).used == 900_000_000
    assert (Cpu(9, 30) - Cpu(4, 10)) == Cpu(5, 20)


# ---------------------------------------------------------------------------------------------------- /proc


def test_a_tree_has_everything_below_and_nothing_beside() -> None:
    parent_of = {1: 0, 10: 1, 11: 10, 12: 11, 13: 10, 20: 1, 21: 20}
    assert sorted(descendants(10, parent_of)) == [10, 11, 12, 13]
    assert descendants(99, parent_of) == []


def test_a_name_with_parentheses_does_not_move_the_fields() -> None:
    assert stat_fields("17 (a) S (b) R 4 5") == ["R", "4", "5"]


# ---------------------------------------------------------------------------------------------------- cases


def test_every_goal_names_a_case_and_servers_of_it() -> None:
    for goal in GOALS:
        servers = CASES[goal.case].servers
        assert goal.subject in servers
        assert goal.against in (*servers, "")


def test_no_case_is_without_a_goal_and_no_server_without_a_start() -> None:
    assert {goal.case for goal in GOALS} == set(CASES)
    assert {name for case in CASES.values() for name in case.servers} <= set(STARTS)


def test_an_aim_is_not_easier_than_its_must() -> None:
    assert [goal.id for goal in GOALS if (goal.aim < goal.must) == goal.at_least] == []


def test_cases_are_chosen_by_name() -> None:
    assert chosen("") == [goal.id for goal in GOALS]
    assert chosen("hit, tls") == ["hit", "tls"]
    with pytest.raises(SystemExit, match="there is no case hot; there are proxied"):
        chosen("hit,hot")


def test_further_servers_have_names_of_their_own() -> None:
    assert named(["old=/x/frontd", "new=/y/frontd -v"], "--beside") == {"old": "/x/frontd", "new": "/y/frontd -v"}
    for wrong in (["/x/frontd"], ["=x"], ["a="], ["nginx=x"], ["a=1", "a=2"], ["../a=1"]):
        with pytest.raises(SystemExit, match="a name of its own"):
            named(wrong, "--beside")


def test_the_list_has_every_goal() -> None:
    assert [line.split()[0] for line in listed().splitlines()] == ["id", *(goal.id for goal in GOALS)]


# ---------------------------------------------------------------------------------------------------- what is shown


def example() -> tuple[dict[str, dict[str, Series]], list[Verdict]]:
    """Three goals: one missed, one with errors, one never measured."""
    measured = {
        "proxied": {"frontd": series(400, 410), "nginx": series(20, 20), "plain": series(200, 100)},
        "hit": {"frontd": series(9, errors=2), "nginx": series(10)},
    }
    return measured, [judge(goal, measured.get(goal.case), "no wrk") for goal in GOALS]


def test_columns_are_aligned() -> None:
    assert table([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc   d"


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.314, "0.31"), (9.99, "9.99"), (21.63, "21.6"), (396.2, "396"), (67843, "67843")]
)
def test_figures_have_three_digits_and_no_exponent(value: float, shown: str) -> None:
    assert number(value) == shown


def test_the_report_shows_what_lost() -> None:
    text = report(*example())
    assert "MISSED" in text
    assert "INVALID" in text
    assert "2 errors (xx)" in text
    assert "no wrk" in text
    widths = {len(row) for rows in (case_rows(example()[0]), goal_rows(example()[1])) for row in rows}
    assert widths == {11, 8}


def test_json_has_every_round_and_every_goal() -> None:
    measured, verdicts = example()
    found = as_json(measured, verdicts)
    assert [one["cost"] for one in found["cases"]["proxied"]["frontd"]["rounds"]] == [400, 410]
    assert {goal["id"]: goal["reached"] for goal in found["goals"]} == {
        verdict.goal.id: verdict.reached for verdict in verdicts
    }


def drawn(picture: str) -> ElementTree.Element:
    return ElementTree.fromstring(picture)


def test_the_picture_has_a_bar_or_a_word_for_every_goal() -> None:
    verdicts = example()[1]
    picture = drawn(chart("title", "subtitle", bars(verdicts)))
    words = " ".join(picture.itertext())
    for bar in bars(verdicts):
        assert bar.label in words
        assert bar.kind in words
    rectangles = [one.get("class") for one in picture.iter("{http://www.w3.org/2000/svg}rect")]
    assert rectangles == ["missed", "missed"]  # proxied, and plain


texts = some.text(some.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=120).filter(
    lambda text: not set(text) & {"\ufffe", "\uffff"}  # no characters of XML
)
many_bars = some.lists(
    some.builds(
        Bar,
        texts,
        some.none() | some.floats(0.001, 1000),
        some.floats(0.01, 100),
        some.floats(0.01, 100),
        some.sampled_from(["aim", "must", "missed"]),
        texts,
    ),
    max_size=8,
)


@given(texts, texts, many_bars)
def test_every_picture_is_well_formed_and_nothing_leaves_it(title: str, subtitle: str, found: list[Bar]) -> None:
    picture = drawn(chart(title, subtitle, found))
    width = float(picture.get("width", "0"))
    for shape in picture.iter("{http://www.w3.org/2000/svg}rect"):
        assert 0 < float(shape.get("x", "0")) + float(shape.get("width", "0")) <= width
    for line in picture.iter("{http://www.w3.org/2000/svg}line"):
        assert 0 < float(line.get("x1", "0")) <= width


def test_the_axis_has_round_numbers() -> None:
    assert steps(0.5, 20) == pytest.approx([0.5, 1, 2, 5, 10, 20])


def test_more_is_better_is_drawn_as_less() -> None:
    goal = next(goal for goal in GOALS if goal.id == "plain")
    (bar,) = bars([Verdict(goal, 5.0, 4.0, 6.0)])
    assert (bar.value, bar.must, bar.aim, bar.kind) == (0.2, 0.25, 1 / 6, "must")


# ---------------------------------------------------------------------------------------------------- the page


def test_the_page_is_written_between_its_markers() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter"
    assert with_measured(page, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter"
    with pytest.raises(ValueError, match="markers"):
        with_measured("no markers", "new")


def test_the_measured_part_has_every_goal_and_every_server() -> None:
    part = measured_part(*example(), {"date": "2020-02-02", "CPU": "one"}, "2 rounds of 1 s")
    assert "**missed**" in part
    assert "* `tls`: no wrk" in part
    assert "| plain |" in part
    assert all(f"| {goal.id} |" in part for goal in GOALS)
    assert "2 rounds of 1 s" in part


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert markdown_table([["a"], ["x|y"]], (0,)) == "| a |\n| --- |\n| x\\|y |"


def test_the_page_of_the_documentation_can_be_written() -> None:
    page = (DOCS / "benchmarks.md").read_text()
    assert with_measured(page, "x") != page
