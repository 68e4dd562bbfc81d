"""Reductions, feed-forward stacks and scores."""

import math

import pytest
import torch

from foretext.model.layout import Layout
from foretext.model.reductions import FeedForwardStack, Reduction
from foretext.model.scores import Scale, cross_entropy, no_negatives

LENGTHS = (7, 4, 1)


def states(width: int = 12) -> torch.Tensor:
    return torch.randn(sum(LENGTHS), width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("how", ["cls", "mean", "max", "sha", "2ha"])
def test_each_text_alone_gives_the_same(how):
    torch.manual_seed(0)
    reduction, x = Reduction(how, 12), states()
    together = reduction(x, Layout.of(LENGTHS))
    assert together.shape == (3, reduction.width)
    for found, part in zip(together, x.split(LENGTHS)):
        torch.testing.assert_close(found, reduction(part, Layout.of([len(part)]))[0], rtol=0, atol=1e-6)


def test_plain_reductions_are_what_they_say():
    x = states()
    parts = x.split(LENGTHS)
    for how, expected in (("cls", lambda p: p[0]), ("mean", lambda p: p.mean(0)), ("max", lambda p: p.amax(0))):
        torch.testing.assert_close(Reduction(how, 12)(x, Layout.of(LENGTHS)), torch.stack([expected(part) for part in parts]))


@pytest.mark.parametrize(("scale", "factor"), [("inv_sqrt", lambda n: n**-0.5), ("sqrt", math.sqrt), ("mean", lambda n: 1 / n)])
def test_one_head_weighs_tokens_by_the_attention_they_receive(scale, factor):
    torch.manual_seed(0)
    reduction, x = Reduction("sha", 12, scale), states()
    with torch.no_grad():
        for parameter in reduction.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        found = reduction(x, Layout.of(LENGTHS))
        for vector, h in zip(found, x.split(LENGTHS)):
            weights = (reduction.heads[0]["query"](h) @ reduction.heads[0]["key"](h).T).softmax(1).sum(0) * factor(len(h))
            assert float(weights.sum()) == pytest.approx(len(h) * factor(len(h)), rel=1e-5)
            torch.testing.assert_close(vector, weights @ h, rtol=0, atol=1e-5)


def test_the_stack_starts_orthogonal_and_adds_its_skip():
    torch.manual_seed(0)
    stack = FeedForwardStack(16, 8)
    for layer in stack.layers:
        torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(16), rtol=0, atol=1e-5)
    x = torch.randn(3, 16)
    with torch.no_grad():
        stack.last.weight.zero_()
        torch.testing.assert_close(stack(x), x @ stack.skip.weight.T)  # the very input, not its norm


def test_scores_worked_by_hand():
    scores, nobody = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 2, dtype=torch.bool)
    assert float(cross_entropy(scores, 0.0, nobody).mean()) == pytest.approx(0.126928, abs=1e-6)
    assert float(cross_entropy(scores, 0.2, nobody).mean()) == pytest.approx(0.526928, abs=1e-6)


def test_no_smoothing_is_plain_cross_entropy_and_smoothed_targets_sum_to_one():
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    nobody = torch.zeros(5, 5, dtype=torch.bool)
    plain = torch.nn.functional.cross_entropy(scores, torch.arange(5), reduction="none")
    torch.testing.assert_close(cross_entropy(scores, 0.0, nobody), plain)
    cross_entropy(scores, 0.2, nobody).sum().backward()
    torch.testing.assert_close(scores.grad.sum(1), torch.zeros(5), rtol=0, atol=1e-6)  # softmax minus target: both sum to one
    torch.testing.assert_close(scores.softmax(1) - scores.grad, torch.full((5, 5), 0.05) + 0.75 * torch.eye(5), rtol=0, atol=1e-6)


def test_what_is_hidden_takes_no_part():
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    hidden = no_negatives(torch.arange(4), torch.tensor([7, 8, 7, 9]), torch.tensor([(1 << 32) + 9]))
    assert hidden.nonzero().tolist() == [[0, 2], [1, 3], [2, 0]]
    kept = scores[0, [0, 1, 3]]
    expected = -(0.8 * kept[0] + 0.1 * (kept[1] + kept[2])) + kept.logsumexp(0)
    torch.testing.assert_close(cross_entropy(scores, 0.2, hidden)[0], expected)


def test_a_row_alone_costs_nothing():
    assert float(cross_entropy(torch.tensor([[3.0]]), 0.2, torch.zeros(1, 1, dtype=torch.bool))) == 0.0


def test_scales():
    annealed = Scale("annealed", 1.0, 512)
    assert float(annealed()) == 1.0
    annealed.updates += 4999
    annealed.updated()
    assert float(annealed()) == pytest.approx(11.813708, abs=1e-5)
    annealed.updates += 10**6
    assert float(annealed()) == pytest.approx(math.sqrt(512))
    assert "updates" in annealed.state_dict()
    assert not list(annealed.parameters())
    assert Scale("learned", 20.0, 8)().item() == pytest.approx(20.0)
    assert Scale("fixed", 3.0, 8)() == 3.0
