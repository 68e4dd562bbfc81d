"""MARGE: its invariants, a worked number, and a training that really searches."""

import json

import numpy as np
import pytest
import torch

from foretext.errors import UserError
from foretext.model.encoder import Encoder
from foretext.model.generation import GenerationConfig
from foretext.model.presets import preset
from foretext.objectives.marge import MARGE
from foretext.text.batches import Documents
from foretext.text.clusters import ClusterSource, Related, texts_of
from foretext.text.memmap import MemmapDocuments, memmap_source
from foretext.text.pairs import Texts
from foretext.text.prepare import prepare
from foretext.text.store import Store
from foretext.training.distributed import World
from foretext.training.refresh import Corpus, Rounds, arranged
from foretext.training.step import backward
from tests.conftest import made_up_texts
from tests.objectives.table import make_objective, related_texts, small_tokenizer

ALONE = World(0, 1, torch.device("cpu"))


def documents(ids: list[list[int]]) -> Documents:
    lengths = torch.tensor([len(row) for row in ids])
    return Documents(torch.tensor([id for row in ids for id in row]), lengths, torch.arange(len(ids)), torch.arange(len(ids)))


def related(targets: list[list[int]], evidence: list[list[int]], target_counts=None, evidence_counts=None, numbers=None) -> Related:
    """Clusters of given ids; by default one, of texts that are all different."""
    t, e = len(targets), len(evidence)
    of_targets, of_evidence = numbers or (range(100, 100 + t), range(e))
    return Related(documents(targets), documents(evidence), torch.tensor(target_counts or [t]), torch.tensor(evidence_counts or [e]),
                   torch.tensor(list(of_targets)), torch.tensor(list(of_evidence)), torch.zeros(t, dtype=torch.int64))


def tiny(layout: str = "bert-tiny", **config) -> MARGE:
    torch.manual_seed(0)
    encoder = Encoder(preset(layout, small_tokenizer().size, max_len=64))
    return MARGE(encoder, small_tokenizer(), MARGE.Config(**config)).eval()


def loss(objective: MARGE, examples: Related) -> torch.Tensor:
    return objective(objective.collate(examples)).terms["reconstruction"]


TARGETS = [[10, 11, 12, 13, 14], [30, 31, 32]]
EVIDENCE = [[10, 12, 14, 16], [20, 21, 22, 23, 24, 25], [30, 33, 32]]


def test_worked_number():
    """17c: two evidence tokens, q.k = 0, beta 1, f = (.9, -.1) -> .731059 on the first."""
    objective = tiny()
    batch = objective.collate(related([[10]], [[11], [12]]))
    bias, = objective.biases(batch, torch.tensor([[0.9, -0.1]]))[0]
    assert bias[0, 0, 0, [0, 3]].softmax(0)[0].item() == pytest.approx(0.731059, abs=1e-6)  # [CLS] of the first, [CLS] of the second


def test_decoder_reads_the_text_and_labels_follow_it():
    objective = tiny()
    batch = objective.collate(related(TARGETS, EVIDENCE))
    cls, sep = objective.tokenizer.cls_id, objective.tokenizer.sep_id
    assert batch.written.ids.tolist() == [cls, *TARGETS[0], cls, *TARGETS[1]]
    assert batch.labels.tolist() == [*TARGETS[0], sep, *TARGETS[1], sep]
    assert batch.counts == {"reconstruction": 10}


def test_language_comes_first():
    """Of a text in a listed language the decoder reads its name in place of [CLS], and the name is not asked for."""
    objective = tiny(languages=("ba", "de ki"))
    names = [objective.tokenizer.encode([name])[0].tolist() for name in ("ba", "de ki")]
    examples = related([[10, 11], [12, 13]], EVIDENCE)
    examples.languages[1] = 1
    batch = objective.collate(examples)
    assert batch.written.ids.tolist() == [*names[0], 10, 11, *names[1], 12, 13]
    assert batch.labels.tolist() == [10, 11, objective.tokenizer.sep_id, 12, 13, objective.tokenizer.sep_id]
    assert batch.written.ids[batch.places].tolist() == [names[0][-1], 10, 11, names[1][-1], 12, 13]


def test_a_text_never_sees_itself():
    """What stands in a target's own copy changes nothing for that target; it does for the others."""
    objective = tiny()
    numbers = [[0, 1], [0, 5, 6]]  # the first target is the first evidence text
    changed = [[40, 41, 42, 43], *EVIDENCE[1:]]
    both = [loss(objective, related(TARGETS, evidence, numbers=numbers)) for evidence in (EVIDENCE, changed)]
    first = [loss(objective, related(TARGETS[:1], evidence, numbers=[[0], [0, 5, 6]])) for evidence in (EVIDENCE, changed)]
    assert torch.equal(first[0], first[1])
    assert (both[0] - both[1]).abs() > 1e-5


def test_relevance_learns_from_reconstruction_alone():
    """The gradient flows through both sides of the cosine into the document encoder; detached, none does."""
    for relevance, flows in (("trained", True), ("detached", False)):
        objective = tiny(relevance=relevance)
        batch = objective.collate(related(TARGETS, EVIDENCE))
        seen = []
        vectors = objective.vectors
        objective.vectors = lambda texts, seen=seen, vectors=vectors: seen.append(vectors(texts)) or seen[-1]
        value = objective(batch).terms["reconstruction"]
        gradient, = torch.autograd.grad(value, seen[0], allow_unused=True)
        assert (gradient is not None and bool(gradient.abs().sum() > 0)) == flows


def test_relevance_gradient_is_the_derivative():
    """Of the loss by a single f, against a finite difference (the sum of cross-entropies is fp32, so the step is wide)."""
    objective = tiny(beta_start=10.0).double()
    objective.encoder.compute_dtype = torch.float64
    batch = objective.collate(related(TARGETS, EVIDENCE))
    biases, given = objective.biases, torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    objective.biases = lambda batch, relevance: biases(batch, relevance + given)
    value = objective(batch).terms["reconstruction"]
    gradient, = torch.autograd.grad(value, given)
    step = 0.03
    with torch.no_grad():
        given[0, 1] += step
        up = objective(batch).terms["reconstruction"]
        given[0, 1] -= 2 * step
        down = objective(batch).terms["reconstruction"]
    assert gradient[0, 1].item() == pytest.approx(((up - down) / (2 * step)).item(), rel=0.02)


def test_order_of_evidence_does_not_matter():
    objective = tiny()
    values = [loss(objective, related(TARGETS, [EVIDENCE[i] for i in order])).item() for order in ([0, 1, 2], [2, 0, 1])]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_clusters_do_not_see_each_other():
    """Two clusters in one micro-batch have the loss they have alone."""
    objective = tiny()
    together = loss(objective, related(TARGETS, EVIDENCE, [1, 1], [1, 2]))
    alone = loss(objective, related(TARGETS[:1], EVIDENCE[:1])) + loss(objective, related(TARGETS[1:], EVIDENCE[1:]))
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-5)


def test_vectors_are_those_of_the_index():
    """Padding and batch mates do not matter, and index and training see the same vector."""
    objective = tiny("modernbert-tiny", document_layers=1, evidence_layers=2)
    batch = objective.collate(related(TARGETS, EVIDENCE))
    source = Texts(["ba de ki", "lo", "mu na po ra se ti vu wa"], small_tokenizer())
    indexed = Corpus(objective, ALONE).embed(source, np.arange(3))
    alone = np.concatenate([Corpus(objective, ALONE).embed(source, np.array([i])) for i in range(3)])
    np.testing.assert_allclose(indexed, alone, atol=1e-6)
    keys = torch.zeros(3, dtype=torch.int64)
    read = objective.collate(related(TARGETS, [row.tolist() for row in source.read(np.arange(3), keys).ids.split(source.lengths.tolist())]))
    states, vectors = objective.read(read.evidence)
    order = np.argsort(-source.lengths, kind="stable")
    np.testing.assert_allclose(vectors.detach().numpy(), indexed[order], atol=1e-5)
    assert states.shape == (len(read.evidence.ids), 128)
    assert len(batch.targets.layout.lengths) == 2


def test_without_beta_relevance_does_nothing():
    objective = tiny(beta_start=0.0)
    batch = objective.collate(related(TARGETS, EVIDENCE))
    value = objective(batch).terms["reconstruction"]
    vectors = objective.vectors
    objective.vectors = lambda texts: vectors(texts).flip(0)
    assert torch.equal(objective(batch).terms["reconstruction"], value)


@pytest.mark.parametrize("beta", ["shared", "layer", "head"])
def test_scales_start_alike_and_all_learn(beta):
    objective = tiny(beta=beta, decoder_layers=2)
    assert objective.beta.numel() == {"shared": 1, "layer": 2, "head": 4}[beta]
    value = loss(objective, related(TARGETS, EVIDENCE))
    torch.testing.assert_close(value, loss(tiny(decoder_layers=2), related(TARGETS, EVIDENCE)))
    value.backward()
    assert objective.beta.grad.all()


def test_distillation_teaches_relevance_and_nothing_else():
    """KL(p || q), by hand from full attention scores; the decoder gets no gradient of it."""
    objective = tiny(distill_attention=0.5, decoder_layers=1)
    batch = objective.collate(related(TARGETS, EVIDENCE))
    terms = objective(batch).terms
    assert batch.counts["distillation"] == 2
    objective.zero_grad()
    terms["distillation"].backward()
    assert not any(p.grad is not None and p.grad.any() for p in objective.decoder.parameters())
    assert objective.encoder.words.weight.grad.any()
    cross = objective.decoder.blocks[-1].cross
    kept = {}
    cross.q.register_forward_hook(lambda _, __, out: kept.update(q=out.detach()))
    cross.kv.register_forward_hook(lambda _, __, out: kept.update(k=out.detach()[:, :128]))
    objective(batch)
    scores = torch.einsum("thd,shd->hts", kept["q"].view(-1, 2, 64), kept["k"].view(-1, 2, 64)) / 8
    t, e = batch.written.layout.sequence, batch.evidence.layout.sequence
    means = torch.stack([torch.stack([scores[:, t == b][:, :, e == m].mean() for m in range(3)]) for b in range(2)])
    f = objective.vectors(batch.targets) @ objective.read(batch.evidence)[1].T
    p, q = means.log_softmax(1), f.log_softmax(1)
    torch.testing.assert_close(terms["distillation"], (p.exp() * (p - q)).sum(), rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ whole rounds


def corpus_of(texts: list[str], shards: np.ndarray | None = None, targets: list[str] | None = None) -> ClusterSource:
    evidence = texts_of(Texts(texts, small_tokenizer()), np.arange(len(texts)), shards=shards)
    if targets is None:
        return ClusterSource(evidence, evidence)
    return ClusterSource(texts_of(Texts(targets, small_tokenizer()), -1 - np.arange(len(targets))), evidence)


@pytest.mark.parametrize("mode", ["pairs", "knn"])
def test_a_refresh_keeps_to_budget_and_never_links_a_text_to_itself(mode):
    objective = tiny(cluster_tokens=160, mode=mode, num_evidence=1, same_links=1)
    source = arranged(objective, corpus_of(made_up_texts(40, seed=5)), seed=1)
    lengths = np.minimum(source.targets.lengths + 2, 64)
    assert len(set(source.clusters.targets.tolist())) == len(source.clusters.targets)
    t = np.split(source.clusters.targets, np.cumsum(source.clusters.target_counts)[:-1])
    e = np.split(source.clusters.evidence, np.cumsum(source.clusters.evidence_counts)[:-1])
    for some_t, some_e in zip(t, e, strict=True):
        assert lengths[some_t].sum() + lengths[some_e].sum() <= 160
        assert all(set(some_e) - {x} for x in some_t), "every target has evidence besides itself"


def test_a_document_alone_in_its_shard_is_skipped_and_counted():
    objective = tiny()
    source = corpus_of(made_up_texts(9, seed=5), shards=np.array([0] * 4 + [1] + [2] * 4))
    rows, report = objective.refresh([source], Corpus(objective, ALONE), 1, 0, wanted=100)
    assert 4 not in rows[0]["targets"]
    assert 4 not in rows[0]["evidence"]
    assert report["targets_without_links"] == 9 - len(set(rows[0]["targets"].tolist())) >= 1


def test_links_stay_inside_shards():
    objective = tiny()
    shards = np.arange(30) % 3
    source = arranged(objective, corpus_of(made_up_texts(30, seed=5), shards), seed=1)
    for c in range(len(source.clusters)):
        read = source.read(np.array([c]), torch.zeros(1, dtype=torch.int64))
        assert len({int(shards[i]) for i in (*read.target_numbers.tolist(), *read.evidence_numbers.tolist())}) == 1


def test_nothing_to_link_is_one_sentence():
    objective = tiny()
    with pytest.raises(UserError, match="none of 3 shards holds two different texts"):
        objective.refresh([corpus_of(made_up_texts(3, seed=5), np.arange(3))], Corpus(objective, ALONE), 1, 0, 100)


def test_more_targets_than_documents():
    objective = tiny(same_links=1)
    texts = made_up_texts(30, seed=5)
    source = arranged(objective, corpus_of(texts[:4], targets=texts), seed=1)
    assert max(source.clusters.targets) > 4
    assert set(source.clusters.evidence.tolist()) <= set(range(4))
    keys = torch.zeros(len(source.clusters), dtype=torch.int64)
    backward(objective, [objective.collate(source.read(np.arange(len(source.clusters)), keys))], ALONE)


def test_approximate_search_finds_what_exact_search_finds():
    pytest.importorskip("faiss")
    exact, near = (tiny(search=how, same_links=1) for how in ("exact", "hnsw"))
    source = corpus_of(made_up_texts(60, seed=5))
    reports = [objective.refresh([source], Corpus(objective, ALONE), 1, 0, 1000)[1] for objective in (exact, near)]
    assert reports[0]["link_relevance"] == pytest.approx(reports[1]["link_relevance"], abs=1e-5)
    assert reports[0]["links_per_target"] == reports[1]["links_per_target"] == 1


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("marge")
    with open(folder / "texts.jsonl", "w") as file:
        for i, text in enumerate(made_up_texts(60, seed=9)):
            file.write(json.dumps({"_id": f"{('ba', 'de')[i % 2]}/{i // 2}", "text": text}) + "\n")
    prepare([folder / "texts.jsonl"], folder / "store", tokenizer=small_tokenizer(), workers=1)
    return Store.open(folder / "store")


def test_a_store_with_languages_and_shards(store):
    objective = tiny(language_by=r"^(\w+)/", languages=("ba", "de"), shards=2, same_links=1, cross_links=1)
    source = objective.source(store, "all", 0.0, None)
    assert set(source.evidence.languages.tolist()) == {0, 1}
    assert set(source.evidence.shards.tolist()) == {0, 1}
    _, report = objective.refresh([source], Corpus(objective, ALONE), 1, 0, 1000)
    assert report["links_per_target"] == pytest.approx(1, abs=0.1)
    assert report["links_per_target_between_languages"] == pytest.approx(1, abs=0.1)


def test_held_out_targets_read_training_texts(store):
    objective = tiny(same_links=2)
    training, held_out = (objective.source(store, part, 0.2, None) for part in ("train", "valid"))
    rounds = Rounds(objective, training, held_out, 4, 10_000, 1, ALONE)
    rounds.begin()
    numbers = set(held_out.targets.numbers.tolist())
    assert numbers and not numbers & set(training.targets.numbers.tolist())
    assert set(rounds.valid.targets.numbers[rounds.valid.clusters.targets].tolist()) <= numbers
    assert not numbers & set(rounds.valid.evidence.numbers[rounds.valid.clusters.evidence].tolist())


@pytest.mark.parametrize(("config", "message"), [
    ({"shards": 1000}, r"shard \d+ of 1000 is empty"),
    ({"language_by": r"(\w+)/", "languages": ("de",)}, "is in 'ba', which is not listed"),
    ({"shard_by": "nothing"}, "objective.shard_by: 'nothing' finds no group in the document id 'ba/0'"),
])
def test_settings_that_do_not_fit_the_store(store, config, message):
    with pytest.raises(UserError, match=message):
        tiny(**config).source(store, "all", 0.0, None)


def test_settings_that_do_not_fit_the_encoder():
    with pytest.raises(UserError, match="cannot be the first of the encoder's 2"):
        tiny(document_layers=3)
    with pytest.raises(UserError, match="take at least 128"):
        tiny(cluster_tokens=100)


def test_files_of_marge_pytorch_train_at_once(tmp_path):
    """Three lines: an objective, a loop over its batches, and a refresh when wanted."""
    ids = np.random.default_rng(0).integers(5, 440, (12, 10)).astype("<i4")
    ids.tofile(tmp_path / "documents.dat")
    objective = tiny(same_links=1)
    rounds = Rounds(objective, memmap_source(MemmapDocuments(tmp_path / "documents.dat", (12, 10))), batch_size=2)
    for step, batch in zip(range(5), rounds):
        (objective(batch).terms["reconstruction"] / batch.counts["reconstruction"]).backward()
        if step == 2:
            rounds.refresh()
    assert rounds.first == 3
    assert objective.beta.grad.all()


def test_export_is_the_document_encoder_and_the_rest_comes_back(tmp_path):
    from foretext.interop.export import export
    from foretext.model.folder import Heads, locate, read_heads
    from foretext.model.huggingface import load_encoder
    from foretext.retrieval.embed import TextEncoder

    torch.manual_seed(0)
    encoder = Encoder(preset("bert-tiny", small_tokenizer().size, max_len=64, layers=3))
    objective = MARGE(encoder, small_tokenizer(), MARGE.Config(document_layers=2)).eval()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model = TextEncoder(objective.encoder, objective.tokenizer, objective.pooling, objective.normalize)
    export(model, tmp_path / "export", heads=Heads("marge", objective.config.model_dump(mode="json"), objective.heads()))
    heads = read_heads(locate(tmp_path / "export"))
    again = MARGE(load_encoder(tmp_path / "export"), small_tokenizer(), MARGE.Config(**heads.options)).eval()
    assert len(again.encoder.blocks) == 2
    again.load_state_dict({name: tensor for name, tensor in heads.tensors.items()}, strict=False)
    examples = related(TARGETS, EVIDENCE)
    torch.testing.assert_close(loss(again, examples), loss(objective, examples), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_generates_from_evidence_what_it_learned(beams):
    """One cluster learned by heart comes back from its evidence, in either order."""
    objective = tiny(decoder_layers=1)
    batch = objective.collate(related([TARGETS[0]], EVIDENCE[:2]))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        objective(batch).terms["reconstruction"].backward()
        optimizer.step()
    for order in ([0, 1], [1, 0]):
        prompts = [torch.tensor(EVIDENCE[i]) for i in order]
        made, = objective.generate(prompts, GenerationConfig(beams=beams))
        assert made.tolist() == TARGETS[0]


def test_show_names_the_evidence():
    objective = make_objective("marge")
    source = related_texts(made_up_texts(4, seed=2))
    shown = objective.show(objective.collate(source.read(np.array([0]), torch.zeros(1, dtype=torch.int64))))
    titles = [item.title for item in shown if hasattr(item, "title")]
    assert sum(title.startswith("evidence") for title in titles) == 4
    assert sum("itself: hidden" in title for title in titles) == 2
