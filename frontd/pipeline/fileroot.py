"""Opening a file beneath a directory, and nothing outside of it.

How it works
------------
`open_beneath` opens a relative path under an opened directory.  Where the kernel has it (Linux 5.6) this is one call of
``openat2`` with ``RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS``: the kernel itself refuses every step out, at the moment of
opening, so that nothing can be exchanged between a check and its use.  Symbolic links that stay beneath are followed;
absolute ones are a step out, wherever they lead.  Elsewhere (old kernels, seccomp profiles that do not know the call)
each segment is opened in its turn with ``O_NOFOLLOW``: then no symbolic link is followed at all.  A self-test at import
decides which of the two it is.

The root is opened by its path again for each file: a deploy may exchange the directory, or the symbolic link that the
path names, and the next request sees the new one.  A file that is being sent stays the one that was opened.

Invariants
----------
* What is opened is a regular file; a FIFO does not block, a device or socket is not kept open.
* A path for `open_beneath` is relative, without empty, ``.`` or ``..`` segments: its callers see to that, and whatever
  comes all the same is refused or stays beneath.
* No file descriptor outlives the exchange: `OpenFile` is a context manager.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from frontd.model.errors import FrontdError, Reason

FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: a FIFO without a writer would block; O_NOCTTY: a terminal would become ours
READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
TRIES = 16  # a rename anywhere on the machine makes the kernel unsure about a ".." in a symbolic link: it says EAGAIN

Beneath = Callable[[int, bytes], int]


# ---------------------------------------------------------------------------------------------------- the kernel's way

_OPENAT2 = 437  # the same on every architecture but alpha
_RESOLVE: Final = 0x02 | 0x08  # RESOLVE_NO_MAGICLINKS | RESOLVE_BENEATH


class _How(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_HOW = ctypes.byref(_How(READ, 0, _RESOLVE))
_SIZE = ctypes.c_size_t(ctypes.sizeof(_How))
_NUMBER = ctypes.c_long(_OPENAT2)
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def open_by_kernel(folder: int, path: bytes) -> int:
    """Open `path` beneath the directory `folder` with openat2.  Raises `OSError`; ``EXDEV`` for a step out."""
    for _ in range(TRIES):
        fd = int(_syscall(_NUMBER, ctypes.c_int(folder), ctypes.c_char_p(path), _HOW, _SIZE))
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number))


def open_by_walk(folder: int, path: bytes) -> int:
    """Open `path` beneath the directory `folder` segment by segment, following no symbolic link.  Raises `OSError`."""
    *folders, name = segments = path.split(b"/")
    if not {b"", b".", b".."}.isdisjoint(segments):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    here = folder
    try:
        for segment in folders:
            before, here = here, os.open(segment, FOLDER | os.O_NOFOLLOW, dir_fd=here)
            if before != folder:
                os.close(before)
        return os.open(name, READ | os.O_NOFOLLOW, dir_fd=here)
    finally:
        if here != folder:
            os.close(here)


def _kernel_can() -> bool:
    """Whether openat2 opens what lies beneath, and refuses both ways out."""
    folder = os.open("/", FOLDER)
    try:
        os.close(open_by_kernel(folder, b"."))
        for way_out in (b"/", b".."):
            try:
                os.close(open_by_kernel(folder, way_out))
            except OSError as error:
                if error.errno != errno.EXDEV:
                    return False
            else:
                return False
    except OSError:  # ENOSYS, or EPERM from a seccomp profile that is older than the call
        return False
    finally:
        os.close(folder)
    return True


open_beneath: Beneath = open_by_kernel if _kernel_can() else open_by_walk


# ---------------------------------------------------------------------------------------------------- files


class OpenFile:
    """A regular file, opened for reading.

    `name` is the last segment of its path; `size` (bytes), `modified` (s since the epoch) and `tag` (a strong entity
    tag, RFC 9110 8.8.3, from the inode, the time of the last change in ns, and the size) are as of opening.
    """

    __slots__ = ("fd", "modified", "name", "size", "tag")

    def __init__(self, fd: int, name: bytes, info: os.stat_result) -> None:
        self.fd = fd
        self.name = name
        self.size = info.st_size
        self.modified = info.st_mtime_ns // 1_000_000_000
        # with the inode, since images are built with one time for all files: a replaced file must have another tag
        self.tag = b'"%x-%x-%x"' % (info.st_ino, info.st_mtime_ns % (1 << 64), info.st_size)

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<OpenFile {self.name!r} fd={self.fd} {self.size} bytes>"

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises `FrontdError` with ``Internal`` when they are not there: the file was cut after it was opened.
        """
        try:
            data = os.pread(self.fd, size, offset)
            while len(data) < size and (more := os.pread(self.fd, size - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise FrontdError(Reason.Internal, detail=f"{self.name!r}: {error.strerror}") from None
        if len(data) < size:
            raise FrontdError(Reason.Internal, detail=f"{self.name!r} became shorter while it was sent")
        return data

    def close(self) -> None:
        """Give the descriptor back; a second time does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@dataclass(frozen=True, slots=True)
class FileRoot:
    """A directory whose files are served.  `index` names the files that stand for a directory, the first one that is
    there; they are relative paths.  Two with the same path and index are equal."""

    path: Path
    index: tuple[str, ...] = ("index.html",)

    @classmethod
    def open(cls, path: Path, index: tuple[str, ...] = ("index.html",)) -> FileRoot:
        """The root at `path`.  Raises `OSError` when it is no directory or may not be entered."""
        os.close(os.open(path, FOLDER))
        return cls(path, index)

    def open_file(self, path: bytes) -> OpenFile:
        """Open the regular file at the relative `path` (see the invariants).

        Raises `OSError`: `IsADirectoryError` for a directory, `FileNotFoundError` also for what is no regular file,
        ``EXDEV`` or ``ELOOP`` for a way out.
        """
        folder = os.open(self.path, FOLDER)
        try:
            fd = open_beneath(folder, path)
        finally:
            os.close(folder)
        try:
            info = os.fstat(fd)
            if stat.S_ISDIR(info.st_mode):
                raise IsADirectoryError(errno.EISDIR, "a directory")
            if not stat.S_ISREG(info.st_mode):
                raise FileNotFoundError(errno.ENOENT, "not a regular file")
        except BaseException:
            os.close(fd)
            raise
        return OpenFile(fd, path.rpartition(b"/")[2], info)
