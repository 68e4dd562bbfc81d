"""The decoder: what each target token may depend on, shared and single memories, biases with gradient, the cache."""

import pytest
import torch

from foretext.model.decoder import Decoder, Memory, segment_bias
from foretext.model.encoder import Encoder, Tokens
from foretext.model.layout import Layout
from foretext.model.presets import preset

LAYOUTS = ("bert-tiny", "mpnet-tiny", "modernbert-tiny")
SOURCES, TARGETS = [9, 7, 4], [5, 6, 3]
CLOSE = {"rtol": 0, "atol": 1e-5}
over_layouts = pytest.mark.parametrize("layout", LAYOUTS)


def networks(layout: str, layers: int = 2, **options) -> tuple[Encoder, Decoder]:
    torch.manual_seed(0)
    encoder = Encoder(preset(layout, 50, max_len=32)).eval()
    decoder = Decoder(encoder.config, layers, **options).eval()
    with torch.no_grad():
        for parameter in [*encoder.parameters(), *decoder.parameters()]:
            parameter += 0.1 * torch.randn_like(parameter)
    return encoder, decoder


def ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(50, (count,), generator=torch.Generator().manual_seed(seed))


def tokens(lengths: list[int], splits: list[int] | None = None, seed: int = 0) -> Tokens:
    layout = Layout.of(lengths, splits)
    return Tokens(ids(sum(lengths), seed), layout.positions, layout)


def cut(flat: torch.Tensor, lengths: list[int], i: int) -> torch.Tensor:
    return flat[sum(lengths[:i]) : sum(lengths[: i + 1])]


@over_layouts
def test_a_state_depends_on_earlier_target_tokens_only(layout):
    encoder, decoder = networks(layout, base_layers=1)
    source, target = tokens(SOURCES), tokens(TARGETS, Layout.of(SOURCES).splits, seed=1)
    memory = Memory.one_each(encoder(source), source.layout, target.layout)
    before = decoder(encoder, target, memory)
    for place in (0, 3, 7):
        changed = target.ids.clone()
        changed[place] = (changed[place] + 1) % 50
        moved = (decoder(encoder, target.with_ids(changed), memory) - before).abs().amax(1) > 1e-6
        same_target = target.layout.sequence == target.layout.sequence[place]
        assert torch.equal(moved, same_target & (torch.arange(len(moved)) >= place))


@over_layouts
@pytest.mark.parametrize("splits", [[], [1], [1, 2]])
def test_a_target_reads_its_own_source_and_no_padding(layout, splits):
    encoder, decoder = networks(layout)
    source, target = tokens(SOURCES, splits), tokens(TARGETS, splits, seed=1)
    states = encoder(source)
    together = decoder(encoder, target, Memory.one_each(states, source.layout, target.layout))
    for i in range(len(SOURCES)):
        one = Tokens.of(cut(target.ids, TARGETS, i), [TARGETS[i]])
        memory = Memory.one_each(cut(states, SOURCES, i), Layout.of([SOURCES[i]]), one.layout)
        torch.testing.assert_close(cut(together, TARGETS, i), decoder(encoder, one, memory), **CLOSE)


def test_layers_without_a_memory_are_a_causal_language_model():
    encoder, decoder = networks("bert-tiny", layers=0, base_layers=2)
    target = tokens(TARGETS)
    assert decoder(encoder, target, None).shape == (sum(TARGETS), 128)
    assert all(block.cross is None for block in decoder.blocks)


def test_only_layers_with_cross_attention_are_wide():
    decoder = Decoder(preset("bert-tiny", 50), layers=2, base_layers=1, ffn_width=1024)
    assert [block.up.out_features for block in decoder.blocks] == [512, 1024, 1024]
    assert [block.cross is not None for block in decoder.blocks] == [False, True, True]


def shared(encoder: Encoder, source: Tokens, target: Tokens, scores: torch.Tensor, hidden: torch.Tensor | None = None) -> Memory:
    bias = segment_bias(scores, target.layout, source.layout, hidden)
    return Memory.shared(encoder(source), source.layout, target.layout, [bias, bias])


@over_layouts
def test_a_shared_memory_is_read_by_all_and_its_order_does_not_matter(layout):
    encoder, decoder = networks(layout, base_layers=1)
    source, target = tokens(SOURCES), tokens(TARGETS, seed=1)
    scores = torch.randn(3, 3, generator=torch.Generator().manual_seed(2))
    before = decoder(encoder, target, shared(encoder, source, target, scores))
    order = [2, 0, 1]
    mixed = Tokens.of(torch.cat([cut(source.ids, SOURCES, i) for i in order]), [SOURCES[i] for i in order])
    after = decoder(encoder, target, shared(encoder, mixed, target, scores[:, order]))
    torch.testing.assert_close(after, before, **CLOSE)
    other = source.with_ids(source.ids.index_fill(0, torch.tensor([12]), 3))  # a token of the second source reaches every target
    moved = (decoder(encoder, target, shared(encoder, other, target, scores)) - before).abs().amax(1)
    assert (moved > 1e-6).all()


def test_hidden_sources_are_not_seen_and_one_visible_source_is_one_each():
    encoder, decoder = networks("bert-tiny")
    source, target = tokens(SOURCES), tokens(TARGETS, Layout.of(SOURCES).splits, seed=1)
    hidden = ~torch.eye(3, dtype=torch.bool)
    alone = decoder(encoder, target, shared(encoder, source, target, torch.randn(3, 3), hidden))
    each = decoder(encoder, target, Memory.one_each(encoder(source), source.layout, target.layout))
    torch.testing.assert_close(alone, each, **CLOSE)


def test_the_bias_of_a_segment_is_added_to_the_scores_and_has_a_gradient():
    """Two tokens whose q.k is 0, biases .9 and -.1: the first weighs .731059."""
    encoder, decoder = networks("bert-tiny", layers=1)
    cross = decoder.blocks[0].cross
    with torch.no_grad():
        cross.q.weight.zero_()
        cross.q.bias.zero_()
    states = torch.randn(2, 128)
    scores = torch.tensor([[0.9, -0.1]], requires_grad=True)
    sources, targets = Layout.of([1, 1]), Layout.of([1])
    bias = segment_bias(scores, targets, sources)
    memory = Memory.shared(states, sources, targets, [bias])
    x = torch.randn(1, 128)
    values = cross.keys_values(states)[1].flatten(1)
    expected = cross.norm(x + cross.out(0.731059 * values[:1] + 0.268941 * values[1:]))
    found = cross(x, cross.keys_values(states), memory, bias)
    torch.testing.assert_close(found, expected, **CLOSE)
    found[:, 0].sum().backward()
    assert scores.grad.abs().min() > 0


def test_heads_may_have_biases_of_their_own():
    scores = torch.randn(2, 3, 4)
    bias = segment_bias(scores, Layout.of([2, 1]), Layout.of([1, 2, 1]))[0]
    assert bias.shape == (1, 4, 3, 4)
    assert bias[0, 2, 1, 2] == scores[0, 1, 2]


@over_layouts
def test_cached_steps_equal_the_whole_pass(layout):
    encoder, decoder = networks(layout, base_layers=1)
    source = tokens([9, 4])
    states = encoder(source)
    length, each = 6, 2  # two hypotheses of each source
    hypotheses = ids(4 * length, seed=3).view(4, length)
    targets = Tokens.of(hypotheses.flatten(), [length] * 4)
    doubled = Layout.of([9, 9, 4, 4], splits=targets.layout.splits)
    rows = torch.cat((torch.arange(9).repeat(2), torch.arange(9, 13).repeat(2)))
    whole = decoder(encoder, targets, Memory.one_each(states[rows], doubled, targets.layout)).view(4, length, -1)
    generation = decoder.begin(Memory.one_each(states, source.layout, Layout.of([1, 1], source.layout.splits)).hypotheses(each))
    for t in range(length):
        torch.testing.assert_close(decoder.step(encoder, hypotheses[:, t], generation), whole[:, t], **CLOSE)


def test_hypotheses_change_places():
    encoder, decoder = networks("bert-tiny")
    source = tokens([5])
    memory = Memory.one_each(encoder(source), source.layout, Layout.of([1])).hypotheses(2)
    swapped, plain = decoder.begin(memory), decoder.begin(memory)
    decoder.step(encoder, torch.tensor([3, 4]), swapped)
    decoder.step(encoder, torch.tensor([4, 4]), plain)
    swapped.select(torch.tensor([1, 1]))
    newest = torch.tensor([7, 8])
    torch.testing.assert_close(decoder.step(encoder, newest, swapped), decoder.step(encoder, newest, plain))


def test_a_shared_memory_generates_with_a_bias_of_the_sources():
    encoder, decoder = networks("bert-tiny")
    source, target = tokens(SOURCES), tokens([4], seed=1)
    scores = torch.tensor([[0.9, -2.0, 0.3]])
    whole = decoder(encoder, target, shared(encoder, source, target, scores))
    bias = segment_bias(scores, Layout.of([1]), source.layout)
    generation = decoder.begin(Memory.shared(encoder(source), source.layout, Layout.of([1]), [bias, bias]).hypotheses(3))
    for t in range(4):
        step = decoder.step(encoder, target.ids[t].repeat(3), generation)
        torch.testing.assert_close(step, whole[t].repeat(3, 1), **CLOSE)
