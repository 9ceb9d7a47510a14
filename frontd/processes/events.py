"""The event log: what happened to pools, under the numbers that WAS gives it in Windows' system log.

One JSON object per line, in ``log.events`` (left out: the error log has the sentence, and there is no file).
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

KEPT = 200  # of the latest, for those who ask

# Number: its level.  5077 (virtual memory), 5078 (ISAPI) and the rest of the list of WAS have no counterpart.
LEVELS: dict[int, str] = {
    5002: "error",  # rapid-fail protection has taken the pool out of service
    5009: "warning",  # a worker ended unexpectedly
    5010: "warning",  # a worker did not answer a ping
    5012: "warning",  # a worker was not ready within the start limit
    5013: "warning",  # a worker did not end within the stop limit
    5074: "information",  # recycled: time
    5075: "information",  # recycled: number of requests
    5076: "information",  # recycled: schedule
    5079: "information",  # recycled: on demand
    5080: "information",  # recycled: its configuration changed
    5093: "warning",  # an overlapped recycle failed; the old worker stays
    5117: "information",  # recycled: private memory
    5186: "information",  # stopped: idle
}


class Events:
    """Writes events, and remembers the latest.  `remark` writes a sentence into the error log."""

    def __init__(self, remark: Callable[[str], None], path: Path | None = None) -> None:
        self.remark = remark
        self.path = path
        self.latest: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def tell(self, number: int | None, pool: str, text: str, **facts: object) -> None:
        """Something happened to `pool`; without a number, when WAS has none for it."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        level = LEVELS.get(number or 0, "information")
        event = {"time": now, "id": number, "level": level, "pool": pool, "text": text, **facts}
        self.latest.append(event)
        self.remark(f"{f'event {number}: ' if number else ''}pool {pool}: {text}")
        if self.path is not None:
            line = json.dumps(event).encode() + b"\n"
            with suppress(OSError):  # the error log has the sentence
                fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
                try:
                    os.write(fd, line)
                finally:
                    os.close(fd)
