"""``quantize``: what a search ends with, and what it writes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from compress_specs import write_spec
from quantize_specs import export_onnx, initializer_types, write_data, write_gained

import ingot

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A search through the command line, with every default."""
    place = tmp_path_factory.mktemp("quantize")
    spec = write_spec(place)
    command = [sys.executable, "-P", "-m", "ingot.cli", "quantize", str(spec), "--json"]
    done = subprocess.run(
        [*command, "-o", str(place / "run")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    return SimpleNamespace(place=place, spec=spec, run=place / "run", document=document)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as a bare ONNX file."""
    place = tmp_path_factory.mktemp("bare")
    return export_onnx(write_spec(place), place)


@pytest.fixture(scope="module")
def gained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A search in which one layer has to go back to float activations."""
    place = tmp_path_factory.mktemp("gained")
    spec = write_gained(place)
    lines: list[str] = []
    verdict = ingot.quantize(spec, output=place / "run", delta=1.0, progress=lines.append)
    return SimpleNamespace(verdict=verdict, run=place / "run", spec=spec, lines=lines)


def test_eight_bits_keep_the_metric_and_take_less(met: SimpleNamespace) -> None:
    document = met.document
    assert (document["command"], document["verdict"]) == ("quantize", "met")
    assert document["drop"] <= document["delta"] == 2.0
    before, after = document["reference"], document["optimized"]
    assert after["size_bytes"] < 0.6 * before["size_bytes"]
    assert document["size_ratio"] == before["size_bytes"] / after["size_bytes"]
    assert set(after["metrics"]) == set(before["metrics"]) == {"accuracy", "top5"}
    assert before["latency_ms"] > 0
    assert after["latency_ms"] > 0
    assert after["parameters"] == before["parameters"]
    assert document["evaluations"] <= document["forecast"]["max_evaluations"]


def test_the_file_holds_int8_weights_and_runs_on_uint8(met: SimpleNamespace) -> None:
    path = met.run / "opt_model.onnx"
    assert initializer_types(path) == {"INT8": 3}
    import onnx

    graph = onnx.load(path).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    activations = {types[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"}
    assert activations == {onnx.TensorProto.UINT8}


def test_the_verdict_says_bits_and_errors_of_each_layer(met: SimpleNamespace) -> None:
    layers = met.document["layers"]
    assert [layer["name"] for layer in layers] == ["first", "second", "head"]
    assert [layer["index"] for layer in layers] == [0, 1, 2]
    for layer in layers:
        assert (layer["weight_bits"], layer["activation_bits"]) == (8, 8)
        assert 30 < layer["weight_snr_db"] < 70
    assert met.document["cpu"]["machine"]


def test_artifacts_are_what_their_hashes_say(met: SimpleNamespace) -> None:
    formats = [item["format"] for item in met.document["artifacts"]]
    assert formats == ["onnx", "package"]
    for item in met.document["artifacts"] + met.document["reference_artifacts"]:
        found = hashlib.sha256(Path(item["path"]).read_bytes()).hexdigest()
        assert found == item["sha256"]


def test_the_metric_is_that_of_the_file_in_its_runtime(met: SimpleNamespace) -> None:
    import onnxruntime

    from ingot.zoo.digits import load_digits

    images, labels = load_digits("test")
    session = onnxruntime.InferenceSession(met.run / "opt_model.onnx")
    (scores,) = session.run(None, {"image": images})
    accuracy = 100 * (scores.argmax(1) == labels).mean()
    assert met.document["optimized"]["metrics"]["accuracy"] == pytest.approx(accuracy, abs=1e-4)


def test_the_package_runs_and_verifies(met: SimpleNamespace, ingot_cli: Any) -> None:
    package = met.run / "opt_model.ingot"
    assert ingot_cli("verify", package).returncode == 0
    image = np.zeros((2, 1, 8, 8), np.float32)
    with ingot.load(package) as model, ingot.load(met.run / "opt_model.onnx") as file:
        np.testing.assert_array_equal(
            model.infer({"image": image})["logits"], file.infer({"image": image})["logits"]
        )


def test_the_report_shows_bits_by_layer(met: SimpleNamespace) -> None:
    page = (met.run / "report.html").read_text(encoding="utf-8")
    assert "Bits of each layer" in page
    assert "8 bits, activations 8" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_runs_show_knows_bytes(met: SimpleNamespace, ingot_cli: Any) -> None:
    shown = ingot_cli("runs", "show", met.run).stdout
    assert "bytes" in shown
    assert f"{met.document['optimized']['size_bytes']:,}" in shown


def test_a_finished_search_is_not_run_again(met: SimpleNamespace, ingot_cli: Any) -> None:
    before = (met.run / "journal.jsonl").read_bytes()
    again = ingot_cli("quantize", met.spec, "-o", met.run, "--resume", "--json")
    assert json.loads(again.stdout) == met.document
    assert (met.run / "journal.jsonl").read_bytes() == before


def test_a_bare_file_agrees_with_itself(onnx_file: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.npz", labels=False)
    verdict = ingot.quantize(onnx_file, data=data, delta=1.0, output=tmp_path / "run")
    assert (verdict.verdict, verdict.eval_key) == ("met", "agreement")
    assert verdict.reference.metrics == {"agreement": 100.0}
    assert verdict.drop_interval is not None


def test_labels_in_the_file_give_accuracy(onnx_file: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.npz", labels=True)
    verdict = ingot.quantize(onnx_file, data=data, delta=1.0, output=tmp_path / "run")
    assert (verdict.verdict, verdict.eval_key) == ("met", "accuracy")
    assert verdict.reference.metrics["accuracy"] < 100.0


def test_a_layer_that_costs_too_much_goes_back(gained: SimpleNamespace) -> None:
    verdict = gained.verdict
    assert verdict.verdict == "met"
    bits = {it["name"]: (it["weight_bits"], it["activation_bits"]) for it in verdict.layers}
    assert bits == {"first": (8, 8), "second": (16, 32), "head": (8, 8)}


def test_few_evaluations_find_that_layer(gained: SimpleNamespace) -> None:
    trials = [line for line in gained.lines if line.startswith("trial")]
    assert "missed" in trials[0]
    assert gained.verdict.evaluations <= 2 * 2 + 4  # 2 log2(layers) + 4


def test_a_search_that_a_cap_ended_goes_on(tmp_path: Path, gained: SimpleNamespace) -> None:
    spec = write_gained(tmp_path)
    folder = tmp_path / "run"
    cut = ingot.quantize(spec, output=folder, delta=1.0, max_evaluations=3)
    assert (cut.verdict, cut.stopped_by) == ("missed", "max_evaluations")
    whole = ingot.quantize(spec, output=folder, delta=1.0, resume=True)
    assert (whole.drop, whole.layers) == (gained.verdict.drop, gained.verdict.layers)
    records = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    trials = [record["name"] for record in records if record["kind"] == "trial"]
    assert trials == sorted(set(trials), key=int)  # none was made twice


def test_mixed_bits_take_less_than_eight(met: SimpleNamespace, tmp_path: Path) -> None:
    verdict = ingot.quantize(
        met.spec, bits="mixed", delta=2.0, finetune_epochs=0, output=tmp_path / "run"
    )
    assert verdict.verdict == "met"
    assert verdict.optimized.size_bytes < met.document["optimized"]["size_bytes"]
    bits = {layer["weight_bits"] for layer in verdict.layers}
    assert bits & {2, 4}
    found = initializer_types(tmp_path / "run" / "opt_model.onnx")
    assert set(found) & {"INT2", "INT4"}
    assert "FLOAT" not in found


def test_fixed_bits_of_layers_are_kept(met: SimpleNamespace, tmp_path: Path) -> None:
    verdict = ingot.quantize(
        met.spec,
        layers=(("first", 16), ("head", 4)),
        output=tmp_path / "run",
    )
    bits = {layer["name"]: layer["weight_bits"] for layer in verdict.layers}
    assert bits == {"first": 16, "second": 8, "head": 4}
    reasons = {layer["name"]: layer["reason"] for layer in verdict.layers}
    assert reasons == {"first": "its bits are given", "second": None, "head": "its bits are given"}


def test_rules_of_the_spec_are_the_users_choice(tmp_path: Path) -> None:
    rules = {"quantization_args": {"skip_layers": [0]}}
    spec = write_spec(tmp_path, custom_compression=rules)
    verdict = ingot.quantize(spec, delta=1.0, finetune_epochs=0, output=tmp_path / "run")
    bits = [layer["weight_bits"] for layer in verdict.layers]
    assert bits == [32, 2, 2]
    # 2 bits by rounding lose more than that, and nobody but the user may give them up.
    assert verdict.verdict == "missed"
    assert "drops by" in verdict.reason


@pytest.mark.slow
def test_training_recovers_what_rounding_loses(tmp_path: Path) -> None:
    rules = {"quantization_args": {"skip_layers": [0]}}
    spec = write_spec(tmp_path, custom_compression=rules)
    rounded = ingot.quantize(spec, delta=1.0, finetune_epochs=0, output=tmp_path / "rounded")
    trained = ingot.quantize(spec, delta=1.0, finetune_epochs=8, output=tmp_path / "trained")
    assert [layer["weight_bits"] for layer in trained.layers] == [32, 2, 2]
    assert trained.epochs >= 8
    assert trained.drop < rounded.drop / 2
    assert initializer_types(tmp_path / "trained" / "opt_model.onnx")["INT2"] == 2


def test_a_tiny_network_is_not_faster_in_integers(met: SimpleNamespace, tmp_path: Path) -> None:
    verdict = ingot.quantize(met.spec, target="latency", output=tmp_path / "run")
    slow = {"slower", "accepted", "missed", "rejected early"}
    records = [
        json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    ]
    trials = [record for record in records if record["kind"] == "trial"]
    assert {trial["status"] for trial in trials} <= slow
    assert all(trial["latency_ms"] for trial in trials)
    if verdict.verdict == "met":
        assert verdict.optimized.latency_ms < verdict.reference.latency_ms
    else:
        assert "faster" in verdict.reason or "slower" in verdict.reason


def test_a_dry_run_walks_through(met: SimpleNamespace, tmp_path: Path) -> None:
    verdict = ingot.quantize(met.spec, dry_run=True, output=tmp_path / "run")
    assert any("dry run" in line for line in verdict.warnings)
    assert (tmp_path / "run" / "opt_model.onnx").exists()


def test_a_fixed_batch_is_quantized_as_it_is(met: SimpleNamespace, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(met.run / "ref_modelfp32_dynamic_shape.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "fixed.onnx")
    data = write_data(tmp_path / "data.npz", labels=True)
    verdict = ingot.quantize(tmp_path / "fixed.onnx", data=data, delta=2.0, output=tmp_path / "run")
    assert verdict.verdict == "met"
    assert initializer_types(tmp_path / "run" / "opt_model.onnx") == {"INT8": 3}


def test_a_file_that_was_changed_is_not_shipped(met: SimpleNamespace, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(met.run, run)
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["kind"] not in ("shipped", "verdict")]
    (run / "journal.jsonl").write_text("".join(kept))
    (run / "trials" / "1.onnx").write_bytes(b"something else")
    verdict = ingot.quantize(met.spec, output=run, resume=True)
    shipped = verdict.artifacts[0]
    assert shipped.sha256 == met.document["artifacts"][0]["sha256"]


def test_single_values_agree_by_their_difference() -> None:
    from ingot.training.agreement import AgreementEvaluation

    batches = [(np.zeros((3, 1)), np.array([[1.0], [2.0], [np.nan]]))]
    found = AgreementEvaluation(spread=2.0)(lambda x: np.array([[1.0], [3.0], [np.nan]]), batches)
    np.testing.assert_allclose(found["per_sample"]["agreement"], [1.0, 0.5, 0.0])


def test_what_is_no_number_agrees_with_no_class() -> None:
    from ingot.training.agreement import AgreementEvaluation

    batches = [(np.zeros((2, 1)), np.array([0, 1]))]
    answer = np.array([[np.nan, np.nan], [0.0, 1.0]])
    found = AgreementEvaluation()(lambda x: answer, batches)
    assert found["agreement"] == 50.0


def test_the_depfile_names_model_and_data(
    met: SimpleNamespace, tmp_path: Path, ingot_cli: Any
) -> None:
    data = write_data(tmp_path / "data.npz", labels=True)
    model = met.run / "ref_modelfp32_dynamic_shape.onnx"
    options = ("--data", data, "-o", tmp_path / "run", "--depfile", tmp_path / "run.d")
    done = ingot_cli("quantize", model, *options, "--delta", "2")
    assert done.returncode == 0, done.stderr
    rule = (tmp_path / "run.d").read_text()
    assert "data.npz" in rule
    assert model.name in rule


def test_the_verdict_warns_of_other_processors(met: SimpleNamespace, tmp_path: Path) -> None:
    assert any("--reduce-range" in line for line in met.document["warnings"])
    reduced = ingot.quantize(met.spec, reduce_range=True, output=tmp_path / "run")
    assert not any("--reduce-range" in line for line in reduced.warnings)
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(tmp_path / "run" / "opt_model.onnx").graph
    weights = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]
    largest = max(int(np.abs(numpy_helper.to_array(t).astype(int)).max()) for t in weights)
    assert largest == 64
