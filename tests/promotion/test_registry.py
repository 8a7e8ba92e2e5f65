"""The MLflow registry: which version of a model has the alias, and what it serves."""

from __future__ import annotations

import base64
import importlib
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import transformers
from PIL import ExifTags, Image

from finetune_sweep import promote, registry
from finetune_sweep.errors import TrackingError, UserError
from finetune_sweep.events import Promoted, Tracked
from finetune_sweep.mlflow_store import make_client
from finetune_sweep.mlflow_uri import artifact_location, tracking_uri
from finetune_sweep.promote import Options
from finetune_sweep.snapshot import KEY_TAG, TAG
from tests.promotion.finished_sweep import Opened, here, tree


@pytest.mark.parametrize("module", ["served_captions", "served_pictures"])
def test_a_picture_in_base64_is_turned_as_one_that_is_named(module: str) -> None:
    content, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (20, 10)).save(content, "jpeg", exif=exif)
    served = importlib.import_module(f"finetune_sweep.{module}")
    assert served._opened(base64.b64encode(content.getvalue()).decode()).size == (10, 20)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("migrated") / "mlflow.db"
    make_client(f"sqlite:///{database}").search_experiments()
    return database


def client_of(opened: Opened) -> Any:  # noqa: ANN401 - an MlflowClient, whose annotations differ from what it returns
    return make_client(tracking_uri(opened.plan.sweep.tracking.uri, opened.layout.storage))


@pytest.fixture
def tracked(promoted: Opened, migrated: Path) -> Opened:
    """The promoted sweep with a run of its best trial and one of the sweep, as the mirror makes them."""
    shutil.copy(migrated, promoted.layout.storage.parent / "mlflow.db")
    client = client_of(promoted)
    uri = tracking_uri(promoted.plan.sweep.tracking.uri, promoted.layout.storage)
    experiment = client.create_experiment("tiny", artifact_location(uri, promoted.layout.storage))
    for key in ("", promoted.ranking[0].key):
        run = client.create_run(experiment)
        client.set_terminated(run.info.run_id)
        promoted.journal.append(Tracked(key, run.info.run_id))
    return promoted


def register(opened: Opened) -> Promoted:
    return registry.register(opened.plan, opened.journal, opened.layout)


def test_the_registered_version_serves(tracked: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    key = tracked.ranking[0].key
    registered = register(tracked)
    assert tracked.journal.record.promoted == registered == replace(registered, key=key, version="1")

    client = client_of(tracked)
    version = client.get_model_version_by_alias("tiny classifier", "champion")
    assert (str(version.version), version.run_id) == ("1", tracked.ranking[0].mlflow_run_id)
    assert version.tags[KEY_TAG] == key
    assert version.tags[TAG + "fingerprint"] == tracked.plan.fingerprint
    assert version.tags[TAG + "test_loss"] == str(registered.test_metrics["loss"])
    assert client.get_run(version.run_id).info.status == "FINISHED"

    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", tracking_uri(tracked.plan.sweep.tracking.uri, tracked.layout.storage)
    )
    served = mlflow.pyfunc.load_model("models:/tiny classifier@champion")
    assert served.metadata.signature is not None
    answer = cast("Any", served.predict(served.input_example))
    assert list(answer.columns) == ["label", "score"]
    assert answer["label"][0] in tracked.plan.classes
    texts = ["bob saw the good film", "12", "bad " * 50]  # the last one is longer than the model's positions
    answers = cast("Any", served.predict(texts))
    pipeline: Any = transformers.pipeline("text-classification", model=str(tracked.layout.best))
    expected = [pipeline(text, truncation=True, max_length=16)[0] for text in texts]
    assert list(answers["label"]) == [one["label"] for one in expected]
    assert list(answers["score"]) == pytest.approx([one["score"] for one in expected], abs=1e-6)


def test_registering_again_adds_nothing_and_leaves_a_rollback_alone(tracked: Opened) -> None:
    first, second = (trial.key for trial in tracked.ranking[:2])
    register(tracked)
    assert register(tracked).version == "1"
    with pytest.raises(UserError, match="no version of 'tiny classifier' was champion before version 1, so"):
        registry.rollback(tracked.plan, tracked.layout)

    tracked.promote(here, Options(key=second))
    assert tracked.journal.record.trials[second].mlflow_run_id is None
    assert register(tracked).version == "2"
    assert registry.rollback(tracked.plan, tracked.layout) == registry.Registered(
        "tiny classifier", "1", first
    )
    register(tracked)
    client = client_of(tracked)
    assert str(client.get_model_version_by_alias("tiny classifier", "champion").version) == "1"
    assert len(client.search_model_versions("name = 'tiny classifier'")) == 2

    tracked.promote(here, Options(key=first))
    assert register(tracked).version == "1"
    last, epoch = cast("Promoted", tracked.journal.record.promoted), promote.epoch_of(tracked.ranking[1])
    tracked.journal.append(replace(last, key=second, epoch=epoch, version="", instead_of=first))
    assert register(tracked).version == "2"
    assert str(client.get_model_version_by_alias("tiny classifier", "champion").version) == "2"


def champion_of(opened: Opened) -> str:
    return str(client_of(opened).get_model_version_by_alias("tiny classifier", "champion").version)


def promote_and_register(opened: Opened, place: int, *, by_rule: bool = False) -> Promoted:
    """Promotes the trial of this place in the ranking, as the user's choice or as if the rule had named it."""
    chosen = opened.promote(here, Options(key=opened.ranking[place].key))
    if by_rule:
        opened.journal.append(replace(chosen, instead_of=""))
    return register(opened)


def test_a_rollback_goes_back_to_what_was_champion_and_to_nothing_else(tracked: Opened) -> None:
    register(tracked)
    assert promote_and_register(tracked, 1, by_rule=True).alias == "challenger"
    assert promote_and_register(tracked, 2).alias == "champion"
    tags = client_of(tracked).get_model_version("tiny classifier", "3").tags
    assert tags["finetune_sweep.replaced"] == "1"

    assert registry.rollback(tracked.plan, tracked.layout).version == champion_of(tracked) == "1"
    with pytest.raises(UserError, match="no version of 'tiny classifier' was champion before version 1"):
        registry.rollback(tracked.plan, tracked.layout)


def test_each_rollback_goes_one_champion_farther_back(tracked: Opened) -> None:
    register(tracked)
    assert promote_and_register(tracked, 1).version == "2"
    assert promote_and_register(tracked, 2).version == "3"
    assert promote_and_register(tracked, 1).version == champion_of(tracked) == "2"

    assert [registry.rollback(tracked.plan, tracked.layout).version for _ in range(3)] == ["3", "2", "1"]
    with pytest.raises(UserError, match="so there is nothing to go back to"):
        registry.rollback(tracked.plan, tracked.layout)

    assert promote_and_register(tracked, 2).version == champion_of(tracked) == "3"
    assert registry.rollback(tracked.plan, tracked.layout).version == "1"


def test_a_version_that_was_deleted_is_passed_over(tracked: Opened) -> None:
    register(tracked)
    promote_and_register(tracked, 1)
    promote_and_register(tracked, 2)
    client_of(tracked).delete_model_version("tiny classifier", "2")
    assert registry.rollback(tracked.plan, tracked.layout).version == champion_of(tracked) == "1"


def test_a_kill_between_the_note_and_the_alias_changes_nothing(
    tracked: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    register(tracked)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            promote_and_register(tracked, 1)
    assert champion_of(tracked) == "1"
    with pytest.raises(UserError, match="was champion before version 1"):
        registry.rollback(tracked.plan, tracked.layout)
    assert (register(tracked).version, champion_of(tracked)) == ("2", "2")

    promote_and_register(tracked, 2)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.rollback(tracked.plan, tracked.layout)
    assert champion_of(tracked) == "3"
    assert [registry.rollback(tracked.plan, tracked.layout).version for _ in range(2)] == ["2", "1"]


def test_a_folder_made_anew_leaves_a_rollback_alone(tracked: Opened) -> None:
    register(tracked)
    before = promote_and_register(tracked, 1)
    registry.rollback(tracked.plan, tracked.layout)

    (tracked.layout.best / "model.safetensors").write_bytes(b"damaged")
    options = Options(keep=True)
    anew = tracked.promote(here, options)
    assert (anew.key, anew.version) == (before.key, "")
    tracked.journal.append(anew)  # as after a kill before the registry was told
    assert register(tracked) == before
    assert tracked.journal.record.promoted == before
    assert champion_of(tracked) == "1"


def test_what_the_user_chooses_after_a_rollback_is_champion(tracked: Opened) -> None:
    register(tracked)
    promote_and_register(tracked, 1)
    registry.rollback(tracked.plan, tracked.layout)
    last = cast("Promoted", tracked.journal.record.promoted)
    # Another trial is the best by then, and still the user wants this one.
    tracked.journal.append(replace(last, version="", instead_of=tracked.ranking[2].key))
    assert (register(tracked).version, champion_of(tracked)) == ("2", "2")


def test_what_is_not_better_beyond_doubt_is_a_challenger(tracked: Opened) -> None:
    first, second = (trial.key for trial in tracked.ranking[:2])
    assert (register(tracked).alias, register(tracked).note) == ("champion", "")

    chosen = tracked.promote(here, Options(key=second))
    tracked.journal.append(replace(chosen, instead_of=""))
    challenger = register(tracked)
    assert (challenger.version, challenger.alias) == ("2", "challenger")
    assert challenger.note.startswith("it is not better than the champion beyond doubt: by -")
    client = client_of(tracked)
    assert client.get_model_version_by_alias("tiny classifier", "champion").tags[KEY_TAG] == first
    assert client.get_model_version_by_alias("tiny classifier", "challenger").tags[KEY_TAG] == second


def test_a_champion_on_other_data_gives_way(tracked: Opened) -> None:
    register(tracked)
    client = client_of(tracked)
    client.set_model_version_tag("tiny classifier", "1", TAG + "fingerprint", "other")
    tracked.journal.append(replace(cast("Promoted", tracked.journal.record.promoted), version=""))
    newer = register(tracked)
    assert (newer.version, newer.alias) == ("2", "champion")
    assert "other data" in newer.note


def test_rolling_back_without_a_champion_is_refused(tracked: Opened) -> None:
    with pytest.raises(UserError, match="no version of the registered model 'tiny classifier' has the alias"):
        registry.rollback(tracked.plan, tracked.layout)


def test_mlflow_away_leaves_best_in_place(promoted: Opened) -> None:
    before, events = tree(promoted.layout.best), len(promoted.events)
    with pytest.raises(
        TrackingError, match="but was not registered: neither the trial nor the sweep has a run"
    ):
        register(promoted)
    away = promoted.plan.sweep.tracking.model_copy(update={"uri": "http://me:secret@127.0.0.1:9"})
    plan = replace(promoted.plan, sweep=promoted.plan.sweep.model_copy(update={"tracking": away}))
    with pytest.raises(
        TrackingError, match=r"lies in .* but was not registered: MLflow at .* failed"
    ) as raised:
        registry.register(plan, promoted.journal, promoted.layout)
    assert "secret" not in str(raised.value)
    assert (tree(promoted.layout.best), len(promoted.events)) == (before, events)


def test_nothing_promoted_cannot_be_registered(sweep: Opened) -> None:
    with pytest.raises(UserError, match="nothing of the sweep 'tiny' was promoted"):
        register(sweep)
