"""Trains candidates of fewer than 8 bits, and makes files of what they have learned."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.atomic import replacing

if TYPE_CHECKING:
    from ..optimizers.budget import Budget
    from ..optimizers.quantization.onnx_candidates import OnnxCandidates
    from ..optimizers.quantization.plan import Plan
    from ..optimizers.quantization.trials import QuantizationSettings, Trained
    from ..training.options import TrainerOptions
    from ..training.problem import Problem
    from .shipping import Shipping


class Recovery:
    """Trains a network with its weights rounded, from the reference as its teacher.

    Args:
        problem: network, data and loss.
        settings: of the search.
        candidates: of the reference.
        shipping: writes networks as ONNX files.
        folder: of the trials.
        budget: when it is spent, training ends.
        report: gets a line an epoch.
        network: the one that was given, which is the teacher, too.
        optimizer: what trains, in place of what the spec says; None leaves that.
    """

    def __init__(
        self,
        problem: Problem,
        settings: QuantizationSettings,
        candidates: OnnxCandidates,
        shipping: Shipping,
        folder: Path,
        budget: Budget,
        report: Callable[[str], None],
        network: Any,
        optimizer: Any = None,
    ) -> None:
        from ..optimizers.pruning.modules import copy_module
        from ..optimizers.pruning.recovery import first_rate, recovery_options

        self.problem = problem
        self.settings = settings
        self.candidates = candidates
        self.shipping = shipping
        self.folder = folder
        self.budget = budget
        self.report = report
        # Whoever teaches is frozen; candidates are made of a network that is not.
        self.network, self.teacher = network, copy_module(network)
        options = recovery_options(
            problem.spec,
            settings.epochs,
            hasattr(problem.splits["train"], "__len__"),
            device=problem.device,
            seed=settings.seed,
        )
        self.options: TrainerOptions = replace(
            options, learning_rate_factor=first_rate(problem.spec)
        )
        if optimizer is not None:
            self.options = replace(self.options, optimizer=optimizer)

    def train(self, name: str, plan: Plan, parent: str, path: Path) -> Trained:
        """Train a candidate, and write its file.

        Args:
            name: of the trial.
            plan: precisions by layer.
            parent: the trained trial to go on from; empty for the reference.
            path: where the file goes.

        Raises:
            StopSearch: the time is over, or somebody asked to end the search.
            TrainingError: the loss is no number.
        """
        from ..frameworks.pytorch import load_weights
        from ..optimizers.pruning.modules import copy_module
        from ..optimizers.pruning.recovery import recover
        from ..optimizers.quantization.qat import folded_weights, quantization_aware
        from ..optimizers.quantization.trials import Trained
        from ..training.torch_state import write_network

        network, graph = copy_module(self.network), self.candidates.plain
        if parent:
            load_weights(network, self._weights(parent), f"trial {parent}")
            graph = self.candidates.prepared(self._float(parent))
        place = self.folder / f"{name}.training"
        options = replace(self.options, seed=self.settings.seed * 10_007 + int(name))
        epochs = options.epochs

        def report(epoch: int, loss: float) -> None:
            self.report(f"trial {name}: epoch {epoch} of {epochs}, loss {loss:.4g}")

        reduce_range = self.settings.reduce_range
        with quantization_aware(network, plan, graph, reduce_range=reduce_range) as prepared:
            for layer, reason in prepared.left.items():
                self.report(f"trial {name}: {layer} is rounded without training: {reason}")
            done = recover(
                self.problem,
                network,
                self.teacher,
                prepared.options(options),
                self.budget,
                place,
                report,
            )
            network, trained = prepared.finish()
        network.eval()
        write_network(self._weights(name), network.state_dict())
        draft = self.shipping.draft(name, network)
        with replacing(self._float(name)) as part:
            shutil.copyfile(draft, part)
        graph = self.candidates.prepared(self._float(name))
        self.candidates.write_trained(graph, plan, folded_weights(graph, trained), path)
        shutil.rmtree(place, ignore_errors=True)
        return Trained(done.epochs, done.losses)

    def _weights(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _float(self, name: str) -> Path:
        return self.folder / f"{name}.float.onnx"


def can_train(problem: Problem, settings: QuantizationSettings, is_low: bool) -> bool:
    """Whether candidates can be trained: a network of PyTorch, its data, and ONNX to write.

    Args:
        problem: the model that was given.
        settings: of the search.
        is_low: some layer may get fewer than 8 bits.
    """
    spec: Any = problem.spec
    has_loss = spec.loss is not None or spec.task is not None
    is_torch = spec.model.framework == "torch"
    is_live = problem.source.native is not None
    has_data = is_live or spec.data is not None or problem.training.inputter is not None
    is_possible = is_low and is_torch and has_loss and has_data
    return is_possible and settings.epochs > 0 and settings.format == "onnx"
