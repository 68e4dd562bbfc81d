"""The contrastive loss and distillation: worked numbers, masks, nested widths, towers, and gradients however a step is split."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foretext.errors import UserError
from foretext.model.encoder import Encoder
from foretext.model.lora import add_lora, merge_lora
from foretext.model.presets import preset
from foretext.objectives.contrastive import Contrastive, kl_sum, known_pairs, margin_mse_sum
from foretext.text.batches import Batches
from foretext.text.grouped import GroupedPairs, Lists
from foretext.text.randomness import example_keys
from foretext.training.distributed import World
from foretext.training.recompute import recompute_activations
from foretext.training.step import backward
from tests.conftest import made_up_texts
from tests.objectives.table import small_tokenizer

ALONE = World(0, 1, torch.device("cpu"))
NAN = float("nan")


def objective(dropout: float = 0.0, **options) -> Contrastive:
    torch.manual_seed(0)
    encoder = Encoder(preset("bert-tiny", small_tokenizer().size, max_len=64, dropout=dropout, attention_dropout=dropout))
    return Contrastive(encoder, small_tokenizer(), Contrastive.Config(**{"temperature": 0.1} | options))


def groups(count: int = 24, size: int = 4, scored: bool = True) -> GroupedPairs:
    texts = made_up_texts(count, seed=11)
    negatives = [[(i + j) % count for j in range(1, 8)] for i in range(count)]
    scores = [[float(np.sin(i * j)) for j in range(1, 8)] for i in range(count)]
    positives = Lists.of([[i] for i in range(count)], [[1.5]] * count)
    return GroupedPairs([" ".join(t.split()[:5]) for t in texts], texts, np.arange(count), positives,
                        Lists.of(negatives, scores if scored else None), small_tokenizer(), size)


def step(o: Contrastive, batch_size: int = 11, micro_tokens: int = 10**9, **options):
    return Batches(groups(**options), o.collate, batch_size, micro_tokens, seed=5).step(0)


def gradient(o: Contrastive, batches) -> torch.Tensor:
    o.zero_grad()
    backward(o, batches, ALONE)
    return torch.cat([p.grad.flatten() for p in o.parameters() if p.grad is not None])


def coupled(o: Contrastive, scores: torch.Tensor, passages=None, known=(), **rows):
    """What `couple` makes of given scores: queries are the rows of a unit matrix, passages hold the scores."""
    B, P = scores.shape
    o.temperature = 1.0
    batch = step(o, batch_size=B)[0]
    batch = type(batch)(**{**batch.__dict__, "known": torch.tensor(sorted((q << 32) + p for q, p in known), dtype=torch.int64)})
    numbers = {"query": torch.arange(B), "passage": torch.arange(P) if passages is None else torch.tensor(passages)}
    return o.couple({"query": torch.eye(B), "passage": scores.T.contiguous()}, numbers | rows, batch)


@pytest.fixture
def plain():
    return objective(normalize=False, temperature=1.0)


def test_worked_numbers(plain):
    """A worked example, by hand."""
    loss = coupled(plain, torch.tensor([[2.0, 0.0], [0.0, 2.0]])).terms["contrastive"]
    assert float(loss) / 2 == pytest.approx(0.126928, abs=1e-6)
    assert float(kl_sum(torch.tensor([[np.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]]))) == pytest.approx(0.143841, abs=1e-6)
    assert float(margin_mse_sum(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]]))) == 4


def test_false_negatives_are_masked(plain):
    """A column that is known to answer, or repeats the positive's text, does not count; the target always does."""
    scores = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 2, 4])
    known = torch.tensor(sorted((q << 32) + p for q, p in [(0, 3), (1, 2)]))
    passages = torch.tensor([0, 1, 2, 3, 4, 4])  # the last repeats the third query's positive
    hidden = known_pairs(torch.arange(3), passages, target, known)
    assert hidden.nonzero().tolist() == [[0, 3], [2, 5]]
    step_ = coupled(plain, scores, passages.tolist(), [(0, 3), (1, 2)])
    expected = F.cross_entropy(scores.masked_fill(hidden, -torch.inf), target, reduction="sum")
    torch.testing.assert_close(step_.terms["contrastive"], expected)
    assert step_.metrics["masked_negatives"][0] == 2


def test_group_negatives():
    o = objective(normalize=False, negatives="group")
    scores = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    own = torch.stack([scores[i, 2 * i : 2 * i + 2] for i in range(3)])
    torch.testing.assert_close(coupled(o, scores).terms["contrastive"], F.cross_entropy(own, torch.zeros(3).long(), reduction="sum"))


@pytest.mark.parametrize(("kind", "margin", "masked"), [("absolute", 0.5, [1, 2]), ("absolute", -0.5, [2]), ("relative", 0.5, [1, 2, 3])])
def test_margin_masks_what_the_teacher_scores_too_high(kind, margin, masked):
    """Positive 2: above 1.5, above 2.5, above 1; a passage without a score stays."""
    o = objective(normalize=False, margin=margin, margin_kind=kind)
    scores, teacher = torch.randn(1, 5), torch.tensor([[2.0, 1.8, 3.0, 1.2, NAN]])
    expected = scores.clone()
    expected[0, masked] = -torch.inf
    got = coupled(o, scores, teacher=teacher).terms["contrastive"]
    torch.testing.assert_close(got, F.cross_entropy(expected, torch.tensor([0])))


def test_a_guide_masks_across_groups():
    """GISTEmbed: passages of other queries too."""
    o = objective(normalize=False, margin=0.0)
    scores = torch.randn(2, 2, generator=torch.Generator().manual_seed(1))
    guide = {"guide_query": torch.eye(2), "guide_passage": torch.tensor([[1.0, 0.5], [2.0, 1.0]])}  # passage 1 is nearer to query 0 than 0
    expected = scores.clone()
    expected[0, 1] = -torch.inf
    got = coupled(o, scores, **guide).terms["contrastive"]
    torch.testing.assert_close(got, F.cross_entropy(expected, torch.arange(2), reduction="sum"))


def test_permuted_groups_permute_rows_only():
    o, source = objective(), groups()
    rows = np.arange(8)
    keys = example_keys(1, 0, torch.from_numpy(rows))
    one, order = o.collate(source.read(rows, keys)), np.random.default_rng(0).permutation(8)
    other = o.collate(source.read(rows[order], keys[torch.from_numpy(order)]))
    with torch.no_grad():
        a, b = o(one), o(other)
        torch.testing.assert_close(a.vectors["query"][order], b.vectors["query"], atol=1e-6, rtol=0)
        losses = [o.couple(step_.vectors, step_.rows, batch).terms["contrastive"] for step_, batch in ((a, one), (b, other))]
        torch.testing.assert_close(*losses)


VARIANTS = {
    "plain": {}, "last": {"pooling": "last"}, "cls": {"pooling": "cls"}, "projection": {"projection": 24}, "untied": {"untied": True},
    "matryoshka": {"dimensions": (16, 32)}, "symmetric": {"symmetric": True}, "group": {"negatives": "group"},
    "kl": {"distill": "kl", "contrastive_weight": 0.1, "dimensions": (16,)}, "margin": {"margin": 0.2},
    "margin_mse": {"distill": "margin_mse", "normalize": False, "temperature": 4.0},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("parts", [2, 5])
def test_chunked_equals_full(variant, parts):
    """11 groups of 4 in unequal chunks: the gradient of the whole step. The network in fp64: fresh weights give all texts nearly one
    vector, and differences of such vectors hold few of fp32's digits."""
    o = objective(**VARIANTS[variant]).double()
    o.encoder.compute_dtype = torch.float64
    whole = step(o)
    chunks = step(o, micro_tokens=sum(b.tokens for b in whole) // parts)
    assert len(chunks) >= parts
    reference = gradient(o, whole)
    assert all(p.grad is not None and p.grad.any() for p in o.parameters() if p.requires_grad)
    assert (gradient(o, chunks) - reference).norm() / reference.norm() <= 1e-6


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_recomputed_activations_give_the_same_gradient(dropout):
    o = objective(dropout)
    batches = step(o, micro_tokens=300)
    torch.manual_seed(3)
    reference = gradient(o, batches)
    recompute_activations(o)
    torch.manual_seed(3)
    assert torch.equal(gradient(o, batches), reference)


def saved_bytes(o: Contrastive, batches) -> int:
    """Most bytes that autograd holds at once for the backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in o.parameters()}
    held, most = 0, 0

    class Held:
        def __init__(self, x):
            nonlocal held, most
            self.x, self.size = x, 0 if x.untyped_storage().data_ptr() in weights else x.nbytes
            held += self.size
            most = max(most, held)

        def __del__(self):
            nonlocal held
            held -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda kept: kept.x):
        gradient(o, batches)
    return most


def test_large_batches_in_an_eighth_of_the_memory():
    o = objective()
    whole = step(o, batch_size=48, count=64)
    split = step(o, batch_size=48, count=64, micro_tokens=sum(b.tokens for b in whole) // 12)
    reference = gradient(o, whole)
    assert (gradient(o, split) - reference).norm() / reference.norm() <= 1e-6
    assert saved_bytes(o, split) <= saved_bytes(o, whole) / 8


def test_kl_invariants():
    draw = torch.Generator().manual_seed(0)
    s = torch.randn(5, 4, generator=draw, requires_grad=True)
    shift = torch.randn(5, 1, generator=draw)
    loss = kl_sum(s, s.detach() + shift)
    loss.backward()
    assert abs(loss.item()) < 1e-6 and s.grad.abs().max() < 1e-6  # zero, with zero gradient, where the student agrees
    t = torch.randn(5, 4, generator=draw)
    torch.testing.assert_close(kl_sum(s, t), kl_sum(s, t + shift))
    torch.testing.assert_close(kl_sum(s, t), F.kl_div(s.log_softmax(1), t.softmax(1), reduction="sum"))
    assert kl_sum(s[:, :1], t[:, :1]).item() == 0  # a group of one


def test_margin_mse_invariants():
    draw = torch.Generator().manual_seed(0)
    s, t, shift = (torch.randn(5, n, generator=draw) for n in (4, 4, 1))
    torch.testing.assert_close(margin_mse_sum(s, t), margin_mse_sum(s, t + shift))
    assert float(margin_mse_sum(s, s + shift)) < 1e-10
    assert float(margin_mse_sum(s[:, :1], t[:, :1])) == 0


@pytest.mark.parametrize("loss", [kl_sum, margin_mse_sum])
def test_passages_without_a_score_leave_the_group(loss):
    """Groups of different sizes, one of them empty: as if the passages were not there, and no nan in the gradient."""
    s = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    t = torch.tensor([[1.0, 2.0, NAN, 0.5], [0.3, NAN, NAN, NAN], [NAN] * 4])
    expected = loss(s[:1, [0, 1, 3]], t[:1, [0, 1, 3]])
    got = loss(s, t)
    torch.testing.assert_close(got, expected)
    got.backward()
    assert torch.isfinite(s.grad).all() and not s.grad[1:].any() and not s.grad[0, 2]


def test_distillation_counts_what_is_taught():
    o = objective(distill="kl")
    assert step(o)[0].counts == {"contrastive": 11, "distill": 11}
    assert step(objective(distill="margin_mse", normalize=False))[0].counts["distill"] == 33
    unscored = step(o, scored=False)[0]  # the positive alone has a score: nothing to rank
    assert unscored.counts["distill"] == 0
    assert torch.isfinite(gradient(o, [unscored])).all()
    assert o.weights == {"contrastive": 1.0}


def test_distillation_moves_the_student_to_the_teacher():
    o = objective(distill="kl", contrastive_weight=0.0, temperature=0.1, teacher_temperature=0.5)
    batches = step(o)
    optimizer = torch.optim.AdamW(o.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(float(backward(o, batches, ALONE)["distill"][0]))
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("options", [
    {"temperature": 0.9}, {"distill": "margin_mse"}, {"symmetric": True, "negatives": "group"}, {"contrastive_weight": 0.1},
    {"teacher_temperature": 2.0}])
def test_settings_without_sense_are_refused(options):
    with pytest.raises(ValueError, match="temperature|margin_mse|symmetric|contrastive_weight"):
        Contrastive.Config(**options)


def test_dimensions_must_be_parts():
    with pytest.raises(UserError, match="no part"):
        objective(dimensions=(4096,))


def test_lora_trains_adapters_alone_and_merges():
    pytest.importorskip("peft")
    o = objective()
    before = {name: x.clone() for name, x in o.encoder.state_dict().items()}
    add_lora(o.encoder, rank=4, alpha=8)
    batches = step(o)
    optimizer = torch.optim.AdamW([p for p in o.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        backward(o, batches, ALONE)
        optimizer.step()
    merged = merge_lora(o.encoder)
    assert merged.state_dict().keys() == before.keys()
    moved = {name for name, x in merged.state_dict().items() if not torch.equal(x, before[name])}
    assert moved == {f"blocks.{i}.{m}.weight" for i in range(len(merged.blocks)) for m in ("qkv", "out", "up", "down")}
    with torch.no_grad():
        torch.testing.assert_close(merged(batches[0].queries), o.encoder(batches[0].queries), atol=1e-5, rtol=0)
