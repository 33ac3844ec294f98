"""Properties of the spec loader: what is valid survives a round trip, all else is a SpecError."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ingot import SpecError
from ingot.specs import ModelSpec, TensorSpec, load_spec, parse_tensor_specs, schema
from ingot.specs.dtypes import DTYPES

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True) | st.sampled_from(
    ["on", "no", "y", "1e-4", "null", "0x1", "~", "é", "a b", "1:30", "2020-01-01", "<<", "="]
)
ENTRYPOINTS = st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5})?:[A-Za-z]{1,8}", fullmatch=True)
NUMBERS = st.floats(0, 1e6) | st.integers(0, 100)
COUNTS = st.integers(1, 1000)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | NUMBERS | NAMES,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(NAMES, children, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(NAMES.filter(lambda name: name != "name"), PLAIN, max_size=3)
COMPONENTS = ENTRYPOINTS | st.builds(
    lambda name, kwargs: {"name": name, **kwargs}, ENTRYPOINTS | st.just("SGD"), ARGUMENTS
)
TENSORS = st.lists(
    st.fixed_dictionaries(
        {
            "name": NAMES,
            "dtype": st.sampled_from(DTYPES),
            "shape": st.lists(COUNTS | NAMES | st.none(), max_size=4),
        },
        optional={"optional": st.booleans()},
    ),
    max_size=3,
    unique_by=lambda entry: entry["name"],
)
STAGES = st.fixed_dictionaries(
    {"mode": st.sampled_from(["compression", "latency", "quantization"])},
    optional={"level": st.integers(1, 3), "deepsearch": st.booleans()},
)
MODELS = st.one_of(
    st.just({"framework": "onnx", "file": "m.onnx"}),
    st.fixed_dictionaries(
        {"framework": st.sampled_from(["torch", "python"]), "entrypoint": ENTRYPOINTS},
        optional={"kwargs": ARGUMENTS, "requirements": st.lists(NAMES, max_size=2)},
    ),
)
SPECS = st.fixed_dictionaries(
    {"model": MODELS, "inputs": TENSORS, "outputs": TENSORS},
    optional={
        "name": st.from_regex(r"[a-z][a-z.]{0,8}", fullmatch=True),
        "test": st.fixed_dictionaries({}, optional={"rtol": NUMBERS, "atol": NUMBERS}),
        "loss": COMPONENTS,
        "data": st.fixed_dictionaries({"splits": ENTRYPOINTS}, optional={"kwargs": ARGUMENTS}),
        "optimization": STAGES | st.lists(STAGES, min_size=1, unique_by=lambda item: item["mode"]),
        "delta": NUMBERS,
        "eval_key": NAMES,
        "full_trainer": st.fixed_dictionaries(
            {}, optional={"optimizer": COMPONENTS, "ema": st.booleans(), "epochs": COUNTS}
        ),
        "export": st.fixed_dictionaries(
            {}, optional={"format": st.just("onnx") | st.just(["jit"])}
        ),
        "custom_compression": st.fixed_dictionaries(
            {}, optional={"layers": st.dictionaries(NAMES, st.just({"precision": 2}), max_size=2)}
        ),
        "training": st.fixed_dictionaries({}, optional={"callbacks": st.lists(COMPONENTS)}),
    },
)
VALIDATOR = Draft202012Validator(schema.spec_schema())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("specs")
    (folder / "m.onnx").write_bytes(b"")
    return folder


class Dumper(yaml.SafeDumper):
    """Quotes all text: PyYAML quotes what YAML 1.1 would take for something else, not 1.2."""

    def represent_text(self, data: str) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"')


Dumper.add_representer(str, Dumper.represent_text)


@settings(max_examples=150, deadline=None)
@given(values=SPECS)
def test_a_valid_spec_survives_a_round_trip(values: dict[str, Any], folder: Path) -> None:
    spec = ModelSpec.from_dict({"name": "spec", **values}, folder)
    plain = spec.to_dict()
    for name, text in [
        ("spec.yaml", yaml.dump(plain, Dumper=Dumper, allow_unicode=True)),
        ("spec.json", json.dumps(plain, indent=1)),
        ("given.json", json.dumps({"name": "spec", **values})),
    ]:
        (folder / name).write_text(text, encoding="utf-8")
        assert load_spec(folder / name) == spec
    assert [error.message for error in VALIDATOR.iter_errors(values)] == []
    assert [error.message for error in VALIDATOR.iter_errors(plain)] == []


KEYS = st.sampled_from(sorted(schema.spec_schema()["properties"])) | st.text(max_size=5)
SECTION_KEYS = st.sampled_from(
    sorted({k for d in schema.spec_schema()["$defs"].values() for k in d.get("properties", {})})
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.binary(max_size=4) | ENTRYPOINTS | st.sampled_from(["onnx", "torch", "compression", "~x"])
    | st.just(object()) | st.dates(),
    lambda children: st.lists(children, max_size=3)
    | st.tuples(children, children)
    | st.dictionaries(SECTION_KEYS | KEYS | st.integers(), children, max_size=4),
    max_leaves=12,
)  # fmt: skip


def check(values: Any, *overrides: str) -> None:
    """Build a spec, or get a SpecError of one line."""
    caught = None
    try:
        ModelSpec.from_dict(values, "/nowhere", overrides=overrides, check_files=False)
    except SpecError as error:
        caught = error
    assert "\n" not in str(caught)


@settings(max_examples=400, deadline=None)
@given(values=st.dictionaries(KEYS, JUNK, max_size=5) | JUNK, valid=st.booleans())
def test_any_other_mapping_is_a_spec_error(values: Any, valid: bool) -> None:
    if valid and isinstance(values, dict):
        values = {"model": {"framework": "onnx", "file": "m.onnx"}, **values}
    check(values)


@settings(max_examples=300, deadline=None)
@given(
    content=st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | st.text(alphabet=":-[]{},&*!|>'\"%@`#?<= \n\tab01.eE~\\", max_size=80).map(str.encode),
    suffix=st.sampled_from([".yaml", ".json", ".toml"]),
)
@example(content=b"a: !!int 0o9", suffix=".yaml")
@example(content=b'a: "\\UFFFFFFFF"', suffix=".yaml")
@example(content=b"%YAML 9999999999.1\n---\na: 1", suffix=".yaml")
@example(content=b"a: " + b"9" * 5000, suffix=".yaml")
@example(content=b'{"a": ' + b"9" * 5000 + b"}", suffix=".json")
@example(content=b"a = " + b"9" * 5000, suffix=".toml")
@example(content=b'{"a": "\\ud800", "\\ud800": 1}', suffix=".json")
@example(content=b'{"model": {"framework": "onnx", "file": "\\ud800"}}', suffix=".json")
def test_any_other_text_is_a_spec_error(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"spec{suffix}"
        path.write_bytes(content)
        with pytest.raises(SpecError) as caught:
            load_spec(path)
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=30) | st.text(alphabet="model.inputs[0]\"'=:{}delta -", max_size=30))
def test_any_override_works_or_is_a_spec_error(text: str) -> None:
    values = {"model": {"framework": "onnx", "file": "m.onnx"}, "inputs": []}
    check(values, text)


@settings(max_examples=300, deadline=None)
@given(entries=st.lists(st.fixed_dictionaries({"name": JUNK, "dtype": JUNK, "shape": JUNK})) | JUNK)
@example(entries=[{"name": "x", "dtype": "(-1,)f4", "shape": []}])
@example(entries=[{"name": "x", "dtype": "f4,f4", "shape": []}])
@example(entries=[{"name": "x", "dtype": {"names": ["a"], "formats": []}, "shape": []}])
@example(entries=[{"name": "x", "dtype": [("a", 1)], "shape": []}])
def test_any_tensor_spec_works_or_is_a_spec_error(entries: Any) -> None:
    try:
        specs = parse_tensor_specs(entries, "inputs")
    except SpecError:
        return
    assert all(isinstance(spec, TensorSpec) for spec in specs)
