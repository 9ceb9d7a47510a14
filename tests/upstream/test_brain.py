"""Whatever happens to pools of two fronts that share their apps: no app has too many, nothing is lost, nobody is left.

Hypothesis makes up what happens: requests come, leave, end and lose their app; apps come up and go down, are told to
one front sooner than to the other; a reload puts a pool in another's place.  After each step all that can happen has
happened, and then the laws below hold.  The apps are Unix sockets that listen and never accept: a connect is real, and
over at once.
"""

from __future__ import annotations

import socket
import tempfile
from collections import Counter
from pathlib import Path

import trio
import trio.testing
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from frontd.model.errors import FrontdError, Reason
from frontd.upstream.balance import Place
from frontd.upstream.client import Address, Dialect
from frontd.upstream.lease import Lease
from frontd.upstream.pool import Pool
from frontd.upstream.targets import Target
from tests.upstream.parts import settings as pool_settings
from tests.upstream.test_permits import Fronts
from tests.wire import settled

FRONTS, APPS, LIMIT = 2, 2, 8
EVER = 1e6  # s that a request may wait: in these plays nobody is sent away for that

FRONT, APP = st.integers(0, FRONTS - 1), st.integers(0, APPS - 1)
WHICH = st.integers(0, 30)
Step = tuple[str, object, object]
Limits = dict[int, int]  # of apps
COME: st.SearchStrategy[Step] = st.tuples(st.just("come"), FRONT, st.sampled_from((3, 3, 3, 0, 7)))
END: st.SearchStrategy[Step] = st.tuples(st.just("end"), WHICH, st.booleans())
TELL: st.SearchStrategy[Step] = st.tuples(st.just("tell"), FRONT, st.frozensets(APP, min_size=1))
SELDOM: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.sampled_from(("leave", "lose")), WHICH, st.none()),
    st.tuples(st.just("tell"), FRONT, st.just(frozenset())),
    st.tuples(st.sampled_from(("off", "reload")), FRONT, st.none()),
    st.tuples(st.sampled_from(("down", "up")), APP, st.none()),
    st.tuples(st.just("time"), st.sampled_from((0.06, 0.5, 1.1)), st.none()),
)
STEPS = st.one_of(COME, COME, COME, END, END, END, TELL, SELDOM)



class Request:
    """One request: what it has, what is to become of it, and how it ended."""

    def __init__(self, number: int, pool: Pool, urgency: int) -> None:
        self.number, self.pool, self.urgency = number, pool, urgency
        self.scope = trio.CancelScope()
        self.lease: Lease | None = None
        self.told = trio.Event()
        self.word = ""
        self.is_over = False
        self.again = False
        self.reason: Reason | None = None

    @property
    def rank(self) -> tuple[int, int]:
        return self.urgency, 0 if self.again else self.number

    @property
    def waits(self) -> bool:
        return self.lease is None and not self.is_over

    async def live(self) -> None:
        """As the pipeline does it, without the bytes."""
        self.pool.exchanges += 1
        try:
            with self.scope:
                while self.word in ("", "lose"):
                    await self.one_try()
        except FrontdError as error:
            self.reason = error.reason
        finally:
            self.pool.exchange_over()
            self.is_over = True

    async def one_try(self) -> None:
        nowait = None if self.again else self.pool.lease_nowait()
        lease = nowait or await self.pool.lease(5.0, urgency=self.urgency, again=self.again)
        self.lease = lease
        try:
            await self.told.wait()
            self.told = trio.Event()
        finally:
            self.lease = None
            if self.word == "lose":
                self.pool.app_gone(lease)
                self.again = True
            elif self.word == "kept":
                lease.give_back()
            else:
                lease.discard()

    def tell(self, word: str) -> None:
        self.word = word
        self.told.set()


class Play:
    """Two fronts, their apps, and everybody who asks.  `concurrency` is the pool's, `limits` what some apps say."""

    def __init__(
        self, where: Path, concurrency: int | None, limits: Limits, nursery: trio.Nursery, clock: trio.testing.MockClock
    ) -> None:
        self.where, self.nursery, self.clock = where, nursery, clock
        self.fronts = Fronts(FRONTS)
        self.concurrency, self.limits = concurrency, limits
        self.apps: dict[int, socket.socket] = {}
        self.requests: list[Request] = []
        self.pools: list[list[Pool]] = [[] for _ in range(FRONTS)]  # those replaced, then the one that stands
        self.known: list[tuple[frozenset[int], str]] = [(frozenset((0,)), "")] * FRONTS
        for app in range(APPS):
            self.up(app)
        for front in range(FRONTS):
            self.reload(front)

    # --- what happens

    def come(self, front: int, urgency: int) -> None:
        request = Request(len(self.requests) + 1, self.pools[front][-1], urgency)
        self.requests.append(request)
        self.nursery.start_soon(request.live)

    def holders(self) -> list[Request]:
        return [one for one in self.requests if one.lease is not None]

    def end(self, which: int, kept: bool) -> None:
        if found := self.holders():
            found[which % len(found)].tell("kept" if kept else "gone")

    def lose(self, which: int, _: object) -> None:
        if found := self.holders():
            found[which % len(found)].tell("lose")

    def leave(self, which: int, _: object) -> None:
        if found := [one for one in self.requests if not one.is_over]:
            found[which % len(found)].scope.cancel()

    def tell(self, front: int, apps: frozenset[int]) -> None:
        self.say(front, apps, "")

    def off(self, front: int, _: object) -> None:
        self.say(front, frozenset(), "out of service")

    def say(self, front: int, apps: frozenset[int], off: str) -> None:
        self.known[front] = apps, off
        for pool in self.pools[front]:
            addresses = {app: Address(self.path(app), 0) for app in sorted(apps)}
            pool.told([*addresses.values()], off, {addresses[app]: self.limits[app] for app in apps & set(self.limits)})

    def limit(self, app: int) -> int | None:
        return self.limits.get(app, self.concurrency)

    def path(self, app: int) -> str:
        return str(self.where / f"{app}.sock")

    def up(self, app: int, _: object = None) -> None:
        if app not in self.apps:
            self.apps[app] = sock = socket.socket(socket.AF_UNIX)
            Path(self.path(app)).unlink(missing_ok=True)
            sock.bind(self.path(app))
            sock.listen(4096)

    def down(self, app: int, _: object = None) -> None:
        if app in self.apps:
            self.apps.pop(app).close()

    def reload(self, front: int, _: object = None) -> None:
        told = Target("workers", "", 0, Dialect())
        wanted = pool_settings(
            told=told, concurrency=self.concurrency, queue_limit=LIMIT, queue_wait=EVER + len(self.requests)
        )
        pool = Pool(wanted, self.fronts.slots[front])
        pools = [one for one in self.pools[front] if not one.is_over]
        if pools:
            pools[-1].retire()
        self.pools[front] = [*pools, pool]
        self.nursery.start_soon(pool.run)
        apps, off = self.known[front]
        self.say(front, apps, off)

    def time(self, seconds: float, _: object) -> None:
        self.clock.jump(seconds)

    # --- what must be true of it

    def check(self) -> None:
        self.check_places()
        self.check_queues()
        self.check_nobody_is_forgotten()

    def check_places(self) -> None:
        """No app has more than its places, over both fronts; each lease holds one permit, and nothing else does."""
        held = Counter(str(one.lease.place.address) for one in self.holders() if one.lease is not None)
        for app in range(APPS):
            assert held[f"unix:{self.path(app)}"] <= (self.limit(app) or len(self.requests)), held
        for pools in self.pools:
            mine: Counter[int] = Counter()
            for one in self.holders():
                assert one.lease is not None
                if one.pool in pools:
                    mine[id(one.lease.place.permits)] += 1
            for place in [place for pool in pools for place in (*pool.leaving, *pool.places)]:
                if place.permits is not None:
                    assert place.permits.held == mine[id(place.permits)], place
                    assert place.permits.total() == held[str(place.address)], place
                assert place.gone is not any(place in pool.places for pool in pools)
                assert not (place.gone and place.idle), place
                assert place.active == sum(one.lease is not None and one.lease.place is place for one in self.requests)

    def check_queues(self) -> None:
        """Who waits is counted, once, and everywhere."""
        waiting = [one for one in self.requests if one.waits]
        total = sum(len(pool.queue) for pools in self.pools for pool in pools)
        assert total == len(waiting)
        for pools in self.pools:
            assert pools[-1].queue.counter.total() == total
            for pool in pools:
                ranks = [waiter.rank for waiter in pool.queue.waiters]
                assert ranks == sorted(ranks)

    def check_nobody_is_forgotten(self) -> None:
        """Nobody waits for an app that is in rotation and has a place free."""
        for (_, off), pools in zip(self.known, self.pools, strict=True):
            assert not off or not any(len(pool.queue) for pool in pools)
        for pool in [pool for pools in self.pools for pool in pools if len(pool.queue)]:
            for place in pool.places:
                assert place.is_out or is_full(place), (pool, place)

    def check_order(self, before: list[Request], served: list[Request]) -> None:
        """Of those who waited in a pool, none was served before one of a better rank."""
        for pool in {one.pool for one in served}:
            last = max(one.rank for one in served if one.pool is pool)
            assert all(one.rank >= last for one in before if one.pool is pool and one.waits), pool

    async def step(self, what: str, first: object, second: object) -> None:
        before = [one for one in self.requests if one.waits]
        is_calm = len(self.apps) == APPS and not any(
            place.is_out for pools in self.pools for pool in pools for place in pool.places
        )
        getattr(self, what)(first, second)
        await settled()
        self.check()
        if is_calm and what not in ("lose", "down"):  # else somebody may be on the way back from a connect
            self.check_order(before, [one for one in before if one.lease is not None])

    async def to_the_end(self) -> None:
        """All apps are there, told to both, and finish what they have: then everybody is served."""
        for app in range(APPS):
            self.up(app)
        for front in range(FRONTS):
            self.tell(front, frozenset(range(APPS)))
        for _ in range(40):
            if all(one.is_over for one in self.requests):
                break
            await settled()
            for one in self.holders():
                one.tell("gone")
            await settled()
            self.clock.jump(1.1)  # the next probe
        await settled()
        assert all(one.is_over for one in self.requests)
        self.check()
        for front in range(FRONTS):
            self.reload(front)  # those that were replaced end
        await settled()
        assert all(pool.is_over for pools in self.pools for pool in pools[:-1])
        for place in self.pools[0][-1].places:  # every permit is there, and not one more
            if (permits := place.permits) is not None:
                assert [permits.take() for _ in range(permits.limit + 1)] == [True] * permits.limit + [False]
                for _ in range(permits.limit):
                    permits.give()


def is_full(place: Place) -> bool:
    return place.permits is not None and place.permits.total() >= place.permits.limit


async def played(where: Path, concurrency: int | None, limits: Limits, steps: list[Step]) -> None:
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    play: Play | None = None
    try:
        async with trio.open_nursery() as nursery:
            play = Play(where, concurrency, limits, nursery, clock)
            await settled()
            for step in steps:
                await play.step(*step)
            await play.to_the_end()
            nursery.cancel_scope.cancel()
    finally:
        if play is not None:
            for app in range(APPS):
                play.down(app)
            play.fronts.close()


# The other front, in which nobody waits any more, gives the place back: who waits here is to be told.
@example(1, {}, [("come", 0, 3), ("come", 0, 3), ("come", 1, 3), ("end", 0, False), ("end", 0, False)])
# Who waits for an app that is not there yet, in the pool that a reload has replaced.
@example(1, {}, [("tell", 0, frozenset()), ("come", 0, 3), ("reload", 0, None), ("tell", 0, frozenset((1,)))])
# An app that says how many it takes gives way to one that takes any number, while the other front is not told yet.
@example(None, {0: 1}, [("come", 0, 3), ("come", 1, 3), ("tell", 0, frozenset((1,))), ("come", 0, 3)])
# What was lost comes back before those who came while it ran.
@example(1, {}, [("come", 0, 3), ("come", 0, 3), ("come", 0, 0), ("lose", 0, None), ("end", 0, True)])
# An app that goes down with all its places taken, and comes up again.
@example(2, {}, [*[("come", 0, 3)] * 4, ("down", 0, None), ("lose", 0, None), ("up", 0, None), ("time", 1.1, None)])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from((1, 1, 2, None)), st.sampled_from(({}, {}, {0: 1}, {0: 1, 1: 2})),
    st.lists(STEPS, min_size=15, max_size=50),
)  # fmt: skip
def test_whatever_happens(concurrency: int | None, limits: Limits, steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory(prefix="frontd-") as where:
        trio.run(played, Path(where), concurrency, limits, steps, clock=trio.testing.MockClock())
