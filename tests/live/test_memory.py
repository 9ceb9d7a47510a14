"""Bodies pass through and are never held: the front's memory while they pass, and while nobody takes them."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.live.house import House, front, tool

SIZE = 200_000_000  # bytes each way
BOUND = 32 * 1024 * 1024  # bytes of growth
# What may be on its way while the far end takes nothing: the kernel's buffers of four sockets (tcp_rmem and tcp_wmem go
# up to about 6 MB and 4 MB by default) and the front's own.
ON_ITS_WAY = 48_000_000
STALLED = 0.6  # s in which nothing moved: nothing will
SCHEMES = pytest.mark.parametrize("scheme", ["https", "http"])


def grown(house: House, before: int, what: str) -> None:
    growth = house.child.peak() - before
    print(f"{what}: resident {before / 2**20:.1f} MiB, grew by {growth / 2**20:.1f} MiB at most")
    assert growth < BOUND


@SCHEMES
def test_200_mb_up_and_down_at_once(app_url: str, tmp_path: Path, scheme: str) -> None:
    body = tmp_path / "body"
    with body.open("wb") as file:
        file.truncate(SIZE)
    with front(tmp_path / "state", app_url) as house:
        house.curl(house.url("/healthz", scheme))
        before = house.child.reset_peak()
        command = [tool("curl"), "-q", "-sS", "--cacert", house.ca, "--noproxy", "*", "--max-time", "100"]
        up = subprocess.Popen([*command, "-T", str(body), house.url("/upload", scheme)], stdout=subprocess.PIPE)
        down = subprocess.Popen(
            [*command, "-o", "/dev/null", "-w", "%{size_download}", house.url(f"/download?bytes={SIZE}", scheme)],
            stdout=subprocess.PIPE,
        )
        uploaded, downloaded = up.communicate()[0], down.communicate()[0]
        grown(house, before, f"200 MB up and down at once, {scheme}")
    assert int(downloaded) == SIZE
    digest = hashlib.sha256()
    for _ in range(SIZE // 1_000_000):
        digest.update(bytes(1_000_000))
    assert json.loads(uploaded)["sha256"] == digest.hexdigest()


# ---------------------------------------------------------------------------------------------------- back-pressure


@contextmanager
def ends(tmp_path: Path, scheme: str, request: bytes) -> Iterator[tuple[House, socket.socket, socket.socket]]:
    """A front with a client that sent `request` on one side, and on the other the app's end of it, nothing read yet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        with front(tmp_path / "state", f"http://127.0.0.1:{listener.getsockname()[1]}") as house:
            plain = socket.create_connection(("127.0.0.1", house.port(scheme)), timeout=20)
            tls = scheme == "https"
            with house.context.wrap_socket(plain, server_hostname="localhost") if tls else plain as client:
                client.sendall(request)
                app, _ = listener.accept()
                with app:
                    app.settimeout(20)
                    yield house, client, app


def push_until_stalled(sock: socket.socket) -> int:
    """Send zeros, `SIZE` bytes at most, until nothing moves any more; how many went."""
    sent, piece = 0, bytes(65536)
    sock.settimeout(STALLED)
    with suppress(TimeoutError, ssl.SSLWantWriteError):
        while sent < SIZE:
            sent += sock.send(piece[: SIZE - sent])
    sock.settimeout(20)
    return sent


def push(sock: socket.socket, size: int) -> None:
    for start in range(0, size, 65536):
        sock.sendall(bytes(min(65536, size - start)))


def head(sock: socket.socket) -> tuple[bytes, int]:
    """A message head, and how many bytes of the body came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        assert more, data
        data += more
    text, _, body = data.partition(b"\r\n\r\n")
    return text, len(body)


def drain(sock: socket.socket, size: int) -> int:
    """Read `size` bytes, or to the end if that comes first; how many there were."""
    received = 0
    while received < size and (data := sock.recv(min(1 << 20, size - received))):
        received += len(data)
    return received


@SCHEMES
def test_a_client_that_does_not_read(tmp_path: Path, scheme: str) -> None:
    """The app gets rid of a small part of its 200 MB only; all of them arrive once the client reads."""
    with ends(tmp_path, scheme, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") as (house, client, app):
        assert head(app)[0].startswith(b"GET / HTTP/1.1\r\n")
        before = house.child.reset_peak()
        app.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        sent = push_until_stalled(app)
        print(f"{scheme}: the app sent {sent / 1e6:.1f} MB to a client that does not read")
        assert sent < ON_ITS_WAY
        with ThreadPoolExecutor() as pool:
            rest = pool.submit(push, app, SIZE - sent)
            answer, body = head(client)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert body + drain(client, SIZE - body) == SIZE
            rest.result()
        grown(house, before, f"200 MB to a client that reads late, {scheme}")


@SCHEMES
def test_an_app_that_does_not_read(tmp_path: Path, scheme: str) -> None:
    """The client gets rid of a small part of its 200 MB only; all of them arrive once the app reads."""
    request = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % SIZE
    with ends(tmp_path, scheme, request) as (house, client, app):
        before = house.child.reset_peak()
        sent = push_until_stalled(client)
        print(f"{scheme}: the client sent {sent / 1e6:.1f} MB to an app that does not read")
        assert sent < ON_ITS_WAY
        with ThreadPoolExecutor() as pool:
            rest = pool.submit(push, client, SIZE - sent)
            asked, body = head(app)
            assert asked.startswith(b"POST / HTTP/1.1\r\n")
            assert body + drain(app, SIZE - body) == SIZE
            rest.result()
        app.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert head(client)[0].startswith(b"HTTP/1.1 204 No Content\r\n")
        grown(house, before, f"200 MB to an app that reads late, {scheme}")
