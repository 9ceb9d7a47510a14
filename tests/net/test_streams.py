"""`Stream`: one writer whose bytes are never mixed, and endings after which the answer has arrived."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from frontd.config.model import TlsHost
from frontd.model.errors import FrontdError, Reason
from frontd.model.messages import TlsPolicy
from frontd.net.streams import EAGER_READS, LINGER_BYTES, LINGER_IDLE, LINGER_TIME, Broken, Stream
from frontd.net.tls import build_profile, peek_hello, shake_hands, wrap
from frontd.net.traps import carry
from tests.net.pki import Pki
from tests.net.test_peek import pair
from tests.net.tlsclient import Secure, client_context

A, B = b"A" * 8_000_000, b"B" * 8_000_000


@asynccontextmanager
async def ends(pki: Pki | None) -> AsyncIterator[tuple[Stream, trio.abc.Stream]]:
    """Our end and the client's, plain or (with `pki`) through TLS."""
    near, far = pair()
    far.setblocking(False)
    client = trio.SocketStream(trio.socket.from_stdlib_socket(far))
    async with client:
        if pki is None:
            stream = Stream(near)
            yield stream, client
        else:
            profile = build_profile(pki.pair("a"), TlsHost(), [])
            secure = Secure(client, client_context(pki), "a.test")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(secure.do_handshake)
                deadline = trio.current_time() + 10
                hello = await carry(peek_hello(Stream(near), deadline))
                assert hello.server_name == "a.test"
                stream = wrap(near, profile)
                facts = await carry(shake_hands(stream, hello, profile, deadline))
                assert (facts.version, facts.policy, facts.certificate) == ("TLSv1.3", TlsPolicy(), None)
            yield stream, secure
        stream.close_now()


async def everything(stream: trio.abc.Stream) -> bytes:
    parts = []
    try:
        while data := bytes(await stream.receive_some(65536)):
            parts.append(data)
    except trio.BrokenResourceError:
        parts.append(b"<reset>")
    return b"".join(parts)


async def flush(stream: Stream) -> None:
    await stream.flush(1000, 1, Reason.Timer_MinBytesPerSecond)


@pytest.fixture(params=["plain", "tls"])
def keys(request: pytest.FixtureRequest, pki: Pki) -> Pki | None:
    return pki if request.param == "tls" else None


# ---------------------------------------------------------------------------------------------------- writing


async def test_what_is_sent_while_bytes_wait_follows_them(keys: Pki | None) -> None:
    async with ends(keys) as (stream, client), trio.open_nursery() as nursery:
        assert not stream.send_now(A)
        assert not stream.send_now(B)
        assert not stream.send_now(b"")
        assert stream.pending + stream.sent == len(A) + len(B)
        nursery.start_soon(flush, stream)
        got = bytearray()
        while len(got) < len(A) + len(B):
            got += await client.receive_some(65536)
        assert got == A + B
        assert stream.pending == 0


async def test_a_cancelled_writer_leaves_a_stream_that_can_only_be_closed(
    keys: Pki | None, autojump_clock: object
) -> None:
    async with ends(keys) as (stream, client):
        assert not stream.send_now(A)
        with trio.move_on_after(0):
            await flush(stream)
        taken = stream.sent
        assert 0 < taken < len(A)
        begun = bytes(await client.receive_some(65536))
        while len(begun) < 1_000_000:  # now there is room again, for what must not come
            begun += await client.receive_some(65536)
        now = trio.current_time()
        await stream.close_gracefully()
        assert stream.closed
        assert trio.current_time() == now  # nothing to wait for: no end that looks like one
        got = begun + await everything(client)
        assert A.startswith(got)
        assert taken - 16384 <= len(got) <= taken + 16384  # a record may be on its way
        if isinstance(client, Secure):
            assert not client.ended_cleanly


async def test_an_aborted_answer_is_a_reset(keys: Pki | None) -> None:
    async with ends(keys) as (stream, client):
        stream.send_now(b"part")
        stream.abort()
        assert await everything(client) in (b"<reset>", b"part<reset>")


async def test_writing_to_a_client_that_is_gone(keys: Pki | None) -> None:
    async with ends(keys) as (stream, client):
        under = client.under if isinstance(client, Secure) else client
        assert isinstance(under, trio.SocketStream)
        under.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await under.aclose()
        with pytest.raises(Broken):
            stream.send_now(A)


async def test_a_slow_reader_is_judged_by_what_reached_it(keys: Pki | None, autojump_clock: object) -> None:
    async with ends(keys) as (stream, client):
        # a large send buffer takes nothing more until a third of it is free: much later than the judgement
        stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
        stream.send_now(A)
        began = trio.current_time()

        async def read_slowly() -> None:
            for _ in range(20):
                await trio.sleep(1)
                await client.receive_some(30_000)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_slowly)
            with pytest.raises(FrontdError) as caught:
                await stream.flush(5, 10_000, Reason.Timer_MinBytesPerSecond)
            judged = trio.current_time() - began
        assert caught.value.reason is Reason.Timer_MinBytesPerSecond
        assert 20 <= judged <= 35


# ---------------------------------------------------------------------------------------------------- reading


async def test_reading_ends_with_the_reason_asked_for(keys: Pki | None, autojump_clock: object) -> None:
    async with ends(keys) as (stream, client):
        began = trio.current_time()
        with pytest.raises(FrontdError) as caught:
            await carry(stream.receive(began + 3, Reason.Timer_EntityBody))
        assert caught.value.reason is Reason.Timer_EntityBody
        assert trio.current_time() - began == pytest.approx(3)
        await client.send_all(b"x")
        assert await carry(stream.receive(began + 9, Reason.Timer_EntityBody)) == b"x"


@pytest.mark.parametrize("clean", [True, False])
async def test_an_end_without_close_notify_is_an_end(pki: Pki, clean: bool) -> None:
    async with ends(pki) as (stream, client):
        assert isinstance(client, Secure)
        await client.send_all(b"last")
        if clean:
            with pytest.raises(ssl.SSLWantReadError):
                client.tls.unwrap()
            await client._push()
        assert isinstance(client.under, trio.SocketStream)
        await client.under.send_eof()
        assert await carry(stream.receive(trio.current_time() + 5, Reason.Timer_EntityBody)) == b"last"
        assert await carry(stream.receive(trio.current_time() + 5, Reason.Timer_EntityBody)) == b""


async def test_a_record_that_is_not_one_breaks_the_connection(pki: Pki) -> None:
    async with ends(pki) as (stream, client):
        assert isinstance(client, Secure)
        await client.under.send_all(b"\x17\x03\x03\x00\x20" + b"f" * 32)
        with pytest.raises(Broken, match="TLS: "):
            await carry(stream.receive(trio.current_time() + 5, Reason.Timer_EntityBody))


class Fountain(socket.socket):
    """A socket that always has bytes."""

    def recv(self, size: int, flags: int = 0) -> bytes:
        return b"x" * size


async def test_a_client_that_always_has_bytes_leaves_others_their_turn() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    with Fountain() as sock:
        stream = Stream(sock)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(10 * EAGER_READS):
                await carry(stream.receive(trio.current_time() + 5, Reason.Timer_EntityBody))
            assert turns >= 5
            nursery.cancel_scope.cancel()


async def test_closing_wakes_whoever_waits(keys: Pki | None) -> None:
    async with ends(keys) as (stream, _), trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(Broken):
                await carry(stream.receive(trio.current_time() + 60, Reason.Timer_EntityBody))

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        stream.close_now()


# ---------------------------------------------------------------------------------------------------- closing


async def test_a_client_that_is_still_uploading_gets_its_answer(keys: Pki | None) -> None:
    async with ends(keys) as (stream, client):
        stream.send_now(b"413")

        async def upload() -> None:
            try:
                for _ in range(50):
                    await client.send_all(b"x" * 65536)
            finally:
                under = client.under if isinstance(client, Secure) else client
                assert isinstance(under, trio.SocketStream)
                await under.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.close_gracefully)
            await upload()
        assert await everything(client) == b"413"
        if isinstance(client, Secure):
            assert client.ended_cleanly


async def test_lingering_has_an_end(keys: Pki | None, autojump_clock: object) -> None:
    async with ends(keys) as (stream, _):
        began = trio.current_time()
        await stream.close_gracefully()
        assert trio.current_time() - began == pytest.approx(LINGER_IDLE)
    async with ends(keys) as (stream, client), trio.open_nursery() as nursery:

        async def drip() -> None:
            while True:
                await trio.sleep(1)
                await client.send_all(b"x")

        nursery.start_soon(drip)
        began = trio.current_time()
        await stream.close_gracefully()
        assert trio.current_time() - began == pytest.approx(LINGER_TIME)
        assert stream.closed
        nursery.cancel_scope.cancel()


async def test_lingering_reads_no_more_than_it_must() -> None:
    async with ends(None) as (stream, client):
        sent = 0

        async def upload() -> None:
            nonlocal sent
            with suppress(trio.BrokenResourceError):
                while True:
                    await client.send_all(b"x" * 1_000_000)
                    sent += 1_000_000

        with trio.fail_after(LINGER_TIME):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(upload)
                await stream.close_gracefully()
        assert LINGER_BYTES - 1_000_000 <= sent < LINGER_BYTES + 16_000_000  # and what the kernel keeps


class Listening:
    """A reactor that only listens."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def forget(self, stream: Stream) -> None:
        self.told.append(stream.sock.fileno())
        stream.lane = None

    def leave(self, stream: Stream) -> None:
        raise AssertionError("nobody waits")

    def tell_writable(self, stream: Stream) -> None:
        raise AssertionError("nothing has to be written")


async def test_closing_twice_and_telling_once() -> None:
    async with ends(None) as (stream, _):
        lane = Listening()
        stream.lane = lane
        fd = stream.sock.fileno()
        stream.close_now()
        stream.abort()
        stream.close_now()
        await stream.close_gracefully()
        assert lane.told == [fd]
        assert repr(stream) == "<Stream plain fd=-1 pending=0 closed>"
