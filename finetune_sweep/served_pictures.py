"""What MLflow runs to serve a detector: it stores this file beside the model.

It imports nothing else of this package, which a server need not have.

MLflow's own flavour knows no pipeline that finds objects.
"""

from __future__ import annotations

import base64
import io
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Detector(PythonModel):
    """Answers each picture with the boxes that the model finds in it."""

    def load_context(self, context: Any) -> None:  # noqa: ANN401
        """Loads the model, as the task's users do.

        Args:
            context: MLflow's, with the model's folder.
        """
        from transformers import pipeline

        self.find = pipeline("object-detection", model=context.artifacts["model"])

    def predict(
        self,
        context: Any,  # noqa: ANN401, ARG002
        model_input: list[str],
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> Any:  # noqa: ANN401
        """Returns for each picture its boxes: `label`, `score`, and `box` in pixels.

        Args:
            context: MLflow's.
            model_input: Paths, addresses, or the bytes of files in base64.
            params: Not used.
        """
        return [self.find(_opened(picture)) for picture in model_input]


def _opened(picture: str) -> Any:  # noqa: ANN401 - a picture of PIL, or what the pipeline opens
    from PIL import Image
    from transformers.image_utils import load_image

    try:
        opened = Image.open(io.BytesIO(base64.b64decode(picture, validate=True)))
    except (ValueError, OSError):
        return picture
    return load_image(opened)  # which turns it as its EXIF data say


set_model(Detector())
