"""Predictions of style transfer: painted images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UsageError
from .csv_rows import Row
from .displays import Display
from .image_predictions import ImagePredictor
from .images import ImageInputter
from .inputter import Array, Inputter
from .prediction import Prediction, as_arrays, file_inputter, only_array


@dataclass(frozen=True)
class StylePrediction(Prediction):
    """An image, painted.

    Attributes:
        picture: uint8 ``(height, width, channels)``, of 3 channels or 1.
    """

    picture: Array = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        height, width = self.picture.shape[:2]
        return {self.sample_key: self.sample, "height": height, "width": width}

    def line(self) -> str:
        height, width = self.picture.shape[:2]
        return f"{self.sample}: painted, {width} x {height} pixels"


class StylePredictor(ImagePredictor):
    """Paints image files; the model takes and returns images, values 0..1.

    Images keep their size where the spec says a symbol, or null, for height and width of the
    input; else they are scaled to it.
    """

    display = "infer_display_style_transfer"

    def predict(self, samples: Sequence[str]) -> Iterator[Prediction]:
        for sample in samples:
            for batch in self._inputter(sample).batches(0):
                outputs = self.problem.forward_pass.model_call(
                    self.model, tuple(batch), self.problem.device
                )
                yield from self.decoded(as_arrays(outputs), [sample], None)

    def _inputter(self, sample: str) -> Inputter:
        prepared = file_inputter(self.problem, [sample])
        tensor = next(iter(self.problem.spec.inputs or ()), None)
        sizes = () if tensor is None or tensor.shape is None else tensor.shape[2:]
        is_free = bool(sizes) and not any(isinstance(size, int) for size in sizes)
        if not is_free or not isinstance(prepared, ImageInputter):
            return prepared
        return ImageInputter(
            [Row((sample,), "")],
            channels=prepared.channels,
            scaling=prepared.scaling,
            cache=False,
            **self.problem.data_context.options("infer", 1),
        )

    def decoded(self, outputs: Any, samples: Sequence[str], inputter: Any) -> Iterator[Prediction]:
        images = only_array(outputs, 4, "images (batch, channels, height, width)")
        for sample, image in zip(samples, images, strict=True):
            values = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
            yield StylePrediction(sample, values.transpose(1, 2, 0))

    def arrays(self, predictions: Sequence[StylePrediction]) -> dict[str, Array]:
        pictures = [item.picture for item in predictions]
        sizes = {picture.shape for picture in pictures}
        if len(sizes) != 1:
            raise UsageError(
                f"the pictures have {len(sizes)} sizes; one array holds pictures of one size",
                hint="write them as files: --display DIR",
            )
        return {"pictures": np.stack(pictures)}


class StyleDisplay(Display):
    """Writes the painted image."""

    def names(self, stem: str) -> list[str]:
        return [f"{stem}.png"]

    def contents(self, prediction: StylePrediction) -> list[Any]:
        from PIL import Image

        picture = prediction.picture
        return [Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)]
