"""Train the network, and write it in every form that the specs of this folder package.

    python train.py FOLDER

FOLDER gets digits.safetensors, digits.pt (TorchScript), digits.keras, digits.onnx, golden.npz
(inputs of the golden test), test.npz (the test images) and test_labels.npy.
"""

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from net import build
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from ingot.zoo.digits import load_digits

EPOCHS = 20
BATCH = 64


def train(seed=0):
    torch.manual_seed(seed)
    model = build()
    images, labels = (torch.from_numpy(array) for array in load_digits("train"))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


def accuracy(model):
    images, labels = load_digits("test")
    with torch.no_grad():
        return float((model(torch.from_numpy(images)).argmax(1).numpy() == labels).mean())


def save_onnx(model, path):
    """Export with a dynamic batch; the exporter reports its progress on stdout."""
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def save_keras(model, path):
    """Write the same network with the same weights as a Keras model."""
    import keras

    image = keras.Input((1, 8, 8), name="image")
    x = keras.layers.Permute((2, 3, 1))(image)
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="conv1")(x)
    x = keras.layers.MaxPooling2D(2)(x)
    x = keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="conv2")(x)
    x = keras.layers.MaxPooling2D(2)(x)
    # PyTorch flattens channels first.
    x = keras.layers.Flatten()(keras.layers.Permute((3, 1, 2))(x))
    twin = keras.Model(image, keras.layers.Dense(10, name="logits")(x))
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for name in ("conv1", "conv2"):
        kernel = state[f"{name}.weight"].transpose(2, 3, 1, 0)
        twin.get_layer(name).set_weights([kernel, state[f"{name}.bias"]])
    twin.get_layer("logits").set_weights([state["fc.weight"].T, state["fc.bias"]])
    twin.save(path)


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    model = train()
    save_file(model.state_dict(), folder / "digits.safetensors")
    images, labels = load_digits("test")
    np.savez(folder / "golden.npz", image=images[:8])
    np.savez(folder / "test.npz", image=images)
    np.save(folder / "test_labels.npy", labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(model).save(str(folder / "digits.pt"))
        save_onnx(model, folder / "digits.onnx")
    save_keras(model, folder / "digits.keras")
    print(f"accuracy on {len(labels)} test images: {100 * accuracy(model):.2f} %")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main(Path(sys.argv[1]))
