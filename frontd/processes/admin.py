"""The admin listener: what the control socket answers, over TCP, to whoever has the token (RFC 6750).

How it works
------------
The kernel says nothing of who is at the other end of a TCP connection, so every call has to bring the bearer token of
``control.token_file``.  The file is read at each call: a new token holds at once, and one that everybody may read, or
that cannot be read, lets nobody in.  It is plain HTTP; the configuration keeps it to loopback unless told otherwise.

Invariants
----------
* Without the right token nothing is answered but 401, on whatever path; tokens are compared in constant time.
* Neither a token nor what was sent in its place is written down.  Who was refused is, at most once a second.
* Callers here have no uid: what asks for one (attaching, for instance) refuses them.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import replace
from pathlib import Path

import trio

from frontd.config.certificates import Unusable
from frontd.config.tokens import read_token
from frontd.processes.calls import Call, Reply, answer_by, as_json
from frontd.processes.control import Control

ADMIN_PATIENCE = 1.0  # s: it is open to strangers, as the health listener is
ADMIN_CALLERS = 128
PAUSE = 1.0  # s between two lines about callers that were refused


class Admin:
    """Answers for `control` to who has the token in `file`."""

    def __init__(self, control: Control, file: Path) -> None:
        self.control = control
        self.file = file
        self._quiet_until = 0.0
        self._unsaid = 0  # refusals since the last line

    async def answer(self, call: Call) -> Reply:
        """The reply to one request on the admin listener."""
        try:
            token = await trio.to_thread.run_sync(read_token, self.file, abandon_on_cancel=True)
        except Unusable as unusable:
            return self._refused(call, f"there is no token to compare with ({unusable})", "this frontd has no token")
        if not call.token:
            return self._refused(call, "no token", "send the token: Authorization: Bearer TOKEN", "")
        if not is_same(call.token, token):
            return self._refused(call, "wrong token", "this is not the token", ' error="invalid_token"')
        return await answer_by(self.control.endpoints, call)

    def _refused(self, call: Call, why: str, told: str, challenge: str = "") -> Reply:
        now = time.monotonic()
        if now < self._quiet_until:
            self._unsaid += 1
        else:
            also = f"; {self._unsaid} more were refused before" if self._unsaid else ""
            self.control.audit(f"{call.method} {call.path}", call.caller, f"refused, {why}{also}")
            self._quiet_until, self._unsaid = now + PAUSE, 0
        field = f'Bearer realm="frontd"{"," if challenge else ""}{challenge}'
        return replace(as_json({"error": told}, 401), fields=((b"WWW-Authenticate", field.encode()),))


def is_same(sent: str, token: str) -> bool:
    """Whether `sent` is the token; takes as long whatever it is, and however long."""
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (sent, token)]
    return hmac.compare_digest(*digests)
