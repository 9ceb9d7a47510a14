"""The show of `frontd demo`: an app is killed and comes back while clients keep asking, and no request fails.

How it works: `CLIENTS` threads, each with one keep-alive connection, ask for a page, wait `PAUSE`, ask again.  The main
thread kills the app and starts it again (it has to be the main thread, see `children`).  A request counts as failed
when it has no answer or one that is not 200.  What is printed was measured.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from frontd.cli.demo_world import World

CLIENTS = 4
PAUSE = 0.01  # seconds between an answer and the next request
# Seconds: calm; the app gone, to which the quarter second that it needs to start is added; calm again.
BEFORE, AWAY, AFTER = 1.0, 1.25, 1.0


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


def run_show(world: World, say: Callable[[str], None]) -> Result:
    """Run the show on a world and tell what happens, line by line."""
    result, over, lock = Result(), threading.Event(), threading.Lock()
    context = ssl.create_default_context(cafile=str(world.ca))
    clients = [
        threading.Thread(target=_client, args=(world.https_port, context, over, result, lock), daemon=True)
        for _ in range(CLIENTS)
    ]
    began = time.monotonic()

    def tell(what: str) -> None:
        say(f"{time.monotonic() - began:4.1f} s  {what}")

    try:
        for client in clients:
            client.start()
        tell(f"{CLIENTS} clients ask for pages, one after another")
        time.sleep(BEFORE)
        world.kill_app("app")
        with lock:
            tell(f"the app is killed (SIGKILL) after {result.requests} requests; now requests wait in the queue")
        time.sleep(AWAY)
        tell("the app is started again")
        world.start_app("app")
        tell("the app listens")
        time.sleep(AFTER)
    finally:
        over.set()
    for client in clients:
        client.join()
    tell("the clients stop")
    return result


def _client(port: int, context: ssl.SSLContext, over: threading.Event, result: Result, lock: threading.Lock) -> None:
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=20)
    try:
        while not over.wait(PAUSE):
            began = time.monotonic()
            problem = ""
            try:
                connection.request("GET", "/page")
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
