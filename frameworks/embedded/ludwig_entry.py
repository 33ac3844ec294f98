"""Runs a Ludwig model that was packaged as a Python package."""

import os

import numpy as np


def get_model(data_root):
    return load_model(os.path.join(data_root, "ludwig_model"))


def load_model(directory):
    """Return a callable of columns by feature name, which returns columns of predictions."""
    import pandas as pd
    from ludwig.api import LudwigModel

    model = LudwigModel.load(directory, backend="local")

    def predict(**arrays):
        frame = pd.DataFrame({name: array.tolist() for name, array in arrays.items()})
        predictions, _ = model.predict(dataset=frame, skip_save_predictions=True)
        outputs = {}
        for name in predictions.columns:
            values = np.array(predictions[name].tolist())
            if values.dtype.kind in "OU":
                values = values.astype(np.str_)
            elif values.dtype.kind == "f":
                values = values.astype(np.float32)
            outputs[name] = values
        return outputs

    return predict
