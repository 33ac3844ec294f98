"""The modeler of Keras."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, ModelError
from ..frameworks.base import LoadOptions, ModelSource
from ..frameworks.keras import KerasModel, import_keras
from ..frameworks.keras_files import save_keras
from ..frameworks.keras_weights import architecture_of, build, load_weights, rebuilt
from ..frameworks.tensorflow import import_tensorflow
from ..runtime.atomic import replacing
from .declared import DeclaredTensors
from .device import Device
from .evaluation import CallableModel, Evaluation, run_evaluation
from .forward_pass import ForwardPass
from .inputter import Array
from .keras_networks import load_pretrained, variables_of
from .keras_state import write_arrays
from .losses import loss_parts
from .modeler import Modeler
from .networks import Adapted
from .options import Precision

MODEL = "model.keras"


class Round(list[Any]):
    """A batch for each device, of one training step."""


class TrainingModel:
    """The network as losses call it: positional arguments in the order of the inputs of the spec.

    What it does not have itself, it takes from the ``keras.Model``.

    Args:
        model: the network with the names of its inputs and outputs.
    """

    def __init__(self, model: KerasModel) -> None:
        self.model = model
        self.outputs: Any = None
        self.declared: DeclaredTensors | None = None

    def __call__(self, *args: Any, training: bool = True, **kwargs: Any) -> Any:
        tensorflow = import_tensorflow()
        names = [spec.name for spec in self.model.inputs]
        given = dict(zip(names, args, strict=False)) | kwargs
        if len(args) > len(names) or given.keys() != set(names):
            raise InputError(
                f"the model is called with {len(args)} arguments"
                f"{''.join(f', {name}' for name in kwargs)}; it takes {', '.join(names)}"
            )
        tensors = {name: tensorflow.convert_to_tensor(value) for name, value in given.items()}
        if self.declared is not None:
            self.declared.require_inputs(tensors)
        found = self.model.call_tensors(
            tensors, lambda feeds: self.model.native(feeds, training=training)
        )
        values = [found[spec.name] for spec in self.model.outputs]
        # A layer that computes in bfloat16 returns it; a loss is computed in float32.
        values = [
            tensorflow.cast(value, "float32") if value.dtype == "bfloat16" else value
            for value in values
        ]
        self.outputs = values[0] if len(values) == 1 else tuple(values)
        if self.declared is not None:
            self.declared.require_outputs(self.outputs)
        return self.outputs

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "model":
            raise AttributeError(name)
        return getattr(self.model.native, name)


class KerasModeler(Modeler):
    """A network of Keras, on TensorFlow, with its loss and metrics.

    Args:
        network: the ``keras.Model``, with defined inputs.
        forward_pass: how a batch reaches it.
        loss: ``(model, batch)`` to a scalar tensor, or a dict of them; what layers add
            (regularizers) is added to it.
        evaluation: ``(model, loader)`` to metrics.
        device: where it runs.
        precision: ``bf16`` computes the layers in bfloat16 while training; evaluation is always as
            it ships.
        source: where the network comes from, with the names of its tensors in the spec.
    """

    def __init__(
        self,
        network: Any,
        forward_pass: ForwardPass,
        loss: Any,
        evaluation: Any,
        device: str | Device = Device.CPU,
        precision: Precision = "fp32",
        source: ModelSource | None = None,
    ) -> None:
        keras = import_keras()
        if keras.backend.backend() != "tensorflow":
            raise ModelError(
                f"KERAS_BACKEND: found {keras.backend.backend()!r}; only 'tensorflow' can be"
                " trained"
            )
        self.device = device
        self.network = network
        self.forward_pass = forward_pass
        self.loss = loss
        self.evaluation = evaluation
        self.precision = precision
        place = LoadOptions("gpu" if device == Device.GPU else "cpu")
        source = source or ModelSource("keras", network.name)
        self.model = KerasModel(source, network, keras, place)
        self.training_model = TrainingModel(self.model)
        self.variables = dict(variables_of(network))
        # As it is before layers are frozen, which the file of the result is not to be.
        self._architecture = None if rebuilt(network, keras) is None else architecture_of(network)
        self.outputs: Any = None
        self.keeps_outputs = False
        self.average: dict[str, Any] | None = None
        self._updates = 0
        self._move: Any = None
        held = {id(variable) for variable in network.weights}
        self._seeds = [item for item in network.variables if id(item) not in held]
        self._seeds.append(keras.src.random.seed_generator.global_seed_generator().state)
        self._masks = {n for n, value in self.variables.items() if not _is_finite(value)}

    def compute_loss(self, batch: Any) -> Mapping[str, Any]:
        tensorflow = import_tensorflow()
        with self._computing():
            parts = loss_parts(self.loss(self.training_model, batch))
        added = self.network.losses
        if added:
            parts["regularization"] = tensorflow.add_n(
                [tensorflow.cast(value, "float32") for value in added]
            )
        return parts

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Let float32 layers compute in bfloat16, where that is wanted, while a step is traced."""
        if self.precision == "fp32":
            yield
            return
        layers = [
            layer
            for layer in self.network._flatten_layers()
            if layer.dtype_policy.name == "float32"
        ]
        policy = import_keras().DTypePolicy("mixed_bfloat16")
        own = [layer.dtype_policy for layer in layers]
        for layer in layers:
            layer.dtype_policy = policy
        try:
            yield
        finally:
            for layer, kept in zip(layers, own, strict=True):
                layer.dtype_policy = kept

    def evaluate(self, loader: Iterable[Any]) -> Evaluation:
        adapted = Adapted(self.model)
        if self.training_model.declared is not None:
            adapted.infer = _compared(adapted.infer, self.training_model.declared)
        model = CallableModel(adapted, self.network.name)
        with self.averaged():
            return run_evaluation(self.evaluation, model, loader, self.device)

    @contextmanager
    def comparing(self, declared: DeclaredTensors) -> Iterator[None]:
        # Shapes are known while the step is traced, which is before it is run.
        self.training_model.declared = declared
        try:
            yield
        finally:
            self.training_model.declared = None

    def keep_outputs(self) -> None:
        self.keeps_outputs = True

    def batch_accuracy(self, batch: Any) -> float | None:
        self.keep_outputs()
        if self.outputs is None or isinstance(self.outputs, tuple) or self.outputs.ndim != 2:
            return None
        batch = batch[0] if isinstance(batch, Round) else batch
        try:
            targets = np.asarray(self.forward_pass.extract_targets(batch))
        except InputError:
            return None
        scores = np.asarray(self.outputs)
        if targets.size != len(scores):
            return None
        return 100.0 * float((scores.argmax(1) == targets.reshape(-1)).mean())

    def start_average(self) -> None:
        if self.average is None:
            tensorflow = import_tensorflow()
            self.average = {
                name: tensorflow.Variable(value.numpy(), trainable=False)
                for name, value in self.variables.items()
            }

    def update_average(self, decay: float) -> None:
        self.start_average()
        tensorflow = import_tensorflow()
        if self._move is None:
            self._move = tensorflow.function(self._moved, autograph=False)
        self._updates += 1
        # As TensorFlow does: in the first steps the start must not weigh as much as later.
        decay = min(decay, (1 + self._updates) / (10 + self._updates))
        self._move(tensorflow.constant(1 - decay, "float32"))

    def _moved(self, weight: Any) -> None:
        tensorflow = import_tensorflow()
        assert self.average is not None
        for name, average in self.average.items():
            value = tensorflow.convert_to_tensor(self.variables[name].value)
            if value.dtype.is_floating and name not in self._masks:
                average.assign_add((value - average) * tensorflow.cast(weight, value.dtype))
            else:
                average.assign(value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        if self.average is None:
            yield
            return
        own = self._values(self.variables)
        self._assign(self._values(self.average))
        try:
            yield
        finally:
            self._assign(own)

    def _assign(self, values: Mapping[str, Array]) -> None:
        for name, value in values.items():
            self.variables[name].assign(value)

    def weights(self) -> dict[str, Array]:
        """Return the arrays of the result by name: the averaged ones, if there are any."""
        return self._values(self.variables if self.average is None else self.average)

    def write_weights(self, path: Path) -> None:
        write_arrays(path, self.weights())

    def write_model(self, weights: Path, folder: Path) -> Path | None:
        """Write ``model.keras``: the network with weights that :meth:`write_weights` wrote.

        A network with classes that Keras does not know could not be read, and is not written.
        """
        if self._architecture is None:
            return None
        keras = import_keras()
        network = build(self._architecture, keras)
        load_weights(network, weights, self.network.name, keras)
        path = folder / MODEL
        with (
            tempfile.TemporaryDirectory(prefix=".model-", dir=folder) as place,
            replacing(path) as temporary,
        ):
            file = Path(place) / MODEL  # Keras insists on the suffix
            save_keras(network, file)
            file.replace(temporary)
        return path

    def not_finite(self) -> str | None:
        for values, what in ((self.variables, "weight"), (self.average, "average of")):
            for name, value in (values or {}).items():
                if name not in self._masks and not _is_finite(value):
                    return f"the {what} {name!r}"
        return None

    def load_pretrained(self, path: Path, skip: tuple[str, ...], label: str) -> list[str]:
        return load_pretrained(self.variables, path, skip, label)

    def share(self, local_rank: int) -> None:
        """Do nothing: variables that are made within a strategy are shared from the start."""

    def state(self) -> dict[str, Any]:
        return {
            "network": self._values(self.variables),
            "average": None if self.average is None else self._values(self.average),
            "updates": self._updates,
            "seeds": [np.array(variable.numpy()) for variable in self._seeds],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._assign(state["network"])
        for variable, value in zip(self._seeds, state["seeds"], strict=True):
            variable.assign(value)
        if self.average is None:  # weights are not averaged, or no longer
            return
        values = state["average"] or state["network"]
        for name, average in self.average.items():
            average.assign(values[name])
        self._updates = 0 if state["average"] is None else state["updates"]

    @staticmethod
    def _values(variables: Mapping[str, Any]) -> dict[str, Array]:
        return {name: np.array(variable.numpy()) for name, variable in variables.items()}


def _compared(
    infer: Callable[..., dict[str, Any]], declared: DeclaredTensors
) -> Callable[..., dict[str, Any]]:
    def compared(arrays: Mapping[str, Any]) -> dict[str, Any]:
        declared.require_inputs(arrays)
        outputs = infer(arrays)
        declared.require_outputs(outputs)
        return outputs

    return compared


def _is_finite(variable: Any) -> bool:
    value = np.asarray(variable.numpy())
    # Types such as bfloat16 are not among NumPy's own kinds.
    return value.dtype.kind in "biuSU" or bool(np.isfinite(value.astype(np.float64)).all())
