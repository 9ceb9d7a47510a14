"""frontd beside nginx, HAProxy and a plain trio + h11 proxy: `scripts/bench [--cases a,b] [--rounds N]`.

The proxies run on one core, load and origin on another, in the same run, in turns. Judged is the CPU time of the
proxy's processes for a request (read from /proc), as the ratio to nginx in the same round: requests per second of a
busy machine say little.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import figures, machine, page, tables
from bench.cases import GOALS
from bench.rounds import run
from bench.servers import STARTS, Stage, start_origin
from bench.tools import missing

ROOT = Path(__file__).parent.parent


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="cases:\n" + listed(),
    )
    parser.add_argument("--cases", metavar="A,B", default="", help="only these (default: all)")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds (default 7)")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each server in a round (default 2)")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 1 s")
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead of tables")
    parser.add_argument(
        "--write-docs",
        action="store_true",
        help="write the figures of all cases into docs/benchmarks.md, with a picture",
    )
    parser.add_argument("--strict", action="store_true", help="exit code 1 when a must is missed or a case is invalid")
    parser.add_argument(
        "--frontd",
        metavar="PATH",
        default=os.environ.get("FRONTD_BENCH_FRONTD", ""),
        help="another frontd to be measured (default: $FRONTD_BENCH_FRONTD, else the one of .venv)",
    )
    parser.add_argument(
        "--beside",
        metavar="NAME=PATH",
        action="append",
        default=[],
        help="one more frontd in the same rounds, to compare two versions; the goals are those of the first",
    )
    parser.add_argument(
        "--extra",
        metavar="NAME=COMMAND",
        action="append",
        default=[],
        help="one more proxy in the cases proxied and headers; {port} and {origin} in its command are replaced",
    )
    parser.add_argument(
        "--nginx-log",
        metavar="PARAMETERS",
        default="",
        help="more parameters of nginx's access_log, such as 'buffer=64k flush=1s' (default: none, as Debian has it)",
    )
    return parser.parse_args()


def listed() -> str:
    """The goals as a table."""
    rows = [["id", "what", "must", "aim"]]
    rows += [
        [goal.id, goal.what, tables.limit(goal, goal.must), tables.limit(goal, goal.aim)] for goal in GOALS
    ]
    return tables.table(rows, (0, 1))


def chosen(text: str) -> list[str]:
    """The ids of `--cases`, or all.

    Raises:
        SystemExit: there is no such case.
    """
    known = [goal.id for goal in GOALS]
    ids = [one.strip() for one in text.split(",") if one.strip()] or known
    if unknown := [one for one in ids if one not in known]:
        raise SystemExit(f"scripts/bench: there is no case {', '.join(unknown)}; there are {', '.join(known)}")
    return ids


def named(given: Sequence[str], option: str) -> dict[str, str]:
    """The values of an option `NAME=VALUE` by name.

    Raises:
        SystemExit: one is not of this form, or its name is taken.
    """
    found = {}
    for one in given:
        name, sign, value = one.partition("=")
        if not (name and sign and value) or "/" in name or name in STARTS or name in found:
            raise SystemExit(f"scripts/bench: {option} {one}: write NAME=VALUE with a name of its own")
        found[name] = value
    return found


def end(number: int, frame: object) -> None:
    """SIGTERM ends the run like Ctrl-C, so that the servers end with it."""
    raise SystemExit(128 + number)


def main() -> int:
    """Run what was asked for and print it; the exit code."""
    options = arguments()
    signal.signal(signal.SIGTERM, end)
    if options.list:
        print(listed())
        return 0
    ids = chosen(options.cases)
    if options.write_docs and (options.cases or options.extra or options.beside):
        raise SystemExit("scripts/bench: --write-docs is for a run of all cases, without further proxies")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("scripts/bench: skipped: proxies and load need a core each, there is one", file=sys.stderr)
        return 0
    if absent := missing(["nginx"]):
        print(f"scripts/bench: skipped: nginx is the origin; not here: {absent[0]}", file=sys.stderr)
        return 0
    rounds = options.rounds or (3 if options.quick else 7)
    seconds = options.seconds or (1.0 if options.quick else 2.0)
    frontd = options.frontd or str(Path(sys.executable).with_name("frontd"))
    extra = named(options.extra, "--extra")
    beside = {name: tuple(shlex.split(path)) for name, path in named(options.beside, "--beside").items()}
    with tempfile.TemporaryDirectory(prefix="frontd-bench-") as folder:
        stage = Stage(
            folder=Path(folder),
            proxy_core=cores[-1],
            load_core=cores[0],
            frontd=tuple(shlex.split(frontd)),
            nginx_log=options.nginx_log,
            extra=extra,
            beside=beside,
        )
        os.sched_setaffinity(0, {stage.load_core})
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        origin = start_origin(stage)
        try:
            results = run(stage, ids, rounds, seconds)
            about = machine.described(stage.frontd)
        finally:
            origin.close()
    how = f"{rounds} rounds of {seconds:g} s"
    verdicts = results.verdicts(ids)
    if options.json:
        found = {"machine": about, "run": how, **figures.as_json(results.measured, verdicts)}
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print(tables.report(results.measured, verdicts))
        print(f"\n{'; '.join(f'{name} {value}' for name, value in about.items())}; {how}")
    if options.write_docs:
        page.write(ROOT / "docs", results.measured, verdicts, about, how)
    return int(options.strict and any(verdict.reached in ("missed", "invalid") for verdict in verdicts))


if __name__ == "__main__":
    raise SystemExit(main())
