"""MPNet against the definition written out with loops, and its invariants."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from foretext.model.layers import relative_bucket
from foretext.objectives.mpnet import CONTEXT, MASK, TARGET, MPNet
from foretext.text.batches import Documents
from foretext.text.corrupt import Words
from foretext.training.distributed import World
from foretext.training.step import backward
from tests.objectives.table import make_objective, one_step
from tests.random_tokens import UNK, alphabet, leak_bound, random_documents, tiny_encoder, trained_loss

LAYOUTS = ("bert", "roberta", "mpnet", "modernbert")
TOKENIZER = alphabet(40, continuing=12)
LENGTHS = [28, 28, 20, 9, 3, 2, 1]


def mpnet(layout: str = "mpnet", **config) -> MPNet:
    changes = {"layers": 4, "window": 5} if layout == "modernbert" else {}
    objective = MPNet(tiny_encoder(TOKENIZER, layout, **changes), TOKENIZER, MPNet.Config(**config))
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return objective.eval()


def sees(kind: int, step: int, key_kind: int, key_step: int) -> bool:
    """The three rules of who sees whom; kind None is a query."""
    if key_kind == CONTEXT:
        return True
    if kind in (CONTEXT, MASK):
        return key_kind == MASK
    if kind == TARGET:
        return key_step <= step if key_kind == TARGET else key_step > step
    return key_step < step if key_kind == TARGET else key_step >= step


def bucket(rel: int) -> int:
    a = abs(rel)
    f = a if a < 8 else 8 + sum(a >= edge for edge in (12, 16, 23, 32, 46, 64, 91))
    return f + 16 * (rel > 0)


def naive_queries(objective: MPNet, ids: torch.Tensor, block: list[int], stand_ins: torch.Tensor) -> torch.Tensor:
    """Last query states of one text in permuted order: [context; targets; masks] and the queries, attention by loops over pairs."""
    encoder = objective.encoder
    config, n, P = encoder.config, len(ids), len(block)
    context = [p for p in range(n) if p not in block]
    position = context + block + block
    content = torch.cat((ids[context], ids[block], stand_ins))
    kinds = [(CONTEXT, 0)] * len(context) + [(TARGET, i) for i in range(P)] + [(MASK, i) for i in range(P)]

    def embed(tokens, places):
        x = encoder.words.weight[tokens]
        if encoder.positions is not None:
            x = x + encoder.positions.weight[places]
        if encoder.types is not None:
            x = x + encoder.types.weight[0]
        return encoder.norm(x)

    def turned(x, places, theta):
        d = x.shape[-1]
        z = torch.view_as_complex(torch.stack((x[..., : d // 2], x[..., d // 2 :]), -1).contiguous())
        angles = torch.tensor(places)[:, None] * theta ** (-torch.arange(0, d, 2) / d)
        z = z * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.cat((z.real, z.imag), -1)

    def attend(layer, q, q_places, rows, k, v):
        H, d = config.heads, config.width // config.heads
        far = config.window if layer % 3 else None
        q, k, v = q.view(-1, H, d), k.view(-1, H, d), v.view(-1, H, d)
        if config.prenorm:
            theta = config.rope_theta if far is None else config.local_rope_theta
            q, k = turned(q, q_places, theta), turned(k, position, theta)
        out = torch.empty_like(q)
        for i, row in enumerate(rows):
            keys = [j for j, key in enumerate(kinds) if sees(*row, *key) and (far is None or abs(position[j] - q_places[i]) <= far)]
            for h in range(H):
                scores = k[keys, h] @ q[i, h] / math.sqrt(d)
                if encoder.relative is not None:
                    scores = scores + torch.stack([encoder.relative.weight[bucket(position[j] - q_places[i]), h] for j in keys])
                out[i, h] = scores.softmax(0) @ v[keys, h]
        return out.flatten(1)

    def rest(block, x, mixed):
        x = x + block.out(mixed)
        if config.prenorm:
            a, b = block.up(block.ffn_norm(x)).chunk(2, -1)
            return x + block.down(F.gelu(a) * b)
        x = block.attention_norm(x)
        return block.ffn_norm(x + block.down(F.gelu(block.up(x))))

    c, g = embed(content, position), embed(stand_ins, block)
    for layer, one in enumerate(encoder.blocks):
        entered, asked = (one.attention_norm(c), one.attention_norm(g)) if config.prenorm else (c, g)
        cq, k, v = one.qkv(entered).chunk(3, -1)
        gq = one.qkv(asked).chunk(3, -1)[0]
        c, g = (rest(one, c, attend(layer, cq, position, kinds, k, v)),
                rest(one, g, attend(layer, gq, block, [(None, i) for i in range(P)], k, v)))
    return encoder.final_norm(g)


def pieces(batch):
    """Each text's content places and query places."""
    content = torch.arange(len(batch.kind)).split(batch.content.layout.lengths)
    return list(zip(content, torch.arange(len(batch.labels)).split(batch.queries.layout.lengths)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", [{}, {"word_cut": "whole"}, {"whole_word": False, "share": 0.4}])
def test_equals_the_definition(layout, config):
    objective = mpnet(layout, **config)
    documents = random_documents(TOKENIZER, [14, 12, 5, 1])
    batch = objective.collate(documents)
    with torch.no_grad():
        found, _ = objective.streams(batch)
        for content, queries in pieces(batch):
            ids, places = batch.content.ids[content], batch.queries.positions[queries].tolist()
            written = ids[: len(content) - len(queries)]
            expected = naive_queries(objective, written, places, batch.queries.ids[queries])
            torch.testing.assert_close(found[queries], expected, rtol=1e-4, atol=2e-5)
            assert torch.equal(batch.labels[queries], written[places])


def test_visibility_of_the_worked_example():
    batch = mpnet(share=0.4, whole_word=False).collate(random_documents(TOKENIZER, [3]))
    content, queries = (v[0][0, 0] for v in mpnet().visible(batch))
    order = (batch.kind * 10 + batch.step).argsort(stable=True)  # c0 c1 c2 t0 t1 m0 m1
    rows = ["".join(str(int(x)) for x in row) for row in content[order][:, order]]
    assert rows == ["1110011"] * 3 + ["1111001", "1111100"] + ["1110011"] * 2
    assert ["".join(str(int(x)) for x in row) for row in queries[:, order]] == ["1110011", "1111001"]


@pytest.mark.parametrize("config", [{}, {"word_cut": "whole"}, {"whole_word": False}])
def test_everyone_sees_each_position_once(config):
    objective = mpnet(**config)
    batch = objective.collate(random_documents(TOKENIZER, LENGTHS))
    content, queries = objective.visible(batch)
    for b, seen_by_content, seen_by_queries in zip(batch.content.layout.buckets, content, queries):
        positions, times = b.pad(batch.content.positions + 1), b.pad(torch.ones_like(batch.kind))
        for seen in (seen_by_content, seen_by_queries):
            for text in range(b.size):
                n = int(positions[text].max())
                for row in seen[text, 0]:
                    assert sorted(positions[text][row & times[text].bool()].tolist()) == list(range(1, n + 1))


def test_bucket_of_distances():
    distances = [0, 1, -1, 7, -8, 11, 12, -64, 90, 91, -500]
    assert relative_bucket(torch.tensor(distances)).tolist() == [0, 17, 1, 23, 8, 24, 25, 14, 30, 31, 15]
    everywhere = torch.arange(-600, 601)
    assert relative_bucket(everywhere).tolist() == [bucket(int(rel)) for rel in everywhere]


def test_the_block():
    """Its size, what it may not hold, and what stands in for it."""
    documents = random_documents(TOKENIZER, [30, 29, 8, 3, 2, 1])
    documents.ids[[3, 40]] = UNK
    batch = mpnet().collate(documents)
    P = torch.tensor(batch.queries.layout.lengths)
    assert P.tolist() == [round(0.15 * n) for n in (32, 31, 10)] + [1, 1, 1]
    assert (batch.labels >= 5).all()
    assert batch.counts == {"mpnet": int(P.sum())}
    for content, queries in pieces(batch):
        kind, step = batch.kind[content], batch.step[content]
        masks, targets = content[kind == MASK], content[kind == TARGET]
        assert torch.equal(batch.content.ids[masks], batch.queries.ids[queries])
        assert torch.equal(batch.content.positions[masks], batch.queries.positions[queries])
        targets = targets[step[kind == TARGET].argsort()]
        assert torch.equal(batch.content.ids[targets], batch.labels[queries])
        assert torch.equal(batch.content.positions[targets], batch.queries.positions[queries])
        assert torch.equal(batch.query_step[queries], torch.arange(len(queries)))


def test_whole_words_are_not_cut():
    objective = mpnet(word_cut="whole", share=0.3)
    documents = random_documents(TOKENIZER, [30, 28, 20] * 5)
    batch = objective.collate(documents)
    words = Words.of(objective.framed(documents), objective.vocabulary).token.split([n + 2 for n in documents.lengths.tolist()])
    for word, (_, queries) in zip(words, pieces(batch)):
        chosen = torch.zeros(len(word), dtype=torch.bool)
        chosen[batch.queries.positions[queries]] = True
        for w in range(int(word.max()) + 1):
            assert chosen[word == w].all() or not chosen[word == w].any()


def test_the_order_in_the_block_is_random():
    batch = mpnet(share=0.2).collate(random_documents(TOKENIZER, [8] * 3000))  # P = 2
    rising = batch.queries.positions[0::2] < batch.queries.positions[1::2]
    assert abs(rising.float().mean() - 0.5) < 3.5 * 0.5 / 3000**0.5


def changed(batch, at: int, delta: int = 1):
    ids = batch.content.ids.clone()
    ids[at] = 5 + (ids[at] - 5 + delta) % 40
    return dataclasses.replace(batch, content=batch.content.with_ids(ids))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_target_is_seen_only_by_what_is_predicted_after_it(layout):
    objective = mpnet(layout, share=0.4)
    batch = objective.collate(random_documents(TOKENIZER, [20, 10]))
    everything = torch.arange(len(batch.kind))
    with torch.no_grad():
        before = objective.streams(batch, everything)
        for j in range(8):
            at = ((batch.kind == TARGET) & (batch.step == j)).nonzero()[0, 0]  # in the first text
            after = objective.streams(changed(batch, int(at)), everything)
            moved = [(a - b).abs().amax(1) > 1e-6 for a, b in zip(after, before)]
            text = torch.arange(len(batch.query_step)) < batch.queries.layout.lengths[0]
            assert not moved[0][~(text & (batch.query_step > j))].any()
            assert not moved[1][~((everything < batch.content.layout.lengths[0]) & (batch.kind == TARGET) & (batch.step >= j))].any()
            if layout != "modernbert":  # whose windows hide most of it
                assert moved[0][text & (batch.query_step > j)].all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_storage_order_of_the_content_does_not_matter(layout):
    objective = mpnet(layout, share=0.3)
    batch = objective.collate(random_documents(TOKENIZER, [20, 10]))
    draw = torch.Generator().manual_seed(0)
    order = torch.cat([content[torch.randperm(len(content), generator=draw)] for content, _ in pieces(batch)])
    content = dataclasses.replace(batch.content, ids=batch.content.ids[order], positions=batch.content.positions[order])
    mixed = dataclasses.replace(batch, content=content, kind=batch.kind[order], step=batch.step[order])
    with torch.no_grad():
        torch.testing.assert_close(objective.streams(mixed)[0], objective.streams(batch)[0], rtol=1e-5, atol=2e-6)


def test_add_mlm_is_the_loss_at_the_mask_tokens():
    objective = mpnet(add_mlm=True)
    batch = objective.collate(random_documents(TOKENIZER, LENGTHS))
    with torch.no_grad():
        step = objective(batch)
        _, content = objective.streams(batch, torch.arange(len(batch.kind)))
        logits = objective.head(content[batch.kind == MASK], objective.encoder.words)
    torch.testing.assert_close(step.terms["mlm"], F.cross_entropy(logits, batch.labels, reduction="sum"), rtol=1e-5, atol=1e-5)
    assert set(step.terms) == set(batch.counts) == {"mpnet", "mlm"}
    torch.testing.assert_close(step.terms["mpnet"], mpnet()(batch).terms["mpnet"])


def test_texts_without_an_ordinary_token_are_skipped_and_counted():
    objective = mpnet()
    documents = Documents(torch.tensor([7, 8, 9, UNK, UNK]), torch.tensor([3, 1, 1]), torch.arange(3), torch.arange(3))
    batch = objective.collate(documents)
    assert batch.queries.layout.lengths == (1, 0, 0)
    step = objective(batch)
    assert step.metrics["skipped"] == (2, 3)
    alone = objective(objective.collate(documents.select(torch.tensor([0]))))
    torch.testing.assert_close(step.terms["mpnet"], alone.terms["mpnet"])
    nothing = objective.collate(documents.select(torch.tensor([1, 2])))
    backward(objective, [nothing, batch], World(0, 1, torch.device("cpu")))
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters())
    assert objective(nothing).terms["mpnet"].item() == 0


def test_accuracy_by_block_index():
    objective = make_objective("mpnet", "mpnet-tiny")
    (batch,) = one_step(objective)
    assert batch.third.max() == 2 and batch.third[batch.query_step == 0].max() == 0
    assert "accuracy_last_third" not in objective(batch).metrics
    metrics = objective.eval()(batch).metrics
    assert metrics["accuracy_first_third"][1] + metrics["accuracy_last_third"][1] < metrics["accuracy"][1]


def test_buckets_follow_the_texts():
    """Blocks of slightly different size do not break texts of one length into buckets of their own."""
    tokenizer = alphabet(40, continuing=32)
    objective = MPNet(tiny_encoder(tokenizer, "mpnet"), tokenizer, MPNet.Config(word_cut="whole", share=0.3))
    batch = objective.collate(random_documents(tokenizer, [28] * 40))
    assert len(set(batch.queries.layout.lengths)) > 1
    assert len(batch.content.layout.buckets) == 1
    assert batch.queries.layout.splits == batch.content.layout.splits


def test_initial_weights():
    def qkv(layout, **changes):
        return tiny_encoder(TOKENIZER, layout, width=256, **changes).blocks[0].qkv.weight.detach()

    assert float(qkv("mpnet", qkv_init="normal").std()) == pytest.approx(0.02, rel=0.02)
    assert float(qkv("bert").std()) == pytest.approx(0.02, rel=0.02)
    assert float(qkv("mpnet").std()) == pytest.approx((2 / (4 * 256)) ** 0.5, rel=0.02)
    assert qkv("mpnet").abs().max() <= (6 / (4 * 256)) ** 0.5


def test_a_setting_without_effect_is_refused():
    with pytest.raises(ValueError, match="no effect"):
        MPNet.Config(whole_word=False, word_cut="whole")


@pytest.mark.parametrize(("mask", "random"), [(0.8, 0.1), (1.0, 0.0)])
def test_uniform_tokens_cannot_be_predicted(mask, random):
    tokenizer = alphabet(16)
    objective = MPNet(tiny_encoder(tokenizer, "mpnet"), tokenizer, MPNet.Config(share=0.3, mask=mask, random=random))
    assert trained_loss(objective) > leak_bound(16, mask, random) - 0.03


def test_the_leak_test_finds_a_leak():
    class Leaky(MPNet):
        def visible(self, batch):
            return super().visible(dataclasses.replace(batch, query_step=batch.query_step + 1))  # a query sees its own target

    tokenizer = alphabet(16)
    leaky = Leaky(tiny_encoder(tokenizer, "mpnet"), tokenizer, MPNet.Config(share=0.3))
    assert trained_loss(leaky, steps=200, fresh=4000) < leak_bound(16) - 0.5
