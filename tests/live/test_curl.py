"""curl through TLS, with the CA and without mercy."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from tests.live.house import House

BODY = bytes(range(256)) * 12288  # 3 MiB: more than curl sends without asking first


def test_a_page(house: House) -> None:
    done = house.curl("-w", "\n%{http_code} %{ssl_verify_result} %{http_version}", house.url("/page?x=1"))
    text, _, figures = done.stdout.decode().rpartition("\n")
    assert figures == "200 0 1.1"
    assert "GET /page?x=1 HTTP/1.1" in text
    assert f"Host: localhost:{house.https_port}" in text
    assert "X-Forwarded-Proto: https" in text
    forwarded = rf'Forwarded: for=("\[::1\]"|127.0.0.1);host="localhost:{house.https_port}";proto=https\n'
    assert re.search(forwarded, text)


def test_who_does_not_know_the_ca_does_not_come_in(house: House) -> None:
    done = house.curl("--cacert", "/dev/null", house.url(), check=False)
    assert done.returncode in (60, 77)  # not verified, or nothing to verify with
    assert done.stdout == b""


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_an_upload(house: House, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "body").write_bytes(BODY)
    done = house.curl("-v", "-T", str(tmp_path / "body"), house.url("/upload", scheme))
    assert json.loads(done.stdout) == {"bytes": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest(), "name": "live"}
    assert b"> Expect: 100-continue" in done.stderr
    assert b"< HTTP/1.1 100 " in done.stderr


def test_a_chunked_upload(house: House) -> None:
    done = house.curl("-v", "-X", "POST", "-T", "-", house.url("/upload"), data=BODY)
    assert json.loads(done.stdout)["sha256"] == hashlib.sha256(BODY).hexdigest()
    assert b"> Transfer-Encoding: chunked" in done.stderr


def test_an_upload_that_is_too_large_is_refused_before_it_is_sent(house: House, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(BODY)
    done = house.curl(
        "-v", "-T", str(tmp_path / "body"), "-w", "\n%{http_code} %{size_upload}",
        "--resolve", f"small.localhost:{house.https_port}:127.0.0.1",
        house.url("/upload", host="small.localhost"),
    )  # fmt: skip
    page, _, figures = done.stdout.decode().rpartition("\n")
    assert figures == "413 0"
    assert "EntityTooLarge" in page
    assert b"100 Continue" not in done.stderr


def test_a_chunked_upload_that_is_too_large_hears_why(house: House) -> None:
    """The length is not known before, so bytes are on their way when the answer comes; it arrives all the same."""
    done = house.curl(
        "-H", "Expect:", "-X", "POST", "-T", "-", "-w", "\n%{http_code}",
        "--resolve", f"small.localhost:{house.https_port}:127.0.0.1",
        house.url("/upload", host="small.localhost"), data=BODY,
    )  # fmt: skip
    page, _, figures = done.stdout.decode().rpartition("\n")
    assert figures == "413"
    assert "EntityTooLarge" in page


def test_a_download(house: House) -> None:
    done = house.curl(house.url("/download?bytes=5000001"))
    assert done.stdout == ((b"." * 63 + b"\n") * 100000)[:5000001]


def test_http_1_0(house: House) -> None:
    done = house.curl("-v", "--http1.0", house.url("/download?bytes=1000"), house.url("/"))
    assert done.stdout.startswith((b"." * 63 + b"\n") * 15)
    assert b"> GET / HTTP/1.0" in done.stderr
    assert b"Transfer-Encoding" not in done.stderr


def test_head(house: House) -> None:
    done = house.curl("-I", house.url("/download?bytes=77"), house.url("/"), "-w", "%{num_connects}\n")
    heads = done.stdout.decode()
    assert "Content-Length: 77\r\n" in heads
    assert heads.count("HTTP/1.1 200 OK\r\n") == 2
    assert heads.split("\r\n\r\n")[1:][0].startswith("1\n")
    assert heads.endswith("\r\n\r\n0\n")


def test_several_urls_on_one_connection(house: House) -> None:
    urls = [house.url(path) for path in ("/healthz", "/download?bytes=100000", "/nothing", "/healthz")]
    outputs = [word for url in urls for word in ("-o", "/dev/null", url)]
    done = house.curl("-w", "%{http_code} %{num_connects} %{size_download}\n", *outputs)
    codes = [line.split() for line in done.stdout.decode().splitlines()]
    assert [(code, connects) for code, connects, _ in codes] == [("200", "1"), ("200", "0"), ("404", "0"), ("200", "0")]
    assert codes[1][2] == "100000"


def test_many_at_once(house: House) -> None:
    urls = [word for n in range(30) for word in ("-o", "/dev/null", house.url(f"/sleep?s=0.2&n={n}"))]
    done = house.curl("-Z", "--parallel-immediate", "--parallel-max", "30", "-w", "%{http_code} %{time_total}\n", *urls)
    figures = [line.split() for line in done.stdout.decode().splitlines()]
    assert [code for code, _ in figures] == ["200"] * 30
    assert max(float(seconds) for _, seconds in figures) < 30 * 0.2 / 2  # one after the other would take 6 s


def test_plain_http_on_the_https_port_is_told_so(house: House) -> None:
    done = house.curl("-w", "\n%{http_code}", f"http://localhost:{house.https_port}/")
    assert done.stdout.endswith(b"\n400")
    assert b"PlainHttp" in done.stdout


def test_a_host_without_a_site(house: House) -> None:
    done = house.curl("-w", "\n%{http_code}", "-H", "Host: other.test", house.url(), check=False)
    assert done.stdout.endswith(b"\n400")
    assert b"Hostname" in done.stdout
