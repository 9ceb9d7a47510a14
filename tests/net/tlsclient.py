"""A TLS client over any byte stream that shows what `trio.SSLStream` hides: sessions, alerts, close_notify."""

from __future__ import annotations

import ssl
import warnings
from contextlib import suppress
from typing import Any

import trio

from tests.net.pki import Pki
from tests.wire import Line, Stage


class Secure(trio.abc.Stream):
    """The client's end.  `ended_cleanly` says whether the server's close_notify was seen."""

    def __init__(
        self, under: trio.abc.Stream, context: ssl.SSLContext, name: str | None, session: ssl.SSLSession | None = None
    ) -> None:
        self.under = under
        self.ended_cleanly = False
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=name, session=session)

    async def _push(self) -> None:
        if self._out.pending:
            await self.under.send_all(self._out.read())

    async def _pull(self) -> bool:
        data = bytes(await self.under.receive_some(65536))
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()
        return bool(data)

    def hello(self) -> bytes:
        """The ClientHello; whoever takes it sends it."""
        with suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._out.read()

    async def do_handshake(self) -> None:
        """Raises `ssl.SSLError` for an alert and `EOFError` for an end without one."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._push()
                if not await self._pull():
                    raise EOFError("the server ended in the handshake without an alert") from None
            else:
                await self._push()
                return

    async def send_all(self, data: Any) -> None:
        self.tls.write(data)
        await self._push()

    async def wait_send_all_might_not_block(self) -> None:
        await self.under.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Bytes; ``b""`` at the end, with or without close_notify.  Raises `ssl.SSLError` for an alert."""
        while True:
            try:
                data = self.tls.read(max_bytes or 65536)
            except ssl.SSLWantReadError:
                await self._pull()
            except ssl.SSLEOFError:
                return b""
            else:
                self.ended_cleanly = self.ended_cleanly or not data
                return data

    async def aclose(self) -> None:
        await self.under.aclose()


def client_context(pki: Pki, certificate: str | None = None, version: str | None = None) -> ssl.SSLContext:
    """A client that trusts the servers' authority, shows `certificate`, and speaks `version` alone ("1.2", "1.3")."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(pki.ca)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if certificate is not None:
        context.load_cert_chain(pki.cert(certificate), pki.key(certificate))
    if version is not None:
        exact = {"1.1": ssl.TLSVersion.TLSv1_1, "1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            if version == "1.1":
                context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = exact
    return context


class Tls(Line):
    """A client's line through TLS."""

    def __init__(self, stream: Secure) -> None:
        super().__init__(stream)
        self.secure = stream
        self.tls = stream.tls

    def subject(self) -> set[str]:
        """The names in the server's certificate."""
        found = self.tls.getpeercert()
        assert found is not None
        names: Any = found["subjectAltName"]
        return {value for _, value in names}


async def tls_line(
    stage: Stage,
    context: ssl.SSLContext,
    name: str | None,
    *,
    session: ssl.SSLSession | None = None,
    line: Line | None = None,
) -> Tls:
    """A line to the listener ``https`` (or through `line`) with the handshake done."""
    line = line or await stage.connect("https")
    secure = Secure(line.stream, context, name, session)
    try:
        await secure.do_handshake()
    except BaseException:
        await line.close()
        raise
    return Tls(secure)


async def all_gone(stage: Stage) -> None:
    """Wait until the front has no connection left (and has counted why the last ones ended)."""
    with trio.fail_after(10):
        while stage.front.service.connections:
            await stage.front.service.emptied.wait()


def secure_site(target: str, certificates: str, tls: str = "", urls: str = '["https://*/"]', extra: str = "") -> str:
    """One https listener on a free port and one site with one pool."""
    return f"""
listen: {{https: {{port: 0}}}}
tls:
  certificates: [{certificates}]
  {tls}
{extra}
sites:
  main: {{urls: {urls}, routes: {{/: app}}}}
pools:
  app: {{targets: ["{target}"]}}
"""


HOSTS = """hosts: {{
    locked.test: {{client_certificate: required, ca: {ca}, crl: {crl}}},
    locked2.test: {{client_certificate: required, ca: {ca}, crl: {crl}}},
    optional.test: {{client_certificate: optional, ca: {ca}}}}}
"""
URLS = "[https://locked.test/, https://locked2.test/, https://optional.test/, https://open.test/, https://a.test/]"


def locked_site(pki: Pki, target: str, *, default: str = "", extra: str = "") -> str:
    tls = HOSTS.format(ca=pki.client_ca, crl=pki.crl) + (f"  default: {default}\n" if default else "")
    return secure_site(target, f"{pki.entry('locked')}, {pki.entry('a')}", tls, URLS, extra)
