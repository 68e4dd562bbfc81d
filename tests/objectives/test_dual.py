"""The dual encoder's losses, scales and towers, beyond what the table asks of every objective."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from foretext.objectives.dual import Dual
from foretext.text.pairs import Pairs
from foretext.text.randomness import example_keys
from foretext.training.distributed import World
from foretext.training.step import backward, measure
from tests.objectives.table import make_objective as tiny
from tests.objectives.table import make_source, small_tokenizer

ALONE = World(0, 1, torch.device("cpu"))


def make(**config) -> Dual:
    encoder = tiny("dual").encoder
    torch.manual_seed(0)
    return Dual(encoder, small_tokenizer(), Dual.Config(**config))


def examples(objective, count: int = 8) -> Pairs:
    rows = np.arange(count)
    return make_source(objective).read(rows, example_keys(1, 0, torch.from_numpy(rows)))


def value(objective, pairs: Pairs) -> float:
    sums = measure(objective.eval(), [objective.collate(pairs)], torch.device("cpu"))
    return float(sums["dual"][0]) / sums["dual"][1]


def vectors(objective, pairs: Pairs):
    step = objective.eval()(objective.collate(pairs))
    return step.vectors["query"].detach(), step.vectors["document"].detach()


def test_losses_are_what_they_say():
    pairs = examples(make())
    q, d = vectors(make(scale="fixed", scale_start=4.0), pairs)
    scores, own = q @ d.T, torch.arange(8)
    row, column = (torch.nn.functional.cross_entropy(s, own).item() for s in (scores, scores.T))
    for loss, expected in (("softmax", row), ("all_mean", row), ("symmetric", (row + column) / 2), ("all", 8 * row)):
        assert value(make(scale="fixed", scale_start=4.0, loss=loss), pairs) == pytest.approx(expected, rel=1e-5)


def test_symmetric_does_not_care_which_side_asks():
    pairs, objective = examples(make()), make(scale="fixed")
    swapped = Pairs(pairs.passages, pairs.queries, torch.empty(0, dtype=torch.int64))
    assert value(objective, pairs) == pytest.approx(value(objective, swapped), rel=1e-5)


def test_triplet_compares_with_another_row_whatever_the_order():
    objective, pairs = make(loss="triplet", margin=0.3), examples(make(), 7)
    q, d = vectors(objective, pairs)
    loss = value(objective, pairs)
    most = (0.3 + (q @ d.T) - (q * d).sum(1, keepdim=True)).clamp(min=0)
    most.fill_diagonal_(0.0)
    assert 0 < loss <= most.amax(1).mean().item() + 1e-6  # never the row's own partner, also in the middle of an odd batch
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    shuffled = Pairs(pairs.queries.select(order), pairs.passages.select(order), pairs.known)
    assert value(objective, shuffled) == pytest.approx(loss, rel=1e-5)
    assert value(make(loss="triplet"), examples(make(), 1)) == 0.0


@pytest.mark.parametrize("scale", ["annealed", "learned", "fixed"])
def test_validation_does_not_move_the_scale(scale):
    objective = make(scale=scale)
    before = float(torch.as_tensor(objective.scale()).detach())
    objective.train()
    measure(objective, [objective.collate(examples(objective))], torch.device("cpu"))
    assert float(torch.as_tensor(objective.scale()).detach()) == before
    objective.updated()
    assert (float(torch.as_tensor(objective.scale()).detach()) > before) == (scale == "annealed")


@pytest.mark.parametrize("parts", [1, 3])
def test_the_learned_scale_has_the_gradient_of_the_loss(parts):
    objective, pairs = make(), examples(make(), 9)
    rows = torch.arange(9).chunk(parts)
    backward(objective, [objective.collate(Pairs(pairs.queries.select(r), pairs.passages.select(r), pairs.known)) for r in rows], ALONE)
    found, step = objective.scale.log.grad.item(), 1e-2
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            objective.scale.log += sign * step
        values.append(value(objective, pairs))
        with torch.no_grad():
            objective.scale.log -= sign * step
    assert found == pytest.approx((values[0] - values[1]) / (2 * step), rel=2e-2, abs=1e-4)


def test_equal_partners_are_no_negatives():
    objective, pairs = make(scale="fixed"), examples(make())
    twice = torch.tensor([0, 1, 2, 3, 4, 5, 6, 0])
    doubled = Pairs(pairs.queries, pairs.passages.select(twice), pairs.known)
    q, d = vectors(objective, doubled)
    scores = q @ d.T
    scores[0, 7] = scores[7, 0] = -math.inf
    row, column = (torch.nn.functional.cross_entropy(s, torch.arange(8)).item() for s in (scores, scores.T))
    assert value(objective, doubled) == pytest.approx((row + column) / 2, rel=1e-5)


def test_separate_towers_part_ways_and_shared_ones_do_not():
    pairs = examples(make())
    for towers, apart in (("shared", False), ("separate", True)):
        objective = make(towers=towers)
        backward(objective, [objective.collate(pairs)], ALONE)
        second = objective.towers.second_encoder
        assert (second is not None) == apart
        if apart:
            assert torch.equal(second.words.weight, objective.encoder.words.weight)  # both start alike
            assert not torch.equal(second.words.weight.grad, objective.encoder.words.weight.grad)


def test_vectors_have_their_shape():
    for config, d in (({}, 128), ({"output": "linear"}, 512), ({"reduction": "2ha"}, 256), ({"output": "ffn_stack", "dimension": 32}, 32)):
        q, _ = vectors(make(scale="fixed", scale_start=1.0, **config), examples(make()))
        assert q.shape == (8, d)
        torch.testing.assert_close(q.norm(dim=1), torch.ones(8))


@pytest.mark.parametrize(("config", "named"), [
    ({"loss": "triplet", "smoothing": 0.1}, "smoothing"), ({"margin": 1.0}, "margin"), ({"dimension": 64}, "dimension"),
    ({"dropout": 0.1}, "dropout"), ({"reduction_scale": "sqrt"}, "reduction_scale"),
    ({"scale": "annealed", "scale_start": 2.0}, "scale_start"),
    ({"loss": "margin"}, "loss")])
def test_what_has_no_effect_is_refused(config, named):
    with pytest.raises(ValidationError, match=named):
        Dual.Config(**config)
