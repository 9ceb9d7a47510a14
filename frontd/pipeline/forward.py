"""The two ends of an exchange as the pipeline sees them: the client's side, and the request body on its way to the app.

`RequestBody` reads the parts once from the client and keeps them up to a bound, so that a request can be sent again;
`Pump` moves them upstream in a task of its own while the response may already arrive.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import trio

from frontd.model.errors import FrontdError, UpstreamGone
from frontd.model.headers import Headers, announced_trailers
from frontd.model.messages import Exchange, Request
from frontd.net.streams import LARGE_READ, READ_SIZE, Stream
from frontd.net.traps import carry, clock, task_lane
from frontd.pipeline.world import body_too_large
from frontd.protocol.framing import CHUNKED, NO_TRAILERS, End, Part
from frontd.upstream.client import Upstream
from frontd.upstream.replay import ReplayMemory

PARTS_IN_A_ROW = 4  # of 64 KiB, or of as many chunks as are walked at once (25 us each), before the others' turn


class Downstream(Protocol):
    """The client's side of one exchange, whatever its protocol.

    ``*_now`` and the sending verbs never wait; `inform`, `answer`, `send`, `send_last`, `push` and `finish` tell
    whether everything is with the kernel.  All raise `FrontdError` with a downstream reason when the client is gone or
    too slow.
    """

    closes: bool  # the connection is to end after this answer
    resets: bool  # there will be no answer: the exchange ends with a reset

    @property
    def can_answer(self) -> bool: ...
    @property
    def holder(self) -> Any: ...  # the client's connection, as `pipeline.pinned` sees it
    def skip_body(self) -> bool: ...
    def body_now(self) -> bytes | End | None: ...
    async def receive_body(self) -> bytes | End: ...
    def part_now(self, size: int) -> Part | End | None: ...
    async def body_readable(self) -> None: ...
    def keep_for_logon(self, *, is_leg: bool) -> None: ...
    def inform(self, status: int, headers: Headers) -> bool: ...
    def answer(self, status: int, reason: bytes, lines: bytes, body: bytes) -> bool: ...
    def start(
        self, status: int, reason: bytes, headers: Headers | bytes, *, close: bool = False, length: int | None = ...
    ) -> None: ...
    def send(self, data: Part) -> bool: ...
    async def send_file(self, fd: int, offset: int, size: int) -> None: ...
    def push(self) -> bool: ...
    def send_last(self, data: Part) -> bool: ...
    def finish(self, trailers: Headers = ...) -> bool: ...
    async def flush(self) -> None: ...
    def begin_tunnel(self, headers: Headers) -> tuple[Stream, bytes]: ...


@contextmanager
def queueing(exchange: Exchange) -> Iterator[None]:
    """Count the time spent here as time that `exchange` waited for its app."""
    asked = trio.current_time()
    try:
        yield
    finally:
        exchange.queue_wait += trio.current_time() - asked


class RequestBody:
    """The request body: read once from the client, kept up to `limit` bytes so that it can be sent again.

    `next_now` and `part_now` give the parts and then the `End`; after `rewind` they begin again.  What is kept for that
    is kept in the memory of its pool (`keep_in`); `is_crowded_out`: there was no room.
    """

    __slots__ = (
        "_down", "_end", "_failure", "_kept", "_memory", "_position", "_request", "_size", "_taken", "can_rewind",
        "is_crowded_out", "is_sent", "limit",
    )  # fmt: skip

    def __init__(self, down: Downstream, request: Request) -> None:
        self._down = down
        self._request = request
        self.limit = 0
        self._kept: list[bytes] = []
        self._size = 0
        self._position = 0
        self._end: End | None = None
        self._failure: FrontdError | None = None  # what ended it early
        self.is_sent = False  # it has begun to go to the app
        self.can_rewind = True
        self._memory: ReplayMemory | None = None
        self._taken = 0  # of it
        self.is_crowded_out = False

    def check_length(self) -> None:
        """Raises `FrontdError`: ``EntityTooLarge`` when the length that the head names is more than the limit."""
        limit = self._request.max_body
        if limit is not None and (self._request.content_length or 0) > limit:
            raise body_too_large(limit)

    def keep_in(self, memory: ReplayMemory, limit: int) -> None:
        """It is about to be sent to an app of a pool: keep up to `limit` bytes in its `memory`, as long as it has
        room."""
        self.release()
        self._memory = memory
        self.limit = max(self.limit, limit)
        if self.can_rewind:  # what a plugin has read goes to the app in any case
            self._has_room(self._size)

    def release(self) -> None:
        """It will not be sent again: give back what was taken of the memory."""
        if self._memory is not None:
            self._memory.give(self._taken)
            self._taken = 0

    def _has_room(self, size: int) -> bool:
        memory = self._memory
        if memory is None:
            return True
        if memory.take(size):
            self._taken += size
            return True
        memory.missed += 1
        self.is_crowded_out, self.can_rewind = True, False
        self.release()
        return False

    async def read(self, max_bytes: int) -> bytes:
        """All of it, which is kept so that it is forwarded all the same.

        Raises `FrontdError`: ``EntityTooLarge`` (413) beyond `max_bytes` bytes or the site's limit, or what ended the
        connection; `RuntimeError` when it is on its way to the app and not all of it was kept.
        """
        request = self._request
        if not request.has_body:
            return b""
        self.check_length()
        if (request.content_length or 0) > max_bytes:
            raise body_too_large(max_bytes, "")
        if not self.is_sent:
            await self._read_to_end(max_bytes)
        elif self._end is None or not self.can_rewind:
            raise RuntimeError("the body is on its way to the app; read it in rewrite_request or earlier")
        if self._size > max_bytes:
            raise body_too_large(max_bytes, "")
        return b"".join(self._kept)

    async def _read_to_end(self, max_bytes: int) -> None:
        """Keep all of it, or as much as shows that it is more than `max_bytes`."""
        await task_lane()
        self.limit = max(self.limit, max_bytes)
        parts = 0
        try:
            while self._end is None and self._size <= max_bytes:
                part = await self._receive()
                if isinstance(part, bytes):  # kept also when it is too much: whoever asked may be content with less
                    self.limit = max(self.limit, self._size + len(part))
                self._keep(part)
                parts += 1
                if parts % PARTS_IN_A_ROW == 0:  # a body in small chunks leaves the others their turn
                    await trio.lowlevel.checkpoint()
        finally:
            self._position = 0  # also when a plugin does not wait for the end: what has arrived is forwarded

    def next_now(self) -> bytes | End | None:
        """The next part if it is there.  Raises `FrontdError` (downstream)."""
        known = self._replayed()
        return known if known is not None else self._keep(self._down.body_now())

    def part_now(self, size: int) -> Part | End | None:
        """`next_now` for who is done with the part before anything else is read: what is not kept may be a view of up
        to `size` bytes (`Stream.receive_view`).  Raises `FrontdError` (downstream)."""
        known = self._replayed()
        if known is not None:
            return known
        try:
            if self.can_rewind:
                return self._keep(self._down.body_now())
            part = self._down.part_now(size)
        except FrontdError as error:
            self._failure = _again(error)
            raise
        if isinstance(part, End):
            self._end = part
        elif part is not None:
            self._size += len(part)
        return part

    async def wait(self) -> None:
        """Until the next part may be there.  Raises `FrontdError` (downstream)."""
        try:
            await self._down.body_readable()
        except FrontdError as error:
            self._failure = _again(error)
            raise

    async def _receive(self) -> bytes | End:
        if self._failure is not None:
            raise self._failure
        try:
            return await self._down.receive_body()
        except FrontdError as error:
            self._failure = _again(error)
            raise

    def rewind(self) -> None:
        """Begin again with the first part; only when `can_rewind`."""
        assert self.can_rewind
        self._position = 0

    def _replayed(self) -> bytes | End | None:
        self.is_sent = True
        if self._failure is not None:  # a part is missing, and nobody takes what is there for the whole
            raise self._failure
        if self._position < len(self._kept):
            self._position += 1
            return self._kept[self._position - 1]
        return self._end

    def _keep(self, part: bytes | End | None) -> bytes | End | None:
        if isinstance(part, End):
            self._end = part
        elif part is not None:
            self._size += len(part)
            if self.can_rewind and self._size <= self.limit and self._has_room(len(part)):
                self._kept.append(part)
                self._position = len(self._kept)
            else:
                self.can_rewind = False
                self.release()
                self._kept.clear()
                self._position = 0
        return part


def _again(error: FrontdError) -> FrontdError:
    """The same error without its traceback, which would tie the body to itself."""
    return FrontdError(error.reason, detail=error.detail, hint=error.hint, status=error.status)


def trailers_of(request: Request, end: End) -> Headers:
    """The trailer fields of a request that may pass (RFC 9110 6.5.1)."""
    return announced_trailers(request.headers, end.trailers) if end.trailers is not NO_TRAILERS else NO_TRAILERS


def send_request_now(
    upstream: Upstream, request: Request, target: bytes, headers: Headers | bytes, body: RequestBody | None
) -> bool:
    """Send the head and as much body as is there, in one write.  True when the request is complete.

    Raises `UpstreamGone`, or `FrontdError` (downstream).
    """
    http = upstream.http
    length = CHUNKED if request.chunked else request.content_length
    complete = body is None
    data = http.send_head(request.method, target, headers, length, whole=complete, upgrades=bool(request.upgrade))
    if body is not None:
        out: list[Part] = [data]
        for _ in range(2):  # the part that came with the head, and the end behind it
            part = body.next_now()
            if isinstance(part, End):
                out.append(http.send_end(trailers_of(request, part)))
                complete = True
            elif part is not None:
                out.append(http.send_body(part))
                continue
            break
        data = b"".join(out)
    upstream.send_now(data)
    return complete


def next_size(size: int, part: Part, taken: bool) -> int:
    """How much of a large body to read next, after `part` of up to `size` bytes, which the receiver's kernel has taken
    at once or not.

    It grows while the receiver keeps up: what has to be kept when it stops is little beside what its kernel holds.
    """
    if not taken:
        return READ_SIZE
    return min(2 * size, LARGE_READ) if len(part) == size else size


class Pump:
    """Moves the rest of a request body to the app; `error` is what ended it early on the client's side."""

    __slots__ = ("_progress", "_waits", "body", "error", "request", "stall", "upstream")

    def __init__(self, upstream: Upstream, request: Request, body: RequestBody, stall: float) -> None:
        self.upstream = upstream
        self.request = request
        self.body = body
        self.stall = stall
        self._progress = clock.now()
        self._waits = False  # for the client
        self.error: FrontdError | None = None

    @property
    def progress(self) -> float:
        """When the app last got something (s of trio's clock); now, while the client owes it the next part."""
        return clock.now() if self._waits else self._progress

    async def sees_its_end(self) -> None:
        """A quick app has answered: everything may be sent, and the pump only not have had its turn to see that."""
        for _ in range(2):
            if not self.upstream.http.request_complete:
                await trio.lowlevel.checkpoint()

    async def run_task(self, scope: trio.CancelScope) -> None:
        """`run` as the body of a task of its own."""
        await carry(self.run(scope))

    async def run(self, scope: trio.CancelScope) -> None:
        """Until the body is complete.  A fault of the client cancels `scope`; a fault of the app, which may be that it
        reads no more, only ends the pump, since its answer may already be on the way."""
        upstream, body = self.upstream, self.body
        size, parts = READ_SIZE, 0
        try:
            while True:
                if upstream.stream.pending:
                    await upstream.flush(self.stall)
                self._waits = True
                while (part := body.part_now(size)) is None:
                    await body.wait()
                    parts = 0
                self._waits = False
                self._progress = clock.now()
                if isinstance(part, End):
                    if not upstream.send_now(upstream.http.send_end(trailers_of(self.request, part))):
                        await upstream.flush(self.stall)
                        self._progress = clock.now()
                    return
                parts += len(part) // READ_SIZE or 1
                size = next_size(size, part, upstream.send_now(upstream.http.send_body(part)))
                if parts >= PARTS_IN_A_ROW:  # a fast client with a fast app leaves the others their turn
                    await trio.lowlevel.checkpoint()
                    parts = 0
        except UpstreamGone:
            return
        except FrontdError as error:
            if self._waits:
                self.error = error
                scope.cancel()
