"""Where the lines of one log go: a file that several processes may share, a pipe, a standard stream.

How it works
------------
A file is opened for appending, and what is ready goes out in one write: the kernel appends it as a whole, so processes
that log to one file need no lock for their lines.  Everything else (a pipe, a FIFO, a terminal, a socket) gets whole
lines joined up to `PIPE` bytes at a time, which a pipe takes as a whole.

A file is made, and renamed when it has grown too large, under an flock on its folder.  Each process looks at the path
before it writes: where another file stands there by now (another process has rotated, or logrotate has made a new one)
it goes over to that one.  Where nothing stands there, somebody has renamed it and will ask for a reopening: until then
lines go on into the renamed file.  The directives of the W3C format are written under the same flock by whoever finds
the file without them.  The folder's lock is waited for `PATIENCE` seconds at most; without it a file is still opened,
and not rotated.

Invariants
----------
* Used by the writer's thread only.
* Every write begins and ends with a line, and one to something else than a file has at most `PIPE` bytes of lines.
* A line that could not be written whole (a full disk) is ended by a line break before the next one of this process, so
  that it spoils none of them.
* A new file begins with its directives, and has them once however many processes write to it.
* A file is longer than `max_size` by what other processes wrote at the same moment, at most.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

from frontd.config.model import LogFile
from frontd.pipeline.accesslog import MAX_LINE, stamp

PIPE = MAX_LINE  # bytes of one write to something else than a file: PIPE_BUF on Linux
PATIENCE = 2.0  # s for the lock of a folder
RETRY = 0.005  # s between two tries
HEAD = 1024  # bytes of a file in which its directives are looked for


class Sink:
    """One log's way out.  `lines` wait for it; `done` counts those of the last `write` that are out."""

    def __init__(
        self, name: str, settings: LogFile, fields: str, complain: Callable[[str, str], None], leads: bool
    ) -> None:
        self.name = name
        self.settings = settings
        self.label = f"{name} {settings.to}"
        self.is_on = settings.to != "off"
        self.lines: deque[bytes] = deque()
        self.done = 0
        self._fields = fields if settings.format == "w3c" else ""
        self._complain = complain
        self._leads = leads
        self._fd: int | None = None
        self._id = (0, 0)  # device and inode
        self._size = 0  # bytes, when last looked at
        self._limit = settings.max_size  # bytes at which it is rotated
        self._is_file = False
        self._rotates = False
        self._torn = False  # what was written last does not end in a line break
        self._written = 0  # bytes of what is being written

    def open(self) -> None:
        """Open what is not open yet, and begin with the directives of the format.  Raises `OSError`."""
        to = self.settings.to
        if self._fd is not None or not self.is_on:
            return
        if isinstance(to, Path):
            with suppress(FileExistsError):  # not a directory: `open` says it better
                to.parent.mkdir(parents=True, exist_ok=True)
            if _is_special(to):
                self._open_file(to)
            else:
                with locked(to.parent):  # or not; it is opened all the same
                    self._open_file(to)
            return
        if (sys.__stdout__ if to == "stdout" else sys.__stderr__) is None:
            # whatever has this number by now is not ours to write to
            raise OSError(errno.EBADF, f"{to} is closed")
        self._begin(1 if to == "stdout" else 2, None)

    def _open_file(self, path: Path) -> None:
        # O_NONBLOCK means nothing to a file; a FIFO that nobody reads is an error with it and not a wait
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        self._begin(os.open(path, flags, 0o666), path)

    def _begin(self, fd: int, path: Path | None) -> None:
        self._fd = fd
        found = os.fstat(fd)
        self._id = found.st_dev, found.st_ino
        self._size = found.st_size
        self._limit = self.settings.max_size
        self._is_file = stat.S_ISREG(found.st_mode)
        # Only what has this name itself is renamed: never a device such as /dev/null, nor a link such as /dev/stdout.
        self._rotates = path is not None and self._is_file and stat.S_ISREG(path.lstat().st_mode)
        if path is not None and self._is_file:
            self._torn = self._size > 0 and not _ends_in_line_break(path)
        if self._fields and self._is_without_directives(path):
            self._write(directives(self._fields))

    def _is_without_directives(self, path: Path | None) -> bool:
        """A stream has no beginning that could be looked at: of several processes one `leads`."""
        if path is None or not self._is_file:
            return self._leads
        return self._size == 0 or f"\n#Fields: {self._fields}\n".encode() not in _head(path)

    def write(self, batch: Sequence[bytes]) -> None:
        """Write lines, each without its line break.  Raises `OSError`; `done` of them are out then."""
        self.done = 0
        while self.done < len(batch):
            self.open()
            if self._rotates and not self._is_current():
                self.close()
                continue
            count = self._how_many(batch)
            if not count:
                self._rotate()
                continue
            data = b"\n".join((*batch[self.done : self.done + count], b""))
            try:
                self._write(data)
            finally:
                self.done += data.count(b"\n", 0, self._written)

    def _is_current(self) -> bool:
        """Whether our file is still the one at the path, and has not been emptied; its size is looked up as well."""
        assert self._fd is not None
        try:
            found = os.stat(self.settings.to)
        except OSError:  # renamed from outside, a reopening will be asked for
            found = os.fstat(self._fd)
        emptied = found.st_size < self._size
        self._size = found.st_size
        return (found.st_dev, found.st_ino) == self._id and not emptied

    def _how_many(self, batch: Sequence[bytes]) -> int:
        """How many of the lines that are left go out in one write."""
        if self._is_file and not self._rotates:
            return len(batch) - self.done
        room = self._limit - self._size if self._rotates else PIPE
        if self._rotates and not self.done and sum(map(len, batch)) + len(batch) <= room:
            return len(batch)
        count = 0
        for at in range(self.done, len(batch)):
            room -= len(batch[at]) + 1
            if room < 0:
                break
            count += 1
        return count

    def _write(self, data: bytes) -> None:
        """Write `data`, after the line break that is owed.  Raises `OSError`; `_written` bytes of it are out then."""
        assert self._fd is not None
        self._written = 0
        owed = int(self._torn)
        view = memoryview(b"\n" + data if owed else data)
        while view:
            try:
                size = os.write(self._fd, view)
            except BlockingIOError:  # a stream that does not block; this thread may wait
                writable = select.poll()
                writable.register(self._fd, select.POLLOUT)
                writable.poll()
                continue
            self._torn = view[size - 1] != 0x0A
            self._written += size - owed
            self._size += size
            view, owed = view[size:], 0

    def _rotate(self) -> None:
        """access.log → access.log.1 → … ; the oldest of `keep` goes.  A file that cannot be renamed is written on."""
        path = self.settings.to
        assert isinstance(path, Path)
        with locked(path.parent) as is_free:
            problem = "" if is_free else "its folder is locked by another process"
            if is_free and self._is_at(path):  # else another process was faster
                problem = _shift(path, self.settings.keep)
        if problem:
            self._limit = self._size + self.settings.max_size  # the next try is a whole `max_size` away
            self._complain(self.label, f"not rotated: {problem}")
        else:
            self.close()

    def _is_at(self, path: Path) -> bool:
        with suppress(OSError):
            found = path.lstat()
            return (found.st_dev, found.st_ino) == self._id
        return False

    def close(self) -> None:
        """Close a file; a standard stream stays open."""
        if self._fd is not None and isinstance(self.settings.to, Path):
            os.close(self._fd)
            self._fd = None


def directives(fields: str) -> bytes:
    """What a W3C log begins with."""
    return f"#Software: frontd\n#Version: 1.0\n#Date: {stamp(time.time())}\n#Fields: {fields}\n".encode()


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder among processes; False when another process does not give it back for `PATIENCE` s.

    A folder or file system that knows no such lock is nobody's: True.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # may be written and not read
        yield True
        return
    try:
        yield _lock(fd)
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(RETRY)
        except OSError:
            return True
        else:
            return True


def _shift(path: Path, keep: int) -> str:
    """Rename a file and those before it; the system's word for what is wrong, or nothing."""
    numbered = [path, *(path.with_name(f"{path.name}.{n}") for n in range(1, keep + 1))]
    try:
        for newer, older in reversed(list(pairwise(numbered))):
            with suppress(FileNotFoundError):
                newer.replace(older)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _is_special(path: Path) -> bool:
    """Whether there is something that is no file: a device, a FIFO, a terminal."""
    with suppress(OSError):
        return not stat.S_ISREG(path.stat().st_mode)
    return False


def _head(path: Path) -> bytes:
    """The beginning of a file; nothing of one that may be written and not read."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(HEAD)
    return b""


def _ends_in_line_break(path: Path) -> bool:
    """Whether the last line of a file is whole; one that another process is just writing is looked at again."""
    size = -1
    with suppress(OSError), path.open("rb", buffering=0) as file:
        while (now := file.seek(0, os.SEEK_END)) != size:
            if not now:
                break
            size = now
            file.seek(-1, os.SEEK_END)
            if file.read(1) == b"\n":
                break
            time.sleep(RETRY)
        else:
            return False
    return True  # also one that may be written and not read
