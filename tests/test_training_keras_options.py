"""The options of training with Keras: optimizers, schedules, weight decay, what is trained."""

from __future__ import annotations

import json

import numpy as np
import pytest
from training_keras_specs import arrays_of, same_weights, write_spec

import ingot

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")

LOW_RATE = {"optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9}, "epochs": 4}


@pytest.mark.parametrize(
    "name", ["adadelta", "adagrad", "adam", "ftrl", "momentum", "rmsprop", "sgd"]
)
def test_every_optimizer_changes_the_weights(tmp_path, name):
    trainer = {"optimizer": {"name": name, "lr": 0.01}, "epochs": 1}
    done = ingot.train(write_spec(tmp_path, full_trainer=trainer), tmp_path / "run")
    assert done.history[0]["learning_rate"] == 0.01
    assert np.isfinite(done.history[0]["loss"])


def test_an_integer_is_a_learning_rate_and_a_negative_number_is_none(tmp_path):
    trainer = {"optimizer": {"name": "sgd", "lr": 1}, "epochs": 1}
    done = ingot.train(write_spec(tmp_path, full_trainer=trainer), tmp_path / "run")
    assert done.history[0]["learning_rate"] == 1.0
    trainer = {"optimizer": {"name": "adam", "lr": -0.1}, "epochs": 1}
    message = r"full_trainer\.optimizer\.lr: found -0\.1; expected a number from 0"
    with pytest.raises(ingot.SpecError, match=message):
        ingot.train(write_spec(tmp_path, full_trainer=trainer), tmp_path / "other")


WATCH = """

from ingot import Callback


class Rates(Callback):
    def before_run(self, runner):
        self.rates = []

    def after_step(self, runner):
        self.rates.append(round(runner.learning_rate, 6))
        assert abs(float(runner.optimizer.learning_rate) - runner.learning_rate) < 1e-6

    def after_run(self, runner):
        with open("RATES", "w") as file:
            file.write(str(self.rates))
"""


@pytest.mark.parametrize(
    ("scheduler", "training", "expected"),
    [
        ({"name": "piecewise", "boundaries": [1, 2], "decay": [0.5, 0.1]}, {}, [1, 0.5, 0.05]),
        ({"name": "cosine", "min_lr": 0.2}, {}, [1, 0.8, 0.4]),
        ({"name": "ExponentialDecay", "decay_steps": 1, "decay_rate": 0.5}, {}, [1, 0.5, 0.25]),
        (None, {"warmup_epochs": 2.0}, [1 / 2, 1, 1]),
    ],
    ids=["piecewise", "cosine", "of keras", "warm-up"],
)
def test_schedules(tmp_path, scheduler, training, expected):
    code = WATCH.replace("RATES", str(tmp_path / "rates"))
    trainer = {"optimizer": {"name": "sgd", "lr": 1.0}, "epochs": 3}
    if scheduler is not None:
        trainer["scheduler"] = scheduler
    callbacks = {"callbacks": ["net:Rates"], **training}
    ingot.train(
        write_spec(tmp_path, code, full_trainer=trainer, training=callbacks), tmp_path / "run"
    )

    rates = json.loads((tmp_path / "rates").read_text())
    assert rates[11::12] == pytest.approx(expected, abs=1e-5)


def test_the_plateau_lowers_the_rate(tmp_path):
    code = "\n\ndef constant(model, loader):\n    return {'score': 1.0}\n"
    spec = write_spec(
        tmp_path,
        code,
        evaluation={"function": "net:constant", "eval_key": "score"},
        full_trainer={
            "optimizer": {"name": "sgd", "lr": 0.1},
            "scheduler": {
                "factory": {"name": "plateau", "patience": 1, "factor": 0.5},
                "eval_based": True,
            },
            "epochs": 5,
        },
    )
    done = ingot.train(spec, tmp_path / "run")
    rates = [entry["learning_rate"] for entry in done.history]
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05])


def test_weight_decay_shrinks_what_it_does_not_skip(tmp_path):
    zero = "\n\ndef zero(model, batch):\n    return 0.0 * keras.ops.sum(model(batch[0]))\n"
    trainer = {"optimizer": {"name": "sgd", "lr": 0.1}, "epochs": 1}
    training = {"weight_decay": 0.1, "weight_decay_skip": ["bn", "bias"]}
    spec = write_spec(tmp_path, zero, loss="net:zero", full_trainer=trainer, training=training)
    start = arrays_of(ingot.train(spec, tmp_path / "start", epochs=0).weights)
    end = arrays_of(ingot.train(spec, tmp_path / "run").weights)
    adamw = ["full_trainer.optimizer.name=AdamW"]
    decoupled = arrays_of(ingot.train(spec, tmp_path / "adamw", overrides=adamw).weights)

    for found in (end, decoupled):
        np.testing.assert_allclose(found["head/kernel"], start["head/kernel"] * 0.99**12, 1e-4)
        np.testing.assert_array_equal(found["bn/gamma"], start["bn/gamma"])


def test_pretrained_weights_and_a_trained_head(tmp_path):
    (tmp_path / "base").mkdir()
    base = ingot.train(write_spec(tmp_path / "base"), tmp_path / "base" / "run", epochs=1)
    training = {"pretrained_skip": "head", "trainable": ["head"]}
    spec = write_spec(tmp_path, training={**training, "pretrained": str(base.weights)})
    done = ingot.train(spec, tmp_path / "run", epochs=1)
    file = ingot.train(
        spec, tmp_path / "file", epochs=1, overrides=[f"training.pretrained={base.model}"]
    )

    before, after = arrays_of(base.weights), arrays_of(done.weights)
    assert same_weights(done.weights, file.weights)
    for name in ("conv/kernel", "bn/gamma", "bn/moving_mean"):
        np.testing.assert_array_equal(before[name], after[name])
    assert not np.array_equal(before["head/kernel"], after["head/kernel"])
    # Layers are frozen for this run only.
    assert all(layer.trainable for layer in keras.saving.load_model(done.model).layers)
    with pytest.raises(ingot.SpecError, match=r"training.trainable: found 'tail', which is part"):
        ingot.train(spec, tmp_path / "no", overrides=["training.trainable=[tail]"])


def test_bf16_trains_and_ships_as_float32(tmp_path):
    spec = write_spec(tmp_path, full_trainer=LOW_RATE, training={"precision": "bf16"})
    done = ingot.train(spec, tmp_path / "run", epochs=3)
    assert done.metrics["accuracy"] > 70
    assert {array.dtype.name for array in arrays_of(done.weights).values()} == {"float32"}
    layers = keras.saving.load_model(done.model).layers
    assert {layer.dtype_policy.name for layer in layers} == {"float32"}
