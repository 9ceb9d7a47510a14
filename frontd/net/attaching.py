"""The other side of `frontd attach`: a process that registers prefixes and gets a listening socket for them.

How it works
------------
One ``POST /attach`` on a control socket of frontd; the answer begins with a line of JSON, with which the socket comes
(SCM_RIGHTS), and lasts as long as the process is attached.  When it ends although nobody has ended it here, frontd's
control process has died, or all of frontd: the process calls again, with back-off, and says which place it had, which
frontd keeps for it.  The listening socket stays the same meanwhile, and so do the requests that come in on it.

It stands by itself and needs the standard library only, so that an app that imports it loads nothing else of frontd.

Invariants
----------
* What frontd refuses is not asked for again: `AttachRefused` says why.
* `Attachment.end` returns when no front sends anything here any more, or after `FAREWELL` seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

PATIENCE = 60.0  # s for an answer; a registration has every front build a world
FAREWELL = 10.0  # s for the fronts to let go
BACKOFF_FIRST = 0.05  # s until the next call
BACKOFF_LAST = 2.0
LARGEST = 65536  # bytes of the beginning of an answer


class AttachRefused(Exception):
    """frontd has said no; `word` is one of its error words, or empty."""

    def __init__(self, text: str, word: str = "") -> None:
        super().__init__(text)
        self.word = word


class Attachment:
    """One process that is attached.  `sock` listens; `queue` and `place` are as frontd has named them."""

    def __init__(
        self, control: str, urls: Sequence[str], queue: str | None, concurrency: int | None, mode: str
    ) -> None:
        self.control = control
        self.queue = queue or ""
        self.place = ""
        self.sock: socket.socket | None = None
        self.said: Callable[[str], None] = lambda _: None  # told what happens to the connection
        self.refused: AttachRefused | None = None  # why it did not get its place back
        self._asked: dict[str, Any] = {"urls": list(urls), "concurrency": concurrency, "mode": mode}
        self._line: socket.socket | None = None
        self._ending = threading.Event()

    def begin(self) -> socket.socket:
        """Attach; the listening socket, which blocks.  Raises `AttachRefused` and `OSError`."""
        self._line, self.sock = self._call()
        assert self.sock is not None, "frontd hands a socket over with a new place"
        return self.sock

    def _call(self) -> tuple[socket.socket, socket.socket | None]:
        """Ask; the connection that lasts, and the listening socket if it is a new one."""
        asked = {**self._asked, "queue": self.queue or None, "place": self.place or None}
        body = json.dumps(asked).encode()
        head = f"POST /attach HTTP/1.1\r\nHost: frontd\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            line.settimeout(PATIENCE)
            line.connect(self.control)
            line.sendall(head.encode() + b"\r\n\r\n" + body)
            said, sock = first_of(line)
            line.settimeout(None)
        except BaseException:
            line.close()
            raise
        self.queue, self.place = said["queue"], said["place"]
        return line, sock

    def keep(self) -> None:
        """Stay attached until `end`: returns then, or when frontd refuses to take it back (`refused`)."""
        while not self._ending.is_set():
            assert self._line is not None
            try:
                while self._line.recv(4096):
                    pass
            except OSError:
                pass
            self._line.close()
            if not self._ending.is_set() and not self._come_back():
                return

    def _come_back(self) -> bool:
        """Call again until somebody answers; False: not any more."""
        self.said("frontd has ended the connection; attaching again")
        pause = BACKOFF_FIRST
        while not self._ending.wait(pause):
            pause = min(pause * 2, BACKOFF_LAST)
            try:
                line, sock = self._call()
            except OSError:
                continue
            except AttachRefused as refused:
                self.refused = refused
                return False
            if sock is not None:  # nobody listens on it here
                sock.close()
            self._line = line
            self.said(f"attached again to the queue {self.queue}")
            return True
        return False

    def end(self) -> None:
        """Detach: requests wait in the queue from now on; what has come in here already is to be finished."""
        if self._ending.is_set() or self._line is None:
            return
        self._ending.set()
        with contextlib.suppress(OSError):
            self._line.settimeout(FAREWELL)
            self._line.shutdown(socket.SHUT_WR)
            while self._line.recv(4096):
                pass
        self._line.close()


def first_of(line: socket.socket) -> tuple[dict[str, Any], socket.socket | None]:
    """The first line of the answer, and the socket that came with it.  Raises `AttachRefused` and `OSError`."""
    data, fds = b"", []
    try:
        while b"\r\n\r\n" not in data or not is_whole(data):
            part, found, _, _ = socket.recv_fds(line, 65536, 4)
            fds += found
            if not part:
                raise ConnectionResetError("frontd has ended the connection without an answer")
            data += part
            if len(data) > LARGEST:
                raise AttachRefused("this is no answer of frontd's")
        head, _, body = data.partition(b"\r\n\r\n")
        try:
            said, status = json.loads(body), int(head.split()[1])
        except (ValueError, IndexError):
            raise AttachRefused("this is no answer of frontd's") from None
        if status == 503:  # it ends, or the fronts do not follow: later perhaps
            raise OSError(said.get("error", "frontd cannot do it now"))
        if status != 200:
            raise AttachRefused(str(said.get("error", status)), str(said.get("word", "")))
        return said, socket.socket(fileno=fds.pop(0)) if fds else None
    finally:
        for fd in fds:
            os.close(fd)


def is_whole(data: bytes) -> bool:
    """Whether the first line of the body is there."""
    return data.partition(b"\r\n\r\n")[2].endswith(b"\n")


@contextlib.contextmanager
def attach(
    *urls: str, control: str = "/run/frontd/control.sock", queue: str | None = None, concurrency: int | None = None,
    mode: str = "create-or-attach",
) -> Iterator[socket.socket]:  # fmt: skip
    """Attach this process to frontd: a listening socket on which the requests under `urls` come in, as HTTP/1.1.

        with frontd.attach("https://+:443/shop/", control="/run/frontd/attach/shop.sock") as sock:
            serve(sock)

    `control` is the attach socket of a pool, or the main control socket; `queue` the queue's name (left out: the pool
    of the socket, or one made of the URL); `concurrency` how many requests come at once (left out: any number); `mode`
    is ``create``, ``attach`` or ``create-or-attach``.  At the end the process is detached, and requests wait in the
    queue.  A thread attaches it again when frontd is restarted.

    Raises `AttachRefused` with frontd's own words, and `OSError` when there is no contact.
    """
    attachment = Attachment(control, urls, queue, concurrency, mode)
    sock = attachment.begin()
    keeper = threading.Thread(target=attachment.keep, name="frontd attach", daemon=True)
    keeper.start()
    try:
        yield sock
    finally:
        attachment.end()
        keeper.join(FAREWELL)
        sock.close()
