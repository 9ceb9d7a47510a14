"""The JSON Schema for editors, and the reference made from the models.

That every configuration which loads in these tests also satisfies the schema is seen to by `helpers.load_text`.
"""

from __future__ import annotations

import jsonschema
import pytest
import yaml

from frontd.config import model
from frontd.config.docs import reference
from frontd.config.fill import keys_of
from frontd.config.load import effective

from .helpers import SCHEMA, load_text

SITE = "sites: {a: {urls: [http://a/], routes: {/: http://app}}}\n"
PARTS = [
    part
    for part in vars(model).values()
    if isinstance(part, type) and issubclass(part, model.Part) and part is not model.Part
]


def test_it_is_draft_07() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "http://json-schema.org/draft-07/schema#"


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "sites: {}",
        "sites: {a: {}}",
        "sites: {a: 1}",
        "sites: {a: {routes: {/: {pools: x}}}}",
        SITE + "dashboard: {}",
        SITE + "plugins: {}",
        SITE + "plugins: [{a: {}, b: {}}]",
        SITE + "listen: {http: {}}",
        SITE + "listen: {http: 70000}",
        SITE + "limits: {max_body: 3MBB}",
        SITE + "timeouts: {drain: [1]}",
        SITE + "tls: {hosts: {a: {client_certificate: maybe}}}",
        SITE + "log: {access: {format: x}}",
        SITE + "pools: {p: {name: p, targets: [http://x]}}",
        SITE + "health: {}",
    ],
)
def test_what_does_not_load_does_not_satisfy_it_either(text: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), SCHEMA, cls=jsonschema.Draft7Validator)


def test_interpolation_satisfies_it_everywhere() -> None:
    text = """\
    listen: {"x": {kind: "${K}", port: "${P}", proxy_protocol: "${F}"}}
    sites: {a: {urls: ["${U}"], routes: {/: {redirect: "${R}", status: "${S}"}}, limits: {max_body: "${B}"}}}
    timeouts: {drain: "${D}", min_send_rate: "${P}"}
    log: {access: {to: "${T}", format: "${J}"}}
    """
    environ = {"K": "http", "P": "80", "F": "true", "U": "http://a", "R": "/x", "S": "301", "B": "1KiB", "D": "1s"}
    environ |= {"T": "off", "J": "w3c", "HOME": "/"}
    assert load_text(text, environ=environ).config.sites["a"].routes["/"].status == 301


def test_effective_satisfies_it() -> None:
    config = load_text(SITE + "health: {listen: 127.0.0.1:1}").config
    jsonschema.validate(effective(config), SCHEMA, cls=jsonschema.Draft7Validator)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_key_is_described(part: type[model.Part]) -> None:
    for key in keys_of(part):
        if key in part.model_fields:
            description = part.model_fields[key].description
            assert description
            assert description.endswith((".", "`.")), (key, description)


def test_the_reference_has_every_key() -> None:
    text = reference()
    for part in PARTS:
        if part is not model.Target:
            for key in keys_of(part):
                assert f"| `{key}` |" in text
    assert "| `max_head` | size | `16KiB` |" in text
    assert "| `wait` | duration | `30s` |" in text
    assert "PydanticUndefined" not in text
