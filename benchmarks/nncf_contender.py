"""NNCF's ``quantize_with_accuracy_control`` on an ONNX file, as ``bench_quantize.py`` runs it.

    NNCF_PYTHON nncf_contender.py MODEL.onnx ARRAYS.npz DELTA RESULT.onnx

It runs in an environment that has NNCF, and none of Ingot. The last line that it prints is JSON:
``samples``, that went through the validation function. Its options are NNCF's defaults, but for one
worker and one thread, as Ingot has them. Validation runs in batches, which is faster than the one
sample at a time of NNCF's examples; a data item is still one sample, so that layers are ranked on
300 of them and not on 300 batches.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

os.environ["NNCF_CI"] = "1"  # no telemetry

import nncf
import numpy as np
import onnx
import onnxruntime

BATCH = 64
SUBSET = 256
"""Samples that are calibrated on, like ours."""


class OneThread(onnxruntime.InferenceSession):
    """A session with one thread, whoever opens it."""

    def __init__(self, model: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> None:
        options = sess_options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        super().__init__(model, options, *args, **kwargs)


class Validation:
    """Top-1 accuracy in percent, and whether each sample is right; counts the samples.

    Args:
        name: of the model's input.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples = 0
        self._opened: tuple[Any, OneThread] | None = None

    def __call__(self, model: Any, items: Iterable[Any]) -> tuple[float, list[float]]:
        # Layers are ranked sample by sample: a model is opened once for all of them.
        if self._opened is None or self._opened[0] is not model:
            self._opened = model, OneThread(model.SerializeToString())
        hits: list[float] = []
        for images, labels in batches(items):
            answers = self._opened[1].run(None, {self.name: images})[0].argmax(1)
            hits += (answers == labels).astype(float).tolist()
        self.samples += len(hits)
        return 100 * float(np.mean(hits)), hits


def batches(items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield samples in batches."""
    left = iter(items)
    while chosen := list(islice(left, BATCH)):
        yield np.stack([image for image, _ in chosen]), np.array([label for _, label in chosen])


def main() -> None:
    """Quantize, and save the result."""
    path, data, delta, result = sys.argv[1:]
    onnxruntime.InferenceSession = OneThread
    model = onnx.load(path)
    name = model.graph.input[0].name
    arrays = np.load(data)
    calibration = list(arrays["calibration"])
    items = list(zip(arrays["images"], arrays["labels"], strict=True))
    validate = Validation(name)
    quantized = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(calibration, lambda image: {name: image[None]}),
        nncf.Dataset(items, lambda item: {name: item[0][None]}),
        validate,
        max_drop=float(delta),
        subset_size=SUBSET,
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            num_ranking_workers=1, ranking_subset_size=300
        ),
    )
    onnx.save(quantized, result)
    print(json.dumps({"samples": validate.samples}))


if __name__ == "__main__":
    main()
