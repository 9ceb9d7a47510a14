"""Reading configurations in tests: everything that loads must also satisfy the JSON Schema that editors use."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from frontd.config.load import ConfigProblems, Loaded, loads, schema
from frontd.config.marks import ListNode, MapNode, Node, ScalarNode, read
from frontd.config.problems import Source

SCHEMA = schema()
HOME = {"HOME": "/home/u"}
NO_MOUNTS = Path("/nowhere/mountinfo")
TLS = """
tls:
  certificates:
    - {cert: shop.crt, key: shop.key}
"""


def typed(node: Node | None) -> Any:
    """What an editor sees: YAML 1.2 data before interpolation, merge keys followed."""
    if isinstance(node, ScalarNode):
        return str(node.scalar.value) if isinstance(node.scalar.value, str) else node.scalar.value
    if isinstance(node, ListNode):
        return [typed(item) for item in node.items]
    assert isinstance(node, MapNode)
    return {str(entry.key.scalar): typed(entry.value) for entry in reversed(node.entries)}


def load_text(
    text: str, base: Path = Path("/base"), environ: dict[str, str] | None = None, *, container: bool = False
) -> Loaded:
    """Load `text`, and see that it satisfies the JSON Schema."""
    text = textwrap.dedent(text)
    found = loads(text, base=base, environ=environ or HOME, container=container, mountinfo=NO_MOUNTS)
    jsonschema.validate(typed(read(Source("frontd.yaml", text))), SCHEMA, cls=jsonschema.Draft7Validator)
    return found


def errors_of(text: str, base: Path = Path("/base"), environ: dict[str, str] | None = None) -> str:
    """Everything that is printed about a configuration that does not load."""
    with pytest.raises(ConfigProblems) as caught:
        loads(textwrap.dedent(text), base=base, environ=environ or HOME, container=False, mountinfo=NO_MOUNTS)
    assert any(problem.severity == "error" for problem in caught.value.problems)
    return str(caught.value)


def warnings_of(text: str, base: Path = Path("/base"), *, container: bool = False) -> str:
    """Everything that is printed about a configuration that loads."""
    return "\n".join(map(str, load_text(text, base, container=container).warnings))


def flat(text: str) -> str:
    """A block of expected output as it is printed."""
    return textwrap.dedent(text).strip("\n")
