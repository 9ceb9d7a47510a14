"""The lines that `frontd demo` prints to try, and what `frontd demo --check` expects of each."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from frontd.cli.children import stop
from frontd.cli.demo_files import MOTTO, PASSWORD, USER
from frontd.cli.demo_world import World, frontd_command, python_command

UPLOAD = 20_000_000  # bytes
LINE_TIMEOUT = 10.0  # seconds
_PART = "0-8"  # of the motto: its first two words


@dataclass(frozen=True, slots=True)
class Line:
    """A shell command, what it shows, and `verify`: output → what is wrong with it, empty when nothing is."""

    title: str
    command: str
    verify: Callable[[str], str]


def lines_to_try(world: World) -> list[Line]:
    """The lines, in the order in which one should meet them."""
    curl = "curl"
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "all_proxy", "ALL_PROXY")):
        curl += " --noproxy localhost"
    ca = f"--cacert {shlex.quote(str(world.ca))}"
    frontd = frontd_command()
    control = f"--socket {shlex.quote(str(world.control))}"
    return [
        Line("a page, proxied to an app", f"{curl} {ca} {world.url}/", _all("This is the sample app 'app'", "GET / ")),
        Line("two apps that take turns", f"{curl} {ca} {world.url}/replicas/ {world.url}/replicas/", _turns),
        Line(
            "an upload, streamed through",
            f"head -c {UPLOAD} /dev/zero | {curl} -sS {ca} -T - {world.url}/upload",
            _uploaded,
        ),
        Line(
            "a WebSocket, echoed",
            f"{python_command()} -m frontd.cli.websocket {ca} {world.url.replace('https', 'wss')}/echo 'hello, frontd'",
            _all("hello, frontd"),
        ),
        Line(
            "http redirects to https",
            f"{curl} -sS -i '{world.http_url}/page?x=1'",
            _all("HTTP/1.1 308", f"{world.url}/page?x=1"),
        ),
        Line(
            "nobody behind it: after 1 s in the queue an error page with its reason",
            f"{curl} -sS -i {ca} {world.url}/dead/",
            _all("HTTP/1.1 503", "AppOffline"),
        ),
        Line(
            "a path that asks for a logon",
            f"{curl} -sS -i {ca} {world.url}/private/",
            _all("HTTP/1.1 401", "WWW-Authenticate: Basic realm=", "LogonRequired"),
        ),
        Line(
            f"user {USER}, password {PASSWORD}: the app is told who it is",
            f"{curl} -sS -i {ca} -u {USER}:{PASSWORD} {world.url}/private/",
            _all("HTTP/1.1 200", f"X-Remote-User: {USER}", "X-Auth-Scheme: Basic"),
        ),
        Line(
            "a page that stays fresh for a minute: the second comes from memory, with its Age",
            f"{curl} -sS -i {ca} {world.url}/cached {world.url}/cached",
            _kept,
        ),
        Line(
            "a path that is filtered, with the substatus that IIS has for it",
            f"{curl} -sS -i {ca} {world.url}/.git/config",
            _all("HTTP/1.1 404", "404.8", "Rejected"),
        ),
        Line("a file, without any app", f"{curl} -sS {ca} {world.url}/static/motto.txt", _all(MOTTO)),
        Line(
            "a part of it",
            f"{curl} -sS -i {ca} -r {_PART} {world.url}/static/motto.txt",
            _all("HTTP/1.1 206", f"Content-Range: bytes {_PART}/{len(MOTTO)}", f"\r\n\r\n{MOTTO[:9]}"),
        ),
        Line(
            "a plugin that lies in a directory as a file, plugins/hello.py",
            f"{curl} -sS {ca} {world.url}/hello",
            _all("Hello, ", "This is plugins/hello.py."),
        ),
        Line(
            "an app that frontd starts itself: this request does it, and waits",
            f"{curl} -sS {ca} {world.url}/worker/",
            _all("This is the sample app 'worker'"),
        ),
        Line("who works there", f"{frontd} show workers {control}", _all("worker", "running", "ready")),
        Line(
            "what runs",
            f"{frontd} status {control}",
            _all("LISTENER", "PLUGIN", "hello", "POOL", "replicas", "AppOffline"),
        ),
        Line(
            "which way a URL goes, and why",
            f"{frontd} explain {world.url}/replicas/x {control}",
            _all("certificate", "cache_lookup: response_cache", "/replicas/", "replicas"),
        ),
    ]


def _all(*needles: str) -> Callable[[str], str]:
    def verify(output: str) -> str:
        missing = [needle for needle in needles if needle not in output]
        return f"{missing[0]!r} is missing in the output" if missing else ""

    return verify


def _turns(output: str) -> str:
    names = set(re.findall(r"This is the sample app '(\w+)'", output))
    return "" if names == {"blue", "green"} else f"answers came from {sorted(names) or 'nobody'}, not from both apps"


def _kept(output: str) -> str:
    """Two answers as ``curl -i`` prints them: the second has an Age, and is the same."""
    answers = [answer.partition("\r\n\r\n") for answer in output.split("HTTP/1.1 200 ")[1:]]
    if len(answers) != 2:
        return "there are not two pages"
    (_, _, first), (head, _, second) = answers
    if "\r\nage: " not in head.lower():
        return "the second answer has no Age"
    return "" if first == second else "the app was asked twice"


def _uploaded(output: str) -> str:
    try:
        got = json.loads(output)["bytes"]
    except (ValueError, KeyError, TypeError):
        return "the answer is not the app's"
    return "" if got == UPLOAD else f"the app counted {got} bytes of {UPLOAD}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one line: `problem` is empty when all is well; `seconds` it took; what it printed."""

    problem: str
    seconds: float
    output: str


def run_line(line: Line) -> Outcome:
    """Run a line in the shell, as the user would, and verify its output (stdout and stderr)."""
    began = time.monotonic()
    shell = subprocess.Popen(
        line.command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    try:
        output = shell.communicate(timeout=LINE_TIMEOUT)[0].decode("utf-8", "replace")
    except subprocess.TimeoutExpired:
        return Outcome(f"no end after {LINE_TIMEOUT:.0f} s", time.monotonic() - began, "")
    finally:
        stop([shell], grace=0)
    problem = f"exit code {shell.returncode}" if shell.returncode else line.verify(output)
    return Outcome(problem, time.monotonic() - began, output)
