"""What a live module takes and returns: read off one call, as no spec says it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import IngotError, ModelError, UsageError
from ..specs import TensorSpec
from ..specs.dtypes import canonical_dtype

if TYPE_CHECKING:
    from torch import nn

    from ..training.forward_pass import ForwardPass

_KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD
_HINT = "wrap it in a module whose forward takes tensors only, and returns tensors"


def first_batch(loader: Iterable[Any], seed: int = 0) -> Any:
    """Return the first batch of a split, with all generators seeded.

    Raises:
        UsageError: it gives none.
        ModelError: it cannot be read.
    """
    from ..frameworks.entrypoints import user_code_error
    from ..training.inputter import Inputter
    from ..training.randomness import seed_everything

    seed_everything(seed, 0, 0)
    batches: Any = None
    try:
        batches = loader.batches(0) if isinstance(loader, Inputter) else iter(loader)
        return next(batches)
    except StopIteration:
        raise UsageError("data: the split 'train' gave no batch; expected at least one") from None
    except IngotError:
        raise
    except Exception as error:
        raise user_code_error("data", "the split 'train'", error, None) from error
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


def read_tensors(
    network: nn.Module, forward_pass: ForwardPass, batch: Any, label: str
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Call a copy of a module on a batch, and describe its inputs and outputs.

    Inputs are named after the parameters of ``forward``, else ``input_0``, ``input_1``...; outputs
    are ``output``, ``output_0``..., or the keys of a dict. The first dimension of a tensor that is
    as long as the batch is the free dimension ``batch``; the others are fixed.

    Raises:
        ModelError: the call fails, or returns something else than tensors.
        UsageError: the module takes something else than tensors.
    """
    import torch

    from ..frameworks.calling import name_outputs
    from ..frameworks.entrypoints import user_code_error
    from ..optimizers.pruning.modules import copy_module
    from ..training.device import Device

    module = copy_module(network).cpu().eval()
    calls: list[tuple[Any, Any, Any]] = []

    def keep(_: Any, args: Any, kwargs: Any, returned: Any) -> None:
        calls.append((args, kwargs, returned))

    handle = module.register_forward_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            x = forward_pass.extract_model_inputs(batch)
            forward_pass.model_call(module, x, Device.CPU)
    except IngotError:
        raise
    except Exception as error:
        raise user_code_error(label, "the forward pass", error, None) from error
    finally:
        handle.remove()
    if not calls:
        raise UsageError(f"{label}: forward_pass: model_call does not call the model")
    args, kwargs, returned = calls[0]
    inputs = _arguments(module, args, kwargs, label)
    outputs = name_outputs(returned, (), label)
    for name, value in outputs.items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"{label}: the model returned a {type(value).__name__} as {name!r}; expected a"
                " tensor, a tuple of them, or a dict of them",
                hint=_HINT,
            )
    sizes = [value.shape[0] for value in inputs.values() if value.ndim]
    size = sizes[0] if sizes else None
    return (
        tuple(_spec(name, value, size, label) for name, value in inputs.items()),
        tuple(_spec(name, value, size, label) for name, value in outputs.items()),
    )


def _arguments(
    module: Any, args: Sequence[Any], kwargs: Mapping[str, Any], label: str
) -> dict[str, Any]:
    """Return the tensors of a call by name, in the order of the call.

    Raises:
        UsageError: an argument is no tensor, or has no name and cannot do without.
    """
    import torch

    parameters = inspect.signature(module.forward).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        raise UsageError(
            f"{label}: its forward takes any keyword (**), so that its inputs have no names",
            hint=_HINT,
        )
    by_position = [name for name, entry in parameters.items() if entry.kind is _KEYWORD]
    named = len(args) <= len(by_position)
    if not named and kwargs:
        raise UsageError(
            f"{label}: its forward is called by position (*) and by keyword; expected one of them",
            hint=_HINT,
        )
    names = by_position if named else [f"input_{index}" for index in range(len(args))]
    found: dict[str, Any] = {}
    for name, value in (*zip(names, args, strict=False), *kwargs.items()):
        if isinstance(value, torch.Tensor):
            found[name] = value
            continue
        default = parameters[name].default if name in parameters else inspect.Parameter.empty
        # What is left out when a file is called has to be what forward takes by itself.
        if not (value is default or (isinstance(value, bool | int | str) and value == default)):
            raise UsageError(
                f"{label}: the argument {name!r} of forward is a {type(value).__name__}; expected a"
                " tensor",
                hint=_HINT,
            )
    if not found:
        raise UsageError(f"{label}: the forward pass hands it no tensor; expected at least one")
    return found


def _spec(name: str, value: Any, batch: int | None, label: str) -> TensorSpec:
    shape: tuple[int | str, ...] = tuple(int(size) for size in value.shape)
    if shape and shape[0] == batch:
        shape = ("batch", *shape[1:])
    try:
        dtype = canonical_dtype(str(value.dtype).removeprefix("torch."))
    except IngotError as error:
        raise ModelError(f"{label}: {name!r}: {error.message}") from error
    return TensorSpec(name, dtype, shape)
