"""A directory that lives as long as a test run: OpenLDAP's slapd under one folder, on loopback, without root.

It has people, some with names that mean something in a DN, and groups of the three kinds there are.  It lets everybody
in who sends no password (`bind_anon_dn`), as directories may: whoever is let in by that has not been asked.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from frontd.cli.children import spawn, stop
from tests.windows.realm import missing
from tests.wire import free_port

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
BASE = "dc=frontd,dc=test"
PEOPLE, GROUPS = f"ou=people,{BASE}", f"ou=groups,{BASE}"
ODD = '#o"b, =+<>;\\x'  # what RFC 4514 2.4 names
CONFIG = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include /etc/ldap/schema/nis.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {folder}/pid
allow bind_anon_dn
TLSCACertificateFile {folder}/ca.pem
TLSCertificateFile {folder}/server.pem
TLSCertificateKeyFile {folder}/server.pem
database mdb
suffix {base}
directory {folder}/data
rootdn cn=admin,{base}
access to dn.subtree="ou=hidden,{base}" attrs=userPassword by anonymous auth
access to dn.subtree="ou=hidden,{base}" by * none
access to attrs=userPassword by anonymous auth
access to * by users read
"""
LDIF = """\
dn: {base}
objectClass: dcObject
objectClass: organization
o: frontd

dn: {people}
objectClass: organizationalUnit

dn: ou=hidden,{base}
objectClass: organizationalUnit

dn: {groups}
objectClass: organizationalUnit

dn: ou=playground,{groups}
objectClass: organizationalUnit

dn: uid=ann,{people}
objectClass: inetOrgPerson
uid: ann
cn: Ann
sn: Ann
userPassword: Ann-pass1

dn: uid=bob,{people}
objectClass: inetOrgPerson
uid: bob
uid: robert
cn: Bob
sn: Bob
userPassword: Bob-pass1

dn: uid=\\23o\\22b\\2C\\20\\3D\\2B\\3C\\3E\\3B\\5Cx,{people}
objectClass: inetOrgPerson
cn: Odd
sn: Odd
userPassword: Odd-pass1

dn: uid=eve,ou=hidden,{base}
objectClass: inetOrgPerson
cn: Eve
sn: Eve
userPassword: Eve-pass1

dn: cn=staff,{groups}
objectClass: groupOfNames
member: uid=Ann,{people}
member: uid=bob,{people}

dn: cn=writers,{groups}
objectClass: groupOfUniqueNames
uniqueMember: uid=ann,{people}

dn: cn=posix,{groups}
objectClass: posixGroup
gidNumber: 1000
memberUid: ann

dn: cn=admins,{groups}
objectClass: groupOfNames
member: cn=admin,{base}

dn: cn=admins,ou=playground,{groups}
objectClass: groupOfNames
member: uid=ann,{people}

dn: cn=two,{groups}
objectClass: groupOfNames
cn: admins
member: uid=ann,{people}
"""


class Slapd:
    """A running directory: `plain` and `tls` are its ports, `ca` the certificate of its authority."""

    def __init__(self, folder: Path, plain: int, tls: int) -> None:
        self.folder, self.plain, self.tls = folder, plain, tls
        self.ca = folder / "ca.pem"


def program(name: str) -> str:
    path = shutil.which(name, path=PATH)
    if path is None:
        missing(f"{name} is not installed (apt-get install slapd)")
        raise AssertionError
    return path


@contextmanager
def running(folder: Path) -> Iterator[Slapd]:
    """A directory in an empty folder."""
    daemon, load = program("slapd"), program("slapadd")
    it = Slapd(folder, free_port(), free_port())
    authority = trustme.CA()
    authority.cert_pem.write_to_path(it.ca)
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    (folder / "data").mkdir()
    config = folder / "slapd.conf"
    config.write_text(CONFIG.format(folder=folder, base=BASE))
    data = LDIF.format(base=BASE, people=PEOPLE, groups=GROUPS)
    done = subprocess.run(
        [load, "-f", config, "-q"], input=data, text=True, capture_output=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    urls = f"ldap://127.0.0.1:{it.plain} ldaps://127.0.0.1:{it.tls}"
    with open(folder / "log", "wb") as log:
        process = spawn([daemon, "-f", str(config), "-h", urls, "-d", "0"], stdout=log, stderr=log)
        try:
            for port in (it.plain, it.tls):
                while True:
                    assert process.poll() is None, (folder / "log").read_text()
                    try:
                        socket.create_connection(("127.0.0.1", port), 10).close()
                        break
                    except ConnectionRefusedError:
                        os.sched_yield()
            yield it
        finally:
            stop([process])


@pytest.fixture(scope="session")
def slapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    """The directory of this session; a named skip where there is no slapd, a failure where the environment says CI."""
    with running(tmp_path_factory.mktemp("slapd")) as it:
        yield it
