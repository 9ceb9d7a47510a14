"""An app that logs its users on by Kerberos: whom does it see?  A GSS-API acceptor of its own, with its own keytab."""

from __future__ import annotations

import base64
import importlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.wire import App, Line, app

SPNEGO, KRB5 = "1.3.6.1.5.5.2", "1.2.840.113554.1.2.2"


def seen(authorization: str, keytab: Path) -> str:
    """Whose token it is.  Raises what the library raises, as for a token that comes a second time."""
    gssapi = importlib.import_module("gssapi")
    scheme, _, token = authorization.partition(" ")
    assert scheme == "Negotiate"
    spnego, kerberos = (gssapi.OID.from_int_seq(dotted) for dotted in (SPNEGO, KRB5))
    store = {"keytab": f"FILE:{keytab}", "rcache": "dfl:"}
    credential = gssapi.Credentials(usage="accept", mechs=[spnego], store=store)  # and no bare tokens
    gssapi.raw.set_neg_mechs(credential, [kerberos])
    context = gssapi.SecurityContext(creds=credential, usage="accept")
    context.step(base64.b64decode(token, validate=True))
    assert context.complete
    return str(context.initiator_name)


@asynccontextmanager
async def backend(keytab: Path) -> AsyncIterator[App]:
    """An app that answers with the user it sees, and 401 where it sees nobody; see `seen`.

    A request without a token is that of whoever was seen last on its connection, as some apps have it.
    """

    async def answer(line: Line) -> None:
        last = ""
        while True:
            head, _ = await line.message()
            if not head:
                return
            it.heads.append(head)
            found = re.search(r"\r\nAuthorization: (.*)\r\n", head.decode())
            last = seen(found[1], keytab) if found else last
            status = "200 OK" if last else "401 Unauthorized\r\nWWW-Authenticate: Negotiate"
            text = last.encode() or b"nobody"
            await line.send(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(text), text))

    async with app(answer) as it:
        yield it
