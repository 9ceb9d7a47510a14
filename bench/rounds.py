"""Running the cases: servers started for each case, rounds interleaved, the order turned by one in each round."""

from __future__ import annotations

import http.client
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from bench.cases import CASES, GOALS, Case
from bench.figures import Sample, Series, Verdict, judge
from bench.processes import Running, StartError
from bench.servers import STARTS, Stage, start_extra, start_frontd
from bench.tools import ToolError, missing

WARM_UP = 1.0  # s


@dataclass
class Results:
    """What a run found, by case and server; the cases that were skipped with the reason."""

    measured: dict[str, dict[str, Series]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def verdicts(self, ids: Sequence[str]) -> list[Verdict]:
        """The goals of these ids."""
        return [
            judge(goal, self.measured.get(goal.case), self.skipped.get(goal.case, ""))
            for goal in GOALS
            if goal.id in ids
        ]


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def run(stage: Stage, ids: Sequence[str], rounds: int, seconds: float) -> Results:
    """Measure what the goals of these ids need."""
    results = Results()
    needed = {goal.case for goal in GOALS if goal.id in ids}
    for case in CASES.values():
        if case.id not in needed:
            continue
        absent = missing(case.tools)
        why = f"not here: {', '.join(absent)}" if absent else case.needs(stage)
        if why:
            results.skipped[case.id] = why
            say(f"{case.id}: skipped: {why}")
        else:
            results.measured[case.id] = run_case(stage, case, min(rounds, case.most_rounds), seconds)
    return results


def run_case(stage: Stage, case: Case, rounds: int, seconds: float) -> dict[str, Series]:
    """All rounds of one case."""
    also = [*(stage.beside if "frontd" in case.servers else ()), *(stage.extra if case.takes_extra else ())]
    names = [name for name in (*case.servers, *also) if not absent_tool(name)]
    for name in set(case.servers) - set(names):
        say(f"{case.id}: without {name}: {absent_tool(name)} is not here")
    measured = {name: Series() for name in names}
    last: dict[str, Running] = {}
    with ExitStack() as running_now:
        running: dict[str, Running] = {}
        if not case.fresh:
            for name in names:
                with failing_only(measured[name]):
                    running[name] = opened(stage, case, name, running_now)
        if case.prepare is not None:
            case.prepare(stage, list(running.values()))
        for at in range(rounds):
            turn = at % len(names)
            for name in names[turn:] + names[:turn]:
                if measured[name].failed:
                    continue
                with failing_only(measured[name]), ExitStack() as this_time:
                    server = opened(stage, case, name, this_time) if case.fresh else running[name]
                    measured[name].samples.append(case.measure(stage, server, seconds))
                    measured[name].peak_memory = max(measured[name].peak_memory, server.peak_memory())
                    last[name] = server
            say(f"{case.id} {at + 1}/{rounds}: {', '.join(progress(name, measured[name]) for name in names)}")
    for name, server in last.items():  # they have ended, so what they had to write is written
        if name not in stage.extra and not case.fresh and not measured[name].failed:
            measured[name].failed = missing_lines(server, sum(sample.requests for sample in measured[name].samples))
    return measured


def missing_lines(server: Running, requests: int) -> str:
    """What is wrong with the access log of a server that has ended; empty: it has a line for each request."""
    folder = server.output.parent
    log = folder / "access.log"
    if server.name == "haproxy":  # it writes to its standard output
        log = server.output
    with log.open("rb") as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    # A process that is ended by a signal may take one buffer of lines with it.
    return "" if lines >= requests * 0.99 - 200 else f"only {lines} lines in the access log for {requests} requests"


@contextmanager
def failing_only(series: Series) -> Iterator[None]:
    """What goes wrong with one server is written into its series and ends no other."""
    try:
        yield
    except (StartError, ToolError, OSError) as error:
        series.failed = str(error) or type(error).__name__


def absent_tool(name: str) -> str:
    """The tool this server needs and that is not here; empty: none."""
    needed = STARTS[name][1] if name in STARTS else ""
    return needed if needed and missing([needed]) else ""


def opened(stage: Stage, case: Case, name: str, closing: ExitStack) -> Running:
    """A server that was started, checked and warmed up.

    Raises:
        StartError: it did not start, or does not answer as it must.
        ToolError: the load failed.
    """
    cores = {stage.proxy_core, stage.load_core} if case.both_cores else {stage.proxy_core}
    begin = STARTS[name][0] if name in STARTS else start_frontd if name in stage.beside else start_extra
    running = begin(stage, name, cores)
    closing.callback(running.close)
    for path in case.paths:
        check_answer(running, path)
    if name not in stage.extra:
        check_forwarded_for(running)
    if case.warm:
        case.measure(stage, running, WARM_UP)
    return running


def ask(running: Running, *paths: str) -> list[tuple[int, bytes]]:
    """Status and body of each GET, all on one connection, so that one front answers them."""
    client, found = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20), []
    try:
        for path in paths:
            client.request("GET", path)
            answer = client.getresponse()
            found.append((answer.status, answer.read()))
            time.sleep(0.005)  # the origin's clock of ms goes on
        return found
    except http.client.HTTPException as error:
        raise StartError(f"{running.name} answers {paths} with {error!r}") from error
    finally:
        client.close()


def check_answer(running: Running, path: str) -> None:
    """A path answers; under /cached/ two answers are one.

    Raises:
        StartError: it does not.
    """
    [(status, body)] = ask(running, path)
    if status != 200:
        raise StartError(f"{running.name} answers {path} with {status}")
    if path.startswith("/cached/"):
        first, second = ask(running, "/cached/time", "/cached/time")
        if first != second:
            raise StartError(f"{running.name} does not keep /cached/time")
    elif path == "/1k" and len(body) != 1024:
        raise StartError(f"{running.name} answers {path} with {len(body)} bytes")


def check_forwarded_for(running: Running) -> None:
    """The origin is told the client's address.

    Raises:
        StartError: it is not.
    """
    seen = ask(running, "/seen")
    if seen != [(200, b"127.0.0.1")]:
        raise StartError(f"{running.name} sends another X-Forwarded-For: {seen}")


def progress(name: str, series: Series) -> str:
    """One server in the line of a round."""
    if series.failed:
        return f"{name}: {series.failed}"
    last: Sample = series.samples[-1]
    rate = f" ({last.rate:.0f}/s)" if last.rate else ""
    errors = f" {last.errors} ERRORS {last.detail}" if last.errors else ""
    return f"{name} {last.cost:.1f}{rate}{errors}"
