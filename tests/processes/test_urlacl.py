"""`frontd urlacl`: what is reserved shields at once and outlives frontd; who may do what on the main control socket."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from frontd.processes.calls import Caller
from frontd.processes.registry import Registry, as_document, from_document
from frontd.processes.statefiles import StateProblem
from frontd.processes.tenants import UNKNOWN, holder_of
from tests.processes.house import House, kill, serving, started
from tests.processes.tenants import ANN, COMMAND_OF_OTHERS, attached, queues, tenant, words, written
from tests.processes.test_attach import raw
from tests.scenarios.test_control_api import OF_TENANTS, told

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


async def cli(house: House, *arguments: str) -> tuple[int, str]:
    """Exit code and output of `frontd …`."""
    command = [sys.executable, "-W", "error", "-m", "frontd", *arguments, "--socket", str(house.where / "control.sock")]
    done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout.decode()


async def test_a_reservation_shields_at_once_and_outlives_everything(tmp_path: Path) -> None:
    path = written(tmp_path, wait="0", fronts=2)
    async with serving(path) as house:
        assert b"waited in its queue" in (await house.get("/x/"))[1]  # the route / leads to a queue
        assert await cli(house, "urlacl", "add", "url=http://*/x/", f"uid={ANN}") == (
            0,
            "URL reservation successfully added\n",
        )
        assert (await house.control("GET /explain?url=http://a/x/y"))["answer"].startswith("503 AppOffline: ")
        shown = json.loads((await cli(house, "show", "urlacl", "--json"))[1])["reservations"]
        assert [(one["url"], one["user"], one["configured"]) for one in shown] == [
            ("http://*:80/cart/", "pool shop", True), ("http://*:80/books/", "pool books", True),
            ("http://*:80/ann/", f"user uid {ANN}", True), ("http://*:80/x/", f"user uid {ANN}", False),
        ]  # fmt: skip
        (pid,) = house.processes("control_process")
        await kill(pid)
        for front in await house.fronts():
            await kill(front)
        await house.until_status(lambda it: [one["state"] for one in it["fronts"]] == ["serving"] * 2)
        assert (await house.control("GET /explain?url=http://a/x/y"))["answer"].startswith("503 AppOffline: ")
        code, said = await cli(house, "urlacl", "add", "url=http://*/X/", "user=root")
        says = f"ALREADY_EXISTS: http://*:80/X/ is already reserved for user uid {ANN}"
        assert (code, said) == (1, f"frontd: not reserved: {says}\n")
        control = tmp_path / "control.sock"
        status, said = await raw(control, "POST /urlacl", '{"url": "http://*/y/", "user": "no-such-user"}')
        assert (status, "INVALID: there is no user 'no-such-user' here" in said) == (400, True)
        status, said = await raw(control, "DELETE /urlacl?url=http://*/cart/")
        assert (status, "stands in the configuration" in said) == (403, True)
        house.child.terminate()
        assert await house.end() == 0
    async with serving(path) as house:
        text = (await cli(house, "show", "urlacl"))[1]
        assert text.startswith("URL Reservations:\n-----------------\n\n    Reserved URL : http://*:80/cart/\n")
        assert f"    Reserved URL : http://*:80/x/\n        User: user uid {ANN}\n            Listen: Yes\n" in text
        assert await cli(house, "urlacl", "delete", "url=http://*/x/") == (0, "URL reservation successfully deleted\n")
        assert b"waited in its queue" in (await house.get("/x/"))[1]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter."""
    path = Path(tempfile.mkdtemp(prefix="frontd-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@needs_root
async def test_users_are_known_by_their_uid(open_folder: Path) -> None:
    """Ann registers what is hers, nothing else, and hands a part of it on."""
    as_ann = ["setpriv", f"--reuid={ANN}", "--regid=54321", "--clear-groups"]
    control = open_folder / "control.sock"
    async with serving(written(open_folder)) as house:
        control.chmod(0o666)
        with_books = [*as_ann, *words(control, "--url", "http://*/books/")]
        async with tenant(with_books) as it:
            assert await it.ended() == 1
            says = f"ACCESS_DENIED: http://*:80/books/ is reserved for pool books, not for user uid {ANN}"
            assert it.said == f"frontd: not attached: {says}\n"
        async with tenant([*as_ann, *words(control, "--url", "http://*/ann/x/", command=COMMAND_OF_OTHERS)]) as it:
            await it.until_said("attached to the queue http-80-any-ann-x")
            assert (await house.get("/ann/x/1"))[0] == 200
            assert (await house.get("/ann/"))[0] == 503, "reserved, and not registered"
            assert (await queues(house))["http-80-any-ann-x"]["owner"] == f"user uid {ANN}"
        async with tenant([*as_ann, *words(control, "--queue", "empty")]) as it:
            assert await it.ended() == 1
            assert "makes one only for a URL that is reserved" in it.said
        async with tenant([*as_ann, *words(control, "--queue", "shop")]) as it:
            assert await it.ended() == 1
            assert "the pool shop of the configuration is not user uid" in it.said

        async def ask(request: str, data: Any = None) -> tuple[int, str]:
            script = (
                "import sys; from frontd.cli.controlclient import call; from pathlib import Path; import json;"
                "a = call(Path(sys.argv[1]), sys.argv[2], sys.argv[3], data=json.loads(sys.argv[4]));"
                "print(a.status, a.data)"
            )
            method, target = request.split()
            command = [*as_ann, sys.executable, "-c", script, str(control), method, target, json.dumps(data)]
            done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
            if done.returncode:
                return 0, done.stderr.decode()
            status, _, said = done.stdout.decode().partition(" ")
            return int(status), said

        assert (await ask("POST /urlacl", {"url": "http://*/ann/bob/", "uid": 777}))[0] == 200
        status, said = await ask("POST /urlacl", {"url": "http://*/bob/", "uid": 777})
        assert (status, "only administrators may reserve it" in said) == (403, True)
        assert (await ask("DELETE /urlacl?url=http://*/ann/bob/"))[0] == 200
        assert (await ask("DELETE /urlacl?url=http://*/ann/"))[0] == 403
        assert (await ask("DELETE /queues?name=http-80-any-ann-x"))[0] == 200
        for request in ("GET /status", "GET /urlacl", "GET /queues", "POST /reload"):
            assert "wrong uid" not in (await ask(request))[1]
            assert (await ask(request))[0] == 0, "frontd's own user and root alone"
        log = await house.remark("audit: urlacl add by user uid 12345 (uid 12345 gid 54321 pid ")
        assert "audit: queue delete by user uid 12345 " in log


@pytest.mark.parametrize("caller", [Caller(7, UNKNOWN, 0), Caller(0, 1000, 1000), Caller(7, 2**32 - 1, 0)])
def test_whom_the_kernel_does_not_know_holds_nothing(caller: Caller) -> None:
    with pytest.raises(Exception, match="the kernel cannot say who calls"):
        holder_of(caller)
    assert holder_of(Caller(0, 0, 0)).is_admin, "root's own"
    assert holder_of(Caller(9, 1, 2, groups=frozenset({3}))).groups == {2, 3}


# ---------------------------------------------------------------------------------------------------- state


async def test_damaged_state_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "urlacl.json").write_text("{}")
    async with started(written(tmp_path)) as house:
        said = await house.rest()
        assert await house.end() == 1
    assert (
        f"frontd: cannot serve: {tmp_path}/urlacl.json is damaged: it does not hold reservations; put a copy back"
        in said
    )


async def test_state_that_is_damaged_later_refuses_changes_and_no_request(tmp_path: Path) -> None:
    async with serving(written(tmp_path)) as house:
        control = tmp_path / "control.sock"
        assert (await raw(control, "POST /urlacl", '{"url": "http://*/x/", "uid": 7}'))[0] == 200
        good = (tmp_path / "urlacl.json").read_text()
        (tmp_path / "urlacl.json").write_text(good.replace('"document"', '"Document"'))
        (pid,) = house.processes("control_process")
        await kill(pid)
        status, said = await raw(control, "POST /urlacl", '{"url": "http://*/y/", "uid": 7}')
        assert (status, "urlacl.json is damaged: its checksum is wrong" in said) == (503, True)
        assert "urlacl.json is damaged" in (await house.control("POST /reload"))["errors"][0]
        assert (await house.get("/x/"))[0] == 503, "what was reserved is shielded"
        (tmp_path / "urlacl.json").write_text(good)
        assert (await raw(control, "POST /urlacl", '{"url": "http://*/y/", "uid": 7}'))[0] == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
async def test_a_full_disk_refuses_the_change(tmp_path: Path) -> None:
    disk, libc = tmp_path / "disk", ctypes.CDLL(None, use_errno=True)
    disk.mkdir()
    if libc.mount(b"none", bytes(disk), b"tmpfs", 0, b"size=16k") != 0:
        reason = f"a tmpfs cannot be mounted: {os.strerror(ctypes.get_errno())}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    try:
        path = written(tmp_path)
        path.write_text(path.read_text().replace(f"state_dir: {tmp_path}", f"state_dir: {disk}"))
        async with serving(path) as house:
            control = tmp_path / "control.sock"
            assert (await raw(control, "POST /urlacl", '{"url": "http://*/x/", "uid": 7}'))[0] == 200
            (disk / "filler").write_bytes(b"x" * 12288)
            status, said = await raw(control, "POST /urlacl", '{"url": "http://*/y/", "uid": 7}')
            assert status == 503
            assert "urlacl.json cannot be written: no space is left on the disk; nothing was changed" in said
            answer = (await house.control("GET /urlacl"))["reservations"]
            assert [one["url"] for one in answer if not one["configured"]] == ["http://*:80/x/"]
            log = await house.remark("no space is left on the disk")
            assert "audit: urlacl add by user root (uid 0 gid 0 pid " in log
    finally:
        assert libc.umount2(bytes(disk), 2) == 0  # MNT_DETACH


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.load()
    document = {
        "reservations": [{"url": "http://*:80/a/", "account": ["group", 5, "g"], "delegate": True}],
        "queues": [{"name": "q", "owner": ["user", 7, "u"], "urls": [{"url": "http://*:80/b/", "grant": None},
                    {"url": "http://*:80/a/x/", "grant": ["group", 5, "g"]}]}],
    }  # fmt: skip
    assert as_document(from_document(document)) == document
    registry.file.write({"reservations": [{}], "queues": []})
    with pytest.raises(StateProblem, match="is damaged: it holds what this frontd does not understand"):
        registry.load()


async def test_the_answers_are_as_the_description_of_the_control_socket_says(tmp_path: Path) -> None:
    async with serving(written(tmp_path)) as house, attached(tmp_path / "shop/s"):
        control = tmp_path / "control.sock"
        calls = [
            ("GET", "/urlacl", "", 200), ("POST", "/urlacl", '{"url": "http://*/z/", "uid": 7}', 200),
            ("POST", "/urlacl", '{"url": "http://*/Z/", "uid": 7}', 409), ("POST", "/urlacl", "", 400),
            ("DELETE", "/urlacl?url=http://*/z/", "", 200), ("DELETE", "/urlacl?url=http://*/z/", "", 404),
            ("DELETE", "/urlacl?url=http://*/cart/", "", 403), ("DELETE", "/urlacl?url=x", "", 400),
            ("GET", "/queues", "", 200), ("POST", "/attach", '{"queue": "q"}', 200), ("POST", "/attach", "{", 400),
            ("POST", "/attach", '{"queue": "main", "mode": "attach"}', 404),
            ("POST", "/attach", '{"queue": "shop", "mode": "create"}', 409), ("DELETE", "/queues?name=shop", "", 409),
            ("DELETE", "/queues?name=q", "", 200), ("DELETE", "/queues?name=q", "", 404),
        ]  # fmt: skip
        for method, target, body, expected in calls:
            status, said = await raw(control, f"{method} {target}", body)
            assert status == expected, (method, target, said)
            path = target.partition("?")[0]
            assert list(told(method, path, status, "application/json", said.encode())) == []
            if path == "/attach" and status == 200:
                await house.remark("audit: detach of user root")
        assert {(method, target.partition("?")[0]) for method, target, *_ in calls} == set(OF_TENANTS)
