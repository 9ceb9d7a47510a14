"""The shows of `frontd demo`: apps are killed and replaced while clients keep asking, and no request fails.

How it works: `CLIENTS` threads, each with one keep-alive connection, ask for a page, wait `PAUSE`, ask again.  The main
thread kills the app and starts it again (it has to be the main thread, see `children`).  In the second show the app is
frontd's own worker: frontd starts it again by itself, and replaces it.  A request counts as failed when it has no
answer or one that is not 200.  What is printed was measured.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from frontd.cli.common import Failure
from frontd.cli.demo_world import World

CLIENTS = 4
PAUSE = 0.01  # seconds between an answer and the next request
# Seconds: calm; the app gone, to which the quarter second that it needs to start is added; calm again.
BEFORE, AWAY, AFTER = 1.0, 1.25, 1.0
CALM = 0.4  # seconds between two things that happen to the worker
PATIENCE = 15.0  # seconds that a worker may take to start, on a loaded machine


@dataclass(slots=True)
class Result:
    """What the clients saw; `longest` in seconds; `failures` counts each kind of failure by its text."""

    requests: int = 0
    longest: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    def __str__(self) -> str:
        return f"{self.requests} requests, {self.failed} failed, longest wait {self.longest:.1f} s"


Tell = Callable[[str], None]


def run_show(world: World, say: Tell) -> Result:
    """Kill an app and start it again, and tell what happens, line by line."""
    with _clients(world, "/page", say) as (result, tell):
        time.sleep(BEFORE)
        world.kill_app("app")
        tell(f"the app is killed (SIGKILL) after {result.requests} requests; now requests wait in the queue")
        time.sleep(AWAY)
        tell("the app is started again")
        world.start_app("app")
        tell("the app listens")
        time.sleep(AFTER)
    return result


def run_worker_show(world: World, say: Tell) -> Result:
    """Kill the worker that frontd runs itself, then have it replaced; tell what happens.  Raises `Failure`."""
    with _clients(world, "/worker/page", say) as (result, tell):
        first = _another_worker(world, 0)
        tell(f"worker {first} answers; nobody but frontd has started it")
        time.sleep(CALM)
        os.kill(first, signal.SIGKILL)
        tell(f"it is killed (SIGKILL) after {result.requests} requests; now requests wait in the queue")
        second = _another_worker(world, first)
        tell(f"worker {second} answers")
        time.sleep(CALM)
        tell("frontd pool recycle worker: another one is to take its place")
        world.recycle()
        third = _another_worker(world, second)
        tell(f"worker {third} answers; the old one had its place until now")
        time.sleep(CALM)
    return result


def _another_worker(world: World, before: int) -> int:
    """Wait for a worker that gets requests and is not `before`.  Raises `Failure`."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for pid in world.workers():
            if pid != before:
                return pid
        time.sleep(0.03)
    raise Failure(f"no worker was ready within {PATIENCE:.0f} s")


@contextlib.contextmanager
def _clients(world: World, path: str, say: Tell) -> Iterator[tuple[Result, Tell]]:
    """Clients that ask for `path` until the block ends; what they see, and how to tell something with the time."""
    result, over, lock = Result(), threading.Event(), threading.Lock()
    context = ssl.create_default_context(cafile=str(world.ca))
    clients = [
        threading.Thread(target=_client, args=(world.https_port, path, context, over, result, lock), daemon=True)
        for _ in range(CLIENTS)
    ]
    began = time.monotonic()

    def tell(what: str) -> None:
        say(f"{time.monotonic() - began:4.1f} s  {what}")

    try:
        for client in clients:
            client.start()
        tell(f"{CLIENTS} clients ask for pages, one after another")
        yield result, tell
    finally:
        over.set()
    for client in clients:
        client.join()
    tell("the clients stop")


def _client(
    port: int, path: str, context: ssl.SSLContext, over: threading.Event, result: Result, lock: threading.Lock
) -> None:
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=20)
    try:
        while not over.wait(PAUSE):
            began = time.monotonic()
            problem = ""
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    problem = f"{response.status} {response.reason}"
            except (OSError, http.client.HTTPException) as error:
                problem = str(error) or type(error).__name__
                connection.close()
            with lock:
                result.requests += 1
                result.longest = max(result.longest, time.monotonic() - began)
                if problem:
                    result.failures[problem] += 1
    finally:
        if isinstance(connection.sock, ssl.SSLSocket):
            with contextlib.suppress(OSError):
                connection.sock.unwrap()  # http.client does not say goodbye; the log would call it a dropped connection
        connection.close()
