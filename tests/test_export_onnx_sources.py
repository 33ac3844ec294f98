"""ONNX files, and what converters make, that ``export`` to ONNX has to take as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import run_onnx
from models import write
from onnx import TensorProto, checker, helper, load, numpy_helper, save

import ingot
from ingot.errors import CheckError, ModelError
from ingot.exporters.base import Variant
from ingot.exporters.onnx_files import (
    Converted,
    _check_file,
    _name_tensors,
    deserialize,
    read_model,
)
from ingot.specs.tensors import TensorSpec

X = np.random.default_rng(3).random((3, 4), np.float32)
WEIGHTS = np.random.default_rng(4).random((4, 4), np.float32)


def onnx_file(
    path: Path,
    nodes: Sequence[Any],
    weights: Mapping[str, Any],
    *,
    opset: int = 17,
    ir_version: int = 8,
    **save_options: Any,
) -> Path:
    """Write an ONNX file from ``x: [n, 4]`` to ``y: [n, 4]``."""
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")
    ]
    initializers = [numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items()]
    inputs = tensors[:1]
    if ir_version < 4:
        inputs += [
            helper.make_tensor_value_info(item.name, item.data_type, item.dims)
            for item in initializers
        ]
    graph = helper.make_graph(nodes, "net", inputs, tensors[1:], initializers)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save(model, str(path), **save_options)
    return path


def matmul(path: Path, **options: Any) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "fc")]
    return onnx_file(path, nodes, {"w": WEIGHTS}, **options)


def exported(source: Path, out: Path, **options: Any) -> Path:
    """Export to ONNX; the one file that is made, which computes what its source does."""
    (artifact,) = ingot.export(source, "onnx", out, **options).artifacts
    assert not list(out.glob("*.data"))
    return artifact.path


def beside(folder: Path, location: str = "ext.bin", **options: Any) -> Path:
    return matmul(
        folder / "net.onnx",
        save_as_external_data=True,
        location=location,
        size_threshold=0,
        **options,
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weights_beside_a_small_file_go_into_it(tmp_path: Path, precision: str) -> None:
    path = exported(beside(tmp_path / "source"), tmp_path / "out", precision=precision)
    tolerance = 1e-6 if precision == "fp32" else 1e-2
    np.testing.assert_allclose(run_onnx(path, {"x": X})["y"], X @ WEIGHTS, rtol=tolerance)


def test_weights_in_an_attribute_beside_the_file_go_into_it(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHTS)),
        helper.make_node("MatMul", ["x", "w"], ["y"], "fc"),
    ]
    options = {"location": "ext.bin", "size_threshold": 0, "convert_attribute": True}
    source = onnx_file(
        tmp_path / "source" / "net.onnx", nodes, {}, save_as_external_data=True, **options
    )
    assert (source.parent / "ext.bin").is_file()
    path = exported(source, tmp_path / "out")
    np.testing.assert_allclose(run_onnx(path, {"x": X})["y"], X @ WEIGHTS, rtol=1e-6)


def test_weights_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    source = beside(tmp_path / "source")
    model = load(str(source), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../ext.bin"
    (source.parent / "ext.bin").rename(tmp_path / "ext.bin")
    source.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError):  # of ONNX Runtime, or of the line below
        ingot.export(source, "onnx", tmp_path / "out")
    with pytest.raises(ModelError, match=r"its external data '\.\./ext\.bin' lies outside"):
        read_model(source, source.name)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("opset", [None, 18])
def test_ir_version_3_has_initializers_among_its_inputs(tmp_path: Path, opset: int | None) -> None:
    source = matmul(tmp_path / "net.onnx", opset=8, ir_version=3)
    path = exported(source, tmp_path / "out", opset=opset)
    model = load(str(path))
    assert [value.name for value in model.graph.input] == ["x"]
    assert [tensor.name for tensor in model.graph.initializer] == ["w"]
    assert model.ir_version == (4 if opset is None else 8)
    np.testing.assert_allclose(run_onnx(path, {"x": X})["y"], X @ WEIGHTS, rtol=1e-6)


def test_fp16_keeps_what_only_a_branch_takes(tmp_path: Path) -> None:
    """A scale before a MatMul, and its constant, which the branches of an If capture, too."""
    value = helper.make_tensor_value_info
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(kind, ["scaled", "scale"], [name], name)],
            name,
            [],
            [value(name, TensorProto.FLOAT, ["n", 4])],
        )
        for name, kind in (("then", "Mul"), ("else", "Add"))
    }
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"], "scaling"),
        helper.make_node("MatMul", ["scaled", "w"], ["product"], "fc"),
        helper.make_node("ReduceMax", ["product"], ["top"], "top", keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["is_positive"], "greater"),
        helper.make_node("If", ["is_positive"], ["chosen"], "if", **branches),
        helper.make_node("Add", ["product", "chosen"], ["y"], "sum"),
    ]
    weights = {"w": WEIGHTS, "scale": np.float32(0.5), "zero": np.float32(0)}
    source = onnx_file(tmp_path / "net.onnx", nodes, weights)
    path = exported(source, tmp_path / "out", precision="fp16")
    expected = (X * 0.5) @ WEIGHTS + X * 0.25
    np.testing.assert_allclose(run_onnx(path, {"x": X})["y"], expected, rtol=1e-2)


@pytest.mark.parametrize("opset", [13, 17, 19])
def test_fp16_of_a_quantized_file(tmp_path: Path, opset: int) -> None:
    """Their scales stay fp32, also where another operator takes one."""
    scales = {"scale": np.float32(0.01), "zero": np.uint8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "d"),
        helper.make_node("MatMul", ["d", "w"], ["product"], "fc"),
        helper.make_node("Add", ["product", "scale"], ["y"], "sum"),
    ]
    source = onnx_file(
        tmp_path / "net.onnx", nodes, {"w": WEIGHTS, **scales}, opset=opset, ir_version=9
    )
    path = exported(source, tmp_path / "out", precision="fp16")
    graph = load(str(path)).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert types["w"] == TensorProto.FLOAT16
    kind = TensorProto.FLOAT if opset < 19 else TensorProto.FLOAT16
    scaled = [types[node.input[1]] for node in graph.node if "quantize" in node.op_type.lower()]
    assert scaled == [kind, kind]
    np.testing.assert_allclose(run_onnx(path, {"x": X})["y"], X @ WEIGHTS + 0.01, rtol=3e-2)


def test_a_constant_too_large_for_fp16_stays_as_it_is(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], "fc"),
        helper.make_node("Div", ["product", "large"], ["lowered"], "lower"),
        helper.make_node("Add", ["lowered", "product"], ["y"], "sum"),
    ]
    large = np.float32([1e5, 2e5, 3e5, 4e5])
    source = onnx_file(tmp_path / "net.onnx", nodes, {"w": WEIGHTS, "large": large})
    path = ingot.export(source, "onnx", tmp_path / "out", precision="fp16").artifacts[0].path
    kept = [
        numpy_helper.to_array(tensor)
        for tensor in load(str(path)).graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    ]
    assert len(kept) == 1
    np.testing.assert_array_equal(kept[0], large)


def test_constants_that_a_keras_layer_captures_are_no_inputs(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras runs with another backend")
    model = keras.Sequential(
        [
            keras.Input((4,), name="x"),
            keras.layers.Normalization(mean=[1.0, 2, 3, 4], variance=[1.0, 4, 9, 16]),
            keras.layers.Dense(2, name="y"),
        ]
    )
    model.save(tmp_path / "net.keras")
    spec = write(
        tmp_path / "net.yaml",
        """
        name: net
        model: {framework: keras, file: net.keras}
        inputs: [{name: x, dtype: float32, shape: [n, 4]}]
        outputs: [{name: y, dtype: float32, shape: [n, 2]}]
        """,
    )
    path = exported(spec, tmp_path / "out")
    expected = np.asarray(model(X))
    np.testing.assert_allclose(run_onnx(path, {"x": X})["y"], expected, rtol=1e-4, atol=1e-5)


def test_more_inputs_than_named_are_not_without_effect(tmp_path: Path) -> None:
    model = deserialize(load(str(matmul(tmp_path / "net.onnx", ir_version=3))))
    specs = tuple(TensorSpec(name, "float32", ("n", 4)) for name in "xy")
    variant = Variant(None, specs[:1], specs[1:], {"x": X})
    with pytest.raises(ModelError, match=r"made 2 inputs of 1 \(x, w\); expected x$") as raised:
        _name_tensors(model, Converted(model, ["x"], ["y"]), variant, "net")
    assert raised.value.hint is None


def test_a_message_of_the_checker_goes_on_after_a_colon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise checker.ValidationError("Inference error(s):\n  (op_type:Add): no shapes\nand more")

    monkeypatch.setattr(checker, "check_model", refuse)
    with pytest.raises(CheckError, match=r"Inference error\(s\): \(op_type:Add\): no shapes$"):
        _check_file(tmp_path / "net.onnx")


def test_openvino_takes_a_scalar(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    from openvino import opset13

    scalar = opset13.parameter([], np.float32, "x")
    scalar.output(0).get_tensor().set_names({"x"})
    doubled = opset13.add(scalar, scalar)
    doubled.output(0).get_tensor().set_names({"y"})
    openvino.save_model(openvino.Model([doubled], [scalar]), str(tmp_path / "net.xml"))
    with ingot.load(tmp_path / "net.xml") as model:
        (result,) = model.infer({"x": np.float32(1.5).reshape(())}).values()
    assert result.shape == ()
    assert float(result) == 3
