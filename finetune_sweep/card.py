"""What lies beside a promoted checkpoint: a model card for people, the same numbers as JSON for programs.

Everything follows from the evidence alone; only `write` touches a file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from finetune_sweep import card_finalists, examples, yamlio
from finetune_sweep.durable import write_atomic
from finetune_sweep.events import Metrics
from finetune_sweep.markdown import cell, table
from finetune_sweep.mlflow_uri import printable_uri
from finetune_sweep.plan import Plan
from finetune_sweep.record import SweepRecord, TrialRecord
from finetune_sweep.spec import Sweep
from finetune_sweep.tasks import TASKS, texts
from finetune_sweep.tasks.contract import ROBUST
from finetune_sweep.train import robustness
from finetune_sweep.train.robustness import Robustness
from finetune_sweep.trial import Trial
from finetune_sweep.yamlio import Value

PAIR: Final = tuple(column.name for column in texts.PAIR)
CARD: Final = "README.md"
RESULTS: Final = "eval_results.json"


@dataclass(frozen=True)
class FinalTest:
    """What is known of the test split.

    Args:
        fingerprint: Of its rows; empty if there is none.
        metrics: Of the champion on it; empty if it was not read.
        note: Why it was read or not, in a sentence or two.
        baseline: The baseline's metrics on it; empty if they were not measured.
    """

    fingerprint: str
    metrics: Metrics
    note: str
    baseline: Metrics = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """All that a card says something about.

    Args:
        plan: The sweep.
        record: What the journal knows of it.
        trial: The champion.
        fingerprints: The sha256 over the rows of each split.
        validation: The champion's metrics, as recorded and found again.
        test: The test split.
        hardware: What the checkpoint was verified on, with the versions of the libraries.
        command: What the user typed.
        inputs: The columns of the rows that the model is given.
        robustness: On perturbed validation rows; None if it was not measured.
    """

    plan: Plan
    record: SweepRecord
    trial: Trial
    fingerprints: Mapping[str, str]
    validation: Metrics
    test: FinalTest
    hardware: Mapping[str, str | int]
    command: str
    inputs: tuple[str, ...]
    robustness: Robustness | None = None

    @property
    def ranking(self) -> list[TrialRecord]:
        """The finished trials that could win, best first."""
        return finished(self.plan, self.record)


def finished(plan: Plan, record: SweepRecord) -> list[TrialRecord]:
    """The finished trials of a plan, best first."""
    keys = {trial.key for trial in plan.trials}
    return [trial for trial in record.ranking() if trial.key in keys]


def write(evidence: Evidence, folder: Path) -> None:
    """Writes the card and the results into a folder.

    Raises:
        StorageError: If the disk refuses.
    """
    write_atomic(folder / CARD, render(evidence).encode())
    write_atomic(folder / RESULTS, json.dumps(results(evidence), indent=2).encode())


def results(evidence: Evidence) -> dict[str, Value]:
    """The numbers of a promotion. `test` is null if the test split was not read."""
    sweep, test = evidence.plan.sweep, evidence.test
    return {
        "sweep": sweep.name,
        "task": sweep.task,
        "key": evidence.trial.key,
        "metric": sweep.metric.name,
        "finished_trials": len(evidence.ranking),
        "fingerprints": dict(evidence.fingerprints),
        "validation": dict(evidence.validation),
        "test": dict(test.metrics) or None,
        "test_note": test.note,
        "test_baseline": dict(test.baseline) or None,
        "robustness": _measured(evidence.robustness) if evidence.robustness else None,
        "announced": announced(evidence.record, evidence.trial.key),
        "inputs": list(evidence.inputs),
        "max_length": evidence.trial.max_length,
    }


def announced(record: SweepRecord, key: str) -> dict[str, Value] | None:
    """The mean over the fresh seeds of the configuration that a trial is a run of; None if it is none of theirs."""
    for name, runs in record.runs().items():
        if record.decided is not None and name in record.decided.scores and key in {run.key for run in runs}:
            return {**record.decided.scores[name], "verdict": record.decided.sentence}
    return None


def _measured(found: Robustness) -> Value:
    perturbed: dict[str, Value] = {
        kind: [dict(metrics) for metrics in each] for kind, each in found.perturbed.items()
    }
    return {"clean": dict(found.clean), **perturbed}


def render(evidence: Evidence) -> str:
    """The model card, in Markdown with a YAML head as model hubs read it."""
    sweep = evidence.plan.sweep
    origin = f"{_pretrained(evidence.trial.model)}, fine-tuned for {sweep.task}"
    trial = f"trial `{evidence.trial.key}` ({evidence.trial.label}) of the sweep `{sweep.name}`"
    parts = [
        f"---\n{yamlio.dump(_head(evidence))}---",
        f"# {sweep.name}",
        f"{origin}: {trial}.",
        *_section("Results", _results(evidence)),
        *(_section("Robustness", _robustness(evidence.robustness, sweep)) if evidence.robustness else []),
        *_section("How to load it", [_loading(evidence)]),
        *_section(
            "The finalists", card_finalists.paragraphs(evidence.plan, evidence.record, evidence.trial.key)
        ),
        *_section("Data", _data(evidence)),
        *_section("Settings", [_settings(evidence)]),
        *_section("All trials", [_trials(evidence)]),
        *_section("How it was made", _making(evidence)),
        *_section("Licences", [_licences(evidence)]),
        *_section("Limits", [_limits(evidence)]),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, paragraphs: Iterable[str]) -> list[str]:
    return [f"## {title}", *paragraphs]


def _head(evidence: Evidence) -> Value:
    """The YAML head. A hub refuses names that are none of its own, so only those from a hub are given."""
    sweep = evidence.plan.sweep
    model = _hub_name(evidence.trial.model)
    data = _hub_name(sweep.data.source or "")
    head: dict[str, Value] = {
        "library_name": "transformers",
        "pipeline_tag": TASKS[sweep.task].pipeline,
        "tags": [sweep.task, "finetune-sweep"],
        "metrics": list(evidence.validation),
        "model-index": [{"name": sweep.name, "results": list(_index(evidence))}],
    }
    licence = examples.licence(evidence.trial.model)
    head |= {"license": licence.lower()} if licence else {}
    return head | ({"base_model": model} if model else {}) | ({"datasets": [data]} if data else {})


def _index(evidence: Evidence) -> Iterator[Value]:
    """The results, as hubs show them beside a model."""
    task, name = evidence.plan.sweep.task, _source(evidence)
    origin = _hub_name(evidence.plan.sweep.data.source or "") or name
    for split, metrics in (("validation", evidence.validation), ("test", evidence.test.metrics)):
        if metrics:
            values: list[Value] = [{"type": n, "name": n, "value": value} for n, value in metrics.items()]
            dataset: Value = {"name": name, "type": origin, "split": split}
            yield {"task": {"type": TASKS[task].pipeline}, "dataset": dataset, "metrics": values}


def _pretrained(model: str) -> str:
    scheme, _, name = model.partition(":")
    if scheme == "example" and name in examples.MODELS:
        example = examples.MODELS[name]
        return f"`{name}` ({example.description}; {example.licence})"
    return f"`{_model_name(model)}`"


def _model_name(model: str) -> str:
    """A pretrained model as a reader elsewhere can understand it: without the folders of this machine."""
    return model if model.startswith(("example:", "hub:")) else Path(model).name


def _hub_name(reference: str) -> str:
    """`org/name` of a reference to a hub, without revision and configuration; empty for any other."""
    return re.split(r"[@:]", reference.removeprefix("hub:"))[0] if reference.startswith("hub:") else ""


def _results(evidence: Evidence) -> list[str]:
    split = ["validation", *(["test"] if evidence.test.metrics else [])]
    columns = [evidence.validation, *([evidence.test.metrics] if evidence.test.metrics else [])]
    if evidence.test.baseline:
        split, columns = [*split, "test, baseline"], [*columns, evidence.test.baseline]
    rows = [(name, *(column.get(name, "") for column in columns)) for name in evidence.validation]
    strategy = card_finalists.strategy(evidence.plan, evidence.record, evidence.trial)
    return [table(("metric", *split), rows), f"**Test.** {evidence.test.note}", _meaning(evidence), strategy]


def _won(evidence: Evidence) -> bool:
    decided = evidence.record.decided
    return decided is not None and decided.winner == evidence.trial.key


def _meaning(evidence: Evidence) -> str:
    """What the validation score is worth: it was searched for on the very rows that it is measured on."""
    ranking, rows = evidence.ranking, evidence.plan.rows["validation"]
    keys = [trial.key for trial in ranking]
    count, metric = len(ranking), evidence.plan.sweep.metric.name
    if evidence.trial.key not in keys:
        text = (
            f"The model is one run of its configuration, with seed {evidence.trial.seed}"
            f"{', the best of them by this very score' if _won(evidence) else ''}: expect the mean over the fresh"
            " seeds, below, and announce that."
        )
    elif count == 1:
        text = f"It comes from one trial with one seed ({evidence.trial.seed})."
    else:
        place = keys.index(evidence.trial.key) + 1
        chosen = "the best" if place == 1 else f"number {place}, chosen by hand,"
        text = (
            f"It is {chosen} of {count} finished trials, each trained once with seed {evidence.trial.seed}"
            f" and compared by {metric} on the same {rows:,} validation rows. The best of many is partly"
            " luck: expect less on new data, and perhaps another order with another seed."
        )
    accuracy = evidence.validation.get("accuracy")
    if (
        accuracy is not None and TASKS[evidence.plan.sweep.task].columns[-1].kind == "class"
    ):  # one answer a row
        error = math.sqrt(accuracy * (1 - accuracy) / rows)
        text += f" The standard error of an accuracy of {accuracy:.3f} on {rows:,} rows alone is {error:.3f}."
    return f"**What the validation score means.** {text}"


def _robustness(found: Robustness, sweep: Sweep) -> list[str]:
    """How much the metric falls on perturbed validation rows, by kind."""
    metric = sweep.metric.name.removeprefix(ROBUST)
    text = "The validation texts were perturbed in these ways, each at three strengths, the same for every model."
    return [text, table(*robustness.table(found, metric))]


def _loading(evidence: Evidence) -> str:
    task, length = TASKS[evidence.plan.sweep.task], evidence.trial.max_length
    auto = task.auto_model
    if task.pipeline == "image-to-text":
        return _captioning(auto)
    if any(column.kind == "image" for column in task.columns):
        processor, argument, call, cut = "AutoImageProcessor", "image_processor", '"picture.png"', ""
    else:
        processor, argument, call = "AutoTokenizer", "tokenizer", '"A text."'
        cut = f"Inputs were cut after {length} tokens in training. "
    if task.pipeline == "text-classification":
        call = _example_row(evidence.inputs) + f", truncation=True, max_length={length}"
    if task.columns[-1].kind == "labels":
        call += f", top_k={len(evidence.plan.classes)}"
        cut += "A class is one of the answer's where its score is above 0.5. "
    use = f"""predict = pipeline("{task.pipeline}", model=model, {argument}={argument})
print(predict({call}))"""
    imported = f"{processor}, {auto}, pipeline"
    if task.pipeline == "text2text-generation":  # of which transformers has no pipeline
        imported = f"{processor}, {auto}"
        use = f"""given = tokenizer({call}, truncation=True, max_length={length}, return_tensors="pt")
written = model.generate(input_ids=given.input_ids, attention_mask=given.attention_mask)
print(tokenizer.decode(written[0], skip_special_tokens=True))"""
    names = evidence.plan.classes if _has_classes(evidence.plan) else ()
    classes = ", ".join(f"`{cell(name)}`" for name in names)
    settings, trust = evidence.trial.training, ""
    if {settings.head, settings.pooling} != {"default"}:
        trust = ", trust_remote_code=True"
        cut = f"Its head needs code that lies beside the weights, in `pooled.py`. {cut}"
    return f"""\
From the folder that holds this one:

```python
from transformers import {imported}

model = {auto}.from_pretrained("./best"{trust})
{argument} = {processor}.from_pretrained("./best")
{use}
```

{cut}{f"Classes: {classes}." if classes else ""}""".rstrip()


def _example_row(inputs: Sequence[str]) -> str:
    """What a classifier of texts is given, as Python has it."""
    return '{"text": "A text.", "text_pair": "Another."}' if "text_pair" in inputs else '"A text."'


def _captioning(auto: str) -> str:
    """How a model is used that writes about pictures: transformers has no pipeline for it."""
    return f"""\
From the folder that holds this one:

```python
from transformers import AutoImageProcessor, {auto}, AutoTokenizer
from transformers.image_utils import load_image

model = {auto}.from_pretrained("./best")
image_processor = AutoImageProcessor.from_pretrained("./best")
tokenizer = AutoTokenizer.from_pretrained("./best")
given = image_processor(load_image("picture.png"), return_tensors="pt")
written = model.generate(pixel_values=given.pixel_values)
print(tokenizer.decode(written[0], skip_special_tokens=True))
```"""


def _data(evidence: Evidence) -> list[str]:
    plan = evidence.plan
    rows = [(split, f"{count:,}", evidence.fingerprints[split]) for split, count in plan.rows.items()]
    notes = "\n".join(f"- {note}" for note in plan.notes) or "- nothing had to be cleaned"
    return [
        f"`{_source(evidence)}`; training and validation together have the fingerprint `{plan.fingerprint}`.",
        table(("split", "rows", "sha256 of its rows"), rows),
        notes,
    ]


def _source(evidence: Evidence) -> str:
    """The data set, without the folders of this machine either."""
    data = evidence.plan.sweep.data
    if data.source is None:
        return ", ".join(Path(file).name for file in (data.files or {}).values())
    scheme, separator, name = data.source.partition(":")
    return name if separator and scheme in {"example", "hub"} else Path(data.source).name


def _settings(evidence: Evidence) -> str:
    params = {**evidence.trial.params(), "model": _model_name(evidence.trial.model)}
    return table(("setting", "value"), sorted(params.items()))


def _trials(evidence: Evidence) -> str:
    ranking = evidence.ranking
    ranked, known = {trial.key for trial in ranking}, evidence.record.trials
    others = [known[t.key] for t in evidence.plan.trials if t.key not in ranked and t.key in known]
    rows: list[tuple[object, ...]] = [
        (place, f"`{t.key}`", t.planned.label, t.score, t.best_epoch or "", t.state)
        for place, t in enumerate(ranking, 1)
    ]
    rows += [("", f"`{t.key}`", t.planned.label, "", "", t.state) for t in others]
    return table(("place", "trial", "settings", evidence.plan.sweep.metric.name, "epoch", "state"), rows)


def _licences(evidence: Evidence) -> str:
    """What is known of the licences of model and data; for the rest, where to look."""
    model, source = evidence.trial.model, evidence.plan.sweep.data.source or ""
    unknown = "not known here: it is that of its source"
    rows = [
        (f"pretrained model {_model_name(model)}", examples.licence(model) or unknown),
        (f"data {_source(evidence)}", examples.licence(source) or unknown),
        ("this model", "those of the pretrained model and of the data apply"),
    ]
    return table(("of what", "licence"), rows)


def _limits(evidence: Evidence) -> str:
    """What nobody has looked at, and what the numbers do not say."""
    plan = evidence.plan
    lines = [
        f"Measured on {plan.rows['validation']:,} validation rows of one data set; others may do worse.",
        *(
            [f"Every input gets one of {len(plan.classes)} classes, also one that belongs to none of them."]
            if _has_classes(plan) and TASKS[plan.sweep.task].columns[-1].kind not in {"boxes", "labels"}
            else ["What it gives may be wrong, and was compared with one right answer a row."]
        ),
        "Nobody has looked at how it treats groups of people, nor at how its scores relate to probabilities.",
    ]
    if evidence.test.metrics:
        lines.append(f"The test result has the error of {plan.rows['test']:,} rows.")
    if evidence.record.decided is None:
        lines.append("It was trained on one seed: how far another would move its numbers is not known.")
    return "\n".join(f"- {line}" for line in lines)


def _has_classes(plan: Plan) -> bool:
    """Whether the task's answers are classes, and no texts or numbers."""
    return TASKS[plan.sweep.task].columns[-1].kind not in {"text", "number"}


def _making(evidence: Evidence) -> list[str]:
    worker = evidence.record.trials[evidence.trial.key].worker
    place = f" on {worker.device}, threads: {worker.threads}," if worker else ""
    text = (
        f"Trained{place} in {evidence.trial.training.precision}; `sweep.lock.yaml` holds the resolved sweep."
        " The checkpoint was loaded in a fresh process, where it gave the validation metrics again, on:"
    )
    return [
        f"```sh\n{printable_uri(evidence.command)}\n```",
        text,
        table(("machine", ""), evidence.hardware.items()),
        card_finalists.budget(evidence.plan, evidence.record),
    ]
