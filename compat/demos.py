"""Lambda's deep-learning demo suite under its own names: configurations, ``build`` and ``run``.

``import_module("source.inputter.image_classification_csv_inputter")`` becomes
``import_module("ingot.compat.demos.inputter.image_classification_csv_inputter")``, and so on, after
``from ingot.compat.demos import InputterConfig, ...``. ``docs/migrating-from-demos.md`` says what
differs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from ..errors import UsageError
from ..specs.hints import did_you_mean
from .demos_parts import AUGMENTERS, CALLBACKS, INPUTTERS, NETWORKS
from .demos_parts import Augmenter as _Augmenter
from .demos_parts import Callback as _Callback
from .demos_parts import Inputter as _Inputter
from .demos_parts import Modeler as _Modeler
from .demos_parts import Network as _Network
from .demos_runner import Runner as _Runner
from .demos_spec import require_optimizer

__all__ = [
    "CallbackConfig",
    "Config",
    "ImageClassificationCallbackConfig",
    "ImageClassificationInputterConfig",
    "ImageClassificationModelerConfig",
    "InputterConfig",
    "ModelerConfig",
    "RunnerConfig",
    "build",
]

MODES = ("train", "eval", "infer")


@dataclass
class Config:
    """What all configurations have.

    Attributes:
        mode: ``train``, ``eval`` or ``infer``.
        batch_size_per_gpu: samples a batch and device.
        gpu_count: devices; one process takes the batches of all of them.
    """

    mode: str = "train"
    batch_size_per_gpu: int = 10
    gpu_count: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            elsewhere = {"tune": "ingot tune SPEC", "export": "ingot export SPEC"}
            raise UsageError(
                f"mode: found {self.mode!r}; expected one of {', '.join(MODES)}",
                hint=elsewhere.get(self.mode) or did_you_mean(self.mode, MODES),
            )
        for name in ("batch_size_per_gpu", "gpu_count"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name}: found {value!r}; expected an integer from 1")


@dataclass
class InputterConfig(Config):
    """The data.

    Attributes:
        epochs: passes over it.
        dataset_meta: a CSV of paths and labels, or several with commas between.
        test_samples: files to predict: a list, or text with commas between.
        augmenter_speed_mode: leave out changes of brightness and contrast.
        shuffle_buffer_size: has no effect: all samples are shuffled.
    """

    epochs: int = 1
    dataset_meta: str | None = None
    test_samples: Sequence[str] | str | None = None
    augmenter_speed_mode: bool = False
    shuffle_buffer_size: int = 256


@dataclass
class ModelerConfig(Config):
    """The network's training.

    Attributes:
        optimizer: its name: ``momentum``, ``adam``, ``sgd`` ...
        learning_rate: at the start.
        trainable_vars: parts of names of what is trained, with commas between; all by default.
        skip_trainable_vars: has no counterpart, and is refused.
        piecewise_boundaries: epochs at which the learning rate changes, with commas between.
        piecewise_lr_decay: its share of the first one in each part: one more than boundaries.
        skip_l2_loss_vars: parts of names that get no weight decay, with commas between.
        l2_weight_decay: L2 penalty.
        framework: ``torch``, or ``keras``.
    """

    optimizer: str = "momentum"
    learning_rate: float = 0.1
    trainable_vars: Sequence[str] | str | None = None
    skip_trainable_vars: Sequence[str] | str | None = None
    piecewise_boundaries: Sequence[int] | str | None = None
    piecewise_lr_decay: Sequence[float] | str | None = None
    skip_l2_loss_vars: Sequence[str] | str | None = None
    l2_weight_decay: float = 0.0002
    framework: str = "torch"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_optimizer(self.optimizer, self.framework)


@dataclass
class CallbackConfig(Config):
    """Checkpoints, summaries and lines.

    Attributes:
        model_dir: the folder of the run.
        log_every_n_iter: steps from one line to the next.
        save_summary_steps: steps from one summary to the next.
        pretrained_dir: weights to start from: safetensors, or the folder of a run.
        skip_pretrained_var: parts of names that are not restored, with commas between.
        save_checkpoints_steps: steps between checkpoints; one at the end of each epoch by default.
        keep_checkpoint_max: how many are kept.
    """

    model_dir: str | None = None
    log_every_n_iter: int = 10
    save_summary_steps: int = 100
    pretrained_dir: str | None = None
    skip_pretrained_var: Sequence[str] | str | None = None
    save_checkpoints_steps: int | None = None
    keep_checkpoint_max: int = 5


@dataclass
class RunnerConfig(Config):
    """The run.

    Attributes:
        summary_names: has no effect: a summary holds everything that is recorded.
    """

    summary_names: Sequence[str] | str | None = None


class ImageClassificationInputterConfig(InputterConfig):
    """An :class:`InputterConfig` with what images need.

    Args:
        default_inputter_config: taken over.
        image_height: that images are scaled to.
        image_width: likewise.
        image_depth: 3 for RGB, 1 for grey.
        num_classes: labels are integers from 0 below this.
    """

    def __init__(
        self,
        default_inputter_config: InputterConfig,
        image_height: int = 32,
        image_width: int = 32,
        image_depth: int = 3,
        num_classes: int = 10,
    ) -> None:
        vars(self).update(vars(default_inputter_config))
        self.image_height, self.image_width = image_height, image_width
        self.image_depth, self.num_classes = image_depth, num_classes


class ImageClassificationModelerConfig(ModelerConfig):
    """A :class:`ModelerConfig` with the number of classes.

    Args:
        default_modeler_config: taken over.
        num_classes: of the network.
        data_format: has no effect: the framework has its own.
    """

    def __init__(
        self,
        default_modeler_config: ModelerConfig,
        num_classes: int = 10,
        data_format: str = "channels_first",
    ) -> None:
        vars(self).update(vars(default_modeler_config))
        self.num_classes, self.data_format = num_classes, data_format


class ImageClassificationCallbackConfig(CallbackConfig):
    """A :class:`CallbackConfig`.

    Args:
        default_callback_config: taken over.
    """

    def __init__(self, default_callback_config: CallbackConfig) -> None:
        vars(self).update(vars(default_callback_config))


_PARTS: dict[str, tuple[Any, Sequence[str]]] = {
    "callback": (_Callback, CALLBACKS),
    "inputter": (_Inputter, INPUTTERS),
    "modeler": (_Modeler, ("image_classification_modeler",)),
    "runner": (_Runner, ("parameter_server_runner",)),
}


def build(kind: str, name: str, *arguments: Any, **options: Any) -> Any:
    """Build a part of an application.

    Args:
        kind: ``inputter``, ``modeler``, ``callback`` or ``runner``.
        name: that of a module of the suite, or ``module:attribute`` of your own, which is what a
            spec would name; there is no runner of your own.
        arguments: what ``build`` of the suite's module takes: the configuration, then its parts.
        options: of a part of your own: its keyword arguments.

    Raises:
        UsageError: there is no such part, or it does not take the arguments.
    """
    if kind not in _PARTS:
        raise UsageError(
            f"build: found {kind!r}; expected one of {', '.join(_PARTS)}",
            hint=did_you_mean(kind, _PARTS),
        )
    part, known = _PARTS[kind]
    if name not in known and (":" not in name or kind == "runner"):
        raise UsageError(
            f"{kind}: found {name!r}; expected module:attribute, or one of {', '.join(known)}",
            hint=did_you_mean(name, known),
        )
    if options and ":" not in name:
        raise UsageError(f"{kind}: {name!r} takes no options; found {', '.join(options)}")
    return part(name, *arguments, **({"options": options} if options else {}))


def _add_modules() -> None:
    """Make ``demos.inputter.image_classification_csv_inputter`` and the others importable."""
    contents: dict[str, dict[str, dict[str, Any]]] = {
        kind: {name: {"build": partial(build, kind, name)} for name in names}
        for kind, (_, names) in _PARTS.items()
    }
    contents["augmenter"] = {name: {"augmenter": _Augmenter(name)} for name in AUGMENTERS}
    contents["network"] = {name: {"net": _Network(name)} for name in NETWORKS}
    for kind, modules in contents.items():
        folder = ModuleType(f"{__name__}.{kind}", f"The suite's ``source.{kind}``.")
        folder.__path__ = []
        sys.modules[folder.__name__] = folder
        globals()[kind] = folder
        for name, values in modules.items():
            module = ModuleType(f"{folder.__name__}.{name}", f"The suite's ``{kind}.{name}``.")
            vars(module).update(values)
            sys.modules[module.__name__] = module
            setattr(folder, name, module)
    names = {f"{__name__}.{kind}": tuple(modules) for kind, modules in contents.items()}
    sys.meta_path[:] = [it for it in sys.meta_path if type(it).__name__ != _Misspelt.__name__]
    sys.meta_path.append(_Misspelt({__name__: tuple(contents), **names}))


@dataclass(frozen=True)
class _Misspelt:
    """What the import system asks last, for a module that is not there: says which ones are.

    Attributes:
        modules: names by folder.
    """

    modules: Mapping[str, Sequence[str]]

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Find nothing.

        Raises:
            ModuleNotFoundError: the module is meant to be one of the suite.
        """
        folder, _, name = fullname.rpartition(".")
        known = self.modules.get(folder)
        if known is None or name.startswith("_"):
            return
        meant = did_you_mean(name, known)
        raise ModuleNotFoundError(
            f"{folder} has no module {name!r}; expected one of {', '.join(known)}"
            f"{'' if meant is None else f' ({meant})'}",
            name=fullname,
        )


__path__: list[str] = []  # a package to the import system: its modules are made here
_add_modules()
