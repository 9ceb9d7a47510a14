"""What a storm of wrong passwords costs everybody else: `python -m bench.logon_storm [--wrong 1000]`.

A real `frontd serve` as a child process, with one site that asks for passwords (bcrypt of cost 10) and one that does
not, each in front of the sample app.  16 connections send wrong passwords as fast as they are answered, each from an
address of its own and nearly each time for another user, so that no throttle helps.  Meanwhile one connection asks the
open site for a page every 10 ms, on a schedule: a late answer makes the requests behind it late too, and that is
counted.

The storm comes in gusts, with a lull after each, so that whatever else the machine does is in both figures.  With
`--spin` there are lulls of a third kind: beside a process of low priority that hashes without frontd, which is what a
busy core costs on this machine whoever makes it busy.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import multiprocessing
import os
import re
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from frontd_plugins import _passwords as passwords

from tests.live.house import Child, sample_app

LIMIT = 20.0  # ms, the 99th percentile of the open site's answers during the storm
CONNECTIONS = 16
EVERY = 0.01  # s between two requests to the open site
GUST = 5  # wrong passwords of each connection in a gust
LULL = 3.0  # s

CONFIG = """
state_dir: {state}
control: {{socket: {state}/control.sock}}
listen: {{http: {{port: 0, address: 127.0.0.1}}}}
sites:
  locked:
    urls: ["http://locked.localhost/"]
    routes: {{/: app}}
    plugins: [{{basic: {{users_file: {state}/users, allow_http: true}}}}]
  open: {{urls: ["http://open.localhost/"], routes: {{/: app}}}}
pools:
  app: {{targets: ["{target}"]}}
log: {{access: {state}/access.log, error: {state}/error.log}}
"""


def asking(port: int, times: list[float], over: threading.Event) -> None:
    """Ask the open site on a schedule; `times` are ms from when a request was due until its answer was there."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    due = time.perf_counter()
    while not over.is_set():
        time.sleep(max(0.0, due - time.perf_counter()))
        client.request("GET", "/healthz", headers={"Host": "open.localhost"})
        response = client.getresponse()
        response.read()
        assert response.status == 200, response.status
        times.append((time.perf_counter() - due) * 1000)
        due += EVERY
    client.close()


def blow(port: int, gust: int, number: int, answers: Counter[int]) -> None:
    """The wrong passwords of one connection in one gust, from an address of its own."""
    source = (f"127.0.7.{number + 1}", 0)
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60, source_address=source)
    for attempt in range(GUST):
        user = "demo" if attempt == 0 else f"user-{gust}-{attempt}"
        token = base64.b64encode(f"{user}:wrong {gust} {number} {attempt}".encode()).decode()
        client.request("GET", "/", headers={"Host": "locked.localhost", "Authorization": f"Basic {token}"})
        response = client.getresponse()
        response.read()
        answers[response.status] += 1
    client.close()


def measured(port: int, during: list[threading.Thread]) -> list[float]:
    """Times of the open site while the threads run; without any, for the time of a lull."""
    times: list[float] = []
    over = threading.Event()
    asker = threading.Thread(target=asking, args=(port, times, over))
    asker.start()
    for thread in during:
        thread.start()
    for thread in during:
        thread.join()
    if not during:
        time.sleep(LULL)
    over.set()
    asker.join()
    return times


def show(what: str, times: list[float]) -> float:
    """Print a row; the 99th percentile in ms."""
    cuts = statistics.quantiles(times, n=100)
    print(f"{what:24} p50 {cuts[49]:6.2f}  p99 {cuts[98]:6.2f}  worst {max(times):6.2f} ms  of {len(times)} requests")
    return cuts[98]


def spin() -> None:
    """Keep a core busy at the priority of the hashing threads."""
    os.nice(10)
    while True:
        passwords.verify("$2b$10$" + "." * 53, "x")


def main() -> int:
    """Print the table; 1 when the storm made the open site too slow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wrong", type=int, default=1000, help="wrong passwords (default 1000)")
    parser.add_argument("--spin", action="store_true", help="also measure beside a busy process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sample_app() as target:
        state = Path(folder)
        (state / "users").write_text(f"demo:{passwords.make('demo')}\n")
        (state / "frontd.yaml").write_text(CONFIG.format(state=state, target=target))
        child = Child("frontd", "serve", "-c", str(state / "frontd.yaml"))
        try:
            found = re.search(r"http on \S*?:(\d+)", child.wait_for("^frontd ready: "))
            assert found is not None
            port = int(found[1])
            gusts = -(-options.wrong // (CONNECTIONS * GUST))
            answers: Counter[int] = Counter()
            lull, blown, beside = list[float](), list[float](), list[float]()
            for gust in range(gusts):
                threads = [
                    threading.Thread(target=blow, args=(port, gust, number, answers)) for number in range(CONNECTIONS)
                ]
                blown += measured(port, threads)
                lull += measured(port, [])
                if options.spin:
                    busy = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
                    busy.start()
                    beside += measured(port, [])
                    busy.kill()
                    busy.join()
        finally:
            child.close()
    listed = ", ".join(f"{count} with {status}" for status, count in sorted(answers.items()))
    machine = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{answers.total()} wrong passwords, answered {listed}; {machine}\n")
    show("without the storm", lull)
    worst = show("with the storm", blown)
    if beside:
        show("beside a busy process", beside)
    print(f"\np99 during the storm: {worst:.2f} ms, limit {LIMIT:g} ms: {'ok' if worst < LIMIT else 'too slow'}")
    return int(worst >= LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
