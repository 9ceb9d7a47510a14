"""libwbclient of Samba, as `ctypes` calls it: its structures, and nothing else.

How it works
------------
`library` loads it and declares the functions that `_winbind` calls.  What they allocate goes back by `wbcFreeMemory`.
`ctypes` lets go of the interpreter's lock during each call, so that nobody waits for a thread that waits for winbindd.

Invariants
----------
* A function is called only with the types that stand here; who calls checks the result and frees.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char, c_char_p, c_int, c_int32, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any

NAME = "libwbclient.so.0"

# wbcErr
SUCCESS, NOT_AVAILABLE, DOMAIN_NOT_FOUND, UNKNOWN_GROUP = 0, 6, 7, 12
PLAIN, RESPONSE = 1, 3  # wbcAuthUserLevel
# WBC_MSV1_0_ALLOW_SERVER_TRUST_ACCOUNT | ..._WORKSTATION_TRUST_ACCOUNT, as ntlm_auth has it: services of other machines
MACHINES_TOO = 0x820
GUEST = 0x1  # WBC_AUTH_USER_INFO_GUEST
MACHINE = 0x40 | 0x80 | 0x100  # WBC_ACB_DOMTRUST, ..._WSTRUST, ..._SVRTRUST: of a domain, a machine, a controller
GROUPS = frozenset({2, 4, 5})  # wbcSidType: of a domain, an alias (domain-local or built in), well known

# The structures of wbclient.h, as they have been since Samba 3.4.


class Sid(ctypes.Structure):
    """wbcDomainSid: a security identifier, of which `count` parts are valid."""

    _fields_ = [("revision", c_uint8), ("count", c_uint8), ("authority", c_uint8 * 6), ("parts", c_uint32 * 15)]


class SidAttributes(ctypes.Structure):
    """wbcSidWithAttributes."""

    _fields_ = [("sid", Sid), ("attributes", c_uint32)]


class Info(ctypes.Structure):
    """wbcAuthUserInfo: what a controller says of somebody who has logged on."""

    _fields_ = [
        ("user_flags", c_uint32), ("account_name", c_char_p), ("user_principal", c_char_p), ("full_name", c_char_p),
        ("domain_name", c_char_p), ("dns_domain_name", c_char_p), ("acct_flags", c_uint32),
        ("user_session_key", c_uint8 * 16), ("lm_session_key", c_uint8 * 8), ("logon_count", c_uint16),
        ("bad_password_count", c_uint16), ("logon_time", c_uint64), ("logoff_time", c_uint64),
        ("kickoff_time", c_uint64), ("pass_last_set_time", c_uint64), ("pass_can_change_time", c_uint64),
        ("pass_must_change_time", c_uint64), ("logon_server", c_char_p), ("logon_script", c_char_p),
        ("profile_path", c_char_p), ("home_directory", c_char_p), ("home_drive", c_char_p), ("num_sids", c_uint32),
        ("sids", POINTER(SidAttributes)),
    ]  # fmt: skip


class Challenged(ctypes.Structure):
    """The response to a challenge, within wbcAuthUserParams."""

    _fields_ = [
        ("challenge", c_uint8 * 8), ("nt_length", c_uint32), ("nt_data", c_char_p), ("lm_length", c_uint32),
        ("lm_data", c_char_p),
    ]  # fmt: skip


class Password(ctypes.Union):
    """The proof within wbcAuthUserParams."""

    _fields_ = [("plaintext", c_char_p), ("response", Challenged)]


class Params(ctypes.Structure):
    """wbcAuthUserParams: who wants to log on, and by which `level` of proof."""

    _fields_ = [
        ("account_name", c_char_p), ("domain_name", c_char_p), ("workstation_name", c_char_p), ("flags", c_uint32),
        ("parameter_control", c_uint32), ("level", c_int), ("password", Password),
    ]  # fmt: skip


class Error(ctypes.Structure):
    """wbcAuthErrorInfo: why somebody did not."""

    _fields_ = [
        ("nt_status", c_uint32), ("nt_string", c_char_p), ("pam_error", c_int32), ("display_string", c_char_p)
    ]  # fmt: skip


class Details(ctypes.Structure):
    """wbcInterfaceDetails: of this machine's winbindd."""

    _fields_ = [
        ("interface_version", c_uint32), ("winbind_version", c_char_p), ("winbind_separator", c_char),
        ("netbios_name", c_char_p), ("netbios_domain", c_char_p), ("dns_domain", c_char_p),
    ]  # fmt: skip


@cache
def library() -> Any:
    """libwbclient.  Raises `OSError` when it is not there, or so old that it has no contexts (before Samba 4.3)."""
    it = ctypes.CDLL(NAME)
    try:
        it.wbcCtxCreate.restype = c_void_p
        it.wbcCtxPing.argtypes = [c_void_p]
        it.wbcFreeMemory.argtypes = [c_void_p]
        it.wbcFreeMemory.restype = None
        it.wbcStringToSid.argtypes = [c_char_p, POINTER(Sid)]
        it.wbcInterfaceDetails.argtypes = [POINTER(POINTER(Details))]
        it.wbcCtxLookupSid.argtypes = [
            c_void_p, POINTER(Sid), POINTER(c_void_p), POINTER(c_void_p), POINTER(c_int)
        ]  # fmt: skip
        it.wbcCtxAuthenticateUserEx.argtypes = [
            c_void_p, POINTER(Params), POINTER(POINTER(Info)), POINTER(POINTER(Error))
        ]  # fmt: skip
    except AttributeError as error:
        raise OSError(str(error)) from None
    return it


def written(sid: Sid) -> str:
    """A SID as it is written (MS-DTYP 2.4.2.1)."""
    parts = [sid.revision, int.from_bytes(bytes(sid.authority), "big"), *sid.parts[: sid.count]]
    return "S-" + "-".join(map(str, parts))
