"""The parts of an application of the suite: each says what it is in a spec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..specs import ModelSpec
from ..specs.tune import decay_factors
from .demos_spec import listed, make_spec, problem_of

if TYPE_CHECKING:
    from ..training.problem import Problem

AUGMENTERS = ("cifar_augmenter",)
CALLBACKS = (
    "eval_accuracy",
    "eval_basic",
    "eval_loss",
    "eval_speed",
    "eval_summary",
    "infer_basic",
    "infer_display_image_classification",
    "train_accuracy",
    "train_basic",
    "train_loss",
    "train_speed",
    "train_summary",
)
INPUTTERS = ("image_classification_csv_inputter", "image_classification_syn_inputter")
NETWORKS = ("resnet32",)

_NORMS = ("BatchNorm", "preact", "postnorm")
_NORMS_OF = {"torch": ("bn.", ".b1.", ".b2."), "keras": ("bn", "b1", "b2")}
"""What the suite's names of normalisation layers are in the networks of the zoo."""
_BRIGHTNESS, _CONTRAST = 63, [0.2, 1.8]
"""Of the suite's augmentation of CIFAR."""
_SYNTHETIC_BATCHES = 100


@dataclass(frozen=True)
class Network:
    """A network of the zoo: what ``net`` of a module of the suite is.

    Attributes:
        name: in the zoo.
    """

    name: str

    def model(self, framework: str, num_classes: int) -> dict[str, Any]:
        """Return the section ``model`` of a spec."""
        kwargs: dict[str, Any] = {"model_name": self.name, "dataset_name": "cifar10"}
        kwargs["num_classes"] = num_classes
        if framework != "torch":
            kwargs["framework"] = framework
        return {
            "framework": framework,
            "entrypoint": "ingot.zoo:get_model_by_name",
            "kwargs": kwargs,
        }


@dataclass(frozen=True)
class Augmenter:
    """An augmenter of the suite.

    Attributes:
        name: of its module.
    """

    name: str

    def component(self, is_fast: bool) -> dict[str, Any]:
        """Return what a spec names; a fast one leaves the colours as they are."""
        found: dict[str, Any] = {"name": "cifar", "standardise": True}
        return found if is_fast else {**found, "brightness": _BRIGHTNESS, "contrast": _CONTRAST}


class Inputter:
    """The data of an application.

    Args:
        name: of the suite's module, or ``module:attribute``: a function that returns the splits.
        config: an ``ImageClassificationInputterConfig``.
        augmenter: the suite's module, ``module:attribute``, or None.
        options: arguments of an inputter of your own.
    """

    def __init__(
        self,
        name: str,
        config: Any,
        augmenter: Any = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not hasattr(config, "image_height"):
            raise UsageError(
                f"inputter: found a {type(config).__name__}; expected an"
                " ImageClassificationInputterConfig"
            )
        if augmenter is not None and not isinstance(augmenter, str):
            augmenter = getattr(augmenter, "augmenter", augmenter)
            if not isinstance(augmenter, Augmenter):
                raise UsageError(
                    f"augmenter: found a {type(augmenter).__name__}; expected module:attribute, or"
                    f" a module of the suite: {', '.join(AUGMENTERS)}"
                )
        self.name, self.config, self.augmenter = name, config, augmenter
        self.options = dict(options or {})

    @property
    def split(self) -> str:
        """The split that ``dataset_meta`` is."""
        return "train" if self.config.mode == "train" else "test"

    def samples(self, given: Sequence[str] | str = ()) -> list[str]:
        """Return the files to predict: those given, or ``test_samples``."""
        return [str(Path(name).expanduser()) for name in listed(given or self.config.test_samples)]

    def sections(self) -> dict[str, Any]:
        """Return ``data`` or ``training.inputter`` of a spec, and what else is said of samples."""
        config = self.config
        training: dict[str, Any] = {"batch_size": config.batch_size_per_gpu * config.gpu_count}
        if isinstance(self.augmenter, Augmenter):
            training["augmenter"] = self.augmenter.component(config.augmenter_speed_mode)
        elif self.augmenter is not None:
            training["augmenter"] = self.augmenter
        if self.samples():
            training["test_samples"] = self.samples()
        if ":" in self.name:
            training["inputter"] = {"name": self.name, **self.options}
            return {"training": training}
        if self.name == INPUTTERS[1]:
            size = training["batch_size"] * _SYNTHETIC_BATCHES
            shape = [config.image_depth, config.image_height, config.image_width]
            kwargs = {"shape": shape, "samples": size, "classes": config.num_classes}
            return {"data": {"splits": "synthetic", "kwargs": kwargs}, "training": training}
        kwargs = {
            "num_classes": config.num_classes,
            "image_size": [config.image_height, config.image_width],
            "channels": config.image_depth,
            "files": {},
        }
        if isinstance(self.augmenter, Augmenter):
            kwargs["scale"] = 1.0  # it standardises
        if config.dataset_meta:
            names = [str(Path(name).expanduser()) for name in listed(config.dataset_meta)]
            kwargs["files"] = {self.split: ",".join(names)}
        elif config.mode != "infer":
            raise UsageError(
                f"dataset_meta: found nothing; expected a CSV of paths and labels for the mode"
                f" {config.mode!r}"
            )
        return {"data": {"splits": "csv", "kwargs": kwargs}, "training": training}

    @cached_property
    def problem(self) -> Problem:
        """The inputter as Ingot has it, with a network that nobody builds."""
        return problem_of(make_spec(self, None, ()))

    def input_fn(self, test_samples: Sequence[str] | str = ()) -> Iterator[Any]:
        """Yield the batches of all epochs.

        Args:
            test_samples: files, in the mode ``infer``; ``test_samples`` of the configuration by
                default.

        Yields:
            ``(images, labels)``, tensors: float32 ``(batch, channels, height, width)``, and int64.
            Images alone in the mode ``infer``. In training the last batch is left out when it is
            smaller, as the suite does.

        Raises:
            InputError: a file or a row cannot be read.
        """
        size = self.problem.training.batch_size
        if self.config.mode == "infer":
            from ..training.prediction import file_inputter

            yield from file_inputter(self.problem, self.samples(test_samples))
            return
        loader = self.problem.split(self.split, "dataset_meta")
        for _ in range(self.config.epochs):
            for batch in loader:
                if self.config.mode != "train" or len(batch[0]) == size:
                    yield batch


class Modeler:
    """The network of an application, and how it is trained.

    Args:
        name: of the suite's module, or ``module:attribute`` of a ``Modeler`` of your own.
        config: an ``ImageClassificationModelerConfig``.
        net: what ``net`` of a network's module is, or ``module:attribute`` of a function that takes
            ``num_classes`` and returns the network.
        options: arguments of a modeler of your own.
    """

    def __init__(
        self,
        name: str,
        config: Any,
        net: Any,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not hasattr(config, "num_classes"):
            raise UsageError(
                f"modeler: found a {type(config).__name__}; expected an"
                " ImageClassificationModelerConfig"
            )
        if config.skip_trainable_vars:
            raise UsageError(
                "skip_trainable_vars: has no counterpart; expected trainable_vars, which names what"
                " is trained"
            )
        if not isinstance(net, Network) and not (isinstance(net, str) and ":" in net):
            raise UsageError(
                f"net: found a {type(net).__name__}; expected module:attribute, or net of a module"
                f" of the suite: {', '.join(NETWORKS)}",
                hint="a function of the suite builds a graph of TensorFlow 1; write one that"
                " takes num_classes and returns a module of PyTorch, or a Keras model",
            )
        self.name, self.config, self.net = name, config, net
        self.options = dict(options or {})
        self.weights: Path | None = None

    def sections(self) -> dict[str, Any]:
        """Return ``model``, ``full_trainer`` and the options of ``training`` of a spec."""
        config = self.config
        if isinstance(self.net, Network):
            model = self.net.model(config.framework, config.num_classes)
        else:
            kwargs = {"num_classes": config.num_classes}
            model = {"framework": config.framework, "entrypoint": self.net, "kwargs": kwargs}
        training: dict[str, Any] = {"weight_decay": config.l2_weight_decay}
        if listed(config.trainable_vars):
            training["trainable"] = listed(config.trainable_vars)
        skipped = listed(config.skip_l2_loss_vars)
        if isinstance(self.net, Network) and set(skipped) & set(_NORMS):
            others = [name for name in skipped if name not in _NORMS]
            skipped = [*_NORMS_OF[config.framework], *others]
        if skipped:
            training["weight_decay_skip"] = skipped
        if ":" in self.name:
            training["modeler"] = {"name": self.name, **self.options}
        trainer: dict[str, Any] = {
            "optimizer": {"name": config.optimizer, "lr": config.learning_rate}
        }
        boundaries = [int(epoch) for epoch in listed(config.piecewise_boundaries)]
        if boundaries:
            trainer["scheduler"] = {"name": "piecewise", "boundaries": boundaries}
            shares = [float(share) for share in listed(config.piecewise_lr_decay)]
            if shares:
                try:
                    trainer["scheduler"]["decay"] = decay_factors(boundaries, shares)
                except ValueError as error:
                    raise UsageError(f"piecewise_lr_decay: {error}") from error
        return {"model": model, "training": training, "full_trainer": trainer}

    @cached_property
    def problem(self) -> Problem:
        """The network, its loss and how it is called, as Ingot has them."""
        image = {"name": "image", "dtype": "float32", "shape": ["batch", None, None, None]}
        logits = {"name": "logits", "dtype": "float32", "shape": ["batch", self.config.num_classes]}
        found = {**self.sections(), "inputs": [image], "outputs": [logits]}
        if self.weights is not None:
            found["model"] = {**found["model"], "weights": str(self.weights)}
        return problem_of(ModelSpec.from_dict({**found, "task": "classification"}))

    @cached_property
    def network(self) -> Any:
        """The network: with the weights of the last run, or initial ones before."""
        from ..training.torch_forward_pass import torch_device_of

        problem = self.problem
        made = problem.build_network() if self.weights is None else problem.load_network()
        return made.to(torch_device_of(problem.device))

    def model_fn(self, x: Any) -> dict[str, Any]:
        """Compute what a step of the mode gives, without changing the weights.

        Args:
            x: ``(images, labels)`` as ``input_fn`` yields them; images alone in the mode ``infer``.

        Returns:
            tensors by name: ``train``: ``loss``, ``grads`` (by name of the parameter),
            ``accuracy`` (0..1) and ``learning_rate``; ``eval``: ``loss`` and ``accuracy``;
            ``infer``: ``classes`` ``(batch,)`` and ``probabilities`` ``(batch, classes)``.

        Raises:
            UsageError: the network is of Keras.
        """
        if self.config.framework != "torch":
            raise UsageError(
                f"model_fn: found the framework {self.config.framework!r}; expected 'torch'",
                hint="run() of the runner trains Keras models, too",
            )
        import torch

        network, mode = self.network, self.config.mode
        network.train(mode == "train")
        device = next(network.parameters()).device
        images = x[0] if isinstance(x, tuple | list) else x
        with torch.set_grad_enabled(mode == "train"):
            logits = network(images.to(device))
            if mode == "infer":
                probabilities = torch.softmax(logits, 1)
                return {"classes": probabilities.argmax(1), "probabilities": probabilities}
            labels = x[1].to(device)
            loss = torch.nn.functional.cross_entropy(logits, labels)
            accuracy = (logits.argmax(1) == labels).float().mean()
            found: dict[str, Any] = {"loss": loss, "accuracy": accuracy}
            if mode == "train":
                named = {n: p for n, p in network.named_parameters() if p.requires_grad}
                grads = torch.autograd.grad(loss, list(named.values()))
                found["grads"] = dict(zip(named, grads, strict=True))
                found["learning_rate"] = self.config.learning_rate
        return found


class Callback:
    """Something that is done around the steps of a run.

    Args:
        name: of the suite's module, or ``module:attribute`` of a ``Callback`` of your own.
        config: a ``CallbackConfig``.
        options: arguments of a callback of your own.
    """

    def __init__(self, name: str, config: Any, options: Mapping[str, Any] | None = None) -> None:
        self.name, self.config = name, config
        self.options = dict(options or {})

    def component(self) -> dict[str, Any] | None:
        """Return what a spec names; None for what ``evaluate`` does by itself."""
        if self.name.startswith("eval_"):
            return None
        return {"name": self.name, **self.options}
