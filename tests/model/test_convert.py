"""ConveRT's encoder against a naive loop, and what must hold of it whatever its weights are."""

import math

import pytest
import torch
import torch.nn.functional as F

from foretext.model.convert import ConvertConfig, ConvertEncoder
from foretext.model.encoder import Tokens

OPTIONS = [{}, {"value": "low_rank"}, {"relative": "shaw_key"}, {"relative": "none"}]


def make(**changes) -> ConvertEncoder:
    torch.manual_seed(0)
    small = {"vocab_size": 50, "width": 24, "ffn_width": 32, "attention_width": 8, "windows": (1, 3)}
    model = ConvertEncoder(ConvertConfig(**small | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def batch(lengths) -> Tokens:
    return Tokens.of(torch.randint(0, 50, (sum(lengths),), generator=torch.Generator().manual_seed(1)), list(lengths))


def naive(model: ConvertEncoder, ids: torch.Tensor) -> torch.Tensor:
    """One text, token by token, straight from the paper."""
    n = len(ids)
    x = torch.stack([model.words.weight[ids[i]] + model.positions[0].weight[i % 47] + model.positions[1].weight[i % 11] for i in range(n)])
    for block in model.blocks:
        q, k, v = block.query(x), block.key(x), block.value(x)
        mixed = torch.zeros_like(x)
        for i in range(n):
            seen = [j for j in range(n) if abs(i - j) <= block.window]
            scores = []
            for j in seen:
                key = k[j]
                if block.relative == "shaw_key":
                    key = key + block.offsets[j - i + block.window]
                score = q[i] @ key / math.sqrt(len(key))
                scores.append(score + block.offsets[j - i + block.window] if block.relative == "scalar_bias" else score)
            weights = torch.stack(scores).softmax(0)
            mixed[i] = sum(weight * v[j] for weight, j in zip(weights, seen))
        x = block.attention_norm(x + mixed)
        inner = block.up(x)
        x = block.ffn_norm(x + block.down(inner * torch.sigmoid(1.702 * inner)))
    return x


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_equals_a_naive_loop_whatever_the_padding(changes):
    model, lengths = make(**changes), (13, 9, 4, 1)
    tokens = batch(lengths)
    with torch.no_grad():
        together = model(tokens).split(lengths)
        for found, ids in zip(together, tokens.ids.split(lengths)):
            torch.testing.assert_close(found, naive(model, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [0, 1, 3])
def test_a_token_reaches_exactly_as_far_as_the_window(window):
    model, tokens = make(windows=(window,)), batch((12,))
    changed = tokens.ids.clone()
    changed[6] = (changed[6] + 1) % 50
    with torch.no_grad():
        moved = (model(tokens) - model(tokens.with_ids(changed))).abs().amax(1) > 0
    assert moved.tolist() == [abs(i - 6) <= window for i in range(12)]


def test_positions_repeat_after_517_and_not_before():
    model = make()
    ids = torch.zeros(600, dtype=torch.int64)
    with torch.no_grad():
        codes = model.embed(Tokens.of(ids, [600]))
    assert torch.equal(codes[:83], codes[517:])
    assert len(torch.unique(codes[:517], dim=0)) == 517


def test_longer_texts_than_the_papers_are_legal():
    with torch.no_grad():
        assert torch.isfinite(make()(batch((200,)))).all()


def test_offsets_start_at_zero_and_learn():
    model = ConvertEncoder(ConvertConfig(vocab_size=50, width=24, ffn_width=32, windows=(2,)))
    assert not model.blocks[0].offsets.any()
    F.mse_loss(model(batch((9,))), torch.randn(9, 24)).backward()
    assert (model.blocks[0].offsets.grad != 0).all()


def test_the_papers_network_has_its_size():
    config = ConvertConfig(vocab_size=32_476)
    assert (config.width, config.windows, config.ffn_width, config.attention_width) == (512, (3, 5, 48, 48, 48, 48), 2048, 64)
