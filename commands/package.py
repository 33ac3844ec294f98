"""``package``: turn the model of a spec into a package."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..specs import ModelSpec, TensorSpec, load_spec

Progress = Callable[[str], None]


@dataclass(frozen=True)
class PackageResult:
    """A finished package.

    Attributes:
        path: where it is.
        name: the model's name.
        platform: the platform of the package.
        size_bytes: size of the zip, or of all files of the directory.
        sha256: hash of the zip; of ``manifest.json`` for a directory.
        inputs: the inputs.
        outputs: the outputs.
        golden: ``given``, ``recorded``, or None when there is no golden data.
    """

    path: Path
    name: str
    platform: str
    size_bytes: int
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; the path is absolute."""
        return {
            "path": str(self.path.absolute()),
            "name": self.name,
            "platform": self.platform,
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
            "golden": self.golden,
        }


def package(
    spec: str | Path | ModelSpec,
    output: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    as_directory: bool = False,
    store: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> PackageResult:
    """Package the model of a spec, test the package in a fresh process, and put it in place.

    Args:
        spec: a spec file or a loaded spec; a Ludwig model folder, or a bare model file that says
            its own inputs and outputs (ONNX, ``.keras``, SavedModel).
        output: the package to make; None makes ``NAME.ingot`` in the current folder.
        overrides: ``key.path=value`` changes to the spec.
        as_directory: write a directory instead of a zip.
        store: compress nothing in the zip; by default only the weights are not.
        force: replace an existing output.
        progress: called with a line for each phase.

    Returns:
        what was written.

    Raises:
        SpecError: the spec is invalid.
        CheckError: the package does not reproduce its golden data; nothing is written.
        IngotError: the model fails, or the package cannot be written.
    """
    from ..runtime.detect import expand

    report = progress or _silent
    model_spec = spec if isinstance(spec, ModelSpec) else _load(expand(spec), overrides)
    target = expand(output) if output is not None else Path(f"{model_spec.name}.ingot")
    arguments: dict[str, Any] = {
        "platform_version_semver": model_spec.model.platform_version_semver,
        "input_tensor_device": model_spec.model.input_tensor_device,
        "default_input_tensor_device": model_spec.model.default_input_tensor_device,
        "custom_ops": model_spec.model.custom_ops,
        "package_as_zip": not as_directory,
        "store": store,
        "force": force,
        "license": model_spec.license,
        "provenance": _provenance(model_spec, overrides),
    }
    golden = _golden_arguments(model_spec)
    arguments |= golden
    digests: list[str] = []
    arguments["on_finished"] = digests.append
    report(f"packaging {model_spec.name} ({model_spec.model.framework}) as {target}")
    path = _PACKAGERS[model_spec.model.framework](target, model_spec, arguments)
    given = "given" if golden.get("test_expected_out") is not None else "recorded"
    return _describe(path, digests[0], given if golden else None)


def _silent(line: str) -> None:
    return None


def _load(path: Path, overrides: Sequence[str]) -> ModelSpec:
    from ..runtime.detect import detect, refuse_run_only

    kind = detect(path)
    if kind == "spec":
        return load_spec(path, overrides)
    if kind == "package":
        raise UsageError(f"{path}: it is a package already; expected a spec or a model")
    refuse_run_only(path, kind)
    if overrides:
        raise UsageError(f"{path}: --set changes a spec; found a bare {kind} model")
    key = {"tensorflow": "saved_model", "ludwig": "directory"}.get(kind, "file")
    name = path.resolve().stem if path.is_file() else path.resolve().name
    model = {"framework": kind, key: str(path.resolve())}
    if kind == "torchscript":
        raise UsageError(
            f"{path}: a TorchScript file does not say the types and shapes of its tensors",
            hint="write a spec with model.framework: torchscript, model.file, inputs and outputs",
        )
    return ModelSpec.from_dict({"name": name, "model": model}, root=path.resolve().parent)


def _provenance(spec: ModelSpec, overrides: Sequence[str]) -> dict[str, Any]:
    if spec.path is None:
        return {}
    digest = hashlib.sha256(spec.path.read_bytes()).hexdigest()
    found: dict[str, Any] = {"file": spec.path.name, "sha256": digest}
    if overrides:
        found["overrides"] = list(overrides)
    return {"spec": found}


def _golden_arguments(spec: ModelSpec) -> dict[str, Any]:
    from ..runtime.golden import read_npz, restore_dtype

    test = spec.test
    if test is None or test.inputs is None:
        return {}
    inputs = read_npz(test.inputs, str(test.inputs))
    found: dict[str, Any] = {
        "test_input_data": {
            name: restore_dtype(array, name, spec.inputs or ()) for name, array in inputs.items()
        },
        "rtol": test.rtol,
        "atol": test.atol,
    }
    if test.expected is not None:
        expected = read_npz(test.expected, str(test.expected))
        found["test_expected_out"] = {
            name: restore_dtype(array, name, spec.outputs or ()) for name, array in expected.items()
        }
    return found


def _code(target: Path, spec: ModelSpec, arguments: dict[str, Any]) -> Path:
    from ..frameworks.base import check_weights
    from ..packagers.python import Code, package_code
    from ..runtime.sources import source_from_spec, spec_label

    model = spec.model
    module, _, attribute = (model.entrypoint or "").partition(":")
    check_weights(source_from_spec(spec))
    folders, code_root = None, spec.root
    if model.code_path_spec and not model.code_path_spec[0].dirs_to_package:
        code_root = model.code_path_spec[0].python_root
    elif model.code_path_spec is not None:
        folders = [
            {"python_root": entry.python_root, "dirs_to_package": list(entry.dirs_to_package)}
            for entry in model.code_path_spec
        ]
    code = Code(
        entrypoint_package=module,
        entrypoint=attribute,
        code_path_spec=folders,
        code_root=code_root,
        data_paths=[
            {"path": entry.path, "packaged_name": entry.packaged_name} for entry in model.data_paths
        ],
        requirements=model.requirements,
        requirements_lock=model.requirements_lock,
        kwargs=model.kwargs,
        weights=model.weights,
        recipe=model.recipe,
        pass_data_root=False,
        label=spec_label(spec),
    )
    inputs, outputs = spec.inputs or (), spec.outputs or ()
    return package_code(
        target,
        spec.name,
        model.framework,
        inputs,
        outputs,
        code,
        arguments,  # type: ignore[arg-type]
    )


def _torchscript(target: Path, spec: ModelSpec, arguments: dict[str, Any]) -> Path:
    from ..packagers import create_torchscript_package

    return create_torchscript_package(
        target,
        spec.name,
        spec.inputs or (),
        spec.outputs or (),
        module_path=spec.model.file,
        **arguments,
    )


def _onnx(target: Path, spec: ModelSpec, arguments: dict[str, Any]) -> Path:
    from ..packagers import create_onnx_package

    assert spec.model.file is not None
    return create_onnx_package(
        target, spec.name, spec.inputs, spec.outputs, model_path=spec.model.file, **arguments
    )


def _keras(target: Path, spec: ModelSpec, arguments: dict[str, Any]) -> Path:
    from ..packagers import create_keras_package

    native, file = None, spec.model.file
    if file is None or spec.model.weights is not None:
        from ..frameworks import LoadOptions, open_model
        from ..runtime.sources import source_from_spec

        native, file = open_model(source_from_spec(spec), LoadOptions()).native, None
    return create_keras_package(
        target,
        spec.name,
        spec.inputs,
        spec.outputs,
        model=native,
        model_path=file,
        node_name_mapping=spec.model.node_name_mapping,
        **arguments,
    )


def _tensorflow(target: Path, spec: ModelSpec, arguments: dict[str, Any]) -> Path:
    from ..packagers import create_tensorflow_package

    model = spec.model
    return create_tensorflow_package(
        target,
        spec.name,
        spec.inputs,
        spec.outputs,
        frozen_graph_path=model.graph,
        saved_model_dir=model.saved_model,
        node_name_mapping=model.node_name_mapping,
        init_op_names=model.init_op_names,
        **arguments,
    )


def _ludwig(target: Path, spec: ModelSpec, arguments: dict[str, Any]) -> Path:
    from ..packagers import create_ludwig_package

    assert spec.model.directory is not None
    return create_ludwig_package(
        target,
        spec.name,
        spec.inputs,
        spec.outputs,
        ludwig_model_path=spec.model.directory,
        **arguments,
    )


_PACKAGERS: Mapping[str, Callable[[Path, ModelSpec, dict[str, Any]], Path]] = {
    "torch": _code,
    "python": _code,
    "torchscript": _torchscript,
    "onnx": _onnx,
    "keras": _keras,
    "tensorflow": _tensorflow,
    "ludwig": _ludwig,
}


def _describe(path: Path, digest: str, golden: str | None) -> PackageResult:
    from ..runtime.package import Package

    with Package(path, check_hashes=False) as opened:
        config = opened.config
        size = opened.reader.total_size if opened.reader.is_directory else path.stat().st_size
    return PackageResult(
        path, config.name, config.platform, size, digest, config.inputs, config.outputs, golden
    )
