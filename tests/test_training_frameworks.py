"""A framework of its own: a modeler, a runner and one line, with NumPy in place of a framework."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext

import numpy as np
import pytest

import ingot
from ingot.specs import ModelSection, ModelSpec
from ingot.training import Modeler, Problem, Runner, TrainerOptions, TrainingError, train_network
from ingot.training.evaluation import run_evaluation
from ingot.training.trainers import TRAINERS, Trainer


class LeastSquares(Modeler):
    """A linear model, ``network`` being its weights."""

    def __init__(self, network, loss, evaluation, device):
        self.network, self.loss, self.evaluation, self.device = network, loss, evaluation, device
        self.gradient = None

    def compute_loss(self, batch):
        x, y = batch
        error = x @ self.network - y
        self.gradient = 2 * x.T @ error / len(x)
        return {"loss": float(np.mean(error**2))}

    def evaluate(self, loader):
        return run_evaluation(self.evaluation, self.network, loader, self.device)

    def batch_accuracy(self, batch):
        return None

    def keep_outputs(self):
        pass

    def start_average(self):
        raise NotImplementedError

    def update_average(self, decay):
        raise NotImplementedError

    def averaged(self):
        return nullcontext()

    def write_weights(self, path):
        path.write_text(json.dumps(self.network.tolist()))

    def not_finite(self):
        return None if np.isfinite(self.network).all() else "the weights"

    def load_pretrained(self, path, skip, label):
        self.network[:] = json.loads(path.read_text())
        return []

    def share(self, local_rank):
        raise NotImplementedError

    def state(self):
        return {"network": self.network.tolist()}

    def restore(self, state):
        self.network[:] = state["network"]


class NumpyRunner(Runner):
    """Plain gradient descent."""

    learning_rate = 0.1
    is_asynchronous = False

    def setup(self):
        self.seeds = []

    def epoch_batches(self, epoch, start):
        self.seeds.append(epoch)
        return iter(list(self.splits["train"])[start:])

    def train_step(self, batch):
        losses = self.modeler.compute_loss(batch)
        self.modeler.network -= self.learning_rate * self.modeler.gradient
        return losses

    def fetch(self, losses):
        return losses

    def evaluate(self, loader):
        return self.modeler.evaluate(loader)

    def after_evaluation(self, value):
        pass

    def end_epoch(self):
        pass

    def write_checkpoint(self, path):
        document = {"modeler": self.modeler.state(), "run": self.state.to_dict()}
        path.write_text(json.dumps({**document, "callbacks": self.callback_states()}))

    def read_checkpoint(self, path):
        document = json.loads(path.read_text())
        self.modeler.restore(document["modeler"])
        self.state = type(self.state)(**document["run"])
        self.restore_callbacks(document["callbacks"])


def problem_of(framework):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((64, 3))
    batches = [(part, part @ [1.0, -2.0, 3.0]) for part in np.split(x, 8)]
    problem = Problem(ModelSpec(model=ModelSection(framework)))
    problem.splits = {"train": batches[:6], "test": batches[6:]}
    problem.forward_pass = problem.loss = None
    problem.evaluation = lambda model, loader: {
        "error": float(np.mean([np.mean((x @ model - y) ** 2) for x, y in loader]))
    }
    return problem


def test_a_framework_of_its_own_trains_resumes_and_fails_like_any_other(tmp_path, monkeypatch):
    names = [f"numpy_least_squares.training:{kind}" for kind in ("LeastSquares", "NumpyRunner")]
    monkeypatch.setitem(sys.modules, "numpy_least_squares.training", sys.modules[__name__])
    monkeypatch.setitem(TRAINERS, "numpy", Trainer(*names))
    problem = problem_of("numpy")
    options = TrainerOptions(epochs=20, eval_key="error", higher_is_better=False)

    trained = train_network(problem, np.zeros(3), options, folder=tmp_path)
    weights = np.zeros(3)
    longer = TrainerOptions(epochs=21, eval_key="error", higher_is_better=False)
    resumed = train_network(problem, weights, longer, folder=tmp_path, resume=True)

    assert trained.modeler.network == pytest.approx([1, -2, 3], abs=1e-2)
    assert (tmp_path / "best.safetensors").is_file()
    assert len(resumed.state.history) == 21
    assert resumed.state.history[:20] == trained.state.history
    problem.splits["train"][0][0][:] = np.nan
    with pytest.raises(TrainingError, match=r"the loss is nan; expected a finite number"):
        train_network(problem, np.zeros(3), options)


def test_a_framework_that_cannot_be_trained_is_refused():
    message = r"found 'onnx'; expected one .* trained: keras, torch"
    with pytest.raises(ingot.UsageError, match=message):
        train_network(problem_of("onnx"), np.zeros(3), TrainerOptions())
