"""What MLflow runs to serve a model that writes texts about pictures: it stores this file beside the model.

It imports nothing else of this package, which a server need not have.

MLflow's own flavour needs a pipeline of transformers, and there is none from picture to text.
"""

from __future__ import annotations

import base64
import io
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Captioner(PythonModel):
    """Answers each picture with the text that the model writes about it."""

    def load_context(self, context: Any) -> None:  # noqa: ANN401
        """Loads the model, as the task's users do.

        Args:
            context: MLflow's, with the model's folder.
        """
        import transformers

        library: Any = transformers
        folder = context.artifacts["model"]
        self.image_processor = library.AutoImageProcessor.from_pretrained(folder)
        self.tokenizer = library.AutoTokenizer.from_pretrained(folder)
        self.model = library.AutoModelForImageTextToText.from_pretrained(folder).eval()

    def predict(
        self,
        context: Any,  # noqa: ANN401, ARG002
        model_input: list[str],
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> list[str]:
        """Returns a text for each picture.

        Args:
            context: MLflow's.
            model_input: Paths, addresses, or the bytes of files in base64.
            params: Not used.
        """
        return [self._about(picture) for picture in model_input]

    def _about(self, picture: str) -> str:
        given = self.image_processor(_opened(picture), return_tensors="pt")
        written = self.model.generate(pixel_values=given.pixel_values)
        return str(self.tokenizer.decode(written[0], skip_special_tokens=True))


def _opened(picture: str) -> Any:  # noqa: ANN401 - a picture of PIL
    from PIL import Image
    from transformers.image_utils import load_image

    try:
        opened = Image.open(io.BytesIO(base64.b64decode(picture, validate=True)))
    except (ValueError, OSError):
        return load_image(picture)
    return load_image(opened)  # which turns it as its EXIF data say


set_model(Captioner())
