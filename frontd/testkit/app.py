"""The app behind a site under test: it keeps what it saw and answers as it was told.

How it works
------------
It listens on a Unix socket in the test's directory and speaks HTTP/1.1 by h11, which shares nothing with what frontd
sends requests with: so a request that only frontd finds well-formed does not get here.

Invariant: `requests` holds every request whose body has arrived, oldest first, whatever is answered to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import h11
import trio

from frontd.model.messages import Response
from frontd.testkit.loop import Loop
from frontd.testkit.messages import AppRequest, Fields

BACKLOG = 64
READ_SIZE = 65536

Given = Response | bytes | str
Responder = Callable[[AppRequest], Given]


class Plan(NamedTuple):
    """How a request is answered: by a function, or with bytes as they stand; `delay` in seconds."""

    answer: Responder | bytes
    delay: float = 0.0


def echo(request: AppRequest) -> Response:
    """What the app answers by default: 200 with the request as text."""
    head = [f"{request.method} {request.target}", *(f"{name}: {value}" for name, value in request.headers.pairs)]
    return Response(200, text="\n".join([*head, "", request.text]))


class App:
    """The app.  Its methods are called by the test, between two requests."""

    def __init__(self, path: Path, loop: Loop) -> None:
        self.path = path
        self.requests: list[AppRequest] = []
        """What was asked, oldest first."""
        self._loop = loop
        self._plan = Plan(echo)
        self._scope: trio.CancelScope | None = None

    def respond(
        self,
        answer: Responder | bytes | int = 200,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes | str = b"",
        *,
        delay: float = 0.0,
    ) -> None:
        """Answer what is asked from now on like this, `delay` seconds (of the test's clock) after it was asked.

        `answer` is a status, to go with `headers` and `body`; or a function from the `AppRequest` to a
        `frontd.Response`, or to bytes or a text for the body of a 200; or bytes, which are sent as they stand, and then
        the connection ends.
        """
        if isinstance(answer, int):
            fields = list(headers.items() if isinstance(headers, Mapping) else headers)
            content = body.encode() if isinstance(body, str) else body
            Response(answer, fields, content)  # a status that is none is told here and not to the client
            self._plan = Plan(lambda request: Response(answer, fields, content), delay)
        else:
            self._plan = Plan(answer, delay)

    def echo(self) -> None:
        """Answer as at the beginning: 200 with the request as text."""
        self.respond(echo)

    def stop(self) -> None:
        """The app goes away: its connections are cut, and nobody listens."""
        self._loop.run(self._stop)
        self._loop.settle()

    def start(self) -> None:
        """The app is there (again)."""
        self._loop.call(self._start)
        self._loop.settle()

    # ------------------------------------------------------------------ in the loop

    async def _start(self) -> None:
        if self._scope is None:
            await self._loop.nursery.start(self._run)

    def _stop(self) -> None:
        if self._scope is not None:
            self._scope.cancel()
            self._scope = None

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope() as self._scope:
            with trio.socket.socket(trio.socket.AF_UNIX) as sock:
                await sock.bind(os.fspath(self.path))
                try:
                    sock.listen(BACKLOG)
                    task_status.started()
                    await trio.serve_listeners(self._serve, [trio.SocketListener(sock)])
                finally:
                    os.unlink(self.path)  # the name must be free when it starts again

    async def _serve(self, stream: trio.SocketStream) -> None:
        http = h11.Connection(h11.SERVER)
        try:
            while (request := await _read(stream, http)) is not None:
                self.requests.append(request)
                plan = self._plan
                await trio.sleep(plan.delay)
                if isinstance(plan.answer, bytes):
                    await stream.send_all(plan.answer)
                    return
                if not await _answer(stream, http, request, plan.answer(request)):
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # frontd gave the connection up: its client had left, or a timer had expired
        finally:
            await trio.aclose_forcefully(stream)


async def _read(stream: trio.SocketStream, http: h11.Connection) -> AppRequest | None:
    """The next request, None at the end.  Raises `h11.RemoteProtocolError` for what is no HTTP."""
    head: h11.Request | None = None
    body = b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            if http.they_are_waiting_for_100_continue:
                await stream.send_all(http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            data = await stream.receive_some(READ_SIZE)
            if not data:  # between two requests, or inside of one that frontd gave up
                return None
            http.receive_data(data)
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            fields = Fields(head.headers.raw_items())
            return AppRequest(head.method.decode(), head.target.decode("latin-1"), fields, body)
        else:
            return None


async def _answer(stream: trio.SocketStream, http: h11.Connection, request: AppRequest, given: Given) -> bool:
    """Send what the app answers; whether the connection is kept."""
    response = Response(200, body=given) if isinstance(given, bytes) else given
    if isinstance(response, str):
        response = Response(200, text=response)
    body = response.body or b""
    fields = response.headers.pairs()
    if not {b"content-length", b"transfer-encoding"} & {name.lower() for name, _ in fields}:
        fields.append((b"Content-Length", str(len(body)).encode()))
    events: list[h11.Event] = [h11.Response(status_code=response.status, headers=fields, reason=response.reason)]
    if body and request.method != "HEAD" and response.status not in (204, 304):
        events.append(h11.Data(data=body))
    events.append(h11.EndOfMessage())
    await stream.send_all(b"".join(http.send(event) or b"" for event in events))
    if http.our_state is not h11.DONE:
        return False
    http.start_next_cycle()
    return True
