"""The formats that Ingot runs but does not package: .pt2, .tflite and OpenVINO."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ingot
from ingot.errors import InputError, ModelError, UsageError
from ingot.frameworks import LoadOptions, ModelSource, open_model
from ingot.specs import TensorSpec

Array = np.ndarray[Any, Any]

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed: pip install 'ingot[openvino]'"
)
FORMATS = ["pt2", "tflite", pytest.param("openvino", marks=needs_openvino)]
WEIGHTS = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)


def feeds(batch: int) -> dict[str, Array]:
    random = np.random.default_rng(batch)
    return {
        "image": random.random((batch, 6, 6, 3), np.float32),
        "scale": random.random((batch,), np.float32),
    }


def expected(arrays: dict[str, Array]) -> dict[str, Array]:
    """A convolution of the image without padding, scaled; and its mean."""
    image, scale = arrays["image"], arrays["scale"]
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(1, 2))
    maps = np.einsum("bijcpq,pqco->bijo", windows, WEIGHTS) * scale[:, None, None, None]
    return {"maps": maps, "mean": maps.mean(axis=(1, 2, 3))}


def write_pt2(path: Path) -> Path:
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.from_numpy(WEIGHTS).permute(3, 2, 0, 1))

        def forward(self, image: Any, scale: Any) -> dict[str, Any]:
            maps = torch.nn.functional.conv2d(image.permute(0, 3, 1, 2), self.weight)
            maps = maps.permute(0, 2, 3, 1) * scale[:, None, None, None]
            return {"maps": maps, "mean": maps.mean((1, 2, 3))}

    batch = torch.export.Dim("batch", min=1)
    args = tuple(torch.from_numpy(array) for array in feeds(2).values())
    program = torch.export.export(Net(), args, dynamic_shapes=({0: batch}, {0: batch}))
    torch.export.save(program, path)
    return path


def concrete_function() -> Any:
    import tensorflow as tf

    def serve(image: Any, scale: Any) -> dict[str, Any]:
        maps = tf.nn.conv2d(image, WEIGHTS, 1, "VALID") * scale[:, None, None, None]
        return {"maps": maps, "mean": tf.reduce_mean(maps, [1, 2, 3])}

    return tf.function(serve).get_concrete_function(
        image=tf.TensorSpec([None, 6, 6, 3], tf.float32, name="image"),
        scale=tf.TensorSpec([None], tf.float32, name="scale"),
    )


def convert_tflite(quantize: bool = False) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete_function()], tf.Module())
    if quantize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            {name: array[index : index + 1] for name, array in feeds(32).items()}
            for index in range(32)
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def write_tflite(path: Path) -> Path:
    path.write_bytes(convert_tflite())
    return path


def write_openvino(path: Path) -> Path:
    from ingot.frameworks.openvino import import_openvino

    openvino = import_openvino()
    openvino.save_model(openvino.convert_model(concrete_function()), str(path))
    return path


WRITERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "pt2": ("net.pt2", write_pt2),
    "tflite": ("net.tflite", write_tflite),
    "openvino": ("net.xml", write_openvino),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the same small model in a format, written when it is first asked for."""
    written: dict[str, Path] = {}

    def file(kind: str) -> Path:
        if kind not in written:
            name, write = WRITERS[kind]
            written[kind] = write(tmp_path_factory.mktemp(kind) / name)
        return written[kind]

    return file


def check(actual: dict[str, Array], wanted: dict[str, Array], kind: str = "") -> None:
    assert list(actual) == list(wanted)
    # OpenVINO stores weights in half precision unless it is told not to.
    tolerance = 5e-3 if kind == "openvino" else 1e-5
    for name, array in wanted.items():
        assert actual[name].dtype == array.dtype
        np.testing.assert_allclose(actual[name], array, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_runs_at_every_batch_with_the_names_that_it_says(
    kind: str, files: Callable[[str], Path]
) -> None:
    with ingot.load(files(kind), threads=1) as model:
        assert model.platform == kind
        assert model.framework_version
        shapes = {spec.name: (spec.dtype, (spec.shape or ())[1:]) for spec in model.inputs}
        assert shapes == {"image": ("float32", (6, 6, 3)), "scale": ("float32", ())}
        assert {spec.name for spec in model.outputs} == {"maps", "mean"}
        assert all(not isinstance((spec.shape or (0,))[0], int) for spec in model.inputs)
        for batch in (1, 3, 3, 1, 7):
            arrays = feeds(batch)
            returned = model.infer(arrays, ["maps", "mean"])
            check(returned, expected(arrays), kind)
        assert list(model.infer(feeds(2), ["mean"])) == ["mean"]
    with pytest.raises(InputError, match="closed"):
        model.infer(feeds(1))


@pytest.mark.parametrize("kind", FORMATS)
def test_results_of_one_run_outlive_the_next(kind: str, files: Callable[[str], Path]) -> None:
    with ingot.load(files(kind), threads=1) as model:
        first, kept = feeds(2), model.infer(feeds(2))
        model.infer({name: array + 1 for name, array in first.items()})
        check({name: kept[name] for name in ("maps", "mean")}, expected(feeds(2)), kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_inputs_that_do_not_fit_are_refused(kind: str, files: Callable[[str], Path]) -> None:
    good = feeds(2)
    with ingot.load(files(kind), threads=1) as model:
        for wrong in (
            {"image": good["image"]},
            {**good, "other": good["scale"]},
            {**good, "image": good["image"].astype(np.float64)},
            {**good, "image": good["image"][:, :5]},
            {**good, "scale": good["scale"][:, None]},
        ):
            with pytest.raises(InputError):
                model.infer(wrong)
        check(model.infer(good, ["maps", "mean"]), expected(good), kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_spec_that_names_other_tensors_is_refused(
    kind: str, files: Callable[[str], Path]
) -> None:
    one = (TensorSpec("image", "float32", ("b", 6, 6, 3)),)
    with pytest.raises(ModelError, match="scale"):
        open_model(ModelSource(kind, "net", inputs=one, path=files(kind)))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_command_line_runs_a_file_and_packages_none(
    kind: str, files: Callable[[str], Path], tmp_path: Path, ingot_cli: Any, empty_home: Path
) -> None:
    arrays = feeds(3)
    np.savez(tmp_path / "in.npz", **arrays)
    done = ingot_cli("infer", files(kind), "--inputs", "in.npz", "-o", "out.npz")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    with np.load(tmp_path / "out.npz") as out:
        check({name: out[name] for name in ("maps", "mean")}, expected(arrays), kind)
    assert list(empty_home.iterdir()) == []
    for command in (["package"], ["init", "-o", "x.yaml"]):
        done = ingot_cli(*command, files(kind))
        assert done.returncode == 2
        assert "does not package" in done.stderr
        assert "ingot infer" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "out.npz"]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_is_refused(
    kind: str, files: Callable[[str], Path], tmp_path: Path, ingot_cli: Any
) -> None:
    whole = files(kind).read_bytes()
    path = tmp_path / files(kind).name
    if kind == "openvino":
        path.with_suffix(".bin").write_bytes(files(kind).with_suffix(".bin").read_bytes())
    random = np.random.default_rng(0)
    for content in (
        whole[: len(whole) // 3],
        whole[:-40],
        whole[:24],
        random.bytes(5000),
        whole[:8] + random.bytes(len(whole) - 8),
        b"",
    ):
        path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            ingot.load(path)
        assert path.name in caught.value.message
        assert "\n" not in caught.value.message
    path.write_bytes(whole[: len(whole) // 2])
    done = ingot_cli("inspect", path)
    assert done.returncode == 5
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", FORMATS)
def test_random_damage_gives_an_error_or_a_result_but_no_crash(
    kind: str, files: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = files(kind).read_bytes()
    path = tmp_path / files(kind).name
    if kind == "openvino":
        path.with_suffix(".bin").write_bytes(files(kind).with_suffix(".bin").read_bytes())
    random = np.random.default_rng(1)
    for count in (1, 1, 4, 4, 16, 64) * 4:
        content = bytearray(whole)
        for index in random.integers(0, len(whole), count):
            content[index] = int(random.integers(0, 256))
        path.write_bytes(content)
        try:
            ingot.load(path).close()
        except ModelError:
            continue


def test_pt2_takes_nested_inputs_and_returns_tuples_by_the_names_of_a_spec(tmp_path: Path) -> None:
    import torch

    class Net(torch.nn.Module):
        def forward(self, pair: dict[str, Any], *, factor: Any) -> tuple[Any, Any]:
            return pair["a"] + pair["b"] * factor, pair["a"] * 2

    a, b, factor = torch.rand(2, 3), torch.rand(2, 3), torch.rand(3)
    args, path = ({"a": a, "b": b},), tmp_path / "net.pt2"
    torch.export.save(torch.export.export(Net(), args, {"factor": factor}), path)
    arrays = {"a": a.numpy(), "b": b.numpy(), "factor": factor.numpy()}
    with ingot.load(path) as model:
        assert [spec.name for spec in model.inputs] == ["a", "b", "factor"]
        assert [spec.name for spec in model.outputs] == ["output_0", "output_1"]
        assert list(model.infer(arrays)) == ["output_0", "output_1"]
    outputs = (TensorSpec("sum", "float32", (2, 3)), TensorSpec("twice", "float32", (2, 3)))
    others = tuple(
        TensorSpec(name, "float32", shape)
        for name, shape in (("x", (2, 3)), ("y", (2, 3)), ("z", (3,)))
    )
    source = ModelSource("pt2", "net", others, outputs, path=path)
    positional = open_model(source).run(dict(zip("xyz", arrays.values(), strict=True)))
    np.testing.assert_allclose(positional["sum"], a + b * factor, rtol=1e-6)
    np.testing.assert_array_equal(positional["twice"], arrays["a"] * 2)


def test_other_zip_archives_called_pt2_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other/archive_format", "pt2")
        archive.writestr("other/data.txt", "")
    with pytest.raises(ModelError, match=r"not a torch\.export archive"):
        ingot.load(path)


def quantized(interpreter: Any, arrays: dict[str, Array]) -> dict[str, Array]:
    """Return arrays as the integers that stand for them in a quantized file."""
    made = {}
    for name, array in arrays.items():
        detail = next(item for item in interpreter.get_input_details() if name in item["name"])
        scale, zero = detail["quantization"]
        made[name] = np.clip(np.round(array / scale + zero), -128, 127).astype(np.int8)
    return made


def test_quantized_tflite_takes_and_returns_integers(tmp_path: Path) -> None:
    path = tmp_path / "int8.tflite"
    path.write_bytes(convert_tflite(quantize=True))
    with ingot.load(path, threads=1) as model:
        assert {spec.dtype for spec in (*model.inputs, *model.outputs)} == {"int8"}
        arrays = feeds(3)
        returned = model.infer(quantized(model.native, arrays), ["maps", "mean"])
        wanted = expected(arrays)["maps"]
        (detail,) = (item for item in model.native.get_output_details() if len(item["shape"]) == 4)
        scale, zero = detail["quantization"]
        actual = (returned["maps"].astype(np.float32) - zero) * scale
        assert np.abs(actual - wanted).max() < 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("quantize", [False, True], ids=["float", "int8"])
def test_the_layers_of_a_tflite_can_be_looked_at(quantize: bool, tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(convert_tflite(quantize))
    model = open_model(ModelSource("tflite", "net", path=path))
    arrays = feeds(2)
    given = quantized(model.native, arrays) if quantize else arrays
    layers = model.layers(given)
    kinds = [layer.kind for layer in layers]
    assert "CONV_2D" in kinds
    assert "MUL" in kinds
    product = layers[kinds.index("MUL")].array
    maps = expected(arrays)["maps"]
    assert product.dtype == np.float32
    assert np.abs(product - maps).max() < (0.1 if quantize else 1e-5) * np.abs(maps).max()
    check(model.run(given, ["maps", "mean"]), model.run(given, ["maps", "mean"]))


def test_tflite_without_a_signature_goes_by_the_names_of_tensors(
    files: Callable[[str], Path], tmp_path: Path
) -> None:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    content = schema.ModelT.InitFromPackedBuf(files("tflite").read_bytes())
    content.signatureDefs = []
    builder = flatbuffers.Builder(1024)
    builder.Finish(content.Pack(builder), file_identifier=b"TFL3")
    path = tmp_path / "bare.tflite"
    path.write_bytes(builder.Output())
    with ingot.load(path) as model:
        names = feeds(2)
        given = {
            spec.name: next(array for name, array in names.items() if name in spec.name)
            for spec in model.inputs
        }
        assert {array.shape for array in model.infer(given).values()} == {(2, 4, 4, 4), (2,)}


def test_tflite_with_operators_of_tensorflow_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    function = tf.function(tf.math.sinh).get_concrete_function(tf.TensorSpec([2], tf.float32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
    converter.target_spec.supported_ops = [tf.lite.OpsSet.SELECT_TF_OPS]
    path = tmp_path / "flex.tflite"
    path.write_bytes(converter.convert())
    with pytest.raises(ModelError) as caught:
        ingot.load(path)
    assert "Select TF ops" in (caught.value.hint or "")


def test_tflite_is_recognised_under_any_name(files: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "model.lite"
    path.write_bytes(files("tflite").read_bytes())
    assert ingot.load(path).platform == "tflite"


@needs_openvino
def test_openvino_without_its_weights_is_refused(
    files: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "net.xml"
    path.write_bytes(files("openvino").read_bytes())
    with pytest.raises(ModelError, match=r"net\.bin"):
        ingot.load(path)
    weights = files("openvino").with_suffix(".bin").read_bytes()
    path.with_suffix(".bin").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match=r"net\.xml"):
        ingot.load(path)


def test_an_xml_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.xml"
    path.write_text("<?xml version='1.0'?><html/>", encoding="utf-8")
    with pytest.raises(ModelError, match="not a package, nor a model file"):
        ingot.load(path)


def test_a_gpu_that_is_not_there_gives_a_warning(
    files: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    model = open_model(
        ModelSource("tflite", "net", path=files("tflite")), LoadOptions("gpu", threads=1)
    )
    assert "running on the CPU" in caplog.text
    check(model.run(feeds(2), ["maps", "mean"]), expected(feeds(2)))


def test_no_spec_names_a_format_that_is_run_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="framework"):
        ingot.specs.ModelSpec.from_dict(
            {"name": "x", "model": {"framework": "tflite", "file": "net.tflite"}}, root=tmp_path
        )
