"""The benchmark's stage is honest: configurations their own programs accept, processes counted whole and ended,
a plain proxy that is a proxy, handshakes that are what they are called.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from bench import certificate, connections
from bench.plain_proxy import Proxy
from bench.processes import SLACK, Cpu, StartError, fine_time, free_ports, start, started_at, tick_time
from bench.rounds import missing_lines
from bench.servers import (
    FILES,
    HOST,
    Stage,
    frontd_config,
    haproxy_config,
    nginx_origin_config,
    nginx_proxy_config,
    write_users,
)
from bench.tools import ToolError, find, missing, parse_wrk, wrk

FRONTD = (str(Path(sys.executable).with_name("frontd")),)


def need(*tools: str) -> None:
    """Skip by name when a tool is not here."""
    if absent := missing(tools):
        pytest.skip(f"not here: {', '.join(absent)}")


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path, proxy_core=0, load_core=0, frontd=FRONTD, origin=9)


# ---------------------------------------------------------------------------------------------------- configurations


def accepted(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


def test_nginx_accepts_its_configurations(stage: Stage) -> None:
    need("nginx")
    nginx = find("nginx")
    assert nginx is not None
    port, tls_port = free_ports(2)
    for text in (
        nginx_proxy_config(stage, stage.folder, port, tls_port),
        nginx_origin_config(stage, stage.folder, port),
    ):
        config = stage.folder / "nginx.conf"
        config.write_text(text)
        accepted(nginx, "-t", "-c", str(config))


def test_only_the_proxy_keeps_a_log(stage: Stage) -> None:
    log = f"access_log {stage.folder}/access.log combined"
    assert f"{log};" in nginx_proxy_config(stage, stage.folder, 1, 2)
    assert "access_log off;" in nginx_origin_config(stage, stage.folder, 1)
    stage.nginx_log = "buffer=64k flush=1s"
    assert f"{log} buffer=64k flush=1s;" in nginx_proxy_config(stage, stage.folder, 1, 2)


def test_haproxy_accepts_its_configuration(stage: Stage) -> None:
    need("haproxy")
    haproxy = find("haproxy")
    assert haproxy is not None
    config = stage.folder / "haproxy.cfg"
    config.write_text(haproxy_config(stage, stage.folder, *free_ports(2)))
    accepted(haproxy, "-c", "-f", str(config))


def test_frontd_accepts_its_configuration(stage: Stage) -> None:
    write_users(stage.folder / "users")
    stage.www.mkdir(parents=True)
    port, tls_port = free_ports(2)
    assert stage.check(frontd_config(stage, stage.folder, port, tls_port)) == ""


def test_frontd_itself_is_asked_whether_it_has_fronts(stage: Stage) -> None:
    config = frontd_config(stage, stage.folder, 1, 2, fronts=2)
    assert ("fronts: 2" in config) is stage.knows_fronts()
    assert "no_such_key" in stage.check("no_such_key: 1\nsites: {a.example: 'http://127.0.0.1:9'}\n")


def test_the_limit_of_open_files_is_within_what_is_allowed() -> None:
    assert f"worker_rlimit_nofile {FILES}" in nginx_origin_config(Stage(Path("/"), 0, 0, FRONTD), Path("/x"), 1)


# ---------------------------------------------------------------------------------------------------- processes

BURN = """
import sys, threading, time
def burn():
    until = time.process_time() + 0.25
    while time.process_time() < until: pass
if sys.argv[1] == "thread":
    one = threading.Thread(target=burn); one.start(); one.join()
else:
    burn()
print(time.process_time_ns(), flush=True)
sys.stdin.read()
"""


def burnt(how: str) -> tuple[int, Cpu]:
    """What a child says of its CPU time, in ns, and what /proc says."""
    with subprocess.Popen([sys.executable, "-c", BURN, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        said = int(child.stdout.readline())
        read = Cpu(fine_time(child.pid), tick_time(child.pid))
        child.communicate()
    return said, read


def test_both_clocks_agree_with_what_the_process_says() -> None:
    said, read = burnt("main")
    assert abs(read.fine - said) <= SLACK
    assert abs(read.ticks - said) <= SLACK
    assert read.used == read.fine


def test_the_time_of_a_thread_that_has_ended_is_not_lost() -> None:
    said, read = burnt("thread")
    assert read.fine < said - 200_000_000
    assert abs(read.used - said) <= SLACK


TREE = """
import socket, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(1000)
"""


def test_nothing_of_a_server_is_left(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    running = start("a tree", [sys.executable, "-c", TREE, str(port)], tmp_path / "a", port, os.sched_getaffinity(0))
    pids = running.tree()
    running.close()
    assert len(pids) == 2
    assert [pid for pid in pids if gone_or_zombie(pid) is False] == []


def gone_or_zombie(pid: int) -> bool:
    """Whether a process no longer runs; one whose parent has ended may stay as a zombie until init looks."""
    with suppress(OSError):
        deadline = select.poll()
        deadline.register(os.pidfd_open(pid), select.POLLIN)
        return bool(deadline.poll(5000))
    return started_at(pid) == 0


def test_a_server_that_ends_says_its_last_words(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with pytest.raises(StartError, match="x ended: no such thing"):
        start("x", [sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path / "x", port, [0])


def test_ports_are_free_and_different() -> None:
    assert len(set(free_ports(20))) == 20


def test_a_log_with_too_few_lines_is_noticed(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    running = start("nginx", [sys.executable, "-c", TREE, str(port)], tmp_path / "n", port, os.sched_getaffinity(0))
    running.close()
    log = running.output.parent / "access.log"
    log.write_bytes(b"line\n" * 9_900)
    assert missing_lines(running, 10_000) == ""
    assert missing_lines(running, 20_000) == "only 9900 lines in the access log for 20000 requests"


# ---------------------------------------------------------------------------------------------------- the plain proxy


async def test_the_plain_proxy_is_a_proxy(tmp_path: Path) -> None:
    seen = bytearray()

    async def origin(stream: trio.SocketStream) -> None:
        async with stream:
            async for data in stream:
                seen.extend(data)
                if data.endswith((b"hello", b"\r\n\r\n")):
                    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-App: 1\r\n\r\nok")

    with (tmp_path / "log").open("w+") as log:
        async with trio.open_nursery() as nursery:
            (behind,) = await nursery.start(partial(trio.serve_tcp, origin, 0, host="127.0.0.1"))
            proxy = Proxy(port_of(behind), log)
            (front,) = await nursery.start(partial(trio.serve_tcp, proxy.serve, 0, host="127.0.0.1"))
            async with await trio.open_tcp_stream("127.0.0.1", port_of(front)) as client:
                for request in (
                    b"POST /a HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 6.6.6.6\r\nContent-Length: 5\r\n\r\nhello",
                    b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n",
                ):
                    await client.send_all(request)
                    answer = b""
                    while not answer.endswith(b"\r\n\r\nok"):
                        answer += await client.receive_some()
                    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
                    assert b"X-App: 1\r\n" in answer
            nursery.cancel_scope.cancel()
        for end in proxy.idle:
            await end.stream.aclose()
        log.seek(0)
        assert [line.split()[2:6] for line in log] == [["POST", "/a", "200", "2"], ["GET", "/b", "200", "2"]]
    assert b"6.6.6.6" not in seen
    assert seen.count(b"X-Forwarded-For: 127.0.0.1\r\n") == 2
    assert b"\r\n\r\nhelloGET /b HTTP/1.1\r\n" in seen  # one connection for both


def port_of(listener: trio.SocketListener) -> int:
    port = listener.socket.getsockname()[1]
    assert isinstance(port, int)
    return port


# ---------------------------------------------------------------------------------------------------- handshakes


@contextmanager
def tls_server(folder: Path, answer: bytes = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nbody") -> Iterator[int]:
    """A server that answers each connection once, in a thread; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate.write(folder, HOST))
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:

        def serve() -> None:
            while True:
                plain, _ = listener.accept()
                plain.settimeout(10)
                with plain:
                    if not plain.recv(1, socket.MSG_PEEK):
                        return  # the end of the play
                    with context.wrap_socket(plain, server_side=True) as tls:
                        tls.recv(65536)
                        tls.sendall(answer)
                        with suppress(OSError):
                            tls.unwrap()

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        try:
            yield port
        finally:
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join(20)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_full_handshake_resumes_nothing(tmp_path: Path, version: ssl.TLSVersion) -> None:
    with tls_server(tmp_path) as port:
        done, resumed, faults = connections.visits(port, connections.client_context(version), 0.0001)
    assert done >= 1
    assert (resumed, faults) == (0, [])


def test_resumption_is_counted_from_the_first_session_on(tmp_path: Path) -> None:
    with tls_server(tmp_path) as port:
        done, resumed, faults = connections.visits(port, connections.client_context(), 1.0, resume=True)
    assert done > 0
    assert resumed == done
    assert faults == []


def test_another_status_is_a_fault(tmp_path: Path) -> None:
    with tls_server(tmp_path, b"HTTP/1.1 503 No\r\n\r\n") as port:
        done, _, faults = connections.visits(port, connections.client_context(), 0.0001)
    assert done == 0
    assert set(faults) == {"answered b'HTTP/1.1 503 No\\r\\n\\r\\n'"}


def answering(data: bytes, run: Callable[[socket.socket], object]) -> object:
    """What `run` makes of a connection on which this comes, and then the end."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(data)
        return run(ours)


def test_an_answer_is_read_to_its_end() -> None:
    buffer = bytearray(3)
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789"
    assert answering(whole, lambda sock: connections.read_answer(sock, buffer)) == (200, 10)
    assert answering(b"HTTP/1.1 204 No\r\n\r\n", lambda sock: connections.read_answer(sock, buffer)) == (204, 0)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "ended after b''"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234", "5 of 10 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "without Content-Length"),
    ],
)
def test_an_answer_that_breaks_off_is_an_error(data: bytes, says: str) -> None:
    with pytest.raises(ToolError, match=says):
        answering(data, lambda sock: connections.read_answer(sock, bytearray(4096)))


# ---------------------------------------------------------------------------------------------------- the real tool


def test_wrk_of_this_machine_is_understood(tmp_path: Path) -> None:
    need("wrk")
    (port,) = free_ports(1)
    server = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--protocol", "HTTP/1.1"]
    running = start("http.server", server, tmp_path / "s", port, os.sched_getaffinity(0))
    try:
        load = wrk(f"http://127.0.0.1:{port}/none", os.sched_getaffinity(0), 1, connections=2)
    finally:
        running.close()
    assert load.requests > 0
    assert load.errors == load.requests  # every one is a 404
    assert "not 2xx" in load.detail
    assert parse_wrk("1 requests in 1.00s").errors == 0
