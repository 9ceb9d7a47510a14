"""Asks workers whether they answer: a request on a connection of its own, of which the status is read.

``OPTIONS *`` is HTTP's own ping (RFC 9110 9.3.7): it asks for the server as a whole, and no app takes it for a page.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence

import trio

from frontd.processes.worker import Worker
from frontd.upstream.client import Address

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r]")
RETRY = 0.05  # s between two looks whether a worker answers
PATIENT = 1.0  # s until a question that is still open is what there is to say about a worker
LONGEST = 4096  # bytes of an answer that are looked at


class NoAnswer(Exception):
    """Nobody listens there, or the connection ended without an answer; the text says which."""


async def answer_of(address: Address, path: str, host: str) -> int:
    """The status of the answer to ``GET path``, or ``OPTIONS *`` for the path ``*``.

    It waits for as long as it takes.  Raises `NoAnswer`.
    """
    method = "OPTIONS" if path == "*" else "GET"
    request = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: frontd\r\nConnection: close\r\n\r\n"
    try:
        stream = await _connected(address)
        async with stream:
            await stream.send_all(request.encode())
            seen = b""
            while len(seen) < LONGEST and (data := await stream.receive_some(LONGEST)):
                seen += data
                if (status := _STATUS.match(seen)) is not None:
                    return int(status[1])
    except (OSError, trio.BrokenResourceError) as error:
        raise NoAnswer(getattr(error, "strerror", None) or "the connection broke") from None
    raise NoAnswer("what it answers is not HTTP" if seen else "it closes the connection without an answer")


async def answer_or_gone(worker: Worker, path: str) -> int:
    """`answer_of` a worker, which ends when the worker does.  Raises `NoAnswer`."""
    status: int | None = None
    failure = NoAnswer("it has ended")
    async with trio.open_nursery() as nursery:

        async def end_with_it() -> None:
            await worker.gone.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(end_with_it)
        try:
            status = await answer_of(worker.address, path, "localhost")
        except NoAnswer as error:
            failure = error
        nursery.cancel_scope.cancel()
    if status is None:
        raise failure
    return status


async def until_ready(worker: Worker, paths: Sequence[str], limit: float) -> str:
    """Wait until a worker answers all of `paths` below 500, or ``OPTIONS *`` somehow when there are none; why it does
    not, when it has ended or `limit` seconds are over, else nothing."""
    last = "it does not listen"
    asked = trio.current_time()
    with trio.move_on_after(limit):
        for path in paths or ("*",):
            while not worker.gone.is_set():
                asked = trio.current_time()
                try:
                    status = await answer_or_gone(worker, path)
                except NoAnswer as error:
                    last = str(error)
                else:
                    if path == "*" or status < 500:
                        break
                    last = f"{path} is answered with {status}"
                await trio.sleep(RETRY)
        if not worker.gone.is_set():
            return ""
        return "it has ended"
    if trio.current_time() - asked >= PATIENT:
        last = f"it does not answer {'OPTIONS *' if path == '*' else path}"
    return last


async def _connected(address: Address) -> trio.SocketStream:
    family, where = (socket.AF_INET, (address.host, address.port)) if address.port else (socket.AF_UNIX, address.host)
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        await sock.connect(where)
        # trio takes a full backlog for a connection that is made; the first send tells, with ENOTCONN
        return trio.SocketStream(sock)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        raise NoAnswer("it does not listen") from None
    except BaseException:
        sock.close()
        raise
