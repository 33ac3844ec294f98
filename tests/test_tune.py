"""``tune``: the trials of a study, what ends them, and what may be in its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from training_specs import same_weights, write_spec

import ingot
from ingot.cli.console_tune import short_names
from ingot.errors import SpecError, TrainingError, UsageError
from ingot.specs import ModelSpec, load_spec

pytest.importorskip("torch")
pytest.importorskip("torchmetrics")
pytest.importorskip("optuna")

SPACE = {
    "trials": 6,
    "fixed": {"full_trainer.epochs": 3},
    "parameters": {
        "full_trainer.optimizer.lr": {"log_uniform": [1e-4, 1.0]},
        "model.kwargs.width": {"int": [2, 8]},
        "full_trainer.optimizer.momentum": [0.0, 0.9],
    },
}
DIVERGES = {
    "trials": 9,
    "parameters": {"full_trainer.optimizer.lr": [0.1, 1e20, 0.01]},
    "fixed": {"full_trainer.epochs": 1},
}


def begun(events):
    return [event.trial for event in events if event.kind == "begun"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    spec = write_spec(folder, tune=SPACE)
    return spec, ingot.tune(spec, folder / "run", seed=3)


def test_the_best_of_a_study_trains_again_to_the_same_weights(study, tmp_path):
    _, result = study
    assert [trial.number for trial in result.trials] == list(range(6))
    assert {trial.state for trial in result.trials} <= {"complete", "pruned"}
    values = [trial.value for trial in result.trials if trial.state == "complete"]
    best = result.best
    assert best.value == max(values) > 50
    assert result.eval_key == "accuracy"
    again = ingot.train(result.best_spec, tmp_path / "again", seed=3)
    assert again.best["value"] == best.value
    assert same_weights(tmp_path / "again" / "best.safetensors", result.weights)
    measured = ingot.evaluate(result.best_spec).entries[0].metrics["accuracy"]
    assert measured == pytest.approx(best.value)


def test_parameters_lie_in_their_ranges_and_differ(study):
    _, result = study
    drawn = [dict(trial.params) for trial in result.trials]
    for params in drawn:
        assert 1e-4 <= params["full_trainer.optimizer.lr"] <= 1
        assert params["model.kwargs.width"] in range(2, 9)
        assert params["full_trainer.optimizer.momentum"] in (0.0, 0.9)
    assert len({json.dumps(params) for params in drawn}) == 6


def test_the_folder_keeps_weights_of_the_best_alone_and_no_checkpoint(study):
    _, result = study
    kept = sorted(path.parent for path in result.run_dir.rglob("*.safetensors"))
    assert set(kept) == {result.weights.parent}
    assert list(result.run_dir.rglob("checkpoint-*")) == []
    document = json.loads((result.run_dir / "tune.json").read_text())
    assert document["best"]["trial"] == result.best.number
    assert len(document["trials"]) == 6
    page = (result.run_dir / "report.html").read_text()
    assert page.count("<svg") >= 4
    assert "model.kwargs.width" in page
    assert "http" not in page


def test_the_same_command_repeats_nothing_and_more_trials_go_on(study):
    spec, result = study
    events = []
    again = ingot.tune(spec, result.run_dir, seed=3, report=events.append)
    assert begun(events) == []
    assert again.best == result.best
    more = ingot.tune(spec, result.run_dir, seed=3, trials=7, report=events.append)
    assert begun(events) == [6]
    assert more.trials[:6] == result.trials


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ["tune.parameters={full_trainer.optimizer.lr: {log_uniform: [0.001, 1]}}"],
            r"another search space: full_trainer\.optimizer\.lr: found log_uniform \[0\.001, 1\.0\]"
            r"; the study has log_uniform \[0\.0001, 1\.0\]",
        ),
        (["tune.fixed={full_trainer.epochs: 4}"], r"another spec: full_trainer\.epochs: found 4"),
        (["tune.sampler=random"], "sampler: found random; the study has tpe"),
        (["data.kwargs.batch_size=64"], r"data\.kwargs\.batch_size: found 64; the study has 128"),
    ],
)
def test_another_study_in_the_folder_is_refused(study, change, said):
    spec, result = study
    with pytest.raises(UsageError, match=said) as caught:
        ingot.tune(spec, result.run_dir, seed=3, overrides=change)
    assert "--fresh" in caught.value.hint


def test_another_seed_is_refused_and_fresh_starts_over(tmp_path):
    spec = write_spec(tmp_path, tune={**SPACE, "trials": 1})
    ingot.tune(spec, tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="seed: found 1; the study has 0"):
        ingot.tune(spec, tmp_path / "run", seed=1)
    found = ingot.tune(spec, tmp_path / "run", seed=1, fresh=True)
    assert (len(found.trials), found.seed) == (1, 1)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_trial_that_diverges_is_recorded_and_a_finite_space_is_exhausted(tmp_path):
    spec = write_spec(tmp_path, tune=DIVERGES)
    found = ingot.tune(spec, tmp_path / "run")
    assert found.stopped_by == "exhausted"
    states = {trial.params["full_trainer.optimizer.lr"]: trial for trial in found.trials}
    assert sorted(states) == [0.01, 0.1, 1e20]
    assert states[1e20].state == "failed"
    assert "not finite" in states[1e20].facts["reason"] or "nan" in states[1e20].facts["reason"]
    assert states[0.1].state == "complete"


def test_a_study_whose_trials_all_diverge_fails(tmp_path):
    only = {"parameters": {"full_trainer.optimizer.lr": [1e20, 1e21]}, "trials": 2}
    with pytest.raises(TrainingError, match="none of 2 trials ended with a metric"):
        ingot.tune(write_spec(tmp_path, tune=only), tmp_path / "run")
    with pytest.raises(TrainingError, match="none of 2 trials ended") as caught:  # of 9 wanted
        ingot.tune(write_spec(tmp_path, tune={**only, "trials": 9}), tmp_path / "more")
    assert caught.value.exit_code == 1


def test_a_trial_that_takes_too_long_ends_and_a_deadline_leaves_it_to_the_next(tmp_path):
    slow = (
        "\n\nimport time\nfrom ingot.training.callbacks import Callback\n\n\n"
        "class Slow(Callback):\n    def after_step(self, runner):\n"
        "        time.sleep(0.02 if runner.state.epoch else 0)\n"
    )
    space = {"trials": 1, "parameters": {"model.kwargs.width": [2, 3]}}
    trainer = {"optimizer": {"name": "SGD", "lr": 0.1}, "epochs": 50}
    spec = write_spec(
        tmp_path, slow, tune=space, full_trainer=trainer, training={"callbacks": ["net:Slow"]}
    )
    found = ingot.tune(spec, tmp_path / "run", max_seconds=0.5)
    assert found.stopped_by == "max_time"
    assert [trial.state for trial in found.trials] == ["interrupted"]
    events = []
    with pytest.raises(TrainingError, match=r"took longer than 0\.6 s"):
        ingot.tune(spec, tmp_path / "run", timeout=0.6, report=events.append)
    assert begun(events) == [0]
    document = json.loads((tmp_path / "run" / "tune.json").read_text())
    assert document["trials"][0]["state"] == "timeout"
    assert document["trials"][0]["value"] > 0


def test_the_form_of_the_suite_is_read(tmp_path):
    form = """\
num_trials: 4
fixedparams:
  epochs: 2
  piecewise_boundaries: "1"
  piecewise_lr_decay: "1.0,0.1"
hyperparams:
  generate:
    learning_rate: "-3.0,-1.0"
  select:
    optimizer: "sgd,momentum"
"""
    (tmp_path / "space.yaml").write_text(form)
    trainer = {"optimizer": {"name": "SGD", "lr": 0.2}}
    spec = write_spec(tmp_path, full_trainer=trainer)
    found = ingot.tune(spec, tmp_path / "run", space=tmp_path / "space.yaml", trials=2)
    for trial in found.trials:
        assert trial.params.keys() == {"full_trainer.optimizer.lr", "full_trainer.optimizer.name"}
        assert 1e-3 <= trial.params["full_trainer.optimizer.lr"] <= 0.1
        assert trial.params["full_trainer.optimizer.name"] in ("sgd", "momentum")
    best = yaml.safe_load(found.best_spec.read_text())
    schedule = best["full_trainer"]["scheduler"]
    assert schedule["factory"] == {"name": "piecewise", "boundaries": [1], "decay": [0.1]}


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (None, "the key 'tune' is missing"),
        ({"trials": 3}, "found no parameters to draw"),
        ({"parameters": {"full_trainer.epoch": [1, 2]}}, "unknown key 'epoch'"),
        ({"parameters": {"full_trainer.epochs": [1, "two"]}}, "expected an integer"),
        ({"parameters": {"full_trainer.eval_freq": {"int": [0, 2]}}}, "at least 1"),
        ({"parameters": {"a..b": [1]}}, "expected key.path=value"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_before_training(tmp_path, space, said):
    spec = write_spec(tmp_path, **({} if space is None else {"tune": space}))
    with pytest.raises(SpecError, match=said):
        ingot.tune(spec, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"parameters": {"a": {"uniform": [2, 1]}}}, "expected the lowest value"),
        ({"parameters": {"a": {"log_uniform": [0, 1]}}}, "expected values above 0"),
        ({"parameters": {"a": {"uniform": [0, 1], "choice": [1]}}}, "expected one of"),
        ({"parameters": {"a": [1, 2, 1]}}, "found a value twice"),
        ({"parameters": {"a": []}}, "at least 1"),
        ({"parameters": {"a": [1]}, "fixed": {"a": 1}}, "fixed and drawn"),
        ({"parameters": {"tune.trials": [1]}}, "no trial can change"),
        ({"hyperparams": {"generate": {"learning_rate": "-4"}}}, "two powers of ten"),
        ({"hyperparams": {"draw": {"learning_rate": 3}, "select": {"b": "x"}}}, "unknown key"),
        ({"fixedparams": {"piecewise_boundaries": "5", "piecewise_lr_decay": "1"}}, "one more"),
        ({"trial": 3}, "did you mean"),
    ],
)
def test_a_section_that_is_wrong_is_refused(tmp_path, section, said):
    values = yaml.safe_load(write_spec(tmp_path).read_text())
    with pytest.raises(SpecError) as caught:
        ModelSpec.from_dict({**values, "tune": section}, tmp_path)
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_an_error_of_the_first_trial_ends_the_study_and_leaves_nothing(tmp_path):
    space = {"parameters": {"full_trainer.optimizer.moment": [0.5, 0.9]}}
    with pytest.raises(SpecError, match="moment"):
        ingot.tune(write_spec(tmp_path, tune=space), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    spec = write_spec(tmp_path, tune=SPACE, evaluation={"eval_split": "validation"})
    with pytest.raises(SpecError, match="validation"):
        ingot.tune(spec, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_study_is_refused(tmp_path):
    spec = write_spec(tmp_path, tune={**SPACE, "trials": 1})
    ingot.tune(spec, tmp_path / "run")
    (tmp_path / "run" / "study.db").write_bytes(b"no database at all" * 200)
    with pytest.raises(ingot.ModelError, match=r"study\.db: cannot be read"):
        ingot.tune(spec, tmp_path / "run")
    (tmp_path / "run" / "study.json").write_text("{}")
    with pytest.raises(ingot.ModelError, match="no description of a study"):
        ingot.tune(spec, tmp_path / "run")
    assert len(ingot.tune(spec, tmp_path / "run", fresh=True).trials) == 1


def test_files_of_others_are_not_taken_for_a_study(tmp_path):
    spec = write_spec(tmp_path, tune=SPACE)
    (tmp_path / "best.yaml").write_text("mine")
    with pytest.raises(UsageError, match=r"best\.yaml: is there already"):
        ingot.tune(spec, tmp_path)
    assert (tmp_path / "best.yaml").read_text() == "mine"


def test_names_are_as_short_as_tells_them_apart():
    keys = ["full_trainer.optimizer.lr", "a.lr", "lr", "training.batch_size"]
    found = short_names(keys)
    assert found["training.batch_size"] == "batch_size"
    assert found["full_trainer.optimizer.lr"] == "optimizer.lr"
    assert found["a.lr"] == "a.lr"


def test_the_example_finds_a_good_network(tmp_path):
    example = Path(__file__).resolve().parent.parent / "examples" / "tune"
    shutil.copytree(example, tmp_path / "tune", ignore=shutil.ignore_patterns("__pycache__"))
    found = ingot.tune(tmp_path / "tune" / "digits.yaml", tmp_path / "study", trials=7, threads=1)
    assert found.best.value > 90
    assert found.best.params.keys() == {
        "full_trainer.optimizer.lr",
        "full_trainer.optimizer.name",
        "model.kwargs.width",
        "model.kwargs.dropout",
    }
    report = (tmp_path / "study" / "report.html").read_text()
    assert "full_trainer.optimizer.lr" in report


TUNED = (
    "cifar10/resnet32",
    "cifar10/resnet32_keras",
    "classification/resnet32",
    "detection/detection",
    "segmentation/segmentation",
    "style_transfer/style",
    "style_transfer/textures",
    "text_classification/reviews",
    "text_classification/transformer",
    "text_generation/harbour",
    "transfer/base",
    "transfer/tuned",
)


@pytest.mark.parametrize("name", TUNED)
def test_every_application_says_what_may_be_tuned(name):
    path = Path(__file__).parent.parent / "examples" / f"{name}.yaml"
    section = load_spec(path, check_files=False).tune
    assert 2 <= len(section.parameters) <= 3
    assert section.trials <= 8
    fixed = [f"{key}={json.dumps(value)}" for key, value in section.fixed.items()]
    for key, parameter in section.parameters.items():
        for value in parameter.values:
            changed = load_spec(path, [*fixed, f"{key}={json.dumps(value)}"], check_files=False)
            assert changed.training is not None or changed.full_trainer is not None


def test_the_root_of_a_spec_is_where_its_paths_and_its_code_lie(tmp_path):
    code, elsewhere = tmp_path / "code", tmp_path / "elsewhere"
    code.mkdir()
    elsewhere.mkdir()
    spec = write_spec(code, test={"inputs": "in.npz"})
    (elsewhere / "copy.yaml").write_text(f"root: ../code\n{spec.read_text()}")
    found = load_spec(elsewhere / "copy.yaml", check_files=False)
    assert found.root == code
    assert found.test.inputs == code / "in.npz"
    (elsewhere / "copy.yaml").write_text(f"root: nowhere\n{spec.read_text()}")
    with pytest.raises(SpecError, match=r"copy\.yaml:1: root: .*nowhere: no such folder"):
        load_spec(elsewhere / "copy.yaml")


@pytest.mark.slow
def test_a_keras_network_is_tuned(tmp_path):
    pytest.importorskip("keras")
    code = (
        "import keras\n\n\ndef build(width=4):\n    return keras.Sequential([\n"
        "        keras.Input((8, 8, 1)), keras.layers.Flatten(),\n"
        "        keras.layers.Dense(width, activation='relu'), keras.layers.Dense(10)])\n"
    )
    space = {"trials": 2, "parameters": {"model.kwargs.width": [8, 16]}}
    spec = write_spec(
        tmp_path,
        model={"framework": "keras", "entrypoint": "net:build"},
        inputs=[{"name": "image", "dtype": "float32", "shape": ["batch", 8, 8, 1]}],
        tune=space,
    )
    (tmp_path / "net.py").write_text(code)
    found = ingot.tune(spec, tmp_path / "run")
    assert [trial.state for trial in found.trials] == ["complete", "complete"]
    measured = ingot.evaluate(found.best_spec).entries[0].metrics["accuracy"]
    assert measured == pytest.approx(found.best.value)
