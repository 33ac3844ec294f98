"""``train``: train the network of a spec, so that it can be killed and gone on with."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SpecError, UsageError
from ..runtime.atomic import replacing
from ..runtime.home import ingot_home
from ..specs import ModelSpec, load_spec
from .signals import on_signals
from .train_external import refuse_ignored, train_outside
from .train_result import BEST, MODEL, RESULT, WEIGHTS, TrainResult

if TYPE_CHECKING:
    from ..training.callbacks import Callback
    from ..training.device import Device
    from ..training.distributed import Workers
    from ..training.options import TrainerOptions
    from ..training.progress import TrainProgress
    from ..training.runner import Runner
    from ..training.train import Trained


def train(
    spec: str | Path | ModelSpec,
    output: str | Path | None = None,
    *,
    epochs: int | None = None,
    resume: bool = False,
    fresh: bool = False,
    device: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    overrides: Sequence[str] = (),
    strict: bool = False,
    devices: int = 1,
    progress: Callable[[TrainProgress], None] | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train the network of a spec, from initial weights or ``training.pretrained``.

    Args:
        spec: a spec file, or a spec. ``model.weights`` is not read.
        output: the run's folder; ``training.model_dir`` by default, else one in ``INGOT_HOME``.
        epochs: in place of ``full_trainer.epochs``.
        resume: go on from the newest checkpoint of the folder, if there is one.
        fresh: remove what an earlier run left in the folder.
        device: ``CPU`` or ``GPU``; a GPU where there is one by default.
        seed: of everything that is random.
        threads: threads of one operator.
        overrides: ``key.path=value`` changes of the spec.
        strict: refuse a GPU that is not there, in place of a warning.
        devices: how many a network of Keras trains on, here and in this process; one of PyTorch
            trains in several processes instead.
        progress: called with a ``TrainProgress`` now and then.
        callbacks: called after those that the spec names.

    Raises:
        SpecError: the spec is invalid.
        UsageError: the folder holds another run, and neither ``resume`` nor ``fresh`` is given.
        TrainingError: the loss is NaN or infinite.
        TrainingInterrupted: SIGINT or SIGTERM; a checkpoint was written.
    """
    from ..training.distributed import wait_for_all
    from ..training.hardware import choose_device, set_threads
    from ..training.options import TrainerOptions
    from ..training.problem import Problem
    from ..training.train import train_network

    if resume and fresh:
        raise UsageError("found both --resume and --fresh; expected one of them")
    loaded = _load(spec, overrides)
    framework = loaded.model.framework
    chosen = choose_device(device, strict, framework)
    set_threads(threads, framework)
    options = TrainerOptions.from_spec(loaded, epochs=epochs, device=chosen, seed=seed)
    folder = run_folder(loaded, output, seed)
    workers = _workers(framework)
    # Nor is what an earlier run kept beside its weights, such as a vocabulary.
    problem = Problem(replace(loaded, model=replace(loaded.model, weights=None)), chosen, seed)
    if loaded.external_training_loop is not None:
        if framework != "torch":
            raise SpecError(
                f"external_training_loop: found a network of {framework}; expected one of torch",
                file=loaded.path,
                key="external_training_loop",
            )
        if workers.count > 1:
            raise UsageError("external_training_loop: trains in one process only")
        refuse_ignored(problem, resume)
    if workers.is_first:
        prepare_folder(folder, resume, fresh)
    with (
        _nothing_left_empty(folder),
        _on_devices(framework, workers, chosen, devices),
        _stop_on_signals() as watch,
    ):
        wait_for_all(workers)
        network = problem.build_network()
        if loaded.external_training_loop is not None:
            return train_outside(problem, network, options, folder, resume=resume)
        trained = train_network(
            problem,
            network,
            options,
            folder=folder,
            resume=resume,
            report=progress if workers.is_first else None,
            watch=watch,
            workers=workers,
            extra_callbacks=callbacks,
        )
        result = _finish(trained, options, loaded.name, folder, workers)
        wait_for_all(workers)
    if workers.is_first:
        # Outside of the context, in which all processes would have to make the network together.
        model = trained.modeler.write_model(result.weights, folder)
        if model is not None:
            result = replace(result, model=model)
            result.write()
    return result


def _workers(framework: str) -> Workers:
    """Return the place of this process: what torchrun says, or for Keras ``TF_CONFIG``.

    Raises:
        UsageError: it is one of torchrun, which does not start networks of Keras.
    """
    from ..training.distributed import Workers

    workers = Workers.from_environment()
    if framework != "keras":
        return workers
    if workers.count > 1:
        raise UsageError(
            "found a process of torchrun, and a network of Keras; expected one process, or those of"
            " TF_CONFIG",
            hint="ingot train SPEC --nproc N",
        )
    from ..training.keras_devices import workers_of_tensorflow

    return workers_of_tensorflow()


@contextmanager
def _on_devices(framework: str, workers: Workers, device: Device, count: int) -> Iterator[None]:
    """Let the workers of PyTorch find each other, or Keras use several devices.

    Raises:
        UsageError: networks of the framework are not trained on several devices in this way.
    """
    if framework == "keras":
        from ..training.keras_devices import on_devices

        with on_devices(device, count, workers):
            yield
        return
    from ..training.distributed import joined

    if count > 1:
        raise UsageError(
            f"devices: found {count}; {framework} networks are trained in one process a device",
            hint="ingot train SPEC --nproc N",
        )
    with joined(workers, device):
        yield


def _finish(
    trained: Trained, options: TrainerOptions, name: str, folder: Path, workers: Workers
) -> TrainResult:
    """Write the weights and the result; only the first of several workers does."""
    state = trained.state
    weights = folder / WEIGHTS
    entry: Mapping[str, Any] = state.history[-1] if state.history else {}
    takes_best = options.early_stopping_patience is not None and bool(state.best_epoch)
    if takes_best:
        entry = next(item for item in state.history if item["epoch"] == state.best_epoch)
    result = TrainResult(
        name,
        folder,
        weights,
        entry.get("metrics", {}),
        trained.eval_key,
        {"value": state.best, "epoch": state.best_epoch} if state.history else {},
        state.epoch,
        state.step,
        state.stop_reason,
        state.seconds,
        options.seed,
        str(options.device),
        state.history,
        rank=workers.rank,
    )
    if workers.is_first:
        if takes_best:
            _copy(folder / BEST, weights)
        else:
            trained.modeler.write_weights(weights)
        result.write()
    return result


def _load(spec: str | Path | ModelSpec, overrides: Sequence[str]) -> ModelSpec:
    if isinstance(spec, ModelSpec):
        return spec
    # The weights that the spec names may be what this run is to make.
    loaded = load_spec(spec, overrides, check_files=False)
    pretrained = None if loaded.training is None else loaded.training.pretrained
    if pretrained is not None and not pretrained.is_file():
        raise SpecError(f"{pretrained}: no such file", file=loaded.path, key="training.pretrained")
    return loaded


def run_folder(spec: ModelSpec, output: str | Path | None, seed: int) -> Path:
    """Return where a run lies: ``output``, ``training.model_dir``, or a folder in INGOT_HOME.

    The last is named by the spec and the seed, so that the same command finds its run again.
    """
    if output is not None:
        return Path(output).expanduser()
    if spec.training is not None and spec.training.model_dir is not None:
        return spec.training.model_dir
    home = ingot_home()
    values = {name: value for name, value in spec.to_dict().items() if name != "tune"}
    text = json.dumps([values, str(spec.root), seed], sort_keys=True, default=str)
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    return home / "runs" / f"train-{spec.name}-{key}"


def prepare_folder(folder: Path, resume: bool, fresh: bool) -> None:
    """Make the folder of a run, and remove an earlier one when asked to.

    Raises:
        UsageError: it holds an earlier run, and neither is given; or it cannot be made.
    """
    from ..training.checkpoints import checkpoints_in

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: found a file; expected a folder")
    if not folder.parent.is_dir() and "runs" not in folder.parts:
        raise UsageError(f"{folder}: its folder does not exist")
    leftovers = [
        *checkpoints_in(folder),
        folder / WEIGHTS,
        folder / BEST,
        folder / RESULT,
        folder / MODEL,
    ]
    leftovers = [path for path in leftovers if path.is_file()]
    if leftovers and not (resume or fresh):
        raise UsageError(
            f"{folder}: holds an earlier run ({leftovers[0].name}); expected --resume or --fresh",
            hint="--resume goes on from its newest checkpoint, --fresh removes it",
        )
    if fresh:
        for path in leftovers:
            path.unlink()
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _nothing_left_empty(folder: Path) -> Iterator[None]:
    """Remove the folder of a run that failed before it wrote anything."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            folder.rmdir()  # only where it is empty
        raise


@contextmanager
def _stop_on_signals() -> Iterator[Callable[[Runner], None]]:
    """Let the first SIGINT or SIGTERM end the run after its present step; a second one, at once."""
    runners: list[Runner] = []

    def stop() -> bool:
        if not runners or runners[0].stop_requested:
            return False
        runners[0].stop_requested = True
        return True

    with on_signals(stop):
        yield runners.append


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
