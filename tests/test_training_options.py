"""Optimizers, schedules and the other options of training, one by one."""

from __future__ import annotations

import math

import pytest
from training_specs import write_spec

import ingot

torch = pytest.importorskip("torch")

from ingot.specs import load_spec  # noqa: E402
from ingot.training import fit  # noqa: E402
from ingot.training.options import TrainerOptions  # noqa: E402
from ingot.training.problem import Problem  # noqa: E402
from ingot.training.torch_modeler import TorchModeler  # noqa: E402
from ingot.training.torch_runner import TorchRunner  # noqa: E402

STEPS = 10


def runner_for(tmp_path, code="", epochs=3, **changes):
    """A runner of a spec on ten batches an epoch, that is set up but has not run."""
    data = {
        "splits": "synthetic",
        "kwargs": {"shape": [1, 8, 8], "samples": 4 * STEPS, "batch_size": 4},
    }
    spec = load_spec(write_spec(tmp_path, code, data=data, **changes))
    problem = Problem(spec)
    options = TrainerOptions.from_spec(spec, epochs=epochs)
    modeler = TorchModeler(
        problem.build_network(), problem.forward_pass, problem.loss, problem.evaluation
    )
    runner = TorchRunner(modeler, problem.splits, options, components=problem.components)
    runner.setup()
    return runner


def rates(runner):
    """Run it and return the learning rate of each step."""
    found = []
    step = runner.train_step

    def recorded(batch):
        losses = step(batch)
        found.append(runner.learning_rate)
        return losses

    runner.train_step = recorded
    runner.setup = lambda: None
    runner.evaluate = lambda loader: ingot.training.Evaluation({"accuracy": 1.0})
    runner.run()
    return found


def trainer(scheduler, **more):
    return {"optimizer": {"name": "SGD", "lr": 1.0}, "scheduler": scheduler, **more}


@pytest.mark.parametrize(
    ("scheduler", "wanted"),
    [
        (
            {"name": "piecewise", "boundaries": [1, 2]},
            [1.0] * 10 + [0.1] * 10 + [0.01] * 10,
        ),
        (
            {"name": "piecewise", "boundaries": [1, 2], "decay": [0.5, 0.2]},
            [1.0] * 10 + [0.5] * 10 + [0.1] * 10,
        ),
        (
            {"factory": {"name": "piecewise", "boundaries": [15]}, "interval": "iteration"},
            [1.0] * 15 + [0.1] * 15,
        ),
        (
            {"name": "cosine"},
            [0.5 * (1 + math.cos(math.pi * epoch / 3)) for epoch in range(3) for _ in range(10)],
        ),
        (
            {"factory": {"name": "cosine", "min_lr": 0.2}, "interval": "iteration"},
            [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * step / 30)) for step in range(30)],
        ),
        (
            {"factory": {"name": "plateau", "patience": 0, "factor": 0.5}, "eval_based": True},
            [1.0] * 20 + [0.5] * 10,
        ),
        ({"name": "ExponentialLR", "gamma": 0.5}, [1.0] * 10 + [0.5] * 10 + [0.25] * 10),
        ("net:schedule", [1.0] * 10 + [0.5] * 10 + [1 / 3] * 10),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict | str) else "",
)
def test_schedules(tmp_path, scheduler, wanted):
    code = """

from torch.optim.lr_scheduler import LambdaLR


def schedule(optimizer):
    return LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
"""
    runner = runner_for(tmp_path, code, full_trainer=trainer(scheduler))

    assert rates(runner) == pytest.approx(wanted)


def test_one_cycle_rises_and_falls(tmp_path):
    cycle = {"factory": {"name": "one_cycle", "max_lr": 2.0}, "interval": "iteration"}
    found = rates(runner_for(tmp_path, full_trainer=trainer(cycle)))

    peak = found.index(max(found))
    assert max(found) == pytest.approx(2.0)
    assert found[:peak] == sorted(found[:peak])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert found[-1] < 1e-3


def test_warm_up_is_on_top_of_the_schedule(tmp_path):
    scheduler = {"name": "piecewise", "boundaries": [1]}
    runner = runner_for(tmp_path, full_trainer=trainer(scheduler), training={"warmup_epochs": 1.5})

    wanted = [min(1, step / 15) * (1.0 if step <= 10 else 0.1) for step in range(1, 31)]
    assert rates(runner) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        ({"name": "sgd", "lr": 0.1}, "SGD"),
        ({"name": "momentum", "lr": 0.1}, "SGD"),
        ({"name": "rmsprop"}, "RMSprop"),
        ({"name": "adagrad"}, "Adagrad"),
        ({"name": "adadelta"}, "Adadelta"),
        ({"name": "AdamW"}, "AdamW"),
        (None, "Adam"),
        ("net:make", "ASGD"),
        ({"name": "net:Factory", "rate": 0.3}, "Rprop"),
    ],
)
def test_optimizers(tmp_path, optimizer, kind):
    code = """

import torch


def make(model):
    return torch.optim.ASGD(model.parameters())


class Factory:
    def __init__(self, rate):
        self.rate = rate

    def make(self, native_model):
        return torch.optim.Rprop(native_model.parameters(), self.rate)
"""
    runner = runner_for(tmp_path, code, full_trainer={"optimizer": optimizer})

    assert type(runner.optimizer).__name__ == kind
    if optimizer and "rate" in optimizer:
        assert runner.learning_rate == 0.3


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"optimizer": "Adm"}, "full_trainer.optimizer: found 'Adm'", "did you mean 'Adam'?"),
        (
            {"optimizer": {"name": "SGD", "momentun": 0.9}},
            "SGD cannot be made",
            "did you mean 'momentum'?",
        ),
        (
            {"optimizer": {"name": "SGD", "lr": -1}},
            "SGD cannot be made: Invalid learning rate: -1",
            None,
        ),
        (
            {"scheduler": {"name": "cosin"}},
            "full_trainer.scheduler: found 'cosin'",
            "did you mean 'cosine'?",
        ),
        (
            {"scheduler": {"name": "piecewise", "boundaries": [2, 1]}},
            "piecewise cannot be made",
            None,
        ),
        ({"optimizer": "net:nothing"}, "net has no attribute 'nothing'", None),
    ],
)
def test_what_does_not_exist_is_named(tmp_path, changes, message, hint):
    spec = write_spec(tmp_path, full_trainer={**changes, "epochs": 1})

    with pytest.raises(ingot.SpecError) as caught:
        ingot.train(spec, tmp_path / "run")

    assert message in caught.value.message
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()
    assert caught.value.hint == hint


def test_weight_decay_leaves_out_what_is_named(tmp_path):
    training = {"weight_decay": 0.1, "weight_decay_skip": ["bias", "1."]}
    runner = runner_for(tmp_path, training=training)

    decayed, skipped = runner.optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert skipped["weight_decay"] == 0.0
    assert [tuple(item.shape) for item in decayed["params"]] == [(4, 1, 3, 3), (10, 64)]
    assert len(skipped["params"]) == 4
    with pytest.raises(ingot.SpecError, match="'bies', which is part of no name"):
        runner_for(tmp_path, training={**training, "weight_decay_skip": ["bies"]})


def test_only_what_is_trainable_is_trained(tmp_path):
    runner = runner_for(tmp_path, training={"trainable": "6."})
    before = {name: value.clone() for name, value in runner.modeler.network.named_parameters()}

    rates(runner)

    for name, value in runner.modeler.network.named_parameters():
        assert torch.equal(value, before[name]) == (not name.startswith("6.")), name


def test_the_average_follows_the_weights(tmp_path):
    modeler = runner_for(tmp_path).modeler
    weight = modeler.network[6].weight
    start = weight.detach().clone()
    modeler.start_average()
    with torch.no_grad():
        weight += 1.0

    modeler.update_average(0.9999)

    kept = 2 / 11  # (1 + n) / (10 + n) of the first update
    torch.testing.assert_close(modeler.average["6.weight"], start + 1 - kept)
    with modeler.averaged():
        torch.testing.assert_close(modeler.network[6].weight, start + 1 - kept)
    torch.testing.assert_close(weight, start + 1)


def test_a_loader_without_a_length_trains(tmp_path):
    class Stream:
        def __iter__(self):
            yield from [(torch.ones(2, 4), torch.zeros(2, 1))] * 3

    model = torch.nn.Linear(4, 1)
    config = {"optimizer": {"name": "SGD", "lr": 0.01}, "epochs": 2, "scheduler": "cosine"}
    mse = torch.nn.functional.mse_loss

    done = fit(model, {"train": Stream()}, config, loss=lambda m, b: mse(m(b[0]), b[1]))

    assert done.state.step == 6
    with pytest.raises(ingot.SpecError, match=r"training data has no len\(\)"):
        fit(
            model,
            {"train": Stream()},
            {**config, "scheduler": {"factory": "one_cycle", "interval": "iteration"}},
            loss=lambda m, b: mse(m(b[0]), b[1]),
        )


def test_an_iterator_is_exhausted_after_one_epoch():
    batches = iter([(torch.ones(2, 4), torch.zeros(2, 1))] * 3)
    mse = torch.nn.functional.mse_loss

    with pytest.raises(ingot.InputError, match="gave no batch in epoch 2"):
        fit(
            torch.nn.Linear(4, 1),
            {"train": batches},
            {"epochs": 2},
            loss=lambda m, b: mse(m(b[0]), b[1]),
        )
