"""The rules of the layout: who may import whom, what is lazy, what ships, what is never done."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A folder imports only from those after it.
ORDER = (
    "compat",
    "cli",
    "commands",
    "reports",
    "optimizers",
    "exporters",
    "packagers",
    "training",
    "zoo",
    "runtime",
    "frameworks",
    "specs",
    "errors",
)
NOT_PACKAGES = {"tests", "benchmarks", "docs", "examples", "build", "dist", "demo"}
FRAMEWORKS = {
    "PIL",
    "ai_edge_litert",
    "ai_edge_quantizer",
    "keras",
    "litert_torch",
    "ludwig",
    "onnx",
    "onnx_ir",
    "onnxconverter_common",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "optuna",
    "pycocotools",
    "safetensors",
    "scipy",
    "sqlalchemy",
    "tensorboard",
    "tensorflow",
    "tf2onnx",
    "torch",
    "torchmetrics",
    "torch_pruning",
}
WITHOUT_NUMPY = {"cli", "commands", "specs", "errors", ""}
# Subclasses of torch.nn.Module need PyTorch at the top. Modules outside of this folder import those
# in it only inside functions, and its __init__.py imports nothing, so that all else stays lazy.
TORCH_MODULES = "zoo/networks/"
MOST_LINES = 500

# Modules that touch pickles, or what the check takes for it, and why each of them is safe.
UNSAFE_ALLOWED: dict[str, str] = {
    "runtime/golden.py": "Neuropod's golden data: its unpickler makes nothing but NumPy arrays",
}
PICKLE_MODULES = {
    "pickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
}
# Keyword arguments that must have this value wherever they are given.
SAFE_VALUES = {"allow_pickle": False, "weights_only": True, "safe_mode": True}


def package_folders() -> list[Path]:
    """Return every folder of the package, the root first."""
    folders = [ROOT]
    for init in sorted(ROOT.glob("*/**/__init__.py")):
        parts = init.parent.relative_to(ROOT).parts
        if parts[0] not in NOT_PACKAGES and not any(part.startswith(".") for part in parts):
            folders.append(init.parent)
    return folders


def module_paths() -> list[str]:
    """Return every module of the package, as a path from the root."""
    found = (path for folder in package_folders() for path in sorted(folder.glob("*.py")))
    return [path.relative_to(ROOT).as_posix() for path in found]


MODULES = module_paths()


@cache
def parse(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), filename=module)


def area(module: str) -> str:
    """Return the folder of ORDER that a module belongs to; the root's __init__.py has none."""
    first = module.split("/")[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported_names(module: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of everything that is imported, wherever it stands."""
    package = ["ingot", *module.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = [*base, *([node.module] if node.module else [])]
            for alias in node.names:
                yield node.lineno, ".".join([*prefix, alias.name])


def top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the imports that run with the module: not those of functions and type checks."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from top_level(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "finalbody"):
                yield from top_level(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from top_level(handler.body)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_folders_below_its_own(module: str) -> None:
    own = area(module)
    if own == "":
        return
    assert own in ORDER, f"{module}: {own} is no folder of the layout"
    below = {"specs", "errors"} if own == "reports" else set(ORDER[ORDER.index(own) + 1 :])
    for line, name in imported_names(module, parse(module)):
        if name.split(".")[0] != "ingot":
            continue
        target = name.split(".")[1] if "." in name else ""
        assert target in {own, "__version__"} | below, f"{module}:{line} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_inside_the_package_imports_are_relative(module: str) -> None:
    for node in ast.walk(parse(module)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            top = name.split(".")[0]
            assert top != "ingot", f"{module}:{node.lineno} imports {name}; make it relative"
            assert top not in ORDER, f"{module}:{node.lineno} imports a second copy of {name}"


@pytest.mark.parametrize("module", MODULES)
def test_importing_a_module_imports_no_framework(module: str) -> None:
    banned = FRAMEWORKS | ({"numpy", "rich"} if area(module) in WITHOUT_NUMPY else set())
    if module.startswith("cli/console"):  # imported only when there is something to render
        banned.remove("rich")
    is_network = module.startswith(TORCH_MODULES) and not module.endswith("/__init__.py")
    if is_network:
        banned.remove("torch")
    networks = "ingot." + TORCH_MODULES.replace("/", ".")
    for node in top_level(parse(module).body):
        for line, name in imported_names(module, node):
            is_lazy = name.split(".")[0] not in banned
            is_lazy &= is_network or not f"{name}.".startswith(networks)
            assert is_lazy, f"{module}:{line} imports {name} at the top"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_loads_a_pickle(module: str) -> None:
    if module in UNSAFE_ALLOWED:
        return
    tree = parse(module)
    for line, name in imported_names(module, tree):
        assert name.split(".")[0] not in PICKLE_MODULES, f"{module}:{line} imports {name}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        for name, safe in SAFE_VALUES.items():
            value = given.get(name)
            is_safe = value is None or (isinstance(value, ast.Constant) and value.value is safe)
            assert is_safe, f"{module}:{node.lineno}: {name} has to be {safe}"
        called = ast.unparse(node.func)
        if called == "torch.load":
            assert "weights_only" in given, f"{module}:{node.lineno}: torch.load, no weights_only"
        unsafe_yaml = called in {"yaml.unsafe_load", "yaml.full_load"}
        assert not unsafe_yaml, f"{module}:{node.lineno}: {called}"
        assert not called.endswith("enable_unsafe_deserialization"), f"{module}:{node.lineno}"


def test_the_list_of_unsafe_modules_is_up_to_date() -> None:
    assert set(UNSAFE_ALLOWED) <= set(MODULES)


def test_files_can_be_read_in_one_sitting() -> None:
    others = [
        path.relative_to(ROOT).as_posix()
        for folder in ("tests", "benchmarks", "examples", ".ci")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    lines = {name: len((ROOT / name).read_bytes().splitlines()) for name in [*MODULES, *others]}
    too_long = {name: count for name, count in lines.items() if count > MOST_LINES}
    assert not too_long, f"over {MOST_LINES} lines"


@pytest.fixture(scope="module")
def setup_cfg() -> ConfigParser:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def dotted(folder: Path) -> str:
    return ".".join(["ingot", *folder.relative_to(ROOT).parts])


def test_setup_cfg_lists_every_subpackage(setup_cfg: ConfigParser) -> None:
    assert setup_cfg["options"]["packages"].split() == sorted(map(dotted, package_folders()))


def test_setup_cfg_ships_every_data_file(setup_cfg: ConfigParser) -> None:
    shipped = setup_cfg["options.package_data"]
    forgotten = [
        path.relative_to(ROOT).as_posix()
        for folder in package_folders()[1:]
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix not in {".py", ".pyc"} and not path.name.startswith(".")
        if not any(fnmatch(path.name, glob) for glob in shipped.get(dotted(folder), "").split())
    ]
    assert forgotten == []


def test_the_root_holds_no_stray_module() -> None:
    assert [name for name in MODULES if "/" not in name] == ["__init__.py", "errors.py"]


@pytest.mark.parametrize("argument", [[], ["package"]])
def test_help_loads_neither_numpy_nor_rich_nor_a_framework(
    argument: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ingot.cli", *argument, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Usage" in done.stdout
    timings = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in timings}
    assert "click" in loaded
    assert loaded & ({"numpy", "rich"} | FRAMEWORKS) == set()
