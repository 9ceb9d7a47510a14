"""NTLM without I/O: the examples of MS-NLMP, clients that do it right, and everything that has to be refused."""

from __future__ import annotations

import struct

import pytest
from frontd_plugins import _ntlm_crypto as crypto
from frontd_plugins._ntlm import NtlmError, Response, Verified, nt_proof, upper

from tests.plugins.ntlmclients import (
    AV_FLAGS,
    BINDING,
    BINDINGS,
    ESS,
    KEY_EXCH,
    NTLM,
    OEM,
    SIGN,
    SPN,
    TARGET_NAME,
    UNICODE,
    Forger,
    acceptor,
    complete,
    step,
    type1,
    verified,
    windows,
)  # fmt: skip

HASH = crypto.nt_hash("secret")

# ---------------------------------------------------------------------------------------------------- the algorithms


@pytest.mark.parametrize(
    ("data", "digest"),  # RFC 1320 A.5
    [
        (b"", "31d6cfe0d16ae931b73c59d7e0c089c0"),
        (b"abc", "a448017aaf21d8525fc10ae87aa6729d"),
        (b"message digest", "d9130a8164549fe818874806e1c7014b"),
        (b"1234567890" * 8, "e33b4ddc9c38f2199c3e7b164fcc0536"),
    ],
)
def test_md4(data: bytes, digest: str) -> None:
    assert crypto.md4(data).hex() == digest


def test_rc4() -> None:
    """RFC 6229 2, the 40-bit key; and a stream goes on where it stopped."""
    stream = crypto.Rc4(bytes.fromhex("0102030405"))
    assert (stream(bytes(7)) + stream(bytes(9))).hex() == "b2396305f03dc027ccc3524a0a1118a8"


def test_the_example_of_ms_nlmp() -> None:
    """MS-NLMP 4.2.1 and 4.2.4: NTOWFv1, and the proof and the session key of NTLMv2."""
    assert crypto.nt_hash("Password").hex() == "a4f49c406510bdcab6824ee7c30fd852"
    names = "02000c0044006f006d00610069006e0001000c005300650072007600650072000000000000000000"
    blob = "01010000000000000000000000000000aaaaaaaaaaaaaaaa00000000" + names
    nt = bytes.fromhex("68cd0ab851e51c96aabc927bebef6a1c" + blob)
    response = Response("User", "Domain", "COMPUTER", bytes.fromhex("0123456789abcdef"), nt, b"", {}, 0, b"", b"")
    is_right, key = nt_proof(crypto.nt_hash("Password"), response)
    assert is_right
    assert key.hex() == "8de40ccadbc14a82f15cb0ad0de95ca3"
    assert not nt_proof(crypto.nt_hash("password"), response)[0]


def test_capitals_are_those_of_windows() -> None:
    assert upper("ann") == "ANN"
    assert upper("Jürgen Groß") == "JÜRGEN GROß"  # not SS: two letters for one would be another name


# ---------------------------------------------------------------------------------------------------- who gets in


def test_a_client_like_windows() -> None:
    it, client = acceptor(), windows()
    type2 = it.challenge(step(client))
    response = it.response(step(client, type2))
    assert (response.user, response.domain) == ("alice", "")
    it.complete(response, verified(response))
    assert it.is_complete
    client.verify(b"a list", it.sign("server", b"a list"))
    assert it.sign("client", b"a list") == client.sign(b"a list")


@pytest.mark.parametrize("flags", [OEM | NTLM, OEM | NTLM | ESS, UNICODE | OEM | NTLM | ESS])
def test_a_client_like_curl(flags: int) -> None:
    """32 bytes of Type 1, a Type 3 header without Version and MIC, and no Unicode unless it was offered."""
    first = type1(flags)
    assert len(first) == 32
    it = acceptor()
    type2 = it.challenge(first)
    (granted,) = struct.unpack_from("<I", type2, 20)
    assert bool(granted & UNICODE) is bool(flags & UNICODE)
    response = it.response(Forger(domain="FRONTD").type3(type2))
    assert (response.user, response.domain) == ("alice", "FRONTD")
    it.complete(response, verified(response))
    assert it.is_complete
    assert not it.has_mic


def test_the_challenge_names_the_server_and_the_time() -> None:
    alone, member = acceptor().challenge(type1()), acceptor(domain="CORP", is_member=True).challenge(type1())
    assert "FRONTD".encode("utf-16-le") in alone
    assert member[56 : 56 + 8] == "CORP".encode("utf-16-le")
    for type2, role in ((alone, 0x20000), (member, 0x10000)):
        (granted,) = struct.unpack_from("<I", type2, 20)
        assert granted & role
        assert granted & 0x800000  # TARGET_INFO
        assert b"\x07\0\x08\0" in type2  # MsvAvTimestamp
    assert alone[24:32] != acceptor().challenge(type1())[24:32]  # another challenge each time


def test_without_extended_session_security_nothing_can_be_signed() -> None:
    it = acceptor()
    response = it.response(Forger().type3(it.challenge(type1(UNICODE | NTLM))))
    it.complete(response, verified(response))
    with pytest.raises(NtlmError, match="nothing can be signed"):
        it.sign("server", b"")


# ---------------------------------------------------------------------------------------------------- what is refused


def refused(first: bytes, forger: Forger, **settings: object) -> str:
    """Why a response is refused, before or after its proof was verified."""
    it = acceptor(**settings)  # type: ignore[arg-type]
    forger.first = first
    type3 = forger.type3(it.challenge(first))
    with pytest.raises(NtlmError) as caught:
        complete(it, type3)
    assert not it.is_complete
    for go_on in (lambda: it.challenge(first), lambda: it.response(b""), lambda: it.sign("server", b"")):
        with pytest.raises(NtlmError):
            go_on()
    return str(caught.value)


@pytest.mark.parametrize(
    ("forger", "why"),
    [
        (Forger(nt=bytes(24)), "but NTLMv1 or LM"),
        (Forger(nt=b"", lm=bytes(24)), "but NTLMv1 or LM"),
        (Forger(nt=b""), "no response at all"),
        (Forger(user="", nt=b""), "anonymous"),
        (Forger(user="", nt=b"", lm=b"\0"), "anonymous"),
        (Forger(flags=UNICODE | NTLM | 0x800), "anonymous"),
        (Forger(user=""), "without a user name"),
        (Forger(version=b"\2\1"), "another version than NTLMv2"),
        (Forger(user="ali\0ce"), "control characters"),
        (Forger(domain="a\nb"), "control characters"),
        (Forger(user="a" * 257), "too long"),
        (Forger(user=b"\x00\xd8"), "character set"),
        (Forger(user=b"abc"), "character set"),
        (Forger(more=[(2, b"")]), "stands twice"),
        (Forger(ends=False), "no end"),
        (Forger(more=[(11, b"")], ends=False), "no end"),
        (Forger(pairs={AV_FLAGS: b"\2"}), "MsvAvFlags is damaged"),
        (Forger(pairs={AV_FLAGS: struct.pack("<I", 2)}), "there is none"),
        (Forger(pairs={AV_FLAGS: struct.pack("<I", 2)}, header=80), "there is none"),
        (Forger(pairs={AV_FLAGS: struct.pack("<I", 2)}, header=88), "the MIC is wrong"),
        (Forger(header=88, mic="wrong"), "the MIC is wrong"),
        (Forger(header=88, mic="right", first=b"not what was sent"), ""),
    ],
)  # fmt: skip
def test_responses_that_are_refused(forger: Forger, why: str) -> None:
    if why:
        assert why in refused(type1(), forger)
        return
    it = acceptor()  # the MIC covers the first message, too
    response = it.response(forger.type3(it.challenge(type1())))
    with pytest.raises(NtlmError, match="the MIC is wrong"):
        it.complete(response, verified(response))


@pytest.mark.parametrize("sent", [bytes(8), b"", None])
def test_a_challenge_whose_timestamp_was_changed_on_its_way(sent: bytes | None) -> None:
    """Without a Timestamp clients of Windows send no MIC, and then nothing would show that flags were changed."""
    it = acceptor()
    type2 = it.challenge(type1())
    (size, _, at) = struct.unpack_from("<HHI", type2, 40)
    stamp = type2.index(b"\x07\0\x08\0", at)
    changed = type2[:stamp] + (b"" if sent is None else struct.pack("<HH", 7, len(sent)) + sent) + type2[stamp + 12 :]
    size = len(changed) - at
    changed = changed[:40] + struct.pack("<HH", size, size) + changed[44:]
    with pytest.raises(NtlmError, match="the challenge was changed on its way"):
        complete(it, Forger().type3(changed))
    assert not it.is_complete


def test_a_right_mic_is_right_and_can_be_required() -> None:
    it, first = acceptor(require_mic=True), type1()
    response = it.response(Forger(header=88, mic="right", first=first).type3(it.challenge(first)))
    it.complete(response, verified(response))
    assert it.has_mic
    assert "require_mic" in refused(type1(), Forger(), require_mic=True)


def test_a_session_key_that_was_promised_and_not_sent() -> None:
    flags = UNICODE | NTLM | ESS | SIGN | KEY_EXCH
    assert "no session key" in refused(type1(flags), Forger())
    assert "no session key" in refused(type1(flags), Forger(random_key=bytes(15)))


def test_a_verifier_without_a_session_key() -> None:
    it = acceptor()
    response = it.response(Forger().type3(it.challenge(type1())))
    with pytest.raises(NtlmError, match="no session key"):
        it.complete(response, Verified("alice", (), (), b""))
    assert not it.is_complete


def test_oem_names_beyond_ascii() -> None:
    assert "character set" in refused(type1(OEM | NTLM), Forger(user="é".encode()))


def test_ntlm_version_1_of_a_real_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_COMPAT_LEVEL", "2")
    it, client = acceptor(), windows()
    with pytest.raises(NtlmError, match="but NTLMv1 or LM"):
        it.response(step(client, it.challenge(step(client))))


@pytest.mark.parametrize("at", range(12, 60, 8))
@pytest.mark.parametrize("place", [(8, 0), (8, 8), (8, 63), (65535, 64), (8, 10**6), (8, 2**32 - 4), (16, 0xFFFFFFF0)])
def test_fields_that_reach_beyond(at: int, place: tuple[int, int]) -> None:
    it = acceptor()
    message = bytearray(Forger(random_key=bytes(16), lm=bytes(24)).type3(it.challenge(type1())))
    struct.pack_into("<HHI", message, at, place[0], place[0], place[1])
    with pytest.raises(NtlmError, match="beyond its message"):
        it.response(bytes(message))


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (b"", "not all of one"), (b"NTLMSSP\0", "not all of one"), (type1()[:15], "not all of one"),
        (b"NTLMSSQ\0" + type1()[8:], "not all of one"), (type1(UNICODE), "offer no NTLM"),
        (type1(NTLM), "character set"),
        (type1(size=1025), "1024 are enough"), (b"NTLMSSP\0" + struct.pack("<II", 3, NTLM), "of type 3 where type 1"),
        (b"NTLMSSP\0" + struct.pack("<II", 0, NTLM), "of type 0"),
    ],
)  # fmt: skip
def test_first_messages_that_are_refused(first: bytes, why: str) -> None:
    it = acceptor()
    with pytest.raises(NtlmError, match=why):
        it.challenge(first)
    with pytest.raises(NtlmError, match="out of order"):
        it.challenge(type1())


def test_every_way_to_cut_off_a_response() -> None:
    for size in range(len(Forger().type3(acceptor().challenge(type1())))):
        it = acceptor()
        message = Forger().type3(it.challenge(type1()))[:size]
        with pytest.raises(NtlmError):
            it.response(message)


def test_the_order() -> None:
    it = acceptor()
    with pytest.raises(NtlmError, match="out of order"):
        it.response(Forger().type3(acceptor().challenge(type1())))
    it = acceptor()
    it.challenge(type1())
    with pytest.raises(NtlmError, match="out of order"):
        it.challenge(type1())
    it, other = acceptor(), acceptor()
    response = it.response(Forger().type3(it.challenge(type1())))
    theirs = other.response(Forger().type3(other.challenge(type1())))
    with pytest.raises(NtlmError, match="not the one of this handshake"):
        it.complete(theirs, verified(theirs))
    with pytest.raises(NtlmError, match="out of order"):
        it.complete(response, verified(response))
    other.complete(theirs, verified(theirs))
    with pytest.raises(NtlmError, match="out of order"):
        other.complete(theirs, verified(theirs))
    assert not other.is_complete


def test_a_response_to_another_challenge_proves_nothing() -> None:
    mine, theirs = acceptor(), acceptor()
    mine.challenge(type1())
    response = mine.response(Forger().type3(theirs.challenge(type1())))
    assert not nt_proof(HASH, response)[0]


# ---------------------------------------------------------------------------------------------------- bound to what

SENT = {"none": None, "zeros": bytes(16), "other": b"another" + bytes(9), "ours": BINDING}


@pytest.mark.parametrize("sent", SENT)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("protection", ["none", "allow", "require"])
def test_extended_protection(protection: str, known: bool, sent: str) -> None:
    value = SENT[sent]
    if sent == "ours":
        value = crypto.md5(bytes(16) + struct.pack("<I", len(BINDING)) + BINDING)
    forger = Forger(pairs={} if value is None else {BINDINGS: value})
    it = acceptor(binding=BINDING if known else None, protection=protection)
    response = it.response(forger.type3(it.challenge(type1())))
    may = {
        "none": True,
        "allow": sent in ("none", "zeros") or (sent == "ours" and known),
        "require": sent == "ours" and known,
    }[protection]
    if may:
        it.complete(response, verified(response))
    else:
        with pytest.raises(NtlmError):
            it.complete(response, verified(response))
    assert it.is_complete is may


def test_a_binding_as_windows_makes_it() -> None:
    it, client = acceptor(binding=BINDING, protection="require"), windows(bound=BINDING)
    response = it.response(step(client, it.challenge(step(client))))
    it.complete(response, verified(response))
    for known in (BINDING, None):  # None: it came by plain http, out of a TLS connection with somebody else
        it, client = acceptor(binding=known), windows(bound=BINDING + b"?")
        response = it.response(step(client, it.challenge(step(client))))
        with pytest.raises(NtlmError, match="another TLS connection"):
            it.complete(response, verified(response))


@pytest.mark.parametrize("damaged", [b"", bytes(15), bytes(17)])
def test_a_binding_of_another_size(damaged: bytes) -> None:
    assert "MsvAvChannelBindings is damaged" in refused(type1(), Forger(pairs={BINDINGS: damaged}), binding=BINDING)


def test_the_service_that_the_client_meant() -> None:
    client, it = windows(), acceptor(spns=["http/TEST.example"])  # pyspnego says HTTP/test.example
    response = it.response(step(client, it.challenge(step(client))))
    assert response.pairs[TARGET_NAME].decode("utf-16-le").lower() == SPN.lower()
    it.complete(response, verified(response))
    other = Forger(pairs={TARGET_NAME: "HTTP/evil.example".encode("utf-16-le")})
    assert "'HTTP/evil.example'" in refused(type1(), other, spns=[SPN])
    assert "MsvAvTargetName is damaged" in refused(type1(), Forger(pairs={TARGET_NAME: b"\x00\xd8"}), spns=[SPN])
    it = acceptor(spns=[SPN])  # a client that does not say (curl)
    response = it.response(Forger().type3(it.challenge(type1())))
    it.complete(response, verified(response))
    assert it.is_complete
