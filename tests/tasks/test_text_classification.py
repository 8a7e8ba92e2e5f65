from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from finetune_sweep.errors import UserError
from finetune_sweep.tasks import TASKS
from finetune_sweep.tasks.arrays import Encoded, Predictions, Ragged
from finetune_sweep.tasks.processors import load_tokenizer
from finetune_sweep.train.packing import Logits

TASK = TASKS["text-classification"]
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "film", "a", "very"]
TINY_BERT = BertConfig(
    vocab_size=len(WORDS),
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=32,
)


def save_tokenizer(folder: Path, *, decoder: bool = False) -> None:
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", **({"eos_token": "[SEP]"} if decoder else {"pad_token": "[PAD]"})}
    if not decoder:
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(str(folder))


def tokens_of(encoded: Encoded) -> list[list[int]]:
    ids = encoded.columns["input_ids"]
    return [np.asarray(ids[row]).tolist() for row in range(len(encoded))]


def labels_of(encoded: Encoded) -> list[int]:
    labels = encoded.columns["labels"]
    return [int(labels[row]) for row in range(len(encoded))]


def saved(model: PreTrainedModel, folder: Path, *, decoder: bool = False) -> Path:
    model.save_pretrained(str(folder))
    save_tokenizer(folder, decoder=decoder)
    return folder


def rows(*examples: tuple[str, str]) -> Dataset:
    return Dataset.from_dict(
        {"text": [text for text, _ in examples], "label": [label for _, label in examples]}
    )


def predictions(logits: list[list[float]], labels: list[int]) -> Predictions:
    losses = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels), reduction="none")
    return Predictions(np.array(logits, dtype=np.float32), np.array(labels), losses.numpy())


# ----------------------------------------------------------------------------------------------- classes


def test_classes_are_sorted() -> None:
    assert TASK.classes(rows(("x", "pos"), ("y", "neg"), ("z", "pos"))) == ("neg", "pos")


def test_whole_numbers_are_sorted_as_numbers() -> None:
    assert TASK.classes(rows(("x", "10"), ("y", "2"), ("z", "-1"))) == ("-1", "2", "10")


def test_one_class_is_refused() -> None:
    with pytest.raises(UserError, match="at least two classes, the training rows have only 'pos'"):
        TASK.classes(rows(("x", "pos"), ("y", "pos")))


# ---------------------------------------------------------------------------------- encoding and batches


def test_texts_become_tokens_with_special_ones_cut_at_max_length(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    table = rows(("a very good film", "pos"), ("bad", "neg"))
    encoded = TASK.encode(table, load_tokenizer(tmp_path), ("neg", "pos"), max_length=4)
    assert tokens_of(encoded) == [[1, 7, 8, 2], [1, 5, 2]]
    assert list(encoded.lengths()) == [4, 3]
    assert labels_of(encoded) == [1, 0]


def test_a_text_without_tokens_becomes_one_padding_token(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, decoder=True)
    encoded = TASK.encode(rows(("", "neg")), load_tokenizer(tmp_path), ("neg", "pos"), max_length=4)
    assert tokens_of(encoded) == [[2]]


def test_an_unseen_label_is_refused_with_its_row(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    table = rows(("good", "pos"), ("bad", "negg"))
    with pytest.raises(UserError, match=r"row 2: label 'negg' .* neg, pos \(did you mean 'neg'\?\)"):
        TASK.encode(table, load_tokenizer(tmp_path), ("neg", "pos"), max_length=8)


def test_a_batch_is_padded_to_its_longest_row() -> None:
    encoded = Encoded({"input_ids": Ragged.of([[1, 2, 3, 4], [5], [6, 7]]), "labels": np.array([0, 1, 2])})
    batch = TASK.collate(encoded, np.array([2, 1]), pad_token_id=9)
    assert batch["input_ids"].tolist() == [[6, 7], [5, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [2, 1]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=6), min_size=1, max_size=8), st.randoms())
@settings(max_examples=50, deadline=None)
def test_a_batch_holds_the_tokens_of_its_rows_in_order(tokens: list[list[int]], random: object) -> None:
    order = np.array(sorted(range(len(tokens)), key=lambda _: random.random()))  # type: ignore[attr-defined]
    encoded = Encoded({"input_ids": Ragged.of(tokens), "labels": np.arange(len(tokens))})
    batch = TASK.collate(encoded, order, pad_token_id=99)
    for place, row in enumerate(order):
        assert batch["input_ids"][place][batch["attention_mask"][place] == 1].tolist() == tokens[row]
    assert batch["labels"].tolist() == order.tolist()


def test_encoded_rows_are_read_back_as_they_were_saved(tmp_path: Path) -> None:
    encoded = Encoded({"input_ids": Ragged.of([[1, 2], [3]]), "labels": np.array([1, 0])})
    encoded.save(tmp_path)
    loaded = Encoded.load(tmp_path)
    assert sorted(loaded.columns) == ["input_ids", "labels"]
    assert tokens_of(loaded) == [[1, 2], [3]]
    assert labels_of(loaded) == [1, 0]


def test_joined_batches_are_in_the_order_of_the_rows(tmp_path: Path) -> None:
    whole = predictions([[0.0, 1.0], [2.0, 0.0], [0.5, 0.0]], [1, 0, 0])
    rows_of = np.array([2, 0, 1])
    parts = [
        Predictions(whole.values[part], whole.labels[part], whole.losses[part])
        for part in (rows_of[:1], rows_of[1:])
    ]
    Predictions.join(parts, rows_of).save(tmp_path / "predictions.npz")
    joined = Predictions.load(tmp_path / "predictions.npz")
    assert joined.values.tolist() == whole.values.tolist()
    assert joined.labels.tolist() == [1, 0, 0]
    assert joined.losses.tolist() == whole.losses.tolist()


# ------------------------------------------------------------------------------------------------- models


def test_only_the_head_of_an_encoder_is_new(tmp_path: Path) -> None:
    body = BertModel(TINY_BERT)
    model, new = TASK.build_model(saved(body, tmp_path), ("a", "b", "c"))
    assert new == ("classifier.bias", "classifier.weight")
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert model.config.problem_type == "single_label_classification"
    assert torch.equal(
        model.get_parameter("bert.pooler.dense.weight"), body.get_parameter("pooler.dense.weight")
    )


def test_a_language_model_gets_a_new_pooler_too(tmp_path: Path) -> None:
    _, new = TASK.build_model(saved(BertForMaskedLM(TINY_BERT), tmp_path), ("a", "b"))
    assert new == (
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    )


def test_both_layers_of_a_roberta_head_are_new(tmp_path: Path) -> None:
    config = RobertaConfig(**TINY_BERT.to_diff_dict() | {"model_type": "roberta"})
    _, new = TASK.build_model(saved(RobertaModel(config, add_pooling_layer=False), tmp_path), ("a", "b"))
    assert new == tuple(
        f"classifier.{layer}.{part}" for layer in ("dense", "out_proj") for part in ("bias", "weight")
    )


def test_a_head_for_another_number_of_classes_is_replaced(tmp_path: Path) -> None:
    trained = BertForSequenceClassification(BertConfig(**TINY_BERT.to_diff_dict() | {"num_labels": 5}))
    model, new = TASK.build_model(saved(trained, tmp_path), ("a", "b", "c"))
    assert new == ("classifier.bias", "classifier.weight")
    assert model.get_parameter("classifier.weight").shape == (3, 8)


def test_a_decoder_pads_with_its_end_of_sequence_token(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=len(WORDS), n_embd=8, n_layer=2, n_head=2, n_positions=32)
    folder = saved(GPT2Model(config), tmp_path, decoder=True)
    model, new = TASK.build_model(folder, ("a", "b"))
    tokenizer = load_tokenizer(folder)
    assert new == ("score.weight",)
    assert model.config.pad_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    encoded = TASK.encode(rows(("good film", "a"), ("bad", "b")), tokenizer, ("a", "b"), max_length=8)
    model.train(mode=False)
    alone = model(**TASK.collate(encoded, np.array([1]), 2)).logits
    together = model(**TASK.collate(encoded, np.array([0, 1]), 2)).logits
    assert torch.allclose(alone[0], together[1], atol=1e-6)


def test_weights_in_bf16_are_loaded_in_fp32(tmp_path: Path) -> None:
    model, _ = TASK.build_model(saved(BertModel(TINY_BERT).bfloat16(), tmp_path), ("a", "b"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_weights_that_lack_a_block_are_refused(tmp_path: Path) -> None:
    folder = saved(BertModel(TINY_BERT), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"16 tensors .* the first is bert\.encoder\.layer\.2\."):
        TASK.build_model(folder, ("a", "b"))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = saved(BertModel(TINY_BERT), tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save(BertModel(TINY_BERT).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no text classifier can be made"):
        TASK.build_model(folder, ("a", "b"))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    TINY_BERT.save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="tokenizer"):
        load_tokenizer(tmp_path)


def test_loading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = saved(BertModel(TINY_BERT), tmp_path)
    capfd.readouterr()
    TASK.build_model(folder, ("a", "b"))
    assert capfd.readouterr() == ("", "")


def test_losses_and_logits_are_fp32_for_a_model_in_bf16(tmp_path: Path) -> None:
    folder = saved(BertModel(TINY_BERT), tmp_path)
    model, _ = TASK.build_model(folder, ("a", "b"))
    encoded = TASK.encode(
        rows(("good film", "a"), ("bad", "b")), load_tokenizer(folder), ("a", "b"), max_length=8
    )
    batch = TASK.collate(encoded, np.array([0, 1]), 0)
    output = model.bfloat16()(**batch)
    assert TASK.losses(output, batch).dtype == torch.float32
    part = TASK.predict(output, batch, TASK.losses(output, batch)).stored()
    assert (str(part.values.dtype), str(part.losses.dtype)) == ("float32", "float32")
    assert part.values.shape == (2, 2)
    assert part.labels.tolist() == [0, 1]
    assert float(part.losses.mean()) == pytest.approx(output.loss.item(), rel=1e-2)


def test_the_loss_of_smoothed_labels_by_hand() -> None:
    """Shares of 3/4 and 1/4. With 0.2 the target (1, 0) is (0.9, 0.1)."""
    output = Logits(torch.tensor([[math.log(3.0), 0.0]]))
    (loss,) = TASK.losses(output, {"labels": torch.tensor([0])}, 0.2).tolist()
    assert loss == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25), abs=1e-6)


# ------------------------------------------------------------------------------------------------ metrics


def test_metrics_of_two_classes_are_those_worked_out_by_hand() -> None:
    # labels 1 1 1 0 0, predictions 1 1 0 0 1: 2 true positives, 1 missed, 1 false, 1 true negative.
    # Scores of the second class: .9 .8 .4 | .3 .6, so that 5 of the 6 pairs are in order.
    second = [0.9, 0.8, 0.4, 0.3, 0.6]
    logits = [[math.log(1 - p), math.log(p)] for p in second]
    score = TASK.score(predictions(logits, [1, 1, 1, 0, 0]), ("neg", "pos"))
    f1_of_first, f1_of_second = 2 * 1 / (2 * 1 + 1 + 1), 2 * 2 / (2 * 2 + 1 + 1)
    assert score == pytest.approx(
        {
            "accuracy": 3 / 5,
            "macro_f1": (f1_of_first + f1_of_second) / 2,
            "f1": f1_of_second,
            "mcc": (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2),
            "auroc": 5 / 6,
            "loss": -(math.log(0.9) + math.log(0.8) + math.log(0.4) + math.log(0.7) + math.log(0.4)) / 5,
        },
        rel=1e-6,
    )


def test_metrics_of_three_classes_are_those_worked_out_by_hand() -> None:
    # Confusion, rows are labels: [[2, 0, 0], [1, 1, 0], [0, 0, 2]].
    chosen, labels = [0, 0, 0, 1, 2, 2], [0, 0, 1, 1, 2, 2]
    logits = [[2.0 if place == choice else 0.0 for place in range(3)] for choice in chosen]
    score = TASK.score(predictions(logits, labels), ("a", "b", "c"))
    macro = (4 / 5 + 2 / 3 + 1) / 3
    # R_K: (right * rows - sum of products) / sqrt((rows^2 - squares of guesses)(rows^2 - squares of labels))
    r_k = (5 * 6 - (3 * 2 + 1 * 2 + 2 * 2)) / math.sqrt((36 - 9 - 1 - 4) * (36 - 4 - 4 - 4))
    # a: each of its rows above 3 of the 4 others and level with 1; b: one row above all, one level with all;
    # c: all in order. Level counts a half.
    areas = [(3 + 0.5) / 4, (4 + 4 * 0.5) / 8, 1.0]
    assert score["accuracy"] == pytest.approx(5 / 6)
    assert score["macro_f1"] == score["f1"] == pytest.approx(macro)
    assert score["mcc"] == pytest.approx(r_k)
    assert score["auroc"] == pytest.approx(sum(areas) / 3)


def test_auroc_is_that_of_scikit_learn_on_probabilities() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(40, 4))
    labels = np.arange(40) % 4
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    score = TASK.score(predictions(logits.tolist(), labels.tolist()), ("a", "b", "c", "d"))
    assert score["auroc"] == pytest.approx(expected)


def test_auroc_leaves_out_a_class_without_rows() -> None:
    two = TASK.score(predictions([[2.0, 0.0, -9.0], [0.0, 2.0, -9.0]], [0, 1]), ("a", "b", "c"))
    assert two["auroc"] == 1.0


def test_auroc_of_one_class_alone_says_nothing() -> None:
    score = TASK.score(predictions([[2.0, 0.0], [0.0, 2.0]], [1, 1]), ("a", "b"))
    assert score["auroc"] == 0.5
    assert score["mcc"] == 0.0


def test_probabilities_that_round_to_one_are_still_ranked() -> None:
    score = TASK.score(predictions([[0.0, 200.0], [0.0, 100.0]], [1, 0]), ("a", "b"))
    assert score["auroc"] == 1.0


def test_a_diverged_model_scores_nan_in_everything() -> None:
    score = TASK.score(predictions([[float("nan"), 0.0], [1.0, 0.0]], [0, 1]), ("a", "b"))
    assert set(score) == set(TASK.metrics)
    assert all(math.isnan(value) for value in score.values())


def test_every_metric_has_a_direction() -> None:
    assert set(TASK.score(predictions([[1.0, 0.0], [0.0, 1.0]], [0, 1]), ("a", "b"))) == set(TASK.metrics)
    assert TASK.metrics["loss"] == "min"


def test_tasks_are_imported_without_torch() -> None:
    check = (
        "import sys, finetune_sweep.tasks, finetune_sweep.train.data;"
        "print([name for name in ('torch', 'transformers', 'datasets', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_scikit_learn(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(40, classes)).round(1 if seed else 9).astype(np.float32)
    labels = rng.integers(0, classes - (seed == 1), 40)  # also with a class that no row has
    losses = rng.random(40).astype(np.float32)
    found = TASK.score(Predictions(logits, labels, losses), [*map(str, range(classes))])
    guesses = logits.argmax(axis=1)
    macro = metrics.f1_score(labels, guesses, average="macro", zero_division=0.0)
    assert found["macro_f1"] == pytest.approx(macro, abs=1e-12)
    assert found["f1"] == pytest.approx(
        metrics.f1_score(labels, guesses) if classes == 2 and seed != 1 else found["f1"], abs=1e-12
    )
    assert found["mcc"] == pytest.approx(metrics.matthews_corrcoef(labels, guesses), abs=1e-12)
    assert found["accuracy"] == metrics.accuracy_score(labels, guesses)


def test_what_rows_add_to_a_metric_is_that_metric_in_the_mean() -> None:
    generator = np.random.default_rng(0)
    said = Predictions(
        generator.standard_normal((30, 3)), np.arange(30) % 3, generator.random(30).astype(np.float32)
    )
    scored = TASK.score(said, ("a", "b", "c"))
    for metric in TASK.metrics:
        rows = TASK.row_scores(said, metric)
        assert (rows is not None) == (metric in {"accuracy", "loss"})
        if rows is not None:
            assert float(rows.mean()) == pytest.approx(scored[metric])
