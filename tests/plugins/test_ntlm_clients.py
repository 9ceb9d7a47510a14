"""NTLM with clients as people have them: curl and requests-ntlm over sockets, plain and through TLS, and Samba's."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
import trio
from frontd_plugins._ntlm import Response
from frontd_plugins._ntlm_crypto import nt_hash
from frontd_plugins._spnego import NTLM, NtlmInSpnego, offer
from requests_ntlm import HttpNtlmAuth

from frontd.testing import site
from tests.live.house import tool
from tests.net.pki import Pki
from tests.net.tlsclient import secure_site
from tests.plugins.ntlmclients import acceptor, challenge_of, field_of, verified
from tests.wire import App, Stage, app, front, one_pool

ALICE = f"alice:{nt_hash('secret').hex()}:staff\nCORP\\bob:{nt_hash('hunter2').hex()}\n"


@asynccontextmanager
async def stage(folder: Path, pki: Pki | None = None, more: str = "") -> AsyncIterator[tuple[Stage, App, str]]:
    """A front on loopback with NTLM, its app, and the URL: https if there are certificates."""
    (folder / "users").write_text(ALICE)
    plugins = f"plugins: [{{ntlm: {{users_file: users{more}}}}}]"
    async with app() as it:
        text = one_pool(it.url, site=plugins) if pki is None else secure_site(it.url, pki.entry("a")) + plugins
        async with front(text, folder) as there:
            scheme = "http" if pki is None else "https"
            yield there, it, f"{scheme}://127.0.0.1:{there.port(scheme)}/page"


async def curl(*arguments: str | Path) -> tuple[str, str]:
    """What curl prints behind the body: the status, the number of connections it opened."""
    words = [tool("curl"), "-q", "-sS", "--noproxy", "*", "-m", "20", "-o", "/dev/null"]
    words += ["-w", "%{http_code} %{num_connects}", *map(str, arguments)]
    done = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr
    status, connections = done.stdout.decode().split()
    return status, connections


def users_of(it: App) -> list[str]:
    """Who the app was told that the requests are from, and what it was not."""
    heads = [head.decode() for head in it.heads]
    assert all("Authorization" not in head for head in heads)
    return [head.partition("X-Remote-User: ")[2].partition("\r\n")[0] for head in heads]


# ---------------------------------------------------------------------------------------------------- curl


async def test_curl(tmp_path: Path) -> None:
    async with stage(tmp_path) as (there, it, url):
        assert await curl("--ntlm", "-u", "alice:secret", url) == ("200", "1")
        assert await curl("--anyauth", "-u", "CORP\\bob:hunter2", url) == ("200", "1")
        assert await curl("--ntlm", "-u", "FRONTD/alice:secret", "-d", "x" * 100, url) == ("200", "1")
        assert users_of(it) == ["alice", "CORP\\bob", "alice"]
        assert it.bodies == [b"", b"", b"x" * 100]
        for wrong in ("alice:Secret", "alice:", "mallory:secret", "OTHER\\alice:secret", ":"):
            assert (await curl("--ntlm", "-u", wrong, url))[0] == "401"
        assert (await curl(url))[0] == "401"
        assert len(it.heads) == 3
        log = there.log("error")
        assert "the+password+for+alice+is+wrong" in log
        assert "there+is+no+such+user" in log
        assert "mallory" not in log
        assert "TlRMTVNTUAAD" not in log  # how every Type 3 message begins


async def test_curl_through_tls(tmp_path: Path, pki: Pki) -> None:
    async with stage(tmp_path, pki) as (_, it, url):
        assert await curl("--ntlm", "-u", "alice:secret", "--cacert", pki.ca, url) == ("200", "1")
        assert await curl("--anyauth", "-u", "alice:secret", "--cacert", pki.ca, "-d", "x", url) == ("200", "1")
        assert users_of(it) == ["alice"] * 2


async def test_curl_binds_nothing(tmp_path: Path, pki: Pki) -> None:
    async with stage(tmp_path, pki, ", extended_protection: require") as (there, it, url):
        assert (await curl("--ntlm", "-u", "alice:secret", "--cacert", pki.ca, url))[0] == "401"
        assert not it.heads
        assert "the+client+did+not+bind+the+logon" in there.log("error")


# ---------------------------------------------------------------------------------------------------- requests-ntlm


async def asked(url: str, auth: Callable[[], Any], ca: Path | None = None, times: int = 1) -> list[int]:
    """The statuses of requests of one session."""

    def work() -> list[int]:
        with requests.Session() as session:
            session.trust_env = False
            session.verify = str(ca) if ca is not None else True
            session.auth = auth()
            return [session.get(url, timeout=20).status_code for _ in range(times)]

    return await trio.to_thread.run_sync(work)


async def test_requests(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_, it, url):
        assert await asked(url, partial(HttpNtlmAuth, "alice", "secret"), times=3) == [200] * 3
        assert users_of(it) == ["alice"] * 3
        assert await asked(url, partial(HttpNtlmAuth, "CORP\\bob", "hunter2")) == [200]
        assert await asked(url, partial(HttpNtlmAuth, "alice", "wrong")) == [401]
        assert users_of(it) == ["alice"] * 3 + ["CORP\\bob"]


@pytest.mark.parametrize(
    ("protection", "bound", "unbound"), [("none", 200, 200), ("allow", 200, 200), ("require", 200, 401)]
)
async def test_requests_through_tls(tmp_path: Path, pki: Pki, protection: str, bound: int, unbound: int) -> None:
    """Bound to the certificate that the client sees, which is the one that was presented."""
    async with stage(tmp_path, pki, f", extended_protection: {protection}, require_mic: true") as (_, _, url):
        assert await asked(url, partial(HttpNtlmAuth, "alice", "secret"), pki.ca) == [bound]
        assert await asked(url, partial(HttpNtlmAuth, "alice", "secret", send_cbt=False), pki.ca) == [unbound]


async def test_a_logon_that_was_meant_for_another_server(tmp_path: Path, pki: Pki) -> None:
    """Somebody with a certificate of their own stands between a client and us, and hands everything on."""
    async with stage(tmp_path, pki, ", extended_protection: allow") as (there, it, url):
        relay = partial(Relayed, "alice", "secret")
        assert await asked(url, relay, pki.ca) == [401]
        assert not it.heads
        assert "the+logon+is+bound+to+another+TLS+connection" in there.log("error")


class Relayed(HttpNtlmAuth):
    """A client that saw the certificate of whoever stands in the middle."""

    def _get_server_cert(self, response: requests.Response) -> bytes:
        return bytes(32)


# ---------------------------------------------------------------------------------------------------- Samba

SAMBA = """[global]
workgroup = CORP
netbios name = CLIENT
log file = {folder}/log
private dir = {folder}
lock directory = {folder}
state directory = {folder}
cache directory = {folder}
"""


@contextmanager
def samba(folder: Path, protocol: str, password: str = "secret") -> Iterator[Callable[[bytes | None], bytes]]:
    """Samba's client of NTLM: the next token, for the server's (None: the first one)."""
    (folder / "smb.conf").write_text(SAMBA.format(folder=folder))
    words = [f"--helper-protocol={protocol}", "--username=alice", f"--password={password}", "--domain=FRONTD"]
    with subprocess.Popen(
        [tool("ntlm_auth"), f"--configfile={folder}/smb.conf", *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        out, back = process.stdin, process.stdout

        def say(token: bytes | None) -> bytes:
            out.write("YR\n" if token is None else f"TT {base64.b64encode(token).decode()}\n")
            return base64.b64decode(back.readline().split(" ")[1])

        yield say
        process.stdin.close()


def test_samba(tmp_path: Path) -> None:
    (tmp_path / "users").write_text(ALICE)
    with site({"ntlm": {"users_file": str(tmp_path / "users")}}) as s, s.connect() as line:
        for password, status in (("secret", 200), ("wrong", 401)):
            with samba(tmp_path, "ntlmssp-client-1", password) as say:
                type2 = challenge_of(line.get("/", field_of(say(None))))
                assert line.get("/", field_of(say(type2))).status == status


def test_samba_inside_of_spnego(tmp_path: Path) -> None:
    it = NtlmInSpnego(acceptor())
    with samba(tmp_path, "gss-spnego-client") as say:
        first = say(None)
        assert offer(first).mechanisms == (NTLM,)
        answer = it.receive(first)
        assert isinstance(answer, bytes)
        response = it.receive(say(answer))
    assert isinstance(response, Response)
    it.complete(response, verified(response))
    assert it.is_complete
