"""The PAC: what a domain controller wrote is read as it was meant, and bytes gone wrong are refused.

Samba writes the samples, by its own code for NDR, which has nothing in common with the reader.
"""

from __future__ import annotations

import base64
import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from frontd_plugins import _pac as pac
from hypothesis import given
from hypothesis import strategies as st

from tests.windows.realm import missing

# Of a ticket that a domain controller of Samba 4.17 gave to bob, a member of one group
BOB = base64.b64decode(
    "ARAIAMzMzMyoAQAAAAAAAAAAAgDqN5o6+3ndAf////////9//////////3++PmU1+3ndAb7+zl/Eet0Bvr6+Kvya3QEGAAYABAACAAAAAAAIAA"
    "IAAAAAAAwAAgAAAAAAEAACAAAAAAAUAAIAAAAAABgAAgABAAAATwQAAAECAAACAAAAHAACACAAAAAAAAAAAAAAAAAAAAAAAAAABgAIACAAAgAM"
    "AA4AJAACACgAAgAAAAAAAAAAABAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAQAAACwAAgAAAAAAAAAAAAAAAAADAAAAAAAAAAMAAA"
    "BiAG8AYgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAIAAAABAgAABwAAAFEE"
    "AAAHAAAABAAAAAAAAAADAAAARABDADEAAAAHAAAAAAAAAAYAAABGAFIATwBOAFQARAAEAAAAAQQAAAAAAAUVAAAA7cQBA9J4HMTWjwsrAQAAAD"
    "AAAgAHAAAAAQAAAAEBAAAAAAASAQAAAAAAAAA="
)
BOBS_SIDS = (
    "S-1-5-21-50447597-3290200274-722178006-1103",
    "S-1-5-21-50447597-3290200274-722178006-513",
    "S-1-5-21-50447597-3290200274-722178006-1105",
    "S-1-18-1",
)

WRITER = """
import json, struct, sys
from samba.dcerpc import krb5pac, netlogon, samr, security
from samba.ndr import ndr_pack

def groups(pairs):
    found = []
    for rid, attributes in pairs:
        one = samr.RidWithAttribute()
        one.rid, one.attributes = rid, attributes
        found.append(one)
    return found

def written(case):
    info = krb5pac.PAC_LOGON_INFO()
    info3 = netlogon.netr_SamInfo3()
    base = info3.base
    for name, text in case["texts"].items():
        letters = type(getattr(base, name))()
        letters.string = text
        setattr(base, name, letters)
    base.rid, base.primary_gid, base.user_flags = case["user"], case["primary"], 0x220
    base.groups.rids, base.groups.count = groups(case["groups"]), len(case["groups"])
    base.domain_sid = security.dom_sid(case["domain"])
    extra = []
    for sid, attributes in case["extra"]:
        one = netlogon.netr_SidAttr()
        one.sid, one.attributes = security.dom_sid(sid), attributes
        extra.append(one)
    info3.sids, info3.sidcount = extra, len(extra)
    info.info3 = info3
    if case["resource_domain"]:
        info.resource_groups.domain_sid = security.dom_sid(case["resource_domain"])
        info.resource_groups.groups.rids = groups(case["resource_groups"])
        info.resource_groups.groups.count = len(case["resource_groups"])
    pointer = krb5pac.PAC_LOGON_INFO_CTR()
    pointer.info = info
    buffer = krb5pac.PAC_BUFFER()
    buffer.type, buffer.info = krb5pac.PAC_TYPE_LOGON_INFO, pointer
    whole = krb5pac.PAC_DATA()
    whole.version, whole.num_buffers, whole.buffers = 0, 1, [buffer]
    data = ndr_pack(whole)
    size, at = struct.unpack_from("<IQ", data, 12)
    return data[at:at + size].hex()

print(json.dumps([written(case) for case in json.load(sys.stdin)]))
"""

PLAIN: dict[str, Any] = {
    "texts": {"account_name": "ann", "logon_domain": "EXAMPLE"},
    "user": 1103, "primary": 513, "groups": [], "domain": "S-1-5-21-1-2-3",
    "extra": [], "resource_domain": "", "resource_groups": [],
}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], pac.LogonInfo]] = {
    "nothing but an account": (
        PLAIN,
        pac.LogonInfo("ann", "EXAMPLE", ("S-1-5-21-1-2-3-1103", "S-1-5-21-1-2-3-513")),
    ),
    "all texts, of any length and script": (
        PLAIN | {
            "texts": {
                "account_name": "änn 🙂", "full_name": "Ann", "logon_script": "x", "profile_path": "\\\\host\\p",
                "home_directory": "h", "home_drive": "H:", "logon_server": "DC1", "logon_domain": "B",
            },
        },
        pac.LogonInfo("änn 🙂", "B", ("S-1-5-21-1-2-3-1103", "S-1-5-21-1-2-3-513")),
    ),
    "groups of all kinds": (
        PLAIN | {
            "groups": [[513, 7], [1105, 7], [1106, 0x10]],  # the last one is there to deny
            "extra": [["S-1-18-1", 7], ["S-1-5-21-9-9-4294967295-519", 7], ["S-1-5-32-544", 0]],
            "resource_domain": "S-1-5-21-7-7-7", "resource_groups": [[2000, 0x20000007], [2001, 0x20000007], [2002, 0]],
        },
        pac.LogonInfo(
            "ann", "EXAMPLE",
            (
                "S-1-5-21-1-2-3-1103", "S-1-5-21-1-2-3-513", "S-1-5-21-1-2-3-1105", "S-1-18-1",
                "S-1-5-21-9-9-4294967295-519", "S-1-5-21-7-7-7-2000", "S-1-5-21-7-7-7-2001",
            ),
        ),
    ),
    "an account of another domain": (
        PLAIN | {"user": 0, "extra": [["S-1-5-21-9-9-9-1000", 7]]},
        pac.LogonInfo("ann", "EXAMPLE", ("S-1-5-21-9-9-9-1000",)),
    ),
    "a thousand groups": (
        PLAIN | {"groups": [[rid, 7] for rid in range(2000, 3000)]},
        pac.LogonInfo(
            "ann", "EXAMPLE",
            ("S-1-5-21-1-2-3-1103", "S-1-5-21-1-2-3-513", *(f"S-1-5-21-1-2-3-{rid}" for rid in range(2000, 3000))),
        ),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def samples() -> dict[str, bytes]:
    """The cases as Samba writes them."""
    python = "/usr/bin/python3"
    probe = [python, "-c", "import samba.dcerpc.krb5pac"]
    if not Path(python).exists() or subprocess.run(probe, capture_output=True, check=False, timeout=20).returncode:
        missing("the Python modules of Samba are not installed (apt-get install python3-samba)")
    asked = json.dumps([case for case, _ in CASES.values()])
    done = subprocess.run([python, "-c", WRITER], input=asked, text=True, capture_output=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, map(bytes.fromhex, json.loads(done.stdout)), strict=True))


def test_a_ticket_of_a_domain_controller() -> None:
    assert pac.read(BOB) == pac.LogonInfo("bob", "FRONTD", BOBS_SIDS)


@pytest.mark.parametrize("case", CASES)
def test_what_samba_writes(samples: dict[str, bytes], case: str) -> None:
    assert pac.read(samples[case]) == CASES[case][1]


def test_wherever_it_is_cut_off_it_is_refused(samples: dict[str, bytes]) -> None:
    whole = samples["groups of all kinds"]
    end = len(whole) - 8  # the last group and what fills up: one that does not count may be missing with its padding
    for size in range(end):
        cut = whole[:size]
        with pytest.raises(pac.BadPac):
            pac.read(cut)
        if size >= 16:  # and also when the header says so
            with pytest.raises(pac.BadPac):
                pac.read(cut[:8] + struct.pack("<I", size - 16) + cut[12:])


@pytest.mark.parametrize("data", [b"", bytes(16), bytes(500), BOB[:16] + bytes(500), b"\1\0\x10\0" + BOB[4:]])
def test_what_is_no_pac(data: bytes) -> None:
    with pytest.raises(pac.BadPac):
        pac.read(data)


@pytest.mark.parametrize("value", [0, 1, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF])
def test_no_number_is_believed(value: int) -> None:
    """Each number of the structure, one after the other: refused, or as many SIDs as before (the primary group, which
    is one of the others, may become one of its own)."""
    for at in range(16, len(BOB) - 3, 4):
        changed = BOB[:at] + struct.pack("<I", value) + BOB[at + 4 :]
        try:
            found = pac.read(changed)
        except pac.BadPac:
            continue
        assert len(found.sids) <= len(BOBS_SIDS) + 1


@given(at=st.floats(0, 1, exclude_max=True), size=st.integers(0, 9), put=st.binary(max_size=9))
def test_bytes_gone_wrong(at: float, size: int, put: bytes) -> None:
    place = int(at * len(BOB))
    try:
        found = pac.read(BOB[:place] + put + BOB[place + size :])
    except pac.BadPac:
        return
    assert all(sid.startswith("S-1-") for sid in found.sids)
