"""Links and clusters: a worked example, and properties over random shards."""

import numpy as np
import pytest
import torch

from foretext.errors import UserError
from foretext.text import evidence as module
from foretext.text.clusters import ClusterSource
from foretext.text.evidence import Links, Side, best_pairs, key_numbers, make_clusters, may_link, nearest_pairs, one_cluster_each
from foretext.text.memmap import MemmapDocuments, memmap_source

EXAMPLE = {(0, 1): 0.9, (0, 2): 0.1, (0, 3): 0.8, (1, 0): 0.9, (1, 2): 0.2, (1, 3): 0.3, (2, 0): 0.1, (2, 1): 0.2, (2, 3): 0.15}


def example_vectors() -> tuple[np.ndarray, np.ndarray]:
    """Targets 0..2 and evidence 0..3 whose products are the example's (a text's product with itself is the highest)."""
    scores = np.ones((3, 4), np.float32)
    for (t, e), score in EXAMPLE.items():
        scores[t, e] = score
    return scores, np.eye(4, dtype=np.float32)


def sides(targets: int = 3, evidence: int = 4, languages=(0, 0, 0, 1)) -> tuple[Side, Side]:
    languages = np.resize(np.array(languages), max(targets, evidence))
    return tuple(Side(np.arange(n), languages[:n]) for n in (targets, evidence))


def random_shard(seed: int, targets: int = 40, evidence: int = 40):
    draw = np.random.default_rng(seed)
    t, e = (draw.normal(size=(n, 6)).astype(np.float32) for n in (targets, evidence))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (t, e)]
    return *unit, *sides(targets, evidence, draw.integers(0, 3, max(targets, evidence)))


def test_worked_example_keeps_the_best_pairs_of_the_shard():
    links = best_pairs(*example_vectors(), may_link(*sides()), 3)
    assert list(zip(links.targets.tolist(), links.evidence.tolist())) == [(0, 1), (1, 0), (0, 3)]
    each = nearest_pairs(*example_vectors(), may_link(*sides()), 1)
    assert list(zip(each.targets.tolist(), each.evidence.tolist())) == [(0, 1), (1, 0), (2, 1)]


def test_worked_example_of_clusters():
    links = best_pairs(*example_vectors(), may_link(*sides()), 3)
    across = links.evidence == 3
    ties = np.array([0.5, 0.6, 0.7, 0.1, 0.2, 0.3, 0.4])  # seed 3 comes first
    made = make_clusters(links, across, np.full(3, 5), np.full(4, 5), 20, ties)
    assert made.targets.tolist() == [0, 1]
    assert made.evidence.tolist() == [3, 1, 0]
    assert made.evidence_counts.tolist() == [2, 1]


@pytest.mark.parametrize("across", [None, True, False])
@pytest.mark.parametrize("block", [1 << 24, 200])
def test_kept_pairs_are_exactly_the_best_allowed(across, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_SCORES", block)
    targets, evidence, one, other = random_shard(3)
    evidence[7] = evidence[5]  # ties
    keeps = may_link(one, other, across)
    scores = targets @ evidence.T
    pairs = sorted((-scores[t, e], t, e) for t in range(40) for e in range(40)
                   if t != e and (across is None or (one.languages[t] != other.languages[e]) == across))
    links = best_pairs(targets, evidence, keeps, 60)
    assert list(zip(links.targets.tolist(), links.evidence.tolist())) == [(t, e) for _, t, e in pairs[:60]]
    each = nearest_pairs(targets, evidence, keeps, 2)
    for t in range(40):
        assert each.evidence[each.targets == t].tolist() == [e for _, x, e in pairs if x == t][:2]


def test_fewer_pairs_than_wanted_and_nobody_to_link():
    targets, evidence, one, other = random_shard(1, 3, 3)
    assert len(best_pairs(targets, evidence, may_link(one, other), 100)) == 6
    alone = best_pairs(targets[:1], evidence[:1], may_link(Side(one.numbers[:1], one.languages[:1]), other), 4)
    assert len(alone) == 0
    assert len(one_cluster_each(alone)) == 0


@pytest.mark.parametrize("seed", range(6))
def test_clusters_hold_every_linked_target_once_within_the_budget(seed):
    targets, evidence, one, other = random_shard(seed, 40, 25 if seed % 2 else 40)
    links = best_pairs(targets, evidence, may_link(one, other), 80)
    draw = np.random.default_rng(seed)
    target_tokens, evidence_tokens = draw.integers(5, 20, len(targets)), draw.integers(5, 20, len(evidence))
    across = one.languages[links.targets] != other.languages[links.evidence]
    made = make_clusters(links, across, target_tokens, evidence_tokens, 50, draw.random(len(targets) + len(evidence)))
    assert sorted(made.targets.tolist()) == sorted(set(links.targets.tolist()))
    linked = set(zip(links.targets.tolist(), links.evidence.tolist()))
    t = np.split(made.targets, np.cumsum(made.target_counts)[:-1])
    e = np.split(made.evidence, np.cumsum(made.evidence_counts)[:-1])
    for some_t, some_e in zip(t, e, strict=True):
        assert target_tokens[some_t].sum() + evidence_tokens[some_e].sum() <= 50
        assert all(any((x, y) in linked for y in some_e) for x in some_t)
        assert all(any((x, y) in linked for x in some_t) for y in some_e)


def test_one_evidence_text_for_many_targets():
    """A hub returns to the queue until all its targets are used."""
    links = Links(np.arange(30), np.zeros(30, np.int64), np.ones(30, np.float32))
    made = make_clusters(links, np.zeros(30, bool), np.full(30, 10), np.full(1, 10), 40, np.linspace(0, 1, 31))
    assert made.target_counts.tolist() == [3] * 10
    assert made.evidence.tolist() == [0] * 10


def test_keys_are_the_same_everywhere():
    assert key_numbers(["a", "ä"]).tolist() == [3904355907, 1890972035]


# ------------------------------------------------------------------------------------------------------------------- memmap


@pytest.fixture
def files(tmp_path):
    ids = np.arange(1, 25, dtype="<i4").reshape(6, 4)
    mask = np.ones((6, 4), bool)
    mask[2, 2:] = False
    ids.tofile(tmp_path / "documents.dat")
    mask.tofile(tmp_path / "mask.dat")
    return tmp_path


def test_memmap_reads_real_tokens(files):
    documents = MemmapDocuments(files / "documents.dat", (6, 4), files / "mask.dat")
    read = documents.read(np.array([2, 0]), torch.zeros(2, dtype=torch.int64))
    assert read.ids.tolist() == [9, 10, 1, 2, 3, 4]
    assert read.lengths.tolist() == [2, 4]


def test_memmap_of_another_size(files):
    with pytest.raises(UserError, match=r"memmap_size: expected 112 bytes for 7 rows of 4, found 96"):
        MemmapDocuments(files / "documents.dat", (7, 4))


@pytest.mark.parametrize("rows", [2, 6])  # marge-pytorch allocates a row for every document
def test_neighbours_of_a_file(files, rows):
    knn = np.full((rows, 2), -1, "<i4")
    knn[:2] = [[3, -1], [0, 1]]
    knn.tofile(files / "documents.dat.knn")
    documents = MemmapDocuments(files / "documents.dat", (6, 4))
    targets = MemmapDocuments(files / "documents.dat", (2, 12))
    source = memmap_source(documents, targets, files / "documents.dat.knn", 2)
    assert source.clusters.evidence.tolist() == [3, 0, 1]
    assert source.clusters.evidence_counts.tolist() == [1, 2]
    read = source.read(np.array([1]), torch.zeros(1, dtype=torch.int64))
    assert read.evidence.ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_neighbour_that_does_not_exist(files):
    np.full((6, 2), 6, "<i4").tofile(files / "knn")
    with pytest.raises(UserError, match="row 0 names document 6, but there are 6"):
        memmap_source(MemmapDocuments(files / "documents.dat", (6, 4)), None, files / "knn", 2)


def test_a_document_is_no_neighbour_of_itself(files):
    np.array([[i, (i + 1) % 6] for i in range(6)], "<i4").tofile(files / "knn")
    source = memmap_source(MemmapDocuments(files / "documents.dat", (6, 4)), None, files / "knn", 2)
    assert isinstance(source, ClusterSource)
    assert source.clusters.evidence.tolist() == [1, 2, 3, 4, 5, 0]
