"""Promotion: what ends up in `best/`, and what never does."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune_sweep import assembly, card, promote, resolved, verification
from finetune_sweep.assembly import Found
from finetune_sweep.durable import check_folder, folder_aside
from finetune_sweep.errors import StorageError, UserError, VerificationError
from finetune_sweep.events import Promoted, TestIntended, TestRead, TrialEnded
from finetune_sweep.journal import read
from finetune_sweep.layout import CHANGED_TENSORS, Layout
from finetune_sweep.promote import Options
from finetune_sweep.record import TrialRecord, replay
from tests.promotion.finished_sweep import (
    WORDS,
    Opened,
    P,
    R,
    Trained,
    here,
    hold,
    never,
    save_rows,
    stop_at,
    train,
    tree,
)

# ------------------------------------------------------------------------------------------- what is promoted


def test_the_best_trial_lies_in_best_as_any_checkpoint(promoted: Opened) -> None:
    best, winner = promoted.layout.best, promoted.ranking[0]
    check_folder(best)
    model, info = AutoModelForSequenceClassification.from_pretrained(best, output_loading_info=True)
    assert not any(info.values())
    assert model.config.id2label == {0: "bad", 1: "good"}

    assert winner.checkpoint is not None
    trained = load_file(promoted.layout.root / winner.checkpoint / CHANGED_TENSORS)
    assert any(name.startswith("bert.encoder.layer.1.") for name in trained)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in trained.items())
    tokens = AutoTokenizer.from_pretrained(best)("Bob saw the good films")["input_ids"]
    assert [WORDS[token] for token in tokens] == [
        "[CLS]",
        "bob",
        "saw",
        "the",
        "good",
        "film",
        "##s",
        "[SEP]",
    ]


def test_what_is_journalled_is_what_was_measured(promoted: Opened) -> None:
    winner, tested = promoted.ranking[0], promoted.journal.record.test_reads[0]
    last = Promoted(
        winner.key, promote.epoch_of(winner), winner.metrics, tested.metrics, "tiny classifier", ""
    )
    happened = [event for event in promoted.events if isinstance(event, TestIntended | TestRead | Promoted)]
    assert happened == [TestIntended(winner.key, promote.epoch_of(winner), tested.fingerprint), tested, last]
    assert set(tested.metrics) == {"accuracy", "macro_f1", "f1", "mcc", "auroc", "loss"}
    results = promoted.results()
    assert (results["key"], results["validation"], results["test"]) == (
        winner.key,
        winner.metrics,
        tested.metrics,
    )
    lock = resolved.read_beside(promoted.layout.best)
    assert (lock.key, lock.epoch, lock.metrics) == (winner.key, winner.best_epoch, winner.metrics)


def test_the_card_says_where_the_checkpoint_comes_from(promoted: Opened) -> None:
    text, plan, winner = promoted.card(), promoted.plan, promoted.ranking[0]
    head = ModelCard.load(promoted.layout.best / card.CARD).data.to_dict()
    assert (head["library_name"], head["pipeline_tag"]) == ("transformers", "text-classification")
    assert [result["dataset"]["split"] for result in head["model-index"][0]["results"]] == [
        "validation",
        "test",
    ]
    assert "loss" in head["metrics"]

    for fact in (
        plan.fingerprint,
        winner.key,
        "`rows.csv`",
        "finetune-sweep run tiny.yaml",
        torch.__version__,
    ):
        assert fact in text
    assert "It is the best of 4 finished trials, each trained once with seed 0" in text
    assert all(note in text for note in plan.notes)
    assert all(f"| {name} |" in text for name in plan.trials[0].params())
    assert str(Path(plan.sweep.cache or "").parent) not in text
    assert "me:pw" not in text
    places = [text.index(f"| {place} | `{trial.key}` |") for place, trial in enumerate(promoted.ranking, 1)]
    assert places == sorted(places)


def test_the_code_in_the_card_runs(
    promoted: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.findall(r"```python\n(.*?)```", promoted.card(), re.DOTALL)
    monkeypatch.chdir(promoted.layout.root)
    exec(code[0], {})  # noqa: S102 - what a reader of the card does
    assert re.search(r"'label': '(good|bad)', 'score': 0\.\d+", capsys.readouterr().out)


def test_promoting_again_does_nothing(promoted: Opened) -> None:
    before, events = tree(promoted.layout.best), len(promoted.events)
    assert promote.pending(promoted.plan, promoted.journal, promoted.layout, Options()) is None
    assert promoted.promote(never) == promoted.journal.record.promoted
    assert (tree(promoted.layout.best), len(promoted.events)) == (before, events)


def test_what_is_yet_to_be_promoted_needs_its_checkpoint(promoted: Opened) -> None:
    def pending(options: Options) -> TrialRecord | None:
        return promote.pending(promoted.plan, promoted.journal, promoted.layout, options)

    first, second = promoted.ranking[:2]
    assert pending(Options(key=second.key)) is second
    assert pending(Options(dry_run=True)) is first
    (promoted.layout.best / "config.json").unlink()
    assert pending(Options()) is first


def test_a_damaged_best_is_made_again_without_reading_the_test_again(promoted: Opened) -> None:
    (promoted.layout.best / "model.safetensors").write_bytes(b"damaged")
    reads = promoted.journal.record.test_reads.copy()
    promoted.promote(here)
    check_folder(promoted.layout.best)
    assert promoted.journal.record.test_reads == reads
    assert promoted.results()["test"] == reads[0].metrics


def test_more_trials_make_the_card_anew(sweep: Opened) -> None:
    best = sweep.ranking[0].key
    fewer = replace(sweep.plan, trials=tuple(t for t in sweep.plan.trials if t.key != sweep.ranking[-1].key))
    promote.promote(fewer, sweep.journal, sweep.layout, here)
    assert "It is the best of 3 finished trials" in sweep.card()
    assert sweep.promote(here).key == best
    assert "It is the best of 4 finished trials" in sweep.card()


def test_the_card_says_what_the_model_loses_on_perturbed_texts(promoted: Opened) -> None:
    assert "## Robustness" not in promoted.card()
    assert promoted.results()["robustness"] is None
    selection = promoted.plan.sweep.selection.model_copy(update={"robustness": True})
    asked = replace(promoted.plan, sweep=promoted.plan.sweep.model_copy(update={"selection": selection}))

    promote.promote(asked, promoted.journal, promoted.layout, here)

    text, measured = promoted.card(), promoted.results()["robustness"]
    assert "| word order: 5, 10, 20 % of the words change places with another |" in text
    assert set(measured) == {"clean", "typos", "case", "punctuation", "deletion", "word_order"}
    assert measured["clean"]["accuracy"] == promoted.results()["validation"]["accuracy"]
    assert [len(measured[kind]) for kind in measured if kind != "clean"] == [3] * 5
    again = promote.promote(asked, promoted.journal, promoted.layout, never)
    assert again.key == promoted.ranking[0].key


def test_a_dry_run_verifies_and_keeps_nothing(sweep: Opened) -> None:
    before = tree(sweep.layout.root)
    calls = []

    def counting(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        calls.append(function)
        return function(*args, **kwargs)

    would = sweep.promote(counting, Options(dry_run=True))
    assert would == Promoted(
        sweep.ranking[0].key,
        promote.epoch_of(sweep.ranking[0]),
        sweep.ranking[0].metrics,
        {},
        "tiny classifier",
        "",
    )
    assert calls == [assembly.assemble, assembly.evaluate_folder]
    assert tree(sweep.layout.root) == before
    assert [path.name for path in sweep.layout.root.glob(".best*")] == []


# -------------------------------------------------------------------------------------------- which trial it is


def test_the_user_may_overrule_the_best(sweep: Opened) -> None:
    second = sweep.ranking[1].key
    assert sweep.promote(here, Options(key=second)).key == second
    assert "It is number 2, chosen by hand, of 4 finished trials" in sweep.card()


def test_a_wrong_key_is_answered_with_the_nearest(sweep: Opened) -> None:
    key = sweep.ranking[1].key
    with pytest.raises(UserError, match=f"did you mean '{key}'.*the best are {sweep.ranking[0].key}"):
        sweep.promote(never, Options(key=key[:-1]))


def test_a_trial_that_is_not_finished_cannot_be_promoted(trained: Trained) -> None:
    key = trained.plan.trials[0].key
    with hold(replace(trained, layout=Layout(trained.layout.storage, "empty"))) as empty:
        empty.journal.append(*empty.plan.events())
        with pytest.raises(UserError, match="no trial of the sweep 'tiny' is finished"):
            empty.promote(never)
        other = trained.plan.trials[1].key
        empty.journal.append(TrialEnded(other, "finished", 1, 1, 0.5), TrialEnded(key, "failed"))
        with pytest.raises(UserError, match=rf"got '{key}' \(it is failed\)"):
            empty.promote(never, Options(key=key))


# ------------------------------------------------------------------------------------------- what is refused


def test_a_damaged_checkpoint_is_not_promoted(promoted: Opened) -> None:
    second = promoted.ranking[1]
    file = promoted.layout.root / (second.checkpoint or "") / CHANGED_TENSORS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    before, events = tree(promoted.layout.best), len(promoted.events)
    with pytest.raises(StorageError, match="is damaged"):
        promoted.promote(never, Options(key=second.key))
    assert (tree(promoted.layout.best), len(promoted.events)) == (before, events)


def test_a_checkpoint_that_was_removed_is_not_promoted(sweep: Opened) -> None:
    sweep.ranking[0].checkpoint = None
    with pytest.raises(StorageError, match="has no checkpoint any more; `run` trains it again"):
        sweep.promote(never)


def test_a_checkpoint_of_another_depth_is_not_promoted(sweep: Opened) -> None:
    checkpoint = sweep.layout.root / (sweep.ranking[0].checkpoint or "")
    tensors = load_file(checkpoint / CHANGED_TENSORS)
    with folder_aside(checkpoint) as aside:
        save_file({name: tensors[name] for name in tensors if "layer.1" not in name}, aside / CHANGED_TENSORS)
    with pytest.raises(
        StorageError, match=r"other tensors than training changes; 16 differ, as bert\.encoder"
    ):
        sweep.promote(here)
    assert not sweep.layout.best.exists()


def test_other_weights_do_not_pass_the_verification(promoted: Opened) -> None:
    second = promoted.ranking[1]
    checkpoint = promoted.layout.root / (second.checkpoint or "")
    tensors = load_file(checkpoint / CHANGED_TENSORS)
    with folder_aside(checkpoint) as aside:
        save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, aside / CHANGED_TENSORS)
    before, events = tree(promoted.layout.best), len(promoted.events)
    with pytest.raises(VerificationError, match="loss was recorded as"):
        promoted.promote(here, Options(key=second.key))
    assert (tree(promoted.layout.best), len(promoted.events)) == (before, events)


def test_a_metric_that_is_not_found_again_is_named(sweep: Opened) -> None:
    winner = sweep.ranking[0]
    recorded = dict(winner.metrics)
    changed = recorded | {"accuracy": recorded["accuracy"] + 0.001}
    evaluations = winner.evaluations
    winner.evaluations = [replace(e, metrics=changed) if e.metrics == recorded else e for e in evaluations]
    expected = f"accuracy was recorded as {changed['accuracy']!r}, found {recorded['accuracy']!r}"
    with pytest.raises(VerificationError, match=re.escape(expected)) as raised:
        sweep.promote(here)
    assert "loss" not in str(raised.value)
    assert not sweep.layout.best.exists()


def test_only_another_host_or_device_may_move_the_last_digits(sweep: Opened) -> None:
    winner = sweep.ranking[0]
    assert winner.worker is not None

    def off(name: str, factor: float) -> dict[str, float]:
        return {**winner.metrics, name: winner.metrics[name] * factor}

    near = Found(off("loss", 1.0005), winner.worker.host, winner.worker.device, {})
    with pytest.raises(VerificationError, match="loss"):
        verification.verify(winner, near)
    verification.verify(winner, replace(near, host="elsewhere"))
    verification.verify(winner, replace(near, device="cuda"))
    with pytest.raises(VerificationError, match="loss"):
        verification.verify(winner, replace(near, host="elsewhere", metrics=off("loss", 1.002)))
    with pytest.raises(VerificationError, match="accuracy"):
        verification.verify(winner, replace(near, host="elsewhere", metrics=off("accuracy", 1.0005)))
    with pytest.raises(VerificationError, match=r"loss was recorded as .* found nan"):
        verification.verify(winner, replace(near, metrics=off("loss", float("nan"))))


def test_data_that_changed_since_the_plan_are_refused(sweep: Opened) -> None:
    with pytest.raises(
        UserError, match="the data changed since the plan: their fingerprint was 00, now it is"
    ):
        promote.promote(replace(sweep.plan, fingerprint="00"), sweep.journal, sweep.layout, never)


def test_a_folder_without_its_class_names_or_weights_is_refused(promoted: Opened) -> None:
    best = promoted.layout.best
    config = json.loads((best / "config.json").read_text())
    (best / "config.json").write_text(json.dumps({**config, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    with pytest.raises(VerificationError, match=r"should have the classes \('bad', 'good'\)"):
        assembly.load_as_user(best, promoted.plan)
    tensors = load_file(best / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, best / "model.safetensors", {"format": "pt"})
    with pytest.raises(VerificationError, match=r"missing_keys.*classifier\.weight"):
        assembly.load_as_user(best, promoted.plan)


# --------------------------------------------------------------------------------------------- the test split


def test_a_trial_that_the_user_preferred_stays_until_the_rule_names_another(promoted: Opened) -> None:
    first, second, third = (trial.key for trial in promoted.ranking[:3])
    preferred = promoted.promote(here, Options(key=second))
    assert (preferred.key, preferred.instead_of) == (second, first)

    assert promoted.promote(never, Options(keep=True)) == preferred
    assert promoted.promote(here).key == first
    promoted.promote(here, Options(key=third))
    plan = promoted.journal.record.plan
    assert plan is not None
    promoted.journal.append(replace(plan, keys=tuple(key for key in plan.keys if key != first)))
    assert promoted.promote(here, Options(keep=True)).key == second


def test_a_later_champion_does_not_read_the_test_split(promoted: Opened) -> None:
    first, second = (trial.key for trial in promoted.ranking[:2])
    at = f"{first} at epoch {promote.epoch_of(promoted.ranking[0])}"
    again = promoted.promote(here, Options(key=second))
    assert again.test_metrics == {}
    assert promoted.results()["test"] is None
    assert f"**Test.** Not read for this model: it was read for an earlier champion ({at})" in promoted.card()

    tested = promoted.promote(here, Options(key=second, again=True))
    assert [event.key for event in promoted.journal.record.test_reads] == [first, second]
    assert promoted.results()["test"] == tested.test_metrics != {}
    assert f"It was also read for {at}, so it is no longer untouched." in promoted.card()

    back = promoted.promote(here, Options(key=first, again=True))
    assert len(promoted.journal.record.test_reads) == 2
    assert back.test_metrics == promoted.journal.record.test_reads[0].metrics


def test_an_edited_metric_promotes_the_weights_of_the_epoch_that_now_counts(promoted: Opened) -> None:
    winner = promoted.ranking[0]
    before = (promoted.layout.best / "model.safetensors").read_bytes()
    other = next(e.epoch for e in winner.evaluations if e.epoch != winner.best_epoch)
    winner.best_epoch = other

    assert promote.pending(promoted.plan, promoted.journal, promoted.layout, Options()) is winner
    assert promote.epoch_of(winner) == other
    assert (promoted.layout.best / "model.safetensors").read_bytes() == before


def test_an_intent_alone_counts_as_a_look_at_the_test_split(sweep: Opened) -> None:
    first, second = (trial.key for trial in sweep.ranking[:2])
    with pytest.raises(KeyboardInterrupt):
        sweep.promote(stop_at(3))
    assert isinstance(sweep.events[-1], TestIntended)
    assert sweep.promote(here, Options(key=second)).test_metrics == {}
    assert sweep.promote(here, Options(key=first)).test_metrics != {}


def test_hidden_test_labels_are_told_in_the_card(tmp_path: Path) -> None:
    save_rows(tmp_path / "hidden.csv", labels=("-1", "-1"))
    data = "files: {train: rows.csv, test: hidden.csv}\n  split: {validation: 0.2, test: 0}"
    with hold(train(tmp_path, data)) as opened:
        assert opened.promote(here).test_metrics == {}
        assert [e for e in opened.events if isinstance(e, TestIntended)] == []
        assert "**Test.** There is no test split" in opened.card()
        assert "the labels of the source's 60 rows are hidden" in opened.card()
        assert "| metric | validation |\n" in opened.card()


# ------------------------------------------------------------------------------------------------- interrupted


@pytest.mark.parametrize("step", [1, 2, 3])
def test_an_interrupted_promotion_leaves_the_old_best(promoted: Opened, step: int) -> None:
    before = tree(promoted.layout.best)
    with pytest.raises(KeyboardInterrupt):
        promoted.promote(stop_at(step), Options(key=promoted.ranking[1].key, again=True))
    assert tree(promoted.layout.best) == before
    assert [path.name for path in promoted.layout.root.glob(".best*")] == []


KILLED = """
import os, pickle, signal, sys
from finetune_sweep import promote
from finetune_sweep.events import Promoted
from finetune_sweep.journal import Journal
from finetune_sweep.lock import SweepLock

plan, layout, options, moment = pickle.loads(sys.stdin.buffer.read())

class Dying(Journal):
    def append(self, *events):
        if moment == "journal" and any(isinstance(event, Promoted) for event in events):
            os.kill(os.getpid(), signal.SIGKILL)
        super().append(*events)

def fresh(function, *args):
    if moment == "test" and "test" in args:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "card":
    promote.card.write = die
if moment == "lock":
    promote.resolved.write_beside = die

with SweepLock(layout) as lock:
    promote.promote(plan, Dying(layout, lock.owner), layout, fresh, options)
"""


@pytest.mark.parametrize("moment", ["test", "card", "lock", "journal"])
def test_a_killed_promotion_leaves_the_old_best_or_the_new_one(
    promoted_template: Trained, tmp_path: Path, moment: str
) -> None:
    layout = Layout(tmp_path / "runs", promoted_template.layout.sweep)
    shutil.copytree(promoted_template.layout.root, layout.root)
    first, second = (trial.key for trial in replay(read(layout)).ranking()[:2])
    options = Options(key=second, again=True)
    message = pickle.dumps((promoted_template.plan, layout, options, moment))
    killed = subprocess.run([sys.executable, "-c", KILLED], input=message, check=False)
    assert killed.returncode == -signal.SIGKILL
    check_folder(layout.best)
    with hold(Trained(promoted_template.plan, layout)) as held:
        assert held.results()["key"] == (second if moment == "journal" else first)
        assert held.journal.record.promoted is not None
        assert held.journal.record.promoted.key == first
        assert held.promote(here, options).key == second
        assert held.results()["key"] == second
        assert [event.key for event in held.journal.record.test_reads] == [first, second]
        assert [path.name for path in layout.root.glob(".best*")] == []


def test_a_kill_between_the_two_renames_is_mended(promoted: Opened) -> None:
    before = tree(promoted.layout.best)
    promoted.layout.best.rename(promoted.layout.root / ".best.old")
    assert promoted.promote(never) == promoted.journal.record.promoted
    assert tree(promoted.layout.best) == before
