"""Messages between the processes of one frontd: JSON with open files beside it, over a Unix socket pair.

How it works
------------
A channel is a ``SOCK_SEQPACKET`` pair: each message arrives whole or not at all, in order, and the end of the other
side shows as the end of the channel.  A message is one JSON object; files go with it by ``SCM_RIGHTS`` (unix(7)).  What
is longer than `LARGEST` travels in an anonymous file that is the first of its files.

Invariants
----------
* Nobody waits for a reader: a channel that is full raises `BlockingIOError`, and the caller decides what that means.
* A file that arrives is closed by exec and belongs to whoever received the message.  A message whose files did not
  all fit into the receiver's table of files arrives without any, and says so: ``truncated``.
* Only processes of one protocol (`PROTOCOL`) work together: the code on the disk may be newer than the master.
* Only processes that the master has started hold an end of a channel.  It has no name, and nobody else can open it.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

# What master, control and fronts say to each other, the form of a world (`frontd.processes.handover`) and that of the
# shared memory (`frontd.net.shared`): whoever changes one of them adds 1.  Processes of two protocols are never mixed.
PROTOCOL = 1
LARGEST = 32768  # bytes of a message; many of them fit into the default buffer of a socket (208 KiB)
MOST_FILES = 250  # of one message; the kernel's SCM_MAX_FD is 253

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def other_code(ours: int, theirs: int) -> str:
    """Why a process with the code that is on the disk cannot work for the master that runs."""
    return f"the code on the disk speaks protocol {ours}, the master that runs {theirs}: restart frontd"


class Message(NamedTuple):
    """One message: `data`, and the files that came with it, which the receiver owns."""

    data: dict[str, Any]
    files: list[int]

    def close(self) -> None:
        """Close the files that came with it."""
        for fd in self.files:
            os.close(fd)
        self.files.clear()


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def send(sock: socket.socket, data: dict[str, Any], files: Sequence[int] = ()) -> None:
    """Send one message.

    Raises `BlockingIOError` when the channel is full, another `OSError` when the other side has ended.
    """
    text = json.dumps(data).encode()
    if len(text) <= LARGEST:
        _send(sock, text, files)
        return
    held = sealed("frontd message", text)
    try:
        _send(sock, b"{}", [held, *files])
    finally:
        os.close(held)


def _send(sock: socket.socket, text: bytes, files: Sequence[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    sock.sendmsg([text], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> Message | None:
    """The next message; None when the other side has ended.  Raises `BlockingIOError` when there is none yet."""
    space = socket.CMSG_SPACE(MOST_FILES * array.array("i").itemsize)
    how = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    try:
        text, rights, flags, _ = sock.recvmsg(LARGEST, space, how)
    except ConnectionResetError:  # it has ended and left something unread; what it has said before comes all the same
        text, rights, flags, _ = sock.recvmsg(LARGEST, space, how)
    found = array.array("i")
    for level, kind, data in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    files = list(found)
    if not text:
        return None
    if flags & socket.MSG_CTRUNC:  # out of files; half of them are of no use
        Message({}, files).close()
        return Message({**json.loads(text), "truncated": True}, [])
    if text == b"{}" and files:
        held = files.pop(0)
        try:
            text = content(held)
        finally:
            os.close(held)
    return Message(json.loads(text), files)


async def next_message(sock: socket.socket) -> Message | None:
    """As `receive`, but it waits."""
    import trio

    while True:
        try:
            return receive(sock)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)


# ---------------------------------------------------------------------------------------------------- files in memory


def sealed(name: str, data: bytes) -> int:
    """An anonymous file that holds `data` and that nobody can change any more (memfd_create(2), fcntl(2))."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def content(fd: int) -> bytes:
    """Everything in a file in memory.  Its offset is shared by all who hold it, so it is left alone."""
    size = os.fstat(fd).st_size
    parts, at = [], 0
    while at < size and (part := os.pread(fd, size - at, at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)
