"""A front of its own process that has nothing but one pool: it holds leases, or asks as fast as it gets them.

Its arguments: `index` and `fronts`, `port` of the app, `concurrency`, what it does ("hold" or "ask"), `clients` at a
time, `goal`, and the descriptors of `SharedFds`.  It says "ready", begins when it is told so, says what it did, and
ends with its stdin.
"""

from __future__ import annotations

import sys

import trio

from frontd.net.shared import Counter, Slots
from frontd.upstream.lease import Lease
from frontd.upstream.pool import Pool
from tests.upstream.parts import ask, settings, take, target


async def ask_until(pool: Pool, served: Counter, goal: int) -> None:
    """One exchange after the other until all fronts together have had `goal`."""
    while served.total() < goal:
        await ask(await take(pool))
        served.add(1)
        await trio.lowlevel.checkpoint()  # the next request has to be read first


async def work(pool: Pool, what: str, clients: int, goal: int, served: Counter, held: list[Lease]) -> None:
    """Do `what` with the hands of the pool at work."""
    async with trio.open_nursery() as hands:
        hands.start_soon(pool.run)
        if what == "hold":
            held += [await take(pool) for _ in range(clients)]
            print("held", flush=True)
            await trio.to_thread.run_sync(sys.stdin.readline)  # until the end, or until it is killed
        else:
            async with trio.open_nursery() as nursery:
                for _ in range(clients):
                    nursery.start_soon(ask_until, pool, served, goal)
        hands.cancel_scope.cancel()


def main() -> None:
    """See the module's text."""
    index, fronts, port, concurrency = map(int, sys.argv[1:5])
    what, (clients, goal, fd, *eventfds) = sys.argv[5], map(int, sys.argv[6:])
    slots = Slots(fd, index, fronts, eventfds)
    pool = Pool(settings(target("127.0.0.1", port), concurrency=concurrency), slots)
    served, held = slots.counter("served"), list[Lease]()
    print("ready", flush=True)
    sys.stdin.readline()
    trio.run(work, pool, what, clients, goal, served, held)
    print(served.mine, flush=True)
    sys.stdin.readline()  # its part of the sum stays until all have seen it


if __name__ == "__main__":
    main()
