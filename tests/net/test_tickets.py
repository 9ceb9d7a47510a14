"""A session resumes at every front that serves the same profile, at no other profile, and not for ever."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from frontd.config.model import TlsHost
from frontd.net import tickets
from frontd.net.tickets import DAY, Armed, FamilySecret
from frontd.net.tls import Profile, build_profile, identity
from tests.net.pki import Pki
from tests.net.tlsclient import client_context

ROOT = Path(__file__).parents[2]
SECRET = bytes(range(32))
NOON = 20_800 * DAY + DAY / 2  # some day, in 2026
VERSIONS = pytest.mark.parametrize("version", ["1.2", "1.3"])


def family() -> FamilySecret:
    """What one more front of the family starts with."""
    return FamilySecret(SECRET)


def meet(
    client: ssl.SSLContext, profile: Profile | ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends (client's, server's) after a handshake and a byte; the tickets of TLS 1.3 have come with it.

    Raises `ssl.SSLError` of whichever end ended it.
    """
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = profile.context if isinstance(profile, Profile) else profile
    near, far = context.wrap_bio(up, down, server_side=True), client.wrap_bio(down, up, False, "a.test", session)
    for end in (far, near, far, near):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    near.write(b".")
    assert far.read(1) == b"."
    return far, near


def resumes(client: ssl.SSLContext, at: Profile, then: Profile) -> bool:
    """Whether a session made at one profile resumes at another; where it was made, it does."""
    session = meet(client, at)[0].session
    assert meet(client, at, session)[0].session_reused
    far, near = meet(client, then, session)
    assert far.session_reused == near.session_reused
    return bool(far.session_reused)


# ---------------------------------------------------------------------------------------------------- fronts


@VERSIONS
def test_fronts_of_a_family_resume_each_others_sessions(pki: Pki, version: str) -> None:
    client = client_context(pki, version=version)
    one, two = (build_profile(pki.pair("a"), TlsHost(), [], family()) for _ in range(2))
    stranger = build_profile(pki.pair("a"), TlsHost(), [], FamilySecret(bytes(32)))
    assert one.tickets is not None
    assert resumes(client, one, two)
    assert resumes(client, two, one)
    assert not resumes(client, one, stranger)
    alone, other = (build_profile(pki.pair("a"), TlsHost(), []) for _ in range(2))
    assert resumes(client, alone, other)  # a process that was given no secret: a changed file that changes back
    assert not resumes(client, alone, one)


@VERSIONS
def test_a_session_of_an_open_host_never_resumes_at_a_guarded_one(pki: Pki, version: str) -> None:
    """The same certificate under two policies, in one front and in two, both ways."""
    demands = TlsHost(client_certificate="required", ca=pki.client_ca, crl=pki.crl)
    one, two = family(), family()
    open_one, open_two = (build_profile(pki.pair("locked"), TlsHost(), [], front) for front in (one, two))
    locked_one, locked_two = (build_profile(pki.pair("locked"), demands, [], front) for front in (one, two))
    anonymous, good = client_context(pki, version=version), client_context(pki, "good", version)
    session = meet(anonymous, open_one)[0].session
    for locked in (locked_one, locked_two):
        with pytest.raises(ssl.SSLError, match=r"(?i)peer.did.not.return.a.certificate"):
            meet(anonymous, locked, session)
    for at in (open_one, open_two):
        for then in (locked_one, locked_two):
            assert not resumes(good, at, then)
            assert not resumes(good, then, at)
    assert resumes(anonymous, open_one, open_two)
    assert resumes(good, locked_one, locked_two)


@VERSIONS
def test_a_resumed_session_still_knows_the_clients_certificate(pki: Pki, version: str) -> None:
    for demand in ("required", "optional"):
        demands = TlsHost(client_certificate=demand, ca=pki.client_ca)
        one, two = (build_profile(pki.pair("locked"), demands, [], family()) for _ in range(2))
        client = client_context(pki, "good", version)
        far, near = meet(client, one)
        shown = near.getpeercert(True)
        assert shown == x509.load_pem_x509_certificate(pki.cert("good").read_bytes()).public_bytes(Encoding.DER)
        for front in (one, two, one):  # in TLS 1.3 with a new ticket each time
            far, near = meet(client, front, far.session)
            assert far.session_reused
            assert near.getpeercert(True) == shown
            assert near.getpeercert()  # so it counts as verified


@VERSIONS
def test_whatever_makes_a_profile_makes_its_keys(pki: Pki, tmp_path: Path, version: str) -> None:
    """Same family, same client: only an equal profile resumes.  A renewed certificate begins anew."""
    revoked, authorities = tmp_path / "crl.pem", tmp_path / "ca.pem"
    revoked.write_bytes(pki.revoke("stranger"))
    authorities.write_bytes(pki.client_ca.read_bytes() + pki.strangers.cert_pem.bytes())
    client = client_context(pki, "good", version)
    guarded = TlsHost(client_certificate="required", ca=pki.client_ca)
    base = build_profile(pki.pair("a"), guarded, [], family())
    first, second = (TlsHost(client_certificate="required", ca=pki.client_ca, crl=crl) for crl in (pki.crl, revoked))
    assert resumes(client, base, build_profile(pki.pair("a"), guarded, [], family()))
    others = [
        build_profile(pki.pair("b"), guarded, [], family()),
        build_profile(pki.pair("a"), TlsHost(client_certificate="optional", ca=pki.client_ca), [], family()),
        build_profile(pki.pair("a"), TlsHost(client_certificate="required", ca=authorities), [], family()),
        build_profile(pki.pair("a"), first, [], family()),
        build_profile(pki.pair("a"), second, [], family()),
        build_profile(pki.pair("a"), TlsHost(), [], family()),
    ]
    if version == "1.3":
        modern = TlsHost(client_certificate="required", ca=pki.client_ca, min_version="1.3")
        others.append(build_profile(pki.pair("a"), modern, [], family()))
    for other in others:
        assert not resumes(client, base, other)
    every = [base, *others]
    assert len({identity(profile.certificate, profile.policy) for profile in every}) == len(every)
    assert len({tickets.get_keys(profile.context) for profile in every}) == len(every)


def test_one_ticket_and_no_sessions_kept(pki: Pki) -> None:
    profile = build_profile(pki.pair("a"), TlsHost(), [], family())
    assert profile.context.num_tickets == 1
    client = client_context(pki, version="1.2")
    client.options |= ssl.OP_NO_TICKET  # such a client is given a session id instead, and the session would be kept
    far, near = meet(client, profile)  # kept: OpenSSL forgets sessions of connections that ended uncleanly
    assert not meet(client, profile, far.session)[0].session_reused
    assert near.version() == "TLSv1.2"
    assert profile.context.session_stats()["number"] == 0


# ---------------------------------------------------------------------------------------------------- days


@VERSIONS
def test_keys_live_for_a_day_in_every_front(pki: Pki, version: str) -> None:
    client = client_context(pki, version=version)
    profiles = [build_profile(pki.pair("a"), TlsHost(), []) for _ in range(2)]
    one, two = profiles
    first, second = (Armed(profile.context, family(), b"profile", NOON) for profile in profiles)
    session = meet(client, one)[0].session
    second.follow(NOON + DAY / 2 - 1)  # the last second of the day
    assert meet(client, two, session)[0].session_reused
    second.follow(NOON + DAY / 2)
    far, _ = meet(client, two, session)
    assert not far.session_reused
    assert not meet(client, one, far.session)[0].session_reused  # a front whose clock is behind
    first.follow(NOON + DAY)
    assert meet(client, one, far.session)[0].session_reused
    assert not meet(client, one, session)[0].session_reused


def test_a_front_that_starts_later_has_the_same_keys() -> None:
    old, new = family(), family()
    for days in range(5):
        old.keys(b"profile", NOON + days * DAY)
    assert old.keys(b"profile", NOON + 5 * DAY) == new.keys(b"profile", NOON + 5 * DAY)
    assert new.keys(b"profile", NOON + 5 * DAY)[1] == NOON + 5.5 * DAY


def test_what_a_front_knows_today_does_not_tell_yesterdays_keys() -> None:
    front = family()
    yesterday, until = front.keys(b"profile", NOON)
    today, _ = front.keys(b"profile", NOON + DAY)
    assert until == NOON + DAY / 2
    assert today != yesterday
    assert front.keys(b"profile", NOON)[0] == today  # also for a clock that was set back
    held = [getattr(front, name) for name in FamilySecret.__slots__]
    assert SECRET not in held
    assert SECRET.hex() not in repr(front)


def test_clocks_that_are_wrong_keep_nobody_busy() -> None:
    assert family().keys(b"profile", 0) == family().keys(b"profile", -1e9)
    assert family().keys(b"profile", 1e15) == family().keys(b"profile", 1e16)  # the steps to there are not all made


@given(st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 40)), min_size=2, max_size=6, unique=True))
def test_no_two_profiles_and_no_two_days_share_keys(cases: list[tuple[bytes, int]]) -> None:
    keys = [family().keys(name, NOON + day * DAY)[0] for name, day in cases]
    assert len(set(keys)) == len(cases)
    assert len({key[:16] for key in keys}) == len(cases)  # the names by which OpenSSL finds out whether a key fits
    assert all(len(key) == tickets.KEYS_SIZE for key in keys)


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33)])
def test_a_secret_of_another_length_is_refused(secret: bytes) -> None:
    with pytest.raises(ValueError, match="has 32 bytes, not"):
        FamilySecret(secret)


# ---------------------------------------------------------------------------------------------------- the trial


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """A process that knows no verdict yet; the function puts a shell script in the place of the interpreter."""
    monkeypatch.setenv(tickets.VERDICT, "")

    def interpreter(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setattr("sys.executable", str(path))

    return interpreter


def test_the_trial_works_here(untried: Callable[[str], None]) -> None:
    assert tickets.verdict() == ""
    assert os.environ[tickets.VERDICT].endswith(":")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("kill -SEGV $$", "exit -11"),
        ("echo Traceback >&2; echo 'RuntimeError: no such thing' >&2; exit 1", "RuntimeError: no such thing"),
        ("exit 0", "exit 0"),  # an exit code alone proves nothing
        ("exec sleep 60", "cannot be made (TimeoutExpired)"),
    ],
)
@VERSIONS
def test_where_the_trial_fails_a_context_is_left_alone(
    pki: Pki, untried: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, version: str, script: str, told: str
) -> None:
    untried(script)
    if "sleep" in script:
        monkeypatch.setattr(tickets, "TRIAL_TIME", 0.05)
    one, two = (build_profile(pki.pair("a"), TlsHost(), [], family()) for _ in range(2))
    assert told in tickets.verdict()
    assert one.tickets is None
    assert tickets.get_keys(one.context) != tickets.get_keys(two.context)
    client = client_context(pki, version=version)
    assert not resumes(client, one, two)  # a front resumes its own


def test_the_verdict_is_known_to_processes_started_from_here(untried: Callable[[str], None]) -> None:
    """To those of the same interpreter and library; others try for themselves."""
    script = "from frontd.net import tickets; print(tickets.verdict())"
    assert tickets.works()
    mark = os.environ[tickets.VERDICT].rstrip(":")
    for known, told in ((f"{mark}:because", "because"), ("0123:because", ""), ("nonsense", "")):
        environment = {**os.environ, tickets.VERDICT: known}
        command = [sys.executable, "-c", script]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60)
        assert run.stdout == f"{told}\n"
    untried("exit 1")
    assert tickets.verdict() != ""  # the interpreter is another one now


def test_the_trial_notices_keys_that_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the pointer leads to something else, or the call is answered and ignored."""
    pem = tickets._certificate()
    tickets._try(pem)
    monkeypatch.setattr(tickets, "set_keys", lambda context, keys: None)
    with pytest.raises(RuntimeError, match="not those that were set"):
        tickets._try(pem)
    monkeypatch.setattr(tickets, "get_keys", lambda context: bytes(80))
    monkeypatch.setattr(os, "urandom", bytes)
    with pytest.raises(RuntimeError, match="does not resume under equal keys"):
        tickets._try(pem)
