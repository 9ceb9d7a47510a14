"""The plain proxy to compare with: trio and h11 on both sides, nothing else. `plain_proxy.py PORT ORIGIN_PORT LOG`.

What a competent programmer writes in an afternoon with these two libraries: one task for each client connection, h11
for both sides, bodies streamed, connections to the origin kept and used again, hop-by-hop fields left out,
X-Forwarded-For set, one line in a log for each request. No tricks for speed and none against it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TextIO

import h11
import trio

HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
    b"proxy-authenticate", b"proxy-authorization",
}  # fmt: skip
CHUNK = 65536
Fields = list[tuple[bytes, bytes]]


class End:
    """One connection with the h11 state of its side."""

    def __init__(self, stream: trio.SocketStream, role: type[h11.CLIENT] | type[h11.SERVER]) -> None:
        self.stream = stream
        self.http = h11.Connection(role)

    async def next_event(self) -> object:
        """The next event of h11, reading as often as needed."""
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self.http.receive_data(await self.stream.receive_some(CHUNK))

    async def send(self, *events: h11.Event) -> None:
        """Write these events in one piece."""
        data = b"".join(self.http.send(event) or b"" for event in events)
        if data:
            await self.stream.send_all(data)


class Proxy:
    """Forwards requests to one origin."""

    def __init__(self, origin: int, log: TextIO) -> None:
        self.origin = origin
        self.log = log
        self.idle: list[End] = []

    async def upstream(self) -> End:
        """An idle connection to the origin, or a new one."""
        if self.idle:
            return self.idle.pop()
        return End(await trio.open_tcp_stream("127.0.0.1", self.origin), h11.CLIENT)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Every request of one client connection."""
        client = End(stream, h11.SERVER)
        peer = stream.socket.getpeername()[0]
        async with stream:
            try:
                while True:
                    request = await client.next_event()
                    if not isinstance(request, h11.Request):
                        return
                    await self.exchange(client, peer, request)
                    if client.http.our_state is not h11.DONE or client.http.their_state is not h11.DONE:
                        return
                    client.http.start_next_cycle()
            except (h11.ProtocolError, trio.BrokenResourceError, OSError):
                return

    async def exchange(self, client: End, peer: str, request: h11.Request) -> None:
        """One request and its response."""
        begun, size = time.monotonic(), 0
        origin = await self.upstream()
        fields = without_hop_by_hop(request.headers.raw_items(), b"x-forwarded-for")
        framing = [(name, value) for name, value in request.headers if name == b"transfer-encoding"]
        fields += [*framing, (b"X-Forwarded-For", peer.encode())]
        head: h11.Event = h11.Request(method=request.method, target=request.target, headers=fields)
        while True:  # the head leaves together with what comes first after it
            part = await client.next_event()
            assert isinstance(part, h11.Data | h11.EndOfMessage)
            await origin.send(*([head, part] if head is not None else [part]))
            head = None  # type: ignore[assignment]
            if isinstance(part, h11.EndOfMessage):
                break
        response = await origin.next_event()
        while isinstance(response, h11.InformationalResponse):
            response = await origin.next_event()
        assert isinstance(response, h11.Response)
        waiting: list[h11.Event] = [
            h11.Response(
                status_code=response.status_code,
                headers=without_hop_by_hop(response.headers.raw_items()),
                reason=response.reason,
            )
        ]
        while True:
            event = await origin.next_event()
            assert isinstance(event, h11.Data | h11.EndOfMessage)
            waiting.append(event)
            if isinstance(event, h11.EndOfMessage):
                break
            size += len(event.data)
            if size > CHUNK:
                await client.send(*waiting)
                waiting = []
        await client.send(*waiting)
        if origin.http.our_state is h11.DONE and origin.http.their_state is h11.DONE:
            origin.http.start_next_cycle()
            self.idle.append(origin)
        else:
            await origin.stream.aclose()
        method, target = request.method.decode(), request.target.decode()
        took = time.monotonic() - begun
        self.log.write(f"{time.time():.3f} {peer} {method} {target} {response.status_code} {size} {took:.6f}\n")


def without_hop_by_hop(fields: Fields, *also: bytes) -> Fields:
    """The fields that may be forwarded, with their names as they came."""
    return [field for field in fields if field[0].lower() not in HOP_BY_HOP and field[0].lower() not in also]


async def main(port: int, origin: int, log: TextIO) -> None:
    """Serve until ended from outside."""
    await trio.serve_tcp(Proxy(origin, log).serve, port, host="127.0.0.1")


if __name__ == "__main__":
    with Path(sys.argv[3]).open("a") as file:
        trio.run(main, int(sys.argv[1]), int(sys.argv[2]), file)
