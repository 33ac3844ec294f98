"""Text classification: its example in a shortened form, its data, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from applications import EXAMPLES, copied_with

import ingot

torch = pytest.importorskip("torch")
pytest.importorskip("torchmetrics")

from ingot.commands.infer_files import infer_files  # noqa: E402
from ingot.specs import load_spec  # noqa: E402
from ingot.training.problem import Problem  # noqa: E402
from ingot.training.text_data import PADDING, UNKNOWN, Vocabulary, words_of  # noqa: E402
from ingot.training.text_predictions import text_rows  # noqa: E402
from ingot.zoo.networks.text_classifier import (  # noqa: E402
    lstm_classifier,
    transformer_classifier,
)

NAMES = ["negative", "positive"]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example with fewer reviews, trained; what is set in its spec to use it; its result."""
    folder = copied_with(
        "text_classification",
        tmp_path_factory.mktemp("app"),
        "make_data.py",
        "--train",
        4000,
        "--test",
        300,
    )
    result = ingot.train(folder / "reviews.yaml", folder / "run", epochs=7)
    return folder, [f"model.weights={result.weights}"], result


def test_the_example_learns_what_counting_words_cannot_tell(example):
    folder, trained, result = example

    # A linear classifier of the words' counts has 53 %, and random weights 50 %.
    assert result.metrics["accuracy"] > 85
    measured = ingot.evaluate(folder / "reviews.yaml", overrides=trained)
    assert measured.entries[0].metrics["accuracy"] == result.metrics["accuracy"]


def test_infer_says_class_and_probabilities_of_each_text(example, tmp_path):
    folder, trained, _ = example
    # Data is not needed any more: the vocabulary is kept with the weights.
    shutil.copy(folder / "reviews.yaml", tmp_path)
    given = {"overrides": trained, "display": tmp_path / "shown"}

    found = infer_files(tmp_path / "reviews.yaml", [folder / "samples.txt"], **given)

    wanted = ["positive", "negative", "positive", "negative"]
    entries = found.to_dict()["predictions"]
    names = [entry["name"] for entry in entries]
    assert sum(a == b for a, b in zip(names, wanted, strict=True)) >= 3
    assert all(sum(entry["probabilities"]) == pytest.approx(1) for entry in entries)
    assert entries[0]["text"].startswith("the plot was dull")
    assert found.outputs["probabilities"].shape == (4, 2)
    shown = found.pictures[0][0].read_text()
    assert shown.splitlines()[0] == entries[0]["text"]
    assert names[0] in shown.splitlines()[1]  # the likeliest comes first
    assert "####" in shown
    one = infer_files(
        tmp_path / "reviews.yaml", ["we saw it on a monday, and the show was awful"], **given
    )
    assert one.predictions[0].line().endswith("%")
    assert one.to_dict()["predictions"][0]["name"] == "negative"


def test_files_and_texts_are_told_apart(example, tmp_path, monkeypatch):
    folder, _, _ = example
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two words").write_text("one\n\n\tnegative\ntwo\tpositive\n")

    rows = text_rows(["two words", "fine. it is", "fine"], has_labels=True)

    assert rows == ["one", "", "two", "fine. it is", "fine"]
    assert [row.where for row in rows[:2]] == ["two words: row 1", "two words: row 3"]
    for name, message in (
        ("gone.txt", r"gone\.txt: no such file"),
        ("my samples.txt", r"my samples\.txt: no such file"),
        ("net.onnx", r"net\.onnx: found a model"),
        ("empty.txt", "found no rows"),
    ):
        (tmp_path / "net.onnx").write_bytes(b"\x08")
        (tmp_path / "empty.txt").write_text("\n")
        with pytest.raises(ingot.InputError, match=message):
            text_rows([name], has_labels=True)
    with pytest.raises(ingot.InputError, match="two words: row 3: found a text without any word"):
        infer_files(folder / "reviews.yaml", ["two words"])


def test_the_exported_network_reads_any_number_of_texts(example, tmp_path):
    folder, trained, _ = example
    spec = folder / "reviews.yaml"

    (file,) = ingot.export(spec, "onnx", tmp_path, mode="dynamic", overrides=trained).artifacts
    found = infer_files(file.path, [folder / "test.tsv"], spec=spec, overrides=trained)
    own = infer_files(spec, [folder / "test.tsv"], overrides=trained)

    assert len(found.predictions) == 300
    np.testing.assert_allclose(
        found.outputs["probabilities"], own.outputs["probabilities"], atol=1e-5
    )


def test_the_vocabulary_beside_the_weights_belongs_to_them_and_not_to_another_run(example):
    folder, _, _ = example
    spec = folder / "reviews.yaml"
    kept = Vocabulary.read(folder / "run" / "vocabulary.json")
    rows = (folder / "test.tsv").read_text().splitlines()[:40]
    (folder / "few.tsv").write_text("\n".join(rows) + "\n")
    few = ["data.kwargs.files={train: few.tsv, test: test.tsv}"]

    assert Problem(load_spec(spec, few)).splits["test"].vocabulary == kept
    assert ingot.evaluate(spec, overrides=few).entries[0].metrics["accuracy"] > 85
    ingot.train(spec, folder / "other", epochs=0, overrides=few)
    assert len(Vocabulary.read(folder / "other" / "vocabulary.json")) < len(kept)


def test_a_network_with_too_few_embeddings_is_told(example, tmp_path):
    folder, _, _ = example
    few = ["model.kwargs.tokens=20", "data.kwargs.most_tokens=null"]
    message = r"reviews\.yaml: the vocabulary has \d+ tokens, and the network embeddings for 20"

    with pytest.raises(ingot.SpecError, match=message) as caught:
        ingot.train(folder / "reviews.yaml", tmp_path / "run", overrides=few)
    assert "data.kwargs.most_tokens: 20" in caught.value.hint
    kept = ["model.weights=null", "data.kwargs.vocabulary=run/vocabulary.json"]
    with pytest.raises(ingot.SpecError, match=message):
        infer_files(folder / "reviews.yaml", ["fine"], overrides=[*few, *kept])


def test_a_run_does_not_go_on_with_another_vocabulary(example, tmp_path):
    folder, _, _ = example
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    rows = (place / "train.tsv").read_text().replace("film", "motion picture")
    (place / "train.tsv").write_text(rows)

    with pytest.raises(ingot.UsageError, match=r"vocabulary\.json: the vocabulary of the run"):
        ingot.train(place / "reviews.yaml", place / "run", epochs=9, resume=True)


@pytest.mark.parametrize(
    "network",
    [
        lambda: lstm_classifier(20, 3, layers=2, dropout=0.0),
        lambda: transformer_classifier(20, 3, 12, dropout=0.0),
    ],
)
def test_padding_has_no_part_in_the_answer(network):
    torch.manual_seed(0)
    model = network().eval()
    tokens = torch.randint(2, 20, (2, 7))
    padded = torch.cat([tokens, torch.zeros(2, 5, dtype=torch.long)], 1)

    with torch.no_grad():
        short, long = model(tokens), model(padded)
        swapped = model(padded[:, [1, 0, *range(2, 12)]])

    torch.testing.assert_close(short, long)
    assert not torch.allclose(long, swapped)  # the order of the words counts


def splits(folder, rows, **kwargs):
    """Return the splits of a training file with these rows."""
    if rows is not None:
        data = rows if isinstance(rows, bytes) else "\n".join(rows).encode()
        (folder / "train.tsv").write_bytes(data)
    kwargs = {"files": {"train": "train.tsv"}, "classes": NAMES, "length": 4, **kwargs}
    spec = {
        "model": {"framework": "torch", "entrypoint": "net:build"},
        "inputs": [{"name": "tokens", "dtype": "int64", "shape": ["batch", 4]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 2]}],
        "data": {"splits": "text", "kwargs": kwargs},
    }
    (folder / "net.py").write_text("def build(): ...\n")
    (folder / "spec.json").write_text(json.dumps(spec))
    return Problem(load_spec(folder / "spec.json")).splits


def test_texts_become_tokens(tmp_path):
    rows = ["It's good, good!\tpositive", "", "Bad\tnegative\r", "very bad\tnegative"]
    found = splits(tmp_path, rows, length=6, least_count=2)["train"]

    assert found.vocabulary.tokens == ("<padding>", "<unknown>", "bad", "good")
    ((tokens, labels),) = list(found)
    assert dict(zip(map(tuple, tokens.tolist()), labels.tolist(), strict=True)) == {
        (UNKNOWN, 3, UNKNOWN, 3, UNKNOWN, PADDING): 1,
        (2, *[PADDING] * 5): 0,
        (UNKNOWN, 2, *[PADDING] * 4): 0,
    }
    assert words_of("It's 3.5, no?") == ["It's", "3", ".", "5", ",", "no", "?"]


def test_characters_and_truncated_texts(tmp_path):
    options = {"classes": 2, "unit": "character", "truncate": True, "lowercase": False}
    found = splits(tmp_path, ["abcdefg\t1", "ba\t0"], **options)["train"]

    rows = {tuple(row) for tokens, _ in found for row in tokens.tolist()}
    decoded = {found.vocabulary.decode(row) for row in rows}
    assert decoded == {"abcd", "ba"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["fine\tpositive", "no label"], r"train\.tsv: row 2: found no tabs; expected sentence"),
        (["fine\tpositive\tx"], r"row 1: found 2 tabs; expected sentence<TAB>label"),
        (["fine\tpositiv"], r"row 1: found the label 'positiv'; expected one of negative, p"),
        (["a\tpositive", " \tpositive"], r"row 2: found a text without any word"),
        (["one two three four five\tpositive"], r"row 1: found a text of 5 words; expected 4 at"),
        ([], r"train\.tsv: found no rows"),
        (b"fine\tpositive\nf\xfcr\tnegative", r"row 2: found the byte 0xfc at 15; expected UTF-8"),
    ],
)
def test_bad_files_are_named_with_their_row(tmp_path, rows, message):
    with pytest.raises(ingot.InputError, match=message) as caught:
        splits(tmp_path, rows)

    assert caught.value.exit_code == 5


def test_files_that_are_not_there_are_named_with_their_key(tmp_path):
    with pytest.raises(ingot.SpecError, match=r"data\.kwargs\.files\.train: .*tsv: no such file"):
        splits(tmp_path, None)
    with pytest.raises(ingot.SpecError, match=r"data\.kwargs\.vocabulary: .*v\.json: no such file"):
        splits(tmp_path, ["fine\tpositive"], vocabulary="v.json")


def test_a_label_nearly_right_and_a_long_text_have_a_hint(tmp_path):
    with pytest.raises(ingot.InputError) as caught:
        splits(tmp_path, ["fine\tpositiv"])
    assert "positive" in caught.value.hint
    with pytest.raises(ingot.InputError) as caught:
        splits(tmp_path, ["one two three four five\tpositive"])
    assert "truncate: true" in caught.value.hint


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"least_count": 9}, "the vocabulary is empty: found no word that occurs 9 times"),
        ({"vocabulary": "empty.json"}, r"empty\.json: the vocabulary is empty"),
        ({"vocabulary": "other.json"}, r"other\.json: found no vocabulary"),
        ({"vocabulary": "train.tsv"}, r"train\.tsv: no JSON that can be read"),
    ],
)
def test_a_vocabulary_has_tokens(tmp_path, kwargs, message):
    empty = {"format_version": 1, "unit": "word", "lowercase": True, "tokens": ["<padding>"]}
    (tmp_path / "empty.json").write_text(json.dumps(empty))
    (tmp_path / "other.json").write_text("{}")

    with pytest.raises(ingot.InputError, match=message):
        splits(tmp_path, ["fine\tpositive"], **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"classes": 1}, "classes: found 1; expected the names of the labels"),
        ({"classes": ["a", "a"]}, "classes: found"),
        ({"length": 0}, "length: found 0; expected an integer from 1"),
        ({"unit": "syllable"}, "unit: found 'syllable'; expected word or character"),
        ({"vocabulary": "letters.json"}, "unit: found 'word'; expected 'character', as the"),
        ({"files": {"test": "train.tsv"}}, "found 'train'; the data has the splits test"),
    ],
)
def test_arguments_of_the_data_are_checked(tmp_path, kwargs, message):
    Vocabulary.of(["abc"], "character", "text").write(tmp_path / "letters.json")

    with pytest.raises(ingot.SpecError, match=message):
        splits(tmp_path, ["fine\tpositive"], **kwargs)


@pytest.mark.slow
def test_the_whole_way_of_the_transformer(tmp_path):
    place = tmp_path / "walk"
    shutil.copytree(EXAMPLES / "text_classification", place)
    commands = {"PYTHON": sys.executable, "INGOT": f"{sys.executable} -m ingot.cli"}
    shorter = {"TRAIN": "2500", "TEST": "300", "EPOCHS": "9", "DELTA": "3"}

    done = subprocess.run(
        ["sh", "walk.sh"],
        cwd=place,
        env={**os.environ, **commands, **shorter},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads((place / "run" / "train.json").read_text())["metrics"]["accuracy"] > 70
    for folder in ("compressed", "quantized"):
        verdict = json.loads((place / folder / "verdict.json").read_text())
        assert verdict["verdict"] == "met"
        assert verdict["size_ratio"] > 1.5
    assert len(list((place / "shown").glob("*.txt"))) == 4
    # The network and the three packages answer alike: one line a text, each of the four times.
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith("the acting was superb")]) == 4
