"""``ingot init``: the spec it writes works at once, for every kind of model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ingot
from tests import models

DENSE = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.dense = nn.Linear(4, 3)

        def forward(self, x):
            return {"logits": self.dense(x), "mean": x.mean(), "wide": x.repeat(2, 1)}


    def build():
        return Net()


    def unseeded():
        net = Net()
        nn.init.normal_(net.dense.weight, generator=torch.Generator().manual_seed(torch.seed()))
        return net


    def ranks():
        class Ranks(nn.Module):
            def forward(self, x):
                return x if len(x) == 2 else x[None]

        return Ranks()


    def fixed():
        class Fixed(nn.Module):
            def forward(self, x):
                return x.reshape(2, 4)

        return Fixed()


    def numbers(scale: float = 2.0):
        def model(x, words):
            return {"y": x * scale, "words": words}

        return model
    """


def works_at_once(cli: Any, spec: Path, *, golden: bool = True) -> Mapping[str, Any]:
    """Package, run and inspect a spec through real processes; return what inspect says."""
    package = spec.parent / "out" / f"{spec.stem}.ingot"
    package.parent.mkdir(exist_ok=True)
    made = cli("package", spec, "-o", package, "--json", cwd=spec.parent)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["golden"] == ("recorded" if golden else None)
    if golden:
        inputs = spec.with_name(f"{spec.stem}_golden.npz")
        ran = cli("infer", spec, "--inputs", inputs, "--json", cwd=spec.parent)
        assert ran.returncode == 0, ran.stderr
    shown = cli("inspect", spec, "--json", cwd=spec.parent)
    assert shown.returncode == 0, shown.stderr
    return dict(json.loads(shown.stdout))


def tensors(entries: Any) -> dict[str, tuple[str, list[Any]]]:
    return {entry["name"]: (entry["dtype"], entry["shape"]) for entry in entries}


def run_init(cli: Any, *args: object, **options: Any) -> dict[str, Any]:
    done = cli("init", *args, "--json", **options)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def onnx_image(path: Path) -> Path:
    """An ONNX file whose batch, height and width have no names, and whose output pools them."""
    from onnx import TensorProto, helper, save

    shape = [None, 3, None, None]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    half = helper.make_tensor_value_info("half", TensorProto.FLOAT, shape)
    mean = helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["N", 3, 1, 1])
    nodes = [
        helper.make_node("MaxPool", ["image"], ["half"], kernel_shape=[16, 16], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
    ]
    graph = helper.make_graph(nodes, "image", [image], [half, mean])
    opsets = [helper.make_opsetid("", 18)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))
    return path


def test_an_onnx_file(ingot_cli: Any, tmp_path: Path) -> None:
    models.onnx_add(tmp_path / "add.onnx")
    done = ingot_cli("init", "add.onnx")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["add.yaml", "add_golden.npz"]
    shown = works_at_once(ingot_cli, tmp_path / "add.yaml")
    assert tensors(shown["inputs"]) == {name: ("float32", ["n"]) for name in "xy"}
    assert tensors(shown["outputs"]) == {"out": ("float32", ["n"])}


def test_sizes_without_a_name_are_probed(ingot_cli: Any, tmp_path: Path) -> None:
    onnx_image(tmp_path / "image.onnx")
    found = run_init(ingot_cli, "image.onnx")
    assert tensors(found["inputs"]) == {"image": ("float32", ["batch", 3, None, None])}
    assert tensors(found["outputs"]) == {
        "half": ("float32", ["batch", 3, None, None]),
        "mean": ("float32", ["batch", 3, 1, 1]),
    }
    assert found["warnings"] == []
    works_at_once(ingot_cli, tmp_path / "image.yaml")


def test_a_keras_file(ingot_cli: Any, tmp_path: Path) -> None:
    import keras

    image, ids = keras.Input((4, 4, 1), name="image"), keras.Input((5,), name="ids", dtype="int32")
    flat = keras.layers.Flatten()(image)
    words = keras.layers.Flatten()(keras.layers.Embedding(7, 2)(ids))
    out = keras.layers.Dense(2, name="two")(keras.layers.Concatenate()([flat, words]))
    keras.Model([image, ids], out).save(tmp_path / "net.keras")
    found = run_init(ingot_cli, "net.keras")
    assert tensors(found["inputs"]) == {
        "image": ("float32", ["batch_size", 4, 4, 1]),
        "ids": ("int32", ["batch_size", 5]),
    }
    assert tensors(found["outputs"]) == {"two": ("float32", ["batch_size", 2])}
    works_at_once(ingot_cli, tmp_path / "net.yaml")
    ids_found = np.load(tmp_path / "net_golden.npz")["ids"]
    assert set(ids_found.flat) <= set(range(7))


def test_a_sequential_keras_file(ingot_cli: Any, tmp_path: Path) -> None:
    import keras

    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(tmp_path / "s.keras")
    found = run_init(ingot_cli, "s.keras")
    assert tensors(found["inputs"]) == {"input": ("float32", ["batch_size", 3])}
    works_at_once(ingot_cli, tmp_path / "s.yaml")


def test_a_saved_model_and_a_dynamic_rank(ingot_cli: Any, tmp_path: Path) -> None:
    import tensorflow as tf

    def save(name: str, *shapes: Any) -> None:
        module = tf.Module()
        types = [
            tf.TensorSpec(shape, tf.float32, name=n) for shape, n in zip(shapes, "ab", strict=True)
        ]
        module.run = tf.function(lambda a, b: {"sum": a + b, "n": tf.size(a)}, types)
        tf.saved_model.save(module, str(tmp_path / name), signatures=module.run)

    save("saved", [None, 2], [None, 2])
    save("ranks", None, None)
    found = run_init(ingot_cli, "saved")
    assert tensors(found["inputs"]) == {name: ("float32", ["batch", 2]) for name in "ab"}
    assert tensors(found["outputs"]) == {"n": ("int32", []), "sum": ("float32", ["batch", 2])}
    works_at_once(ingot_cli, tmp_path / "saved.yaml")
    refused = ingot_cli("init", "ranks")
    assert refused.returncode == 5
    assert re.search("input '[ab]' has a dynamic rank", refused.stderr)
    assert re.search(r"--input '[ab]=float32\[batch,3\]'", refused.stderr)
    assert not (tmp_path / "ranks.yaml").exists()
    options = ["--input", "a=float32[batch,3]", "--input", "b=float32[batch,3]"]
    found = run_init(ingot_cli, "ranks", *options)
    assert tensors(found["outputs"])["sum"] == ("float32", ["batch", 3])
    works_at_once(ingot_cli, tmp_path / "ranks.yaml")


def test_a_graph(ingot_cli: Any, tmp_path: Path) -> None:
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        with tf.compat.v1.name_scope("in"):
            x = tf.compat.v1.placeholder(tf.float32, [None, 4], name="x")
            scale = tf.compat.v1.placeholder_with_default(2.0, [], name="scale")
        tf.split(tf.multiply(x, scale, name="ns/product"), 2, axis=1, name="ns/parts")
        tf.group(name="init")
    (tmp_path / "net.pb").write_bytes(graph.as_graph_def().SerializeToString())
    found = run_init(ingot_cli, "net.pb")
    assert found["inputs"][1] == {
        "name": "scale",
        "dtype": "float32",
        "shape": [],
        "optional": True,
    }
    assert tensors(found["outputs"]) == {
        "parts": ("float32", ["batch", 2]),
        "parts_1": ("float32", ["batch", 2]),
    }
    section = yaml.safe_load((tmp_path / "net.yaml").read_text())["model"]
    assert section["graph"] == "net.pb"
    assert section["node_name_mapping"] == {
        "x": "in/x:0",
        "scale": "in/scale:0",
        "parts": "ns/parts:0",
        "parts_1": "ns/parts:1",
    }
    works_at_once(ingot_cli, tmp_path / "net.yaml")


def test_a_scripted_file_needs_the_inputs(ingot_cli: Any, tmp_path: Path) -> None:
    models.torchscript_add(tmp_path / "add.pt")
    refused = ingot_cli("init", "add.pt")
    assert refused.returncode == 2
    assert "does not say the type and shape of x, y" in refused.stderr
    assert "--input 'y=float32[batch,3]'" in refused.stderr
    found = run_init(ingot_cli, "add.pt", "--input", "x=float32[n]", "--input", "y=float32[n]")
    assert tensors(found["outputs"]) == {"out": ("float32", ["n"])}
    works_at_once(ingot_cli, tmp_path / "add.yaml")
    wrong = ingot_cli(
        "init", "add.pt", "--input", "x=float32[n]", "--input", "z=float32[n]", "--force"
    )
    assert wrong.returncode == 2
    assert "--input z: the model has no such input" in wrong.stderr


def test_a_traced_file_says_its_example(ingot_cli: Any, tmp_path: Path) -> None:
    import torch

    torch.jit.trace(torch.nn.Linear(4, 2), torch.zeros(5, 4)).save(tmp_path / "dense.pt")
    found = run_init(ingot_cli, "dense.pt")
    assert tensors(found["inputs"]) == {"input": ("float32", ["batch", 4])}
    assert tensors(found["outputs"]) == {"output": ("float32", ["batch", 2])}
    works_at_once(ingot_cli, tmp_path / "dense.yaml")


def test_a_trace_that_holds_its_batch(ingot_cli: Any, tmp_path: Path) -> None:
    import torch

    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(5, 4) + 1

    torch.jit.trace(Fixed(), torch.zeros(5, 4)).save(tmp_path / "fixed.pt")
    found = run_init(ingot_cli, "fixed.pt")
    assert tensors(found["inputs"]) == {"x": ("float32", [5, 4])}
    works_at_once(ingot_cli, tmp_path / "fixed.yaml")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_pytorch_code(ingot_cli: Any, tmp_path: Path, elsewhere: bool) -> None:
    root = tmp_path / "code" if elsewhere else tmp_path
    models.write(root / "net.py", DENSE)
    options = ["--root", root] if elsewhere else []
    found = run_init(ingot_cli, "net:build", "--input", "x=float32[batch,4]", *options)
    assert tensors(found["outputs"]) == {
        "logits": ("float32", ["batch", 3]),
        "mean": ("float32", []),
        "wide": ("float32", [None, 4]),
    }
    section = yaml.safe_load((tmp_path / "net.yaml").read_text())["model"]
    assert ("code_path_spec" in section) is elsewhere
    works_at_once(ingot_cli, tmp_path / "net.yaml")


def test_python_code_with_strings(ingot_cli: Any, tmp_path: Path) -> None:
    models.write(tmp_path / "net.py", DENSE)
    options = ["--input", "x=int64[n]", "--input", "words=string[n]", "--framework", "python"]
    found = run_init(ingot_cli, "net:numbers", "-o", "numbers.yaml", *options)
    assert tensors(found["outputs"]) == {"y": ("float64", ["n"]), "words": ("string", ["n"])}
    works_at_once(ingot_cli, tmp_path / "numbers.yaml")


def test_code_that_cannot_be_described(ingot_cli: Any, tmp_path: Path) -> None:
    models.write(tmp_path / "net.py", DENSE)
    given = ["--input", "x=float32[batch,4]"]
    for factory, options, code, message in (
        ("net:build", [], 2, "does not say the type and shape of x"),
        ("net:built", given, 2, "net has no attribute 'built'"),
        ("nets:build", given, 2, "no module 'nets'"),
        ("net:ranks", given, 5, "has a dynamic rank"),
        ("net:fixed", given, 5, "the sizes of its inputs are not free"),
        ("net:build", ["--input", "x=float32[batch,5]"], 5, "the model raised RuntimeError"),
        ("net:build", ["--input", "x=float33[batch,4]"], 2, "unknown dtype 'float33'"),
        ("net:build", ["--input", "x"], 2, "expected NAME=dtype[dims]"),
        ("net:build", [*given, "-o", "net.json"], 2, "expected a name that ends in .yaml"),
    ):
        done = ingot_cli("init", factory, *options)
        assert (done.returncode, message in done.stderr) == (code, True), done.stderr
        assert len(re.findall("error:", done.stderr)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.py"]


def test_random_weights_give_no_golden_data(ingot_cli: Any, tmp_path: Path) -> None:
    models.write(tmp_path / "net.py", DENSE)
    found = run_init(ingot_cli, "net:unseeded", "--input", "x=float32[batch,4]")
    assert found["golden"] is None
    assert "two runs on the same inputs differ" in found["warnings"][0]
    assert "# TODO: there is no golden data yet" in (tmp_path / "net.yaml").read_text()
    works_at_once(ingot_cli, tmp_path / "net.yaml", golden=False)


def test_weights_of_code(ingot_cli: Any, tmp_path: Path) -> None:
    models.torch_scale(tmp_path)
    (tmp_path / "scale.yaml").unlink()
    options = ["--input", "x=float32[n]", "--input", "y=float32[n]"]
    run_init(ingot_cli, "net:build", *options, "--weights", "net.safetensors", "-o", "s.yaml")
    assert ingot.load_spec(tmp_path / "s.yaml").model.weights == tmp_path / "net.safetensors"
    works_at_once(ingot_cli, tmp_path / "s.yaml")


@pytest.mark.parametrize("kind", ["onnx", "torch", "directory"])
def test_a_package(ingot_cli: Any, tmp_path: Path, kind: str) -> None:
    if kind == "torch":
        spec: Path = models.torch_scale(tmp_path / "made")
    else:
        models.onnx_add(tmp_path / "add.onnx")
        run_init(ingot_cli, "add.onnx", "-o", "made.yaml")
        spec = tmp_path / "made.yaml"
    options = ["--dir"] if kind == "directory" else []
    packed = ingot_cli("package", spec, "-o", "p.ingot", *options)
    assert packed.returncode == 0, packed.stderr
    (tmp_path / "new").mkdir()
    if kind == "torch":
        refused = ingot_cli("init", "p.ingot", "-o", "new/again.yaml")
        assert refused.returncode == 5
        assert "--trust-code" in refused.stderr
    found = run_init(ingot_cli, "p.ingot", "-o", "new/again.yaml", "--trust-code")
    shutil.rmtree(tmp_path / "made", ignore_errors=True)
    names = ["again.yaml", "again_golden.npz", "again_model"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    assert found["unpacked"] == str(tmp_path / "new" / "again_model")
    shown = works_at_once(ingot_cli, tmp_path / "new" / "again.yaml")
    assert tensors(shown["outputs"]) == {"out": ("float32", ["n"])}


def test_a_ludwig_folder_without_ludwig(ingot_cli: Any, tmp_path: Path) -> None:
    config = {"input_features": [], "output_features": []}
    models.write(tmp_path / "m" / "model_hyperparameters.json", json.dumps(config))
    try:
        import ludwig  # noqa: F401
    except ModuleNotFoundError:
        done = ingot_cli("init", "m")
        assert done.returncode == 6
        assert "pip install ludwig" in done.stderr


def test_outputs_are_not_replaced_and_the_text_is_deterministic(
    ingot_cli: Any, tmp_path: Path
) -> None:
    models.onnx_add(tmp_path / "add.onnx")
    run_init(ingot_cli, "add.onnx")
    kept = [(tmp_path / name).read_bytes() for name in ("add.yaml", "add_golden.npz")]
    refused = ingot_cli("init", "add.onnx")
    assert refused.returncode == 2
    assert "add.yaml: exists already" in refused.stderr
    run_init(ingot_cli, "add.onnx", "--force")
    assert [(tmp_path / name).read_bytes() for name in ("add.yaml", "add_golden.npz")] == kept
    run_init(ingot_cli, "add.onnx", "--force", "--seed", 1)
    assert (tmp_path / "add_golden.npz").read_bytes() != kept[1]


def test_standard_output(ingot_cli: Any, tmp_path: Path) -> None:
    models.onnx_add(tmp_path / "add.onnx")
    done = ingot_cli("init", "add.onnx", "-o", "-")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["add.onnx"]
    (tmp_path / "piped.yaml").write_text(done.stdout)
    works_at_once(ingot_cli, tmp_path / "piped.yaml", golden=False)


def test_the_commented_sections_are_valid(ingot_cli: Any, tmp_path: Path) -> None:
    models.onnx_add(tmp_path / "add.onnx")
    run_init(ingot_cli, "add.onnx", "--no-golden")
    text = (tmp_path / "add.yaml").read_text()
    np.savez(tmp_path / "add_golden.npz", **models.INPUTS)
    (tmp_path / "all.yaml").write_text(re.sub(r"^#(?=\w)", "", text, flags=re.M))
    spec = ingot.load_spec(tmp_path / "all.yaml")
    assert None not in (spec.data, spec.fine_tuner, spec.export, spec.test, spec.loss)
    assert spec.evaluation.eval_key == "accuracy"


def test_names_are_quoted(ingot_cli: Any, tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    names = ["null", "a: b, [c]", "12", "é\x07"]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["1"]) for name in names]
    nodes = [helper.make_node("Sum", names[:3], names[3:])]
    opsets = [helper.make_opsetid("", 18)]
    graph = helper.make_graph(nodes, "g", ends[:3], ends[3:])
    save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(tmp_path / "on #1.onnx"))
    run_init(ingot_cli, "on #1.onnx")
    spec = ingot.load_spec(tmp_path / "on #1.yaml")
    assert spec.name == "on #1"
    assert [entry.name for entry in spec.inputs or ()] == names[:3]
    assert [entry.name for entry in spec.outputs or ()] == names[3:]


def test_a_file_that_runs_with_batch_one_only(ingot_cli: Any, tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 2])
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [1, 2, 2])
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    opsets = [helper.make_opsetid("", 18)]
    graph = helper.make_graph([node], "g", [x], [y], [shape])
    save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(tmp_path / "one.onnx"))
    found = run_init(ingot_cli, "one.onnx")
    assert "not all sizes of its inputs are free" in found["warnings"][0]
    works_at_once(ingot_cli, tmp_path / "one.yaml")


def test_what_cannot_be_read(ingot_cli: Any, tmp_path: Path) -> None:
    models.onnx_add(tmp_path / "add.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    (tmp_path / "bad.pb").write_bytes(b"no graph")
    models.write(tmp_path / "s.yaml", "name: s\n")
    for model, options, code, message in (
        ("bad.onnx", [], 5, "cannot open it"),
        ("bad.pb", [], 5, "not a binary GraphDef"),
        ("gone.onnx", [], 5, "no such file or folder"),
        ("not this:", [], 5, "nor the form module:factory"),
        ("s.yaml", [], 2, "it is a spec already"),
        ("add.onnx", ["--root", "."], 2, "--root goes with code"),
        ("add.onnx", ["--input", "z=float32[n]"], 2, "the model has no such input"),
        ("add.onnx", ["-o", "gone/add.yaml"], 2, "the folder gone does not exist"),
        ("add.onnx", ["-o", "-", "--json"], 2, "both write to stdout"),
    ):
        done = ingot_cli("init", model, *options)
        assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert not list(tmp_path.glob("*_golden.npz"))


def test_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    models.onnx_add(Path("add.onnx"))
    result = ingot.init("add.onnx", "new.yaml")
    assert result.path == Path("new.yaml")
    assert ingot.load_spec("new.yaml").test is not None
