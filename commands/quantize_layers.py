"""``quantize --list-layers``: the layers of a model, and what rules make of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..specs import ModelSpec, load_spec
from .export import export
from .models import named_model
from .quantize_files import mode_of
from .quantize_problem import spec_of
from .quantize_setup import QuantizeOptions, check_options, settings_of

if TYPE_CHECKING:
    from ..optimizers.quantization.layers import QuantLayer
    from ..optimizers.quantization.rules import Choice


@dataclass(frozen=True)
class LayerTable:
    """The layers of a model that can be quantized.

    Attributes:
        model: its name.
        layers: in the traversal of the graph.
        choice: what the rules make of them.
        is_fast: time is what counts.
        bits: of layers that nothing else is said of.
    """

    model: str
    layers: tuple[QuantLayer, ...]
    choice: Choice
    is_fast: bool
    bits: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        free = {layer.name for layer in self.choice.free}
        return {
            "schema_version": 1,
            "model": self.model,
            "layers": [
                {
                    "index": layer.index,
                    "name": layer.name,
                    "op": layer.op_type,
                    "shape": list(layer.shape),
                    "parameters": layer.parameters,
                    "bits": self.bits if layer.name in free else self._fixed(layer.name),
                    "reason": self.choice.reasons.get(layer.name),
                }
                for layer in self.layers
            ],
        }

    def _fixed(self, name: str) -> str:
        return str(self.choice.fixed[name].weight)


def list_layers(
    model: str | Path | ModelSpec,
    options: QuantizeOptions | None = None,
    *,
    overrides: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> LayerTable:
    """Return the layers that ``quantize`` would work on, and what rules make of them.

    Nothing is kept. Raises what :func:`quantize` raises of model and rules.
    """

    from ..optimizers.quantization.rules import choose
    from ..runtime.detect import detect, expand

    wanted = options or QuantizeOptions()
    check_options(wanted)
    given = model
    if not isinstance(model, ModelSpec) and detect(expand(model)) == "spec":
        given = load_spec(expand(model), overrides)
    with named_model(given, (), wanted.trust_code) as named:
        spec = named.spec or spec_of(named)
        settings = settings_of(spec, wanted)
        with tempfile.TemporaryDirectory(prefix="ingot-") as folder:
            made = export(
                named,
                settings.format,
                folder,
                precision="fp32",
                mode=mode_of(settings.format, named.source),
                name="layers",
                trust_code=wanted.trust_code,
                evaluate=False,
                progress=progress,
            )
            path = made.artifacts[0].path
            layers = layers_in(path, settings.format)
        choice = choose(layers, settings.rules, settings.is_fast, settings.format)
        return LayerTable(named.name, layers, choice, settings.is_fast, settings.bits)


def layers_in(path: Path, format_: str) -> tuple[QuantLayer, ...]:
    """Return the layers of a float file that can be quantized, in the order of its graph.

    Raises:
        ModelError: the file is quantized already, or is too large.
    """
    if format_ == "tflite":
        from ..optimizers.quantization.tflite_candidates import TfliteCandidates

        return TfliteCandidates(path, ()).layers
    from ..optimizers.quantization.layers import quantizable_layers
    from ..optimizers.quantization.prepare import prepare

    return quantizable_layers(prepare(path))
