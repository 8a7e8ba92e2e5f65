"""What a process loads once for a plan: the data, the encoded splits, the pretrained model. It knows no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_sweep.durable import sha256
from finetune_sweep.errors import TrialError, UserError
from finetune_sweep.phases import phases
from finetune_sweep.plan import Plan
from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.contract import changeable_columns
from finetune_sweep.tasks.loading import load_processor
from finetune_sweep.tasks.processors import load_tokenizer, pad_token_id
from finetune_sweep.train import architecture, conflicts, copies, robustness, weights
from finetune_sweep.train.augment import Similar
from finetune_sweep.train.data import Prepared, Rewritten, encode_split, prepare
from finetune_sweep.train.similar import neighbours, read_synonyms
from finetune_sweep.train.state import Job, LoopState, Stage
from finetune_sweep.trial import Trial
from finetune_sweep.tune.watch import Watchdog
from finetune_sweep.yamlio import Value

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from finetune_sweep.settings import Augment
    from finetune_sweep.tasks.arrays import Encoded
    from finetune_sweep.tasks.processors import Processor
    from finetune_sweep.train.stack import Stack


def planned_data(plan: Plan) -> Prepared:
    """The cleaned data that a plan was made from.

    Raises:
        UserError: They cannot be read any more, or are others now.
    """
    prepared = prepare(plan.sweep.data, TASKS[plan.sweep.task], Path(), _cache(plan))
    if prepared.fingerprint != plan.fingerprint:
        raise UserError(
            f"the data changed since the plan: their fingerprint was {plan.fingerprint}, now it is"
            f" {prepared.fingerprint}"
        )
    return prepared


def _cache(plan: Plan) -> Path:
    return Path(plan.sweep.cache or "")


@dataclass(frozen=True)
class Pretrained:
    """A model as it was pretrained, and what it takes to make it so again."""

    folder: Path
    model: PreTrainedModel
    new_parameters: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    arch: architecture.Architecture
    processor: Processor

    def restore(self) -> PreTrainedModel:
        """The model with its pretrained tensors; there is one such object, so one trial at a time can use it."""
        self.model.load_state_dict(self.tensors)
        return self.model

    def embedding_table(self) -> Tensor:
        """The pretrained embeddings of the tokens, shape `(tokens, hidden)`."""
        table = self.model.get_input_embeddings().weight
        names = (name for name, tensor in self.model.named_parameters() if tensor is table)
        return self.tensors[next(names)]


class Loaded:
    """What a process keeps from one work unit to the next: the data, the encoded splits, the last model.

    Attributes:
        watchdog: What ends this process if it hangs; asleep while data are made ready.
    """

    def __init__(self, plan: Plan) -> None:
        """Loads nothing yet."""
        self._plan = plan
        self._cache = _cache(plan)
        self._task = TASKS[plan.sweep.task]
        self._pretrained: Pretrained | None = None
        self._encoded: dict[tuple[str, Path, int], Encoded] = {}
        self._neighbours: tuple[Path, Similar] | None = None
        self.watchdog = Watchdog(plan.sweep.trial_timeout_s)
        self._with_states: dict[tuple[str, str, int, str, int, bool], Encoded | None] = {}
        self._states_for: dict[str, Value] = {}

    @cached_property
    def prepared(self) -> Prepared:
        """The cleaned data.

        Raises:
            TrialError: If they are no longer what the plan was made from.
        """
        try:
            return planned_data(self._plan)
        except UserError as error:
            raise TrialError(str(error)) from error

    def pretrained(self, model: str) -> Pretrained:
        """A model with the task's head. Only the last one that was asked for stays in memory.

        Raises:
            TrialError: If it is no longer what the plan was made from.
        """
        folder = weights.locate(model, Path(), self._cache)
        if self._pretrained is None or self._pretrained.folder != folder:
            self._pretrained = None
            self._check_model(model, folder)
            built, new_parameters = self._task.build_model(folder, self._plan.classes)
            tensors = {name: tensor.clone() for name, tensor in built.state_dict().items()}
            arch = architecture.describe(weights.read_config(folder))
            processor = load_processor(folder, self._task)
            self._pretrained = Pretrained(folder, built, new_parameters, tensors, arch, processor)
        return self._pretrained

    def _check_model(self, model: str, folder: Path) -> None:
        planned, found = self._plan.models[model], weights.fingerprint(folder)
        if found != planned:
            raise TrialError(
                f"the model {model} changed since the plan: its fingerprint was {planned}, now it is {found} ({folder})"
            )

    def encoded(self, split: str | Rewritten, folder: Path, max_length: int) -> Encoded:
        """A split in the tokens of a model, as it is or rewritten."""
        name = (_name(split), folder, max_length)
        if name not in self._encoded:
            with self.watchdog.asleep():
                self._encoded[name] = encode_split(
                    self.prepared, split, self._task, folder, max_length, self._cache
                )
        return self._encoded[name]

    def training_rows(self, trial: Trial) -> str | Rewritten:
        """The training split of a trial: with the copies that its settings ask for, or as it is."""
        augment = trial.training.augment
        if augment is None:
            return "train"
        names, needs = self._changeable, augment.replacement or augment.insertion
        similar: Value = sha256(Path(augment.synonyms)) if augment.synonyms else None
        if needs and similar is None:
            similar = self._plan.models[trial.model]
        settings = augment.model_dump(mode="json", exclude={"synonyms"})
        find = partial(self._similar, trial.model, augment)
        return Rewritten(
            "train",
            ["copies", copies.FORMAT, settings, similar, trial.seed, dict(self.prepared.fingerprints)],
            lambda rows: copies.with_copies(rows, names, augment, trial.seed, self._held_out, find),
        )

    @cached_property
    def _changeable(self) -> list[str]:
        """The columns of the rows whose texts may be changed."""
        there = self.prepared.splits["train"].column_names
        return [name for name in changeable_columns(self._task) if name in there]

    @cached_property
    def _held_out(self) -> set[copies.Inputs]:
        """The texts that no copy of a training row may have."""
        splits = (rows for split, rows in self.prepared.splits.items() if split != "train")
        names = self._changeable
        return {inputs for rows in splits for inputs in copies.inputs_of({n: rows[n] for n in names}, names)}

    def _similar(self, model: str, augment: Augment, words: set[str]) -> Similar:
        """The similar words of the training rows' words; those of the last model stay in memory."""
        if augment.synonyms:
            return read_synonyms(Path(augment.synonyms))
        pretrained = self.pretrained(model)
        if self._neighbours is None or self._neighbours[0] != pretrained.folder:
            vocabulary = load_tokenizer(pretrained.folder).get_vocab()
            table = pretrained.embedding_table().float().numpy()
            self._neighbours = pretrained.folder, neighbours(words, vocabulary, table)
        return self._neighbours[1]

    def _rows(self, trial: Trial) -> tuple[str | Rewritten, str | Rewritten]:
        """What a trial is trained on, and what it is evaluated on."""
        is_robust = robustness.measures(self._plan.sweep.metric.name)
        validation = robustness.rewriting("validation", self._task) if is_robust else "validation"
        return self.training_rows(trial), validation

    def job(self, trial: Trial) -> tuple[Job, LoopState]:
        """A trial, ready for `loop.fit`."""
        from finetune_sweep.train import loop

        self._let_go(trial)
        pretrained = self.pretrained(trial.model)
        model = pretrained.restore()
        job = self._job(trial, pretrained)
        state = loop.start(job, model, pretrained.new_parameters)
        state.forward = self.watchdog.listening(state.forward)
        return job, state

    def heads(self, trials: Sequence[Trial]) -> Stack:
        """Trials of one model that train only the head, ready for `heads.fit`."""
        from finetune_sweep.train import stack

        self._let_go(trials[0])
        pretrained = self.pretrained(trials[0].model)
        model = pretrained.restore()
        jobs = [self._job(trial, pretrained) for trial in trials]
        return stack.start(jobs, model, pretrained.new_parameters)

    def _let_go(self, trial: Trial) -> None:
        """Closes the copies of states that were opened for other trials: only then can they be deleted.

        Trials that differ in `epochs` alone are one work unit, or use the same. What would have to be computed again
        stays; what could not be kept is tried again.
        """
        from finetune_sweep.train import prefix_cache

        settings = {name: value for name, value in trial.params().items() if name != "epochs"}
        if settings != self._states_for:
            kept = {name: states for name, states in self._with_states.items() if states is not None}
            self._with_states = {n: states for n, states in kept.items() if prefix_cache.is_in_memory(states)}
            self._states_for = settings

    def _job(self, trial: Trial, pretrained: Pretrained) -> Job:
        """What a trial trains; the model has its pretrained tensors."""
        train, validation = self._rows(trial)
        task = self._task.bound(pretrained.model, pretrained.processor)
        job = Job(
            task=robustness.task_for(self._plan.sweep.metric.name, task),
            train=self.encoded(train, pretrained.folder, trial.max_length),
            validation=self.encoded(validation, pretrained.folder, trial.max_length),
            classes=self._plan.classes,
            settings=trial.training,
            depth=trial.opened,
            seed=trial.seed,
            device=self._plan.device,
            precision="bf16" if trial.training.precision == "bf16" else "fp32",
            metric=self._plan.sweep.metric.name,
            mode=self._plan.mode,
            pad_token_id=pad_token_id(pretrained.processor),
            arch=conflicts.resolve(trial.training, pretrained.arch)[0],
            unpadding=self._plan.sweep.speed.unpadding and self._task.packs,
        )
        if trial.training.unfreeze is None and trial.training.linear_probe is None:
            return self._from_the_cache(job, trial, pretrained.model)
        return self._in_stages(job, trial, pretrained)

    def _in_stages(self, job: Job, trial: Trial, pretrained: Pretrained) -> Job:
        """The job with what it freezes in which epochs; what is after fewer blocks is computed first."""
        from finetune_sweep.train import strategies

        passed = phases(trial.training, trial.depth, job.arch.blocks)
        # What is opened later may begin with other weights than those that states are computed with, or share them.
        is_pretrained = not strategies.alters_blocks(trial.training) and job.arch.shared == 1
        stages: list[Stage] = []
        for phase in reversed([each for each in passed if each.first_epoch <= trial.epochs]):
            kept = replace(job, depth=phase.depth if is_pretrained else job.depth)
            now = self._from_the_cache(kept, trial, pretrained.model)
            stages.insert(0, Stage(phase.first_epoch, phase.depth, now.train, now.validation, now.first))
        return replace(job, stages=tuple(stages))

    def _from_the_cache(self, job: Job, trial: Trial, model: PreTrainedModel) -> Job:
        """The job on states after its frozen blocks, where these can be kept."""
        from finetune_sweep.train import prefix_cache

        sweep = self._plan.sweep
        blocks = prefix_cache.blocks_to_keep(job.depth)
        if not (blocks and sweep.speed.prefix_cache and job.unpadding and job.arch.can_pack):
            return job
        if job.settings.adversarial_epsilon:  # its step begins before the frozen blocks
            return job
        model.to(job.device)  # type: ignore[arg-type]  # transformers types only torch.device
        splits: list[Encoded] = []
        for rows, encoded in zip(self._rows(trial), (job.train, job.validation), strict=True):
            split = rows.split if isinstance(rows, Rewritten) else rows
            is_last = blocks == job.arch.blocks
            name = (_name(rows), trial.model, trial.max_length, job.precision, blocks, is_last)
            if name not in self._with_states:
                place = prefix_cache.Place(
                    folder=self._cache / "states",
                    identity=(
                        self._plan.models[trial.model],
                        f"{self.prepared.fingerprints[split]}{_name(rows).removeprefix(split)}",
                        trial.max_length,
                    ),
                    cap_bytes=sweep.speed.prefix_cache_bytes,
                    min_free_bytes=sweep.min_free_bytes,
                )
                source = prefix_cache.Source(job.task, encoded, model, job.arch, job.precision)
                with self.watchdog.asleep():
                    self._with_states[name] = prefix_cache.with_states(source, blocks, place)
            found = self._with_states[name]
            if found is None:
                return job
            splits.append(found)
        return replace(job, train=splits[0], validation=splits[1], first=blocks)


def _name(rows: str | Rewritten) -> str:
    """What tells the rows of a split from those that were made of it."""
    return rows if isinstance(rows, str) else f"{rows.split} {rows.digest}"
