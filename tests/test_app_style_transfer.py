"""Style transfer: its example in a shortened form, its loss, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from applications import copied_with

import ingot

torch = pytest.importorskip("torch")
pytest.importorskip("torchmetrics")
Image = pytest.importorskip("PIL.Image")

from ingot.commands.infer_files import infer_files  # noqa: E402
from ingot.specs import load_spec  # noqa: E402
from ingot.training.problem import Problem  # noqa: E402
from ingot.training.torch_style import gram_matrix  # noqa: E402
from ingot.zoo.networks.style_net import style_net  # noqa: E402


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example with fewer images, trained; its result."""
    folder = copied_with(
        "style_transfer",
        tmp_path_factory.mktemp("app"),
        "make_data.py",
        "--textures",
        180,
        "--pictures",
        64,
    )
    ingot.train(folder / "textures.yaml", folder / "textures", epochs=3)
    return folder, ingot.train(folder / "style.yaml", folder / "run", epochs=6)


def weights(folder):
    return [f"model.weights={folder / 'run' / 'weights.safetensors'}"]


def test_the_example_paints_in_the_style(example, tmp_path):
    folder, result = example
    untrained = ingot.evaluate(folder / "style.yaml", overrides=["model.weights=null"])
    random = untrained.entries[0].metrics

    # 100 is a picture that was not changed, and the style's own image for the content. Random
    # weights are somewhat nearer to the style, but far from the picture.
    found = result.metrics
    assert found["style"] < 30
    assert found["content"] < 90
    assert found["loss"] < 0.6 * random["loss"], (found, random)
    wide = tmp_path / "wide.png"
    Image.fromarray(np.full((30, 53, 3), 90, np.uint8)).save(wide)
    pictures = [folder / "images" / "picture0063.png", wide]
    found = infer_files(
        folder / "style.yaml", pictures, overrides=weights(folder), display=tmp_path / "shown"
    )
    sizes = [Image.open(paths[0]).size for paths in found.pictures]
    assert sizes == [(48, 48), (53, 30)]  # of the files themselves
    assert found.to_dict()["predictions"][1]["width"] == 53
    painted = np.asarray(Image.open(found.pictures[0][0]))
    original = np.asarray(Image.open(pictures[0]))
    assert painted.shape == original.shape
    assert np.abs(painted.astype(int) - original).mean() > 5
    with pytest.raises(ingot.UsageError, match="the pictures have 2 sizes"):
        found.outputs  # noqa: B018


def test_the_exported_network_paints_the_same(example, tmp_path):
    folder, _ = example
    spec = folder / "style.yaml"

    (file,) = ingot.export(
        spec, "onnx", tmp_path, mode="dynamic", overrides=weights(folder), evaluate=False
    ).artifacts
    files = sorted((folder / "images").glob("picture006?.png"))
    found = infer_files(file.path, files, spec=spec).outputs["pictures"]

    own = infer_files(spec, files, overrides=weights(folder)).outputs["pictures"]
    assert found.shape == (4, 48, 48, 3)
    assert np.abs(found.astype(int) - own).max() <= 1


def test_what_the_loss_measures(example):
    folder, _ = example
    problem = Problem(load_spec(folder / "style.yaml"))
    loss = problem.loss
    images = next(iter(problem.splits["test"]))[0]

    with torch.no_grad():
        same = loss.parts(images, images)
        style = loss.parts(*[torch.from_numpy(loss.image)] * 2)
        parts = loss(lambda x: x, (images,))
    same_again = problem.evaluation(lambda x: x, problem.splits["test"])
    grey = loss.parts(torch.full_like(images, 0.5), images)

    assert float(same["content"].abs().max()) == 0
    assert float(style["style"].max()) < 1e-6
    assert float(same["style"].min()) > 0
    assert float(grey["variation"].max()) == 0
    assert float(grey["content"].min()) > 0
    # The sum of the parts by their weights.
    assert float(parts["style"]) == pytest.approx(float(same["style"].mean()))
    assert float(parts["variation"]) == pytest.approx(3 * float(same["variation"].mean()))
    assert same_again["style"] == pytest.approx(100)
    assert same_again["content"] == 0
    assert same_again["per_sample"]["loss"].mean() == pytest.approx(same_again["loss"])
    with pytest.raises(ingot.InputError, match="as they were given"):
        loss.parts(images[:, :, 1:], images)


def test_a_gram_matrix_is_a_mean_over_the_pixels():
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]]])

    assert gram_matrix(features).tolist() == [[[2.5, 6.5], [6.5, 17.0]]]


def test_the_network_keeps_any_size():
    model = style_net(1, width=4, blocks=1).eval()

    with torch.no_grad():
        for size in ((8, 8), (9, 14), (31, 30)):
            painted = model(torch.rand(2, 1, *size))
            assert painted.shape == (2, 1, *size)
            assert 0 <= float(painted.min()) <= float(painted.max()) <= 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("loss.style=gone.png", ingot.SpecError, r"loss\.style: .*gone\.png: no such file"),
        ("loss.style=net.py", ingot.InputError, r"loss\.style: .*net\.py: cannot be decoded"),
        ("loss.weights=gone.safetensors", ingot.SpecError, r"loss\.weights: .*: no such file"),
        ("loss.weights=run/weights.safetensors", ingot.ModelError, "loss.network"),
        ("loss.content_layers=relu9_9", ingot.SpecError, "found the layer 'relu9_9'; the network"),
        ("loss.network=make_data:style", ingot.ModelError, "expected a torch.nn.Module"),
        ("loss=mse", ingot.SpecError, "'perceptual' measures the loss 'perceptual'; found"),
        ("loss.mean=[0.5, 0.5]", ingot.ModelError, "do not fit it|must match"),
    ],
)
def test_what_the_loss_refuses(example, change, error, message):
    folder, _ = example

    with pytest.raises(error, match=message):
        _ = Problem(load_spec(folder / "style.yaml", [change])).evaluation


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("images/picture0000.png,1\n", "pictures_train.csv: row 1: found"),
        ("images/picture0000.png\ngone.png\n", r"pictures_train\.csv: row 2: .*gone\.png: no such"),
        ("", r"pictures_train\.csv: found no rows"),
    ],
)
def test_a_list_of_pictures_names_files(example, tmp_path, content, message):
    folder, _ = example
    (tmp_path / "images").symlink_to(folder / "images")
    (tmp_path / "pictures_train.csv").write_text(content)
    changes = [f"data.kwargs.files={{train: {tmp_path}/pictures_train.csv}}"]

    with pytest.raises(ingot.InputError, match=message):
        _ = Problem(load_spec(folder / "style.yaml", changes)).splits
