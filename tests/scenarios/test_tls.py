"""TLS as clients meet it: which certificate answers, what is demanded, and what an answer over TLS looks like."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.net.pki import Pki
from tests.net.tlsclient import client_context, secure_site, tls_line
from tests.wire import app, front

# ---------------------------------------------------------------------------------------------------- which certificate


async def test_the_certificate_is_chosen_by_name(pki: Pki, tmp_path: Path) -> None:
    async with app() as it, front(secure_site(it.url, f"{pki.entry('a')}, {pki.entry('b')}"), tmp_path) as stage:
        context = client_context(pki)
        for name, covered in (
            ("a.test", "a.test"),
            ("b.test", "b.test"),
            ("B.TEST", "b.test"),
            ("b.test.", "b.test"),
            ("y.wild.test", "*.wild.test"),
            ("X.wild.test.", "x.wild.test"),  # the exact name comes before the wildcard
        ):
            line = await tls_line(stage, context, name)
            assert covered in line.subject(), name
            assert ("a.test" in line.subject()) == (covered in ("a.test", "*.wild.test")), name
            head, body = await line.get(host="a.test")
            assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"ok")
            await line.close()


@pytest.mark.parametrize("name", ["other.test", "wild.test", "p.q.wild.test", "test", None])
async def test_no_certificate_no_default_no_handshake(pki: Pki, tmp_path: Path, name: str | None) -> None:
    certificates = pki.entry("b")
    async with app() as it, front(secure_site(it.url, certificates), tmp_path) as stage:
        with pytest.raises(ssl.SSLError, match="(?i)unrecognized.name"):
            await tls_line(stage, client_context(pki), name)
        assert stage.reasons == {"TlsHostname": 1}
        assert f"TlsHostname - server+name+{name or '127.0.0.1'}" in stage.log("error")
