"""The corpus: one file for one thing that comes over a wire, refused with the reason in the file's name, or accepted.

``refused/NAME.Reason.http`` and ``accepted/NAME.http`` are what clients send, ``responses-*`` what apps answer.  What
an accepted file means stands in ``accepted.txt``; a new file needs a line there.
"""

from __future__ import annotations

from pathlib import Path

import h11
import pytest

from frontd.lanes.requests import make_request
from frontd.model.errors import Reason
from frontd.model.headers import Headers
from frontd.protocol.framing import End
from frontd.protocol.h1 import ServerConnection
from frontd.protocol.scan import WireLimits
from tests.protocol.talk import client_hears, each_byte, server_hears

CORPUS = Path(__file__).parent / "corpus"


def files(folder: str) -> list[str]:
    found = sorted(path.name for path in (CORPUS / folder).iterdir())
    assert found
    return found


def reason_of(name: str) -> Reason:
    return Reason[name.split(".")[1]]


@pytest.mark.parametrize("name", files("refused"))
def test_a_refused_request_is_refused_with_its_reason_however_it_is_cut(name: str) -> None:
    data = (CORPUS / "refused" / name).read_bytes()
    whole = server_hears([data])
    assert whole.refused is reason_of(name)
    assert server_hears(each_byte(data)) == whole
    for at in range(1, min(len(data), 600)):
        assert server_hears([data[:at], data[at:]]) == whole


@pytest.mark.parametrize("name", files("responses-refused"))
def test_a_refused_answer_is_refused_with_its_reason_however_it_is_cut(name: str) -> None:
    data = (CORPUS / "responses-refused" / name).read_bytes()
    heard, _ = client_hears([data])
    assert heard.refused is reason_of(name)
    assert client_hears(each_byte(data))[0] == heard
    for at in range(1, len(data)):
        assert client_hears([data[:at], data[at:]])[0] == heard


# ------------------------------------------------------------------------------------------- accepted, and understood


def meanings() -> dict[str, list[str]]:
    lines = (CORPUS / "accepted.txt").read_text().splitlines()
    found: dict[str, list[str]] = {}
    for line in lines:
        if line and not line.startswith((" ", "#")):
            found[line] = []
        elif line.startswith(" "):
            found[next(reversed(found))].append(line.strip())
    return found


def meaning_of(parts: list[bytes]) -> list[str]:
    """Each request on one line: method, host, path, query, version, what it asks for, body, trailers."""
    http, said = ServerConnection(), []
    for data in parts:
        http.receive(data)
        while (head := http.next_head(WireLimits())) is not None:
            request = make_request(head)
            line = f"{request.method} host={request.host} {request.path}"
            line += f" query={request.query}" if request.has_query else ""
            line += f" {request.version}" + " expects-continue" * request.expects_continue
            line += f" upgrade={request.upgrade.decode()}" if request.upgrade else ""
            body = b""
            while not isinstance(part := http.next_body(), End):
                assert part is not None
                body += part
            line += f" body={body!r}" if request.has_body else ""
            line += f" trailers={[(name, value) for name, _, value in part.trailers]}" if len(part.trailers) else ""
            said.append(line)
            http.send_head(204, b"", Headers())
            http.send_end()
            if http.must_close:
                return said
            http.next_cycle()
    return said


def test_every_accepted_request_has_its_meaning_written_down() -> None:
    assert [f"{name}.http" for name in meanings()] == files("accepted")


@pytest.mark.parametrize("name", files("accepted"))
def test_an_accepted_request_means_what_is_written_down(name: str) -> None:
    data = (CORPUS / "accepted" / name).read_bytes()
    assert meaning_of([data]) == meanings()[name.removesuffix(".http")]


@pytest.mark.parametrize("name", files("accepted"))
def test_an_accepted_request_is_understood_however_it_is_cut(name: str) -> None:
    data = (CORPUS / "accepted" / name).read_bytes()
    whole = server_hears([data])
    assert whole.refused is None
    assert whole.messages
    assert server_hears(each_byte(data)) == whole
    for at in range(1, min(len(data), 600)):
        assert server_hears([data[:at], data[at:]]) == whole


BODIES = {
    "length": b"ok",
    "chunked-trailers": b"ok",
    "until-close": b"to the end",
    "http10": b"to the end",
    "informational": b"ok",
}


@pytest.mark.parametrize("name", files("responses-accepted"))
def test_an_accepted_answer_is_understood_however_it_is_cut(name: str) -> None:
    data = (CORPUS / "responses-accepted" / name).read_bytes()
    heard, rest = client_hears([data], end=True)
    assert heard.refused is None
    assert rest == b""
    assert heard.messages[-1].body == BODIES.get(name.removesuffix(".http"), b"")
    assert client_hears(each_byte(data), end=True) == (heard, rest)
    for at in range(1, len(data)):
        assert client_hears([data[:at], data[at:]], end=True) == (heard, rest)


# ------------------------------------------------------------------------------------------- why there is a wire check

# What h11 0.16 lets pass, in the words of the wire check's reason to exist, and the files that show it.
H11_ACCEPTS = {
    "bare LF": "lf-everywhere lf-after-request-line lf-after-one-field "
    "head-ends-lf-lf head-ends-crlf-lf head-ends-lf-crlf",
    "bare LF in trailers": "lf-in-trailer trailers-end-lf-lf trailers-end-lf",
    "obs-fold": "fold fold-tab fold-transfer-encoding fold-in-trailer",
    "control bytes": "control-01-in-value control-08-in-value control-0e-in-value control-1b-in-value "
    "control-1f-in-value control-7f-in-value",
    "Content-Length with Transfer-Encoding": "length-and-chunked chunked-and-length",
    "Transfer-Encoding on HTTP/1.0": "chunked-in-http10",
    "repeated equal Content-Length": "length-twice-equal length-list-equal",
    "a Content-Length of 20 digits": "length-20-digits",
    "HTTP/1.2 and 2.0": "version-12 version-20",
    "empty or malformed Host": "host-empty host-path-and-user host-list host-user host-brackets-without-ipv6",
    "* with GET": "target-star-with-get",
    "fragments and other targets": "target-fragment target-without-slash absolute-fragment",
    "an unknown expectation": "expect-unknown",
    "a space behind the chunk size": "chunk-size-space",
    "more fields and longer heads than any client needs": "fields-201 head-16385",
}


@pytest.mark.parametrize("name", [name for names in H11_ACCEPTS.values() for name in names.split()])
def test_h11_alone_would_have_accepted_it(name: str) -> None:
    (path,) = (CORPUS / "refused").glob(f"{name}.*.http")
    http = h11.Connection(h11.SERVER)
    http.receive_data(path.read_bytes())
    assert isinstance(http.next_event(), h11.Request)
    while isinstance(event := http.next_event(), h11.Data):
        pass
    assert isinstance(event, h11.EndOfMessage) or event is h11.NEED_DATA
