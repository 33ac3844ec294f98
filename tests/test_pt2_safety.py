"""Torch.export archives that would run code: ``torch.export.load`` does, Ingot refuses them."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ingot
from ingot.errors import ModelError

Parts = dict[str, bytes]

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A harmless archive of a module that doubles its input, at any batch."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((3,), 2.0))

        def forward(self, x: Any) -> dict[str, Any]:
            return {"twice": x * self.weight}

    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(Net(), (torch.from_numpy(X),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


def rewrite(source: Path, target: Path, change: Callable[[Parts], None]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        parts = {name: old.read(name) for name in old.namelist()}
        change(parts)
        for name, content in parts.items():
            new.writestr(name, content)
    return target


def in_program(change: Callable[[dict[str, Any]], None]) -> Callable[[Parts], None]:
    def changed(parts: Parts) -> None:
        name = next(name for name in parts if name.endswith("models/model.json"))
        program = json.loads(parts[name])
        change(program)
        parts[name] = json.dumps(program).encode()

    return changed


class Evil:
    """Makes the folder ``pwned`` when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


CODE = "__import__('os').mkdir('pwned')"


def pickled() -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save(Evil(), stream)
    return stream.getvalue()


def evil_samples(parts: Parts) -> None:
    parts[next(name for name in parts if "sample_inputs" in name)] = pickled()


def evil_weights(parts: Parts) -> None:
    name = next(name for name in parts if name.endswith("weights_config.json"))
    config = json.loads(parts[name])
    config["config"]["weight"]["use_pickle"] = True
    parts[name] = json.dumps(config).encode()
    parts[next(name for name in parts if name.endswith("weights/weight_0"))] = pickled()


def evil_old_weights(parts: Parts) -> None:
    root = next(iter(parts)).partition("/")[0]
    parts[f"{root}/data/weights/model.pt"] = pickled()


def evil_native(parts: Parts) -> None:
    root = next(iter(parts)).partition("/")[0]
    parts[f"{root}/data/aotinductor/model/model.so"] = b"\x7fELF"


def evil_size(program: dict[str, Any]) -> None:
    size = program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]
    size["expr_str"] = f"{CODE} or {size['expr_str']}"


def evil_range(program: dict[str, Any]) -> None:
    program["range_constraints"][CODE] = {"min_val": 1, "max_val": 2}


def evil_target(program: dict[str, Any]) -> None:
    node = program["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.os.mkdir"


def evil_argument(program: dict[str, Any]) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["forward_arg_names"] = [f"x={CODE}"]


def evil_node(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["nodes"][0]["name"] = f"x = {CODE}\n    y"


def evil_tree(program: dict[str, Any]) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    context = json.dumps({"__enum__": True, "fqn": "antigravity:X", "name": "a"})
    tree = {"type": "builtins.tuple", "context": context, "children_spec": []}
    signature["out_spec"] = json.dumps([1, tree])


EVIL: dict[str, Callable[[Parts], None]] = {
    "samples": evil_samples,
    "weights": evil_weights,
    "old weights": evil_old_weights,
    "native code": evil_native,
    "size": in_program(evil_size),
    "range": in_program(evil_range),
    "target": in_program(evil_target),
    "argument": in_program(evil_argument),
    "node": in_program(evil_node),
    "tree": in_program(evil_tree),
}


@pytest.mark.parametrize("part", EVIL)
def test_pt2_that_would_run_code_is_refused(
    part: str,
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = rewrite(archive, tmp_path / "evil.pt2", EVIL[part])
    with pytest.raises(ModelError, match=r"never|pickle"):
        ingot.load(path)
    assert not (tmp_path / "pwned").exists()


def test_guards_of_a_pt2_are_not_run(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def change(program: dict[str, Any]) -> None:
        program["guards_code"] = [f"{CODE} is None"]

    path = rewrite(archive, tmp_path / "evil.pt2", in_program(change))
    with ingot.load(path) as model:
        np.testing.assert_array_equal(model.infer({"x": X})["twice"], X * 2)
    assert not (tmp_path / "pwned").exists()


def test_pt2_calls_custom_operators_only_when_they_are_declared(
    archive: Path, tmp_path: Path
) -> None:
    def change(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.mine.op.default"

    path = rewrite(archive, tmp_path / "custom.pt2", in_program(change))
    with pytest.raises(ModelError, match=r"torch\.ops\.mine\.op"):
        ingot.load(path)


def test_an_archive_that_was_only_zipped_anew_runs(archive: Path, tmp_path: Path) -> None:
    path = rewrite(archive, tmp_path / "same.pt2", lambda parts: None)
    with ingot.load(path) as model:
        assert [spec.shape for spec in model.inputs] == [("batch_size", 3)]
        np.testing.assert_array_equal(model.infer({"x": X[:1]})["twice"], X[:1] * 2)
