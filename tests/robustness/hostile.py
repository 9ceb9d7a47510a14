"""Clients that mean no good, and an app that is no better: what they do is drawn by lot, from a seed.

Each visit is one connection that ends within a moment, by a reset, an end, or being left to the server's timers.
"""

from __future__ import annotations

import random
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from tests.wire import Line

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HELLO = bytes.fromhex("16030100a5010000a10303") + bytes(32) + b"\x00"  # the beginning of one
PATIENCE = 3.0  # s of one visit

# timers that are over soon, so that whoever leaves nothing behind has gone soon
TIMEOUTS = """
timeouts:
  {header_wait: 1s, idle_connection: 1s, entity_body: 1s, drain_entity_body: 1s, min_send_rate: 1000,
   response_head: 1s, tunnel_idle: 1s, keep_alive: 1s}
"""


async def rude_app(line: Line) -> None:
    """Does what the path asks for."""
    with suppress(IndexError):  # what it did not read of a body is no head
        while head := await line.head():
            match head.split(b" ", 2)[1].partition(b"?")[0]:
                case b"/silent":
                    await trio.sleep(2)
                    return
                case b"/cut":
                    await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
                    return
                case b"/garbage":
                    await line.send(b"\x00\x01\x02 what\r\n\r\n")
                    return
                case b"/chunks":
                    await line.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n")
                    return
                case b"/large":
                    await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000000))
                case b"/upgrade":
                    await line.send(b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello")
                    while await line.read():
                        pass
                case b"/early":
                    await line.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
                    return
                case _:
                    await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@dataclass
class Mob:
    """Visits to a plain and a TLS port; `visits` counts them by kind."""

    port: int
    tls_port: int
    lot: random.Random
    visits: Counter[str] = field(default_factory=Counter)

    async def rage(self, seconds: float, at_once: int = 150) -> None:
        """Visit after visit for so long."""
        until = trio.current_time() + seconds
        kinds = list(KINDS)

        async def one_after_the_other() -> None:
            while trio.current_time() < until:
                kind = self.lot.choice(kinds)
                self.visits[kind.__name__] += 1
                with trio.move_on_after(PATIENCE):
                    with suppress(OSError, trio.BrokenResourceError, ssl.SSLError):
                        await kind(self)

        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(one_after_the_other)

    async def connect(self, port: int = 0) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", port or self.port)

    async def leave(self, stream: trio.SocketStream) -> None:
        """By a reset, an end, or after having read whatever comes."""
        way = self.lot.randrange(3)
        try:
            if way == 0:
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif way == 1:
                with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(1.5):
                    while await stream.receive_some(65536):
                        pass
        finally:
            stream.socket.close()

    async def say(self, *parts: bytes, port: int = 0) -> None:
        """Send some bytes, and leave."""
        stream = await self.connect(port)
        try:
            for part in parts:
                await stream.send_all(part)
                await trio.sleep(self.lot.random() * 0.002)
        finally:
            await self.leave(stream)


async def nothing(mob: Mob) -> None:
    """Come and go."""
    await mob.say(port=mob.lot.choice((mob.port, mob.tls_port)))


async def rubbish(mob: Mob) -> None:
    """Any bytes at all, on either port."""
    await mob.say(mob.lot.randbytes(mob.lot.randrange(1, 5000)), port=mob.lot.choice((mob.port, mob.tls_port)))


async def half_a_head(mob: Mob) -> None:
    """A request that stops anywhere."""
    await mob.say(GET[: mob.lot.randrange(1, len(GET))])


async def dripping(mob: Mob) -> None:
    """A head in small pieces."""
    step = mob.lot.randrange(1, 9)
    await mob.say(*(GET[at : at + step] for at in range(0, len(GET), step)))


async def huge_head(mob: Mob) -> None:
    """More fields, and longer ones, than are taken."""
    await mob.say(GET[:-2] + b"X-Y: " + b"z" * mob.lot.randrange(100_000) + b"\r\n" * 2)


async def pipeline(mob: Mob) -> None:
    """Many requests, and not one answer read."""
    await mob.say(GET * mob.lot.randrange(2, 60))


async def rude_paths(mob: Mob) -> None:
    """The client is polite, the app is not; or neither of them."""
    path = mob.lot.choice(("silent", "cut", "garbage", "chunks", "large", "early"))
    await mob.say(GET.replace(b"/", b"/" + path.encode(), 1))


async def short_body(mob: Mob) -> None:
    """Fewer bytes than were announced."""
    head = b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
    await mob.say(head, bytes(mob.lot.randrange(90_000)))


async def bad_chunks(mob: Mob) -> None:
    """A chunked body that breaks its own rules, or off."""
    bodies = (b"5\r\nab", b"zz\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n", b"1\r\naXX0\r\n\r\n", b"2\r\nab\r\n")
    body = mob.lot.choice(bodies)
    await mob.say(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", body)


async def smuggler(mob: Mob) -> None:
    """Two lengths for one body."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    await mob.say(head + b"0\r\n\r\n" + GET)


async def waits_for_100(mob: Mob) -> None:
    """Announces a body that never comes."""
    await mob.say(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")


async def preface(mob: Mob) -> None:
    """HTTP/2 where it is not spoken."""
    await mob.say(PREFACE)


async def tunnel(mob: Mob) -> None:
    """A WebSocket that is left open, or cut."""
    head = b"GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    head += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    await mob.say(head, b"x" * 100)


async def does_not_read(mob: Mob) -> None:
    """Asks for much and reads one byte."""
    stream = await mob.connect()
    try:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        await stream.send_all(GET.replace(b"/", b"/large", 1))
        await stream.receive_some(1)
        await trio.sleep(mob.lot.random() * 1.5)
    finally:
        await mob.leave(stream)


async def half_a_hello(mob: Mob) -> None:
    """The beginning of a TLS handshake."""
    await mob.say(HELLO[: mob.lot.randrange(1, len(HELLO))], port=mob.tls_port)


async def plain_on_tls(mob: Mob) -> None:
    """A plain request on the TLS port."""
    await mob.say(GET, port=mob.tls_port)


async def shakes_hands(mob: Mob) -> None:
    """A whole handshake, and a request or rubbish in it; left without a word."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    stream = await mob.connect(mob.tls_port)
    try:
        secure = trio.SSLStream(stream, context, server_hostname="a.test")
        await secure.do_handshake()
        way = mob.lot.randrange(4)
        if way == 0:
            await secure.send_all(GET * 3)
            await secure.receive_some(100)
        elif way == 1:
            await secure.send_all(GET.replace(b"/", b"/large", 1))
            await secure.receive_some(100)
        elif way == 2:
            await stream.send_all(mob.lot.randbytes(500))  # under the TLS
    finally:
        await mob.leave(stream)


async def polite(mob: Mob) -> None:
    """One among them who asks, reads, and closes."""
    line = Line(await mob.connect())
    try:
        head, body = await line.get()
        assert head[9:12] in (b"200", b"502", b"504", b""), head  # the app, too, has the mob to see to
        mob.visits["answered"] += body == b"ok"
    finally:
        await trio.aclose_forcefully(line.stream)


KINDS: tuple[Callable[[Mob], Awaitable[None]], ...] = (
    nothing, rubbish, half_a_head, dripping, huge_head, pipeline, rude_paths, short_body, bad_chunks, smuggler,
    waits_for_100, preface, tunnel, does_not_read, half_a_hello, plain_on_tls, shakes_hands, polite,
)  # fmt: skip
