"""``ingot diff``: two models on the same inputs, and the first layer at which they part."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
from conftest import IngotCli
from models import onnx_add, python_add, write

import ingot
from ingot.errors import InputError, ModelError, UsageError
from ingot.frameworks.base import LayerOutput
from ingot.runtime.layers import compare_arrays, compare_layers, first_divergence, match_layers

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Digits:
    """A PyTorch spec, and ONNX files of it."""

    spec: Path
    onnx: Path
    folder: Path

    def changed(self, initializer: str, value: float) -> Path:
        """Write the ONNX file with one weight changed."""
        import onnx

        model = onnx.load(str(self.onnx))
        tensor = next(it for it in model.graph.initializer if it.name == initializer)
        array = onnx.numpy_helper.to_array(tensor).copy()
        array.flat[0] = value
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, initializer))
        path = self.folder / f"{initializer}_{value:g}.onnx"
        onnx.save(model, str(path))
        return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """The convolutional network of the tests; its golden inputs are a batch of 4."""
    import torch

    from ingot.frameworks import open_model
    from ingot.runtime.sources import source_from_spec

    folder = tmp_path_factory.mktemp("digits")
    spec = networks.digits_cnn(folder)
    module = open_model(source_from_spec(ingot.load_spec(spec))).native
    program = torch.onnx.export(
        module,
        (torch.zeros(2, 1, 8, 8),),
        dynamo=True,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    program.save(str(folder / "digits.onnx"))
    return Digits(spec, folder / "digits.onnx", folder)


def onnx_graph(path: Path, nodes: list[Any], **outputs: Any) -> Path:
    """Write an ONNX file that takes ``x`` [n, 4]; ``outputs`` are shapes, of float32."""
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    save(model, str(path))
    return path


def node(kind: str, takes: str, returns: str, **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, takes.split(), [returns], name=f"{returns}_node", **attributes)


# --- real models -------------------------------------------------------------------------------


def test_a_spec_and_its_onnx_file_agree_layer_by_layer(digits: Digits) -> None:
    result = ingot.diff(digits.spec, digits.onnx)
    assert result.exit_code == 0
    assert result.inputs == "golden"
    assert [(entry.name, entry.shape) for entry in result.outputs] == [("logits", (4, 10))]
    assert [layer.name for layer in result.layers] == ["bn1", "bn2", "pool", "fc"]
    assert all(layer.relative < 1e-5 for layer in result.layers)
    assert all(layer.snr_db is None or layer.snr_db > 100 for layer in result.layers)
    assert result.divergence is None
    assert (result.first.framework, result.second.framework) == ("torch", "onnx")
    assert result.first.size_bytes == (digits.folder / "net.safetensors").stat().st_size
    assert result.first.latency_ms > 0
    assert result.second.latency_ms > 0


@pytest.mark.parametrize(
    ("initializer", "layer", "before"),
    # The exporter has folded the BatchNorm into the convolution: both are one layer.
    [("conv2.weight", "bn2", ["bn1"]), ("fc.weight", "fc", ["bn1", "bn2", "pool"])],
)
def test_the_first_layer_that_parts_is_the_one_with_another_weight(
    digits: Digits, initializer: str, layer: str, before: list[str]
) -> None:
    result = ingot.diff(digits.spec, digits.changed(initializer, 3))
    assert result.exit_code == 4
    assert result.divergence is not None
    assert result.divergence.name == layer
    agreeing = [entry.name for entry in result.layers if entry.relative <= result.tolerance]
    assert agreeing == before


def test_the_other_way_round_the_same_layer_is_named(digits: Digits) -> None:
    result = ingot.diff(digits.changed("conv2.weight", 3), digits.spec)
    assert result.inputs == "golden"  # those of the second model
    assert result.divergence is not None
    assert result.divergence.other == "bn2"
    assert result.layers[0].relative < 1e-5


def test_the_tolerance_decides(digits: Digits) -> None:
    changed = digits.changed("fc.weight", 3)
    assert ingot.diff(digits.onnx, changed, tolerance=1e-6, layers=False).exit_code == 4
    assert ingot.diff(digits.onnx, changed, tolerance=100, layers=False).exit_code == 0


def test_a_weight_that_is_no_number_is_found(digits: Digits, ingot_cli: IngotCli) -> None:
    done = ingot_cli("diff", digits.onnx, digits.changed("fc.weight", np.nan), "--json")
    assert done.returncode == 4, done.stderr

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found = json.loads(done.stdout, parse_constant=refuse)
    assert found["schema_version"] == 1
    assert found["divergence"]["name"] == "fc"
    assert found["outputs"][0]["relative"] == "Infinity"
    assert found["outputs"][0]["snr_db"] == "-Infinity"


@pytest.mark.slow
def test_keras_and_its_onnx_file_agree_in_either_order(tmp_path: Path) -> None:
    spec = networks.keras_cnn(tmp_path)
    exported = ingot.export(spec, "onnx", tmp_path, mode="dynamic").artifacts[0].path
    for first, second in ((spec, exported), (exported, spec)):
        result = ingot.diff(first, second)
        assert result.exit_code == 0
        # Of NHWC images the ONNX file makes NCHW; its names are those of Keras with a suffix.
        assert len(result.layers) >= 8
        assert max(layer.relative for layer in result.layers) < 1e-4


def test_a_file_of_a_fixed_batch_gets_that_many_golden_rows(
    digits: Digits, caplog: pytest.LogCaptureFixture
) -> None:
    import onnx

    model = onnx.load(str(digits.onnx))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    fixed = digits.folder / "fixed.onnx"
    onnx.save(model, str(fixed))
    for first, second in ((digits.spec, fixed), (fixed, digits.spec)):
        result = ingot.diff(first, second, layers=False)
        assert result.outputs[0].shape == (1, 10)
        assert result.exit_code == 0
    assert "only 1 of 4 rows are used" in caplog.text


def test_weights_beside_an_onnx_file_count_and_load(digits: Digits) -> None:
    import onnx

    path = digits.folder / "beside.onnx"
    settings = {"save_as_external_data": True, "location": "beside.data", "size_threshold": 256}
    onnx.save(onnx.load(str(digits.onnx)), str(path), **settings)
    result = ingot.diff(digits.onnx, path)
    assert result.exit_code == 0
    assert len(result.layers) > 4
    beside = (digits.folder / "beside.data").stat().st_size
    assert beside > 1000
    assert result.second.size_bytes == path.stat().st_size + beside


def test_models_that_tell_no_layers_are_compared_by_their_outputs(tmp_path: Path) -> None:
    lines: list[str] = []
    result = ingot.diff(python_add(tmp_path), onnx_add(tmp_path / "a.onnx"), progress=lines.append)
    assert result.exit_code == 0
    assert result.inputs == "random"
    assert result.layers == ()
    assert result.first.size_bytes is None
    assert any("(python) does not tell them" in line for line in lines)


# --- inputs and outputs ------------------------------------------------------------------------


def test_given_inputs_are_used(digits: Digits, tmp_path: Path) -> None:
    np.savez(tmp_path / "ones.npz", image=np.ones((3, 1, 8, 8), np.float32))
    result = ingot.diff(digits.onnx, digits.onnx, inputs=tmp_path / "ones.npz", layers=False)
    assert result.inputs == "given"
    assert result.outputs[0].shape == (3, 10)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"img": np.zeros((2, 1, 8, 8), np.float32)}, "unknown input 'img'; expected 'image'"),
        ({"image": np.zeros((2, 3, 8, 8), np.float32)}, "dimension 1 is 3; expected 1"),
        ({"image": np.zeros((2, 1, 8, 8))}, "found dtype float64; expected float32"),
        ({}, "image"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    digits: Digits, tmp_path: Path, arrays: dict[str, Array], message: str
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=message):
        ingot.diff(digits.spec, digits.onnx, inputs=tmp_path / "bad.npz")


@pytest.mark.parametrize("name", ["missing.npz", "digits.onnx"])
def test_inputs_that_cannot_be_read_are_refused(digits: Digits, name: str) -> None:
    with pytest.raises(InputError, match=name):
        ingot.diff(digits.spec, digits.onnx, inputs=digits.folder / name)


def test_a_seed_and_a_batch_make_random_inputs(tmp_path: Path) -> None:
    add = onnx_graph(tmp_path / "a.onnx", [node("Relu", "x", "y")], y=["n", 4])
    result = ingot.diff(add, add, batch=5, seed=3)
    assert result.inputs == "random"
    assert result.outputs[0].shape == (5, 4)
    assert result.outputs[0].snr_db is None


def test_inputs_of_half_precision_are_cast(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import onnx

    path = onnx_graph(tmp_path / "full.onnx", [node("Relu", "x", "y")], y=["n", 4])
    model = onnx.load(str(path))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, str(tmp_path / "half.onnx"))
    result = ingot.diff(path, tmp_path / "half.onnx")
    assert result.exit_code == 0
    assert 0 < result.outputs[0].relative < 1e-3
    assert "cast from float32 to float16" in caplog.text


def test_outputs_of_other_names_are_compared_by_position(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = onnx_graph(tmp_path / "a.onnx", [node("Relu", "x", "y")], y=["n", 4])
    two = onnx_graph(tmp_path / "b.onnx", [node("Relu", "x", "z")], z=["n", 4])
    result = ingot.diff(one, two)
    assert [(entry.name, entry.other) for entry in result.outputs] == [("y", "z")]
    assert "outputs by position: y with z" in caplog.text


def test_an_output_that_the_second_lacks_is_a_difference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [node("Relu", "x", "y"), node("Neg", "x", "z")]
    both = onnx_graph(tmp_path / "both.onnx", nodes, y=["n", 4], z=["n", 4])
    one = onnx_graph(tmp_path / "one.onnx", nodes[:1], y=["n", 4])
    assert ingot.diff(both, one).exit_code == 4
    assert "output 'z': it does not return it" in caplog.text
    assert ingot.diff(one, both).exit_code == 0
    assert "output 'z' is not compared" in caplog.text


def test_an_output_of_another_shape_is_a_difference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = onnx_graph(tmp_path / "a.onnx", [node("Relu", "x", "y")], y=["n", 4])
    turned = onnx_graph(tmp_path / "b.onnx", [node("Transpose", "x", "y")], y=[4, "n"])
    assert ingot.diff(one, turned).exit_code == 4
    assert "found the shape (4, 2); expected (2, 4)" in caplog.text


def test_strings_are_compared(tmp_path: Path) -> None:
    spec = networks.strings(tmp_path / "a")
    other = networks.strings(tmp_path / "b")
    assert ingot.diff(spec, other).exit_code == 0
    write(tmp_path / "b" / "net.py", networks.STRINGS.replace("upper", "lower"))
    result = ingot.diff(spec, other)
    shares = {entry.name: entry.relative for entry in result.outputs}
    assert shares == {"joined": pytest.approx(2 / 3), "length": 0}  # one of them is empty


def test_of_integers_the_share_that_differs_counts_not_by_how_much(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def tokens(path: Path, last: int) -> Path:
        ids = numpy_helper.from_array(np.array([30000, 5, 7, last]), "ids")
        takes = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        returns = helper.make_tensor_value_info("token", TensorProto.INT64, [4])
        graph = helper.make_graph(
            [node("Identity", "ids", "token")], "g", [takes], [returns], [ids]
        )
        opsets = [helper.make_opsetid("", 18)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))
        return path

    result = ingot.diff(tokens(tmp_path / "a.onnx", 8), tokens(tmp_path / "b.onnx", 9))
    assert result.exit_code == 4
    assert (result.outputs[0].relative, result.outputs[0].max_absolute) == (0.25, 1)


def test_models_of_other_inputs_are_refused(digits: Digits, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected the same inputs"):
        ingot.diff(digits.spec, onnx_add(tmp_path / "add.onnx"))


def test_a_file_that_is_no_model_is_refused(
    digits: Digits, tmp_path: Path, ingot_cli: IngotCli
) -> None:
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"junk" * 100)
    for first, second in ((digits.onnx, junk), (junk, digits.onnx)):
        with pytest.raises(ModelError, match=r"junk\.onnx"):
            ingot.diff(first, second)
    done = ingot_cli("diff", digits.onnx, tmp_path / "missing.onnx")
    assert done.returncode == 5
    assert "no such file or folder" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("tolerance", [-1.0, float("nan")])
def test_an_impossible_tolerance_is_refused(digits: Digits, tolerance: float) -> None:
    with pytest.raises(UsageError, match="--tolerance"):
        ingot.diff(digits.spec, digits.onnx, tolerance=tolerance)


# --- the table ---------------------------------------------------------------------------------


def test_the_table_fits_80_columns_and_names_the_layer(digits: Digits, ingot_cli: IngotCli) -> None:
    changed = digits.changed("conv2.weight", 3)
    names = (digits.onnx.name, changed.name)
    done = ingot_cli("diff", *names, cwd=digits.folder, env={"COLUMNS": "80"})
    assert done.returncode == 4, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "the models part at bn2 (Conv)" in done.stdout
    assert "the outputs DIFFER on random inputs" in done.stdout


def test_the_layer_at_which_models_part_is_shown_however_deep(
    tmp_path: Path, ingot_cli: IngotCli
) -> None:
    def chain(path: Path, broken: int | None) -> Path:
        names = ["x", *(f"h{index}" for index in range(40)), "y"]
        nodes = [
            node("Neg" if index == broken else "Abs", *pair)
            for index, pair in enumerate(pairwise(names))
        ]
        return onnx_graph(path, nodes, y=["n", 4])

    whole, broken = chain(tmp_path / "a.onnx", None), chain(tmp_path / "b.onnx", 40)
    done = ingot_cli("diff", whole, broken)
    assert done.returncode == 4, done.stderr
    assert "the models part at y_node" in done.stdout
    shown = [line.split()[0] for line in done.stdout.splitlines() if "  Abs  " in line]
    assert len(shown) == 20
    assert shown[-1] == "y_node"
    assert "layers 22 to 41 of 41" in done.stdout
    done = ingot_cli("diff", whole, broken, "--all")
    assert sum("  Abs  " in line for line in done.stdout.splitlines()) == 41


# --- matching and comparing --------------------------------------------------------------------


def layer(name: str, array: Any, *scopes: str, kind: str = "Linear") -> LayerOutput:
    return LayerOutput(name, kind, np.asarray(array, np.float32), scopes)


def test_what_is_infinite_in_both_does_not_differ(recwarn: pytest.WarningsRecorder) -> None:
    masked = np.array([1.0, -np.inf, np.nan, 4.0], np.float32)
    found = compare_arrays("a", "a", "Add", masked, masked.copy())
    assert (found.max_absolute, found.relative, found.snr_db) == (0.0, 0.0, None)
    moved = compare_arrays("a", "a", "Add", masked, masked + np.array([0, 0, 0, 1], np.float32))
    assert (moved.max_absolute, moved.relative) == (1.0, 0.25)
    assert not recwarn.list


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_infinite_in_one_differs(value: float) -> None:
    number, other = np.array([1.0, 2.0]), np.array([1.0, value])
    for pair in ((number, other), (other, number)):
        found = compare_arrays("a", "a", "Add", *pair)
        assert found.relative == np.inf
        assert first_divergence([found], 1e9) is found


def test_the_measures_are_those_of_the_formulas() -> None:
    found = compare_arrays("a", "b", "Add", np.array([3.0, -4.0]), np.array([3.0, -3.0]))
    assert found.max_absolute == 1
    assert found.relative == 0.25
    assert found.snr_db == pytest.approx(10 * np.log10(25))
    assert found.cosine == pytest.approx(21 / (5 * np.sqrt(18)))


def test_layers_match_by_scope_in_either_layout_and_order() -> None:
    image = np.random.default_rng(0).random((2, 3, 5, 7), np.float32)
    modules = [layer("conv", image), layer("head", [[1.0, 2.0]])]
    nodes = [
        layer("Conv_0", image.transpose(0, 2, 3, 1), "conv"),
        layer("MatMul_1", [[9.0, 9.0]]),
        layer("Add_2", [[1.0, 2.0]], "head"),
    ]
    for first, second in ((modules, nodes), (nodes, modules)):
        differences = compare_layers(first, second)
        assert [it.relative for it in differences] == [0.0, 0.0]
        names = [{one.name, other.name} for one, other, _ in match_layers(first, second)]
        assert names == [{"conv", "Conv_0"}, {"head", "Add_2"}]


def test_a_folded_batchnorm_is_what_its_convolution_returns_there() -> None:
    modules = [
        layer("conv", [1.0, 2.0], kind="Conv2d"),
        layer("bn", [5.0, 6.0], kind="BatchNorm2d"),
    ]
    nodes = [layer("Conv_0", [5.0, 6.0], "conv")]
    for first, second in ((modules, nodes), (nodes, modules)):
        pairs = match_layers(first, second)
        assert [{one.name, other.name} for one, other, _ in pairs] == [{"bn", "Conv_0"}]
        assert compare_layers(first, second)[0].relative == 0


@pytest.mark.parametrize("between", [[], [layer("conv2", [3.0, 4.0], kind="Conv2d")]])
def test_a_batchnorm_is_not_folded_into_what_it_does_not_follow(between: list[LayerOutput]) -> None:
    before = layer("conv" if between else "relu", [1.0, 2.0], kind="Conv2d" if between else "ReLU")
    modules = [before, *between, layer("bn", [5.0, 6.0], kind="BatchNorm2d")]
    nodes = [layer("Node_0", [1.0, 2.0], before.name)]
    pairs = match_layers(modules, nodes)
    assert [(one.name, other.name) for one, other, _ in pairs] == [(before.name, "Node_0")]


def test_layers_of_another_shape_do_not_match() -> None:
    assert match_layers([layer("a", [1.0])], [layer("a", [1.0, 2.0])]) == []
