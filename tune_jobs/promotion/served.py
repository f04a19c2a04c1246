"""The model's code where it is served: MLflow copies this file into the model and runs it there, `ssl_core` beside it.

Nothing else of this project is there, nor Ray, nor Optuna. MLflow asks for `set_model` below, and for the names of
`predict`'s arguments.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

COLUMN = "image"

_BASE64 = re.compile(rb"[A-Za-z0-9+/\s]+={0,2}\s*")  # no image file consists of these characters alone


class Served(PythonModel):  # type: ignore[misc]  # mlflow has no types
    """Images in, a probability a class out. What is wrong with a request is answered by 400, our own faults by 500."""

    def load_context(self, context: Any) -> None:
        from ssl_core.data.form import Form
        from ssl_core.predictor import Predictor

        facts = json.loads(Path(context.artifacts["preprocessing"]).read_text(encoding="utf-8"))
        form = dict(facts["form"])
        if isinstance(form["intensity"], list):
            form["intensity"] = tuple(form["intensity"])
        self.predictor = Predictor.load(
            Path(context.artifacts["model"]),
            Form(**form),
            temperature=facts["temperature"],
            max_pixels=facts["max_pixels"],
        )

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # hints would be a signature
        """A DataFrame, a row an image and a column a class, of a DataFrame whose column `image` holds the images."""
        import numpy as np
        import pandas as pd

        from ssl_core.errors import InputError

        del context, params
        try:
            given = self.predictor.probabilities([_decoded(value) for value in model_input[COLUMN]])
        except InputError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
        except Exception as error:
            said = f"the model failed ({type(error).__name__}: {error}); the request is not to blame"
            raise MlflowException(said, INTERNAL_ERROR) from error
        p = np.hstack([1 - given, given]) if self.predictor.task == "binary" else given  # (n, classes)
        return pd.DataFrame(p, columns=list(self.predictor.class_names))


def _decoded(value: Any) -> Any:
    """Base64, which some of MLflow's request formats leave as it is, as what it stands for; all else as it is."""
    text = value.encode("ascii", "replace") if isinstance(value, str) else value
    if isinstance(text, bytes) and _BASE64.fullmatch(text):
        try:
            return base64.b64decode(text)
        except binascii.Error:
            return text
    return text


set_model(Served())
