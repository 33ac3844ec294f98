"""The state of a training run in one safetensors file: tensors, and the rest as JSON. No pickle."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..runtime.atomic import replacing

_KEY = "ingot_training"
_FORMAT = 2


def write_tensors(
    path: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors that share no memory to a safetensors file; complete, or not at all."""
    from safetensors.torch import save_file

    with replacing(path, sync=True) as temporary:
        save_file(dict(tensors), temporary, metadata=metadata)


def write_network(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a network, whose tensors may share memory, lie elsewhere, or be strided.

    Args:
        path: a safetensors file.
        state: as ``state_dict`` returns it.
    """
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    write_tensors(path, tensors)


def write_state(path: Path, tree: Any) -> None:
    """Write nested dicts, lists, tuples, scalars and tensors; complete, or not at all.

    Raises:
        ModelError: something in it is none of these.
    """
    tensors: dict[str, Any] = {}
    text = json.dumps({"format": _FORMAT, "tree": _encode(tree, "", tensors)})
    write_tensors(path, tensors, {_KEY: text})


def read_state(path: Path) -> Any:
    """Read what :func:`write_state` wrote.

    Raises:
        ModelError: it is no such file, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable checkpoint: {error}") from error
    if text is None:
        raise ModelError(f"{path}: found no training state; expected a checkpoint of 'ingot train'")
    document = json.loads(text)
    if document["format"] != _FORMAT:
        raise ModelError(
            f"{path}: found a checkpoint of format {document['format']}; expected {_FORMAT}"
        )
    return _decode(document["tree"], tensors)


def _encode(value: Any, where: str, tensors: dict[str, Any]) -> Any:
    import numpy as np
    import torch

    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"numpy": _encode(torch.from_numpy(value.copy()), where, tensors)}
    if isinstance(value, torch.Tensor):
        # Every tensor gets memory of its own: safetensors refuses what shares it.
        tensors[where] = value.detach().cpu().clone().contiguous()
        return {"tensor": where}
    if isinstance(value, list):
        return [_encode(item, f"{where}/{index}", tensors) for index, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": _encode(list(value), where, tensors)}
    if isinstance(value, dict):
        pairs = [
            [_encode(key, where, tensors), _encode(item, f"{where}/{key}", tensors)]
            for key, item in value.items()
        ]
        return {"counter" if isinstance(value, Counter) else "dict": pairs}
    raise ModelError(
        f"the training state holds a {type(value).__name__} at {where.strip('/')!r}; expected"
        " tensors, numbers, texts, lists and dicts",
        hint="give an optimizer or scheduler of your own a state_dict of such values",
    )


def _decode(value: Any, tensors: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "numpy":
        return _decode(content, tensors).numpy()
    if kind == "tuple":
        return tuple(_decode(content, tensors))
    pairs = {_decode(key, tensors): _decode(item, tensors) for key, item in content}
    return Counter(pairs) if kind == "counter" else pairs
