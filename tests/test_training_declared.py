"""What a spec declares of its tensors, against what training gives the network and gets."""

from __future__ import annotations

import numpy as np
import pytest
import training_keras_specs
import training_specs

import ingot
from ingot.specs.tensors import TensorSpec
from ingot.training.declared import DeclaredTensors, named_inputs

OUTPUTS = [{"name": "logits", "dtype": "float32", "shape": ["batch", 12]}]
INPUTS = [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 9]}]
WRONG = [
    (
        {"outputs": OUTPUTS},
        r"digits\.yaml: outputs\[0\]\.shape: tensor 'logits': found the shape \(\d+, 10\) from the"
        r" network; expected \(batch, 12\)",
    ),
    (
        {"inputs": INPUTS},
        r"digits\.yaml: inputs\[0\]\.shape: tensor 'image': found the shape \(\d+, 1, 8, 8\) in the"
        r" data; expected \(batch, 1, 8, 9\)",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
@pytest.mark.parametrize("has_evaluation", [True, False])
def test_a_shape_that_is_not_the_declared_one(tmp_path, changes, message, has_evaluation):
    pytest.importorskip("torch")
    pytest.importorskip("torchmetrics")
    code = """


def splits():
    import torch

    return {"train": [(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))]}
"""
    data = {} if has_evaluation else {"data": "net:splits"}
    spec = training_specs.write_spec(tmp_path, code, **changes, **data)
    with pytest.raises(ingot.SpecError, match=message):
        ingot.train(spec, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("has_evaluation", [True, False])
def test_a_keras_network_of_another_shape(tmp_path, has_evaluation):
    pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    code = """


def splits():
    import numpy as np

    return {"train": [(np.zeros((4, 8, 8, 1), "float32"), np.zeros(4, "int64"))]}
"""
    data = {} if has_evaluation else {"data": "net:splits"}
    spec = training_keras_specs.write_spec(tmp_path, code, outputs=OUTPUTS, **data)
    message = r"outputs\[0\]\.shape: tensor 'logits': found the shape \((\d+|any), 10\) from"
    with pytest.raises(ingot.SpecError, match=message):
        ingot.train(spec, tmp_path / "run")


def spec_of(name, *shape):
    return TensorSpec(name, "float32", shape)


def test_batches_symbols_and_outputs_of_another_number_are_left_alone():
    declared = DeclaredTensors((spec_of("x", 1, "length"),), (spec_of("y", None, 3),))
    declared.require_inputs({"x": np.zeros((5, 7)), "other": np.zeros(1)})
    declared.require_inputs({})
    for returned in (np.zeros((5, 3)), [np.zeros((5, 3))], {"y": np.zeros((5, 3))}, None):
        declared.require_outputs(returned)
    declared.require_outputs((np.zeros((5, 4)), np.zeros(2)))
    for returned in (np.zeros((5, 4)), [np.zeros((5, 3, 1))], {"y": np.zeros((5, 4))}):
        with pytest.raises(ingot.SpecError, match="tensor 'y'"):
            declared.require_outputs(returned)


def test_arguments_are_named_as_the_network_takes_them():
    def swapped(b, a):
        raise AssertionError

    def others(p, q):
        raise AssertionError

    assert named_inputs(swapped, (1, 2), {}, ["a", "b"]) == {"b": 1, "a": 2}
    assert named_inputs(swapped, (1,), {"a": 2}, ["a", "b"]) == {"b": 1, "a": 2}
    assert named_inputs(swapped, (1, 2, 3), {}, ["a", "b"]) == {}
    assert named_inputs(others, (1, 2), {}, ["a", "b"]) == {"a": 1, "b": 2}
    assert named_inputs(lambda *values: None, (1, 2), {}, ["a", "b"]) == {"a": 1, "b": 2}
