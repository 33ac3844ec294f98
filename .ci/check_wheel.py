"""Build the wheel, install it where nothing but its base dependencies is, and try it there.

An editable install hides a subpackage or a data file that setup.cfg forgets, and an environment
with every framework hides an import that is not lazy: both fail here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Copied without these, because setuptools would sweep a stale build/ into the wheel.
NOT_SOURCE = (".*", "build", "dist", "demo", "*.egg-info", "__pycache__")
FRAMEWORKS = ("torch", "tensorflow", "keras", "onnx", "onnxruntime", "safetensors")
NOT_SHIPPED = ("tests", "benchmarks", "docs", "examples", "build", ".ci")

IMPORT_ALL = """
import importlib, sys, traceback
failed = []
for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
    except BaseException:
        failed.append(name)
        traceback.print_exc()
    else:
        assert "site-packages" in module.__file__, module.__file__
sys.exit(f"cannot be imported without a framework: {', '.join(failed)}" if failed else 0)
"""

NO_FRAMEWORK = """
import importlib.util, sys
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
sys.exit(f"the base dependencies bring in {', '.join(found)}" if found else 0)
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ingot-wheel-") as folder:
        work = Path(folder)
        wheel = build_wheel(work)
        names = zipfile.ZipFile(wheel).namelist()
        check_contents(names)
        python = install(wheel, work)
        check_installed(python, names, work)
    print(f"wheel check: {wheel.name} is complete and works without frameworks")


def build_wheel(work: Path) -> Path:
    """Build the wheel from a copy of the checkout."""
    source = work / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(work), str(source)]
    run(command, cwd=work, quiet=True)
    (wheel,) = work.glob("*.whl")
    return wheel


def check_contents(names: list[str]) -> None:
    """Every source and data file of the packages in setup.cfg is there, and nothing else."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    expected = {"ingot/py.typed", "ingot/specs/spec.schema.json"}
    expected |= {"ingot/cpp/ingot.hpp", "ingot/cpp/neuropod/neuropod.hh"}
    data = config["options.package_data"]
    for package in config["options"]["packages"].split():
        folder = ROOT.joinpath(*package.split(".")[1:])
        for pattern in ("*.py", *data.get(package, "").replace(",", " ").split()):
            expected |= {f"ingot/{p.relative_to(ROOT).as_posix()}" for p in folder.glob(pattern)}
    missing = sorted(expected - set(names))
    if missing:
        sys.exit(f"missing in the wheel: {', '.join(missing)}")
    for name in names:
        top, *rest = name.split("/")
        if top.endswith(".dist-info"):
            continue
        if top != "ingot" or rest[0] in NOT_SHIPPED:
            sys.exit(f"does not belong in the wheel: {name}")
    if not any(name.endswith("licenses/LICENSE") for name in names):
        sys.exit("missing in the wheel: LICENSE")


def install(wheel: Path, work: Path) -> Path:
    """Install the wheel in an empty environment and return its interpreter."""
    venv.create(work / "venv", with_pip=True)
    python = work / "venv" / "bin" / "python"
    constraints = str(ROOT / "constraints.txt")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run([*pip, "install", "-c", constraints, str(wheel)], cwd=work)
    run([*pip, "check"], cwd=work, quiet=True)
    return python


def check_installed(python: Path, names: list[str], work: Path) -> None:
    """Import every module and run the command, outside the checkout and with an empty home."""
    outside, home = work / "outside", work / "home"
    outside.mkdir()
    home.mkdir()
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in names
        if name.startswith("ingot/") and name.endswith(".py") and "__main__" not in name
        # The networks are PyTorch modules, which can only be imported where PyTorch is.
        if not name.startswith("ingot/zoo/networks/")
    )
    run([str(python), "-c", NO_FRAMEWORK, *FRAMEWORKS], cwd=outside, home=home)
    run([str(python), "-c", IMPORT_ALL, *modules], cwd=outside, home=home)
    ingot = str(python.with_name("ingot"))
    help_text = run([ingot, "--help"], cwd=outside, home=home, quiet=True)
    for command in ("package", "infer", "inspect", "verify"):
        if command not in help_text:
            sys.exit(f"ingot --help does not name the command {command}:\n{help_text}")
        run([ingot, command, "--help"], cwd=outside, home=home, quiet=True)
    version = run([ingot, "--version"], cwd=outside, home=home, quiet=True)
    wanted = run([str(python), "-c", "import ingot; print(ingot.__version__)"], cwd=outside)
    if wanted.strip() not in version:
        sys.exit(f"ingot --version prints {version!r}; expected {wanted.strip()}")
    run([str(python), "-m", "ingot.cli", "--version"], cwd=outside, home=home, quiet=True)
    include = Path(run([ingot, "--include-dir"], cwd=outside, home=home, quiet=True).strip())
    for header in ("ingot.hpp", "neuropod/neuropod.hh"):
        if not (include / header).is_file():
            sys.exit(f"ingot --include-dir prints {include}, which has no {header}")
    left = [str(path.relative_to(work)) for path in (*outside.rglob("*"), *home.rglob("*"))]
    if left:
        sys.exit(f"files were written outside the outputs: {', '.join(left)}")


def run(command: list[str], *, cwd: Path, home: Path | None = None, quiet: bool = False) -> str:
    """Run a command and return its output; print that and stop when it fails."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    if home is not None:
        env = {key: value for key, value in env.items() if not key.startswith("XDG_")}
        env["HOME"] = str(home)
    done = subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        shown = " ".join("..." if "\n" in part else part for part in command)
        print(f"{done.stdout}{done.stderr}", file=sys.stderr)
        sys.exit(f"exit code {done.returncode} from: {shown}")
    if not quiet and done.stderr:
        print(done.stderr, file=sys.stderr, end="")
    return done.stdout


if __name__ == "__main__":
    main()
