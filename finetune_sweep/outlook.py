"""What `run` would do, for the command `plan`: counts, what is shared, what is done, what is trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypedDict

from finetune_sweep.beginnings import beginnings
from finetune_sweep.disk import DiskNeed, estimate
from finetune_sweep.events import TrialEnded
from finetune_sweep.finalists import baseline_config
from finetune_sweep.phases import phases
from finetune_sweep.plan import Plan, remaining
from finetune_sweep.record import SweepRecord
from finetune_sweep.selection import smallest_gain
from finetune_sweep.settings import Constant, Training, Wsd
from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.contract import Task
from finetune_sweep.train import architecture, conflicts, trainable, weights
from finetune_sweep.trial import SHARES, Depth, Trial, work_units
from finetune_sweep.yamlio import Value

_SPARES_NOTHING: Final = "a cache of them would spare next to nothing"
_OTHERS: Final = "what is opened later begins with other weights than the pretrained ones"


@dataclass(frozen=True)
class Trained:
    """What is trained of a model at a freeze depth. Counts of parameters include a head for the task in its files.

    Attributes:
        padded: Whether batches of texts are computed with their padding, as the head of the task reads more than one
            token of a text, or as the architecture is not known well enough.
        cache: What is kept of its frozen blocks, in a word.
        dropped: Blocks that are left out.
        adapters: Rank and place of the adapters that are trained instead of the blocks' weights; empty without any.
        own_head: Whether its head is that of its family, not another one of ours.
        phases: What is frozen in which epochs, where that changes.
        rates: What the learning rates of blocks that share their weights are, where rates decay.
    """

    model: str
    depth: Depth
    blocks: int
    blocks_trained: int
    parameters: int
    parameters_trained: int
    padded: bool
    cache: str
    dropped: int = 0
    adapters: str = ""
    own_head: bool = True
    phases: str = ""
    rates: str = ""

    @property
    def title(self) -> str:
        """The settings that decide it."""
        dropped = f", drop_layers {self.dropped}" if self.dropped else ""
        head = "" if self.own_head else ", another head"
        return f"freeze_depth {self.depth}{dropped}{f', lora {self.adapters}' if self.adapters else ''}{head}"

    def __str__(self) -> str:
        millions, of = self.parameters_trained / 1e6, self.parameters / 1e6
        return (
            f"trains {self.blocks_trained} of {self.blocks} blocks, {millions:.1f} of {of:.1f} M parameters"
            f"{' and the new head' if self.parameters_trained < self.parameters else ''}"
            f"{f'; {self.phases}' if self.phases else ''}"
            f"{f'; {self.rates}' if self.rates else ''}"
            f"{'; texts are padded' if self.padded else ''}"
            f"{f'; {self.cache}' if self.cache else ''}"
        )


@dataclass(frozen=True)
class Outlook:
    """A plan beside what the journal says of it.

    Attributes:
        done: Trials that have a result, or diverged.
        trainings: Work units that are missing.
        epochs: Epochs that they train.
        epochs_apart: Epochs that the missing trials would train one by one.
        epochs_shareable: Epochs that each schedule that shares would train; empty where none that shares nothing is.
        trained: One row for each model, number of dropped blocks and freeze depth.
        disk: What it writes into the storage.
        final_runs: Runs on fresh seeds, of the finalists and the baseline; 0 if there are none.
        final_epochs: Epochs that these train at most.
        smallest_gain: The gain over the baseline that they would show in four of five cases, as a part of 1.
    """

    plan: Plan
    done: int
    missing: int
    trainings: int
    epochs: int
    epochs_apart: int
    epochs_shareable: Mapping[str, int]
    trained: tuple[Trained, ...]
    disk: DiskNeed
    final_runs: int = 0
    final_epochs: int = 0
    smallest_gain: float | None = None

    def to_json(self) -> dict[str, Value]:
        """What `plan --json` prints."""
        rows: dict[str, Value] = dict(self.plan.rows)
        return {
            "sweep": self.plan.sweep.name,
            "trials": len(self.plan.trials),
            "merged": self.plan.merged,
            "done": self.done,
            "missing": self.missing,
            "trajectories": len(self.plan.units),
            "work_units": self.trainings,
            "epochs": self.epochs,
            "epochs_apart": self.epochs_apart,
            "rows": rows,
            "fingerprint": self.plan.fingerprint,
            "device": self.plan.device,
            "precision": self.plan.precision,
            "finalists": {
                "runs": self.final_runs,
                "epochs_at_most": self.final_epochs,
                "smallest_gain": self.smallest_gain,
            },
            "trained": [{**vars(row)} for row in self.trained],
            "disk_bytes": {
                "least": self.disk.least,
                "kept": self.disk.kept,
                "per_worker": self.disk.per_worker,
            },
            "keys": [trial.key for trial in self.plan.trials],
        }

    def lines(self) -> list[tuple[str, str]]:
        """What `plan` shows: a word and what it says."""
        return list(self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        plan = self.plan
        sweep = plan.sweep
        yield (
            "sweep",
            f"{sweep.name}: {sweep.task} by {plan.mode}imal {sweep.metric.name} at the {sweep.metric.epoch} epoch",
        )
        yield "data", ", ".join(f"{count:,} {split}" for split, count in plan.rows.items())
        copies = max((trial.training.passes for trial in plan.trials), default=1) - 1
        if copies:
            yield (
                "",
                f"up to {copies} changed {'copies' if copies > 1 else 'copy'} of each training row (augment)",
            )
        if len(plan.classes) > 1:
            yield "classes", f"{len(plan.classes)}: {', '.join(plan.classes[:10])}"
        for note in plan.notes:
            yield "", note
        merged = f" ({plan.merged} more are the same as one of them)" if plan.merged else ""
        yield "trials", f"{len(plan.trials)}{merged}; {self.done} done, {self.missing} to train"
        yield "trainings", self._sharing()
        yield from self._final_lines()
        for row in self.trained:
            yield row.title, f"{Path(row.model).name}: {row}"
        yield "computes on", f"{plan.device}, {plan.precision} where precision is auto"
        yield "storage", f"{sweep.storage}/{sweep.name}"
        yield "disk", str(self.disk)

    def _final_lines(self) -> Iterator[tuple[str, str]]:
        """What choosing the winner costs, and what it can show."""
        selection = self.plan.sweep.selection
        if not self.final_runs:
            yield (
                "finalists",
                "none: the best trial is taken as it is (selection: {finalists: 3} would compare)",
            )
            return
        whole = sum(unit.epochs for unit in self.plan.units)
        cost = f"{self.final_runs} runs, at most {self.final_epochs} epochs; the search has {whole}"
        yield (
            "finalists",
            f"{selection.finalists} and the baseline, on {selection.seeds} fresh seeds each: {cost}",
        )
        if self.smallest_gain is not None:
            gain = f"a gain of {self.smallest_gain:.3f} in {self.plan.sweep.metric.name} over the baseline"
            yield "can show", f"{gain}, in four of five cases; for less, more seeds or validation rows"

    def _sharing(self) -> str:
        text = f"{self.trainings}, {self.epochs} epochs in all"
        if self.epochs < self.epochs_apart:
            text += f"; one by one the trials would train {self.epochs_apart}"
            if self.plan.sweep.metric.epoch == "best":
                text += " (of two that differ only in epochs, the longer can only tie or win)"
        saved = [f"{name} {number}" for name, number in self.epochs_shareable.items() if number < self.epochs]
        if saved:
            would = ", ".join(saved).replace(" ", " would train ", 1)
            text += f"; nothing is shared under linear or cosine; {would}"
        return text


def look(plan: Plan, record: SweepRecord) -> Outlook:
    """Compares a plan with the journal."""
    known = [record.trials[trial.key] for trial in plan.trials if trial.key in record.trials]
    taken = {e.key for e in beginnings(plan, plan.trials, record) if isinstance(e, TrialEnded)}
    untaken = replace(plan, trials=tuple(trial for trial in plan.trials if trial.key not in taken))
    units = remaining(untaken, record, {})
    missing = [trial for unit in units for trial in unit.trials]
    return Outlook(
        plan=plan,
        done=sum(trial.done for trial in known) + len(taken),
        missing=len(missing),
        trainings=len(units),
        epochs=sum(unit.epochs for unit in units),
        epochs_apart=sum(trial.epochs for trial in missing),
        epochs_shareable=_shareable(plan, missing),
        trained=tuple(dict.fromkeys(_trained(plan))),
        disk=estimate(plan),
        **_finals(plan),
    )


class _Finals(TypedDict, total=False):
    final_runs: int
    final_epochs: int
    smallest_gain: float | None


def _finals(plan: Plan) -> _Finals:
    """What the finalists come to, were they the longest trainings of the search."""
    selection = plan.sweep.selection
    if not selection.finalists:
        return {}
    baseline = plan.trial(baseline_config(plan))
    longest = sorted((unit.epochs for unit in plan.units), reverse=True)[: selection.finalists]
    is_rate = TASKS[plan.sweep.task].metrics[plan.sweep.metric.name] == "max"
    gain = smallest_gain(selection.seeds, plan.rows["validation"], max(len(longest), 1)) if is_rate else None
    return {
        "final_runs": (len(longest) + 1) * selection.seeds,
        "final_epochs": (sum(longest) + baseline.epochs) * selection.seeds,
        "smallest_gain": gain,
    }


def _shareable(plan: Plan, missing: Sequence[Trial]) -> dict[str, int]:
    """What the trials would train under the schedules that share, if one of them has a schedule that does not."""
    if all(trial.training.lr_schedule.type in SHARES for trial in missing):
        return {}
    epochs: dict[str, int] = {}
    for schedule in (Constant(type="constant"), Wsd(type="wsd")):
        units = work_units((_under(trial, schedule) for trial in missing), plan.sweep.speed)
        epochs[schedule.type] = sum(unit.epochs for unit in units)
    return epochs


def _under(trial: Trial, schedule: Constant | Wsd) -> Trial:
    """The trial under a schedule that shares, with its steps of warmup; under its own if that shares."""
    own = trial.training.lr_schedule
    if own.type in SHARES:
        return trial
    schedule = schedule.model_copy(update={"warmup_steps": own.warmup_steps})
    return replace(trial, training=trial.training.model_copy(update={"lr_schedule": schedule}))


def _trained(plan: Plan) -> Iterator[Trained]:
    task = TASKS[plan.sweep.task]
    kinds = {_kind(trial): trial for trial in plan.trials}
    for kind in sorted(kinds, key=lambda kind: kind[:7]):
        trial, (model, dropped, own_head, _, adapted, *_) = kinds[kind], kind
        settings = trial.training
        folder = weights.locate(model, Path(), Path(plan.sweep.cache or ""))
        arch, _ = conflicts.resolve(settings, architecture.describe(weights.read_config(folder)))
        passed = [p for p in phases(settings, trial.depth, arch.blocks) if p.first_epoch <= trial.epochs]
        opened = passed[-1].depth
        shapes = trainable.taken(weights.parameter_shapes(folder), arch, task)
        trained, total = trainable.count_trained(shapes, arch, opened, settings)
        steps = ", ".join(f"{phase.depth} from epoch {phase.first_epoch}" for phase in passed)
        yield Trained(
            model=model,
            depth=trial.depth,
            blocks=arch.blocks,
            blocks_trained=arch.blocks - (0 if opened == "embeddings" else opened),
            parameters=total,
            parameters_trained=trained,
            padded=_takes_texts(task) and not (arch.can_pack and task.packs),
            cache=_cached(plan, arch, trial, [phase.depth for phase in passed]),
            dropped=dropped,
            adapters=adapted,
            phases=f"freezes {steps}" if len(passed) > 1 else "",
            own_head=own_head,
            rates=_rates(settings, arch),
        )


def _kind(trial: Trial) -> tuple[str, int, bool, int, str, float, int, object, object, bool, bool, bool]:
    """What a row is for; what is opened within the training depends on its length."""
    training = trial.training
    is_phased = training.unfreeze is not None or training.linear_probe is not None
    return (
        trial.model,
        *trainable.deciding(training),
        _order(trial.depth),
        trial.epochs if is_phased else 0,
        training.unfreeze,
        training.linear_probe,
        _opens_others(training),
        training.adversarial_epsilon > 0,
        training.layerwise_lr_decay < 1,
    )


def _opens_others(training: Training) -> bool:
    """Whether blocks that are opened later begin with other weights than those that they were pretrained to."""
    from finetune_sweep.train import strategies

    is_phased = training.unfreeze is not None or training.linear_probe is not None
    return is_phased and strategies.alters_blocks(training)


def _rates(training: Training, arch: architecture.Architecture) -> str:
    if training.layerwise_lr_decay == 1 or arch.shared == 1:
        return ""
    return f"{arch.shared} blocks in a row share their weights, and so one learning rate: that of the last of them"


def _cached(plan: Plan, arch: architecture.Architecture, trial: Trial, depths: Sequence[Depth]) -> str:
    """What the cache of states does for a trial. Texts count as long as they may be: their tokens are not known."""
    speed = plan.sweep.speed
    kept = set(depths) - {0, "embeddings"}
    if not speed.prefix_cache or set(depths) == {0}:
        return ""
    reason = _why_not_cached(plan, arch, trial)
    if not kept:
        return f"its embeddings are computed in each epoch, as {reason or _SPARES_NOTHING}"
    if _opens_others(trial.training):
        kept = {trial.opened} - {0, "embeddings"}
    if reason := reason or ("" if kept else _OTHERS):
        return f"its frozen blocks are computed in each epoch, as {reason}"
    longest = max(trial.max_length for trial in plan.trials)
    tokens = sum(1 if depth == arch.blocks else longest for depth in kept)
    rows = plan.rows["train"] + plan.rows["validation"]
    at_most = rows * tokens * arch.width * 4
    need = f"at most {at_most / 1e6:,.1f} MB"
    is_full = shutil.disk_usage(_cache_disk(plan)).free < at_most + plan.sweep.min_free_bytes
    if at_most > speed.prefix_cache_bytes:
        bound = f"prefix_cache_bytes allows {speed.prefix_cache_bytes:,}"
    elif is_full:
        bound = f"the disk is nearly full, and min_free_bytes keeps {plan.sweep.min_free_bytes:,}"
    else:
        return f"its frozen blocks are computed once, {need} in the cache"
    if kept == {arch.blocks}:
        return f"its frozen blocks are computed once, or once a worker if the result does not fit ({need}, {bound})"
    return f"its frozen blocks are computed once if the result fits ({need}, {bound})"


def _cache_disk(plan: Plan) -> Path:
    """A folder on the disk of the cache, which need not be there yet."""
    folder = Path(plan.sweep.cache or "").absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _why_not_cached(plan: Plan, arch: architecture.Architecture, trial: Trial) -> str:
    """Why the states after frozen blocks are not kept; empty where they are."""
    task = TASKS[plan.sweep.task]
    if not task.packs:
        return f"the cache is for heads that read one token of a text, and that of {task.name} does not"
    if not arch.own_head:
        return "the cache is not for another head"
    if not arch.can_pack:
        return f"the cache is not for {arch.model_type}"
    if not plan.sweep.speed.unpadding:
        return "texts are padded: unpadding is off"
    return "the adversarial step begins before them" if trial.training.adversarial_epsilon else ""


def _takes_texts(task: Task) -> bool:
    return any(column.kind in {"text", "tokens"} for column in task.columns)


def _order(depth: Depth) -> float:
    return 0.5 if depth == "embeddings" else depth
