"""What MLflow runs to serve a model that says something of a text, or of two: it stores this file beside the model.

It imports nothing else of this package, which a server need not have.

MLflow's own flavour cuts no text, reads a text such as "12" or "[a]" as Python, and of tags gives one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Reader(PythonModel):
    """Answers each text, or each pair of them, with a label and its score; or with those of all classes."""

    def load_context(self, context: Any) -> None:  # noqa: ANN401
        """Loads the model, as the task's users do.

        Args:
            context: MLflow's, with the model's folder.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

        folder = Path(context.artifacts["model"])
        own_head = (folder / "pooled.py").is_file()
        model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=own_head)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=own_head)
        self.read = pipeline("text-classification", model=model, tokenizer=tokenizer)
        self.cut = json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))["max_length"]
        self.several = model.config.problem_type == "multi_label_classification"

    def predict(
        self,
        context: Any,  # noqa: ANN401, ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> Any:  # noqa: ANN401
        """Returns a table with `label` and `score`; of several classes at once, all of these for each text, in a list.

        Args:
            context: MLflow's.
            model_input: A table of texts in one column, or in two.
            params: Not used.
        """
        rows = model_input.itertuples(index=False, name=None)
        written = [
            [cell if isinstance(cell, str) else "" for cell in row] for row in rows
        ]  # none is an empty one
        texts = [dict(zip(("text", "text_pair"), row, strict=False)) for row in written]
        every = {"top_k": None} if self.several else {}
        answers = [self.read(text, truncation=True, max_length=self.cut, **every) for text in texts]
        return answers if self.several else pd.DataFrame(answers, columns=["label", "score"])


set_model(Reader())
