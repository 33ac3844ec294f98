"""Real networks for tests of export, made when they are asked for; nothing here is a test.

Each function writes a spec into a folder, with what it names (code, weights or a model file) and
``golden.npz`` with one batch of inputs, and returns the path of the spec. All is seeded. A folder
takes one of the PyTorch networks, whose code is ``net.py``; Keras and TensorFlow may share one.
BatchNorm has statistics and affine weights that are far from the neutral ones.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from models import write

SEED = 7
WORDS = 20
"""The tokens of the sequence models are 0 to 19."""

Arrays = Mapping[str, np.ndarray]

DIGITS_CNN = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
            self.bn1 = nn.BatchNorm2d(8)
            self.conv2 = nn.Conv2d(8, 16, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(16)
            self.pool = nn.MaxPool2d(2)
            self.fc = nn.Linear(64, 10)

        def forward(self, image):
            x = self.pool(torch.relu(self.bn1(self.conv1(image))))
            x = self.pool(torch.relu(self.bn2(self.conv2(x))))
            return self.fc(x.flatten(1))


    def build():
        return Net()
"""

TRANSFORMER = """
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 32)
            layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)
            self.head = nn.Linear(32, 5)

        def forward(self, tokens):
            return self.head(self.encoder(self.embedding(tokens)))


    def build():
        return Net()
"""

LSTM = """
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 16)
            self.lstm = nn.LSTM(16, 24, batch_first=True)
            self.head = nn.Linear(24, 5)

        def forward(self, tokens):
            states, _ = self.lstm(self.embedding(tokens))
            return self.head(states[:, -1])


    def build():
        return Net()
"""

TWO_INPUTS = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.bn = nn.BatchNorm2d(8)
            self.features = nn.Linear(4, 8)
            self.embed = nn.Linear(16, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, image, features):
            seen = torch.relu(self.bn(self.conv(image))).mean((2, 3))
            both = torch.cat([seen, torch.relu(self.features(features))], 1)
            embedding = torch.tanh(self.embed(both))
            return {"embedding": embedding, "logits": self.head(embedding)}


    def build():
        return Net()
"""

STRINGS = """
    import numpy as np


    def build():
        def model(text, suffix):
            joined = np.char.add(np.char.upper(text), suffix)
            return {"joined": joined, "length": np.char.str_len(joined).astype(np.int64)}

        return model
"""


def digits_cnn(folder: Path) -> Path:
    """``image`` [batch, 1, 8, 8] to ``logits`` [batch, 10]: convolutions with BatchNorm."""
    inputs = {"image": _floats(4, 1, 8, 8)}
    return _torch(folder, "digits_cnn", DIGITS_CNN, inputs, _image(1, 8), _logits(10))


def resnet18(folder: Path) -> Path:
    """``image`` [batch, 3, 32, 32] to ``logits`` [batch, 10]; the first stage has 8 channels."""
    code = _from_zoo("resnet18", width=8)
    inputs = {"image": _floats(2, 3, 32, 32)}
    return _torch(folder, "resnet18", code, inputs, _image(3, 32), _logits(10))


def mobilenet_v2(folder: Path) -> Path:
    """``image`` [batch, 3, 32, 32] to ``logits`` [batch, 10]; of a quarter of the width."""
    code = _from_zoo("mobilenet_v2", width=0.25)
    inputs = {"image": _floats(2, 3, 32, 32)}
    return _torch(folder, "mobilenet_v2", code, inputs, _image(3, 32), _logits(10))


def unet(folder: Path) -> Path:
    """``image`` to ``logits``, both [batch, 3, height, width] with multiples of 4."""
    code = _from_zoo("unet", num_classes=3, width=4, depth=2)
    inputs = {"image": _floats(2, 3, 32, 24)}
    shape = "[batch, 3, height, width]"
    return _torch(folder, "unet", code, inputs, _float("image", shape), _float("logits", shape))


def transformer_encoder(folder: Path) -> Path:
    """``tokens`` [batch, length] int64 to ``logits`` [batch, length, 5]."""
    logits = _float("logits", "[batch, length, 5]")
    inputs = {"tokens": _tokens(3, 7)}
    return _torch(folder, "transformer_encoder", TRANSFORMER, inputs, _TOKENS, logits)


def lstm(folder: Path) -> Path:
    """``tokens`` [batch, length] int64 to ``logits`` [batch, 5]."""
    return _torch(folder, "lstm", LSTM, {"tokens": _tokens(3, 7)}, _TOKENS, _logits(5))


def two_inputs(folder: Path) -> Path:
    """``image`` [batch, 3, 16, 16] and ``features`` [batch, 4] to a dict.

    Its outputs, in the spec's order: ``logits`` [batch, 3], ``embedding`` [batch, 6]. The dict of
    the module has them in the other order.
    """
    inputs = {"image": _floats(4, 3, 16, 16), "features": _floats(4, 4)}
    takes = _image(3, 16) + _float("features", "[batch, 4]")
    returns = _logits(3) + _float("embedding", "[batch, 6]")
    return _torch(folder, "two_inputs", TWO_INPUTS, inputs, takes, returns)


def strings(folder: Path) -> Path:
    """Python: ``text`` [batch] and ``suffix`` [] to ``joined`` [batch] (strings), ``length``."""
    write(folder / "net.py", STRINGS)
    return _spec(
        folder,
        "strings",
        "{framework: python, entrypoint: net:build}",
        {"text": np.array(["one", "zwölf", ""]), "suffix": np.array("!")},
        "- {name: text, dtype: string, shape: [batch]}\n"
        "- {name: suffix, dtype: string, shape: []}\n",
        "- {name: joined, dtype: string, shape: [batch]}\n"
        "- {name: length, dtype: int64, shape: [batch]}\n",
    )


def torchscript_cnn(folder: Path) -> Path:
    """A scripted ResNet-20: ``images`` [batch, 3, 32, 32] to ``logits`` [batch, 10]."""
    import warnings

    import torch

    from ingot.zoo import get_model_by_name

    inputs = {"images": _floats(2, 3, 32, 32)}
    module = _prepared(lambda: get_model_by_name("resnet20", "cifar10", width=4), inputs)
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(folder / "torchscript_cnn.pt"))
    model = "{framework: torchscript, file: torchscript_cnn.pt}"
    takes = _float("images", "[batch, 3, 32, 32]")
    return _spec(folder, "torchscript_cnn", model, inputs, takes, _logits(10))


def keras_cnn(folder: Path) -> Path:
    """``image`` [batch, 16, 16, 3] to ``logits`` [batch, 10]: ordinary, depthwise and transposed
    convolutions with BatchNorm, channels last, and a dense layer; in a ``.keras`` file."""
    return _keras(folder, "keras_cnn", _keras_cnn(), _KERAS_IMAGE, _logits(10))


def keras_lstm(folder: Path) -> Path:
    """``tokens`` [batch, length] int64 to ``logits`` [batch, 5], in a ``.keras`` file."""
    keras = _import_keras()
    layers = keras.layers
    tokens = keras.Input((None,), dtype="int64", name="tokens")
    x = layers.LSTM(16)(layers.Embedding(WORDS, 8)(tokens))
    model = keras.Model(tokens, layers.Dense(5, name="logits")(x))
    return _keras(folder, "keras_lstm", model, _TOKENS, _logits(5), {"tokens": _tokens(3, 7)})


def keras_two_inputs(folder: Path) -> Path:
    """``image`` [batch, 16, 16, 3] and ``features`` [batch, 4] to ``logits`` [batch, 3] and
    ``embedding`` [batch, 6]; a functional model of dicts, in a ``.keras`` file."""
    keras = _import_keras()
    layers = keras.layers
    image = keras.Input((16, 16, 3), name="image")
    features = keras.Input((4,), name="features")
    x = layers.Conv2D(8, 3, strides=2, padding="same")(image)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.Concatenate()([x, layers.Dense(8, activation="relu")(features)])
    embedding = layers.Dense(6, activation="tanh", name="embedding")(x)
    logits = layers.Dense(3, name="logits")(embedding)
    model = keras.Model(
        {"image": image, "features": features}, {"logits": logits, "embedding": embedding}
    )
    takes = _KERAS_IMAGE + _float("features", "[batch, 4]")
    returns = _logits(3) + _float("embedding", "[batch, 6]")
    inputs = {"image": _floats(4, 16, 16, 3), "features": _floats(4, 4)}
    return _keras(folder, "keras_two_inputs", model, takes, returns, inputs)


def saved_model(folder: Path) -> Path:
    """The network of :func:`keras_cnn` as a SavedModel, whose output is called ``output_0``."""
    _keras_cnn().export(folder / "saved_model", verbose=False)
    model = "{framework: tensorflow, saved_model: saved_model}"
    returns = _float("output_0", "[batch, 10]")
    return _spec(folder, "saved_model", model, _KERAS_GOLDEN, _KERAS_IMAGE, returns)


def frozen_graph(folder: Path) -> Path:
    """The network of :func:`keras_cnn` as a GraphDef without variables."""
    keras_model = _keras_cnn()
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    call = tf.function(lambda image: keras_model(image, training=False))
    concrete = call.get_concrete_function(tf.TensorSpec((None, 16, 16, 3), tf.float32, "image"))
    frozen = convert_variables_to_constants_v2(concrete)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "frozen.pb").write_bytes(frozen.graph.as_graph_def().SerializeToString())
    nodes = f'{{image: "{frozen.inputs[0].name}", logits: "{frozen.outputs[0].name}"}}'
    model = f"{{framework: tensorflow, graph: frozen.pb, node_name_mapping: {nodes}}}"
    return _spec(folder, "frozen_graph", model, _KERAS_GOLDEN, _KERAS_IMAGE, _logits(10))


NETWORKS: dict[str, Callable[[Path], Path]] = {
    function.__name__: function
    for function in (
        digits_cnn,
        resnet18,
        mobilenet_v2,
        unet,
        transformer_encoder,
        lstm,
        two_inputs,
        strings,
        torchscript_cnn,
        keras_cnn,
        keras_lstm,
        keras_two_inputs,
        saved_model,
        frozen_graph,
    )
}


# --- parts -----------------------------------------------------------------------------------


def _floats(*shape: int) -> np.ndarray:
    return np.random.default_rng([SEED, *shape]).random(shape, np.float32)


def _tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng([SEED, *shape]).integers(0, WORDS, shape)


def _float(name: str, shape: str) -> str:
    return f"- {{name: {name}, dtype: float32, shape: {shape}}}\n"


def _image(channels: int, size: int) -> str:
    return _float("image", f"[batch, {channels}, {size}, {size}]")


def _logits(classes: int) -> str:
    return _float("logits", f"[batch, {classes}]")


_TOKENS = "- {name: tokens, dtype: int64, shape: [batch, length]}\n"
_KERAS_IMAGE = _float("image", "[batch, 16, 16, 3]")
_KERAS_GOLDEN = {"image": _floats(4, 16, 16, 3)}


def _spec(folder: Path, name: str, model: str, inputs: Arrays, takes: str, returns: str) -> Path:
    """Write the golden inputs and the spec."""
    np.savez(folder / "golden.npz", **inputs)
    text = f"name: {name}\nmodel: {model}\ninputs:\n{takes}outputs:\n{returns}"
    return write(folder / f"{name}.yaml", f"{text}test: {{inputs: golden.npz}}\n")


def _from_zoo(name: str, **options: object) -> str:
    """Return code that builds a network of the zoo, whose argument is called ``images``."""
    arguments = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return f"""
        from ingot.zoo import get_model_by_name


        def build():
            return get_model_by_name({name!r}, "cifar10", {arguments})
    """


def _torch(folder: Path, name: str, code: str, inputs: Arrays, takes: str, returns: str) -> Path:
    """Write the code, seeded weights, golden inputs and the spec."""
    from safetensors.torch import save_file

    path = write(folder / "net.py", code)
    module = _prepared(lambda: runpy.run_path(str(path))["build"](), inputs)
    save_file(module.state_dict(), folder / "net.safetensors")
    model = "{framework: torch, entrypoint: net:build, weights: net.safetensors}"
    return _spec(folder, name, model, inputs, takes, returns)


def _prepared(build: Callable[[], Any], inputs: Arrays) -> Any:
    """Build a module with seeded weights, and BatchNorm as after some training.

    Its statistics are those of the inputs, somewhat disturbed: drawn freely, they would make the
    outputs of a deep network vanish, or explode.
    """
    import torch
    from torch import nn

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(SEED)
        module = build().train()
        norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
        momentum = [layer.momentum for layer in norms]
        for layer in norms:
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
            layer.momentum = 1.0
        module(*(torch.from_numpy(array) for array in inputs.values()))
        for layer, value in zip(norms, momentum, strict=True):
            layer.momentum = value
            layer.running_mean += 0.1 * torch.randn_like(layer.running_mean)
            layer.running_var *= torch.empty_like(layer.running_var).uniform_(0.7, 1.5)
    return module.eval()


def _import_keras() -> Any:
    from ingot.frameworks.keras import import_keras

    return import_keras()


def _keras_cnn() -> Any:
    keras = _import_keras()
    layers = keras.layers
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.ReLU(6)(layers.BatchNormalization()(x))
    x = layers.Conv2D(12, 1, activation="relu")(x)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.MaxPooling2D(2)(layers.Conv2D(16, 3, activation="relu")(x))
    model = keras.Model(image, layers.Dense(10, name="logits")(layers.Flatten()(x)), name="cnn")
    _draw_weights(model)
    return model


def _draw_weights(model: Any) -> None:
    """Draw all weights, so that no global random generator has to be seeded."""
    random = np.random.default_rng(SEED)
    for variable in model.weights:
        shape = tuple(variable.shape)
        value = random.normal(0, 0.3, shape)
        if variable.path.endswith(("gamma", "moving_variance")):
            value = random.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            # The last dimension of a depthwise kernel is 1, and the one before is no sum.
            fan_in = np.prod(shape[:2] if shape[-1] == 1 else shape[:-1])
            value = random.normal(0, np.sqrt(2 / fan_in), shape)
        variable.assign(value.astype(np.float32))


def _keras(
    folder: Path,
    name: str,
    model: Any,
    takes: str,
    returns: str,
    inputs: Arrays = _KERAS_GOLDEN,
) -> Path:
    """Write a ``.keras`` file with seeded weights, golden inputs and the spec."""
    _draw_weights(model)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / f"{name}.keras")
    source = f"{{framework: keras, file: {name}.keras}}"
    return _spec(folder, name, source, inputs, takes, returns)
