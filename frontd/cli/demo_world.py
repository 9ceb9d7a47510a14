"""What `frontd demo` builds: three sample apps, a configuration file with plugins, frontd in front of them and a
fourth app that frontd starts itself.

Everything lies in ``<state_dir>/demo/`` (``demo-2`` and so on while another demo of this user runs: each holds a lock
on its folder).  All processes are children that end with this one (see `children`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from frontd.cli.children import spawn, stop
from frontd.cli.common import Failure, loopback_addresses, pick_port, state_dir_failure
from frontd.cli.demo_files import plugins_folder, static_folder, users_file, write_files
from frontd.cli.proxy import listeners, quoted

HTTPS_PORT, HTTP_PORT = 8443, 8080
APPS = ("app", "blue", "green")
START = 15.0  # seconds that a child may take to start, on a loaded machine
# -P: a folder named frontd in the current directory is not the package (python(1), sys.flags.safe_path).
PYTHON = (sys.executable, "-P")
WORKER = [*PYTHON, "-m", "frontd.cli.sample_app", "--name", "worker", "--uds", "{socket}"]
SOCKET_PATH_MAX = 107  # bytes, sun_path of unix(7) less the final NUL


@dataclass(slots=True)
class App:
    """One sample app: its name, its process, and the port it keeps over restarts."""

    name: str
    process: subprocess.Popen[bytes]
    port: int

    @property
    def target(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(slots=True)
class World:
    """All that stands while the demo runs."""

    folder: Path
    ca: Path
    https_port: int
    http_port: int
    control: Path
    dead_port: int
    apps: dict[str, App] = field(default_factory=dict)
    front: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        return self.folder / "frontd.yaml"

    @property
    def log(self) -> Path:
        return self.folder / "frontd.log"

    @property
    def url(self) -> str:
        return f"https://localhost:{self.https_port}"

    @property
    def http_url(self) -> str:
        return f"http://localhost:{self.http_port}"

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        front = [self.front] if self.front else []
        return [*front, *(app.process for app in self.apps.values())]

    def start_app(self, name: str) -> None:
        """Start a sample app, or start it again on the port it had.  Raises `Failure`."""
        self.launch_app(name)
        self.await_app(name)

    def launch_app(self, name: str) -> None:
        """The first half of `start_app`: the process is made."""
        port = self.apps[name].port if name in self.apps else 0
        process = spawn(
            [*PYTHON, "-m", "frontd.cli.sample_app", "--port", str(port), "--name", name],
            stdout=subprocess.PIPE,
        )
        self.apps[name] = App(name, process, port)

    def await_app(self, name: str) -> None:
        """The second half of `start_app`: the app listens.  Raises `Failure`."""
        process = self.apps[name].process
        assert process.stdout is not None
        with process.stdout as output:  # its first line says where it listens
            line = output.readline().decode()
        if not line.startswith("sample app"):
            raise Failure(f"the sample app {name!r} did not start (exit code {process.wait()})")
        self.apps[name].port = int(line.rpartition(":")[2])

    def workers(self) -> list[int]:
        """The processes of the app that frontd runs itself: those that get requests.  Raises `Failure`."""
        from frontd.cli.controlclient import call

        (pool,) = call(self.control, "GET", "/workers").data["pools"]
        return [worker["pid"] for worker in pool["workers"] if worker["state"] == "ready"]

    def recycle(self) -> None:
        """Have frontd replace them, as `frontd pool recycle worker` does.  Raises `Failure`."""
        from frontd.cli.controlclient import call

        call(self.control, "POST", "/pool/recycle?name=worker")

    def kill_app(self, name: str) -> None:
        """SIGKILL: the app has no chance to finish anything."""
        self.apps[name].process.kill()
        self.apps[name].process.wait()


@contextlib.contextmanager
def build() -> Iterator[World]:
    """A running world; stopped in under two seconds when the block ends, however it ends.  Raises `Failure`."""
    from frontd.cli.devca import ensure
    from frontd.config.places import default_state_dir, in_container

    state_dir = default_state_dir()
    with contextlib.ExitStack() as stack:
        try:
            certificate = ensure(state_dir)
            folder = stack.enter_context(_own_folder(state_dir))
        except OSError as error:
            raise state_dir_failure(error) from None
        local = loopback_addresses()
        # A port that is bound but does not listen: connections are refused, and nobody else gets it.
        dead = stack.enter_context(socket.socket())
        dead.bind(("127.0.0.1", 0))
        world = World(
            folder=folder,
            ca=certificate.ca,
            https_port=pick_port(HTTPS_PORT, local),
            http_port=pick_port(HTTP_PORT, local),
            control=_control_path(folder),
            dead_port=dead.getsockname()[1],
        )
        try:
            for name in APPS:
                world.launch_app(name)
            try:
                write_files(folder)  # while they start
            except OSError as error:
                raise state_dir_failure(error) from None
            for name in APPS:
                world.await_app(name)
            world.config.write_text(
                configuration(world, certificate.cert, certificate.key, None if in_container() else local)
            )
            _start_front(world)
            yield world
        finally:
            stop(world.processes)
            if world.control.parent != folder:
                shutil.rmtree(world.control.parent, ignore_errors=True)


@contextlib.contextmanager
def _own_folder(state_dir: Path) -> Iterator[Path]:
    for number in range(1, 100):
        folder = state_dir / ("demo" if number == 1 else f"demo-{number}")
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        try:
            yield folder
        finally:
            os.close(lock)
        return
    raise Failure("a hundred demos run already")


def _control_path(folder: Path) -> Path:
    path = folder / "control.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
        return path
    import tempfile

    return Path(tempfile.mkdtemp(prefix="frontd-demo-")) / "control.sock"


def configuration(world: World, cert: Path, key: Path, addresses: list[str] | None) -> str:
    """The demo's frontd.yaml."""
    app, blue, green = (world.apps[name].target for name in APPS)
    return "\n".join(
        [
            "# Written by 'frontd demo'. The three apps with a port exist only while it runs.",
            "listen:",
            *listeners("http", world.http_port, addresses),
            *listeners("https", world.https_port, addresses),
            "tls:",
            "  certificates:",
            f"    - cert: {quoted(str(cert))}",
            f"      key: {quoted(str(key))}",
            f"plugins_dir: {quoted(str(plugins_folder(world.folder)))}   # each file in it is a plugin",
            "sites:",
            "  demo:",
            "    urls:",
            f"      - {world.url}/          # http://localhost:{world.http_port}/ redirects here",
            "    plugins:                        # asked in this order",
            "      - request_filter              # IIS's rules: /.git/config is 404.8",
            "      - hello:                      # hello.py in plugins_dir",
            "          word: Hello",
            "      - basic:",
            f"          users_file: {quoted(str(users_file(world.folder)))}   # made by 'frontd passwd'",
            "          realm: frontd demo",
            "      - authorize:                  # the first rule that covers a request decides",
            "          - path: /private/",
            "            allow: [authenticated]",
            "          - allow: [anonymous]",
            "      - response_cache              # keeps what says how long it is fresh",
            "    routes:",
            "      /: app",
            "      /replicas/:",
            "        pool: replicas",
            "        strip_prefix: true",
            "      /static/:",
            f"        files: {quoted(str(static_folder(world.folder)))}",
            "      /dead/: dead",
            "      /worker/:",
            "        pool: worker",
            "        strip_prefix: true",
            "pools:",
            "  app:",
            "    targets:",
            f"      - {app}",
            "  replicas:",
            "    targets:",
            f"      - {blue}",
            f"      - {green}",
            "  dead:",
            "    targets:",
            f"      - http://127.0.0.1:{world.dead_port}   # nothing listens here",
            "    queue:",
            "      wait: 1s                    # 30s by default",
            "  worker:",
            "    workers:                        # frontd starts this one itself, with the first request",
            f"      command: {json.dumps(WORKER)}",
            "timeouts:",
            "  drain: 1s                       # 30s by default",
            "log:",
            "  access:",
            f"    to: {quoted(str(world.folder / 'access.log'))}",
            "    format: w3c",
            "control:",
            f"  socket: {quoted(str(world.control))}",
            f"state_dir: {quoted(str(world.folder))}",
            "",
        ]
    )


def _start_front(world: World) -> None:
    """Start frontd and wait until it is ready.  Raises `Failure` with what it said."""
    from frontd.cli.controlclient import call

    with world.log.open("wb") as log:
        front = spawn([*PYTHON, "-m", "frontd", "serve", "--demo", "-c", str(world.config)], stdout=log, stderr=log)
    world.front = front
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and front.poll() is None:
        with contextlib.suppress(Failure):
            if call(world.control, "GET", "/readyz").status == 200:
                return
        time.sleep(0.03)
    said = world.log.read_text(errors="replace").strip() or "(nothing)"
    what = "did not get ready in time" if front.poll() is None else f"ended with exit code {front.returncode}"
    raise Failure(f"frontd {what}. It said:\n{said}")


def frontd_command() -> str:
    """How the user can type `frontd` in a shell: the installed command, or this Python with ``-m``."""
    beside = Path(sys.executable).parent / "frontd"
    return shlex.quote(str(beside)) if beside.exists() else f"{python_command()} -m frontd"


def python_command() -> str:
    """This Python to type in a shell.  Absolute: the other terminal is in another directory, with another PATH."""
    return shlex.join(PYTHON)
