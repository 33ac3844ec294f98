"""The spec of an application of the suite, put together from what its parts say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..frameworks.base import import_framework
from ..specs import ModelSpec
from ..specs.hints import did_you_mean

if TYPE_CHECKING:
    from ..training.problem import Problem
    from .demos_parts import Callback, Inputter, Modeler

_FRAMEWORKS = ("torch", "keras")
_OPTIMIZERS = ("adadelta", "adagrad", "adam", "momentum", "rmsprop", "sgd")
"""Those of the suite that both have; nothing needs to be imported to know them."""


def make_spec(
    inputter: Inputter,
    modeler: Modeler | None,
    callbacks: Sequence[Callback],
    weights: Path | None = None,
) -> ModelSpec:
    """Return the spec of an application.

    Args:
        inputter: the data.
        modeler: the network; None where nobody builds one.
        callbacks: what is done around the steps.
        weights: of the network, where it is trained.
    """
    config = inputter.config
    values = inputter.sections()
    framework = "torch" if modeler is None else modeler.config.framework
    shape = [config.image_height, config.image_width]
    depth = config.image_depth
    shape = [depth, *shape] if framework == "torch" else [*shape, depth]
    training = values["training"]
    trainer: dict[str, Any] = {"epochs": config.epochs}
    model = {"framework": "torch", "entrypoint": "ingot.zoo:get_model_by_name"}
    if modeler is not None:
        found = modeler.sections()
        model, training = found["model"], {**training, **found["training"]}
        trainer = {**trainer, **found["full_trainer"]}
    if weights is not None:
        model = {**model, "weights": str(weights)}
    components = [made for callback in callbacks if (made := callback.component()) is not None]
    if components:
        training["callbacks"] = components
    if callbacks:
        training |= _of_callbacks(callbacks[0].config)
    return ModelSpec.from_dict(
        {
            "name": "image_classification",
            "model": model,
            "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", *shape]}],
            "outputs": [
                {"name": "logits", "dtype": "float32", "shape": ["batch", config.num_classes]}
            ],
            "task": "classification",
            **values,
            "training": training,
            "full_trainer": trainer,
        },
        check_files=False,
    )


def _of_callbacks(config: Any) -> dict[str, Any]:
    """Return what a ``CallbackConfig`` says in the section ``training``."""
    found: dict[str, Any] = {
        "log_frequency": config.log_every_n_iter,
        "summary_frequency": config.save_summary_steps,
        "keep_checkpoints": config.keep_checkpoint_max,
    }
    if config.save_checkpoints_steps is not None:
        found["checkpoint_frequency"] = config.save_checkpoints_steps
    if config.model_dir is not None:
        found["model_dir"] = str(Path(config.model_dir).expanduser())
    if config.pretrained_dir:
        path = Path(config.pretrained_dir).expanduser()
        found["pretrained"] = str(path / "weights.safetensors" if path.is_dir() else path)
    if listed(config.skip_pretrained_var):
        found["pretrained_skip"] = listed(config.skip_pretrained_var)
    return found


def require_optimizer(name: Any, framework: Any) -> None:
    """Check the names of an optimizer and of the framework that it is for.

    Raises:
        UsageError: there is no such optimizer, or no such framework.
        MissingDependencyError: the framework is needed to tell, and is not installed.
    """
    if framework not in _FRAMEWORKS:
        raise UsageError(
            f"framework: found {framework!r}; expected {' or '.join(_FRAMEWORKS)}",
            hint=did_you_mean(str(framework), _FRAMEWORKS),
        )
    if not isinstance(name, str):
        raise UsageError(f"optimizer: found {name!r}; expected its name")
    if ":" in name or name.lower() in _OPTIMIZERS:
        return
    if framework == "keras":
        from ..training.keras_optim import optimizer_class
    else:
        import_framework("torch", "torch")
        from ..training.torch_optim import optimizer_class
    optimizer_class(name, "optimizer")


def problem_of(spec: ModelSpec) -> Problem:
    """Return the parts that a spec names, on the CPU or the GPU that is there."""
    from ..training.hardware import choose_device
    from ..training.problem import Problem

    return Problem(spec, choose_device(None, framework=spec.model.framework))


def listed(value: Any) -> list[Any]:
    """Return a list of what is one, or is text with commas between."""
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, Sequence) else [value]
