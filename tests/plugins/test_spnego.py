"""NTLM inside of SPNEGO: first choice, second choice after Kerberos, bare; and lists that were changed on their way."""

from __future__ import annotations

import pytest
import spnego
from frontd_plugins._ntlm import NtlmError, Response
from frontd_plugins._spnego import KERBEROS, MS_KERBEROS, NTLM, SPNEGO, NtlmInSpnego, offer, wants_ntlm
from hypothesis import given, settings
from hypothesis import strategies as st
from spnego._negotiate import NegotiateProxy
from spnego._spnego import NegState, NegTokenInit, NegTokenResp, unpack_token

from tests.plugins.ntlmclients import Forger, acceptor, kerberos_first, ntlm_first, step, type1, verified, windows

NEGOEX = "1.3.6.1.4.1.311.2.2.30"  # what Windows puts between Kerberos and NTLM (MS-NEGOEX 1.9)


def answered(it: NtlmInSpnego, client: spnego.ContextProxy) -> Response:
    """Every leg up to the response."""
    token = step(client)
    for _ in range(3):
        found = it.receive(token)
        if isinstance(found, Response):
            return found
        token = step(client, found)
    raise AssertionError("too many legs")


def unpacked(token: bytes) -> NegTokenResp:
    found = unpack_token(token)
    assert isinstance(found, NegTokenResp)
    return found


# ---------------------------------------------------------------------------------------------------- three ways in


def test_ntlm_is_the_first_choice() -> None:
    it, client = NtlmInSpnego(acceptor()), ntlm_first()
    answer = it.receive(step(client))
    assert isinstance(answer, bytes)
    first = unpacked(answer)
    assert (first.neg_state, first.supported_mech) == (NegState.accept_incomplete, NTLM)
    response = it.receive(step(client, answer))
    assert isinstance(response, Response)
    last = it.complete(response, verified(response))
    assert unpacked(last).neg_state == NegState.accept_complete
    client.step(last)  # which verifies our mechListMIC
    assert it.is_complete
    assert client.complete


def test_kerberos_was_preferred() -> None:
    it, client = NtlmInSpnego(acceptor()), kerberos_first()
    hello = step(client)
    assert offer(hello).mechanisms == (KERBEROS, NTLM)
    answer = it.receive(hello)
    assert isinstance(answer, bytes)
    first = unpacked(answer)
    assert (first.neg_state, first.supported_mech) == (NegState.request_mic, NTLM)
    assert first.response_token is None
    answer = it.receive(step(client, answer))
    assert isinstance(answer, bytes)
    assert unpacked(answer).supported_mech is None  # told once
    response = it.receive(step(client, answer))
    assert isinstance(response, Response)
    last = it.complete(response, verified(response))
    assert unpacked(last).mech_list_mic
    client.step(last)
    assert it.is_complete
    assert client.complete
    assert client.negotiated_protocol == "ntlm"


def test_bare_messages() -> None:
    it, client = NtlmInSpnego(acceptor()), windows()
    response = answered(it, client)
    assert it.complete(response, verified(response)) == b""
    assert it.is_complete


def test_a_hello_without_a_token() -> None:
    """NTLM first, but its message comes with the next token."""
    it = NtlmInSpnego(acceptor())
    answer = it.receive(NegTokenInit([NTLM, KERBEROS]).pack())
    assert isinstance(answer, bytes)
    assert (unpacked(answer).neg_state, unpacked(answer).supported_mech) == (NegState.accept_incomplete, NTLM)
    answer = it.receive(NegTokenResp(response_token=type1()).pack())
    assert isinstance(answer, bytes)
    response = it.receive(NegTokenResp(response_token=Forger().type3(unpacked(answer).response_token or b"")).pack())
    assert isinstance(response, Response)
    it.complete(response, verified(response))  # no MIC of NTLM, so none of the list
    assert it.is_complete


# ---------------------------------------------------------------------------------------------------- offers


def test_offers() -> None:
    mechanisms = [MS_KERBEROS, KERBEROS, NEGOEX, NTLM, "2.16.840.1.101.2"]
    found = offer(NegTokenInit(mechanisms, mech_token=b"ticket").pack())
    assert found.mechanisms == tuple(mechanisms)
    assert found.token == b"ticket"
    assert found.mech_types[0] == 0x30
    assert offer(type1()) == ((NTLM,), b"", type1())
    ticket = bytes.fromhex("600f06092a864886f71201020201006e00")
    assert offer(ticket) == ((KERBEROS,), b"", ticket)
    assert SPNEGO not in found.mechanisms


@pytest.mark.parametrize(
    ("mechanisms", "wants"),
    [
        ([NTLM], True), ([NTLM, KERBEROS], True), ([NEGOEX, NTLM], True), ([KERBEROS], False), ([NEGOEX], False),
        ([KERBEROS, NTLM], False), ([MS_KERBEROS, KERBEROS, NEGOEX, NTLM], False), ([NEGOEX, KERBEROS, NTLM], False),
    ],
)  # fmt: skip
def test_what_a_client_wants(mechanisms: list[str], wants: bool) -> None:
    assert wants_ntlm(offer(NegTokenInit(mechanisms, mech_token=b"token").pack())) is wants
    assert wants_ntlm(offer(type1()))
    assert not wants_ntlm(offer(bytes.fromhex("600f06092a864886f71201020201006e00")))


INIT = NegTokenInit([KERBEROS, NTLM], mech_token=b"ticket").pack()


@pytest.mark.parametrize(
    "token",
    [
        b"", b"\x60", b"\x60\x80", b"\x60\x84\0\0\0\0", b"NTLMSSP", b"\xa1\0", INIT + b"\0", INIT[:-1],
        NegTokenInit([]).pack(), NegTokenInit([NTLM] * 17).pack(), NegTokenResp().pack(),
        b"\x60\x81" + INIT[1:],                                      # a length that is longer than it has to be
        INIT.replace(bytes.fromhex("2a864886f712010202"), bytes.fromhex("2a864886f712010282")),  # an OID without end
        b"\x60\x0a\x06\x06\x2b\x06\x01\x05\x05\x02\x30\x00",          # no NegTokenInit
    ],
)  # fmt: skip
def test_what_is_no_offer(token: bytes) -> None:
    with pytest.raises(NtlmError, match="SPNEGO"):
        offer(token)


# ---------------------------------------------------------------------------------------------------- what is refused


def finish(it: NtlmInSpnego, client: spnego.ContextProxy, answer: bytes | Response) -> None:
    """Every leg after the first answer."""
    while isinstance(answer, bytes):
        answer = it.receive(step(client, answer))
    it.complete(answer, verified(answer))


def changed(client: NegotiateProxy, mechanisms: list[str]) -> str:
    """Why a logon is refused whose first token got another list of mechanisms on its way."""
    it = NtlmInSpnego(acceptor())
    hello = unpack_token(step(client))
    assert isinstance(hello, NegTokenInit)
    token = hello.mech_token if mechanisms[0] == NTLM and hello.mech_types[0] == NTLM else None
    answer = it.receive(NegTokenInit(mechanisms, mech_token=token).pack())
    with pytest.raises(NtlmError) as caught:
        finish(it, client, answer)
    assert not it.is_complete
    return str(caught.value)


def test_somebody_took_kerberos_off_the_list() -> None:
    assert "the list of mechanisms was changed" in changed(kerberos_first(), [NTLM])
    assert "the list of mechanisms was changed" in changed(kerberos_first(), [NTLM, KERBEROS])
    assert "the list of mechanisms was changed" in changed(kerberos_first(), [MS_KERBEROS, NTLM])
    assert "the list of mechanisms was changed" in changed(ntlm_first(), [NTLM, KERBEROS])


@pytest.mark.parametrize("client", [kerberos_first, ntlm_first])
@pytest.mark.parametrize("mic", [None, b"", bytes(16)])
def test_somebody_took_the_signature_away(client: type[NegotiateProxy], mic: bytes | None) -> None:
    it, them = NtlmInSpnego(acceptor()), client()
    answer = it.receive(step(them))
    while isinstance(answer, bytes):
        sent = unpack_token(step(them, answer))
        assert isinstance(sent, NegTokenResp)
        is_last = (sent.response_token or b"")[8:9] == b"\3"
        last_mic = mic if is_last else None
        answer = it.receive(NegTokenResp(response_token=sent.response_token, mech_list_mic=last_mic).pack())
    with pytest.raises(NtlmError, match="mechListMIC"):
        it.complete(answer, verified(answer))
    assert not it.is_complete


def test_a_client_without_integrity_after_kerberos() -> None:
    it = NtlmInSpnego(acceptor())
    it.receive(NegTokenInit([KERBEROS, NTLM], mech_token=b"ticket").pack())
    answer = it.receive(NegTokenResp(response_token=type1()).pack())
    assert isinstance(answer, bytes)
    response = it.receive(NegTokenResp(response_token=Forger().type3(unpacked(answer).response_token or b"")).pack())
    assert isinstance(response, Response)
    with pytest.raises(NtlmError, match="did not sign the list"):
        it.complete(response, verified(response))


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (NegTokenResp(neg_state=NegState.reject, response_token=type1()).pack(), "rejects"),
        (NegTokenResp(supported_mech=KERBEROS, response_token=type1()).pack(), "another mechanism"),
        (NegTokenResp(neg_state=NegState.accept_incomplete).pack(), "without a token"),
        (type1(), "no SPNEGO"),
        (INIT, "no SPNEGO"),
        (NegTokenResp(response_token=b"junk").pack(), "no NTLM message"),
        (bytes(65537), "65536 are enough"),
    ],
)  # fmt: skip
def test_second_tokens_that_are_refused(second: bytes, why: str) -> None:
    it = NtlmInSpnego(acceptor())
    it.receive(INIT)
    with pytest.raises(NtlmError, match=why):
        it.receive(second)
    with pytest.raises(NtlmError, match="out of order"):
        it.receive(NegTokenResp(response_token=type1()).pack())


def test_kerberos_alone() -> None:
    with pytest.raises(NtlmError, match=f"does not offer NTLM, but {KERBEROS}"):
        NtlmInSpnego(acceptor()).receive(NegTokenInit([KERBEROS], mech_token=b"ticket").pack())


def test_the_order() -> None:
    it = NtlmInSpnego(acceptor())
    response = answered(it, windows())
    with pytest.raises(NtlmError, match="out of order"):
        it.receive(type1())
    with pytest.raises(NtlmError, match="out of order"):
        it.complete(response, verified(response))
    assert not it.is_complete


# ---------------------------------------------------------------------------------------------------- any bytes

START = [INIT, NegTokenInit([NTLM], mech_token=type1()).pack(), NegTokenResp(response_token=type1()).pack(), type1()]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(START), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4))
def test_whatever_comes_is_read_or_refused(token: bytes, changes: list[tuple[int, int]]) -> None:
    mutated = bytearray(token)
    for at, value in changes:
        mutated[at % len(mutated)] = value
    it = NtlmInSpnego(acceptor())
    try:
        it.receive(bytes(mutated))
        it.receive(bytes(mutated))
    except NtlmError:
        pass
    assert not it.is_complete
