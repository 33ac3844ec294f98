"""What a package says of itself: checked before it is believed, and never what decides on trust."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import INPUTS, onnx_add, python_add, write

import ingot
from ingot.runtime.config import PackageConfig
from ingot.runtime.detect import detect
from ingot.runtime.package import Package

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def onnx_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    model = onnx_add(folder / "add.onnx")
    return ingot.create_onnx_package(
        folder / "add", "add", model_path=model, test_input_data=INPUTS, package_as_zip=False
    )


@pytest.fixture(scope="module")
def code_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    return ingot.package(python_add(folder), folder / "add", as_directory=True).path


def rehash(package: Path) -> None:
    """Make the manifest fit the files again, as an attacker would."""
    files = {
        file.relative_to(package).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in package.rglob("*")
        if file.is_file() and file.name != "manifest.json"
    }
    (package / "manifest.json").write_text(json.dumps({"manifest_version": 1, "files": files}))


def changed(package: Path, target: Path, file: str, change: Change) -> Path:
    """Copy a package, change one JSON file of it, and its manifest to fit."""
    shutil.copytree(package, target)
    document = json.loads((target / file).read_text())
    change(document)
    (target / file).write_text(json.dumps(document))
    rehash(target)
    return target


def zipped(package: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(package.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(package).as_posix())
    return target


# --- a missing manifest ----------------------------------------------------------------------


@pytest.mark.parametrize("section", ["as written", "without format_version", "empty"])
def test_a_package_of_ingot_without_manifest(
    section: str, tmp_path: Path, onnx_package: Path, ingot_cli
) -> None:
    def change(config: dict[str, Any]) -> None:
        if section != "as written":
            del config["ingot"]["format_version"]
        if section == "empty":
            config["ingot"] = {}

    package = changed(onnx_package, tmp_path / "p", "config.json", change)
    (package / "manifest.json").unlink()
    process = ingot_cli("verify", "p")
    assert process.returncode == 4
    assert "FAIL  hashes   p: found no manifest.json; expected one" in process.stdout
    assert "SKIP  golden" in process.stdout
    assert "NOT verified" in process.stdout
    with pytest.raises(ingot.PackageError, match=r"p: found no manifest\.json; expected one"):
        ingot.load(package)
    with pytest.raises(ingot.PackageError, match=r"found no manifest\.json"):
        Package(package)


def test_code_of_ingot_without_manifest(tmp_path: Path, code_package: Path) -> None:
    """Its 0/config.json is Ingot's too, so that cutting config.json down is not enough."""

    def change(config: dict[str, Any]) -> None:
        del config["ingot"]

    package = changed(code_package, tmp_path / "p", "config.json", change)
    (package / "manifest.json").unlink()
    with pytest.raises(ingot.PackageError, match=r"found no manifest\.json; expected one"):
        ingot.load(package, trust_code=True)


def test_a_package_of_an_early_neuropod_needs_no_manifest(
    tmp_path: Path, onnx_package: Path, ingot_cli
) -> None:
    def change(config: dict[str, Any]) -> None:
        del config["ingot"]

    package = changed(onnx_package, tmp_path / "p", "config.json", change)
    (package / "manifest.json").unlink()
    process = ingot_cli("verify", "p")
    assert process.returncode == 0, process.stdout
    assert "SKIP  hashes   no manifest.json: an early Neuropod" in process.stdout
    with ingot.load(package) as model:
        assert model.infer(INPUTS)["out"].tolist() == [2, 3, 4, 5, 6]


# --- malformed metadata ----------------------------------------------------------------------

NUMBER = "expected a finite number that is not negative"
MALFORMED: list[tuple[str, Any, str]] = [
    ("input_tensor_device", {"x": []}, "found {'x': []}; expected CPU or GPU by input name"),
    ("ingot", "hi", "ingot: found 'hi'; expected an object"),
    ("ingot.format_version", True, "found True; expected a positive integer"),
    ("ingot.format_version", 0, "found 0; expected a positive integer"),
    ("ingot.format_version", 99, "found 99; this Ingot reads up to 1"),
    ("ingot.license", 5, "found 5; expected a string"),
    ("ingot.test", [], "found []; expected an object"),
    ("ingot.test.rtol", "abc", f"found 'abc'; {NUMBER}"),
    ("ingot.test.rtol", None, f"found None; {NUMBER}"),
    ("ingot.test.rtol", -1, f"found -1; {NUMBER}"),
    ("ingot.test.rtol", True, f"found True; {NUMBER}"),
    ("ingot.test.atol", float("nan"), f"found nan; {NUMBER}"),
    ("ingot.test.atol", float("inf"), f"found inf; {NUMBER}"),
    ("ingot.test.atol", 10**400, NUMBER),
    ("ingot.provenance", "hi", "found 'hi'; expected an object"),
    ("ingot.provenance.created_by", 1, "found 1; expected a string"),
    ("ingot.provenance.framework", "torch", "found 'torch'; expected an object"),
    ("ingot.provenance.framework.version", 2, "found 2; expected a string"),
    ("ingot.provenance.spec", {"file": "a.yaml"}, "ingot.provenance.spec.sha256: found nothing"),
]


@pytest.mark.parametrize(("key", "value", "message"), MALFORMED)
def test_malformed_config(key: str, value: Any, message: str, onnx_package: Path) -> None:
    config = json.loads((onnx_package / "config.json").read_text())
    section = config
    *path, last = key.split(".")
    for part in path:
        section = section[part]
    section[last] = value
    with pytest.raises(ingot.PackageError) as caught:
        PackageConfig.from_json(json.dumps(config).encode(), "p.ingot")
    assert caught.value.message.startswith(f"p.ingot: config.json: {key}")
    assert message in caught.value.message


BAD_CODE: list[tuple[dict[str, Any], str]] = [
    ({"framework": "bogus"}, "ingot.framework: found 'bogus'; expected python or torch"),
    ({"framework": "onnx"}, "ingot.framework: found 'onnx'; expected python or torch"),
    ({"framework": []}, "ingot.framework: found []; expected python or torch"),
    ({"entrypoint": 5}, "ingot.entrypoint: found 5; expected a string"),
    ({"kwargs": [1]}, "ingot.kwargs: found [1]; expected an object"),
    ({"weights": "../x"}, "ingot.weights: found '../x'; expected the name of a file"),
    ({"weights": 7}, "ingot.weights: found 7; expected the name of a file"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_CODE)
def test_malformed_code_section(
    settings: dict[str, Any], message: str, tmp_path: Path, code_package: Path
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["ingot"].update(settings)

    package = changed(code_package, tmp_path / "p", "0/config.json", change)
    for call in (ingot.inspect, ingot.verify, ingot.load):
        with pytest.raises(ingot.PackageError) as caught:
            call(package)
        assert f"p: 0/config.json: {message}" in caught.value.message


def test_malformed_metadata_is_one_line_of_every_command(
    tmp_path: Path, onnx_package: Path, code_package: Path, ingot_cli
) -> None:
    def provenance(config: dict[str, Any]) -> None:
        config["ingot"]["provenance"] = "hi"

    def section(config: dict[str, Any]) -> None:
        config["ingot"] = 5

    changed(onnx_package, tmp_path / "a", "config.json", provenance)
    changed(code_package, tmp_path / "b", "0/config.json", section)
    for arguments in (("inspect", "a"), ("verify", "a"), ("inspect", "b"), ("infer", "b")):
        process = ingot_cli(*arguments)
        assert process.returncode == 5
        assert process.stdout == ""
        assert process.stderr.count("\n") == 1
        assert "config.json: ingot" in process.stderr


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KEYS = ["name", "platform", "input_spec", "platform_version_semver", "custom_ops", "ingot"]
KEYS += ["input_tensor_device", *(key for key, _, _ in MALFORMED), "input_spec.0", "input_spec.0.x"]


@given(st.sampled_from(KEYS), JSON)
def test_any_value_is_read_or_refused(key: str, value: Any) -> None:
    tensor = {"name": "x", "dtype": "float32", "shape": ["n"]}
    config: Any = {
        "name": "m",
        "platform": "onnx",
        "input_spec": [tensor],
        "output_spec": [],
        "ingot": {"test": {}, "provenance": {"framework": {"name": "a", "version": "1"}}},
    }
    section = config
    *path, last = key.split(".")
    for part in path:
        section = section[int(part)] if isinstance(section, list) else section[part]
    section[int(last) if isinstance(section, list) else last] = value
    try:
        read = PackageConfig.from_json(json.dumps(config).encode(), "p")
    except ingot.PackageError:
        return
    assert PackageConfig.from_json(read.to_json(), "p") == read


# --- trust -----------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", ["onnx", "torchscript", "python", "torch", "ludwig", None])
def test_what_a_package_says_does_not_make_its_code_trusted(
    framework: str | None, tmp_path: Path, code_package: Path
) -> None:
    def change(config: dict[str, Any]) -> None:
        if framework is None:
            del config["ingot"]["framework"]
        else:
            config["ingot"]["framework"] = framework

    package = changed(code_package, tmp_path / "p", "0/config.json", change)
    with pytest.raises(ingot.ModelError) as caught:
        ingot.load(package)
    allowed = framework in ("python", "torch", None)
    assert isinstance(caught.value, ingot.UntrustedCodeError if allowed else ingot.PackageError)


# --- what a path holds -----------------------------------------------------------------------


@pytest.mark.parametrize("extra", ["model_hyperparameters.json", "saved_model.pb"])
def test_a_package_with_a_file_of_another_format(
    extra: str, tmp_path: Path, code_package: Path
) -> None:
    package = shutil.copytree(code_package, tmp_path / "p")
    (package / extra).write_text("{}")
    assert detect(package) == "package"
    with pytest.raises(ingot.UntrustedCodeError):
        ingot.load(package)
    hashes = next(check for check in ingot.verify(package).checks if check.name == "hashes")
    assert hashes.message == f"{extra!r}: found a file that is not in manifest.json"


@pytest.mark.parametrize("extra", ["model.weights.h5", "metadata.json", "x/constants.pkl"])
def test_a_zip_with_a_file_of_another_format(
    extra: str, tmp_path: Path, code_package: Path
) -> None:
    package = shutil.copytree(code_package, tmp_path / "p")
    (package / extra).parent.mkdir(exist_ok=True)
    (package / extra).write_text("{}")
    path = zipped(package, tmp_path / "p.ingot")
    assert detect(path) == "package"
    with pytest.raises(ingot.UntrustedCodeError):
        ingot.load(path)


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml", "toml", "onnx", "txt", "pt"])
def test_the_name_of_a_package_does_not_matter(
    suffix: str, tmp_path: Path, onnx_package: Path, ingot_cli
) -> None:
    path = zipped(onnx_package, tmp_path / f"p.{suffix}")
    assert detect(path) == "package"
    with ingot.load(path) as model:
        assert model.name == "add"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ingot.ModelError):
        ingot.load(path)


def test_a_home_of_nobody(ingot_cli) -> None:
    for command in ("inspect", "verify"):
        process = ingot_cli(command, "~nosuchuser/x")
        assert process.returncode == 5
        assert process.stderr.startswith("error: ~nosuchuser/x: no such file or folder")
    process = ingot_cli("inspect", "~nosuchuser/x", "--requirements")
    assert process.returncode == 5


def test_a_path_that_cannot_be_looked_at(ingot_cli) -> None:
    process = ingot_cli("inspect", "x" * 300)
    assert process.returncode == 5
    assert "cannot be read: File name too long" in process.stderr


def test_verify_says_what_it_found(tmp_path: Path, ingot_cli) -> None:
    onnx_add(tmp_path / "add.onnx")
    write(tmp_path / "p.toml", "name = 'm'\n")
    for name, found in (("p.toml", "a spec file"), ("add.onnx", "a bare onnx model")):
        process = ingot_cli("verify", name)
        assert process.returncode == 5
        assert process.stderr == f"error: {name}: found {found}; expected a package\n"


# --- golden data -----------------------------------------------------------------------------


def test_inspect_reads_no_golden_values(tmp_path: Path, onnx_package: Path, monkeypatch) -> None:
    monkeypatch.setattr(Package, "golden", None)
    for path in (onnx_package, zipped(onnx_package, tmp_path / "p.ingot")):
        found = ingot.inspect(path)
        assert found["golden"] == {
            "rtol": 1e-4,
            "atol": 1e-5,
            "inputs": {name: {"dtype": "float32", "shape": [5]} for name in "xy"},
            "outputs": {"out": {"dtype": "float32", "shape": [5]}},
        }
        assert found["golden_error"] is None
        assert "supported_format_version" not in found


def test_inspect_names_the_types_of_strings_and_bfloat16(tmp_path: Path) -> None:
    import ml_dtypes

    path = ingot.create_random_package(
        tmp_path / "p",
        "p",
        [
            {"name": "s", "dtype": "string", "shape": [2]},
            {"name": "b", "dtype": "bfloat16", "shape": [3]},
        ],
        [{"name": "out", "dtype": "float32", "shape": [1]}],
        test_input_data={"s": np.array(["a", "bc"]), "b": np.ones(3, ml_dtypes.bfloat16)},
    )
    assert ingot.inspect(path)["golden"]["inputs"] == {
        "b": {"dtype": "bfloat16", "shape": [3]},
        "s": {"dtype": "string", "shape": [2]},
    }


@pytest.mark.parametrize("damage", ["text", "cut", "pickle"])
def test_damaged_golden_data_is_said_by_inspect(
    damage: str, tmp_path: Path, onnx_package: Path, ingot_cli
) -> None:
    package = shutil.copytree(onnx_package, tmp_path / "p")
    golden = package / "test_data.npz"
    if damage == "pickle":
        np.savez(golden, **{"input/x": np.array([{}], object)})
    else:
        data = golden.read_bytes()
        golden.write_bytes(b"hello" if damage == "text" else data[: len(data) // 2])
    rehash(package)
    process = ingot_cli("inspect", "p")
    assert process.returncode == 0, process.stderr
    assert "golden data   damaged: p: test_data.npz: " in process.stdout
    found = json.loads(ingot_cli("inspect", "p", "--json").stdout)
    assert found["golden"] is None
    assert "test_data.npz" in found["golden_error"]
    process = ingot_cli("verify", "p")
    assert process.returncode == 4
    assert "FAIL  golden" in process.stdout
