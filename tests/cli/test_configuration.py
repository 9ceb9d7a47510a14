"""`check`, `show config`, and `proxy --print-config`: text in, text out."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from frontd.cli.common import loopback_addresses, pick_port, port_is_free, split_url
from frontd.cli.proxy import configuration, quoted, target
from frontd.cli.root import cli
from frontd.config import places
from frontd.config.load import Loaded, effective, loads

GOOD = "sites:\n  web:\n    urls: ['http://localhost:8080/']\n    routes: {/: 'http://app:9000'}\n"


@pytest.fixture(autouse=True)
def _elsewhere(state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def test_check_of_a_good_file(runner: CliRunner) -> None:
    Path("frontd.yaml").write_text(GOOD)
    result = runner.invoke(cli, ["check"])
    assert result.exit_code == 0
    assert result.stdout.startswith("ok: 1 site, 1 pool")  # in a container, warnings about it are counted behind


def test_check_prints_every_problem_and_exits_3(runner: CliRunner) -> None:
    Path("bad.yaml").write_text("sitez: {}\nlisten: {http: x}\n")
    result = runner.invoke(cli, ["check", "-c", "bad.yaml"])
    assert result.exit_code == 3
    assert "bad.yaml:1:1: sitez: unknown key" in result.stderr
    assert "bad.yaml:2:16: listen.http" in result.stderr
    assert result.stderr.endswith("errors\n")
    assert result.stdout == ""


def test_check_says_what_keeps_workers_from_being_started(runner: CliRunner) -> None:
    pool = "pools: {app: {workers: {command: [app, '{fd}'], user: nobody-of-this-name}}}\n"
    Path("frontd.yaml").write_text(GOOD.replace("'http://app:9000'", "app") + pool)
    result = runner.invoke(cli, ["check"])
    assert result.exit_code == 3
    assert "frontd.yaml: error: pools.app.workers.user: there is no user nobody-of-this-name\n" in result.stderr
    assert result.stderr.endswith("the configuration has 1 error\n")
    good = pool.replace(", user: nobody-of-this-name", "")
    Path("frontd.yaml").write_text(GOOD.replace("'http://app:9000'", "app") + good)
    assert runner.invoke(cli, ["check"]).exit_code == 0


@pytest.mark.parametrize("verb", ["check", "serve"])
def test_the_file_may_be_named_without_c(monkeypatch: pytest.MonkeyPatch, runner: CliRunner, verb: str) -> None:
    Path("bad.yaml").write_text("sitez: {}\n")
    Path("frontd.yaml").write_text(GOOD)
    monkeypatch.setenv("FRONTD_CONFIG", "frontd.yaml")
    result = frontd(verb, "bad.yaml")
    assert result.returncode == 3
    assert "bad.yaml:1:1: sitez: unknown key" in result.stderr
    assert result.stderr.endswith("frontd: the configuration has 2 errors\n")
    twice = runner.invoke(cli, [verb, "bad.yaml", "-c", "frontd.yaml"])
    assert twice.exit_code == 2
    assert "named twice: bad.yaml and -c frontd.yaml" in twice.stderr


def frontd(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a process: `serve` takes the signals and the children of its process over."""
    return subprocess.run(
        [sys.executable, "-m", "frontd", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_check_reads_standard_input_and_the_environment(runner: CliRunner) -> None:
    assert runner.invoke(cli, ["check", "-c", "-"], input=GOOD).exit_code == 0
    Path("other.yaml").write_text("sites: {}\n")
    assert runner.invoke(cli, ["check"], env={"FRONTD_CONFIG": "other.yaml"}).exit_code == 3


def test_no_file_at_all_names_the_places(runner: CliRunner) -> None:
    if os.path.exists("/etc/frontd/frontd.yaml"):
        pytest.skip("this machine has /etc/frontd/frontd.yaml")
    for verb in ("check", "serve"):
        result = runner.invoke(cli, [verb])
        assert result.exit_code == 3
        assert "/etc/frontd/frontd.yaml" in result.output
        assert "frontd demo" in result.output
    missing = frontd("serve", "-c", "missing.yaml")
    assert missing.returncode == 3
    assert "missing.yaml: the file cannot be read: No such file or directory" in missing.stderr


def test_schema(runner: CliRunner) -> None:
    schema = json.loads(runner.invoke(cli, ["check", "--schema"]).output)
    assert "sites" in schema["properties"]


def test_show_config_loads_again_and_hides_secrets(runner: CliRunner) -> None:
    Path("frontd.yaml").write_text(GOOD)
    shown = runner.invoke(cli, ["show", "config"]).stdout
    assert loads(shown).config == loads(GOOD).config


# ------------------------------------------------------------------------------------------- proxy


def printed(runner: CliRunner, *arguments: str) -> str:
    result = runner.invoke(cli, ["proxy", *arguments, "--print-config"])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("arguments", [["proxy", "--to", "1", "--print-config"], ["proxy", "--to", "1"], ["demo"]])
def test_a_state_directory_that_cannot_be_written(runner: CliRunner, arguments: list[str]) -> None:
    Path("file").touch()
    result = runner.invoke(cli, arguments, env={"FRONTD_STATE_DIR": "file/state"})
    assert result.exit_code == 1
    assert "frontd: cannot write to the state directory: " in result.stderr
    assert result.stderr.endswith("Choose another with FRONTD_STATE_DIR.\n")


def test_what_proxy_prints_is_a_configuration(runner: CliRunner, state_dir: Path) -> None:
    config = loads(printed(runner, "--from", "https://localhost:8443", "--to", "http://127.0.0.1:9000")).config
    assert {one.port for one in config.listen.values()} == {8443}
    assert config.tls.certificates[0].cert == state_dir / "dev" / "localhost.crt"
    assert [str(url) for url in config.sites["localhost"].urls] == ["https://localhost:8443/"]
    assert [str(one) for one in config.pools["http://127.0.0.1:9000"].targets] == ["http://127.0.0.1:9000"]
    assert effective(config)  # plain data, as `show config` needs it


@pytest.mark.parametrize("container", [False, True])
def test_localhost_is_served_on_loopback_only_except_in_a_container(container: bool) -> None:
    text, _ = configuration("https://localhost:8443", ("9000",), container=container)
    addresses = [one.address for one in loads(text).config.listen.values()]
    assert addresses == ([None] if container else loopback_addresses())


def test_a_redirect_listener_when_asked(runner: CliRunner) -> None:
    config = loads(printed(runner, "--to", "9000", "--http", "8081")).config
    assert {(one.kind, one.port) for one in config.listen.values()} == {("http", 8081), ("https", 8443)}


def test_names_below_localhost_get_a_certificate_that_covers_them(runner: CliRunner) -> None:
    config = loads(printed(runner, "--from", "https://shop.localhost:8443/a/", "--to", "9000", "--to", "b:80")).config
    assert list(config.sites["shop.localhost"].routes) == ["/a/"]
    assert [str(one) for one in config.pools["app"].targets] == ["http://127.0.0.1:9000", "http://b"]


@pytest.mark.parametrize("address", ["https://127.0.0.1:8443", "https://[::1]:8443"])
def test_addresses_use_the_default_certificate(runner: CliRunner, address: str) -> None:
    assert loads(printed(runner, "--from", address, "--to", "9000")).config.tls.default == "localhost"


def test_plain_http_needs_no_certificate(runner: CliRunner, state_dir: Path) -> None:
    config = loads(printed(runner, "--from", "http://localhost:8000", "--to", "9000")).config
    assert config.tls.certificates == ()
    assert not state_dir.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "https://shop.example", "--to", "9000"], "give --cert and --key"),
        (["--from", "http://localhost", "--to", "9000", "--cert", "x", "--key", "y"], "go with an https URL"),
        (["--to", "9000", "--cert", "x"], "go together"),
        (["--from", "ftp://x", "--to", "9000"], "is not a URL"),
        (["--from", "https://localhost:0", "--to", "9000"], "from 1 to 65535"),
        (["--from", "https://localhost:99999", "--to", "9000"], "from 1 to 65535"),
        (["--to", "app"], "write a port"),
        (["--to", "99999"], "from 1 to 65535"),
        (["--to", "app:0"], "from 1 to 65535"),
        ([], "Missing option '--to'"),
    ],
)
def test_wrong_usage_is_2(runner: CliRunner, arguments: list[str], said: str) -> None:
    result = runner.invoke(cli, ["proxy", *arguments, "--print-config"])
    assert result.exit_code == 2
    assert said in result.output


def test_what_is_printed_was_read_first(runner: CliRunner) -> None:
    result = runner.invoke(cli, ["proxy", "--to", "1", "--cert", "nope.pem", "--key", "nope.pem", "--print-config"])
    assert (result.exit_code, result.stdout) == (3, "")
    assert "nope.pem" in result.stderr
    assert runner.invoke(cli, ["proxy", "--to", "http://a/b", "--print-config"]).exit_code == 3


def test_what_is_printed_does_not_depend_on_what_runs(
    runner: CliRunner, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "RUN_DIR", state_dir)
    arguments = ["--from", "https://localhost", "--to", "9000"]
    before = printed(runner, *arguments)
    assert {one.port for one in loads(before).config.listen.values()} == {80, 443}
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(places.default_control_socket(state_dir)))
        other.listen()
        assert printed(runner, *arguments) == before


def test_a_proxy_in_a_container_does_not_warn_of_its_own_file(
    runner: CliRunner, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Loaded] = []
    monkeypatch.setenv("container", "podman")
    monkeypatch.setattr("frontd.cli.serve.run", seen.append)
    assert runner.invoke(cli, ["proxy", "--to", "9000"]).exit_code == 0
    assert [loaded.warnings for loaded in seen] == [[]]
    assert seen[0].config.state_dir == state_dir


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("9000", "http://127.0.0.1:9000"),
        (":9000", "http://127.0.0.1:9000"),
        ("app:80", "http://app:80"),
        ("[::1]:80", "http://[::1]:80"),
        ("https://app/", "https://app"),
        ("unix:/run/app.sock", "unix:/run/app.sock"),
    ],
)
def test_short_targets(short: str, long: str) -> None:
    assert target(short) == long


@pytest.mark.parametrize(
    "text", ["a", "/x/y:1", "yes", "1", "", "a b", "a: b", "*.x", "ä\"\\'", "http://[::1]:80", "x:"]
)
def test_quoted_scalars_come_back(text: str) -> None:
    assert yaml.safe_load(f"k: {quoted(text)}") == {"k": text}
    assert yaml.safe_load(f"{quoted(text)}: v") == {text: "v"}


def test_dollars_are_doubled_for_the_configuration() -> None:
    assert quoted("/a$b") == '"/a$$b"'


def test_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not port_is_free(port, ["127.0.0.1"])
        assert pick_port(port, ["127.0.0.1"]) != port
    assert port_is_free(port, ["127.0.0.1"])


def test_split_url() -> None:
    assert split_url("https://LocalHost") == ("https", "localhost", 443, "/")
    assert split_url("http://[::1]:81/x") == ("http", "::1", 81, "/x")
