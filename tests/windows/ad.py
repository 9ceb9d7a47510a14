"""An Active Directory for the plays: Samba as its domain controller, and a member with winbind where the plays happen.

How it works
------------
`Domain` starts `ad.sh` as the first process of private network, mount and pid namespaces: nothing outside is seen or
changed, and nothing in there outlives it.  It provisions and starts the controller, joins a member, and becomes
`inside.py`, which runs on the member whatever function of a test module it is asked to.  A play is such a function: its
arguments and its result are JSON, so that the test, outside, asserts what came of it:

    async def logon(user: str) -> str: ...            # on the member

    def test_bob(domain: Domain) -> None:
        assert domain.play(logon, user="bob") == "FRONTD\\\\bob"

The controller is Samba's, not Microsoft's.  It takes root, and 8 s once in a session.

Invariants
----------
* Whatever was started ends with the session, also when its process is killed: at the end of its stdin `inside.py`
  ends, and with the first process of a pid namespace the kernel ends all others.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PATIENCE = 100.0  # s for the setup, which takes 8 on two cores that have nothing else to do, and for one play

REALM = "AD.FRONTD.TEST"
NETBIOS = "FRONTD"
FRONT = "HTTP/front.frontd.test"  # of the account svc-front, which may delegate to BACKEND; its host is 10.99.0.2
BACKEND = "HTTP/backend.frontd.test"
BARE = "HTTP/bare.frontd.test"  # whose tickets have no PAC
PASSWORDS = {
    "bob": "Bob-pass1",  # in webusers, and by it in readers
    "carol": "Cärol-pässwört1",  # in Büro
    "dora": "Dora-pass1",  # disabled
    "eve": "Eve-pass1!",  # her account has expired
    "fred": "Fred-pass1",  # has to change his password first
    "gina": "Gina-pass1",  # to be locked out
    "evil": "Evil-pass1",  # whose UPN is boss@REALM
    "svc-front": "Svc-pass1!",
    "svc-backend": "Svc-pass1!",
    "svc-bare": "Svc-pass1!",
}
MACHINE = "Machine-pass1"  # of pc1$
LOCKOUT = 10  # wrong passwords
AES = "24"  # AES128 and AES256 (MS-KILE 2.2.7); without it exported keys are RC4
# MS-ADTS 2.2.16
NORMAL, DISABLED, TRUSTED_TO_AUTH_FOR_DELEGATION, NO_AUTH_DATA_REQUIRED = 0x200, 0x2, 0x1000000, 0x2000000
ACCOUNTS: dict[str, Any] = {
    "lockout": LOCKOUT,
    "users": PASSWORDS,
    "machines": {"pc1": MACHINE},
    "groups": {
        "webusers": {"scope": "global", "members": ["bob"]},
        "readers": {"scope": "local", "members": ["webusers"]},
        "Büro": {"scope": "global", "members": ["carol"]},
    },
    "attributes": {
        "dora": {"userAccountControl": str(NORMAL | DISABLED)},
        "eve": {"accountExpires": "132223104000000000"},  # 2020-01-01, in 100 ns since 1601
        "fred": {"pwdLastSet": "0"},
        "evil": {"userPrincipalName": f"boss@{REALM}"},
        "svc-front": {
            "servicePrincipalName": [FRONT],
            "userPrincipalName": f"{FRONT}@{REALM}",  # S4U2Proxy asks for tickets under the SPN's own name
            "msDS_SupportedEncryptionTypes": AES,
            "userAccountControl": str(NORMAL | TRUSTED_TO_AUTH_FOR_DELEGATION),
            "msDS_AllowedToDelegateTo": [BACKEND],
        },
        "svc-backend": {"servicePrincipalName": [BACKEND], "msDS_SupportedEncryptionTypes": AES},
        "svc-bare": {
            "servicePrincipalName": [BARE],
            "msDS_SupportedEncryptionTypes": AES,
            "userAccountControl": str(NORMAL | NO_AUTH_DATA_REQUIRED),
        },
    },
    "services": {"svc-front": "Svc-pass2!", "svc-backend": "Svc-pass2!", "svc-bare": "Svc-pass2!"},
    "keytabs": {"front.keytab": FRONT, "backend.keytab": BACKEND, "bare.keytab": BARE},
}
KRB5_CONF = f"""[libdefaults]
 default_realm = {REALM}
 dns_lookup_kdc = false
 dns_lookup_realm = false
 dns_canonicalize_hostname = false
 rdns = false
 forwardable = true
 udp_preference_limit = 1
[realms]
 {REALM} = {{
  kdc = 10.99.0.1
 }}
[domain_realm]
 .frontd.test = {REALM}
"""
NAMESPACES = (
    "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
)  # fmt: skip
TOOLS = ("unshare", "ip", "samba", "samba-tool", "winbindd", "wbinfo", "net")
BINDINGS = Path("/usr/lib/python3/dist-packages/samba")


def missing() -> str:
    """Why there can be no domain here, as a sentence; empty: nothing is in the way."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a domain of Samba's takes root, for namespaces and for the attributes of its files"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    lacking = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if lacking or not BINDINGS.exists():
        lacking = lacking or ["python3-samba"]
        return f"a domain of Samba's takes samba, samba-ad-dc, winbind and python3-samba: no {', '.join(lacking)}"
    return ""


def needs(lacking: str) -> None:
    """Skip because of what is lacking, if anything is; for root under CI that is a failure."""
    if lacking and os.environ.get("CI") and os.geteuid() == 0:
        pytest.fail(lacking, pytrace=False)
    if lacking:
        pytest.skip(lacking)


class Domain:
    """A running domain; `folder` has the keytabs ``front.keytab``, ``backend.keytab`` and ``bare.keytab``, and
    ``krb5.conf``.

    `facts` are what its database says: ``users`` and ``groups`` are SIDs by name, ``tokens`` the SIDs that count for a
    user.  Raises `RuntimeError` with the end of the log when the domain does not come up.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "accounts.json").write_text(json.dumps(ACCOUNTS))
        (folder / "krb5.conf").write_text(KRB5_CONF)
        folder.chmod(0o755)  # a play may happen as somebody else than root
        environ = os.environ | {
            "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
            "KRB5_CONFIG": str(folder / "krb5.conf"),
            "KRB5RCACHEDIR": str(folder),
            "KRB5CCNAME": f"FILE:{folder}/ccache",
        }
        command = [*NAMESPACES, "bash", str(HERE / "ad.sh"), str(folder), sys.executable]
        with open(folder / "setup.log", "w") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            if self._answer() != "ready\n":
                raise RuntimeError("the domain did not come up")
        except RuntimeError as error:
            self.close()
            raise RuntimeError(f"{error}\n{(folder / 'setup.log').read_text()[-4000:]}") from None
        self.facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())

    def play(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """Run a function of a module on the member, and return what it returned.

        `arguments` and result are JSON.  Raises `AssertionError` with its traceback when it fails.
        """
        asked = {"play": f"{function.__module__}:{function.__qualname__}", "arguments": arguments}
        _stream(self._process.stdin).write(json.dumps(asked) + "\n")
        _stream(self._process.stdin).flush()
        answer = json.loads(self._answer() or '{"failure": "the process that plays has ended"}')
        if "failure" in answer:
            raise AssertionError(answer["failure"])
        return answer["result"]

    def close(self) -> None:
        """End it, and everybody in it."""
        _stream(self._process.stdin).close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:  # a play, or the setup, that does not end
            self._process.kill()
            self._process.wait()
        _stream(self._process.stdout).close()

    def _answer(self) -> str:
        """The next line; empty at the end.  Raises `RuntimeError` when it takes too long."""
        stdout = _stream(self._process.stdout)
        if not select.select([stdout], [], [], PATIENCE)[0]:  # lines come one by one, so none is in the buffer
            raise RuntimeError(f"no answer within {PATIENCE} s")
        return stdout.readline()


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


@pytest.fixture(scope="session")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Domain]:
    """The domain of this session; a named skip where there can be none, for root under CI a failure."""
    needs(missing())
    it = Domain(tmp_path_factory.mktemp("ad"))
    try:
        yield it
    finally:
        it.close()
