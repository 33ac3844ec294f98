"""Ludwig model folders: what can be told without Ludwig, and the real package where it is there."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ingot
from ingot.compat.ludwig import main
from ingot.frameworks.ludwig import read_specs

WITHOUT_LUDWIG = find_spec("ludwig") is None

CONFIG: dict[str, Any] = {
    "input_features": [
        {"name": "years", "column": "age", "type": "number"},
        {"name": "smoker", "type": "binary"},
        {"name": "insured", "type": "binary"},
        {"name": "words", "column": "note", "type": "text"},
        {"name": "letters", "column": "note", "type": "sequence"},
        {"name": "scaled", "column": "both", "type": "number"},
        {"name": "binned", "column": "both", "type": "category"},
    ],
    "output_features": [
        {"name": "cost", "type": "number"},
        {"name": "risky", "type": "binary"},
        {"name": "late", "type": "binary"},
        {"name": "group", "type": "category"},
        {"name": "curve", "type": "timeseries"},
    ],
}
METADATA = {
    "smoker": {},
    "insured": {"bool2str": ["no", "yes"]},
    "risky": {},
    "late": {"bool2str": ["no", "yes"]},
}


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "model"
    folder.mkdir(parents=True)
    (folder / "model_hyperparameters.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (folder / "training_set_metadata.json").write_text(json.dumps(METADATA), encoding="utf-8")
    (folder / "model_weights").write_bytes(b"not weights")
    return folder


def test_the_specs_come_from_the_features(model_folder: Path) -> None:
    inputs, outputs = read_specs(model_folder)
    assert {spec.name: spec.dtype for spec in inputs} == {
        "age": "float32",
        "smoker": "bool",
        "insured": "string",
        "note": "string",
        "both": "string",
    }
    assert {spec.shape for spec in inputs} == {("batch_size",)}
    assert {spec.name: (spec.dtype, spec.shape) for spec in outputs} == {
        "cost_predictions": ("float32", ("batch_size",)),
        "risky_predictions": ("bool", ("batch_size",)),
        "late_predictions": ("string", ("batch_size",)),
        "group_predictions": ("string", ("batch_size",)),
        "curve_predictions": ("float32", ("batch_size", None)),
    }


def test_a_folder_without_hyperparameters_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ingot.ModelError, match=r"no model_hyperparameters\.json"):
        ingot.create_ludwig_package(tmp_path / "out", ludwig_model_path=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"input_features": [{"name": "x"}], "output_features": []}']
)
def test_damaged_hyperparameters_are_one_clear_line(model_folder: Path, text: str) -> None:
    (model_folder / "model_hyperparameters.json").write_text(text, encoding="utf-8")
    with pytest.raises(ingot.ModelError, match=r"model_hyperparameters\.json: ") as caught:
        read_specs(model_folder)
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 5


@pytest.mark.skipif(not WITHOUT_LUDWIG, reason="Ludwig is installed here")
class TestWithoutLudwig:
    def test_packaging_exits_6_with_a_hint(self, model_folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ingot.MissingDependencyError, match="ludwig") as caught:
            ingot.create_ludwig_package(tmp_path / "out", ludwig_model_path=model_folder)
        assert caught.value.hint is not None
        assert "pip install ludwig" in caught.value.hint
        assert not (tmp_path / "out").exists()

    def test_loading_exits_6(self, model_folder: Path) -> None:
        with pytest.raises(ingot.MissingDependencyError, match="ludwig"):
            ingot.load(model_folder)

    def test_the_command_takes_a_model_folder(
        self, model_folder: Path, tmp_path: Path, ingot_cli: Any
    ) -> None:
        result = ingot_cli("package", model_folder, "-o", tmp_path / "out.ingot")
        assert result.returncode == 6
        assert "pip install ludwig" in result.stderr
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "out.ingot").exists()

    def test_the_face_of_ludwig_s_own_export(
        self, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["--ludwig_model_path", str(model_folder)]
        arguments += ["--neuropod_path", str(tmp_path / "out"), "--package_as_dir"]
        assert main(arguments) == 6
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert "hint: pip install ludwig" in error
        assert not (tmp_path / "out").exists()


def test_the_face_as_a_module(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ingot.compat.ludwig", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    usage = run("--help")
    assert usage.returncode == 0
    for option in ("--ludwig_model_path", "--neuropod_path", "--package_as_dir"):
        assert option in usage.stdout
    assert run("--neuropod_path", "out").returncode == 2
    missing = run("--ludwig_model_path", "nowhere", "--neuropod_path", "out")
    assert missing.returncode == 5
    assert "no model_hyperparameters.json" in missing.stderr
    assert list(tmp_path.iterdir()) == []


# With the real package.

DATA_CONFIG = """
input_features:
  - {name: age, type: number}
  - {name: smoker, type: binary}
  - {name: insured, type: binary}
  - {name: city, type: category}
output_features:
  - {name: cost, type: number}
  - {name: risky, type: binary}
  - {name: group, type: category}
trainer: {epochs: 1}
"""

TRAIN = """
import json, logging, sys
import pandas as pd
from ludwig.api import LudwigModel

model = LudwigModel("config.yaml", logging_level=logging.ERROR, backend="local")
model.train(dataset="data.csv", output_directory="results", random_seed=1)
rows = pd.read_csv("data.csv").head(3)
predictions, _ = model.predict(dataset=rows, skip_save_predictions=True)
names = ["cost_predictions", "risky_predictions", "group_predictions"]
with open("expected.json", "w") as file:
    json.dump({name: predictions[name].tolist() for name in names}, file)
"""


def write_data(path: Path) -> None:
    generator = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "smoker", "insured", "city", "cost", "risky", "group"])
        for _ in range(120):
            age, smoker = generator.randrange(20, 70), generator.random() < 0.3
            cost = 2 * age + 50 * smoker
            writer.writerow(
                [
                    *(age, smoker, generator.choice(["yes", "no"])),
                    *(generator.choice(["Oslo", "Rome"]), cost, cost > 120),
                    generator.choice("ABC"),
                ]
            )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a small model was trained: data.csv, expected.json, results/..."""
    if WITHOUT_LUDWIG:
        pytest.skip(
            "Ludwig is not installed (docs/ludwig.md says how to make an environment for it)"
        )
    folder = tmp_path_factory.mktemp("ludwig")
    write_data(folder / "data.csv")
    (folder / "config.yaml").write_text(DATA_CONFIG, encoding="utf-8")
    subprocess.run([sys.executable, "-W", "ignore", "-c", TRAIN], cwd=folder, check=True)
    return folder


@pytest.mark.slow
def test_a_trained_model_is_packaged_and_gives_ludwig_s_own_predictions(
    trained: Path, tmp_path: Path
) -> None:
    (model,) = trained.glob("results/*/model")
    with (trained / "data.csv").open(encoding="utf-8") as file:
        rows = [row for _, row in zip(range(3), csv.DictReader(file), strict=False)]
    expected = json.loads((trained / "expected.json").read_text(encoding="utf-8"))
    package = tmp_path / "model.zip"
    arguments = ["--ludwig_model_path", str(model), "--neuropod_path", str(package)]
    subprocess.run(
        [sys.executable, "-m", "ingot.compat.ludwig", *arguments],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        check=True,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    with pytest.raises(ingot.UntrustedCodeError):
        ingot.load(package)
    with ingot.load(package, trust_code=True) as loaded:
        outputs = loaded.infer(
            {
                "age": np.array([row["age"] for row in rows], np.float32),
                "smoker": np.array([row["smoker"] == "True" for row in rows]),
                "insured": np.array([row["insured"] for row in rows]),
                "city": np.array([row["city"] for row in rows]),
            }
        )
    np.testing.assert_allclose(outputs["cost_predictions"], expected["cost_predictions"], rtol=1e-4)
    assert outputs["risky_predictions"].tolist() == expected["risky_predictions"]
    assert outputs["group_predictions"].tolist() == expected["group_predictions"]
    names = ingot.inspect(package)["files"]
    assert not any("training_checkpoints" in str(name) for name in names)
