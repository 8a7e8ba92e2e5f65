"""What a model card says of the finalists, and of what the sweep has cost."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_sweep.markdown import table
from finetune_sweep.plan import Plan
from finetune_sweep.record import SweepRecord, measured
from finetune_sweep.selection import expected_best
from finetune_sweep.settings import LAYER_SETTINGS, Model, Training
from finetune_sweep.trial import Trial

_HOUR_S = 3600
_STRATEGY = (*LAYER_SETTINGS, "unfreeze", "linear_probe", "l2_sp", "layerwise_lr_decay")
"""The settings that say what is done to the pretrained blocks, before the first step and over the training."""


def paragraphs(plan: Plan, record: SweepRecord, key: str) -> list[str]:
    """The verdict, the finalists with mean, spread and interval, and whether more trials would have helped.

    Args:
        plan: The sweep.
        record: Of the sweep.
        key: The trial that is promoted.
    """
    return list(_paragraphs(plan, record, key))


def _paragraphs(plan: Plan, record: SweepRecord, key: str) -> Iterator[str]:
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
        group = finalists.candidates[name]
        taken = ["won"] if decided.winner in group else []
        taken += ["taken by hand"] if key in group and key != decided.winner else []
        label = (
            "baseline: all settings at their defaults" if name == finalists.baseline else _label(record, name)
        )
        interval = f"{values['low']:.4f} to {values['high']:.4f}"
        scores = ", ".join(f"{run.score:.4f}" for run in runs[name] if run.score is not None)
        rows.append((", ".join(taken), label, values["mean"], values["spread"], interval, scores))
    yield table(("", "configuration", f"mean {metric}", "spread", "interval", "runs"), rows)
    yield (
        f"Each was run on {seeds} seeds that had no part in choosing it, evaluated on the same"
        f" {plan.rows['validation']:,} validation rows. The spread is the standard deviation from seed to seed; the"
        " intervals are over seeds and examples, and hold all their means together with a probability of 0.95."
        + (" The model is the best run of the one that won." if key == decided.winner else "")
    )
    dropped = [name for name in finalists.candidates if name not in decided.scores]
    if dropped:
        names = ", ".join(_label(record, name) for name in dropped)
        yield f"Not compared, as a run failed or diverged: {names}."
    if plan.sweep.search.type == "random":
        yield _more_trials(plan, record)


def strategy(plan: Plan, record: SweepRecord, trial: Trial) -> str:
    """What was done to the pretrained blocks, by how much that won, and whether it is more than noise."""
    default = Training()
    chosen = [
        f"`{name}` {_written(getattr(trial.training, name))}"
        for name in _STRATEGY
        if getattr(trial.training, name) != getattr(default, name)
    ]
    what = ", ".join(chosen) or "nothing: all blocks were trained as they were pretrained"
    text = f"**What was done to the pretrained blocks.** {what[0].upper()}{what[1:]}."
    if len({_layers(other.training) for other in plan.trials}) == 1:
        return text
    groups = [{run.key for run in runs} for runs in record.runs().values()]
    decided = record.decided
    has_won = decided is not None and any({trial.key, decided.winner} <= keys for keys in groups)
    return f"{text} {decided.sentence if decided and has_won else _by_chance(plan, record, trial)}"


def _by_chance(plan: Plan, record: SweepRecord, trial: Trial) -> str:
    """How far ahead a strategy is of the best trial with another one, which one seed cannot tell from luck."""
    own = {other.key: _layers(other.training) for other in plan.trials}
    mine = record.trials[trial.key].score
    others = [
        t for t in record.ranking() if own.get(t.key, _layers(trial.training)) != _layers(trial.training)
    ]
    if mine is None or not others or others[0].score is None:
        return "No trial with another strategy has a result to compare it with."
    return (
        f"It differs by {mine - others[0].score:+.4f} in {plan.sweep.metric.name} from the best trial with another"
        f" strategy ({others[0].planned.label}). That is one seed each, so it may be noise:"
        " `selection: {finalists: 3}` would tell."
    )


def _layers(training: Training) -> tuple[str, ...]:
    return tuple(_written(getattr(training, name)) for name in _STRATEGY)


def _written(value: object) -> str:
    if isinstance(value, Model):
        return ", ".join(f"{name} {inner}" for name, inner in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


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
