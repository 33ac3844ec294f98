"""The JSON Schema of the spec, made from the declarations that the loader itself follows.

``python -m ingot.specs.schema`` writes it to ``specs/spec.schema.json``, which the package ships.
"""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from .declare import COMPONENT, Component, Key, Rule, Section, keys_of
from .dtypes import DTYPES
from .model import COMMON_KEYS, FRAMEWORK_KEYS, ModelSection
from .sections import EVALUATION_KEYS, STAGE_KEYS, EvaluationSection, Stage
from .spec import ROOT, ModelSpec, ProblemSpec
from .tensors import TensorSpec

SCHEMA_FILE = Path(__file__).with_name("spec.schema.json")

_TENSOR: dict[str, Any] = {
    "type": "object",
    "description": "Name, element type and shape of a tensor.",
    "additionalProperties": False,
    "required": ["name", "dtype", "shape"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "description": "The tensor's name."},
        "dtype": {
            "description": "The element type; aliases of NumPy are taken too.",
            "anyOf": [{"enum": list(DTYPES)}, {"type": "string"}],
        },
        "shape": {
            "description": "Sizes, symbols, and null for any size; [] is a scalar.",
            "type": "array",
            "items": {
                "anyOf": [
                    {"type": "integer", "minimum": 1},
                    {"type": "string", "minLength": 1},
                    {"type": "null"},
                ]
            },
        },
        "optional": {"type": "boolean", "description": "An input that may be left out."},
    },
}


def spec_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a spec file."""
    definitions: dict[str, Any] = {}
    schema = _section(ModelSpec, definitions)
    properties = schema["properties"]
    stages = properties["optimization"]
    properties["optimization"] = {
        "description": stages.pop("description"),
        "anyOf": [stages, stages["items"]],
    }
    for section, names in ((Stage, STAGE_KEYS), (EvaluationSection, EVALUATION_KEYS)):
        for name in names:
            properties[name] = _key(keys_of(section)[name], definitions)
    properties["root"] = {"type": "string", "minLength": 1, "description": ROOT}
    definitions["ModelSection"]["allOf"] = _framework_rules()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Ingot model spec",
        **schema,
        "$defs": dict(sorted(definitions.items())),
    }


def _framework_rules() -> list[dict[str, Any]]:
    """Return what ``model`` needs and forbids, framework by framework."""
    rules = []
    for framework, keys in FRAMEWORK_KEYS.items():
        allowed = (*COMMON_KEYS, *keys.all)
        then: dict[str, Any] = {
            "properties": {name: False for name in keys_of(ModelSection) if name not in allowed}
        }
        if keys.required:
            then["required"] = list(keys.required)
        if keys.one_of:
            then["oneOf"] = [{"required": [name]} for name in keys.one_of]
        if keys.pairs:
            then["dependentRequired"] = {name: [other] for name, other in keys.pairs}
        rules.append(
            {
                "if": {
                    "required": ["framework"],
                    "properties": {"framework": {"const": framework}},
                },
                "then": then,
            }
        )
    return rules


def _section(section: type[Section], definitions: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required = []
    for name, item in keys_of(section).items():
        properties[name] = _key(item, definitions)
        for alias in item.rule.aliases:
            properties[alias] = {**properties[name], "description": f"The same as `{name}`."}
        if item.required:
            required.append(name)
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if section not in (ModelSpec, ProblemSpec):
        schema["description"] = (section.__doc__ or "").splitlines()[0]
    if required:
        schema["required"] = required
    schema["additionalProperties"] = False
    return schema


def _key(item: Key, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = {**_type(item.hint, item.rule, definitions), "description": item.rule.description}
    if not item.required and isinstance(item.default, bool | int | float | str):
        schema["default"] = item.default
    return schema


def _type(hint: Any, rule: Rule, definitions: dict[str, Any]) -> dict[str, Any]:
    kind = get_origin(hint)
    if hint is Any:
        return {}
    if hint is type(None):
        return {"type": "null"}
    if kind in (Union, types.UnionType):
        return {"anyOf": [_type(item, rule, definitions) for item in get_args(hint)]}
    if kind is Literal:
        return {"enum": _choices(get_args(hint), rule)}
    if kind is dict:
        return {
            "type": "object",
            "additionalProperties": _type(get_args(hint)[1], rule, definitions),
        }
    if kind is tuple:
        return _array(get_args(hint), rule, definitions)
    if hint is Component:
        return {"$ref": "#/$defs/Component"} if _component(definitions) else {}
    if hint is TensorSpec:
        definitions["TensorSpec"] = _TENSOR
        return {"$ref": "#/$defs/TensorSpec"}
    if isinstance(hint, type) and issubclass(hint, Section):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}
            definitions[hint.__name__] = _section(hint, definitions)
        reference = {"$ref": f"#/$defs/{hint.__name__}"}
        return {"anyOf": [reference, *hint.also]} if hint.also else reference
    return _scalar(hint, rule)


def _component(definitions: dict[str, Any]) -> bool:
    name = {"type": "string", "pattern": COMPONENT}
    definitions["Component"] = {
        "description": "A built-in name or `module:attribute`, alone or with its arguments.",
        "anyOf": [
            name,
            {"type": "object", "required": ["name"], "properties": {"name": name}},
        ],
    }
    return True


def _array(items: tuple[Any, ...], rule: Rule, definitions: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    if items[-1] is Ellipsis:
        schema["items"] = _type(items[0], rule, definitions)
        if rule.min_items:
            schema["minItems"] = rule.min_items
    else:
        schema["prefixItems"] = [_type(item, rule, definitions) for item in items]
        schema["minItems"] = schema["maxItems"] = len(items)
    if rule.single == "item":
        return {"anyOf": [schema, schema["items"]]}
    return {"anyOf": [schema, {"type": "string"}]} if rule.single else schema


def _choices(choices: tuple[Any, ...], rule: Rule) -> list[Any]:
    lower = [choice.lower() for choice in choices if rule.upper]
    return [*choices, *lower]


def _scalar(hint: Any, rule: Rule) -> dict[str, Any]:
    if hint is bool:
        return {"type": "boolean"}
    schema: dict[str, Any] = {"type": {int: "integer", float: "number"}.get(hint, "string")}
    if hint in (int, float):
        if rule.minimum is not None:
            schema["minimum"] = rule.minimum
        if rule.maximum is not None:
            schema["maximum"] = rule.maximum
    elif rule.pattern is not None and hint is str:
        schema["pattern"] = rule.pattern
    elif not rule.allow_empty:
        schema["minLength"] = 1
    return schema


def schema_text() -> str:
    """Return the content of ``spec.schema.json``."""
    return json.dumps(spec_schema(), indent=2) + "\n"


def main() -> None:
    """Write ``spec.schema.json``."""
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
