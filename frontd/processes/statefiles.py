"""State that must survive: one JSON document in a file, replaced as a whole.

How it works
------------
A write goes to a new file beside the old one (``.NAME.XXXX.new``), is forced to the disk (fsync(2)), takes the old
one's place (rename(2)), and the directory is forced to the disk, too.  A reader sees the old document or the new one,
whenever the power or the process ends.  The document carries its SHA-256, so that what was damaged later, or edited by
hand, is noticed instead of believed.

Invariants
----------
* `StateFile.write` returns only when the new document is on the disk; when it raises, the old one stands (but for a
  disk that fails after the rename, of which it says so).
* What cannot be read or is damaged raises `StateProblem`, which says where and what to do.  Only a file that is not
  there is no document: whoever forgot a reservation would hand its prefix to somebody else.
* What a writer that was killed has left over is never read, and removed by the next one.
* A file is its owner's alone (mode 0600).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

LARGEST = 8 * 1024 * 1024  # bytes; some 30,000 reservations

_FULL = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would exceed the limit of file sizes (RLIMIT_FSIZE)",
    errno.EROFS: "the file system is read-only",
}


class StateProblem(Exception):
    """A state file cannot be read, or not be written; the text says which, why, and what to do."""


class StateFile:
    """The document at `path`; `kind` and `version` say what it is a document of."""

    def __init__(self, path: Path, kind: str, version: int = 1) -> None:
        self.path = path
        self.kind = kind
        self.version = version

    def read(self) -> Any:
        """The document; None when there is no file.  Raises `StateProblem`."""
        try:
            with open(self.path, "rb") as file:
                data = file.read(LARGEST + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateProblem(
                f"{self.path} cannot be read: {error.strerror or error}; frontd must be able to read it, or its "
                f"{self.kind} would be forgotten"
            ) from None
        if len(data) > LARGEST:
            raise self._damaged(f"it is larger than {LARGEST} bytes")
        try:
            envelope = json.loads(data)
        except (ValueError, RecursionError):
            raise self._damaged("it is not JSON") from None
        if not isinstance(envelope, dict) or envelope.get("frontd") != self.kind:
            raise self._damaged(f"it does not hold {self.kind}")
        if envelope.get("version") != self.version:
            raise self._damaged(f"its version is {envelope.get('version')!r}, and this frontd knows {self.version}")
        if envelope.get("sha256") != digest(envelope.get("document")):
            raise self._damaged("its checksum is wrong")
        return envelope["document"]

    def write(self, document: Any) -> None:
        """Replace the document, and return when that is on the disk.

        Raises `StateProblem`; the old one stands then.
        """
        envelope = {"frontd": self.kind, "version": self.version, "sha256": digest(document), "document": document}
        text = json.dumps(envelope, indent=1, ensure_ascii=False).encode()
        try:
            if len(text) > LARGEST:
                raise OSError(errno.EFBIG, f"it would be larger than {LARGEST} bytes")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            self._replace(text)
        except OSError as error:
            why = _FULL.get(error.errno or 0) or error.strerror or str(error)
            raise StateProblem(f"{self.path} cannot be written: {why}; nothing was changed") from None
        try:
            self._settle()
        except OSError as error:
            raise StateProblem(
                f"{self.path} was written, but may not last: its directory: {error.strerror or error}"
            ) from None

    def _replace(self, text: bytes) -> None:
        fd, name = tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=".new", dir=self.path.parent)
        try:
            try:
                rest = memoryview(text)
                while rest:
                    rest = rest[os.write(fd, rest) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(name, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise

    def _settle(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _remove_leftovers(self) -> None:
        for path in self.path.parent.glob(f".{self.path.name}.*.new"):
            path.unlink(missing_ok=True)

    def _damaged(self, what: str) -> StateProblem:
        return StateProblem(
            f"{self.path} is damaged: {what}; put a copy back, or remove the file to begin without any {self.kind}"
        )


def digest(document: Any) -> str:
    """What tells a document from any other."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
