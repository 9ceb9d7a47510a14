"""JSON Schema (draft-07, which is what YAML editors understand) of what people type.

pydantic makes it from the models; here come the shorthands, the keys that exist only on the way in, and the names that
are keys of the map above.
"""

from __future__ import annotations

from typing import Any

from frontd.config.model import Config
from frontd.config.plugins import NO_PLUGINS, Catalogue

_STRING = {"type": "string"}
_TOLERATED_NULL = {"type": "null"}


def schema(catalogue: Catalogue = NO_PLUGINS) -> dict[str, Any]:
    """The JSON Schema of ``frontd.yaml``, with the settings of the plugins of `catalogue`."""
    made = Config.model_json_schema(mode="validation", ref_template="#/definitions/{model}")
    definitions: dict[str, Any] = made.pop("$defs")
    for name, model in definitions.items():
        _tidy(name, model)
    _tidy("Config", made)
    made["patternProperties"] = {"^x-": {"description": "Ignored; a place for YAML anchors."}}
    route = definitions["Route"]
    route["properties"]["target"] = {
        "type": "string",
        "description": "`http://host:port`, `https://host:port` or `unix:/path`: a pool of its own with this "
        "one target.",
    }
    definitions["Route"] = _or(route, _STRING, "A target (`http://app:8000`, `unix:/path`), or the name of a pool.")
    site = definitions["Site"]
    site["required"] = ["routes"]
    definitions["Site"] = _or(
        site, _STRING, "A target or the name of a pool: the route of `/`; the site's key is its host."
    )
    listen = definitions["Listen"]
    listen["required"] = ["port"]
    port = {"type": "integer", "minimum": 0, "maximum": 65535}
    definitions["Listen"] = {"anyOf": [port, *_or(listen, _STRING, "A port, or address:port.")["anyOf"]]}
    definitions["Pool"] = _or(definitions["Pool"], _STRING, "The only target of the pool.")
    definitions["Workers"] = _or(definitions["Workers"], _STRING, "The `app` of workers.")
    definitions["Plugin"] = _plugins(catalogue, definitions)
    definitions["LogFile"] = _or(definitions["LogFile"], _STRING, "Where lines go.")
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "frontd.yaml",
        **{key: value for key, value in made.items() if key != "title"},
        "definitions": definitions,
    }


def _plugins(catalogue: Catalogue, definitions: dict[str, Any]) -> dict[str, Any]:
    """One entry of a list of plugins; of those that are not in the catalogue, nothing is known but their shape."""
    known: list[dict[str, Any]] = []
    for name, kind in sorted(catalogue.kinds.items()):
        settings = kind.settings.model_json_schema(mode="validation", ref_template=f"#/definitions/{name}.{{model}}")
        definitions |= {f"{name}.{model}": inner for model, inner in settings.pop("$defs", {}).items()}
        settings.pop("title", None)
        options = [settings, _TOLERATED_NULL]
        if kind.settings.shorthand:
            options.append(settings["properties"][kind.settings.shorthand])
        known.append({"type": "object", "properties": {name: {"anyOf": options}}, "required": [name],
                      "additionalProperties": False})  # fmt: skip
    words = sorted(catalogue.kinds)
    other = {"type": "object", "minProperties": 1, "maxProperties": 1, "propertyNames": {"not": {"enum": words}}}
    return {"anyOf": [_STRING, *known, other], "description": "A plugin; a bare word when it needs no settings."}


def _or(model: dict[str, Any], short: dict[str, Any], description: str) -> dict[str, Any]:
    return {"anyOf": [{**short, "description": description}, model]}


def _tidy(name: str, model: dict[str, Any]) -> None:
    """Allow nothing where a section may be empty, leave out titles and defaults that depend on the machine."""
    properties: dict[str, Any] = model.get("properties", {})
    if name in ("Listen", "Site", "Pool"):
        properties.pop("name", None)
        model["required"] = [key for key in model.get("required", []) if key != "name"]
    if "plugins" in properties:
        properties["plugins"]["items"] = {"$ref": "#/definitions/Plugin"}
    for key, value in properties.items():
        value.pop("title", None)
        options = [option for option in value.pop("anyOf", []) if option != _TOLERATED_NULL]
        if value.get("default") is None:
            value.pop("default", None)
        if len(options) == 1:
            value |= options[0]
        elif options:
            value["anyOf"] = options
        if "$ref" in value:
            # draft-07 ignores what stands beside $ref
            properties[key] = {"anyOf": [{"$ref": value.pop("$ref")}, _TOLERATED_NULL], **value}
        elif value.get("type") in ("object", "array") and key not in model.get("required", []):
            value["type"] = [value["type"], "null"]
