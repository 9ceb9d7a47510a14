"""Verbs that ask a running frontd, against a small server on a Unix socket that follows the control contract."""

from __future__ import annotations

import http.server
import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from frontd.cli.controlclient import configured_socket
from frontd.cli.live import address, memory, status_text
from frontd.cli.root import cli
from frontd.config import places

STATUS: dict[str, Any] = {
    "version": "0.1.0", "pid": 42, "started": "2026-11-20T10:00:00Z", "uptime": 192.0, "ready": True,
    "state": "serving", "generation": 3,
    "config": {"file": "/etc/frontd/frontd.yaml", "loaded": "2026-11-20T10:00:00Z"},
    "last_reload": {"at": "2026-11-20T10:02:00Z", "ok": True, "changed": ["site shop"], "errors": []},
    "fronts": [
        {
            "index": 0, "pid": 43, "since": "2026-11-20T10:00:01Z", "state": "serving", "generation": 3,
            "connections": 7, "requests": 1234, "memory": 62914560,
        },
        {
            "index": 1, "pid": 44, "since": "2026-11-20T10:00:01Z", "state": "silent", "generation": 3,
            "connections": 0, "requests": 0, "memory": 0,
        },
    ],
    "listeners": [
        {"name": "https", "kind": "https", "address": None, "port": 8443, "public_port": 443, "connections": 7},
        {"name": "v6", "kind": "http", "address": "::1", "port": 8080, "public_port": 8080, "connections": 0},
    ],
    "sites": [
        {
            "name": "shop", "urls": ["https://shop.example:443/"], "requests": 1234, "errors": 5,
            "plugins": [
                {"name": "ip_filter", "server": True, "hooks": ["accept_client", "filter_request"]},
                {"name": "basic", "server": False, "hooks": ["authenticate", "challenge"]},
                {"name": "authorize", "server": False, "hooks": ["authorize"]},
            ],
        }
    ],
    "pools": [
        {
            "name": "app", "on_demand": False,
            "queue": {"length": 2, "limit": 1000, "wait": 30.0, "longest": 1.84}, "pins": 3,
            "targets": [
                {
                    "target": "http://app:8000", "address": "10.0.0.2:8000", "state": "up", "active": 1, "idle": 3,
                    "concurrency": None, "error": None,
                },
                {
                    "target": "http://old:8000", "address": None, "state": "down", "active": 0, "idle": 0,
                    "concurrency": 8, "error": "the name does not resolve",
                },
            ],
        },
        {
            "name": "http://far:80", "on_demand": True,
            "queue": {"length": 0, "limit": 1000, "wait": 30.0, "longest": 0}, "pins": None,
            "targets": [
                {
                    "target": "http://far:80", "address": None, "state": "unknown", "active": 0, "idle": 0,
                    "concurrency": None, "error": None,
                },
            ],
        },
    ],
    "store": {"used": 1258291, "limit": 67108864, "entries": 12},
    "certificates": [{"hosts": ["shop.example"], "not_after": "2027-01-01T00:00:00Z", "source": "/run/secrets/s.crt"}],
    "reasons": {"QueueFull": 3, "AppOffline": 12}, "log": {"dropped": 0}, "dropped_underscore_fields": 0,
    "connections": 7,
}  # fmt: skip

Answers = dict[str, tuple[int, Any]]


@contextmanager
def control(path: Path, answers: Answers) -> Iterator[list[str]]:
    """Serves `answers` ("GET /status" → status, JSON or text) on a Unix socket; yields the requests it saw."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self) -> None:
            asked = f"{self.command} {self.path}"
            seen.append(asked)
            status, data = answers.get(asked, (404, {"error": "no such thing"}))
            body = data.encode() if isinstance(data, str) else json.dumps(data).encode()
            self.send_response(status)
            kind = "text/plain" if isinstance(data, str) else "application/json; charset=utf-8"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = reply

        def address_string(self) -> str:
            return "unix"

        def log_message(self, format: str, *args: object) -> None:
            pass

    with socketserver.UnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield seen
        finally:
            server.shutdown()
            thread.join()


Ask = Callable[..., tuple[int, str]]


@pytest.fixture
def ask(tmp_path: Path, runner: CliRunner) -> Ask:
    def run(answers: Answers, *arguments: str) -> tuple[int, str]:
        with control(tmp_path / "c.sock", answers):
            result = runner.invoke(cli, [*arguments, "--socket", str(tmp_path / "c.sock")])
        (tmp_path / "c.sock").unlink()
        return result.exit_code, result.output

    return run


def test_status_is_aligned_text(ask: Ask) -> None:
    code, output = ask({"GET /status": (200, STATUS)}, "status")
    assert code == 0
    assert output.splitlines()[:4] == [
        "frontd 0.1.0   serving   pid 42   up 3m 12s   7 connections",
        "configuration /etc/frontd/frontd.yaml, loaded 2026-11-20T10:00:00Z, generation 3",
        "last reload 2026-11-20T10:02:00Z: site shop",
        "memory of plugins: 1.2 MiB of 64.0 MiB, entries: 12",
    ]
    assert "    0    43   serving   2026-11-20T10:00:01Z             7       1234   60.0 MiB\n" in output
    assert "    1    44   silent    2026-11-20T10:00:01Z             0          0   -\n" in output
    assert "https      https   *:8443               443             7\n" in output
    assert "v6         http    [::1]:8080          8080             0\n" in output
    assert "app         http://app:8000   10.0.0.2:8000   up             1      3             -   -\n" in output
    assert "on demand   http://far:80     -               unknown" in output
    assert "the name does not resolve\n" in output
    assert "\x1b" not in output
    assert not [line for line in output.splitlines() if line != line.rstrip()]


def test_status_names_plugins_in_their_order_and_the_servers_once() -> None:
    also = {**STATUS["sites"][0], "name": "blog", "plugins": STATUS["sites"][0]["plugins"][:1]}
    text = status_text({**STATUS, "sites": [*STATUS["sites"], also]})
    assert (
        "SITE         PLUGIN      HOOKS\n"
        "every site   ip_filter   accept_client, filter_request\n"
        "shop         basic       authenticate, challenge\n"
        "shop         authorize   authorize\n\n"
    ) in text


def test_status_has_a_row_for_a_pool_without_a_worker() -> None:
    pools = [{**STATUS["pools"][0], "name": "shop", "targets": []}]
    text = status_text({**STATUS, "pools": pools})
    (row,) = (line.split() for line in text.splitlines() if line.startswith("shop") and "none" in line)
    assert row == ["shop", "-", "-", "none", "0", "0", "-", "frontd", "show", "workers"]


def test_status_without_plugins_does_not_speak_of_them() -> None:
    text = status_text({**STATUS, "sites": [{**STATUS["sites"][0], "plugins": []}]})
    assert "PLUGIN" not in text
    assert "memory" not in text
    assert "\nSITE   REQUESTS" in text
    assert "frontd 0.1.0" in status_text({**STATUS, "sites": []})


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (1 << 26, "64.0 MiB"), (1 << 50, "1024.0 TiB")],
)
def test_memory(size: int, text: str) -> None:
    assert memory(size) == text


@pytest.mark.parametrize("named", [True, False])
def test_the_default_configuration_says_where_the_socket_is(
    named: bool, runner: CliRunner, tmp_path: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    file = tmp_path / "etc" / "frontd.yaml" if named else tmp_path / "cwd" / "frontd.yaml"
    file.write_text("sites: {}\ncontrol: {socket: c.sock}\n")
    with control(file.parent / "c.sock", {"GET /readyz": (200, "ok")}):
        result = runner.invoke(cli, ["healthcheck"], env={"FRONTD_CONFIG": str(file)} if named else {})
    assert (result.exit_code, result.output) == (0, "ready\n")


def test_where_a_configuration_puts_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "frontd.yaml"

    def found(text: str) -> Path | None:
        file.write_text(text)
        return configured_socket(file)

    assert found("control: {socket: /x/c.sock}") == Path("/x/c.sock")
    assert found("state_dir: s\ncontrol: {socket: c}") == tmp_path / "c"
    if not places.RUN_DIR.is_dir():
        assert found("state_dir: s") == tmp_path / "s" / "control.sock"
    for other in ("sites: {}", "control: {socket: '${S}'}", "control: x", "control: {socket: 1}", "a: b: c", "[]", ""):
        assert found(other) is None, other
    file.write_bytes(b"control: {socket: \xff}")
    assert configured_socket(file) is None
    assert configured_socket(tmp_path) is None
    assert configured_socket(tmp_path / "nothing") is None


def test_status_as_json_is_the_answer(ask: Ask) -> None:
    code, output = ask({"GET /status": (200, STATUS)}, "status", "--json")
    assert (code, json.loads(output)) == (0, STATUS)


def test_status_tells_of_trouble() -> None:
    text = status_text(
        {
            **STATUS,
            "ready": False,
            "last_reload": {"at": "now", "ok": False, "changed": [], "errors": ["f.yaml:1:2: no\n  | x"]},
            "log": {"dropped": 2},
            "dropped_underscore_fields": 1,
        }
    )
    assert "   not ready   " in text
    assert "the last reload (now) failed, what was before it serves on:\n  f.yaml:1:2: no\n    | x\n" in text
    assert "2 log lines lost: the log is too slow\n" in text
    assert "1 header field with _ in the name dropped\n" in text


def test_colour_adds_nothing_but_colour() -> None:
    coloured = status_text(STATUS, colour=True)
    assert "\x1b[31mdown\x1b[0m" in coloured
    for code in ("0", "1", "2", "31", "32", "33"):
        coloured = coloured.replace(f"\x1b[{code}m", "")
    assert coloured == status_text(STATUS)


def test_address() -> None:
    assert address({"address": "127.0.0.1", "port": 1}) == "127.0.0.1:1"


def test_reload_says_what_changed(ask: Ask) -> None:
    answer = {"generation": 4, "changed": ["site shop: routes", "pool app: new"], "warnings": ["f.yaml: warning: x"]}
    code, output = ask({"POST /reload": (200, answer)}, "reload")
    assert (code, output) == (0, "f.yaml: warning: x\n\nreloaded, generation 4\n  site shop: routes\n  pool app: new\n")
    nothing = {"generation": 5, "changed": [], "warnings": []}
    assert ask({"POST /reload": (200, nothing)}, "reload") == (0, "reloaded, generation 5: nothing changed\n")


def test_reload_prints_the_errors_and_exits_3(ask: Ask) -> None:
    code, output = ask({"POST /reload": (422, {"errors": ["f.yaml:1:1: sites: what", "second"]})}, "reload")
    assert code == 3
    assert output == (
        "f.yaml:1:1: sites: what\n\nsecond\n\nfrontd: not reloaded; the configuration from before is still served\n"
    )


def test_healthcheck(ask: Ask) -> None:
    assert ask({"GET /readyz": (200, "ok\n")}, "healthcheck") == (0, "ready\n")
    assert ask({"GET /readyz": (200, "ok\n")}, "healthcheck", "--quiet") == (0, "")
    assert ask({"GET /readyz": (503, "draining\n")}, "healthcheck") == (1, "frontd: not ready: draining\n")


def test_show_config_live_and_explain(ask: Ask) -> None:
    yaml = "sites:\n  a: http://x\n"
    assert ask({"GET /config": (200, {"yaml": yaml})}, "show", "config", "live") == (0, yaml)
    step = {"step": "site", "chosen": "s", "why": "w", "lost": []}
    answer = {"url": "https://x/?a=b", "steps": [step], "answer": "A"}
    code, output = ask({"GET /explain?url=https%3A%2F%2Fx%2F%3Fa%3Db": (200, answer)}, "explain", "https://x/?a=b")
    assert (code, output) == (0, "https://x/?a=b\n\nsite   s\n       w\n\n→ A\n")


def test_an_error_of_the_server_is_passed_on(ask: Ask) -> None:
    code, output = ask({"GET /status": (500, {"error": "broken inside"})}, "status")
    assert code == 1
    assert output.endswith("answered 500: broken inside\n")


def test_a_caller_who_may_not_gets_4(ask: Ask) -> None:
    code, output = ask({"POST /reload": (403, {"error": "uid 5 is not the owner"})}, "reload")
    assert code == 4
    assert "not permitted: uid 5 is not the owner" in output
    assert f"you are uid {os.geteuid()}" in output


def test_no_socket(tmp_path: Path, runner: CliRunner) -> None:
    path = tmp_path / "none.sock"
    result = runner.invoke(cli, ["status", "--socket", str(path)])
    assert result.exit_code == 4
    assert f"no contact with frontd on {path}: there is no such socket" in result.output
    assert "--socket PATH or $FRONTD_CONTROL" in result.output


def test_a_socket_nobody_listens_on(tmp_path: Path, runner: CliRunner) -> None:
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    result = runner.invoke(cli, ["healthcheck"], env={"FRONTD_CONTROL": str(path)})
    assert result.exit_code == 4
    assert f"{path}: nobody listens on it" in result.output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every socket")
def test_a_socket_that_is_closed_to_us(tmp_path: Path, runner: CliRunner) -> None:
    with control(tmp_path / "c.sock", {}):
        (tmp_path / "c.sock").chmod(0)
        result = runner.invoke(cli, ["status", "--socket", str(tmp_path / "c.sock")])
    assert result.exit_code == 4
    assert "permission denied" in result.output


def test_a_server_that_is_not_frontd(tmp_path: Path, runner: CliRunner) -> None:
    path = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(4096)
                accepted.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        result = runner.invoke(cli, ["status", "--socket", str(path)])
        thread.join()
    assert result.exit_code == 4
    assert "220 mail.example" in result.output


def test_the_default_socket_is_the_one_of_the_state_directory(state_dir: Path, runner: CliRunner) -> None:
    if os.access("/run/frontd", os.W_OK):
        pytest.skip("/run/frontd exists and comes first")
    assert str(state_dir / "control.sock") in runner.invoke(cli, ["status"]).output


@pytest.mark.parametrize("wrong", [["show", "config", "live", "-c", "f"], ["show", "config", "--socket", "s"]])
def test_live_and_file_do_not_mix(runner: CliRunner, wrong: list[str]) -> None:
    assert runner.invoke(cli, wrong).exit_code == 2
