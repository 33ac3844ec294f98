"""The section ``model``: where the model comes from, and what its framework needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, Self

from .declare import ENTRYPOINT, Rule, Section, key
from .nodes import Node, show

Framework = Literal["torch", "torchscript", "tensorflow", "keras", "onnx", "python", "ludwig"]
Device = Literal["CPU", "GPU"]


class FrameworkKeys(NamedTuple):
    """The keys of ``model`` that one framework knows, beside those that all know.

    Attributes:
        required: keys that have to be given.
        optional: keys that may be given.
        one_of: keys of which exactly one has to be given.
        pairs: keys that need another one: (key, what it needs).
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Every key of the framework."""
        return (*self.required, *self.one_of, *self.optional)


_HASHED = ("weights_sha256", "weights")
_CODE = ("kwargs", "code_path_spec", "data_paths", "requirements", "requirements_lock")

FRAMEWORK_KEYS: dict[str, FrameworkKeys] = {
    "torch": FrameworkKeys(
        ("entrypoint",),
        ("weights", "weights_sha256", "recipe", *_CODE),
        pairs=(_HASHED, ("recipe", "weights")),
    ),
    "python": FrameworkKeys(("entrypoint",), _CODE),
    "torchscript": FrameworkKeys(("file",)),
    "keras": FrameworkKeys(
        (),
        ("weights", "weights_sha256", "node_name_mapping", "kwargs"),
        ("file", "architecture", "entrypoint"),
        (("architecture", "weights"), ("kwargs", "entrypoint"), _HASHED),
    ),
    "onnx": FrameworkKeys(("file",)),
    "tensorflow": FrameworkKeys(
        (),
        ("node_name_mapping", "init_op_names"),
        ("saved_model", "graph"),
        (("graph", "node_name_mapping"),),
    ),
    "ludwig": FrameworkKeys(("directory",)),
}

COMMON_KEYS = (
    "framework",
    "platform_version_semver",
    "custom_ops",
    "input_tensor_device",
    "default_input_tensor_device",
)
"""Keys of ``model`` that every framework knows."""


@dataclass(frozen=True)
class CodePath(Section):
    """Folders of Python code that go into a package."""

    python_root: Path = key(
        Rule("Folder that the packaged folders are relative to.", exists="folder")
    )
    dirs_to_package: tuple[str, ...] = key(
        Rule(
            'Folders below `python_root` to take; `""` is all of it, and an empty list what the'
            " entry point imports.",
            allow_empty=True,
        ),
        default=("",),
    )

    def checked(self, node: Node) -> Self:
        """Keep the folders below their root."""
        for folder in self.dirs_to_package:
            if not _is_below(folder):
                raise node.at("dirs_to_package").error(
                    f"found {show(folder)}; expected folders below python_root"
                )
        return self


@dataclass(frozen=True)
class DataPath(Section):
    """A file that goes into a package beside the code."""

    path: Path = key(Rule("The file.", exists="file"))
    packaged_name: str = key("Its name in the package; the file's own name by default.", default="")

    def checked(self, node: Node) -> Self:
        """Fill in the name, and keep it inside the package."""
        name = self.packaged_name or self.path.name
        if not name or not _is_below(name):
            raise node.at("packaged_name").error(
                f"found {show(name)}; expected a relative path without '..'"
            )
        return replace(self, packaged_name=name)


def _is_below(path: str) -> bool:
    parts = PurePosixPath(path.replace("\\", "/"))
    return not parts.is_absolute() and ".." not in parts.parts and "\0" not in path


@dataclass(frozen=True)
class ModelSection(Section):
    """Where the model comes from. All paths are absolute."""

    framework: Framework = key("What the model is written in.")
    entrypoint: str | None = key(
        Rule(
            "Callable beside the spec that returns the `nn.Module` (torch), the `keras.Model`"
            " (keras), or a callable (python).",
            pattern=ENTRYPOINT,
            form="module:attribute",
        ),
        default=None,
    )
    kwargs: dict[str, Any] = key("Keyword arguments of the entry point.", default_factory=dict)
    weights: Path | None = key(
        Rule(
            "State of the module: safetensors, or a weights-only checkpoint; of a Keras model:"
            " safetensors.",
            exists="file",
        ),
        default=None,
    )
    weights_sha256: str | None = key(
        Rule(
            "Hash that the file of weights has to have.",
            pattern=r"^[0-9a-fA-F]{64}$",
            form="64 hexadecimal digits",
        ),
        default=None,
    )
    recipe: dict[str, Any] | None = key(
        "What pruning did to the channels of the module that the entry point returns; its state is"
        " `weights`.",
        default=None,
    )
    architecture: dict[str, Any] | None = key(
        "The model as Keras records it (`config.json` of a `.keras` file); its state is `weights`.",
        default=None,
    )
    file: Path | None = key(
        Rule("The model file (TorchScript, `.keras`, ONNX).", exists="file"), default=None
    )
    saved_model: Path | None = key(Rule("A SavedModel folder.", exists="folder"), default=None)
    graph: Path | None = key(Rule("A frozen GraphDef.", exists="file"), default=None)
    node_name_mapping: dict[str, str] | None = key(
        "Name in the spec to node of the graph, for every input and output.", default=None
    )
    init_op_names: tuple[str, ...] = key(
        Rule("Operations to run once after a graph is loaded.", single="item"), default=()
    )
    directory: Path | None = key(Rule("A Ludwig model folder.", exists="folder"), default=None)
    code_path_spec: tuple[CodePath, ...] | None = key(
        "Code to package; the modules beside the spec by default.", default=None
    )
    data_paths: tuple[DataPath, ...] = key("Files to package beside the code.", default=())
    requirements: tuple[str, ...] | None = key(
        Rule("What pip has to install for the code; compiled to a lock.", single="lines"),
        default=None,
    )
    requirements_lock: Path | None = key(
        Rule("A finished lock, packaged as it is.", exists="file"), default=None
    )
    platform_version_semver: str = key(
        "Versions of the framework that may run the model, as an npm range.", default="*"
    )
    custom_ops: tuple[Path, ...] = key(
        Rule("Shared libraries to load before the model.", exists="file"), default=()
    )
    input_tensor_device: dict[str, Device] | None = key(
        Rule("Device of single inputs, by name.", upper=True), default=None
    )
    default_input_tensor_device: Device = key(
        Rule("Device of the other inputs.", upper=True), default="GPU"
    )

    def checked(self, node: Node) -> Self:
        """Check that the framework's keys are there, and no others."""
        self._check_keys(node)
        for name in ("node_name_mapping", "init_op_names"):
            if self.saved_model is not None and getattr(self, name):
                raise node.at(name).error("goes with 'graph'; found 'saved_model'")
        roots = self.code_path_spec or ()
        if len(roots) > 1 and not all(entry.dirs_to_package for entry in roots):
            raise node.at("code_path_spec").error(
                "found an empty dirs_to_package beside another root; expected it alone"
            )
        if self.requirements is not None and self.requirements_lock is not None:
            raise node.at("requirements_lock").error("found beside 'requirements'; expected one")
        for entry in self.requirements or ():
            if entry.endswith(".txt") and " " not in entry:
                raise node.at("requirements").error(
                    f"found {show(entry)}; expected requirements, not the name of a file",
                    hint="list them here, or name a finished lock in requirements_lock",
                )
        names = [entry.packaged_name for entry in self.data_paths]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise node.at("data_paths").error(f"two files with the packaged name {name!r}")
        _check_version_range(self.platform_version_semver, node)
        return self

    def _check_keys(self, node: Node) -> None:
        keys = FRAMEWORK_KEYS[self.framework]
        for name in node.value:
            if name not in COMMON_KEYS and name not in keys.all:
                raise node.at(name).error(
                    f"a {self.framework} model has no such key;"
                    f" expected {', '.join(keys.all)} or {', '.join(COMMON_KEYS[1:])}"
                )
        for name in keys.required:
            if getattr(self, name) is None:
                raise node.error(f"the key {name!r} is missing; a {self.framework} model needs it")
        given = [name for name in keys.one_of if getattr(self, name) is not None]
        if keys.one_of and len(given) != 1:
            found = " and ".join(given) or "neither"
            raise node.error(f"found {found}; expected exactly one of {', '.join(keys.one_of)}")
        for name, other in keys.pairs:
            if name in node.value and getattr(self, name) is not None and not getattr(self, other):
                raise node.error(f"the key {other!r} is missing; {name!r} needs it")


def _check_version_range(text: str, node: Node) -> None:
    if text == "*":
        return
    from semantic_version import NpmSpec

    try:
        NpmSpec(text)
    except ValueError:
        raise node.at("platform_version_semver").error(
            f"found {show(text)}; expected an npm-style version range, such as '>=2.1.0 <3.0.0'"
        ) from None
