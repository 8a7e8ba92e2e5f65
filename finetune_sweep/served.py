"""What MLflow runs to serve a model that writes texts: it stores this file beside the model.

It imports nothing else of this package, which a server need not have.

MLflow's own flavour needs a pipeline of transformers, and there is none from text to text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Writer(PythonModel):
    """Answers each text with the text that the model writes."""

    def load_context(self, context: Any) -> None:  # noqa: ANN401
        """Loads the model, as the task's users do.

        Args:
            context: MLflow's, with the model's folder.
        """
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        folder = Path(context.artifacts["model"])
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        self.cut = json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))["max_length"]

    def predict(
        self,
        context: Any,  # noqa: ANN401, ARG002
        model_input: list[str],
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> list[str]:
        """Returns a text for each text.

        Args:
            context: MLflow's.
            model_input: The texts.
            params: Not used.
        """
        return [self._answer(text) for text in model_input]

    def _answer(self, text: str) -> str:
        given = self.tokenizer(text, truncation=True, max_length=self.cut, return_tensors="pt")
        written = self.model.generate(input_ids=given.input_ids, attention_mask=given.attention_mask)
        return str(self.tokenizer.decode(written[0], skip_special_tokens=True))


set_model(Writer())
