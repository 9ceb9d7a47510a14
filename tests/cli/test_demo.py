"""`frontd demo`: the children it keeps, the lines it prints, and (with everything real) its beginning and its end."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import pytest

from frontd.cli import devca
from frontd.cli.children import spawn, stop
from frontd.cli.demo_files import PASSWORD, PLUGIN, USER, plugins_folder, users_file, write_files
from frontd.cli.demo_lines import Line, lines_to_try, run_line
from frontd.cli.demo_show import Result
from frontd.cli.demo_world import App, World, configuration, frontd_command
from frontd.config.load import loads
from frontd.pipeline.discovery import Discovery
from frontd.testing import site


def is_running(pid: int) -> bool:
    """Whether a process exists that is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int, seconds: float) -> bool:
    """Waits for the end of a process that may not be our child, by a pidfd."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------- children


def test_stop_ends_all_and_insists() -> None:
    stubborn = spawn(
        [sys.executable, "-c", "import signal, time; signal.signal(15, 1); print('x', flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
    )
    gentle = spawn(["/bin/sleep", "60"])
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    began = time.monotonic()
    stop([stubborn, gentle], grace=0.2)
    assert time.monotonic() - began < 1
    assert (stubborn.returncode, gentle.returncode) == (-signal.SIGKILL, -signal.SIGTERM)


def test_children_have_their_own_group_and_die_with_their_parent() -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from frontd.cli.children import spawn\n"
            "import sys\n"
            "child = spawn([sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'])\n"
            "child.wait()\n",
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert os.getpgid(child) == child
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until_gone(child, 5)


# ------------------------------------------------------------------------------------------- lines


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world on paper: ports and paths, nothing runs in it."""
    made = devca.ensure(tmp_path)
    with subprocess.Popen(["/bin/true"]) as process:
        process.wait()
        apps = {name: App(name, process, port) for name, port in (("app", 9001), ("blue", 9002), ("green", 9003))}
        yield World(tmp_path, made.ca, 8443, 8080, tmp_path / "control.sock", 9009, apps)


@pytest.mark.parametrize("addresses", [None, ["127.0.0.1", "::1"]])
def test_the_demo_configuration_has_no_errors(world: World, addresses: list[str] | None) -> None:
    folder = world.ca.parent
    write_files(world.folder)
    text = configuration(world, folder / "localhost.crt", folder / "localhost.key", addresses)
    loaded = loads(text, discover=Discovery().catalogue, container=False)
    assert loaded.warnings == []
    assert loaded.config.control.socket == world.control
    assert loaded.config.pools["dead"].queue.wait == 1
    assert {one.address for one in loaded.config.listen.values()} == ({None} if addresses is None else set(addresses))
    assert [one.name for one in loaded.config.sites["demo"].plugins] == [
        "request_filter", "hello", "basic", "authorize", "response_cache",
    ]  # fmt: skip


def test_the_folder_of_the_demo(tmp_path: Path) -> None:
    write_files(tmp_path)
    plugin = plugins_folder(tmp_path) / "hello.py"
    plugin.write_text("what somebody tried out")
    write_files(tmp_path)  # at the next start
    assert plugin.read_text() == PLUGIN
    assert users_file(tmp_path).stat().st_mode & 0o777 == 0o600
    users = {"basic": {"users_file": str(users_file(tmp_path))}}
    with site({**users, "hello": {"word": "Servus"}}, plugins_dir=plugins_folder(tmp_path)) as s:
        assert s.get("/hello").text == "Servus, 192.0.2.1! This is plugins/hello.py.\n"
        assert s.get("/").status == 401


def test_the_password_of_the_demo_costs_what_passwords_cost(tmp_path: Path) -> None:
    write_files(tmp_path)
    user, stored = users_file(tmp_path).read_text().splitlines()[-1].split(":")
    assert user == USER
    assert stored.startswith("$2b$10$")
    assert bcrypt.checkpw(PASSWORD.encode(), stored.encode())


def test_lines_quote_odd_paths_and_step_around_a_proxy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.ca = Path("/home/some body/ca.crt")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    page = lines_to_try(world)[0]
    assert page.command == "curl --noproxy localhost --cacert '/home/some body/ca.crt' https://localhost:8443/"


def test_lines_can_be_pasted_into_any_directory_and_shell(world: World) -> None:
    for line in lines_to_try(world):
        words = shlex.split(line.command)
        assert words[0] in ("curl", "head") or os.path.isabs(words[0]), line.command
        # zsh takes an unquoted ? for a pattern and refuses the line
        assert "?" not in re.sub(r"'[^']*'", "", line.command), line.command


def test_a_line_is_run_in_the_shell_and_verified() -> None:
    def verify(output: str) -> str:
        return "" if output == "2\n" else f"got {output!r}"

    assert run_line(Line("sum", "echo $((1 + 1))", verify)).problem == ""
    assert run_line(Line("sum", "echo 3", verify)).problem == "got '3\\n'"
    failed = run_line(Line("sum", "echo 2; echo why >&2; exit 7", verify))
    assert (failed.problem, failed.output) == ("exit code 7", "2\nwhy\n")


def test_a_folder_named_frontd_in_the_current_directory_is_not_the_package(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "frontd" / "cli").mkdir(parents=True)
    for package in ("frontd", "frontd/cli"):
        (tmp_path / "here" / package / "__init__.py").write_text("raise ImportError('not the package')\n")
    monkeypatch.chdir(tmp_path / "here")
    try:
        world.start_app("app2")
        assert world.apps["app2"].port
    finally:
        stop([world.apps["app2"].process])
    echo = next(line for line in lines_to_try(world) if "WebSocket" in line.title)
    assert "not the package" not in run_line(echo).output
    assert frontd_command().endswith("/frontd") or " -P -m frontd" in frontd_command()


def test_each_verifier_refuses_another_answer(world: World) -> None:
    for line in lines_to_try(world):
        assert line.verify("HTTP/1.1 502 Bad Gateway\r\n\r\n{}"), line.title


def test_the_verifiers_accept_what_is_right(world: World) -> None:
    lines = {line.title: line.verify for line in lines_to_try(world)}
    turns = "This is the sample app 'blue', pid 1\nThis is the sample app 'green', pid 2\n"
    assert lines["two apps that take turns"](turns) == ""
    assert lines["two apps that take turns"](turns.replace("green", "blue")) != ""
    assert lines["an upload, streamed through"](json.dumps({"bytes": 20_000_000})) == ""


def test_the_second_page_is_the_first_one_from_memory(world: World) -> None:
    (kept,) = (line.verify for line in lines_to_try(world) if line.command.count("/cached") == 2)

    def page(field: str, text: str) -> str:
        return f"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n{field}\r\n{text}"

    assert kept(page("", "one") + page("Age: 0\r\n", "one")) == ""
    assert kept(page("", "one") + page("", "one")) == "the second answer has no Age"
    assert kept(page("", "one") + page("Age: 0\r\n", "two")) == "the app was asked twice"
    assert kept(page("Age: 3\r\n", "one")) == "there are not two pages"


def test_a_result_counts_failures_of_all_kinds() -> None:
    result = Result(requests=10, longest=1.84)
    assert str(result) == "10 requests, 0 failed, longest wait 1.8 s"
    result.failures.update(["503 x", "503 x", "reset"])
    assert result.failed == 3


# ------------------------------------------------------------------------------------------- all of it


class Demo:
    """A running `frontd demo` whose words are read up to a marker."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "frontd", "demo"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            env={**os.environ, "FRONTD_STATE_DIR": str(folder)},
        )
        self.said = ""

    def read_until(self, marker: str) -> str:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            self.said += raw.decode()
            if marker in self.said:
                return self.said
        raise AssertionError(f"the demo ended before {marker!r}:\n{self.said}")

    def children(self) -> list[int]:
        tasks = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in tasks.read_text().split()]

    def port(self) -> int:
        found = re.search(r"https://localhost:(\d+)/ ", self.said)
        assert found is not None
        return int(found[1])


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    running = Demo(tmp_path)
    yield running
    running.process.kill()
    running.process.wait()
    assert running.process.stdout is not None
    running.process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_of_it_in_under_two_seconds(demo: Demo, number: signal.Signals) -> None:
    demo.read_until("clients ask for pages")  # in the middle of the show
    children = demo.children()
    assert len(children) == 4
    began = time.monotonic()
    demo.process.send_signal(number)
    assert demo.process.wait(5) == 0
    assert time.monotonic() - began < 2
    assert not [pid for pid in children if is_running(pid)]
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", demo.port()))


def test_nothing_outlives_a_demo_that_is_killed(demo: Demo) -> None:
    demo.read_until("clients ask for pages")
    children = demo.children()
    demo.process.kill()
    assert all(wait_until_gone(pid, 5) for pid in children)


def test_two_demos_at_once_and_zero_failed(demo: Demo, tmp_path: Path) -> None:
    demo.read_until("Try in another terminal")
    other = Demo(tmp_path)
    try:
        said = other.read_until("Running.")
        assert other.port() != demo.port()
        assert f"Port 8443 is taken, so this is on {other.port()}." in said
        assert re.search(r"\d{3,} requests, 0 failed, longest wait \d{1,2}\.\d s", said)
        context = ssl.create_default_context(cafile=str(tmp_path / "dev" / "ca.crt"))
        with socket.create_connection(("localhost", other.port())) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as tls:
                assert tls.version() in ("TLSv1.2", "TLSv1.3")
    finally:
        other.process.terminate()
        other.process.wait()
        assert other.process.stdout is not None
        other.process.stdout.close()


def test_check_without_curl_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "frontd", "demo", "--check"],
        env={"PATH": str(tmp_path), "FRONTD_STATE_DIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "there is no curl here" in done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_check_passes(tmp_path: Path) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "frontd", "demo", "--check"],
        env={**os.environ, "FRONTD_STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 21 checks passed" in done.stdout
    assert "FAILED" not in done.stdout
    assert time.monotonic() - began < 30
