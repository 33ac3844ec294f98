"""The JSON Schema of the spec; ``python -m ingot.specs.schema`` writes it anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .dtypes import DTYPES
from .model_spec import ModelSpec
from .normalise import MOVED, RENAMED
from .parsing import section_schema
from .sections import OptimizationStage

SCHEMA_FILE = Path(__file__).with_name("spec.schema.json")

_TENSORS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "dtype": {"type": "string", "examples": list(DTYPES)},
            "shape": {
                "type": "array",
                "items": {
                    "anyOf": [
                        {"type": "integer", "minimum": 1},
                        {"type": "string", "minLength": 1},
                        {"type": "null"},
                    ]
                },
            },
            "optional": {"type": "boolean", "default": False},
        },
        "required": ["name", "dtype", "shape"],
        "additionalProperties": False,
    },
}


def build_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a spec file."""
    schema = section_schema(ModelSpec)
    properties = schema["properties"]
    for key in ("inputs", "outputs"):
        properties[key] = {**_TENSORS, "description": properties[key]["description"]}
    stage = section_schema(OptimizationStage)
    properties["optimization"] = {
        "anyOf": [*stage["anyOf"], {"type": "array", "items": stage}],
        "description": properties["optimization"]["description"],
    }
    properties["problem"] = {
        "type": "string",
        "description": "A file with inputs, outputs and test that several models share.",
    }
    stage_properties = stage["anyOf"][0]["properties"]
    for key, section in MOVED.items():
        home = stage_properties if section == "optimization" else None
        properties[key] = {
            **(home[key] if home else {"type": "string"}),
            "description": f"The same as {section}.{key}.",
        }
    for old, new in RENAMED.items():
        properties[old] = {**properties[new], "description": f"The same as {new}."}
    # A name may come as model_name.
    schema["required"] = ["model"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Ingot model spec",
        **schema,
    }


def dump_schema() -> str:
    """Return the schema as its file holds it."""
    return json.dumps(build_schema(), indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(dump_schema(), encoding="utf-8")
