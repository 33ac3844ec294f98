"""``ingot profile``: the published figures, one rule for every format, and what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import training_specs
from conftest import IngotCli
from models import onnx_add, python_add, torchscript_add, write

import ingot
from ingot.errors import ModelError, SpecError, UntrustedCodeError, UsageError
from ingot.training.profile import Complexity

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from ingot.training.torch_profile import profile_torch  # noqa: E402
from ingot.zoo import get_model_by_name  # noqa: E402

DIGITS_MACS = 26_506
"""Of ``networks.digits_cnn``."""


def zoo_spec(folder: Path, name: str, dataset: str, channels: int, size: int, classes: int) -> Path:
    """Write a spec of a network of the zoo."""
    code = f"""
        from ingot.zoo import get_model_by_name


        def build():
            return get_model_by_name({name!r}, {dataset!r})
    """
    write(folder / f"{name}_net.py", code)
    return write(
        folder / f"{name}.yaml",
        f"""
        name: {name}
        model: {{framework: torch, entrypoint: "{name}_net:build"}}
        inputs: [{{name: images, dtype: float32, shape: [batch, {channels}, {size}, {size}]}}]
        outputs: [{{name: logits, dtype: float32, shape: [batch, {classes}]}}]
        """,
    )


def counted(module: nn.Module, *shape: int) -> Complexity:
    x = torch.rand(1, *shape)

    def call() -> None:
        with torch.inference_mode():
            module.eval()(x)

    return profile_torch(module, call, x.numel() * 4)


# --- published figures -------------------------------------------------------------------------


# MB, GMACs, millions of parameters, and MB of memory, as Deeplite's profiler prints them. It
# publishes no complexity of LeNet-5, and no footprint but that of ResNet-18.
@pytest.mark.parametrize(
    ("name", "dataset", "shape", "size", "giga", "millions", "memory"),
    [
        ("resnet18", "cifar100", (3, 32, 100), 42.8014, 0.5567, 11.2201, 48.4389),
        ("vgg19", "cifar100", (3, 32, 100), 76.6246, 0.3995, 20.0867, None),
        ("mobilenet_v1", "cifar100", (3, 32, 100), 12.6246, 0.0473, 3.3095, None),
        ("lenet5", "mnist", (1, 28, 10), 0.1695, None, 0.0444, None),
    ],
)
def test_published_figures_are_reproduced(
    name: str,
    dataset: str,
    shape: tuple[int, int, int],
    size: float,
    giga: float | None,
    millions: float,
    memory: float | None,
    tmp_path: Path,
) -> None:
    channels, pixels, _ = shape
    module = get_model_by_name(name, dataset)
    found = asdict(counted(module, channels, pixels, pixels))
    if name == "resnet18":  # as the command does it, too
        whole = ingot.profile(zoo_spec(tmp_path, name, dataset, *shape), runs=1).to_dict()
        assert {key: whole[key] for key in ("macs", "memory_bytes", "size_bytes")}.items() <= (
            found.items()
        )
        assert sum(layer["share"] for layer in whole["layers"]) == pytest.approx(1)
    assert round(found["size_bytes"] / 2**20, 4) == size
    assert round(found["parameters"] / 1e6, 4) == millions
    if giga is not None:
        assert round(found["macs"] / 1e9, 4) == giga
    if memory is not None:
        assert round(found["memory_bytes"] / 2**20, 4) == memory
    assert sum(layer["parameters"] for layer in found["layers"]) == found["parameters"]
    assert sum(layer["macs"] for layer in found["layers"]) == found["macs"]


def test_matrix_products_are_those_of_pytorchs_own_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for name in ("resnet18", "vgg19", "mobilenet_v1", "mobilenet_v2", "unet", "ssdlite"):
        module = get_model_by_name(name, "cifar10").eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(torch.rand(1, 3, 32, 32))
        assert counted(module, 3, 32, 32).matrix_macs == counter.get_total_flops() // 2


# --- the rule ----------------------------------------------------------------------------------


def test_the_operations_of_each_kind_of_layer() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),  # 4x8x8 outputs of 27 products, and a bias
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(4, 2, 2, stride=2, bias=False),
        nn.Conv2d(2, 2, 3, groups=2, bias=False),
        nn.Upsample(scale_factor=2),
        nn.Flatten(),
        nn.Linear(2 * 12 * 12, 5),
        nn.LayerNorm(5, elementwise_affine=False),
        nn.Identity(),
    )
    found = counted(module, 3, 8, 8)
    assert [(layer.name, layer.kind, layer.macs) for layer in found.layers] == [
        ("0", "Conv2d", 256 * 27 + 256),
        ("1", "BatchNorm2d", 512),
        ("2", "ReLU", 256),
        ("3", "MaxPool2d", 256),
        ("4", "ConvTranspose2d", 64 * 2 * 4),
        ("5", "Conv2d", 72 * 9),
        ("6", "Upsample", 288),
        ("8", "Linear", 288 * 5 + 5),
        ("9", "LayerNorm", 5),
    ]
    assert found.matrix_macs == 256 * 27 + 64 * 8 + 72 * 9 + 288 * 5
    # Outputs of all layers, but of Flatten and Identity, which return what they are given.
    held = 256 + 256 + 256 + 64 + 128 + 72 + 288 + 5 + 5
    assert found.memory_bytes == found.size_bytes + 4 * (held + 192)


def test_functions_count_for_the_module_that_calls_them() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.zeros(6, 8))
            self.project = nn.Linear(8, 8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = (x + self.position).unflatten(-1, (2, 4)).transpose(1, 2)
            x = nn.functional.scaled_dot_product_attention(x, x, x)
            x = x @ x.transpose(-1, -2)
            return self.project(x.new_ones(6, 8))

    found = counted(Attention(), 6, 8)
    attention = 2 * 6 * 6 * (4 + 4)
    assert [(layer.name, layer.parameters, layer.macs) for layer in found.layers] == [
        ("Attention", 48, attention + 2 * 6 * 6 * 4),
        ("project", 64, 6 * 64),
    ]


def test_layers_called_twice_and_tied_weights() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.tied = nn.Linear(4, 4)
            self.tied.weight = self.one.weight
            self.unused = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tied(self.one(self.one(x)))

    found = counted(Twice(), 4)
    assert [(layer.name, layer.parameters, layer.macs) for layer in found.layers] == [
        ("one", 20, 40),
        ("tied", 4, 20),
        ("unused", 10, 0),
    ]
    assert found.layers[2].output_shape is None


def test_half_precision_takes_half_the_bytes() -> None:
    module = nn.Linear(4, 4).to(torch.bfloat16)
    x = torch.rand(1, 4, dtype=torch.bfloat16)
    found = profile_torch(module, lambda: module(x), 8)
    assert (found.parameters, found.size_bytes, found.memory_bytes) == (20, 40, 40 + 8 + 8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_graphs_without_modules_name_layers_by_their_parameters() -> None:
    module = get_model_by_name("lenet5", "mnist").eval()
    x = torch.rand(1, 1, 28, 28)
    graphs = (torch.jit.trace(module, x), torch.export.export(module, (x,)).module())
    for graph in graphs:
        found = profile_torch(graph, lambda graph=graph: graph(x), x.numel() * 4)
        assert found.matrix_macs == 281_640
        assert found.parameters == 44_426
        names = [layer.name for layer in found.layers if layer.matrix_macs]
        assert names == ["conv1", "conv2", "fc1", "fc2", "fc3"]
        assert found.memory_bytes is None
        assert "memory footprint cannot be told" in found.notes[0]


# --- other formats -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "digits_cnn",
        "lstm",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("transformer_encoder", "unet")),
    ],
)
def test_an_exported_onnx_file_computes_as_much(name: str, tmp_path: Path) -> None:
    spec = getattr(networks, name)(tmp_path)
    exported = ingot.export(spec, ["onnx"], tmp_path, mode="dynamic").artifacts[0].path
    result = ingot.profile(spec, compare=exported, runs=1)
    assert result.other is not None
    one, two = (side.profile.complexity for side in (result.model, result.other))
    assert one.matrix_macs == two.matrix_macs
    # A BatchNorm that was folded leaves a bias; tensors that are equal are stored once.
    assert two.macs == pytest.approx(one.macs, rel=0.03)
    assert two.parameters is not None
    assert 0.9 * (one.parameters or 0) <= two.parameters <= (one.parameters or 0)
    assert two.size_bytes == 4 * two.parameters
    assert two.memory_bytes is not None
    assert two.notes == ()
    shapes = {layer.output_shape for layer in one.layers if layer.matrix_macs}
    assert shapes & {layer.output_shape for layer in two.layers}


def quantized(path: Path) -> Path:
    """Write ``x`` [n, 8] times int4 weights [8, 4], through a dequantizer; and a bias."""
    from onnx import TensorProto, helper, numpy_helper, save

    weights = helper.make_tensor("w", TensorProto.INT4, [8, 4], list(range(-8, 8)) * 2)
    arrays = {"scale": np.float32(0.1), "b": np.ones(4, np.float32)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wide"]),
        helper.make_node("Gemm", ["x", "wide", "b"], ["y"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weights, *(numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    save(model, str(path))
    return path


def test_weights_of_four_bits_are_counted_by_their_width(tmp_path: Path) -> None:
    found = ingot.profile(quantized(tmp_path / "int4.onnx"), runs=1).model.profile.complexity
    assert (found.parameters, found.size_bytes) == (36, 16 + 16)
    assert [(it.name, it.parameters, it.macs) for it in found.layers] == [("head", 36, 32 + 4)]


@pytest.mark.slow
def test_keras_and_what_is_exported_from_it_agree(tmp_path: Path) -> None:
    spec = networks.keras_cnn(tmp_path)
    artifacts = ingot.export(spec, ["onnx", "tflite"], tmp_path, mode="fixed").artifacts
    found = [ingot.profile(it, runs=1).to_dict() for it in (spec, *(a.path for a in artifacts))]
    assert len({entry["matrix_macs"] for entry in found}) == 1
    assert all(entry["memory_bytes"] > entry["size_bytes"] for entry in found)
    assert all(abs(entry["parameters"] / found[0]["parameters"] - 1) < 0.02 for entry in found)


def test_a_package_is_profiled_and_its_code_needs_trust(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    spec = networks.digits_cnn(folder)
    package = ingot.package(spec, tmp_path / "digits.ingot").path
    with pytest.raises(UntrustedCodeError, match="runs its author's code"):
        ingot.profile(package)
    result = ingot.profile(package, trust_code=True, runs=1)
    assert result.to_dict()["macs"] == DIGITS_MACS


def test_what_cannot_be_told_is_null_and_said(tmp_path: Path, ingot_cli: IngotCli) -> None:
    spec = python_add(tmp_path)
    found = ingot.profile(spec, runs=3).to_dict()
    assert found["macs"] is found["parameters"] is found["size_bytes"] is None
    assert found["latency_ms"] > 0
    assert "does not tell" in found["notes"][0]
    done = ingot_cli("profile", spec, "--csv", tmp_path / "layers.csv")
    assert done.returncode == 2
    assert "its layers cannot be told" in done.stderr
    assert not (tmp_path / "layers.csv").exists()


# --- metrics, the command ----------------------------------------------------------------------


def test_the_metric_of_a_spec_and_its_change(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    (tmp_path / "wide").mkdir()
    spec = training_specs.write_spec(tmp_path)
    wide = {"framework": "torch", "entrypoint": "net:build", "kwargs": {"width": 8}}
    other = training_specs.write_spec(tmp_path / "wide", model=wide)
    result = ingot.profile(spec, compare=other, runs=1)
    assert "accuracy" in result.model.metrics
    assert result.other is not None
    difference = result.other.metrics["accuracy"] - result.model.metrics["accuracy"]
    assert result.to_dict()["compare"]["enhancements"]["metrics"]["accuracy"] == difference
    assert (result.enhancements["macs"] or 2) < 1


def test_the_network_of_the_training_section_is_profiled(tmp_path: Path) -> None:
    network = {"name": "lenet5", "dataset": "mnist"}
    takes = [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 28, 28]}]
    spec = training_specs.write_spec(
        tmp_path, training={"network": network}, inputs=takes, data=None
    )
    assert ingot.profile(spec, runs=1).to_dict()["parameters"] == 44_426


def test_json_has_the_keys_of_a_verdict(tmp_path: Path, ingot_cli: IngotCli) -> None:
    model = quantized(tmp_path / "int4.onnx")
    arguments = ("--batch-size", 3, "--threads", 2, "--runs", 4, "--json")
    done = ingot_cli("profile", model, "--compare", model, *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema_version"] == 1
    keys = {"metrics", "size_bytes", "parameters", "macs", "latency_ms"}
    assert keys <= set(found)
    assert keys <= set(found["compare"])
    assert (found["macs"], found["matrix_macs"]) == (36, 32)  # of one sample
    assert (found["batch_size"], found["threads"], found["device"]) == (3, 2, "CPU")
    latency = found["latency"]
    assert latency["median_ms"] == found["latency_ms"]
    assert latency["min_ms"] <= latency["p25_ms"] <= latency["p75_ms"] <= latency["max_ms"]
    assert (latency["runs"], latency["warm_up"]) == (4, 5)
    assert found["path"] == str(model)
    assert found["layers"][0]["output_shape"] == [1, 4]
    assert found["compare"]["enhancements"]["macs"] == 1


def test_the_tables_fit_80_columns_and_the_csv_has_every_layer(
    tmp_path: Path, ingot_cli: IngotCli
) -> None:
    spec = networks.digits_cnn(tmp_path)
    arguments = (spec.name, "--compare", spec.name, "--layers", "--csv", "layers.csv")
    done = ingot_cli("profile", *arguments, cwd=tmp_path, env={"COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    lines = {" ".join(line.split()) for line in done.stdout.splitlines()}
    assert "complexity 0.0265 MMACs 0.0265 MMACs 1.00x" in lines
    assert "conv1 Conv2d 1x8x8x8 80 5,120 19.3 %" in lines
    assert any("median of 10 calls, 5 to warm up, batch 1, 1 thread, CPU" in it for it in lines)
    with (tmp_path / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert rows[0]["model"] == spec.name
    assert (rows[0]["name"], rows[0]["type"], rows[0]["output_shape"]) == (
        "conv1",
        "Conv2d",
        "1x8x8x8",
    )
    assert sum(int(row["macs"]) for row in rows) == 2 * DIGITS_MACS
    model, file = quantized(tmp_path / "int4.onnx"), tmp_path / "layers.csv"
    with pytest.raises(UsageError, match="exists already"):
        ingot.profile(model, csv=file)
    assert ingot.profile(model, csv=file, force=True, runs=1).csv == file
    assert len(file.read_text().splitlines()) == 2


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), [("missing.onnx", 5), ("missing.yaml", 2)])
def test_a_missing_file_is_refused(
    name: str, code: int, tmp_path: Path, ingot_cli: IngotCli
) -> None:
    spec = onnx_add(tmp_path / "add.onnx")
    for arguments in ((name,), (spec, "--compare", name)):
        done = ingot_cli("profile", *arguments)
        assert done.returncode == code
        assert f"{name}: no such file" in done.stderr
        assert done.stdout == ""


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"junk" * 100)
    with pytest.raises(ModelError, match=r"junk\.onnx"):
        ingot.profile(junk)


def test_a_model_that_does_not_say_its_inputs_is_refused(tmp_path: Path) -> None:
    spec = training_specs.write_spec(tmp_path, inputs=None)
    with pytest.raises(SpecError, match="'inputs' is missing"):
        ingot.profile(spec)
    with pytest.raises(UsageError, match="does not say the types and shapes"):
        ingot.profile(torchscript_add(tmp_path / "add.pt"))


def test_another_model_of_another_input_is_refused(tmp_path: Path) -> None:
    spec = networks.digits_cnn(tmp_path)
    wide = [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 9, 9]}]
    (tmp_path / "b").mkdir()
    other = training_specs.write_spec(tmp_path / "b", inputs=wide)
    for compare in (onnx_add(tmp_path / "add.onnx"), other):
        with pytest.raises(UsageError, match="expected the same inputs"):
            ingot.profile(spec, compare=compare)


def test_a_batch_that_the_model_does_not_take_is_refused(tmp_path: Path) -> None:
    fixed = [{"name": "image", "dtype": "float32", "shape": [1, 1, 8, 8]}]
    spec = training_specs.write_spec(tmp_path, inputs=fixed)
    with pytest.raises(UsageError, match="expected --batch-size 1, or none"):
        ingot.profile(spec, batch_size=4)
    assert ingot.profile(spec, metrics=False, runs=1).model.metrics == {}


def test_options_are_checked(tmp_path: Path) -> None:
    model = onnx_add(tmp_path / "add.onnx")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"runs": 0}, "runs: found 0"),
        ({"device": "TPU"}, "expected CPU or GPU"),
        ({"overrides": ["name=x"]}, "--set changes a spec"),
        ({"csv": tmp_path / "none" / "layers.csv"}, "its folder does not exist"),
    ]
    if "CUDAExecutionProvider" not in pytest.importorskip("onnxruntime").get_available_providers():
        wrong.append(({"device": "GPU", "strict": True, "runs": 1}, "onnx sees no GPU here"))
    for options, message in wrong:
        with pytest.raises(UsageError, match=message):
            ingot.profile(model, **options)
