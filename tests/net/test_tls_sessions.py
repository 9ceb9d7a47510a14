"""TLS sessions as connections meet them: over exec'd fronts, over the end of a day, over the end of a certificate."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import trio

from frontd.config.model import TlsHost
from frontd.model.errors import FrontdError, Reason
from frontd.model.messages import TlsInfo
from frontd.net import tickets, tls
from frontd.net.streams import Stream
from frontd.net.tickets import Armed, FamilySecret
from frontd.net.tls import Profile, build_profile, peek_hello, shake_hands, wrap
from frontd.net.traps import carry
from tests.net.pki import Pki
from tests.net.test_peek import pair
from tests.net.tlsclient import Secure, client_context, secure_site
from tests.wire import front

ROOT = Path(__file__).parents[2]
VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])

# ---------------------------------------------------------------------------------------------------- processes


@contextmanager
def exec_front(pki: Pki, secret: bytes, ca: str = "", token: str = "") -> Iterator[int]:
    """A front in a process of its own; its port."""
    command = [sys.executable, "-m", "tests.net.ticketfront", str(pki.cert("locked")), str(pki.key("locked")), ca]
    env = {**os.environ, tickets.VERDICT: token}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=-1, stdout=-1, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(secret)
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def visit(context: ssl.SSLContext, port: int, session: ssl.SSLSession | None) -> tuple[ssl.SSLSession, bool]:
    """One connection: the session it leaves, and whether it resumed the one given."""
    with socket.create_connection(("127.0.0.1", port), 30) as sock:
        with context.wrap_socket(sock, server_hostname="open.test", session=session) as secure:
            assert secure.recv(1) == b"."
            assert secure.session is not None
            return secure.session, bool(secure.session_reused)


@VERSIONS
def test_a_client_resumes_whichever_front_it_meets_and_after_one_was_replaced(pki: Pki, version: str) -> None:
    secret, context = os.urandom(32), client_context(pki, version=version)
    resumed = []
    with exec_front(pki, secret) as one:
        session, first = visit(context, one, None)
        assert not first
        with exec_front(pki, secret) as two:
            for port in (one, two, two, one) * 5:
                session, reused = visit(context, port, session)
                resumed.append(reused)
        with exec_front(pki, secret) as replaced, exec_front(pki, os.urandom(32)) as stranger:
            session, reused = visit(context, replaced, session)
            resumed.append(reused)
            assert not visit(context, stranger, session)[1]
    assert resumed == [True] * 21


@VERSIONS
def test_a_session_of_the_open_front_does_not_open_the_guarded_one(pki: Pki, version: str) -> None:
    secret, anonymous = os.urandom(32), client_context(pki, version=version)
    with exec_front(pki, secret) as unguarded, exec_front(pki, secret, str(pki.client_ca)) as guarded:
        session, _ = visit(anonymous, unguarded, None)
        session, reused = visit(anonymous, unguarded, session)
        assert reused
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required|handshake.failure"):
            visit(anonymous, guarded, session)


@VERSIONS
def test_a_front_that_is_told_the_verdict_believes_it(pki: Pki, version: str) -> None:
    """The token of the family: good, and of a family where keys cannot be given."""
    secret, context, good = os.urandom(32), client_context(pki, version=version), tickets.token()
    bad = good.partition(":")[0] + ":it crashed"
    for token, resumes in ((good, True), (bad, False)):
        with exec_front(pki, secret, token=token) as one, exec_front(pki, secret, token=token) as two:
            session, _ = visit(context, one, None)
            session, reused = visit(context, one, session)
            assert reused
            assert visit(context, two, session)[1] is resumes


async def test_the_log_says_where_sessions_stay_at_one_front(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(tickets.VERDICT, tickets.token() + "it crashed")
    async with front(secure_site("http://127.0.0.1:1", pki.entry("a")), tmp_path) as stage:
        assert "TLS sessions resume only at the front that made them: it crashed" in stage.log("error")


async def test_the_log_says_nothing_where_they_resume_everywhere(pki: Pki, tmp_path: Path) -> None:
    async with front(secure_site("http://127.0.0.1:1", pki.entry("a")), tmp_path) as stage:
        assert "resume" not in stage.log("error")


# ---------------------------------------------------------------------------------------------------- time


async def test_keys_of_yesterday_are_gone_with_the_next_handshake(pki: Pki) -> None:
    profile = build_profile(pki.pair("a"), TlsHost(), [])
    profile.tickets = Armed(profile.context, FamilySecret(bytes(32)), b"profile", time.time() - 2 * tickets.DAY)
    before = tickets.get_keys(profile.context)
    near, far = pair()
    with near, far:
        wrap(near, profile).close_now()
    assert tickets.get_keys(profile.context) not in (before, bytes(80))


async def shaken(
    client: ssl.SSLContext,
    profile: Profile,
    session: ssl.SSLSession | None,
    monkeypatch: pytest.MonkeyPatch,
    late: float = 0,
) -> tuple[TlsInfo, ssl.SSLSession]:
    """The server's facts and the client's session after a handshake that the server sees `late` seconds from now."""
    failed: FrontdError | None = None
    near, far = pair()
    far.setblocking(False)
    under = trio.SocketStream(trio.socket.from_stdlib_socket(far))
    async with under:
        secure = Secure(under, client, "a.test", session)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(secure.do_handshake)
            deadline = trio.current_time() + 10
            hello = await carry(peek_hello(Stream(near), deadline))
            stream = wrap(near, profile)
            with monkeypatch.context() as patch:
                patch.setattr(tls, "time", SimpleNamespace(time=lambda: time.time() + late))
                try:
                    facts = await carry(shake_hands(stream, hello, profile, deadline))
                except FrontdError as error:
                    failed = error
                    nursery.cancel_scope.cancel()
        if failed is not None:
            stream.close_now()
            raise failed
        stream.sock.send(b".")
        assert await secure.receive_some() == b"."
        stream.close_now()
        assert secure.tls.session is not None
        return facts, secure.tls.session


@VERSIONS
@pytest.mark.parametrize("demand", ["required", "optional"])
async def test_a_certificate_ends_although_its_session_resumes(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, demand: Literal["required", "optional"]
) -> None:
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=10)
    leaf = pki.clients.issue_cert("short@client.test", not_after=ends)
    leaf.private_key_and_cert_chain_pem.write_to_path(tmp_path / "short.pem")
    client = client_context(pki, version=version)
    client.load_cert_chain(tmp_path / "short.pem")
    profile = build_profile(pki.pair("a"), TlsHost(client_certificate=demand, ca=pki.client_ca), [])
    first, session = await shaken(client, profile, None, monkeypatch)
    resumed, session = await shaken(client, profile, session, monkeypatch, 500)
    assert first.certificate is not None
    assert resumed.certificate == first.certificate
    with pytest.raises(FrontdError, match="certificate has expired") as caught:
        await shaken(client, profile, session, monkeypatch, 700)
    assert caught.value.reason is Reason.TlsHandshake


async def test_clients_without_a_certificate_resume_where_it_is_optional(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_context(pki)
    profile = build_profile(pki.pair("a"), TlsHost(client_certificate="optional", ca=pki.client_ca), [])
    _, session = await shaken(client, profile, None, monkeypatch)
    facts, _ = await shaken(client, profile, session, monkeypatch)
    assert facts.certificate is None


# ---------------------------------------------------------------------------------------------------- memory


def test_idle_connections_hold_no_record_buffers(pki: Pki) -> None:
    """SSL_MODE_RELEASE_BUFFERS, which Python sets: without it an idle connection keeps 12 KiB more."""
    profile = build_profile(pki.pair("a"), TlsHost(), [])
    get_mode, release_buffers = 33, 0x10
    mode = tickets._library().SSL_CTX_ctrl(tickets._pointer(profile.context), get_mode, 0, None)
    assert mode & release_buffers
