"""ConveRT's losses with and without earlier turns, its quantised form, and its recipe."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from foretext.errors import UserError
from foretext.objectives.base import Objective
from foretext.objectives.convert import ConveRT
from foretext.text.pairs import Conversations, Pairs
from foretext.text.randomness import example_keys
from foretext.training.distributed import World
from foretext.training.optim import clip_gradients, make_optimizer
from foretext.training.step import backward, measure
from foretext.verbs.pretrain import settings
from tests.objectives.table import make_objective, make_source, small_tokenizer

ALONE = World(0, 1, torch.device("cpu"))


def make(**config) -> ConveRT:
    encoder = make_objective("convert").encoder
    torch.manual_seed(0)
    return ConveRT(encoder, small_tokenizer(), ConveRT.Config(**{"score_scale": "fixed"} | config))


def examples(objective: Objective, rows=range(7)) -> Conversations:
    rows = np.array(rows)
    return make_source(objective).read(rows, example_keys(1, 0, torch.from_numpy(rows)))


def without_earlier(conversations: Conversations, rows) -> Conversations:
    """The same, some rows' turns taken away."""
    lengths = conversations.earlier.lengths.clone()
    lengths[rows] = 0
    return replace(conversations, earlier=conversations.earlier.part(torch.zeros_like(lengths), lengths))


def terms(objective: Objective, conversations) -> dict[str, tuple[float, int]]:
    sums = measure(objective.eval(), [objective.collate(conversations)], torch.device("cpu"))
    return {name: (float(sums[name][0]), sums[name][1]) for name in objective.terms if name in sums}


def test_losses_are_the_papers():
    objective = make()
    conversations = examples(objective)
    batch = objective.eval().collate(conversations)
    with torch.no_grad():
        contexts, turns, responses = batch.contexts, batch.earlier, batch.responses
        towers = objective.towers
        r_x, r_z = towers.reduce(contexts, "query")[batch.context_places], towers.reduce(turns, "earlier")[batch.earlier_places]
        y = towers.finish(towers.reduce(responses, "document"), "document")[batch.response_places]
        some = batch.with_earlier
        sides = {"context": towers.finish(r_x, "query"), "earlier": towers.finish(r_z, "query"),
                 "both": towers.finish((r_x[some] + r_z) / 2, "query")}
    found = terms(objective, conversations)
    assert [found[name][1] for name in objective.terms] == [7, 4, 4]
    for name, h in sides.items():
        own = torch.arange(7)[some] if name != "context" else torch.arange(7)
        scores = 20.0 * h @ y.T
        positive = scores[torch.arange(len(own)), own]
        expected = (scores.logsumexp(1) - 0.8 * positive - 0.2 / 6 * (scores.sum(1) - positive)).sum()
        assert found[name][0] == pytest.approx(expected.item(), rel=1e-5)


def test_a_row_without_turns_has_the_single_context_loss_alone():
    objective = make()
    all_of_it = examples(objective)
    nothing = without_earlier(all_of_it, slice(None))
    single = terms(make(turns=0), all_of_it)
    assert single.keys() == {"context"}
    assert terms(objective, nothing)["context"] == pytest.approx(single["context"], rel=1e-6)
    assert terms(objective, nothing)["both"] == (0.0, 0)
    before, after = terms(objective, all_of_it), terms(objective, without_earlier(all_of_it, 4))
    assert after["both"][1] == before["both"][1] - 1
    assert after["context"] == pytest.approx(before["context"], rel=1e-6)


def test_pairs_are_conversations_without_turns():
    objective = make()
    c = examples(objective)
    pairs = Pairs(c.contexts, c.responses, torch.empty(0, dtype=torch.int64))
    assert terms(objective, pairs)["context"] == pytest.approx(terms(objective, c)["context"], rel=1e-6)


def test_a_split_step_without_any_turn_still_has_its_gradient():
    objective = make()
    batches = [objective.collate(without_earlier(examples(objective, rows), slice(None))) for rows in (range(4), range(4, 9))]
    backward(objective, batches, ALONE)
    assert objective.encoder.words.weight.grad.any()


def test_separate_stacks_for_message_turns_and_both():
    objective = make(context_ff="separate")
    backward(objective, [objective.collate(examples(objective))], ALONE)
    assert set(objective.towers.outputs) == {"query", "document", "earlier", "both"}
    assert all(parameter.grad.any() for parameter in objective.towers.outputs.parameters())


@pytest.mark.parametrize("how", ["tables", "all"])
def test_quantised_training_sees_rounded_weights_and_moves_the_masters(how):
    plain, quantised = make(), make(quantize=how)
    quantised.load_state_dict(plain.state_dict())
    c = examples(plain)
    a, b = terms(plain, c)["context"][0], terms(quantised, c)["context"][0]
    assert a != b
    assert a == pytest.approx(b, rel=0.05)
    gradients = []
    for objective in (plain, quantised):
        backward(objective, [objective.collate(c)], ALONE)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in objective.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.97


def test_the_recipe_is_the_papers():
    config = settings(None, {"objective.name": "convert", "store": "s", "output": "o"})
    optim = config.training.optim
    assert config.encoder.start == "convert"
    assert (config.training.batch_size, optim.kind, optim.lr, optim.schedule, optim.end_lr) == (512, "adadelta", 1.0, "cosine", 0.001)
    objective = make()
    backward(objective, [objective.collate(examples(objective))], ALONE)
    before = {name: parameter.grad.clone() * 1000 for name, parameter in objective.named_parameters()}
    for name, parameter in objective.named_parameters():
        parameter.grad = before[name].clone()
    norm = clip_gradients(objective, optim)
    assert norm.item() == pytest.approx(torch.cat([gradient.flatten() for gradient in before.values()]).norm().item(), rel=1e-5)
    assert objective.encoder.words.weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)  # only the words are clipped
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in objective.named_parameters() if ".words." not in name)


def test_adadelta_worked_by_hand():
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    config = settings(None, {"objective.name": "convert", "store": "s", "output": "o"}).training.optim
    optimizer = make_optimizer(module, config)
    module.weight.grad = torch.ones(1, 1)
    optimizer.step()
    assert -module.weight.item() == pytest.approx(0.00316226, abs=1e-8)


def test_it_goes_with_its_own_encoder_alone():
    with pytest.raises(UserError, match="objective convert goes with encoders of convert, found bert"):
        ConveRT(make_objective("mlm").encoder, small_tokenizer())
