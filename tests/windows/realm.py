"""A Kerberos realm that lives as long as a test run: an MIT KDC under one folder, on loopback, without root.

How it works
------------
`realm()` makes a database, a configuration that nothing of the machine has a part in, and starts `krb5kdc`; that takes
about a tenth of a second.  Principals and keytabs are made by `kadmin.local`, tickets by `kinit`, each told by
``KRB5_CONFIG`` and ``KRB5CCNAME`` where to look.  Whoever works with Kerberos inside of the test's own process gets the
same by `Realm.variables`.

A client whose clock is wrong, or that uses a ticket which has ended, is made from its credential cache: the file says
in plain how far the client's clock is off (`skewed`), and until when it believes in a ticket (`hopeful`).  Tickets that
ended before they began are what the KDC gives out for a service whose longest life is negative (`ends_before`).

Invariants
----------
* Nothing is read or written outside of the folder, and nothing listens but on 127.0.0.1.
* The KDC ends with the fixture, and also when the test run is killed (`frontd.cli.children`).
"""

from __future__ import annotations

import base64
import importlib
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from frontd.cli.children import spawn, stop

NAME = "TEST.FRONTD"
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # where Debian puts what only administrators need
PACKAGES = {
    "krb5kdc": "krb5-kdc", "kdb5_util": "krb5-kdc", "kadmin.local": "krb5-admin-server", "kinit": "krb5-user",
    "kvno": "krb5-user",
}  # fmt: skip

CLIENT = """\
[libdefaults]
 default_realm = {name}
 dns_lookup_kdc = false
 dns_lookup_realm = false
 dns_canonicalize_hostname = false
 rdns = false
 forwardable = true
 udp_preference_limit = 1
 {more}
[realms]
 {name} = {{
  kdc = 127.0.0.1:{port}
 }}
[domain_realm]
 localhost = {name}
 .test = {name}
 .example = {name}
"""
SERVER = """\
[kdcdefaults]
 kdc_listen = 127.0.0.1:{port}
 kdc_tcp_listen = 127.0.0.1:{port}
[realms]
 {name} = {{
  database_module = db
  key_stash_file = {folder}/stash
  max_life = 10h
  supported_enctypes = aes256-cts:normal aes128-cts:normal
  acl_file = {folder}/kadm5.acl
 }}
[dbmodules]
 db = {{
  db_library = db2
  database_name = {folder}/principal
 }}
[logging]
 kdc = FILE:{folder}/kdc.log
 admin_server = FILE:{folder}/kadmin.log
 default = FILE:{folder}/other.log
"""


def missing(what: str) -> None:
    """Skip the test because of `what`, by name; a failure where the environment says CI."""
    if os.environ.get("CI"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


def program(name: str) -> str:
    """The path of a program of Kerberos; see `missing`."""
    path = shutil.which(name, path=PATH)
    if path is None:
        missing(f"{name} is not installed (apt-get install {PACKAGES[name]})")
        raise AssertionError
    return path


def needs_gssapi() -> None:
    """Skip where the Kerberos binding is not installed; see `missing`."""
    try:
        importlib.import_module("gssapi")
    except ImportError as error:
        missing(f"gssapi is not installed ({error}): apt-get install gcc libkrb5-dev, then scripts/venv test")


class Realm:
    """A running KDC.  Credential caches, keytabs and configurations are files of `folder`."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.config = self.configured()
        (folder / "kdc.conf").write_text(SERVER.format(name=NAME, port=port, folder=folder))

    @property
    def variables(self) -> dict[str, str]:
        """What the environment of a process says that belongs to this realm."""
        return {
            "KRB5_CONFIG": str(self.config),
            "KRB5_KDC_PROFILE": str(self.folder / "kdc.conf"),
            "KRB5RCACHEDIR": str(self.folder),
            "KRB5CCNAME": f"FILE:{self.folder}/nobody",
            "KRB5_KTNAME": f"FILE:{self.folder}/nothing",
        }

    def configured(self, more: str = "", name: str = "krb5.conf") -> Path:
        """Write a client's configuration with one line `more` of ``[libdefaults]``."""
        path = self.folder / name
        path.write_text(CLIENT.format(name=NAME, port=self.port, more=more))
        return path

    def run(self, name: str, *arguments: str, said: str = "", **variables: str) -> str:
        """Run a program of Kerberos with `said` on its standard input; what it prints."""
        done = subprocess.run(
            [program(name), *arguments],
            input=said, text=True, capture_output=True, check=False, timeout=20,
            env={**os.environ, **self.variables, **variables},
        )  # fmt: skip
        assert done.returncode == 0, f"{name} {arguments}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def admin(self, *queries: str) -> str:
        """Ask `kadmin.local`, one process for all queries.  Raises `AssertionError` for one that fails."""
        said = self.run("kadmin.local", "-r", NAME, said="".join(f"{query}\n" for query in queries))
        assert "while " not in said, said
        return said

    def user(self, name: str, password: str = "secret") -> None:
        """Add a user."""
        self.admin(f"addprinc -pw {password} {name}")

    def service(self, *principals: str, keytab: str = "http.keytab", more: str = "") -> Path:
        """Add services with random keys, which stand in `keytab` afterwards beside those it has already."""
        path = self.folder / keytab
        adds = [f"addprinc -randkey {more} {principal}" for principal in principals]
        self.admin(*adds, *(f"ktadd -k {path} -norandkey {principal}" for principal in principals))
        return path

    def rotated(self, principal: str, keytab: str) -> Path:
        """Give a service a new key (the KDC forgets the old one) and write it alone into the file `keytab`."""
        path = self.folder / keytab
        self.admin(f"cpw -randkey {principal}", f"ktadd -k {path} -norandkey {principal}")
        return path

    def ticket(self, user: str, password: str = "secret", *options: str) -> Path:
        """A new credential cache in which `user` has a ticket-granting ticket."""
        path = self.folder / f"cc-{user.replace('/', '-')}-{len(list(self.folder.glob('cc-*')))}"
        self.run("kinit", *options, "-c", f"FILE:{path}", user, said=f"{password}\n")
        return path

    def fetch(self, cache: Path, principal: str) -> None:
        """Get the ticket for a service into a credential cache."""
        self.run("kvno", "-q", "-c", f"FILE:{cache}", principal)

    def ends_before(self, principal: str) -> None:
        """From now on tickets for a service are such that ended an hour ago.  `kadmin` takes no negative life, so the
        principal is dumped and loaded again (its ninth field is the longest life of a ticket, in seconds)."""
        dump = self.folder / "dump"
        self.run("kdb5_util", "dump", str(dump), f"{principal}@{NAME}")
        head, line, *rest = dump.read_text().split("\n")
        fields = line.split("\t")
        assert fields[8] == "36000", line
        fields[8] = "-3600"
        dump.write_text("\n".join([head, "\t".join(fields), *rest]))
        self.run("kdb5_util", "load", "-update", str(dump))


def hopeful(cache: Path) -> Path:
    """A copy of a credential cache whose owner takes a ticket that has ended for one of ten hours (its file format has
    four times one after the other: of the logon, begin, end, renewal)."""
    data = bytearray(cache.read_bytes())
    found = 0
    for at in range(len(data) - 16):
        logon, begin, end, renewal = struct.unpack_from(">IIII", data, at)
        if 0 <= begin - logon < 600 and begin - end == 3600 and not renewal:
            struct.pack_into(">I", data, at + 8, begin + 36000)
            found += 1
    assert found == 1, found
    copy = cache.with_name(f"{cache.name}-hopeful")
    copy.write_bytes(data)
    return copy


def skewed(cache: Path, seconds: int) -> Path:
    """A copy of a credential cache whose owner's clock is off by `seconds` (its file format, version 4: tag 1 of the
    header is the offset to the KDC's clock, in seconds and microseconds)."""
    data = cache.read_bytes()
    version, size = struct.unpack_from(">HH", data)
    assert version == 0x0504
    header = struct.pack(">HHii", 1, 8, seconds, 0)
    copy = cache.with_name(f"{cache.name}-off-by-{seconds}")
    copy.write_bytes(struct.pack(">HH", version, len(header)) + header + data[4 + size :])
    return copy


# ---------------------------------------------------------------------------------------------------- clients

SPNEGO, KRB5 = "1.3.6.1.5.5.2", "1.2.840.113554.1.2.2"
DCE = 0x1000  # GSS_C_DCE_STYLE: a handshake of three messages (RFC 4757 7.1)
MUTUAL, INTEGRITY = 0x2, 0x20  # GSS_C_MUTUAL_FLAG, GSS_C_INTEG_FLAG


def initiator(
    cache: Path, host: str, *, mechanism: str = SPNEGO, binding: bytes | None = None, flags: int = MUTUAL
) -> Any:
    """A client's context: the owner of `cache` logs on to ``HTTP/host``.  ``step(token)`` as with `gssapi`."""
    gssapi = importlib.import_module("gssapi")
    return gssapi.SecurityContext(
        name=gssapi.Name(f"HTTP@{host}", gssapi.NameType.hostbased_service),
        creds=gssapi.Credentials(usage="initiate", store={"ccache": f"FILE:{cache}"}),
        usage="initiate",
        mech=gssapi.OID.from_int_seq(mechanism),
        channel_bindings=gssapi.raw.ChannelBindings(application_data=binding) if binding is not None else None,
        flags=flags,
    )


def token(cache: Path, host: str, **more: Any) -> bytes:
    """The first token of such a client."""
    return bytes(initiator(cache, host, **more).step())


def negotiate(token: bytes) -> str:
    """The value of ``Authorization`` (RFC 4559 4.2)."""
    return f"Negotiate {base64.b64encode(token).decode()}"


# ---------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="session")
def kdc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    """A realm with the users alice and bob, and a keytab ``http.keytab`` for some hosts."""
    needs_gssapi()
    with realm(tmp_path_factory.mktemp("realm")) as it:
        it.user("alice")
        it.user("bob")
        it.service("HTTP/test.example", "HTTP/other.example", "HTTP/localhost", "HTTP/a.test", "HTTP/b.test")
        yield it


@pytest.fixture
def house(kdc: Realm, monkeypatch: pytest.MonkeyPatch) -> Realm:
    """The realm, in which also this process is at home."""
    for name, value in kdc.variables.items():
        monkeypatch.setenv(name, value)
    return kdc


@contextmanager
def realm(folder: Path) -> Iterator[Realm]:
    """A running realm in an empty folder."""
    it = Realm(folder, _free_port())
    it.run("kdb5_util", "create", "-s", "-P", "master", "-r", NAME)
    words = [f"{key}={value}" for key, value in it.variables.items()]
    process = spawn(
        ["/usr/bin/env", *words, program("krb5kdc"), "-n", "-r", NAME], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if b"starting..." in line:
                break
        else:
            raise AssertionError(b"".join(said))
        yield it
    finally:
        stop([process])
        assert process.stdout is not None
        process.stdout.close()


def _free_port() -> int:
    """A port of 127.0.0.1 that is free for TCP and UDP alike."""
    while True:
        with closing(socket.socket()) as stream, closing(socket.socket(type=socket.SOCK_DGRAM)) as datagrams:
            stream.bind(("127.0.0.1", 0))
            port = int(stream.getsockname()[1])
            try:
                datagrams.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
