"""Logons of a Windows domain, by the winbindd of Samba on this machine, which is a member of the domain.

How it works
------------
libwbclient talks to winbindd over a pipe, and winbindd over its secure channel to a domain controller (MS-NRPC
3.5.4.5.1, NetrLogonSamLogonEx): the answer cannot be forged by whoever sits between, unlike that of a bare LDAP or
Kerberos logon.  `Winbind.verify` passes on the response of an NTLM handshake, `Winbind.password` a name and a password;
both give the account as the controller names it, its SIDs, and the session key.

The library blocks for as long as the controller takes, so it is called in threads, a few for the whole process, each
with a context of its own: a connection to winbindd, which serves one request at a time.  A logon that takes longer than
its deadline is given up; its thread is lost until the library comes back, and not more than `THREADS` of them can be.
Logons wait for a thread in line; beyond `QUEUE` of them it is `Busy`.

SIDs of groups become names, ``DOMAIN\\group``, where winbindd knows one; what it said is remembered for an hour.  The
SIDs may also be those of a Kerberos ticket: `group_names`.

Accounts of machines, which services of Windows machines log on with, are let in by `machines` alone: whoever makes a
machine log on at a place of his can pass that logon on to us.

Invariants
----------
* Somebody is let in only by the library's success, with an account name and a domain name in its answer, and not as a
  guest (MS-PAC 2.5, UserFlags), nor as a machine unless that is wanted: all else is a refusal.
* What the domain answers is taken for trouble on the way only where it is known to be that: else it counts as a guess.
  So does what it was asked and has not answered in time.
* The LMv2 response is not passed on.  A controller takes it in the place of an NTLMv2 response that is wrong, and then
  nothing of what stands in that one (channel binding, SPN, whether there is a MIC) would be proved.
* A refusal of a response takes at least `FLOOR`, so that the time does not tell an unknown name from a wrong password:
  the controller writes down only the latter.  (For passwords `_directory` sees to that.)
* Names and passwords that the pipe's protocol would cut off, or end at a NUL, are refused before they get there.
* Nothing that the library has allocated is kept: it is copied, then freed.
"""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from ctypes import POINTER, byref, c_int, c_void_p
from functools import partial
from typing import NamedTuple, TypeVar

import trio
from frontd_plugins import _wbclient as wbclient
from frontd_plugins._ntlm import NtlmError, Response, Verified
from frontd_plugins._throttle import counted

T = TypeVar("T")

PIPE = "/run/samba/winbindd/pipe"  # as Debian compiles it in; for the log alone
DEADLINE = 10.0  # s for a logon; people press reload by then
FLOOR = 0.1  # s
TEXT_MAX = 255  # bytes of a name or password: they go into an `fstring` of 256, and what is longer would be cut off
NTLMV1_SIZE = 24  # bytes (MS-NLMP 2.2.2.6); a controller may take those, too
SIDS_MAX = 4096  # of one account; a token of Windows has 1024
NAMES = 10_000  # SIDs whose names are remembered; the oldest is forgotten
BATCH = 16  # SIDs that are asked about at once
NAME_TTL = 3600.0  # s
NO_NAME_TTL = 60.0  # s; the controller that knows it may have been away

THREADS = trio.CapacityLimiter(8)  # of the process: they wait, and need no cores
QUEUE = 256  # logons that may wait for a thread, unless `basic` says less


class Denied(NtlmError):
    """The domain said no.  `is_known`: to somebody it knows, so that the log may show the name."""

    def __init__(self, why: str, *, is_known: bool) -> None:
        super().__init__(why)
        self.is_known = is_known


class Unavailable(NtlmError):
    """The domain could not be asked, or has not answered: `was_asked`, so that it may have counted a wrong guess."""

    def __init__(self, why: str, *, was_asked: bool = False) -> None:
        super().__init__(why)
        self.was_asked = was_asked


class Busy(Unavailable):
    """Too many logons wait."""


class Turn:
    """Who comes first: the thread that asks, or the deadline.  Whoever gives up before it began is never asked for."""

    def __init__(self) -> None:
        self._taken = threading.Lock()

    def begin(self) -> None:
        """In the thread, before it asks.  Raises `Unavailable` when nobody waits any more."""
        if not self._taken.acquire(blocking=False):
            raise Unavailable("the deadline has passed")

    def give_up(self) -> bool:
        """At the deadline: whether the thread had not begun, and now never will."""
        return self._taken.acquire(blocking=False)


A_MACHINE = "it is the account of a machine, and machine_accounts does not let those in"
# What the domain says (NTSTATUS, MS-ERREF 2.3.1) to somebody it knows …
_KNOWN = {
    0xC000006A: "the password is wrong",
    0xC000006E: "the account has restrictions that forbid this logon",
    0xC000006F: "the account may not log on at this hour",
    0xC0000070: "the account may not log on from this workstation",
    0xC0000071: "the password has expired",
    0xC0000072: "the account is disabled",
    0xC000015B: "the account was not granted this type of logon",
    0xC0000193: "the account has expired",
    0xC0000198: A_MACHINE,
    0xC0000199: A_MACHINE,
    0xC000019A: A_MACHINE,
    0xC0000224: "the password has to be changed first",
    0xC0000234: "the account is locked out",
    0xC0000413: "the account may not log on to this machine across the trust (selective authentication)",
    0xC0000418: "the domain blocks NTLM",
}
# … to a name that may as well be a password in the wrong field …
_STRANGER = {
    0xC0000064: "there is no such user",
    0xC000006D: "the user name or password is wrong",
    0xC00000DF: "there is no such domain",
}
# … and what is wrong with the way to it.
_TROUBLE = {
    0xC0000022: "winbind was denied access; is this machine still a member of the domain? (net ads testjoin)",
    0xC000005E: "no domain controller can be reached",
    0xC00000B5: "the domain controller does not answer in time",
    0xC0000133: "the clocks of this machine and of the domain controller differ too much",
    0xC000018A: "this machine has no secret of its domain; join it again (net ads join)",
    0xC000018B: "the domain has no account for this machine; join it again (net ads join)",
    0xC000018C: "the trust between this domain and the user's has failed",
    0xC000018D: "the trust between this machine and the domain has failed; join it again (net ads join)",
    0xC0000233: "no domain controller can be found",
}


class Winbind:
    """A `Verifier` of NTLM responses, and one of passwords; `deadline` is in seconds for each.

    With `machines` also responses of machines, by their accounts, are right (MS-NRPC 2.2.1.4.15, ParameterControl).
    """

    def __init__(self, deadline: float = DEADLINE, *, machines: bool = False) -> None:
        self._deadline = deadline
        self._machines = machines

    def account(self, response: Response) -> str:
        """Under which name guesses at this user are counted, whether there is one or not."""
        return counted(response.user)

    def standing(self, name: str) -> object:
        """What a logon stands on: the domain does not tell when it changes, so it holds as long as its connection."""
        return True

    async def verify(self, response: Response) -> Verified:
        """Whose NTLM response it is.  Raises `Denied` and `Unavailable`."""
        account, domain = _names_sent(response.user, response.domain)
        station, challenge, nt = _text(response.workstation, "workstation"), response.challenge, response.nt
        if not account:
            raise Denied("the user name is empty", is_known=False)
        if len(nt) <= NTLMV1_SIZE:
            raise Denied("the response is none of NTLMv2", is_known=False)
        floor = trio.current_time() + FLOOR
        try:
            return await self._logon(
                lambda context: _by_response(context, account, domain, station, challenge, nt, self._machines)
            )
        except Denied:
            await trio.sleep_until(floor)
            raise

    async def password(self, domain: str, user: str, password: str) -> Verified:
        """The account with this password; `domain` is empty for a `user@realm`.  Raises `Denied` and `Unavailable`."""
        account, where = _names_sent(user, domain)
        if "\\" in user:  # the pipe's protocol has one text for both
            raise Denied("the user name has a backslash", is_known=False)
        secret = _text(password, "password")
        if not account or not secret:  # an empty one would mean an anonymous logon
            raise Denied("the user name or password is empty", is_known=False)
        if not domain and "@" not in user:  # winbind would look among the accounts of this machine
            raise Denied("the user has no domain", is_known=False)
        return await self._logon(lambda context: _by_password(context, account, where, secret))

    async def _logon(self, ask: Callable[[c_void_p], _Account]) -> Verified:
        _admit()
        turn, found = Turn(), None

        def work(context: c_void_p) -> _Account:
            turn.begin()
            return ask(context)

        with trio.move_on_after(self._deadline):
            found = await _in_thread(work)
            groups = await _names(found.sids)
            return Verified(found.name, groups, found.sids, found.session_key)
        was_asked = found is None and not turn.give_up()
        raise Unavailable(f"winbind has not answered within {self._deadline:g} s", was_asked=was_asked)


def _admit() -> None:
    """Raises `Busy` when too many wait."""
    if THREADS.available_tokens < 1 and THREADS.statistics().tasks_waiting >= QUEUE:
        raise Busy(f"{QUEUE} logons wait for winbind")


def names() -> tuple[str, str]:
    """The NetBIOS names of this machine and of its domain; blocks for a moment.

    Challenges to the domain's users have to tell these: the controller looks for them in the response (CVE-2016-2111).
    Raises `ValueError`.
    """
    if fault := missing():
        raise ValueError(fault)
    try:
        computer, domain = _own_names()
    except UnicodeError as error:
        raise ValueError("the names of this machine and its domain are not ASCII") from error
    if not computer or not domain:
        raise ValueError("winbind does not tell the names of this machine and of its domain")
    return computer, domain


def missing() -> str:
    """Why winbind cannot be asked, as a sentence with the remedy; empty: it can.  Blocks for a moment."""
    try:
        library = wbclient.library()
    except OSError as error:
        return f"{wbclient.NAME} cannot be loaded ({error}); it comes with Samba (Debian: libwbclient0)"
    if library.wbcPing() != wbclient.SUCCESS:
        return (
            f"winbindd does not answer on {PIPE}: start it, or give a container that directory of the machine; "
            "docs/how-to/join-a-domain.md tells how a machine becomes a member"
        )
    return ""


# ---------------------------------------------------------------------------------------------------- names of groups

_remembered: OrderedDict[str, tuple[float, str]] = OrderedDict()  # by SID: until when (s of trio's clock), the name


async def group_names(sids: Sequence[str]) -> tuple[str, ...]:
    """The names of those SIDs that are groups and have one.  Raises `Unavailable` when one of them cannot be found out,
    so that nobody comes without a group that somebody is refused for."""
    if not _known(sids)[1]:
        return await _names(sids)
    _admit()
    with trio.move_on_after(DEADLINE):
        return await _names(sids)
    raise Unavailable(f"winbind has not answered within {DEADLINE:g} s")


def _known(sids: Iterable[str]) -> tuple[set[str], list[str]]:
    """The names that are remembered, and the SIDs of which nothing is."""
    now = trio.current_time()
    names, unknown = set[str](), list[str]()
    for sid in sids:
        until, name = _remembered.get(sid, (0.0, ""))
        if until > now:
            names.add(name)
        else:
            unknown.append(sid)
    return names, unknown


async def _names(sids: Iterable[str]) -> tuple[str, ...]:
    """The names of those SIDs that are groups and have one; asks winbind for what is not remembered."""
    names, unknown = _known(sids)
    now = trio.current_time()
    for at in range(0, len(unknown), BATCH):  # what is found is kept, also when there is no time for the rest
        batch = unknown[at : at + BATCH]
        found = await _in_thread(partial(_named, batch))
        for sid, (is_known, name) in zip(batch, found, strict=True):
            names.add(name)
            _remembered.pop(sid, None)
            _remembered[sid] = now + (NAME_TTL if is_known else NO_NAME_TTL), name
        while len(_remembered) > NAMES:
            _remembered.popitem(last=False)
    return tuple(sorted(names - {""}))


def _named(sids: Iterable[str], context: c_void_p) -> list[tuple[bool, str]]:
    """`_name` of each."""
    return [_name(context, sid) for sid in sids]


def _name(context: c_void_p, sid: str) -> tuple[bool, str]:
    """Whether winbind knows a SID, and what the group is called (empty: it is no group).  Raises `Unavailable`."""
    library, parsed = wbclient.library(), wbclient.Sid()
    if library.wbcStringToSid(sid.encode(), byref(parsed)) != wbclient.SUCCESS:
        return False, ""
    domain, name, kind = c_void_p(), c_void_p(), c_int()
    code = library.wbcCtxLookupSid(context, byref(parsed), byref(domain), byref(name), byref(kind))
    try:
        if code in (wbclient.DOMAIN_NOT_FOUND, wbclient.UNKNOWN_GROUP):
            return False, ""
        if code != wbclient.SUCCESS:
            raise Unavailable(f"winbind does not tell what the groups are called (wbcErr {code})")
        if kind.value not in wbclient.GROUPS:
            return True, ""
        place, word = (ctypes.string_at(text).decode() if text else "" for text in (domain, name))
        name_ = f"{place}\\{word}" if place else word
        return True, name_ if word and name_.isprintable() else ""
    except UnicodeError:
        return False, ""
    finally:
        library.wbcFreeMemory(domain)
        library.wbcFreeMemory(name)


# ---------------------------------------------------------------------------------------------------- the library


class _Account(NamedTuple):
    """What the controller said of a logon that succeeded."""

    name: str
    sids: tuple[str, ...]
    session_key: bytes


_idle: list[c_void_p] = []  # contexts that nobody uses; never more than there are threads


async def _in_thread(ask: Callable[[c_void_p], T]) -> T:
    """Ask with a context of our own; the thread is left behind when it is cancelled."""

    idle = _idle

    def work() -> T:
        try:
            context = idle.pop()
        except IndexError:
            try:
                context = c_void_p(wbclient.library().wbcCtxCreate())
            except OSError as error:
                raise Unavailable(str(error)) from None
            if not context:
                raise Unavailable("libwbclient has no memory") from None
        try:
            return ask(context)
        finally:
            idle.append(context)

    return await trio.to_thread.run_sync(work, limiter=THREADS, abandon_on_cancel=True)


def _text(text: str, what: str) -> bytes:
    """`text` as the pipe takes it.  Raises `Denied`."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > TEXT_MAX or b"\0" in data:
        raise Denied(f"the {what} is longer than {TEXT_MAX} bytes, or has a NUL", is_known=False)
    return data


def _names_sent(user: str, domain: str) -> tuple[bytes, bytes]:
    """Account and domain, which the pipe's protocol puts into one text, ``DOMAIN\\user``.  Raises `Denied`."""
    account, where = _text(user, "user name"), _text(domain, "domain")
    if len(where) + 1 + len(account) > TEXT_MAX:
        raise Denied(f"the user name and its domain are longer than {TEXT_MAX} bytes", is_known=False)
    return account, where


def _by_password(context: c_void_p, account: bytes, domain: bytes, secret: bytes) -> _Account:
    params = wbclient.Params(account, domain, None, 0, 0, wbclient.PLAIN)
    params.password.plaintext = secret
    return _authenticate(context, params)


def _own_names() -> tuple[str, str]:
    """The NetBIOS names of this machine and of its domain; empty: it cannot be asked.  Raises `UnicodeError`."""
    library, details = wbclient.library(), POINTER(wbclient.Details)()
    if library.wbcInterfaceDetails(byref(details)) != wbclient.SUCCESS:
        return "", ""
    try:
        found = details.contents
        return (found.netbios_name or b"").decode("ascii"), (found.netbios_domain or b"").decode("ascii")
    finally:
        library.wbcFreeMemory(ctypes.cast(details, c_void_p))


def _by_response(
    context: c_void_p, account: bytes, domain: bytes, station: bytes, challenge: bytes, nt: bytes, machines: bool
) -> _Account:
    control = wbclient.MACHINES_TOO if machines else 0
    params = wbclient.Params(account, domain, station, 0, control, wbclient.RESPONSE)
    response = params.password.response
    response.challenge[:] = challenge
    response.nt_length, response.nt_data = len(nt), nt
    response.lm_length, response.lm_data = 0, None
    return _authenticate(context, params, machines)


def _authenticate(context: c_void_p, params: wbclient.Params, machines: bool = False) -> _Account:
    """wbcCtxAuthenticateUserEx.  Raises `Denied` and `Unavailable`."""
    library, info, error = wbclient.library(), POINTER(wbclient.Info)(), POINTER(wbclient.Error)()
    code = library.wbcCtxAuthenticateUserEx(context, byref(params), byref(info), byref(error))
    try:
        if code != wbclient.SUCCESS or not info:
            raise _refusal(context, code, error.contents if error else None)
        return _account(info.contents, machines)
    finally:
        for pointer in (info, error):
            if pointer:
                library.wbcFreeMemory(ctypes.cast(pointer, c_void_p))


def _account(info: wbclient.Info, machines: bool) -> _Account:
    """A copy of what is needed.  Raises `Denied` and `Unavailable` for an answer that names nobody."""
    if info.acct_flags & wbclient.MACHINE and not machines:
        raise Denied(A_MACHINE, is_known=True)
    if info.user_flags & wbclient.GUEST:
        raise Denied("the domain would let in a guest", is_known=False)
    if not info.account_name or not info.domain_name:
        raise Unavailable("winbind's answer names nobody")
    if info.num_sids > SIDS_MAX or any(info.sids[at].sid.count > 15 for at in range(info.num_sids)):
        raise Unavailable("winbind's answer has SIDs that cannot be")
    try:
        name = f"{info.domain_name.decode()}\\{info.account_name.decode()}"
    except UnicodeError:
        raise Unavailable("winbind's answer is not UTF-8") from None
    if not name.isprintable():
        raise Unavailable("winbind's answer has a name that cannot be")
    written = (wbclient.written(info.sids[at].sid) for at in range(info.num_sids))
    sids = dict.fromkeys(written)  # the primary group comes twice
    return _Account(name, tuple(sids), bytes(info.user_session_key))


def _refusal(context: c_void_p, code: int, error: wbclient.Error | None) -> Denied | Unavailable:
    """What a failure of the library means."""
    if code == wbclient.NOT_AVAILABLE:
        if wbclient.library().wbcCtxPing(context) == wbclient.SUCCESS:
            return Unavailable(
                "winbindd answers, but not on its privileged pipe: put the user of frontd into the group winbindd_priv"
            )
        return Unavailable(f"winbindd does not answer on {PIPE}")
    if error is None:
        return Denied(f"winbind failed (wbcErr {code})", is_known=False)
    status: int = error.nt_status
    if status in _KNOWN:
        return Denied(_KNOWN[status], is_known=True)
    if status in _TROUBLE:
        return Unavailable(_TROUBLE[status])
    word = (error.nt_string or b"").decode("ascii", "replace")
    return Denied(_STRANGER.get(status, f"winbind says {word} (0x{status:08x})"), is_known=False)
