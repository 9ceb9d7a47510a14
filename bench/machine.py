"""What the figures were measured on: no names of hosts or people, no paths."""

from __future__ import annotations

import datetime
import os
import platform
import re
import ssl
import subprocess
from pathlib import Path

from bench.tools import find


def described(frontd: tuple[str, ...]) -> dict[str, str]:
    """Date, machine and versions, in the order in which they are shown."""
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    found = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": cpu_model(),
        "cores": str(os.cpu_count()),
        "kernel": platform.release().split("-")[0],
        "load average": f"{load} at the end (1, 5, 15 minutes)",
        "frontd": version([*frontd, "--version"], r"(\d[\w.+-]*)"),
        "Python": platform.python_version(),
        "OpenSSL": ssl.OPENSSL_VERSION.removeprefix("OpenSSL "),
        "nginx": version([find("nginx") or "", "-v"], r"nginx/(\S+)"),
        "HAProxy": version([find("haproxy") or "", "-v"], r"version (\d[\d.]*)"),
        "wrk": version([find("wrk") or "", "-v"], r"wrk \S*?(\d[\d.]*)"),
        "h2load": version([find("h2load") or "", "--version"], r"nghttp2/(\S+)"),
    }
    return {name: value for name, value in found.items() if value}


def cpu_model() -> str:
    """The name of the processor as the kernel has it."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def version(command: list[str], pattern: str) -> str:
    """What a program calls its version; empty when it is not here."""
    if not command[0]:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else ""
