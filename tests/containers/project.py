"""A compose project under a name of its own, driven by the real `docker compose`, and GETs that run beside it."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def run(
    *command: str, settings: Mapping[str, str] = MappingProxyType({}), check: bool = True, patience: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository, with `settings` added to the environment, for at most `patience` s.

    With `check` a failure raises AssertionError and shows both of its outputs.
    """
    environ = {**os.environ, **settings}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=patience, check=False
    )
    assert not check or done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@dataclass(frozen=True)
class Project:
    """compose.yaml under the project name `name`, with `settings` for its variables."""

    name: str
    settings: Mapping[str, str]

    def compose(
        self, *arguments: str, check: bool = True, patience: float = 240
    ) -> subprocess.CompletedProcess[str]:
        command = ("docker", "compose", "-p", self.name, "-f", "compose.yaml", *arguments)
        return run(*command, settings=self.settings, check=check, patience=patience)

    def port(self, inside: int) -> int:
        """The port of 127.0.0.1 that is published for frontd's port `inside`; another one after each of its starts."""
        return int(self.compose("port", "frontd", str(inside)).stdout.rpartition(":")[2])

    def containers(self, service: str) -> list[dict[str, Any]]:
        """`docker inspect` of the containers of `service`, stopped ones too."""
        ids = self.compose("ps", "--all", "--quiet", service).stdout.split()
        found: list[dict[str, Any]] = json.loads(run("docker", "inspect", *ids).stdout) if ids else []
        return found

    def hostnames(self, service: str) -> set[str]:
        """What the running containers of `service` call themselves, as the sample app shows it."""
        return {one["Config"]["Hostname"] for one in self.containers(service) if one["State"]["Running"]}

    def scale(self, service: str, count: int) -> None:
        self.compose("up", "-d", "--no-recreate", "--no-deps", "--wait", "--scale", f"{service}={count}", service)

    def frontd(self, *arguments: str) -> str:
        """The stdout of a frontd command inside its container."""
        return self.compose("exec", "-T", "frontd", "frontd", *arguments).stdout

    def python(self, source: str) -> str:
        """What `source` prints inside frontd's container, which has no curl, ps or hostname."""
        return self.compose("exec", "-T", "frontd", "python", "-c", source).stdout.strip()

    def pool(self, name: str) -> dict[str, Any]:
        """The pool's part of `frontd status`."""
        pools = json.loads(self.frontd("status", "--json"))["pools"]
        found: dict[str, Any] = next(pool for pool in pools if pool["name"] == name)
        return found


class Https(http.client.HTTPSConnection):
    """A connection to the published port of 127.0.0.1 that says `localhost` in SNI and Host."""

    def __init__(self, port: int, context: ssl.SSLContext, timeout: float = 60) -> None:
        super().__init__("localhost", port, timeout=timeout, context=context)
        self.tls = context

    def connect(self) -> None:
        raw = socket.create_connection(("127.0.0.1", self.port), self.timeout)
        self.sock = self.tls.wrap_socket(raw, server_hostname=self.host)


Connect = Callable[[], http.client.HTTPConnection]


def fetch(connection: http.client.HTTPConnection, path: str = "/") -> tuple[int, str]:
    """Status and body of one GET; the connection is closed."""
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def answered_by(page: str) -> tuple[str, str]:
    """Service and host name of the container that made this page of the sample app."""
    found = re.search(r"'(\w+) in (\w+)'", page)
    assert found, page
    return found[1], found[2]


@dataclass
class Load:
    """What became of the GETs: `failed` has each answer that was not 200 and each exception, `by` counts the answers of
    each host name, `longest` is the longest wait for an answer in seconds."""

    answered: int = 0
    longest: float = 0.0
    failed: list[str] = field(default_factory=list)
    by: Counter[str] = field(default_factory=Counter)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def get(self, connection: http.client.HTTPConnection) -> None:
        started = time.monotonic()
        host = failure = ""
        try:
            connection.request("GET", "/")
            answer = connection.getresponse()
            page = answer.read().decode()
            if answer.status == 200:
                host = answered_by(page)[1]
            else:
                failure = f"{answer.status} {page[:300]}"
        except (OSError, http.client.HTTPException) as problem:
            connection.close()
            failure = f"{type(problem).__name__}: {problem}"
        waited = time.monotonic() - started
        with self.changed:
            if failure:
                self.failed.append(f"{failure} (after {waited:.3f} s)")
            else:
                self.answered += 1
                self.by[host] += 1
                self.longest = max(self.longest, waited)
            self.changed.notify_all()

    def goes_on(self, answers: int) -> None:
        """Return after so many further answers, or at the first failure; AssertionError when it takes over 60 s."""
        with self.changed:
            goal = self.answered + answers
            assert self.changed.wait_for(lambda: self.answered >= goal or self.failed, 60), "no answer comes any more"


@contextmanager
def load(connect: Connect, workers: int = 8) -> Iterator[Load]:
    """GETs from `workers` threads while the block runs, and some before and after it.  Every second thread keeps its
    connection, the others make one for each GET."""
    result = Load()
    over = threading.Event()

    def work(keep: bool) -> None:
        connection = connect()
        while not over.is_set():
            result.get(connection)
            if not keep:
                connection.close()
        connection.close()

    threads = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    try:
        result.goes_on(50 * workers)
        yield result
        result.goes_on(50 * workers)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    counts = f"{result.answered} GETs, {len(result.failed)} failed"
    print(f"{counts}, longest wait {result.longest:.2f} s, answered by {dict(result.by)}")


def until(condition: Callable[[], bool], what: str, timeout: float = 60) -> None:
    """Ask a real engine again and again until `condition` holds; AssertionError that names `what` after `timeout` s."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout:g} s"
        time.sleep(0.1)
