"""Training of a ResNet-20 of Keras on CIFAR-sized images, against a bare ``model.fit``.

The same network, data, batch and optimizer; a round is an epoch, and the contenders take turns. The
target is 0.95 of the images per second of ``fit``. Each contender has compiled its step before. It
uses one thread (``OMP_NUM_THREADS``), as two that share busy cores are many times slower.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from measure import Row, print_table, quotient, seconds_of, take_turns

from ingot.frameworks.keras import import_keras
from ingot.specs import ModelSection, ModelSpec
from ingot.training.callbacks import Callback
from ingot.training.data import ArrayInputter
from ingot.training.hardware import set_threads
from ingot.training.keras_modeler import KerasModeler
from ingot.training.keras_runner import KerasRunner
from ingot.training.options import TrainerOptions
from ingot.training.problem import Problem
from ingot.zoo import get_model_by_name

ROUNDS = int(os.environ.get("INGOT_BENCH_ROUNDS", "5"))
SAMPLES, BATCH = 768, 128
TARGET = 1 / 0.95


def arrays() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    images = generator.standard_normal((SAMPLES, 32, 32, 3), np.float32)
    return images, generator.integers(0, 10, SAMPLES)


def bare_training(model: Any, data: tuple[Any, Any]) -> Callable[[], None]:
    keras = import_keras()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, jit_compile=False)
    return lambda: model.fit(*data, batch_size=BATCH, verbose=0) and None


class _Epochs(Callback):
    """Lets a runner that was set up before train one more epoch each time."""

    def before_run(self, runner: Any) -> None:
        runner.setup = lambda: None


def our_training(model: Any, data: tuple[Any, Any]) -> Callable[[], None]:
    problem = Problem(ModelSpec(model=ModelSection("keras"), task="classification"))
    modeler = KerasModeler(model, problem.forward_pass, problem.loss, problem.evaluation)
    optimizer = {"name": "SGD", "learning_rate": 0.01, "momentum": 0.9}
    splits = {"train": ArrayInputter(data, BATCH, shuffle=True)}
    options = TrainerOptions(epochs=1, optimizer=optimizer)
    runner = KerasRunner(modeler, splits, options, [_Epochs()], components=problem.components)

    def epoch() -> None:
        runner.state.epoch = 0
        runner.run()

    return epoch


def main() -> None:
    import_keras()
    set_threads(None, "keras")
    data = arrays()
    rows: list[Row] = []
    for name in ("resnet20", "mobilenet_v2"):
        contenders = {
            key: make(get_model_by_name(name, "cifar10", framework="keras"), data)
            for key, make in {"ours": our_training, "bare": bare_training}.items()
        }
        for contender in contenders.values():
            contender()
        found = take_turns({key: seconds_of(run) for key, run in contenders.items()}, ROUNDS)
        ours, bare = (1e6 * found[key] / SAMPLES for key in ("ours", "bare"))
        rows.append(quotient(f"train {name}", ours, bare, "µs/image", TARGET))
        if os.environ.get("INGOT_BENCH_SHORT"):
            break
    print_table(rows)
    print(f"alternative: model.fit of Keras {import_keras().__version__}, batches of {BATCH}")


if __name__ == "__main__":
    main()
