"""The reranker's losses, by hand and by their invariants; what it reads; scores equal those of transformers and sentence-transformers."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foretext.interop.classifier import export_classifier
from foretext.model.encoder import Encoder
from foretext.model.presets import preset
from foretext.objectives.rerank import Rerank
from foretext.retrieval.rerank import CrossScorer, rerank
from foretext.text.grouped import GroupedPairs, Lists
from foretext.text.joined import kept_lengths
from foretext.text.randomness import example_keys
from foretext.text.tokenizer import Tokenizer
from foretext.training.distributed import World
from foretext.training.step import backward
from tests.conftest import made_up_texts
from tests.objectives.table import small_tokenizer

ALONE = World(0, 1, torch.device("cpu"))
FAMILIES = {"bert-tiny": "wordpiece", "roberta-tiny": "bpe", "electra-tiny": "wordpiece", "mpnet-tiny": "bpe",
            "modernbert-tiny": "wordpiece"}  # fmt: skip


def make(loss: str = "listwise", layout: str = "bert-tiny", tokenizer=None, **options) -> Rerank:
    tokenizer = tokenizer or small_tokenizer()
    torch.manual_seed(0)
    encoder = Encoder(preset(layout, tokenizer.size, max_len=48))
    objective = Rerank(encoder, tokenizer, Rerank.Config(loss=loss, dropout=0.0, **options))
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return objective


def groups(scores: bool = False, count: int = 12, size: int = 4) -> GroupedPairs:
    queries, passages = made_up_texts(count, seed=1), made_up_texts(5 * count, seed=2)
    queries = [" ".join(query.split()[:5]) for query in queries]
    lists = [[5 * i + j for j in range(5)] for i in range(count)]
    teacher = [[float((7 * n) % 11) for n in one] for one in lists] if scores else None
    positives = Lists.of([one[:1] for one in lists], [one[:1] for one in teacher] if scores else None)
    negatives = Lists.of([one[1:] for one in lists], [one[1:] for one in teacher] if scores else None)
    return GroupedPairs(queries, passages, np.arange(count), positives, negatives, small_tokenizer(), size)


def batch_of(objective: Rerank, source: GroupedPairs, rows=None):
    rows = np.arange(len(source.lengths)) if rows is None else np.array(rows)
    return objective.collate(source.read(rows, example_keys(1, 0, torch.from_numpy(rows))))


def scores_of(objective: Rerank, batch) -> torch.Tensor:
    return objective.head(objective.encoder, batch.pairs)[batch.places, 0].view(-1, batch.group)


def by_hand(loss: str, s: torch.Tensor, t: torch.Tensor | None) -> torch.Tensor:
    if loss == "listwise":
        return (-s.log_softmax(1)[:, 0]).sum()
    if loss == "pointwise":
        return F.softplus(-s[:, 0]).sum() + F.softplus(s[:, 1:]).sum()
    if loss == "kl":
        return F.kl_div(s.log_softmax(1), t.softmax(1), reduction="sum")
    return ((s[:, :1] - s[:, 1:] - t[:, :1] + t[:, 1:]) ** 2).sum()


def test_losses_by_hand():
    source = groups(scores=True)
    for loss in ("listwise", "pointwise", "kl", "margin_mse"):
        objective = make(loss)
        batch = batch_of(objective, source)
        with torch.no_grad():
            s, found = scores_of(objective, batch), objective(batch).terms["rerank"]
        torch.testing.assert_close(found, by_hand(loss, s, batch.teacher))
        assert batch.counts["rerank"] == {"listwise": 12, "pointwise": 48, "kl": 12, "margin_mse": 36}[loss]


def test_a_teacher_that_agrees_up_to_a_constant_asks_for_nothing():
    for loss in ("kl", "margin_mse"):
        objective = make(loss)
        batch = batch_of(objective, groups(scores=True))
        with torch.no_grad():
            teacher = scores_of(objective, batch) + torch.arange(12.0)[:, None]
        step = objective(dataclasses.replace(batch, teacher=teacher))
        step.terms["rerank"].backward()
        assert abs(step.terms["rerank"].item()) < 1e-4
        assert max(float(p.grad.abs().max()) for p in objective.parameters() if p.grad is not None) < 1e-3


def test_passages_without_a_score_leave_their_group():
    """The loss with a hole equals the loss of the group without that passage; a group of which one score is left counts for nothing."""
    for loss in ("kl", "margin_mse"):
        objective = make(loss)
        source = groups(scores=True, count=2)
        batch = batch_of(objective, source)
        teacher = batch.teacher.clone()
        teacher[0, 2] = float("nan")
        teacher[1, 1:] = float("nan")
        with torch.no_grad():
            s = scores_of(objective, batch)[:1, [0, 1, 3]]
            found = objective(dataclasses.replace(batch, teacher=teacher)).terms["rerank"]
        torch.testing.assert_close(found, by_hand(loss, s, batch.teacher[:1, [0, 1, 3]]))
        examples = source.read(np.arange(2), example_keys(1, 0, torch.arange(2)))
        assert objective.collate(dataclasses.replace(examples, scores=teacher)).counts["rerank"] == {"kl": 1, "margin_mse": 2}[loss]


def test_shuffling_negatives_changes_nothing():
    objective = make()
    examples = groups().read(np.arange(6), example_keys(1, 0, torch.arange(6)))
    order = torch.tensor([4 * i + j for i in range(6) for j in (0, 3, 1, 2)])
    shuffled = dataclasses.replace(examples, passages=examples.passages.select(order))
    with torch.no_grad():
        losses = [objective(objective.collate(some)).terms["rerank"] for some in (examples, shuffled)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("loss", ["listwise", "kl", "margin_mse"])
def test_gradient_does_not_depend_on_the_split(loss):
    """In fp64: an untrained head scores a group's passages alike, so the gradient is a small difference of large ones."""
    objective, source = make(loss).double(), groups(scores=True)
    objective.encoder.compute_dtype = torch.float64

    def gradient(batches):
        objective.zero_grad()
        backward(objective, batches, ALONE)
        return torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])

    whole = gradient([batch_of(objective, source)])
    parts = gradient([batch_of(objective, source, rows) for rows in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10], [11])])
    assert (parts - whole).norm() / whole.norm() <= 1e-6


def test_what_is_read():
    """`[CLS] q [SEP] p [SEP]` with types; only the passage is cut; swapping the two swaps them in place."""
    objective = make()
    words = small_tokenizer()
    source = groups(size=2)
    batch = batch_of(objective, source)
    examples = source.read(np.arange(12), example_keys(1, 0, torch.arange(12)))
    starts = batch.pairs.layout.cu_seqlens.tolist()
    for i in range(24):
        place = int(batch.places[i])
        ids, types = (values[starts[place] : starts[place + 1]].tolist() for values in (batch.pairs.ids, batch.pairs.types))
        q = examples.queries.select(torch.tensor([i // 2])).ids.tolist()
        p = examples.passages.select(torch.tensor([i])).ids.tolist()[: 48 - 3 - len(q)]
        assert ids == [words.cls_id, *q, words.sep_id, *p, words.sep_id]
        assert types == [0] * (len(q) + 2) + [1] * (len(p) + 1)
    scorer = CrossScorer(objective.encoder, objective.head, words, ("score",), "score", cut="second")
    there, back = scorer.score(["ba de", "ki lo mu"], ["ki lo mu", "ba de"])
    assert there != back


def test_longest_first_is_that_of_tokenizers():
    words = small_tokenizer()
    long = " ".join("ba" for _ in range(60))
    backend = words._framing(True)
    for room in (7, 8, 20, 21):
        backend.enable_truncation(room + 3, strategy="longest_first")
        for a in (0, 1, 3, 9, 10, 11, 40):
            for b in (0, 2, 9, 10, 40):
                n = [len(words.encode([" ".join(long.split()[:k])])[0]) for k in (a, b)]
                types = backend.encode(" ".join(long.split()[:a]), " ".join(long.split()[:b])).type_ids
                kept = kept_lengths(torch.tensor([n[0]]), torch.tensor([n[1]]), room, "longest")
                assert [int(k) for k in kept] == [types.count(0) - 2, types.count(1) - 1], (room, n)


def test_scores_do_not_depend_on_batch_mates():
    objective = make()
    scorer = CrossScorer(objective.encoder, objective.head, small_tokenizer(), ("score",), "score", cut="second")
    queries, passages = [text[:30] for text in made_up_texts(20, seed=3)], made_up_texts(20, seed=4)
    together = scorer.score(queries, passages)
    alone = [scorer.score([q], [p])[0] for q, p in zip(queries, passages)]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    few = scorer.logits(queries, passages, token_budget=60)[:, 0]
    np.testing.assert_allclose(together, few, atol=1e-5)


@pytest.mark.parametrize("layout", FAMILIES)
def test_other_libraries_give_the_same_scores(layout, tmp_path):
    """Export checks transformers and CrossEncoder itself, to 1e-5, with every weight perturbed; here CrossEncoder is asked once more."""
    from sentence_transformers import CrossEncoder

    tokenizer = Tokenizer.train(made_up_texts(400, seed=7), kind=FAMILIES[layout], vocab_size=512)
    objective = make(layout=layout, tokenizer=tokenizer)
    model = CrossScorer(objective.encoder.eval(), objective.head.eval(), tokenizer, ("score",), "score", cut="second")
    folder = export_classifier(model, tmp_path / "model", {"reranker": True})
    queries, passages = [text[:25] for text in made_up_texts(6, seed=3)], made_up_texts(6, seed=4)
    ours = CrossScorer.load(folder).score(queries, passages)
    np.testing.assert_allclose(ours, model.score(queries, passages), atol=1e-6)
    theirs = CrossEncoder(str(folder), device="cpu", local_files_only=True).predict(list(zip(queries, passages)))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.ptp(ours) > 1e-3


def test_rerank_a_run():
    objective = make()
    scorer = CrossScorer(objective.encoder, objective.head, small_tokenizer(), ("score",), "score", cut="second")
    passages = dict(zip("abcd", made_up_texts(4, seed=5)))
    again = rerank(scorer, {"q": {"a": 3.0, "b": 2.0, "c": 1.0}, "empty": {}}, {"q": "ba de ki", "empty": "lo"}, passages, depth=2)
    assert set(again["q"]) == {"a", "b"}
    assert again["empty"] == {}
    assert again["q"]["a"] == pytest.approx(float(scorer.score(["ba de ki"], [passages["a"]])[0]), abs=1e-5)
