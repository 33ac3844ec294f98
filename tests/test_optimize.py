"""``optimize``: pruning and quantization that share one delta."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from compress_specs import write_spec
from search_processes import without_times

import ingot
from ingot.errors import OutputExistsError, SpecError, UsageError

pytest.importorskip("torch")
pytest.importorskip("torch_pruning")
pytest.importorskip("onnxscript")
pytest.importorskip("scipy")


@pytest.mark.slow
def test_both_together_are_smaller_than_either(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    both = ingot.optimize(spec, output=tmp_path / "both", max_evaluations=9)
    quantized = ingot.quantize(spec, output=tmp_path / "quantized")
    assert both.verdict == "met"
    assert both.drop <= both.delta
    assert (both.command, both.run_dir) == ("optimize", tmp_path / "both")
    pruned = json.loads((tmp_path / "both" / "compress" / "verdict.json").read_text())
    assert both.optimized.size_bytes < pruned["optimized"]["size_bytes"]
    assert both.optimized.size_bytes < quantized.optimized.size_bytes
    # Both drops count from the network that was given.
    assert both.reference.metrics == quantized.reference.metrics
    assert both.optimized.parameters < both.reference.parameters
    document = json.loads((tmp_path / "both" / "verdict.json").read_text())
    assert document == both.to_dict()
    shipped = both.artifacts[0]
    assert shipped.path == tmp_path / "both" / "opt_model.onnx"
    with ingot.load(shipped.path) as model:
        assert [spec.name for spec in model.inputs] == ["image"]

    again = ingot.optimize(spec, output=tmp_path / "both", max_evaluations=9, resume=True)
    assert without_times(again.to_dict()) == without_times(both.to_dict())


def test_what_quantize_would_refuse_is_refused_at_once(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    with pytest.raises(SpecError, match="calibrated on the split 'train'"):
        ingot.optimize(spec, output=tmp_path / "run", eval_split="train")
    assert not (tmp_path / "run").exists()


def test_nothing_is_left_of_an_impossible_delta(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    with pytest.raises(UsageError, match="at least 0"):
        ingot.optimize(spec, output=tmp_path / "run", delta=-1.0)
    assert not (tmp_path / "run").exists()


def test_files_of_others_stay(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    mine = tmp_path / "run" / "trials" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(OutputExistsError, match="trials: is there already"):
        ingot.quantize(spec, output=tmp_path / "run", layers=(("nope", 8),))
    assert mine.read_text() == "mine"
