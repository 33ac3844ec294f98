"""Runs a Ludwig model that was packaged as a Python package."""

import os

import numpy as np


def get_model(data_root):
    return load_model(os.path.join(data_root, "ludwig_model"))


def load_model(directory):
    """Return a callable of columns by name, which returns all columns of Ludwig's predictions."""
    import pandas as pd
    from ludwig.api import LudwigModel

    model = LudwigModel.load(directory, backend="local")

    def predict(**arrays):
        frame = pd.DataFrame({name: array.tolist() for name, array in arrays.items()})
        predictions, _ = model.predict(
            dataset=frame, skip_save_predictions=True, skip_save_unprocessed_output=True
        )
        columns = {name: _to_array(list(predictions[name])) for name in predictions.columns}
        return {name: array for name, array in columns.items() if array is not None}

    return predict


def _to_array(values):
    """Return a column as an array, floats as float32; None when its rows are of many lengths."""
    if values and all(_is_words(value) for value in values):
        values = [" ".join(value) for value in values]
    try:
        array = np.array(values)
    except ValueError:
        return None
    if array.dtype.kind in "OU":
        return array.astype(np.str_)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _is_words(value):
    return isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value)
