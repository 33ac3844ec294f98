"""Loss and metrics of networks that predict the token after each of a text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import InputError
from .device import Device
from .evaluation import PER_SAMPLE
from .losses import only_tensor
from .text_data import PADDING
from .torch_losses import OutputLoss, require_labels
from .torch_metrics import OutputEvaluation


def _checked(outputs: Any, targets: Any) -> tuple[Any, Any]:
    """Return logits and targets that belong together.

    Raises:
        InputError: their shapes do not.
    """
    logits = only_tensor(outputs)
    if logits.ndim != 3 or tuple(targets.shape) != tuple(logits.shape[:2]):
        raise InputError(
            f"the model returned logits of shape {tuple(logits.shape)} for targets of shape"
            f" {tuple(targets.shape)}; expected (batch, length, tokens) and (batch, length)"
        )
    return logits, targets.long()


class SequenceCrossEntropy(OutputLoss):
    """Cross entropy of logits ``(batch, length, tokens)`` with tokens ``(batch, length)``.

    In nats a token; padding does not count.
    """

    def compare(self, outputs: Any, targets: Any) -> Any:
        from torch.nn import functional

        logits, targets = _checked(outputs, targets)
        try:
            return functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), ignore_index=PADDING
            )
        except (IndexError, RuntimeError):
            require_labels(targets, logits.shape[2], None)
            raise


class NextTokenEvaluation(OutputEvaluation):
    """``accuracy`` of the most likely token in percent, ``bits`` a token, and ``perplexity``.

    ``bits`` is the mean of the negative binary logarithm of the probability that the model gave to
    the token that came; ``perplexity`` is two to its power. Padding does not count.
    ``per_sample``: both of each text.
    """

    default_key = "accuracy"

    def _compute_inference(
        self,
        model: Any,
        data_loader: Iterable[Any],
        device: str | Device = Device.CPU,
        transform: Any = None,
    ) -> Mapping[str, Any]:
        import torch
        from torch.nn import functional

        sums: list[Any] = []
        for outputs, targets in self.outputs_and_targets(model, data_loader, device, transform):
            logits, wanted = _checked(outputs, targets)
            require_labels(wanted, logits.shape[2], sum(map(len, sums)))
            nats = functional.cross_entropy(
                logits.float().flatten(0, 1), wanted.flatten(), reduction="none"
            ).view_as(wanted)
            counts = wanted != PADDING
            hits = (logits.argmax(2) == wanted) & counts
            parts = [hits, nats.double() * counts, counts]
            sums.append(torch.stack([part.double().sum(1) for part in parts], 1))
        table = torch.cat(sums).cpu().numpy()
        hits, nats, counts = table.sum(0)
        if not counts:
            raise InputError("the split has no token that counts; all are padding")
        each = table[:, :2] / table[:, 2:].clip(min=1)
        bits = nats / counts / math.log(2)
        return {
            "accuracy": 100 * hits / counts,
            "bits": bits,
            "perplexity": 2.0**bits,
            PER_SAMPLE: {"accuracy": 100 * each[:, 0], "bits": each[:, 1] / math.log(2)},
        }
