"""Packages Python code: plain Python models, PyTorch modules, and models that wrap others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from ..errors import ModelError, SpecError, UsageError
from ..frameworks import ModelSource
from ..frameworks.embedded import ingot_entry, ingot_recipe
from ..runtime.requirements import parse_lock
from .base import PackageArguments, PackageBuilder, PathLike, TensorSpecs, packager, parsed
from .code import collect_folders, collect_reachable, python_roots, with_init_files
from .lock import compile_requirements

DataPaths = Iterable[Mapping[str, Any]]
CodePaths = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Code:
    """The Python code of a model, and what goes with it.

    Attributes:
        entrypoint_package: dotted name of the module.
        entrypoint: the attribute of it that builds the model.
        code_path_spec: folders to package; None: what the module imports below ``code_root``.
        code_root: where the module lies, when ``code_path_spec`` does not say.
        data_paths: entries ``{"path": file, "packaged_name": name}``.
        requirements: what to compile into a lock.
        requirements_lock: a finished lock to carry instead.
        kwargs: keyword arguments of the entry point.
        weights: state of the module that the entry point returns (PyTorch only).
        recipe: what pruning did to the channels of that module (PyTorch only).
        pass_data_root: the entry point takes the folder of its data; False goes by its signature.
        label: what messages call the source; None is the model's name.
    """

    entrypoint_package: str
    entrypoint: str
    code_path_spec: CodePaths | None = None
    code_root: Path | None = None
    data_paths: DataPaths = ()
    requirements: str | Sequence[str] | None = None
    requirements_lock: PathLike | None = None
    kwargs: Mapping[str, Any] | None = None
    weights: PathLike | None = None
    recipe: Mapping[str, Any] | None = None
    pass_data_root: bool = True
    label: str | None = None


@packager
def create_python_package(
    path: PathLike,
    model_name: str,
    input_spec: TensorSpecs,
    output_spec: TensorSpecs,
    *,
    code_path_spec: CodePaths,
    entrypoint_package: str,
    entrypoint: str,
    data_paths: DataPaths = (),
    requirements: str | Sequence[str] | None = None,
    requirements_lock: PathLike | None = None,
    **arguments: Unpack[PackageArguments],
) -> Path:
    """Package Python code whose entry point returns a callable of named NumPy arrays.

    Args:
        path: the package to make; not below a ``python_root``.
        model_name: the model's name.
        input_spec: the inputs.
        output_spec: the outputs.
        code_path_spec: ``[{"python_root": folder, "dirs_to_package": [""]}]``; ``""`` is all of it.
        entrypoint_package: dotted name of the module, from a ``python_root``.
        entrypoint: the function in it that gets the folder of the packaged data and returns the
            model: a callable of keyword arrays that returns a dict of arrays.
        data_paths: ``[{"path": file, "packaged_name": name in the data folder}]``.
        requirements: text or lines of a requirements file, compiled into a lock with pip.
        requirements_lock: a finished lock (``name==version`` lines) to carry instead.
        arguments: see :class:`~ingot.packagers.base.PackageOptions`.

    Returns:
        the path of the package.

    Raises:
        CheckError: the package's outputs differ from the expected ones; nothing is written.
        IngotError: the code fails, or the package cannot be written.
    """
    code = Code(
        entrypoint_package,
        entrypoint,
        code_path_spec,
        None,
        data_paths,
        requirements,
        requirements_lock,
    )
    return package_code(path, model_name, "python", input_spec, output_spec, code, arguments)


@packager
def create_pytorch_package(
    path: PathLike,
    model_name: str,
    input_spec: TensorSpecs,
    output_spec: TensorSpecs,
    *,
    code_path_spec: CodePaths,
    entrypoint_package: str,
    entrypoint: str,
    data_paths: DataPaths = (),
    requirements: str | Sequence[str] | None = None,
    requirements_lock: PathLike | None = None,
    weights: PathLike | None = None,
    entrypoint_kwargs: Mapping[str, Any] | None = None,
    **arguments: Unpack[PackageArguments],
) -> Path:
    """Package PyTorch code whose entry point returns an ``nn.Module``.

    The module gets tensors. The package also carries a wrapper for Neuropod, which hands over
    arrays.

    Args:
        path: the package to make; not below a ``python_root``.
        model_name: the model's name.
        input_spec: the inputs.
        output_spec: the outputs.
        code_path_spec: ``[{"python_root": folder, "dirs_to_package": [""]}]``; ``""`` is all of it.
        entrypoint_package: dotted name of the module, from a ``python_root``.
        entrypoint: the function in it that returns the ``nn.Module``; it gets the folder of the
            packaged data when its first parameter has no default or is called ``data_root``.
        data_paths: ``[{"path": file, "packaged_name": name in the data folder}]``.
        requirements: text or lines of a requirements file, compiled into a lock with pip.
        requirements_lock: a finished lock (``name==version`` lines) to carry instead.
        weights: a safetensors file, or a ``weights_only`` checkpoint, loaded into the module.
        entrypoint_kwargs: keyword arguments of the entry point (JSON values).
        arguments: see :class:`~ingot.packagers.base.PackageOptions`.

    Returns:
        the path of the package.

    Raises:
        CheckError: the package's outputs differ from the expected ones; nothing is written.
        IngotError: the code fails, or the package cannot be written.
    """
    code = Code(
        entrypoint_package,
        entrypoint,
        code_path_spec,
        None,
        data_paths,
        requirements,
        requirements_lock,
        entrypoint_kwargs,
        weights,
        pass_data_root=False,
    )
    return package_code(path, model_name, "torch", input_spec, output_spec, code, arguments)


def package_code(
    path: PathLike,
    model_name: str,
    framework: str,
    input_spec: TensorSpecs,
    output_spec: TensorSpecs,
    code: Code,
    arguments: PackageArguments,
) -> Path:
    """Package Python code of the framework ``torch`` or ``python``; see :class:`Code`.

    Raises:
        CheckError: the package's outputs differ from the expected ones; nothing is written.
        UsageError: the package would lie below a root whose code goes into it.
        IngotError: the code fails, or the package cannot be written.
    """
    inputs, outputs = parsed(input_spec, "input_spec"), parsed(output_spec, "output_spec")
    if inputs is None or outputs is None:
        raise UsageError("Python code needs input_spec and output_spec")
    with PackageBuilder(path, model_name, "python", arguments) as builder:
        code_root = code.code_root
        if code.code_path_spec is not None:
            roots = python_roots(code.code_path_spec)
            _refuse_output_below(builder.path, roots)
            files = collect_folders(code.code_path_spec)
            code_root = _root_of(code.entrypoint_package, roots)
        else:
            files = collect_reachable(code.code_root or Path(), code.entrypoint_package)
        for name, file in sorted(with_init_files(files).items()):
            if file is None:
                builder.add_bytes(f"0/code/{name}", b"")
            else:
                builder.add_file(f"0/code/{name}", file)
        data = _data_files(code.data_paths)
        weights = None if code.weights is None else Path(code.weights).expanduser()
        packaged = data if weights is None else {**data, _weights_name(weights, data): weights}
        for name, file in packaged.items():
            builder.add_file(f"0/data/{name}", file)
        if not packaged:
            builder.add_directory("0/data")
        lock = _lock(code)
        if lock is not None:
            builder.add_bytes("0/requirements.lock", lock.encode())
        entrypoint = f"{code.entrypoint_package}:{code.entrypoint}"
        if framework == "python" and code.pass_data_root:
            builder.add_platform_config(
                {"entrypoint": code.entrypoint, "entrypoint_package": code.entrypoint_package}
            )
        else:
            _add_wrapper(builder, files, code.recipe is not None)
            settings = {
                "framework": framework,
                "entrypoint": entrypoint,
                "kwargs": dict(code.kwargs or {}),
                "weights": None if weights is None else _weights_name(weights, data),
                "tensors": framework == "torch",
                "inputs": [spec.name for spec in inputs],
                "outputs": [spec.name for spec in outputs],
            }
            if code.recipe is not None:
                settings["recipe"] = dict(code.recipe)
            builder.add_platform_config(
                {
                    "entrypoint": "get_model",
                    "entrypoint_package": "ingot_entry",
                    "ingot": settings,
                }
            )
        source = ModelSource(
            framework,
            code.label or model_name,
            inputs,
            outputs,
            entrypoint=entrypoint,
            entrypoint_kwargs=dict(code.kwargs or {}),
            code_root=code_root,
            data_files=data,
            always_pass_data_root=framework == "python" and code.pass_data_root,
            weights=weights,
            recipe=code.recipe,
            custom_ops=builder.custom_ops,
        )
        return builder.finish(inputs, outputs, source)


def _add_wrapper(builder: PackageBuilder, files: Mapping[str, Path], has_recipe: bool) -> None:
    for module in (ingot_entry, ingot_recipe) if has_recipe else (ingot_entry,):
        source = Path(str(module.__file__))
        if source.name in files:
            raise UsageError(
                f"{files[source.name]}: the name {source.stem} is taken by the package's own"
                " wrapper"
            )
        builder.add_file(f"0/code/{source.name}", source)


def _root_of(module: str, roots: Sequence[Path]) -> Path | None:
    """Return the root that holds the entry module, else the first one."""
    top = module.partition(".")[0]
    holding = [root for root in roots if (root / f"{top}.py").is_file() or (root / top).is_dir()]
    return next(iter(holding or roots), None)


def _refuse_output_below(path: Path, roots: Sequence[Path]) -> None:
    target = path.absolute().resolve()
    for root in roots:
        if target.is_relative_to(root.resolve()):
            raise UsageError(
                f"{path}: the package would lie below python_root {root}, whose code goes into it",
                hint="write it somewhere else (-o)",
            )


def _data_files(data_paths: DataPaths) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for index, entry in enumerate(data_paths):
        key = f"data_paths[{index}]"
        if set(entry) != {"path", "packaged_name"}:
            raise SpecError(
                f"found the keys {', '.join(sorted(entry))}; expected path and packaged_name",
                key=key,
            )
        path, name = Path(entry["path"]).expanduser(), str(entry["packaged_name"])
        if not path.is_file():
            raise ModelError(f"{key}: {path} is not a file")
        if name in files:
            raise SpecError(f"a second file named {name!r}", key=f"{key}.packaged_name")
        files[name] = path
    return files


def _weights_name(weights: Path, data: Mapping[str, Path]) -> str:
    return weights.name if weights.name not in data else f"weights-{weights.name}"


def _lock(code: Code) -> str | None:
    if code.requirements is not None and code.requirements_lock is not None:
        raise UsageError("found requirements and requirements_lock; expected at most one")
    if code.requirements is not None:
        return compile_requirements(code.requirements)
    if code.requirements_lock is None:
        return None
    file = Path(code.requirements_lock).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from error
    parse_lock(text, str(file))
    return text
