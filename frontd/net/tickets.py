"""Session-ticket keys that all fronts share: a client's TLS session resumes at whichever front it meets next.

How it works
------------
Every front builds its own SSLContexts, and each context would make ticket keys of its own (RFC 5077, RFC 8446 4.6.1).
So the master makes 32 random bytes at start and hands them to the fronts; `FamilySecret` turns them into 80 bytes of
keys for a profile and a day, and `arm` gives them to a context.  Fronts that serve the same profile hold the same keys.

The standard library has no setter for these keys.  `arm` calls OpenSSL's `SSL_CTX_ctrl` in the very library that
Python's `ssl` uses, on the pointer that stands behind the object header of an `SSLContext`.  Whether that is where it
stands is tried in a process of its own first (`works`): it shakes hands with contexts that have equal and unequal keys.
If it crashes, hangs, or resumes the wrong sessions, `arm` never touches a context in this process; sessions then resume
at the front that made them, and nothing else changes.  The verdict is left in the environment for processes that are
started from here, with the interpreter and the library it was found for; others can be given it (`token`).

Keys live a UTC day, and every front changes them by the clock, without a word between them.  The secret is a ratchet:
the secret of a day is the HMAC of that of the day before, and a front forgets the older one.  So whoever reads the
memory of a front today cannot open the tickets (in TLS 1.2: the traffic) of yesterday.  OpenSSL holds one key: a
session of yesterday costs a full handshake, once.  A callback that knows two keys would run Python, with pointers into
OpenSSL, inside every handshake; that is too much for at most two hours of tickets (OpenSSL's lifetime of a session).

Invariants
----------
* Two profiles never have the same keys.  Nothing else keeps a session of the one from resuming at the other: Python
  gives all contexts the same session id context.
* A context is touched only when the trial has shown that pointer and calls are right.
* The secret, and what is made of it, is never shown: no `repr`, no log, no argument vector, no environment.
"""

from __future__ import annotations

import ctypes
import datetime
import functools
import hashlib
import hmac
import os
import ssl
import subprocess
import sys
from typing import Any

SECRET_SIZE = 32
KEYS_SIZE = 80  # OpenSSL 1.1.0 and later: name 16, HMAC key 32, AES-256 key 32
DAY = 86400.0  # seconds
VERDICT = "FRONTD_TICKET_KEYS"  # environment variable with the verdict of `works`
TRIAL_TIME = 20.0  # seconds; it takes a small part of one

_FIRST_DAY = 20454  # 2026-01-01: the day for which the secret is given
_LAST_DAY = _FIRST_DAY + 36525  # a clock that is wrong by centuries may not keep a front busy
# openssl/ssl.h
_SET_CACHE_MODE, _CACHE_OFF, _GET_TICKET_KEYS, _SET_TICKET_KEYS = 44, 0, 58, 59


class FamilySecret:
    """What the fronts of one start share, at the day it was last asked for."""

    __slots__ = ("_day", "_state")

    def __init__(self, secret: bytes) -> None:
        """`secret`: 32 random bytes, the same in every front.  Raises `ValueError` for another length."""
        if len(secret) != SECRET_SIZE:
            raise ValueError(f"the family's secret has {SECRET_SIZE} bytes, not {len(secret)}")
        self._day, self._state = _FIRST_DAY, secret

    def keys(self, identity: bytes, now: float) -> tuple[bytes, float]:
        """The 80 bytes of keys for a profile at `now` (seconds since 1970), and when they end.

        Days never go back: a clock that is set back gets the keys of the latest day seen, since older ones are gone.
        """
        day = min(max(int(now // DAY), self._day), _LAST_DAY)
        while self._day < day:
            self._state = hmac.digest(self._state, b"frontd: the next day", "sha256")
            self._day += 1
        block = [hmac.digest(self._state, b"frontd: ticket keys %d " % n + identity, "sha256") for n in range(3)]
        return b"".join(block)[:KEYS_SIZE], (day + 1) * DAY


class Armed:
    """A context with keys of the family, which follow the day."""

    __slots__ = ("_context", "_identity", "_secret", "_until")

    def __init__(self, context: ssl.SSLContext, secret: FamilySecret, identity: bytes, now: float) -> None:
        self._context, self._secret, self._identity = context, secret, identity
        self._until = 0.0
        self.follow(now)

    def follow(self, now: float) -> None:
        """Change the keys when `now` (seconds since 1970) is in another day; to be called before each handshake."""
        if now >= self._until:
            keys, self._until = self._secret.keys(self._identity, now)
            set_keys(self._context, keys)


def arm(context: ssl.SSLContext, secret: FamilySecret, identity: bytes, now: float) -> Armed | None:
    """Give a server's context the family's keys for the profile `identity` (any bytes that name it alone).

    Its sessions are kept in tickets only, not in the context.  None, with the context as it was, where `works` says no.
    """
    if not works():
        return None
    switch_session_cache_off(context)
    return Armed(context, secret, identity, now)


@functools.cache
def own_secret() -> FamilySecret:
    """The secret of a process that was given none: a front that is alone."""
    return FamilySecret(os.urandom(SECRET_SIZE))


# ---------------------------------------------------------------------------------------------------- OpenSSL


def set_keys(context: ssl.SSLContext, keys: bytes) -> None:
    """Make `keys` (80 bytes) the ticket keys of a context.  Raises `OSError` when OpenSSL refuses."""
    if _library().SSL_CTX_ctrl(_pointer(context), _SET_TICKET_KEYS, len(keys), keys) != 1:
        raise OSError("OpenSSL refuses ticket keys")


def get_keys(context: ssl.SSLContext) -> bytes:
    """The ticket keys of a context.  Raises `OSError` when they are not 80 bytes (not OpenSSL 1.1 or later)."""
    keys = ctypes.create_string_buffer(KEYS_SIZE)
    size = _library().SSL_CTX_ctrl(_pointer(context), _GET_TICKET_KEYS, 0, None)
    if size != KEYS_SIZE or _library().SSL_CTX_ctrl(_pointer(context), _GET_TICKET_KEYS, size, keys) != 1:
        raise OSError(f"ticket keys have {size} bytes, not {KEYS_SIZE}")
    return keys.raw


def switch_session_cache_off(context: ssl.SSLContext) -> None:
    """Keep no sessions in the context: a client of TLS 1.2 that takes no tickets could fill it with 20,480 of them."""
    _library().SSL_CTX_ctrl(_pointer(context), _SET_CACHE_MODE, _CACHE_OFF, None)


def _pointer(context: ssl.SSLContext) -> ctypes.c_void_p:
    """The `SSL_CTX *`: the first field behind the object header."""
    return ctypes.c_void_p.from_address(id(context) + object.__basicsize__)


@functools.cache
def _library() -> Any:
    """The OpenSSL of Python's `ssl`: symbols are looked up in its extension module and in what that was linked with.

    Raises `OSError` or `AttributeError` where the symbols are not to be had (linked statically and hidden).
    """
    import _ssl

    library = ctypes.CDLL(getattr(_ssl, "__file__", None))
    library.SSL_CTX_ctrl.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p]
    library.SSL_CTX_ctrl.restype = ctypes.c_long
    return library


# ---------------------------------------------------------------------------------------------------- the trial


def works() -> bool:
    """Whether keys can be given to contexts here; the first call may take as long as a short process does."""
    return not verdict()


def verdict() -> str:
    """Empty where keys can be given to contexts; otherwise why not, as the end of a sentence.

    Found once by a trial in a process of its own, then known here and in processes started from here.
    """
    mark = hashlib.sha256(f"{sys.version} {sys.executable} {ssl.OPENSSL_VERSION}".encode()).hexdigest()[:16]
    found, _, known = os.environ.get(VERDICT, "").partition(":")
    if found != mark:
        known = _tried()
        os.environ[VERDICT] = f"{mark}:{known}"
    return known


def token() -> str:
    """The verdict as other processes of the family can be given it, in their environment as `VERDICT`; no secret."""
    verdict()
    return os.environ[VERDICT]


def _tried() -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-I", __file__], input=_certificate(), capture_output=True, timeout=TRIAL_TIME, check=False
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return f"the trial of ticket keys cannot be made ({type(error).__name__})"
    if done.stdout == b"works":  # the exit code may have got lost to another reaper of children, and then reads 0
        return ""
    said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
    return f"the trial of ticket keys failed ({said or f'exit {done.returncode}'})"


def _certificate() -> bytes:
    """A key and a certificate for the trial, as PEM; nobody verifies them."""
    # here, because the trial and a process that knows the verdict do without this library
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "trial")])
    begin, end = (datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (2020, 2049))
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, begin, end).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    return made.public_bytes(pem) + key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _try(pem: bytes) -> None:
    """Give keys to contexts, and see by handshakes that they are what decides.  Raises `RuntimeError` and whatever."""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        client.minimum_version = client.maximum_version = version
        one, other = _server(pem), _server(pem)
        keys, others = os.urandom(KEYS_SIZE), os.urandom(KEYS_SIZE)
        for context, given in ((one, keys), (other, others)):
            get_keys(context)
            set_keys(context, given)
            switch_session_cache_off(context)
            _expect(get_keys(context) == given, "keys are not those that were set")
        session = _shake(client, one, None).session
        _expect(_shake(client, one, session).session_reused, "a session does not resume where it was made")
        _expect(not _shake(client, other, session).session_reused, "a session resumes under other keys")
        set_keys(other, keys)
        _expect(_shake(client, other, session).session_reused, "a session does not resume under equal keys")


def _server(pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    fd = os.memfd_create("trial", os.MFD_CLOEXEC)
    try:
        os.write(fd, pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context


def _shake(client: ssl.SSLContext, server: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLObject:
    """The client's end after a handshake and a byte from the server, with which the tickets of TLS 1.3 have come."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = server.wrap_bio(up, down, server_side=True)
    far = client.wrap_bio(down, up, session=session)
    for end in (far, near, far, near):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    near.write(b".")
    far.read(1)
    return far


def _expect(true: bool | None, otherwise: str) -> None:
    if not true:
        raise RuntimeError(otherwise)


if __name__ == "__main__":
    _try(sys.stdin.buffer.read())
    sys.stdout.write("works")
