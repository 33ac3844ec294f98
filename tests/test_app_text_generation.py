"""Text generation: its example in a shortened form, what is drawn, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from applications import copied_with, script_of

import ingot

torch = pytest.importorskip("torch")
pytest.importorskip("torchmetrics")

from ingot.commands.infer_files import infer_files  # noqa: E402
from ingot.specs import load_spec  # noqa: E402
from ingot.training.problem import Problem  # noqa: E402
from ingot.training.text_data import Vocabulary  # noqa: E402
from ingot.training.text_generation import generate  # noqa: E402
from ingot.training.torch_text import NextTokenEvaluation, SequenceCrossEntropy  # noqa: E402

LETTERS = Vocabulary.of(["abcab"], "character", "text")


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example with a shorter log, trained; what is set in its spec to use it; its result."""
    folder = copied_with(
        "text_generation",
        tmp_path_factory.mktemp("app"),
        "make_data.py",
        "--train",
        1200,
        "--test",
        100,
    )
    result = ingot.train(folder / "harbour.yaml", folder / "run", epochs=8)
    return folder, [f"model.weights={result.weights}"], result


def test_the_example_learns_the_grammar(example):
    folder, trained, result = example

    # Equally likely characters have 5.4 bits; the entropy of the log is 0.16.
    assert 0.15 < result.metrics["bits"] < 0.6
    assert result.metrics["perplexity"] == pytest.approx(2 ** result.metrics["bits"])
    found = infer_files(
        folder / "harbour.yaml",
        [folder / "prompts.txt"],
        overrides=[*trained, "training.predictor.temperature=0.4"],
        display=folder / "shown",
    )
    texts = [prediction.text for prediction in found.predictions]
    entries = [line for text in texts for line in text.splitlines()[:-1]]
    is_entry = script_of("text_generation", "make_data.py")["is_entry"]
    assert len(entries) > 4
    assert sum(map(is_entry, entries)) > len(entries) / 2
    assert texts[0].startswith("Monday: wind ")
    assert found.pictures[0][0].read_text().startswith(texts[0].rstrip("\n"))


def test_the_seed_decides_what_is_written(example):
    folder, trained, _ = example
    spec = folder / "harbour.yaml"

    def written(*changes):
        overrides = [*trained, "training.predictor.count=40", *changes]
        return infer_files(spec, ["Tuesday: "], overrides=overrides).to_dict()["predictions"]

    first = written()
    assert first == written()
    assert first[0]["prompt"] == "Tuesday: "
    assert len(first[0]["text"]) == len("Tuesday: ") + 40
    assert written("training.predictor.seed=5") != first
    most_likely = written("training.predictor.temperature=0")
    assert most_likely == written("training.predictor.temperature=0", "training.predictor.seed=5")
    with pytest.raises(ingot.InputError, match="character 1 is not in the vocabulary"):
        infer_files(spec, ["Ω sea"], overrides=trained)


def test_the_exported_network_writes_the_same(example, tmp_path):
    folder, trained, _ = example
    spec = folder / "harbour.yaml"
    overrides = ["training.predictor.count=40"]

    (file,) = ingot.export(
        spec, "onnx", tmp_path, mode="dynamic", overrides=trained, evaluate=False
    ).artifacts
    found = infer_files(file.path, ["Sunday: wind"], spec=spec, overrides=overrides)

    own = infer_files(spec, ["Sunday: wind"], overrides=[*trained, *overrides])
    assert found.predictions == own.predictions


def after(token):
    """Return a model after which ``token`` always comes, and which counts what it is given."""

    def model(tokens):
        model.lengths.append(tokens.shape[1])
        logits = np.full((1, tokens.shape[1], len(LETTERS) + 2), -9.0)
        logits[..., token] = 9.0
        logits[..., :2] = logits[..., len(LETTERS) :] = 99.0  # never drawn
        return logits

    model.lengths = []
    return model


def test_tokens_are_drawn_by_their_probability():
    model = after(2)
    assert generate(model, LETTERS, "cb", 4, length=3) == "cbaaaa"
    assert model.lengths == [2, 3, 3, 3]
    assert generate(after(2), LETTERS, "c", 9, length=3, stop="a") == "ca"
    assert generate(after(2), LETTERS, "c", 0, length=3) == "c"

    def even(tokens):
        return np.log(np.array([[[0.5, 0.5, 0.6, 0.3, 0.1]]]))

    text = generate(even, LETTERS, "a", 3000, length=1, seed=1)[1:]
    assert text.count("a") / 3000 == pytest.approx(0.6, abs=0.03)
    assert text.count("c") / 3000 == pytest.approx(0.1, abs=0.03)
    cold = generate(even, LETTERS, "a", 3000, length=1, seed=1, temperature=0.5)[1:]
    assert cold.count("a") / 3000 == pytest.approx(0.36 / 0.46, abs=0.03)


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("", {}, ingot.InputError, "the prompt is empty"),
        ("ax", {}, ingot.InputError, "character 2 is not in the vocabulary of 5"),
        ("a", {"temperature": -1.0}, ingot.UsageError, "found the temperature -1.0"),
        ("a", {"temperature": math.nan}, ingot.UsageError, "found the temperature nan"),
        ("a", {"length": 0}, ingot.UsageError, "windows of 0"),
    ],
)
def test_what_cannot_be_written_on(prompt, options, error, message):
    with pytest.raises(error, match=message):
        generate(after(2), LETTERS, prompt, 1, **{"length": 3, **options})


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.zeros((1, 5)), r"array of shape \(1, 5\); expected logits"),
        (np.zeros((1, 1, 3)), r"of shape \(1, 1, 3\)"),
        (np.full((1, 1, 5), np.nan), "not finite"),
    ],
)
def test_what_a_model_returns_is_checked(logits, message):
    with pytest.raises(ingot.ModelError, match=message):
        generate(lambda tokens: logits, LETTERS, "a", 1, length=3)


def splits(folder, text, **kwargs):
    (folder / "train.txt").write_text(text)
    spec = folder / "spec.yaml"
    (folder / "net.py").write_text("def build(): ...\n")
    spec.write_text(
        "model: {framework: torch, entrypoint: net:build}\n"
        "inputs: [{name: tokens, dtype: int64, shape: [batch, length]}]\n"
        "outputs: [{name: logits, dtype: float32, shape: [batch, length, 9]}]\n"
        "data: {splits: characters, kwargs: {files: {train: train.txt}}}\n"
    )
    changes = [f"data.kwargs.{name}={value}" for name, value in kwargs.items()]
    return Problem(load_spec(spec, changes)).splits


def test_windows_and_what_comes_after(tmp_path):
    found = splits(tmp_path, "abcdefgh", length=3, step=2)["train"]

    ((tokens, targets),) = list(found)
    decode = found.vocabulary.decode
    pairs = {(decode(x), decode(y)) for x, y in zip(tokens.tolist(), targets.tolist(), strict=True)}
    assert pairs == {("abc", "bcd"), ("cde", "def"), ("efg", "fgh")}


@pytest.mark.parametrize(
    ("text", "kwargs", "error", "message"),
    [
        ("abc", {"length": 3}, ingot.InputError, r"train\.txt: found 3 characters; expected 4"),
        ("", {}, ingot.InputError, "the vocabulary is empty: found no character"),
        ("abcd", {"length": 0}, ingot.SpecError, "length: found 0"),
        ("abcd", {"step": -1}, ingot.SpecError, "step: found -1"),
    ],
)
def test_texts_that_give_no_windows(tmp_path, text, kwargs, error, message):
    with pytest.raises(error, match=message):
        splits(tmp_path, text, **kwargs)


def test_loss_and_metrics_leave_out_padding():
    logits = torch.zeros(2, 3, 4)
    logits[..., 2] = math.log(3)  # probabilities 1/6, 1/6, 1/2, 1/6
    targets = torch.tensor([[2, 3, 0], [2, 0, 0]])

    loss = SequenceCrossEntropy()
    value = loss.compare(logits, targets)
    found = NextTokenEvaluation()(lambda x: logits, [(targets, targets)])

    wanted = (2 * math.log(2) + math.log(6)) / 3
    assert float(value) == pytest.approx(wanted)
    assert found["bits"] == pytest.approx(wanted / math.log(2))
    assert found["accuracy"] == pytest.approx(200 / 3)
    assert found["per_sample"]["accuracy"].tolist() == [50, 100]
    with pytest.raises(ingot.InputError, match="sample 1 of a batch"):
        loss.compare(logits, targets + torch.tensor([[0], [9]]))
    with pytest.raises(ingot.InputError, match=r"expected \(batch, length, tokens\)"):
        loss.compare(logits[:, 0], targets)
