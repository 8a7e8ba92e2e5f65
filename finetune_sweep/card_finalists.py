"""What a model card says of the finalists, and of what the sweep has cost."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_sweep.markdown import table
from finetune_sweep.plan import Plan
from finetune_sweep.record import SweepRecord, measured
from finetune_sweep.selection import expected_best

_HOUR_S = 3600


def paragraphs(plan: Plan, record: SweepRecord) -> list[str]:
    """The verdict, the finalists with mean, spread and interval, and whether more trials would have helped."""
    return list(_paragraphs(plan, record))


def _paragraphs(plan: Plan, record: SweepRecord) -> Iterator[str]:
    decided, finalists = record.decided, record.finalists
    if decided is None or finalists is None:
        yield (
            "None: the best trial was taken as it is, on one seed. `selection: {finalists: 3}` runs the best few on"
            " fresh seeds, and a baseline beside them."
        )
        return
    metric, runs = plan.sweep.metric.name, record.runs()
    seeds = max(len(group) for group in runs.values())
    yield f"**{decided.sentence}**"
    rows = []
    for name, values in decided.scores.items():
        is_winner = decided.winner in finalists.candidates[name]
        label = (
            "baseline: all settings at their defaults" if name == finalists.baseline else _label(record, name)
        )
        interval = f"{values['low']:.4f} to {values['high']:.4f}"
        scores = ", ".join(f"{run.score:.4f}" for run in runs[name] if run.score is not None)
        rows.append(("taken" if is_winner else "", label, values["mean"], values["spread"], interval, scores))
    yield table(("", "configuration", f"mean {metric}", "spread", "interval", "runs"), rows)
    yield (
        f"Each was run on {seeds} seeds that had no part in choosing it, evaluated on the same"
        f" {plan.rows['validation']:,} validation rows. The spread is the standard deviation from seed to seed; the"
        " intervals are over seeds and examples, and hold all their means together with a probability of 0.95. The"
        " model is the run with the median score."
    )
    dropped = [name for name in finalists.candidates if name not in decided.scores]
    if dropped:
        names = ", ".join(_label(record, name) for name in dropped)
        yield f"Not compared, as a run failed or diverged: {names}."
    if plan.sweep.search.type == "random":
        yield _more_trials(plan, record)


def _label(record: SweepRecord, name: str) -> str:
    return record.trials[name].planned.label if name in record.trials else "baseline"


def _more_trials(plan: Plan, record: SweepRecord) -> str:
    """Tang et al. 2020: what a random search of fewer trials would have found on average."""
    scores = [trial.score for trial in record.ranking() if trial.score is not None]
    count = len(scores)
    places = sorted({max(1, count // 4), max(1, count // 2), max(1, count * 9 // 10), count})
    curve = expected_best(scores, places, higher_is_better=plan.mode == "max")
    values = ", ".join(f"{value:.4f} of {place}" for place, value in zip(places, curve, strict=True))
    return (
        f"**Would more trials have helped?** The expected best {plan.sweep.metric.name} is {values} trials."
    )


def budget(plan: Plan, record: SweepRecord) -> str:
    """What was searched, and what it took."""
    trials = record.all_current()
    seconds = sum(measured(record.trials.values()).values())
    workers = [trial.worker for trial in trials if trial.worker is not None]
    device = workers[0].device if workers else plan.device
    reused = sum(1 for trial in trials if trial.end is not None and trial.end.reused_from)
    space = ", ".join(dimension.name for dimension in plan.sweep.space.dimensions) or "nothing"
    hours = seconds / _HOUR_S * (workers[0].threads if workers and device == "cpu" else 1)
    unit = "CPU" if device == "cpu" else "GPU"
    text = (
        f"Searched by {plan.sweep.search.type}: {space}. {len(record.current())} trials,"
        f" {len(trials) - len(record.current())} runs on fresh seeds; training and evaluating took"
        f" {hours:.2f} {unit} hours"
    )
    return text + (f", {reused} trials were taken over from other sweeps." if reused else ".")
