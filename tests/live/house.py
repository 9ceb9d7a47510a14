"""A real front as a child process, with TLS, and the sample app behind it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from frontd.cli.children import spawn, stop
from frontd.cli.devca import DevCertificate, ensure

PACKAGES = {"curl": "curl", "chromium": "chromium", "certutil": "libnss3-tools", "ntlm_auth": "winbind"}


def tool(name: str) -> str:
    """The path of a program; without it the test is skipped by name, or fails where the environment says CI."""
    path = shutil.which(name)
    if path is None:
        say = f"{name} is not installed (apt-get install {PACKAGES[name]})"
        if os.environ.get("CI"):
            pytest.fail(say, pytrace=False)
        pytest.skip(say)
    return path


class Child:
    """A process of ours; `said` are the lines of its stderr so far, read by a thread so that no pipe fills up."""

    def __init__(self, *arguments: str, stdout: int = subprocess.DEVNULL) -> None:
        self.began = time.monotonic()
        self.process = spawn([sys.executable, "-m", *arguments], stdout=stdout, stderr=subprocess.PIPE)
        self.said: list[str] = []
        self._more = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Also the process that was started: the guard of `spawn` becomes it."""
        return self.process.pid

    def _read(self) -> None:
        assert self.process.stderr is not None
        for raw in self.process.stderr:
            with self._more:
                self.said.append(raw.decode().rstrip("\n"))
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    def wait_for(self, pattern: str, seconds: float = 20.0) -> str:
        """The first line of stderr in which `pattern` is found."""

        def line() -> str | None:
            return next((text for text in self.said if re.search(pattern, text)), None)

        with self._more:
            self._more.wait_for(lambda: line() is not None or self._ended, seconds)
            found = line()
        assert found is not None, f"no {pattern!r} on stderr: {self.said}"
        return found

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal that ends it; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(20)

    def close(self) -> None:
        """End it, however it is."""
        stop([self.process])
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    # --- memory

    def reset_peak(self) -> int:
        """Forget the peak of resident memory; the resident memory now, in bytes (proc(5): clear_refs, VmHWM)."""
        for pid in self._family():
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        return self.peak()

    def peak(self) -> int:
        """The peaks of resident memory since `reset_peak`, of the process and its children together, in bytes."""
        found = [re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()) for pid in self._family()]
        return sum(int(match[1]) * 1024 for match in found if match is not None)

    def _family(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]


@contextmanager
def sample_app(name: str = "sample") -> Iterator[str]:
    """A running sample app; its URL."""
    process = spawn(
        [sys.executable, "-m", "frontd.cli.sample_app", "--port", "0", "--name", name], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().decode().split(": ")[1].strip()
    finally:
        stop([process])


CONFIG = """
state_dir: {state}
control: {{socket: {state}/control.sock}}
listen: {{http: {{port: 0}}, https: {{port: 0}}}}
tls: {{certificates: [{{cert: {cert}, key: {key}}}], default: localhost}}
limits: {{max_body: none}}
timeouts: {{drain: 1s}}
sites:
  main:
    urls: ["https://localhost/", "http://localhost/"]
    routes: {{/: app}}
  small:
    urls: ["https://small.localhost/"]
    routes: {{/: app}}
    limits: {{max_body: 1MiB}}
pools:
  app: {{targets: ["{target}"]}}
log: {log}
"""


@dataclass
class House:
    """A front that is ready: where it listens, what its clients trust, where its files are."""

    child: Child
    state: Path
    certificate: DevCertificate
    http_port: int
    https_port: int
    context: ssl.SSLContext = field(init=False)

    def __post_init__(self) -> None:
        self.context = ssl.create_default_context(cafile=self.ca)

    @property
    def ca(self) -> str:
        return str(self.certificate.ca)

    @property
    def access_log(self) -> Path:
        return self.state / "access.log"

    def logged(self, path: str) -> list[dict[str, object]]:
        """The lines of the access log for `path`, once there are any: the writer is a moment behind the answers."""
        for _ in range(2000):
            lines = [json.loads(line) for line in self.access_log.read_text().splitlines()]
            if found := [line for line in lines if line["path"] == path]:
                return found
            time.sleep(0.01)
        raise AssertionError(f"no line for {path}")

    def port(self, scheme: str) -> int:
        return self.https_port if scheme == "https" else self.http_port

    def url(self, path: str = "/", scheme: str = "https", host: str = "localhost") -> str:
        return f"{scheme}://{host}:{self.port(scheme)}{path}"

    def curl(
        self, *arguments: str, data: bytes | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """Run curl, which trusts the CA and nothing else, and knows no configuration of its user."""
        command = [tool("curl"), "-q", "-sS", "--cacert", self.ca, "--noproxy", "*", "--max-time", "60", *arguments]
        done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=70)
        assert done.returncode == 0 or not check, done.stderr.decode()
        return done


@contextmanager
def front(state: Path, target: str, log: str = "", stdout: int = subprocess.DEVNULL) -> Iterator[House]:
    """A running `frontd serve` in front of `target`; `log` is what stands under that key of its configuration."""
    state.mkdir(exist_ok=True)
    certificate = ensure(state, "small.localhost")
    config = state / "frontd.yaml"
    log = log or f"{{access: {{to: {state}/access.log, format: json}}, error: {state}/error.log}}"
    config.write_text(CONFIG.format(state=state, cert=certificate.cert, key=certificate.key, target=target, log=log))
    child = Child("frontd", "serve", "-c", str(config), stdout=stdout)
    try:
        ready = child.wait_for("^frontd ready: ")
        ports = {kind: int(port) for kind, port in re.findall(r"(https?) on \S*?:(\d+)", ready)}
        yield House(child, state, certificate, ports["http"], ports["https"])
    finally:
        child.close()
