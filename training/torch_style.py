"""Style transfer: what makes two images alike to a network that tells images apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, ModelError, SpecError
from ..runtime.sources import shown_path
from ..specs.hints import did_you_mean
from .csv_rows import Row
from .data import DataContext
from .device import Device
from .evaluation import PER_SAMPLE
from .forward_pass import ForwardPass
from .images import ImageInputter
from .losses import only_tensor
from .torch_forward_pass import move, torch_device_of
from .torch_losses import TorchLossFunction
from .torch_metrics import TorchEvaluationFunction

if TYPE_CHECKING:
    from .problem import Problem


class PerceptualLoss(TorchLossFunction):
    """The losses of Johnson et al. (2016, arXiv:1603.08155, section 3.2), each by its weight.

    ``content`` is the mean squared difference of what layers of a trained network make of the
    painted image and of the original; ``style`` is that of their Gram matrices (Gatys et al., 2015,
    arXiv:1508.06576) from those of the style's image, summed over the layers and in parts of the
    Gram matrices' own mean square; ``variation`` is the mean squared difference of neighbouring
    pixels. Images have values 0..1.

    Args:
        problem: names the files and the modules beside the spec; given by Ingot.
        network: ``module:attribute`` of a function that returns a trained classifier of images, a
            ``torch.nn.Module``.
        weights: its weights, safetensors or a weights-only checkpoint.
        style: the image whose style is meant.
        content_layers: names of the modules, as in ``named_modules()``, whose outputs are compared.
        style_layers: likewise.
        kwargs: arguments of ``network``.
        content_weight: factor of ``content``.
        style_weight: factor of ``style``.
        variation_weight: factor of ``variation``.
        style_size: height and width that the image of the style is scaled to; its own by default.
        mean: of each channel, subtracted before the network; 0 by default.
        std: of each channel, divided by; 1 by default.
        forward_pass: how a batch reaches the model; its first argument is the image.
        device: where it is computed.

    Raises:
        SpecError: a layer does not exist.
        ModelError: the network cannot be built, or its weights do not fit.
        InputError: the image of the style cannot be read.
    """

    def __init__(
        self,
        problem: Problem,
        network: str,
        weights: str,
        style: str,
        content_layers: Sequence[str] | str,
        style_layers: Sequence[str] | str,
        kwargs: Mapping[str, Any] | None = None,
        content_weight: float = 1.0,
        style_weight: float = 1.0,
        variation_weight: float = 0.0,
        style_size: Sequence[int] | None = None,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        forward_pass: ForwardPass | None = None,
        device: str | Device = Device.CPU,
    ) -> None:
        self.label = f"{problem.label}: loss"
        self.forward_pass = forward_pass or problem.forward_pass
        self.content_layers, self.style_layers = _names(content_layers), _names(style_layers)
        self.factors = {
            "content": content_weight,
            "style": style_weight,
            "variation": variation_weight,
        }
        root = problem.spec.root
        self.network = _trained(problem, network, root / Path(weights).expanduser(), kwargs or {})
        self._found: dict[str, Any] = {}
        self._listen()
        self._mean, self._std = (
            np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (mean, std)
        )
        self.image = style_image(problem, root / Path(style).expanduser(), style_size)
        super().__init__(device)

    def to_device(self, device: str | Device) -> None:
        import torch

        super().to_device(device)
        self.network.to(torch_device_of(device))
        self.mean, self.std = (move(values, device) for values in (self._mean, self._std))
        with torch.no_grad():
            found = self.features(move(self.image, device))
        self.grams = {name: gram_matrix(found[name]) for name in self.style_layers}

    def __call__(self, model: Any, batch: Any) -> Any:
        x = self.forward_pass.extract_model_inputs(batch)
        painted = only_tensor(self.forward_pass.model_call(model, x, self.device))
        images = move(x[0], self.device)
        return {
            name: self.factors[name] * value.mean()
            for name, value in self.parts(painted, images).items()
            if self.factors[name]
        }

    def parts(self, painted: Any, images: Any) -> dict[str, Any]:
        """Return ``content``, ``style`` and ``variation`` of each image, without their weights.

        Args:
            painted: what the model made of the images, ``(batch, channels, height, width)``.
            images: the originals, likewise.

        Raises:
            InputError: the shapes differ.
        """
        import torch

        if painted.shape != images.shape:
            raise InputError(
                f"the model returned images of shape {tuple(painted.shape)}; expected"
                f" {tuple(images.shape)}, as they were given"
            )
        found = self.features(painted)
        with torch.no_grad():
            wanted = self.features(images)
        content = sum(
            (found[name] - wanted[name]).square().flatten(1).mean(1) for name in self.content_layers
        )
        across = (painted[..., 1:] - painted[..., :-1]).square().flatten(1).mean(1)
        down = (painted[..., 1:, :] - painted[..., :-1, :]).square().flatten(1).mean(1)
        return {"content": content, "style": self.style_of(found), "variation": across + down}

    def style_of(self, features: Mapping[str, Any]) -> Any:
        """Return how far the style of images, by their features, is from the wanted one."""
        return sum(
            (gram_matrix(features[name]) - gram).square().flatten(1).mean(1)
            / gram.square().mean().clamp(min=1e-12)
            for name, gram in self.grams.items()
        )

    def features(self, images: Any) -> dict[str, Any]:
        """Return what the layers make of images, by their names.

        Raises:
            ModelError: the network does not take them.
        """
        self._found = {}
        try:
            self.network((images - self.mean) / self.std)
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"{self.label}: network: images of shape {tuple(images.shape)} do not fit it:"
                f" {str(error).splitlines()[0]}"
            ) from error
        found, self._found = self._found, {}
        return found

    def _listen(self) -> None:
        modules = dict(self.network.named_modules())
        for name in dict.fromkeys([*self.content_layers, *self.style_layers]):
            if name not in modules or not name:
                known = [item for item in modules if item]
                raise SpecError(
                    f"{self.label}: found the layer {name!r}; the network has {', '.join(known)}",
                    hint=did_you_mean(name, known),
                )

            def keep(module: Any, inputs: Any, outputs: Any, name: str = name) -> None:
                self._found[name] = outputs

            modules[name].register_forward_hook(keep)


def _names(layers: Sequence[str] | str) -> tuple[str, ...]:
    return (layers,) if isinstance(layers, str) else tuple(layers)


def _trained(problem: Problem, name: str, weights: Path, kwargs: Mapping[str, Any]) -> Any:
    """Return the network that compares images, which is not trained any further."""
    from torch import nn

    from ..frameworks.pytorch import load_weights

    key = "loss.network"
    function = problem.components.code.callable(name, key)
    network = problem.components.call(function, kwargs, key, name)
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"{problem.label}: {key}: {name!r} returned a {type(network).__name__}; expected a"
            " torch.nn.Module"
        )
    if not weights.is_file():
        raise SpecError(
            f"{problem.label}: loss.weights: {shown_path(weights)}: no such file",
            hint="train the network that compares images first",
        )
    load_weights(network, weights, f"{problem.label}: {key}")
    # A ReLU in place would change the output of the layer before it, after it was kept.
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return network.eval().requires_grad_(False)


def style_image(problem: Problem, path: Path, size: Sequence[int] | None) -> Any:
    """Return the image of a style, float32 ``(1, channels, height, width)``, values 0..1.

    Args:
        problem: the arguments of its data say how many channels images have.
        path: of the image.
        size: height and width that it is scaled to; None leaves it as it is.

    Raises:
        SpecError: it is not there.
        InputError: it cannot be read.
    """
    if not path.is_file():
        raise SpecError(f"{problem.label}: loss.style: {shown_path(path)}: no such file")
    inputter = ImageInputter(
        [Row((str(path),), "loss.style")],
        image_size=size,
        channels=int(problem.data_component.kwargs.get("channels", 3)),
        cache=False,
        **DataContext(path.parent).options("style", 1),
    )
    return inputter.read(np.arange(1), None)[0]


def gram_matrix(features: Any) -> Any:
    """Return how channels go together: ``(batch, channels, channels)``, a mean over the pixels."""
    flat = features.float().flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


class PerceptualEvaluation(TorchEvaluationFunction):
    """How far painted images are from their originals and from the style, by the spec's loss.

    ``style`` is what is left of the originals' distance from the style, in percent: 100 for images
    that were not changed, 0 for the style itself. ``content`` is the distance from the originals,
    in percent of what the image of the style has. ``loss`` is the weighted sum that training
    minimises. Of all three, less is better. ``per_sample``: all three.

    Args:
        problem: its loss is a :class:`PerceptualLoss`; given by Ingot.
    """

    default_key = "loss"

    def __init__(self, problem: Problem) -> None:
        if not isinstance(problem.loss, PerceptualLoss):
            raise SpecError(
                f"{problem.label}: evaluation.function 'perceptual' measures the loss 'perceptual';"
                f" found a {type(problem.loss).__name__}"
            )
        self.loss = problem.loss

    def _compute_inference(
        self,
        model: Any,
        data_loader: Iterable[Any],
        device: str | Device = Device.CPU,
        transform: Any = None,
    ) -> Mapping[str, Any]:
        import torch

        loss = self.loss
        loss.to_device(device)
        style = move(loss.image, device)
        rows: list[Any] = []
        for batch in data_loader:
            if transform is not None:
                batch = transform(batch)
            x = loss.forward_pass.extract_model_inputs(batch)
            images = move(x[0], device)
            painted = only_tensor(loss.forward_pass.model_call(model, x, device))
            parts = loss.parts(painted, images)
            total = sum(loss.factors[name] * value for name, value in parts.items())
            features = loss.features(images)
            before = loss.style_of(features)
            size = tuple(images.shape[2:])
            other = torch.nn.functional.interpolate(style, size, mode="bilinear")
            away = loss.parts(other.expand_as(images), images)["content"]
            rows.append(
                torch.stack(
                    [
                        100 * parts["style"] / before.clamp(min=1e-12),
                        100 * parts["content"] / away.clamp(min=1e-12),
                        total,
                    ],
                    1,
                )
            )
        if not rows:
            raise InputError("the split gave no batch; expected at least one")
        table = torch.cat(rows).double().cpu().numpy()
        names = ("style", "content", "loss")
        return {
            **{name: float(table[:, index].mean()) for index, name in enumerate(names)},
            PER_SAMPLE: {name: table[:, index] for index, name in enumerate(names)},
        }
