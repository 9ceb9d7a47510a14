"""A real browser: it believes the front because the CA is in its database, and for no other reason."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.live.house import House, tool

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def trust(home: Path, ca: str) -> None:
    """Put `ca` into the NSS database that Chromium reads in `home`."""
    database = home / ".pki/nssdb"
    database.mkdir(parents=True)
    certutil = tool("certutil")
    for arguments in (("-N", "--empty-password"), ("-A", "-t", "C,,", "-n", "frontd dev", "-i", ca)):
        subprocess.run(
            [certutil, "-d", f"sql:{database}", *arguments], check=True, capture_output=True, env=environment(home)
        )


def environment(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": os.environ["PATH"], "TMPDIR": str(home)}


def dom(home: Path, url: str) -> str:
    """The page as it stands after loading."""
    done = subprocess.run(
        [tool("chromium"), *FLAGS, f"--user-data-dir={home}/profile", "--dump-dom", url],
        capture_output=True, check=False, timeout=60, env=environment(home),
    )  # fmt: skip
    return done.stdout.decode()


def test_chromium_loads_the_page(house: House, tmp_path: Path) -> None:
    tool("chromium")
    trust(tmp_path, house.ca)
    page = dom(tmp_path, house.url("/page-for-chromium"))
    assert "<h1>sample app live</h1>" in page
    assert "GET /page-for-chromium HTTP/1.1" in page
    seen = house.logged("/page-for-chromium")
    assert [(line["status"], line["tls"], line["scheme"]) for line in seen] == [(200, "TLSv1.3", "https")]
    assert "Chrome" in str(seen[0]["user_agent"])


def test_chromium_without_the_ca_refuses(house: House, tmp_path: Path) -> None:
    """The counter-proof: otherwise the test above would show nothing."""
    page = dom(tmp_path, house.url("/page-never-seen"))
    assert "sample app" not in page
    house.curl(house.url("/page-after"))
    house.logged("/page-after")
    assert "/page-never-seen" not in house.access_log.read_text()
