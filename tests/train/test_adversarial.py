"""The fast gradient method on a model of two layers, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from finetune_sweep.train.adversarial import fast_gradient, perturbation
from tests.train.runs import bert, split


class TwoLayers(nn.Module):
    """Words of 2 numbers; their sum over the text, then one number: the loss itself."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding.from_pretrained(torch.tensor([[1.0, 2.0], [0.0, -1.0]]), freeze=False)
        self.first = nn.Linear(2, 2, bias=False)
        self.second = nn.Linear(2, 1, bias=False)
        self.first.weight.data = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        self.second.weight.data = torch.tensor([[1.0, 4.0]])

    def forward(self, texts: Tensor) -> Tensor:
        hidden: Tensor = self.first(self.words(texts).sum(1)).relu()
        losses: Tensor = self.second(hidden)
        return losses.squeeze(1)


def test_the_step_has_the_length_epsilon_in_each_example() -> None:
    gradient = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]]])
    expected = torch.tensor([[[0.3, 0.0], [0.0, 0.4]], [[0.0, 0.0], [0.0, 0.5]], [[0.0, 0.0], [0.0, 0.0]]])
    assert torch.allclose(perturbation(gradient, 0.5), expected)


def test_texts_end_to_end_have_a_step_each() -> None:
    """The first text has two tokens with the norm 5, the second one with 2, the third none that matters."""
    gradient = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [0.0, 2.0], [0.0, 0.0]]])
    expected = torch.tensor([[[0.3, 0.0], [0.0, 0.4], [0.0, 0.5], [0.0, 0.0]]])
    assert torch.allclose(perturbation(gradient, 0.5, torch.tensor([2, 1, 1])), expected)
    alone = torch.tensor([4])
    assert torch.equal(perturbation(gradient, 0.5, alone), perturbation(gradient, 0.5))


def test_the_adversarial_loss_by_hand() -> None:
    # Text 0 is word 0: h = (1, 2), first layer (1, 3), loss 1 + 12 = 13. By h: W1' w2 = (1 + 4, 4) = (5, 4), of norm
    # sqrt(41); a step of length 2 along it raises this linear piece by 2 sqrt(41).
    # Text 1 is word 1: h = (0, -1), first layer (0, -1), relu 0 (also its slope there): loss 0 and no step.
    model = TwoLayers()
    texts = torch.tensor([[0], [1]])
    losses = fast_gradient(model.words, lambda: model(texts), epsilon=2.0)

    assert losses.clean.tolist() == [13.0, 0.0]
    assert losses.adversarial.tolist() == pytest.approx([13 + 2 * 41**0.5, 0.0], rel=1e-6)
    assert losses.total.tolist() == pytest.approx([26 + 2 * 41**0.5, 0.0], rel=1e-6)


def test_the_gradient_is_that_of_both_losses_with_the_step_held_fixed() -> None:
    # By w2: (1, 3) of the clean pass. The step is r = 2 (5, 4) / sqrt(41), the first layer of h + r is
    # (1 + r0, 3 + r0 + r1). By the word: (5, 4) from each pass.
    model = TwoLayers()
    fast_gradient(model.words, lambda: model(torch.tensor([[0]])), epsilon=2.0).total.sum().backward()

    r0, r1 = 10 / 41**0.5, 8 / 41**0.5
    assert model.second.weight.grad is not None
    assert model.second.weight.grad[0].tolist() == pytest.approx([2 + r0, 6 + r0 + r1], rel=1e-6)
    assert model.words.weight.grad is not None
    assert model.words.weight.grad.tolist() == [[10.0, 8.0], [0.0, 0.0]]


def test_frozen_embeddings_are_moved_too() -> None:
    model = TwoLayers()
    model.words.weight.requires_grad_(False)
    losses = fast_gradient(model.words, lambda: model(torch.tensor([[0]])), epsilon=2.0)
    assert losses.adversarial.tolist() == pytest.approx([13 + 2 * 41**0.5], rel=1e-6)
    losses.total.sum().backward()
    assert model.words.weight.grad is None
    assert model.second.weight.grad is not None


@pytest.mark.usefixtures("one_thread")
def test_a_real_model_loses_more_on_moved_embeddings_and_keeps_no_hook() -> None:
    model = bert(dropout=0.0)
    ids = torch.tensor([list(split(1, seed=n).columns["input_ids"][0][:3]) for n in range(4)])
    labels = torch.tensor([0, 1, 0, 1])
    words = model.get_input_embeddings()

    def losses() -> Tensor:
        return nn.functional.cross_entropy(model(input_ids=ids).logits, labels, reduction="none")

    plain = losses()
    found = fast_gradient(words, losses, epsilon=0.05)
    assert torch.equal(found.clean, plain)
    assert (found.adversarial > plain).all()
    assert torch.equal(losses(), plain)
