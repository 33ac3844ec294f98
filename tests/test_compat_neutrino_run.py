"""Neutrino's engine: the calls of its documents, on data that is made in a moment."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from compress_specs import write_spec

from ingot.compat import neutrino
from ingot.compat.neutrino import Neutrino, TorchForwardPass, TorchFramework
from ingot.errors import ModelError, TrainingInterrupted, UsageError

pytest.importorskip("torch_pruning")
pytest.importorskip("onnxscript")

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

CLASSES, WIDTH = 4, 12
IMPORTS = {
    "from neutrino.framework.torch_framework import TorchFramework": "",
    "from neutrino.job import Neutrino": "",
    "from deeplite.torch_profiler.torch_data_loader import TorchForwardPass as FP": (
        "from ingot.compat.neutrino import TorchForwardPass as FP"
    ),
    "from deeplite.torch_profiler.torch_inference import": "from ingot.compat.neutrino import",
}
# What is no Python in the documents.
MENDS = {"'SGD', lr: 0.1": "'SGD', 'lr': 0.1", "args.bn_fuse #(boolean)": "args.bn_fuse,"}


class Classifier(nn.Module):
    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, hidden)
        self.second = nn.Linear(hidden, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


class TwoInputs(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.left = nn.Linear(WIDTH - 2, hidden)
        self.right = nn.Linear(2, hidden)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.head((self.left(a) + self.right(b)).relu())


class EvalAccuracy(neutrino.TorchEvaluationFunction):
    def _compute_inference(self, model: Any, data_loader: Any, **kwargs: Any) -> dict[str, float]:
        hits = [float((model(x).argmax(1) == y).float().mean()) for x, y, *_ in data_loader]
        return {"accuracy": 100 * sum(hits) / len(hits), "mykey": sum(hits) / len(hits)}


class SmoothLoss(neutrino.LossFunction):
    def __init__(self, smoothing: float, device: Any = neutrino.Device.CPU) -> None:
        super().__init__(device)
        self.smoothing = smoothing

    def __call__(self, model: Any, batch: Any) -> dict[str, torch.Tensor]:
        x, y, _ = batch
        return {"loss": functional.cross_entropy(model(x), y, label_smoothing=self.smoothing)}


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(512, WIDTH, generator=torch.Generator().manual_seed(0))
    return x, x[:, :CLASSES].argmax(1)


def loaders(*columns: torch.Tensor) -> dict[str, Any]:
    data = TensorDataset(*columns)
    return {"train": DataLoader(data, 64, shuffle=True), "test": DataLoader(data, 64)}


def train(network: nn.Module, *inputs: torch.Tensor, steps: int = 150) -> nn.Module:
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    y = samples()[1]
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(network(*inputs), y).backward()
        optimizer.step()
    return network


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return train(Classifier(), samples()[0])


def engine(**changes: Any) -> Neutrino:
    arguments: dict[str, Any] = {
        "framework": TorchFramework(),
        "data": loaders(*samples()),
        "model": Classifier(),
        "config": {"device": "CPU"},
    }
    return Neutrino(**{**arguments, **changes})


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEUTRINO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def blocks(text: str) -> Iterator[str]:
    """Yield the Python blocks of a document, without their indentation."""
    for found in re.finditer(r"^\.\. code-block:: python *\n((?: *\n|  +.*\n)+)", text, re.M):
        lines = found[1].splitlines()
        margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        yield "\n".join(line[margin:] for line in lines)


def block_with(shared: Path, number: str, *texts: str) -> str:
    """Return the block of a document that holds some texts, with its imports changed."""
    (path,) = (shared / "seeds").glob(f"{number}_*.txt")
    (block,) = [
        block
        for block in blocks(path.read_text(encoding="utf-8"))
        if all(text in block for text in texts)
    ]
    for old, new in {**IMPORTS, **MENDS}.items():
        block = block.replace(old, new)
    return block


@pytest.fixture
def names() -> dict[str, Any]:
    """What the documents' code has at hand."""
    from abc import ABC, abstractmethod

    public = {name: getattr(neutrino, name) for name in neutrino.__all__}
    return {**public, "torch": torch, "F": functional, "ABC": ABC, "abstractmethod": abstractmethod}


def test_running_a_job_as_the_guide_does(
    shared: Path, names: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(classifier().state_dict(), tmp_path / "weights.pt")
    data = loaders(*samples())
    names |= {
        "args": SimpleNamespace(
            deepsearch=False,
            bn_fuse=True,
            delta=1,
            device="CPU",
            horovod=False,
            level=3,
            dryrun=True,
        ),
        "kwargs": {},
        "precision": "fp16",
        "trainloader": data["train"],
        "testloader": data["test"],
        "TheModelClass": Classifier,
        "PATH": tmp_path / "weights.pt",
    }
    block = block_with(shared, "004", "opt_model = Neutrino(").replace("(*args, **kwargs)", "()")
    exec(compile(block, "guide", "exec"), names)
    made = names["opt_model"]
    assert isinstance(made, Classifier)
    assert not made.training
    assert parameters(made) < parameters(names["reference_model"])
    printed = capsys.readouterr()
    assert "opt_modelfp16_dynamic_shape.onnx" in printed.out
    assert "at most" in printed.err


def test_the_wrap_up_of_the_deeper_chapter(shared: Path, names: dict[str, Any]) -> None:
    for texts in (
        ("class CustomOptimizerFactory",),
        ("class CustomSchedulerFactory",),
        ("class ClassificationLoss",),
        ("class ClassificationTorchForwardPass",),
        ("class EvalAccuracy(TorchEvaluationFunction)", "total_acc = 0"),
    ):
        exec(compile(block_with(shared, "002", *texts), texts[0], "exec"), names)
    x, y = samples()
    factory = names["CustomSchedulerFactory"]
    names |= {
        "args": SimpleNamespace(deepsearch=True, level=2, delta=0.3, device="CPU", horovod=False),
        "framework": TorchFramework(),
        "data_splits": loaders(x, y, y),
        "reference_model": classifier(),
        "MyEvalFunc": EvalAccuracy,
        "MyLoss": SmoothLoss,
        "my_loss_config": {"smoothing": 0.1},
        "MySchedulerFactory": factory,
        "isEvalBased": False,
    }
    block = block_with(shared, "002", "optimized_model = neutrino.run()")
    exec(compile(block.replace(".run()", ".run(dryrun=True)"), "deeper", "exec"), names)
    assert parameters(names["optimized_model"]) < parameters(names["reference_model"])
    assert names["neutrino"].verdict.eval_key == "mykey"

    # The other classes of the chapter, as objects.
    names["forward"] = names["ClassificationTorchForwardPass"]()
    loss = names["ClassificationLoss"]()(names["reference_model"], (x, y))
    assert float(loss["loss"].detach()) < 1
    accurate = names["EvalAccuracy"](device="cpu")(names["reference_model"], [(x, y)])
    assert accurate["accuracy"] > 90


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nn.Module]:
    """A trained network whose class lies in a file that can be imported."""
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("code")
    write_spec(folder)
    (folder / "net.py").rename(folder / "digits_network.py")
    sys.path.insert(0, str(folder))
    from digits_network import Net

    network = Net()
    network.load_state_dict(load_file(folder / "net.safetensors"))
    yield network
    sys.path.remove(str(folder))
    del sys.modules["digits_network"]


def test_a_search_returns_a_smaller_model_within_delta(digits: nn.Module, home: Path) -> None:
    before = {name: value.clone() for name, value in digits.state_dict().items()}
    data = neutrino.get_data_splits_by_name("digits", batch_size=64)

    def search() -> tuple[Neutrino, nn.Module]:
        config = {
            "delta": 2,
            "device": "CPU",
            "full_trainer": {"optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9}},
            "fine_tuner": {"loop_params": {"epochs": 1}},
            "export": {"format": ["onnx", "jit"], "kwargs": {"resolutions": [(8, 8)]}},
        }
        neutrino = Neutrino(TorchFramework(), data, digits, config)
        return neutrino, neutrino.run()

    first, made = search()
    verdict = first.verdict
    assert verdict is not None
    assert verdict.verdict == "met"
    assert verdict.drop is not None
    assert verdict.drop <= 2
    assert verdict.run_dir.parent == home / "runs"
    assert type(made) is type(digits)
    assert made is not digits
    assert not made.training
    assert parameters(made) < 0.8 * parameters(digits)
    assert all(torch.equal(value, before[name]) for name, value in digits.state_dict().items())
    found = {path.name for path in verdict.run_dir.iterdir()}
    assert found >= {
        "opt_model.json",
        "opt_model.safetensors",
        "opt_model.ingot",
        "opt_model_jit.pt",
        "opt_modelfp32_dynamic_shape.onnx",
        "opt_model8x8fp32.onnx",
        "ref_model.json",
        "ref_model_jit.pt",
        "verdict.json",
    }
    x = next(iter(data["test"]))[0]
    script = torch.jit.load(verdict.run_dir / "opt_model_jit.pt")
    torch.testing.assert_close(script(x), made(x), atol=1e-4, rtol=1e-4)

    records = (verdict.run_dir / "journal.jsonl").read_text()
    second, again = search()
    assert second.verdict is not None
    assert second.verdict.run_dir == verdict.run_dir
    assert (verdict.run_dir / "journal.jsonl").read_text() == records
    torch.testing.assert_close(again(x), made(x))

    pickle = verdict.run_dir / "opt_model.pkl"
    loaded = Neutrino.load_from_pickle(TorchFramework(), pickle, digits)
    torch.testing.assert_close(loaded(x), made(x))


def test_several_inputs_and_a_training_loop_of_ones_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = samples()
    a, b = x[:, :-2], x[:, -2:]
    torch.manual_seed(0)
    model = train(TwoInputs(24), a, b)
    calls: list[tuple[int, bool, float]] = []

    class Loop:
        def train(self, model: Any, epochs: int, validation: Any, finetuning: bool) -> Any:
            train(model, a, b, steps=30)
            calls.append((epochs, finetuning, validation(model)["right"]))
            return model

    def evaluate(model: Any, loader: Any) -> dict[str, float]:
        hits = [float((model(a, b).argmax(1) == y).float().mean()) for b, a, _, y in loader]
        return {"right": sum(hits) / len(hits), "batches": len(hits)}

    found = engine(
        data=loaders(b, a, y, y),
        model=nn.DataParallel(model),
        config={
            "delta": 0.2,
            "device": "CPU",
            "eval_key": "right",
            "use_horovod": True,
            "external_training_loop": Loop,
            "export": {"format": "dlrt", "kwargs": {"root_path": tmp_path / "out"}},
        },
        forward_pass=TorchForwardPass((1, 0, "_", "_")),
        eval_func=evaluate,
        loss_function_cls=lambda model, batch: functional.cross_entropy(
            model(batch[1], batch[0]), batch[3]
        ),
    )
    made = found.run(dryrun=True)
    assert isinstance(made, TwoInputs)
    assert made.head.in_features < 24
    assert len(calls) == 1
    assert calls[0][:2] == (1, True)
    assert (tmp_path / "out" / "opt_modelfp32_dynamic_shape.onnx").exists()
    warnings = "\n".join(record.getMessage() for record in caplog.records)
    assert "dlrt is a closed format" in warnings
    assert "Horovod is not used" in warnings
    assert "no package is made: TwoInputs" in capsys.readouterr().err


class ByName(nn.Module):
    """Returns a dict, and takes what it is given by position."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Classifier()

    def forward(self, *columns: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": self.body(columns[0])}


def test_a_model_that_returns_a_dict(capsys: pytest.CaptureFixture[str]) -> None:
    model = ByName()
    model.body = classifier()

    def evaluate(model: Any, loader: Any) -> dict[str, float]:
        hits = [float((model(x)["scores"].argmax(1) == y).float().mean()) for x, y in loader]
        return {"accuracy": sum(hits) / len(hits)}

    found = engine(
        model=model,
        config={"device": "CPU", "delta": 0.3},
        eval_func=evaluate,
        loss_function_cls=lambda model, batch: functional.cross_entropy(
            model(batch[0])["scores"], batch[1]
        ),
    )
    assert parameters(found.run(dryrun=True)) < parameters(model)
    assert "evaluating opt_modelfp32_dynamic_shape.onnx" in capsys.readouterr().err


class Stopped:
    """A loop during whose second call the process is asked to end."""

    calls = 0

    def train(self, model: Any, epochs: int, validation: Any, finetuning: bool) -> Any:
        Stopped.calls += 1
        if Stopped.calls == 2:
            signal.raise_signal(signal.SIGTERM)  # a shell may have let SIGINT be ignored
        return train(model, samples()[0], steps=40)


def test_an_interrupted_search_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def search() -> nn.Module:
        config = {"delta": 5, "device": "CPU", "external_training_loop": Stopped()}
        return engine(model=classifier(), config=config).run()

    with pytest.raises(TrainingInterrupted) as caught:
        search()
    assert "the same call again" in str(caught.value.hint)
    made = search()
    assert parameters(made) < parameters(Classifier())
    assert "going on with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        ({"delt": 1}, "unknown key 'delt'", "did you mean 'delta'?"),
        ({"custom_compression": ["first"]}, "custom_compression: found a list; expected a d", None),
        ({"custom_compression": {"quant_arg": {}}}, "unknown key 'quant_arg'", "'quant_args'"),
        ({"optimization": "compresion"}, "found 'compresion'", "'compression'"),
        ({"full_trainer": {"optimiser": "SGD"}}, "unknown key 'optimiser'", "'optimizer'"),
        ({"full_trainer": {"optimizer": torch.optim.SGD}}, "found a type", "SGD()"),
        ({"fine_tuner": {"epochs": 1}}, "unknown key 'epochs'", None),
        ({"device": "TPU"}, "found 'TPU'", None),
        ({"external_training_loop": object()}, "without train", None),
        ({"external_training_loop": "nowhere:Loop"}, "cannot be imported", "module:Class"),
        ({"export": {"formats": ["onnx"]}}, "unknown key 'formats'", "'format'"),
        ({"export": ["onnx"]}, "export: found a list; expected a dict", None),
    ],
)
def test_configurations_that_are_refused(
    config: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(UsageError) as caught:
        engine(config=config)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    if hint is not None:
        assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"framework": "torch"}, "framework: found str"),
        ({"model": lambda x: x}, "model: found a function"),
        ({"data": [1]}, "data: found a list"),
        ({"data": {"test": [1]}}, "expected the split 'train'"),
        ({"data": {"train": iter([1])}}, "can be read only once"),
        ({"forward_pass": TorchForwardPass}, "forward_pass: found TorchForwardPass"),
        ({"forward_pass": object()}, "forward_pass: found object"),
        ({"loss_function_kwargs": {"x": 1}}, "no class in loss_function_cls"),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        engine(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"level": 4}}, "level: found 4"),
        ({"config": {"export": {"format": "onyx"}}}, "'onyx'"),
        ({"config": {"eval_split": "val", "device": "CPU"}}, "'val'"),
        ({"config": {"delta": 100, "device": "CPU"}}, "cannot drop by"),
        ({"config": {"device": "CPU", "eval_key": "mAP"}}, "found 'mAP'"),
        ({"forward_pass": TorchForwardPass((0, "_", "_"))}, "does not fit model_input_pattern"),
        ({"loss_function_cls": SmoothLoss}, "loss_function_cls: SmoothLoss cannot be made"),
        ({"eval_func": 3}, "eval_func: found a int"),
    ],
)
def test_runs_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, ModelError)) as caught:
        engine(**changes).run()
    assert message in caught.value.message


def test_a_search_is_not_started_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="a search runs in one"):
        engine()


@pytest.mark.parametrize("forward", ["flag", "nested", "keywords"])
def test_models_whose_inputs_no_file_can_have(forward: str) -> None:
    class Odd(nn.Module):
        def forward(self, x: Any, *, scale: Any = None, **rest: Any) -> torch.Tensor:
            return x

    class Flagged(Classifier):
        def forward(self, x: Any, deep: bool = False) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x)

    class Call(TorchForwardPass):
        def model_call(self, model: Any, x: Any, device: Any) -> Any:
            return model([x[0]], deep=True) if forward == "nested" else model(x[0], deep=True)

    model = Odd() if forward == "keywords" else Flagged()
    with pytest.raises((UsageError, ModelError), match=r"expected a\s+tensor|no names|raised"):
        engine(model=model, forward_pass=Call((0, "_"))).run()


def test_a_real_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "opt_model.pkl"
    path.write_bytes(b"\x80\x04N.")
    with pytest.raises(ModelError, match="never loaded"):
        Neutrino.load_from_pickle(TorchFramework(), path, Classifier())
