"""Reading configurations in tests: everything that loads must also satisfy the JSON Schema that editors use."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import jsonschema

from frontd.config.load import ConfigProblems, Loaded, loads, schema
from frontd.config.marks import ListNode, Node, ScalarNode, read
from frontd.config.problems import Source

SCHEMA = schema()
NO_MOUNTS = Path("/nowhere/mountinfo")
TLS = """
tls:
  certificates:
    - {cert: shop.crt, key: shop.key}
"""


def typed(node: Node | None) -> Any:
    """What an editor sees: YAML 1.2 data before interpolation, merge keys followed."""
    if isinstance(node, ScalarNode):
        return node.scalar.value if node.scalar.value is None or not node.plain else _bare(node)
    if isinstance(node, ListNode):
        return [typed(item) for item in node.items]
    entries: list[Any] = [] if node is None else node.entries  # type: ignore[attr-defined]
    return {str(entry.key.scalar): typed(entry.value) for entry in reversed(entries)}


def _bare(node: ScalarNode) -> Any:
    value = node.scalar.value
    return str(value) if isinstance(value, str) else value


def load_text(
    text: str, base: Path = Path("/base"), environ: dict[str, str] | None = None, *, container: bool = False
) -> Loaded:
    """Load `text`, and see that it satisfies the JSON Schema."""
    text = textwrap.dedent(text)
    found = loads(text, base=base, environ=environ or {"HOME": "/home/u"}, container=container, mountinfo=NO_MOUNTS)
    jsonschema.validate(typed(read(Source("frontd.yaml", text))), SCHEMA, cls=jsonschema.Draft7Validator)
    return found


def errors_of(text: str, base: Path = Path("/base"), environ: dict[str, str] | None = None) -> str:
    """Everything that is printed about a configuration that does not load."""
    try:
        loads(
            textwrap.dedent(text), base=base, environ=environ or {"HOME": "/home/u"}, container=False, mountinfo=NO_MOUNTS
        )
    except ConfigProblems as problems:
        assert any(problem.severity == "error" for problem in problems.problems)
        return str(problems)
    raise AssertionError("it loads")


def warnings_of(text: str, base: Path = Path("/base"), *, container: bool = False) -> str:
    """Everything that is printed about a configuration that loads."""
    return "\n".join(map(str, load_text(text, base, container=container).warnings))


def flat(text: str) -> str:
    """A block of expected output as it is printed."""
    return textwrap.dedent(text).strip("\n")
