"""The JSON Schema of the spec: in step with the loader, and as strict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from ingot.specs import load_spec, schema

ROOT = Path(__file__).resolve().parent.parent
MODEL = {"framework": "onnx", "file": "m.onnx"}
TORCH = {"framework": "torch", "entrypoint": "net:build"}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    Draft202012Validator.check_schema(schema.spec_schema())
    return Draft202012Validator(schema.spec_schema())


def test_the_shipped_file_is_up_to_date() -> None:
    assert schema.SCHEMA_FILE.read_text(encoding="utf-8") == schema.schema_text(), (
        "run python -m ingot.specs.schema"
    )


@pytest.mark.parametrize(
    "spec",
    [
        {"model": MODEL},
        {"model": MODEL, "delta": 0.5, "level": 3, "device": "gpu", "optimization": "latency"},
        {"model": MODEL, "optimization": ["compression", {"mode": "quantization"}]},
        {"model": MODEL, "input_spec": [{"name": "x", "dtype": "<f4", "shape": ["n", None, 1]}]},
        {"model": MODEL, "loss": {"name": "a:b", "anything": {"goes": [1]}}, "evaluation": "a:b"},
        {"model": MODEL, "full_trainer": {"ema": True, "scheduler": {"name": "StepLR"}}},
        {"model": MODEL, "export": {"format": "onnx", "kwargs": {"resolutions": [[1, 2]]}}},
        {"model": MODEL, "custom_compression": {"quant_args": {"skip_layers": None}}},
        {"model": {**TORCH, "requirements": "numpy\nregex", "weights": "w.pt"}},
        {"model": {"framework": "tensorflow", "graph": "g.pb", "node_name_mapping": {"x": "y:0"}}},
    ],
)
def test_valid_specs(spec: dict[str, Any], validator: Draft202012Validator) -> None:
    assert [error.message for error in validator.iter_errors(spec)] == []


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"model": MODEL, "modle": 1},
        {"model": {**MODEL, "fiel": "x"}},
        {"model": {**MODEL, "entrypoint": "a:b"}},
        {"model": {"framework": "onnx"}},
        {"model": {"framework": "torch", "entrypoint": "build"}},
        {"model": {"framework": "tensorflow"}},
        {"model": {"framework": "tensorflow", "graph": "g.pb"}},
        {"model": {"framework": "tensorflow", "graph": "g", "saved_model": "s"}},
        {"model": MODEL, "delta": -1},
        {"model": MODEL, "level": 4},
        {"model": MODEL, "inputs": [{"name": "x", "dtype": "int8", "shape": [0]}]},
        {"model": MODEL, "inputs": [{"name": "x", "dtype": "int8", "shape": [], "size": 1}]},
        {"model": MODEL, "optimization": [{"mode": "compression", "dleta": 1}]},
        {"model": MODEL, "evaluation": {"range": [1]}},
        {"model": MODEL, "custom_compression": {"layers": {"a": {"precision": 0}}}},
        {"model": MODEL, "forward_pass": {"model_input_pattern": []}},
    ],
)
def test_invalid_specs(spec: dict[str, Any], validator: Draft202012Validator) -> None:
    assert list(validator.iter_errors(spec)) != []


def test_every_key_has_a_description() -> None:
    document = schema.spec_schema()
    for section in (document, *document["$defs"].values()):
        for name, key in section.get("properties", {}).items():
            assert key.get("description") or "pattern" in key, name


def test_the_reference_names_every_key() -> None:
    reference = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
    document = schema.spec_schema()
    names = set(document["properties"])
    for section in document["$defs"].values():
        names |= set(section.get("properties", {}))
    assert sorted(name for name in names if f"`{name}`" not in reference) == []


def test_the_example_of_the_reference_is_valid(tmp_path: Path) -> None:
    reference = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
    (tmp_path / "spec.yaml").write_text(reference.split("```yaml\n")[1].split("```")[0])

    spec = load_spec(tmp_path / "spec.yaml", check_files=False)

    assert spec.name == "digits_cnn"
    assert spec.inputs is not None
