"""TLS as a front door needs it: which certificate, which demands, and whose rules this connection was made under.

How it works
------------
The ClientHello is *peeked* (MSG_PEEK) before any TLS object exists; the server name in it chooses the `Profile`, whose
SSLContext then wraps the raw socket.  Choosing later, in OpenSSL's server-name callback, would silently not enforce the
chosen context's demand for a client certificate.

While half a hello waits, the socket's SO_RCVLOWAT is set to the length still needed, so a client that drips bytes
causes no wake-ups at all.

Invariants
----------
* One context per profile (certificate, policy), never shared: a context holds the session-ticket keys, and shared keys
  would let a session from an open host resume on a host that demands client certificates.  Keys that fronts share
  (`tickets`) are made for a profile's identity, which names everything that makes it.
* A context holds one certificate, so whoever shook hands under a profile was shown its certificate, and a session that
  resumes began with it: that is what `TlsInfo.channel_binding` rests upon.
* An unchanged profile keeps its context over a reload, and with it its tickets.
* A client certificate is not valid for longer because its session resumes; a CA or CRL that changed ends all sessions.
* TLS 1.2 at least, AEAD suites with forward secrecy only, no renegotiation, no compression.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass

import trio

from frontd.config.certificates import KeyPair, read_authorities, read_revocations
from frontd.config.model import TlsHost
from frontd.model.errors import FrontdError, Reason
from frontd.model.messages import TlsInfo, TlsPolicy
from frontd.net.peek import peek
from frontd.net.sockets import waiting_bytes
from frontd.net.streams import Broken, Stream
from frontd.net.tickets import Armed, FamilySecret, arm, own_secret
from frontd.net.traps import readable, task_lane
from frontd.protocol.hello import (
    ALERT_DECODE_ERROR,
    ALERT_UNRECOGNIZED_NAME,
    HANDSHAKE,
    MAX_HELLO,
    BadHello,
    ClientHello,
    Need,
    read_client_hello,
)

# TLS 1.2 suites; TLS 1.3 has only AEAD suites of its own (Mozilla's "intermediate" list without the non-AEAD ones).
CIPHERS_12 = "ECDHE+AESGCM:ECDHE+CHACHA20"
ALPN = ["http/1.1"]
# Of TLS 1.3, after a full handshake; Go sends one, OpenSSL and BoringSSL two by default, for clients that open two
# connections before they have used one (RFC 8446 C.4).  A ticket costs 17 to 22 us of CPU, with OpenSSL 3.0, and the
# session it resumes saves 29 us of 250: the second one pays only for itself.
TICKETS = 1
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class CertificateProblem(Exception):
    """OpenSSL refuses a certificate, a key or a CA that could be read; the text names the file and says why."""


@dataclass(slots=True)
class Profile:
    """One certificate under one policy, the context that speaks for both, and its ticket keys when they are shared."""

    certificate: KeyPair
    policy: TlsPolicy
    context: ssl.SSLContext
    tickets: Armed | None = None


def build_profile(
    certificate: KeyPair, demands: TlsHost, previous: Iterable[Profile], secret: FamilySecret | None = None
) -> Profile:
    """A profile for `certificate` under `demands`; an equal one among `previous` is kept.

    Fronts with the same `secret` resume each other's sessions; without one the process makes its own.

    Raises `CertificateProblem` and `Unusable`.
    """
    authority = read_authorities(demands.ca, "ca") if demands.ca else b""
    revocation = read_revocations(demands.crl, "crl") if demands.crl else b""
    policy = TlsPolicy(demands.client_certificate, _digest(authority), _digest(revocation), demands.min_version)
    for profile in previous:
        if profile.policy == policy and profile.certificate == certificate:
            return profile
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[demands.min_version]
    context.set_ciphers(CIPHERS_12)
    context.set_alpn_protocols(ALPN)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = TICKETS
    _load_chain(context, certificate)
    if demands.client_certificate != "none":
        required = demands.client_certificate == "required"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        try:
            _trust(context, authority)
            if revocation:
                _trust(context, revocation)
                context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        except ssl.SSLError as error:
            raise CertificateProblem(f"{demands.ca}: OpenSSL refuses it ({error.reason or error})") from None
    tickets = arm(context, secret or own_secret(), identity(certificate, policy), time.time())
    return Profile(certificate, policy, context, tickets)


def identity(certificate: KeyPair, policy: TlsPolicy) -> bytes:
    """A digest of all that makes a profile: two profiles have the same one only if they are the same everywhere."""
    parts = [certificate.chain, *dataclasses.astuple(policy), CIPHERS_12, *ALPN]
    raw = [part.encode() if isinstance(part, str) else part for part in parts]
    return hashlib.sha256(b"".join(b"%d:%b" % (len(part), part) for part in raw)).digest()


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest() if data else b""


def _trust(context: ssl.SSLContext, pem: bytes) -> None:
    """Load CA certificates or CRLs; from a file, since only there PEM may have comments in any encoding."""
    with _MemoryFile(pem) as file:
        context.load_verify_locations(cafile=file.path)


def _load_chain(context: ssl.SSLContext, certificate: KeyPair) -> None:
    """OpenSSL reads files only; a memfd keeps the key of a PKCS#12 file off the disk."""
    with _MemoryFile(certificate.chain) as chain, _MemoryFile(certificate.key) as key:
        try:
            context.load_cert_chain(chain.path, key.path)
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise CertificateProblem(f"{certificate.source}: OpenSSL refuses it ({reason})") from None


class _MemoryFile:
    """An anonymous file in memory that has a path while it is open."""

    def __init__(self, data: bytes) -> None:
        self._fd = os.memfd_create("frontd", os.MFD_CLOEXEC)
        os.write(self._fd, data)

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self._fd}"

    def __enter__(self) -> _MemoryFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class ProfileTable:
    """Which profile answers for a server name: exact, one-label wildcard, default (in this order)."""

    def __init__(self, hosts: dict[str, Profile], default: Profile | None) -> None:
        self._hosts = hosts
        self.default = default

    def find(self, server_name: str) -> Profile | None:
        """The profile for a name from a hello (lower case, no final dot), or None: no match and no default."""
        return self.named(server_name) or self.default

    def named(self, host: str) -> Profile | None:
        """The profile of a host that a certificate names (exactly, or by a one-label wildcard), without the default."""
        return self._hosts.get(host) or self._hosts.get("*." + host.partition(".")[2])

    @property
    def by_host(self) -> list[tuple[str, Profile]]:
        """Hosts, ``*.name`` among them, with their profiles, in alphabetical order."""
        return sorted(self._hosts.items(), key=lambda item: item[0])

    @property
    def profiles(self) -> list[Profile]:
        """Every profile once."""
        unique = {id(profile): profile for profile in self._hosts.values()}
        if self.default is not None:
            unique[id(self.default)] = self.default
        return list(unique.values())


async def peek_hello(stream: Stream, deadline: float) -> ClientHello:
    """Look at the ClientHello without taking it off the socket.

    Raises `FrontdError`: `Reason.PlainHttp` when the first byte is not a TLS handshake, `Reason.TlsHandshake` for a bad
    hello or an early end, `Reason.Timer_HeaderWait` at `deadline`; `NothingSent` passes.
    """
    try:
        return await peek(stream, _read_hello, MAX_HELLO, deadline)
    except BadHello as error:
        raise FrontdError(Reason.TlsHandshake, detail=str(error)) from None
    except Broken as error:
        raise FrontdError(Reason.TlsHandshake, detail=str(error)) from None


def _read_hello(buffer: bytes) -> ClientHello | Need:
    if buffer[0] != HANDSHAKE:
        raise FrontdError(Reason.PlainHttp)
    return read_client_hello(buffer)


def send_alert(sock: socket.socket, error: FrontdError) -> None:
    """Tell a TLS client why it is refused, before any TLS object exists; what does not fit now is not sent."""
    alert = ALERT_UNRECOGNIZED_NAME if error.reason is Reason.TlsHostname else ALERT_DECODE_ERROR
    with contextlib.suppress(OSError):
        sock.send(alert)


def wrap(sock: socket.socket, profile: Profile) -> Stream:
    """The TLS stream on a non-blocking socket whose hello was peeked; it owns the socket from here on.

    Raises `FrontdError` with `Reason.TlsHandshake`.
    """
    if profile.tickets is not None:
        profile.tickets.follow(time.time())
    try:
        wrapped = profile.context.wrap_socket(
            # requests frame themselves, so a client that ends without close_notify (most do) cuts nothing short
            sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
    except OSError as error:  # the client reset the connection after its hello
        raise FrontdError(Reason.TlsHandshake, detail=error.strerror or "reset") from None
    return Stream(wrapped)


async def shake_hands(stream: Stream, hello: ClientHello, profile: Profile, deadline: float) -> TlsInfo:
    """Shake hands on a stream made by `wrap`.

    Raises `FrontdError` with `Reason.TlsHandshake`, or `Reason.Timer_HeaderWait` at `deadline`.
    """
    sock = stream.sock
    assert isinstance(sock, ssl.SSLSocket)
    try:
        while True:
            try:
                sock.do_handshake()
                break
            except ssl.SSLWantReadError:
                stream.ready = stream.ending
                await readable(stream, deadline, Reason.Timer_HeaderWait)
            except ssl.SSLWantWriteError:
                await task_lane()
                with trio.CancelScope(deadline=deadline) as scope:
                    await trio.lowlevel.wait_writable(sock)
                if scope.cancelled_caught:
                    raise FrontdError(Reason.Timer_HeaderWait) from None
    except ssl.SSLError as error:
        why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else error.reason
        raise FrontdError(Reason.TlsHandshake, detail=why or "failed") from None
    except OSError as error:
        raise FrontdError(Reason.TlsHandshake, detail=error.strerror or "reset") from None
    if profile.policy.client_certificate != "none" and sock.session_reused:
        _refuse_expired(sock)
    stream.ready = stream.ending or waiting_bytes(sock.fileno()) > 0
    cipher = sock.cipher()
    return TlsInfo(
        version=sock.version() or "",
        cipher=cipher[0] if cipher else "",
        server_name=hello.server_name,
        certificate=sock.getpeercert(binary_form=True),
        policy=profile.policy,
        channel_binding=profile.certificate.channel_binding,
    )


def _refuse_expired(sock: ssl.SSLSocket) -> None:
    """OpenSSL looks at dates in full handshakes only, and in TLS 1.3 each resumed session brings the next ticket."""
    certificate = sock.getpeercert()
    if certificate and ssl.cert_time_to_seconds(str(certificate["notAfter"])) < time.time():
        raise FrontdError(Reason.TlsHandshake, detail="certificate has expired")


def client_context(authority: bytes) -> ssl.SSLContext:
    """How frontd verifies an app over TLS: by `authority` (PEM) alone; empty: by the system's CAs.

    Raises `CertificateProblem`.
    """
    try:
        context = ssl.create_default_context() if not authority else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if authority:
            _trust(context, authority)
    except ssl.SSLError as error:
        raise CertificateProblem(f"OpenSSL refuses the CA of a pool ({error.reason or error})") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(ALPN)
    return context


async def connect_tls(sock: socket.socket, context: ssl.SSLContext, server_name: str) -> Stream:
    """Shake hands as a client; the caller bounds the time.

    Raises `UntrustedUpstream`, and `Broken` when the connection ended on the way (an app that is just restarting).
    """
    wrapped = context.wrap_socket(
        sock, server_hostname=server_name, do_handshake_on_connect=False, suppress_ragged_eofs=False
    )
    stream = Stream(wrapped)
    try:
        while True:
            try:
                wrapped.do_handshake()
                return stream
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(wrapped)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(wrapped)
    except ssl.SSLCertVerificationError as error:
        stream.close_now()
        raise UntrustedUpstream(f"its certificate is not trusted: {error.verify_message}") from None
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError):
        stream.close_now()
        raise Broken("the connection ended inside the TLS handshake") from None
    except ssl.SSLError as error:
        stream.close_now()
        raise UntrustedUpstream(f"TLS failed: {error.reason or error}") from None
    except OSError as error:
        stream.close_now()
        raise Broken(f"{error.strerror or error} inside the TLS handshake") from None
    except BaseException:
        stream.close_now()
        raise


class UntrustedUpstream(Exception):
    """No trusted TLS connection to an app can be made; the text says why."""
