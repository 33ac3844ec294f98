"""What a journal belongs to: hashes of the model, the spec, the data, the options and the tools."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..specs import ModelSpec
from ..training.data import Splits
from ..training.inputter import Inputter
from ..training.randomness import seed_everything

TRAINING_BATCHES = 8
"""Batches of each split but the one that is measured on; reading all would take an epoch."""
_TOOLS = ("ingot", "torch", "torch-pruning", "onnxruntime", "onnx", "numpy", "scipy")
_MOST_FILES = 2000


def tool_versions() -> dict[str, str]:
    """Return the versions of the tools that decide a search."""
    found = {"python": platform.python_version()}
    for name in _TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hash_of(value: Any) -> str:
    """Return the sha256 of JSON values; what JSON does not know counts by its text."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_spec(spec: ModelSpec) -> str:
    """Hash what a spec says, but for what is only about the result, and names."""
    values = spec.to_dict()
    for name in ("export", "license", "run_key", "tune"):
        values.pop(name, None)
    # The same folder elsewhere is the same spec.
    text = json.dumps(values, sort_keys=True, default=str).replace(str(spec.root.absolute()), ".")
    return hash_of(text)


def hash_model(network: Any, code_root: Path | None) -> str:
    """Hash the weights of a network, and the code beside it."""
    whole = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        whole.update(value.flatten().view(_bytes_type()).numpy().tobytes())
    for path in code_files(code_root):
        assert code_root is not None
        name = path.relative_to(code_root)
        whole.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def hash_data(splits: Splits, eval_split: str, seed: int, run_key: str | None) -> str | None:
    """Hash the data: the whole evaluation split, and the first batches of others.

    All generators are seeded before, so that data augmented at random has one hash, too.

    Returns:
        None when two readings give something else: then a search cannot be resumed.
    """
    if run_key is not None:
        return hash_of(["run_key", run_key])
    whole = hashlib.sha256()
    for name in sorted(splits):
        first = _hash_split(splits[name], TRAINING_BATCHES, seed)
        again = _hash_split(splits[name], TRAINING_BATCHES, seed)
        if first is None or first != again:
            return None
        found = first
        if name == eval_split:
            everything = _hash_split(splits[name], None, seed)
            if everything is None:
                return None
            found = everything
        whole.update(f"{name} {_length(splits[name])} {found}\n".encode())
    return whole.hexdigest()


def hash_batches(batches: Iterable[Any]) -> str | None:
    """Hash some batches; None when they hold something that has no bytes of its own."""
    whole = hashlib.sha256()
    return whole.hexdigest() if all(_add(whole, batch) for batch in batches) else None


def is_steady(loader: Any) -> bool:
    """Whether two readings of a split begin with the same batch; nothing is seeded between."""
    first, second = hashlib.sha256(), hashlib.sha256()
    for whole in (first, second):
        for batch in islice(iter(loader), 1):
            _add(whole, batch)
    return first.digest() == second.digest()


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Check that a journal belongs to what is searched now.

    Raises:
        UsageError: it does not; the message says what changed.
    """
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise UsageError(
            f"{folder}: its journal was written with another {' and another '.join(changed)};"
            " expected the same",
            hint="--fresh starts over, or give another -o RUNDIR",
        )


def code_files(root: Path | None) -> list[Path]:
    """Return the modules beside a model: those in its folder, and in folders below it."""
    if root is None or not root.is_dir():
        return []
    found: list[Path] = []
    waiting = [root]
    while waiting and len(found) < _MOST_FILES:
        folder = waiting.pop()
        entries = sorted(folder.iterdir())
        names = {entry.name for entry in entries}
        if "pyvenv.cfg" in names or "journal.jsonl" in names:
            continue
        found += [entry for entry in entries if entry.suffix == ".py" and entry.is_file()]
        waiting += [
            entry
            for entry in entries
            if entry.is_dir() and not entry.is_symlink() and entry.name.isidentifier()
            if not entry.name.startswith("__")
        ]
    return sorted(found)[:_MOST_FILES]


def _bytes_type() -> Any:
    import torch

    return torch.uint8


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None


def _hash_split(loader: Iterable[Any], most: int | None, seed: int) -> str | None:
    seed_everything(seed, 0, 0)
    generator: Any = getattr(loader, "generator", None)
    if hasattr(generator, "manual_seed"):
        generator.manual_seed(seed)
    batches = loader.batches(0) if isinstance(loader, Inputter) else iter(loader)
    whole = hashlib.sha256()
    try:
        for batch in islice(batches, most):
            if not _add(whole, batch):
                return None
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    return whole.hexdigest()


def _add(whole: Any, value: Any) -> bool:
    """Add a batch to a hash; False when it holds something that has no bytes of its own."""
    if isinstance(value, Mapping):
        return all(_add(whole, key) and _add(whole, value[key]) for key in sorted(value, key=str))
    if isinstance(value, list | tuple):
        whole.update(f"{len(value)}:".encode())
        return all(_add(whole, item) for item in value)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        whole.update(repr(value).encode())
        return True
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        value = value.numpy()
    if not isinstance(value, np.ndarray) or value.dtype.hasobject:
        return False
    whole.update(f"{value.dtype} {value.shape}".encode())
    whole.update(np.ascontiguousarray(value).tobytes())
    return True
