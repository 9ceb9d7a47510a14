"""docs/control-api.yaml says what the control socket answers: nothing is left out, and nothing is made up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trio
import yaml
from jsonschema.protocols import Validator

from tests.net.pki import Pki
from tests.processes.house import House
from tests.scenarios.test_control import Desk, desk
from tests.scenarios.test_views import shop
from tests.wire import Line, one_pool

FILE = Path(__file__).parents[2] / "docs" / "control-api.yaml"
API: dict[str, Any] = yaml.safe_load(FILE.read_text())
METHODS = ("get", "put", "post", "delete", "patch")
OPERATIONS = {
    (method.upper(), path): operation
    for path, item in API["paths"].items()
    for method, operation in item.items()
    if method in METHODS
}
# What one process answers; the others need a control process of its own, and are asked in tests/processes.
ALONE = {key: one for key, one in OPERATIONS.items() if not one.get("tags")}
OF_TENANTS = {key: one for key, one in OPERATIONS.items() if one.get("tags") == ["tenants"]}


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    """What a reference inside of the file leads to."""
    while "$ref" in part:
        found: Any = API
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        part = found
    return part


def validator(schema: dict[str, Any]) -> Validator:
    """For one schema of the file; references in it are to the file."""
    return jsonschema.Draft202012Validator({**schema, "components": API["components"]})


def told(method: str, path: str, status: int, content_type: str, body: bytes) -> Iterator[str]:
    """What is wrong with an answer."""
    operation = OPERATIONS[method, path]
    responses = operation["responses"]
    if str(status) not in responses:
        yield f"{method} {path}: {status} is not among {list(responses)}"
        return
    content = resolved(responses[str(status)])["content"]
    kind = content_type.partition(";")[0]
    if kind not in content:
        yield f"{method} {path} {status}: {kind} is not among {list(content)}"
        return
    data = json.loads(body) if kind == "application/json" else body.decode()
    for error in validator(content[kind]["schema"]).iter_errors(data):
        yield f"{method} {path} {status}: {error.json_path}: {error.message}"


async def faults(it: Desk | House, method: str, target: str) -> tuple[int, list[str]]:
    """The status of an answer, and what is wrong with it."""
    socket = it.path if isinstance(it, Desk) else it.where / "control.sock"
    line = Line(await trio.open_unix_socket(socket))
    head, body = await line.ask(f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await line.close()
    fields = dict(entry.split(": ", 1) for entry in head.decode().split("\r\n")[1:] if entry)
    status = int(head[9:12])
    return status, list(told(method, target.partition("?")[0], status, fields["Content-Type"], body))


# ---------------------------------------------------------------------------------------------------- the file


def test_every_schema_is_one() -> None:
    for name, schema in API["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert "type" in schema or "enum" in schema, name


def test_the_file_is_openapi() -> None:
    assert API["openapi"].startswith("3.1.")
    assert {"title", "version"} <= API["info"].keys()
    for operation in OPERATIONS.values():
        assert operation["summary"]
        for response in operation["responses"].values():
            assert resolved(response)["description"]
        for parameter in operation.get("parameters", ()):
            assert {"name", "in", "schema"} <= parameter.keys()


def test_what_is_referred_to_is_used() -> None:
    text = FILE.read_text()
    named = {f"#/components/{kind}/{name}" for kind in ("schemas", "responses") for name in API["components"][kind]}
    used = set()
    for word in text.split('"'):
        if word.startswith("#/components/"):
            resolved({"$ref": word})
            used.add(word)
    assert used == named


async def test_it_names_what_is_served(tmp_path: Path) -> None:
    async with desk(one_pool("http://127.0.0.1:1"), tmp_path) as it:
        assert set(ALONE) == set(it.control.endpoints)
        _, said = await it.ask("GET /")
        assert said["error"].split("; try ")[1].split() == list(dict.fromkeys(path for _, path in it.control.endpoints))


# ---------------------------------------------------------------------------------------------------- the answers

CALLS = {
    "/explain": ["?url=https://a.test/away/x", "?url=http://nobody.test:1/", "?url="],
    "/servicestate": ["", "?view=requestq", "?view=client"],
    "/requests": ["", "?older=0&most=1", "?older=never"],
}


async def test_answers_are_as_it_says(pki: Pki, tmp_path: Path) -> None:
    """Of a front with everything that has a row somewhere; every status that an operation names was seen."""
    async with shop(pki, tmp_path) as it:
        line = await it.stage.connect()
        assert (await line.get("/%zz"))[0].startswith(b"HTTP/1.1 400 ")
        waiting = await it.stage.connect()
        await waiting.send(b"GET / HTTP/1.1\r\nHost: ")
        seen: set[tuple[str, str, int]] = set()
        for method, path in ALONE:
            for query in CALLS.get(path, [""]):
                status, wrong = await faults(it, method, path + query)
                assert not wrong, "\n".join(wrong)
                seen.add((method, path, status))
        it.text = "sites: 1"
        assert await faults(it, "POST", "/reload") == (422, [])
        assert await faults(it, "GET", "/status") == (200, [])
        await line.close()
        await waiting.close()
        await it.stage.front.drain()
        assert await faults(it, "GET", "/readyz") == (503, [])
        seen |= {("POST", "/reload", 422), ("GET", "/readyz", 503)}
        assert seen == {(*key, int(status)) for key, one in ALONE.items() for status in one["responses"]}


@pytest.mark.parametrize(
    ("path", "status", "kind", "data", "says"),
    [
        ("/config", 200, "application/json", {"yaml": 1}, "1 is not of type 'string'"),
        ("/config", 200, "application/json", {"yaml": "", "secret": ""}, "'secret' was unexpected"),
        ("/config", 200, "text/plain", "", "text/plain is not among"),
        ("/config", 404, "application/json", {}, "404 is not among"),
        ("/requests", 200, "application/json", {"total": 0, "more": 0}, "'requests' is a required"),
        ("/requestq", 200, "application/json", {"window": None, "request_queues": [{}]}, "'name' is a required"),
    ],
)
def test_a_wrong_answer_is_found(path: str, status: int, kind: str, data: object, says: str) -> None:
    assert says in "\n".join(told("GET", path, status, kind, json.dumps(data).encode()))
