"""Neutrino's interfaces: the examples of its chapter "Going Deeper", mended where broken."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchmetrics")

from torch.nn import functional  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import ingot  # noqa: E402
from ingot.compat.neutrino import (  # noqa: E402
    Device,
    EvaluationFunction,
    ForwardPass,
    LossFunction,
    NativeOptimizerFactory,
    NativeSchedulerFactory,
    TorchEvaluationFunction,
    TorchForwardPass,
    TorchFramework,
    TorchLossFunction,
    get_data_splits_by_name,
    get_model_by_name,
)
from ingot.training import fit, measure  # noqa: E402


class TwoInputs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.image = torch.nn.Linear(3 * 8 * 8, 4)
        self.extra = torch.nn.Linear(10, 4)

    def forward(self, x, z):
        return self.image(x.flatten(1)) + self.extra(z)


class TwoInputsForwardPass(ForwardPass):
    """The chapter's example of a class that overrides everything."""

    def __init__(self):
        super().__init__(model_input_pattern=None, expecting_common_inputs=False)

    def model_call(self, model, x, device):
        x, z = x
        if device == Device.GPU:
            x, z = x.cuda(), z.cuda()
        else:
            x, z = x.cpu(), z.cpu()
        return model(x, z)

    def create_random_model_inputs(self, batch_size):
        shapes = self.get_model_input_shapes()
        return torch.rand(batch_size, *shapes[0]), torch.rand(batch_size, *shapes[1])

    def extract_model_inputs(self, batch):
        x, _, z = batch
        return x, z

    def get_model_input_shapes(self):
        return (3, 8, 8), (10,)


class ClassificationLoss(LossFunction):
    def __call__(self, model, batch):
        x, y = batch
        if self.device == Device.GPU:
            x, y = x.cuda(), y.cuda()
        else:
            x, y = x.cpu(), y.cpu()
        return {"loss": functional.cross_entropy(model(x), y)}


class EvalAccuracy(TorchEvaluationFunction):
    def __init__(self, device="cuda"):
        self.device = device

    def _compute_inference(self, model, data_loader, **kwargs):
        assert not model.training
        total = 0
        with torch.no_grad():
            for x, y in data_loader:
                if self.device == "cuda":
                    x, y = x.cuda(), y.cuda()
                else:
                    x, y = x.cpu(), y.cpu()
                out = torch.argmax(functional.softmax(model(x), dim=-1), dim=1)
                if out.dim() == 1 and y.dim() == 2 and y.shape[1] == 1:
                    y = y.flatten()
                total += torch.mean((out == y).float()).cpu().item()
        return {"accuracy": 100.0 * (total / float(len(data_loader)))}


class CustomOptimizerFactory(NativeOptimizerFactory):
    def make(self, native_model):
        from torch.optim import Adam

        return Adam(native_model.parameters(), lr=1e-3, betas=(0.9, 0.9))


class CustomSchedulerFactory(NativeSchedulerFactory):
    def make(self, native_optimizer):
        from torch.optim.lr_scheduler import MultiplicativeLR

        return MultiplicativeLR(native_optimizer, lr_lambda=lambda epoch: 0.95)


class Recorded:
    """A model that says what it was called with."""

    def __call__(self, *arguments):
        return arguments


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ((0, "_"), "a"),
        ((1, 0, "_", 2), "bad"),
        ((0, "_", 1, "_", "_"), "ac"),
    ],
)
def test_patterns_of_the_chapter(pattern, wanted):
    batch = tuple(torch.full((2, 3), float(index)) for index in range(len(pattern)))

    forward_pass = TorchForwardPass(model_input_pattern=pattern)
    x = forward_pass.extract_model_inputs(batch)
    called = forward_pass.model_call(Recorded(), x, Device.CPU)

    assert "".join("abcde"[int(value[0, 0])] for value in called) == wanted
    assert forward_pass.get_model_input_shapes() == ((3,),) * len(wanted)
    inputs = forward_pass.create_random_model_inputs(5)
    assert [tuple(value.shape) for value in inputs] == [(5, 3)] * len(wanted)


def test_common_inputs_are_containers_of_tensors_too():
    forward_pass = TorchForwardPass((0, "_"))
    x = {"ids": torch.zeros(4, 7, dtype=torch.long), "more": [torch.zeros(4, 2), torch.ones(4)]}

    found = forward_pass.extract_model_inputs((x, None))

    assert forward_pass.get_model_input_shapes() == ({"ids": (7,), "more": [(2,), ()]},)
    random = forward_pass.create_random_model_inputs(3)
    assert random[0]["ids"].dtype == torch.long
    assert random[0]["more"][0].shape == (3, 2)
    assert forward_pass.model_call(Recorded(), found, Device.CPU)[0].keys() == x.keys()


def test_the_class_that_overrides_everything():
    forward_pass = TwoInputsForwardPass()
    model = TwoInputs()

    out = forward_pass.model_call(model, forward_pass.create_random_model_inputs(5), Device.CPU)
    x = forward_pass.extract_model_inputs((torch.rand(2, 3, 8, 8), None, torch.rand(2, 10)))

    assert out.shape == (5, 4)
    assert forward_pass.model_call(model, x, Device.CPU).shape == (2, 4)


def test_what_has_no_default_is_refused():
    class Half(TorchForwardPass):
        def model_call(self, model, x, device):
            return model(x)

    with pytest.raises(ingot.UsageError, match="neither a model_input_pattern nor"):
        TorchForwardPass()
    with pytest.raises(ingot.UsageError, match="create_random_model_inputs is not overridden"):
        Half((0, "_"), expecting_common_inputs=False)
    with pytest.raises(ingot.UsageError, match="every argument position from 0 on once"):
        TorchForwardPass((0, 2))
    with pytest.raises(ingot.UsageError, match="no batch was seen yet"):
        TorchForwardPass((0, "_")).get_model_input_shapes()
    with pytest.raises(ingot.UsageError, match="class of the framework"):
        raise_hint(ForwardPass((0, "_")))


def raise_hint(forward_pass):
    try:
        forward_pass.model_call(Recorded(), (torch.zeros(1),), Device.CPU)
    except ingot.UsageError as error:
        raise ingot.UsageError(error.hint) from error


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        (torch.zeros(2, 3), "a Tensor of shape (2, 3)"),
        ((torch.zeros(2),), "a tuple of 1"),
        ({"x": 1, "y": 2}, "a dict with the keys 'x', 'y'"),
    ],
)
def test_a_batch_that_does_not_fit_the_pattern(batch, found):
    with pytest.raises(ingot.InputError) as caught:
        TorchForwardPass((0, "_")).extract_model_inputs(batch)

    assert found in caught.value.message
    assert "model_input_pattern [0, '_']" in caught.value.message


def test_a_batch_that_is_not_common():
    with pytest.raises(ingot.InputError, match=r"holds a str; expected a tensor"):
        TorchForwardPass((0, "_")).extract_model_inputs(("text", torch.zeros(1)))


def test_a_loss_knows_its_device():
    class Moved(ClassificationLoss):
        def to_device(self, device):
            super().to_device(device)
            self.seen = device

    loss = Moved(Device.GPU)
    assert loss.device == Device.GPU == "GPU"
    loss.to_device(Device.CPU)
    assert (loss.device, loss.seen) == (Device.CPU, Device.CPU)
    with pytest.raises(TypeError):
        LossFunction()  # abstract


def test_everything_together():
    torch.manual_seed(0)
    model = get_model_by_name(
        model_name="mlp", dataset_name="digits", pretrained=False, progress=True
    )
    data = get_data_splits_by_name("digits", batch_size=128)
    config = {
        "optimizer": CustomOptimizerFactory(),
        "scheduler": {"factory": CustomSchedulerFactory(), "eval_based": False},
        "epochs": 4,
        "eval_freq": 2,
        "eval_key": "accuracy",
        "eval_split": "test",
    }

    trained = fit(
        model,
        data,
        config,
        forward_pass=TorchForwardPass(model_input_pattern=(0, "_")),
        loss=ClassificationLoss,
        evaluation=EvalAccuracy(device="cpu"),
    )

    assert trained.eval_key == "accuracy"
    assert [entry["epoch"] for entry in trained.state.history] == [2, 4]
    assert trained.state.best > 80
    assert measure(model, data, evaluation=EvalAccuracy("cpu")).metrics["accuracy"] > 80
    assert isinstance(TorchFramework(), TorchFramework)


def test_optimizer_as_a_dict_and_a_scheduler_that_listens_to_the_metric():
    data = get_data_splits_by_name("digits", batch_size=512)
    plateau = {"name": "ReduceLROnPlateau", "mode": "max", "patience": 0, "factor": 0.2}
    rates = []

    fit(
        get_model_by_name("mlp", "digits"),
        data,
        {
            "optimizer": {"name": "SGD", "lr": 0.1},
            "scheduler": {"factory": plateau, "eval_based": True},
            "epochs": 3,
        },
        evaluation=lambda model, loader: {"constant": 1.0},
        report=lambda event: rates.append(event.record.get("learning_rate")),
    )

    assert rates[-1] == pytest.approx(0.02)


def test_a_loss_that_is_a_dict_of_parts_is_summed():
    class Parts(TorchLossFunction):
        def __call__(self, model, batch):
            out = model(batch[0])
            return {"one": out.square().mean(), "two": 3 * out.square().mean()}

    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    start = model.weight.detach().clone()
    data = {"train": [(torch.ones(2, 4), torch.zeros(2))]}
    with torch.no_grad():
        gradient = 4 * 2 * model(torch.ones(1, 4))[0]

    fit(model, data, {"optimizer": {"name": "SGD", "lr": 0.01}, "epochs": 1}, loss=Parts)

    assert torch.allclose(model.weight, start - 0.01 * gradient)


def test_a_loss_that_is_no_scalar_is_refused():
    data = {"train": [(torch.ones(2, 4), torch.zeros(2))]}

    with pytest.raises(ingot.InputError, match=r"a tensor of shape \(2, 1\) for 'loss'"):
        fit(torch.nn.Linear(4, 1), data, {"epochs": 1}, loss=lambda model, batch: model(batch[0]))


def test_evaluation_functions_in_each_form():
    class Applied(EvaluationFunction):
        def apply(self, model, data_loader, **kwargs):
            return {"count": sum(len(batch[0]) for batch in data_loader)}

    loader = DataLoader(TensorDataset(torch.zeros(7, 4), torch.zeros(7)), 3)
    model = torch.nn.Linear(4, 1)

    assert measure(model, {"test": loader}, evaluation=Applied()).metrics == {"count": 7.0}
    assert measure(model, {"test": loader}, evaluation=Applied).metrics == {"count": 7.0}
    assert model.training


def test_names_of_the_interfaces_are_importable_from_ingot():
    for name in ("ForwardPass", "LossFunction", "EvaluationFunction", "Device", "Runner"):
        assert getattr(ingot, name) is getattr(ingot.training, name)


def test_data_and_models_that_are_not_there():
    with pytest.raises(ingot.UsageError) as caught:
        get_data_splits_by_name("cifar1000")
    assert caught.value.hint == "did you mean 'cifar100'?"
    with pytest.raises(ingot.SpecError, match="/nowhere: no such folder"):
        get_data_splits_by_name("cifar10", data_root="/nowhere")
    with pytest.raises(ingot.UsageError, match="downloads no weights"):
        get_model_by_name("resnet20", "cifar10", pretrained=True)
