"""Optimizers, schedules and the other options of training, one by one."""

from __future__ import annotations

import json
import math

import pytest
from training_specs import same_weights, write_spec

import ingot

torch = pytest.importorskip("torch")
load_file = pytest.importorskip("safetensors.torch").load_file

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


LOOP = """


class Loop:
    def train(self, model, epochs, validation, finetuning):
        return model


class Taking:
    def train(self, model, epochs, validation, finetuning, *, data, optimizer, loss, resume,
              folder, seed):
        assert optimizer.param_groups[0]["weight_decay"] == 0.1
        assert folder.is_dir() and seed == 3
        if resume:
            nn.init.zeros_(model[6].weight)
            return model
        for _ in range(epochs):
            for batch in data["train"]:
                optimizer.zero_grad()
                loss(model, batch).backward()
                optimizer.step()
        return model
"""


@pytest.mark.parametrize(
    "changes",
    [
        {"full_trainer.optimizer": "SGD"},
        {"full_trainer.ema": True},
        {"full_trainer.early_stopping_patience": 2},
        {"full_trainer.scheduler": "cosine", "training.precision": "bf16"},
        {"training.callbacks": ["train_summary"], "training.weight_decay": 0.1},
        {"training.augmenter": "cifar", "training.trainable": ["6."]},
    ],
)
def test_what_an_external_loop_cannot_honour_is_named(tmp_path, changes):
    spec = write_spec(tmp_path, LOOP, external_training_loop="net:Loop", full_trainer=None)
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]

    with pytest.raises(ingot.SpecError) as caught:
        ingot.train(spec, tmp_path / "run", overrides=overrides)

    assert f"found {', '.join(changes)}, which it does not get" in caught.value.message
    assert not (tmp_path / "run").exists()


def test_what_an_external_loop_can_honour_it_gets(tmp_path):
    plain = write_spec(tmp_path, LOOP, external_training_loop="net:Loop", full_trainer=None)
    trainer = {"optimizer": {"name": "SGD", "lr": 0.1}, "epochs": 2}
    first = ingot.train(plain, tmp_path / "first", seed=3)
    with pytest.raises(ingot.UsageError, match=r"--resume: .* no parameter 'resume'"):
        ingot.train(plain, tmp_path / "first", resume=True)
    same = ingot.train(
        plain, tmp_path / "same", seed=4, overrides=[f"training.pretrained={first.weights}"]
    )
    changes = {"training": {"weight_decay": 0.1, "pretrained": str(first.weights)}}
    changes |= {"external_training_loop": "net:Taking", "full_trainer": trainer}
    spec = write_spec(tmp_path, LOOP, **changes)

    tuned = ingot.train(spec, tmp_path / "run", seed=3)
    gone_on = ingot.train(spec, tmp_path / "run", seed=3, resume=True)

    assert same_weights(first.weights, same.weights)
    assert tuned.metrics["accuracy"] > 60
    assert not load_file(gone_on.weights)["6.weight"].any()
    with pytest.raises(ingot.SpecError, match="'net:build': found a function without train"):
        ingot.train(plain, tmp_path / "no", overrides=["external_training_loop=net:build"])


SCORES = """

values = iter([0, 10, 50, 40, 30, 20, 10])


def evaluate(model, loader):
    return {"score": next(values)}
"""
"""An evaluation whose first value is that of the trial before the first epoch."""


def test_callbacks_that_are_options_do_the_same(tmp_path):
    callbacks = [{"name": "early_stopping", "patience": 2}, {"name": "ema", "decay_rate": 0.9}]
    options = {"early_stopping_patience": 2, "ema": {"decay_rate": 0.9}}
    evaluation = {"function": "net:evaluate", "eval_key": "score"}
    found = []
    for name, training, more in (("a", {"callbacks": callbacks}, {}), ("b", None, options)):
        trainer = {"optimizer": "SGD", "epochs": 6, **more}
        changes = {"training": training, "full_trainer": trainer, "evaluation": evaluation}
        spec = write_spec(tmp_path, SCORES, **changes)
        found.append(ingot.train(spec, tmp_path / name))

    assert [result.stop_reason for result in found] == [
        "no improvement of score in 2 evaluations"
    ] * 2
    assert [result.epochs for result in found] == [4, 4]
    assert [result.metrics for result in found] == [{"score": 50}] * 2
    assert same_weights(found[0].weights, found[1].weights)
    assert same_weights(found[0].weights, tmp_path / "a" / "best.safetensors")


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        ({"name": "early_stopping", "patiense": 3}, "'patiense'; it takes patience"),
        ({"name": "early_stopping", "patience": 0}, "found 0; expected an integer, 1 or more"),
        ({"name": "early_stopping", "patience": 3}, "found 3 beside 2, which is set already"),
        ({"name": "ema", "decay_rate": 2}, "found 2; expected a number, 0..1"),
    ],
)
def test_callbacks_that_are_options_are_checked(tmp_path, callback, message):
    trainer = {"epochs": 1, "early_stopping_patience": 2}
    spec = write_spec(tmp_path, full_trainer=trainer, training={"callbacks": [callback]})

    with pytest.raises(ingot.SpecError) as caught:
        ingot.train(spec, tmp_path / "run")

    assert message in caught.value.message


@pytest.mark.parametrize(
    ("returned", "key", "message", "tries"),
    [
        ("{'acc': 1.0, 'loss': 2}", "accuracy", "does not return; it returns acc, loss", 2),
        ("0.5", "acc", "returned a float; expected a dict of metrics", 1),
        ("{'acc': 1 / 0}", "acc", "the evaluation raised ZeroDivisionError", 2),
    ],
)
def test_an_evaluation_is_tried_before_the_first_epoch(tmp_path, returned, key, message, tries):
    code = f"""

seen = []


def loss(model, batch):
    raise AssertionError("an epoch was begun")


def evaluate(model, loader):
    from pathlib import Path

    batches = sum(1 for _ in loader)
    with (Path(__file__).parent / "tries").open("a") as file:
        file.write(f"{{batches}} ")
    return {returned}
"""
    evaluation = {"function": "net:evaluate", "eval_key": key}
    data = {"splits": "digits", "kwargs": {"batch_size": 64}}
    spec = write_spec(tmp_path, code, evaluation=evaluation, loss="net:loss", data=data)

    kind = ingot.SpecError if key == "accuracy" else ingot.ModelError
    with pytest.raises(kind) as caught:
        ingot.train(spec, tmp_path / "run")

    assert message in caught.value.message
    if kind is ingot.SpecError:
        assert caught.value.message.startswith(f"{spec}: evaluation.eval_key: found 'accuracy'")
    assert (tmp_path / "tries").read_text().split() == ["2", "6"][:tries]
    assert not (tmp_path / "run").exists()


def test_an_evaluation_that_needs_the_whole_split_is_not_refused(tmp_path):
    code = """

def evaluate(model, loader):
    seen = {int(label) for _, labels in loader for label in labels}
    return {f"class{label}": 1.0 for label in seen} | ({} if len(seen) == 10 else {"few": 1})
"""
    evaluation = {"function": "net:evaluate", "eval_key": "class9"}
    data = {"splits": "digits", "kwargs": {"batch_size": 2}}
    spec = write_spec(tmp_path, code, evaluation=evaluation, data=data)

    assert ingot.train(spec, tmp_path / "run", epochs=1).eval_key == "class9"
