"""Exact search against plain sorting; fusion against arithmetic."""

import json

import numpy as np
import pytest
import torch

from foretext.errors import UserError
from foretext.retrieval import scan
from foretext.retrieval import search as module
from foretext.retrieval.best import Best, keys_of, scores_of
from foretext.retrieval.fusion import fuse
from foretext.retrieval.limits import sampled
from foretext.retrieval.rescore import rescored
from foretext.retrieval.rounded import RoundedScan
from foretext.retrieval.search import ExactSearch, search
from foretext.retrieval.vectors import open_vectors


def by_sorting(queries, vectors, k, cosine=False):
    """The slow, obvious way, in double precision."""
    q, v = queries.astype(np.float64), vectors.astype(np.float64)
    scores = (q[:, None, :] * v[None, :, :]).sum(axis=-1)
    if cosine:
        lengths = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(v, axis=1)[None, :]
        scores = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
    scores = scores.astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((70, 24), dtype=np.float32), rng.standard_normal((3000, 24), dtype=np.float32)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("k, block_rows", [(1, 32_768), (10, 700), (10, 1), (100, 64), (100, 999), (2999, 500), (5000, 1024)])
def test_equals_sorting(data, k, block_rows, similarity):
    queries, vectors = data
    if block_rows == 1:
        queries, vectors = queries[:3], vectors[:200]
    scores, indices = search(queries, vectors, k, similarity, block_rows=block_rows)
    expected_scores, expected = by_sorting(queries, vectors, k, similarity == "cosine")
    assert scores.dtype == np.float32 and indices.dtype == np.int64 and scores.shape == (len(queries), min(k, len(vectors)))
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("order", ["rising", "falling"])
def test_blocks_that_all_beat_or_never_beat_the_ones_before(order):
    vectors = np.linspace(-1, 1, 5000, dtype=np.float32)[:, None]
    vectors = vectors if order == "rising" else vectors[::-1].copy()
    scores, indices = search(np.array([[1.0], [-1.0]]), vectors, 5, block_rows=300)
    first = indices[0] if order == "falling" else indices[1]
    assert first.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(by_sorting(np.array([[1.0], [-1.0]], np.float32), vectors, 5)[1], indices)


def test_ties_go_to_the_lower_number_whatever_the_blocks(data):
    queries, vectors = data
    copies = np.concatenate([vectors[:500]] * 4)  # number i, i + 500, i + 1000, i + 1500 are equal
    results = [search(queries, copies, 10, block_rows=rows) for rows in (64, 333, 500, 2000)]
    for scores, indices in results:
        np.testing.assert_array_equal(indices, results[0][1])
        np.testing.assert_array_equal(scores, results[0][0])
    best = by_sorting(queries, vectors[:500], 3)[1]
    expected = [[place + 500 * copy for place in row for copy in range(4)][:10] for row in best.tolist()]
    np.testing.assert_array_equal(results[0][1], expected)


def test_all_equal_vectors():
    scores, indices = search(np.ones((2, 3)), np.ones((1000, 3), np.float32), 20, block_rows=100)
    assert indices.tolist() == [list(range(20))] * 2 and (scores == 3).all()


def test_shards_memmaps_and_half_precision(tmp_path, data):
    queries, vectors = data
    whole = search(queries, vectors, 20)
    pieces = []
    for i, part in enumerate(np.split(vectors, [7, 7, 1500])):  # one of them empty
        np.save(tmp_path / f"vectors-{i}.npy", part)
        pieces.append(np.load(tmp_path / f"vectors-{i}.npy", mmap_mode="r"))
    for rows in (1000, 128, 32_768):
        for ours, expected in zip(search(queries[:3], pieces, 20, block_rows=rows), whole):
            np.testing.assert_array_equal(ours, expected[:3])
    halves = vectors.astype(np.float16)
    np.testing.assert_array_equal(search(queries, halves, 20)[1], by_sorting(queries, halves, 20)[1])


def test_full_precision_also_where_training_allowed_less(data):
    queries, vectors = data
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        seen = []
        original = scan.margins
        scan.margins = lambda *args: (seen.append(torch.get_float32_matmul_precision()), original(*args))[1]
        search(queries, vectors, 5)
        assert seen and set(seen) == {"highest"} and torch.get_float32_matmul_precision() == "medium"
    finally:
        scan.margins = original
        torch.set_float32_matmul_precision(before)


@pytest.fixture(params=[1, 3])
def lanes(request, monkeypatch):
    """Parts of the rows that are read at the same time."""
    monkeypatch.setattr(module, "LANE_PRODUCTS", 500)
    monkeypatch.setattr(module, "PART_ROWS", 300)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("make", [lambda queries: scan.Scan(queries, 40), lambda queries: RoundedScan(queries, 10)])
def test_scans_of_parts_join_to_that_of_all(data, make):
    queries, vectors = map(torch.from_numpy, data)
    whole, first, second = make(queries), make(queries), make(queries)
    whole.add(vectors, 0)
    for start in (0, 1000):
        first.add(vectors[start : start + 500], start)
        second.add(vectors[start + 500 : start + 1000], start + 500)
    rest = vectors[2000:]
    second.add(rest, 2000)
    for some in (whole, first, second):
        some.settle()
    first.join(second)
    found, expected = (x.of_all("numbers") for x in (first, whole))
    nearest = by_sorting(*data, 10)[1]
    for row, near in zip(found.tolist(), nearest.tolist()):
        assert set(near) <= set(row)
    if type(whole) is scan.Scan:
        assert torch.equal(found.sort(1).values, expected.sort(1).values)


def test_lanes_are_joined(data, lanes, monkeypatch):
    queries, vectors = data
    scans, twin = [], scan.Scan.twin
    monkeypatch.setattr(scan.Scan, "twin", lambda self: (scans.append(twin(self)), scans[-1])[1])
    found = search(queries, [vectors[:700], vectors[700:]], 40, rounded=False)[1]
    np.testing.assert_array_equal(found, by_sorting(queries, vectors, 40)[1])
    assert 1 <= len(scans) <= lanes
    faulty = vectors.copy()
    faulty[1234, 5] = np.nan
    with pytest.raises(UserError, match="number 1234 is not finite"):
        search(queries, faulty, 40, rounded=False)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("scale, shift", [(1, 0), (1, 3), (1e-3, 0.01), (100, 0)])
def test_rounded_products_find_the_same(data, monkeypatch, lanes, similarity, scale, shift):
    """Copies tie; a shift makes vectors so much alike that rounding hides who is nearer: then fp32 decides."""
    monkeypatch.setattr("foretext.retrieval.rounded.ROWS", 300)
    queries, vectors = (scale * part + np.float32(scale * shift) for part in data)
    vectors = np.concatenate([vectors, vectors[:700]])
    for k in (1, 10, 60):
        expected_scores, expected = by_sorting(queries, vectors, k, similarity == "cosine")
        for block_rows in (1000, 32_768):
            for rounded in (True, False):
                scores, indices = search(queries, vectors, k, similarity, block_rows=block_rows, rounded=rounded)
                np.testing.assert_array_equal(indices, expected)
                np.testing.assert_array_equal(scores, expected_scores)


def test_rounded_products_are_certain_of_most_and_leave_the_rest_to_fp32(data, scans):
    queries, vectors = data[0], data[1].copy()
    vectors[2000:2300] = queries[3] + np.linspace(0, 1e-3, 300, dtype=np.float32)[:, None]  # 300 that 8 bits cannot tell apart
    scores, indices = search(queries, vectors, 10, block_rows=1000, rounded=True)
    assert len(scans) == 2 and scans[0] == len(queries) and 1 <= scans[1] < len(queries) // 2
    np.testing.assert_array_equal(indices, search(queries, vectors, 10, rounded=False)[1])


def test_rounded_products_of_little_or_worthless_vectors(data):
    queries, vectors = data
    far = -np.abs(vectors)  # no product is positive
    for some, k in ((far, 5), (vectors[:30], 10), (vectors[:30], 40), (np.ones((500, 24), np.float32), 5)):
        np.testing.assert_array_equal(search(np.abs(queries), some, k, rounded=True)[1], search(np.abs(queries), some, k, rounded=False)[1])
    vectors = vectors.copy()
    vectors[1234, 5] = np.nan
    with pytest.raises(UserError, match="document number 1234 is not finite"):
        search(queries, vectors, 10, rounded=True)


def test_zero_vectors_have_cosine_zero():
    vectors = np.array([[0, 0], [-1, 0], [1, 0]], np.float32)
    scores, indices = search(np.array([[2.0, 0], [0, 0]]), vectors, 3, "cosine")
    assert indices.tolist() == [[2, 0, 1], [0, 1, 2]] and scores.tolist() == [[1, 0, -1], [0, 0, 0]]


def test_no_queries(data):
    scores, indices = search(np.empty((0, 24), np.float32), data[1], 7)
    assert scores.shape == indices.shape == (0, 7)


@pytest.mark.parametrize("queries, vectors, options, message", [
    (np.ones((1, 3)), np.ones((4, 2)), {}, r"queries of shape \(1, 3\) do not fit vectors of 2 dimensions"),
    (np.ones((1, 2)), np.ones((0, 2)), {}, "there are no vectors"),
    (np.ones((1, 2)), [], {}, "expected arrays of rows"),
    (np.ones((1, 2)), [np.ones((1, 2)), np.ones((1, 3))], {}, "same number of dimensions"),
    (np.array([[1, 2], [np.nan, 0]]), np.ones((4, 2)), {}, "query number 1 is not finite"),
    (np.ones((1, 2)), np.array([[1, 2], [3, 4], [np.inf, 0]]), {"block_rows": 2}, "document number 2 is not finite"),
    (np.zeros((1, 2)), np.array([[1, 2], [3, np.nan]]), {}, "document number 1 is not finite"),
    (np.ones((1, 2)), np.ones((4, 2)), {"similarity": "l2"}, "expected dot or cosine, found 'l2'"),
    (np.ones((1, 2)), np.ones((4, 2)), {"k": 0}, "expected at least 1"),
])
def test_wrong_input(queries, vectors, options, message):
    with pytest.raises(UserError, match=message):
        search(queries, vectors, **{"k": 2, **options})


def folder_of_vectors(folder, ids=(("a", "b"), ("c",)), manifest=None):
    rng = np.random.default_rng(0)
    for i, names in enumerate(ids):
        np.save(folder / f"vectors-{i}.npy", rng.standard_normal((len(names), 4), dtype=np.float32))
        (folder / f"ids-{i}.txt").write_bytes("".join(f"{name}\n" for name in names).encode())
    if manifest:
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_open_vectors(tmp_path):
    vectors = open_vectors(folder_of_vectors(tmp_path, ids=(("a", "b\u2028"), ("c\r",))))
    assert vectors.ids == ["a", "b\u2028", "c\r"] and vectors.manifest == {}
    assert [type(shard) for shard in vectors.shards] == [np.memmap, np.memmap]
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": 1, "counts": {"0": 2}}))
    assert open_vectors(tmp_path).ids == ["a", "b\u2028"]  # what the manifest does not list is left over from before


def test_open_vectors_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(UserError, match=r"found no vectors-\*\.npy"):
        open_vectors(tmp_path)
    folder_of_vectors(tmp_path)
    (tmp_path / "ids-1.txt").write_text("c\nd\n")
    with pytest.raises(UserError, match=r"ids-1\.txt: expected 1 ids .* found 2"):
        open_vectors(tmp_path)
    (tmp_path / "ids-1.txt").unlink()
    with pytest.raises(UserError, match=r"ids-1\.txt, is missing"):
        open_vectors(tmp_path)
    for manifest, message in [({"shards": 3, "counts": {"0": 2}}, "only 1 of 3 shards"), ({"counts": {"7": 2}}, "lists this shard")]:
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=message):
            open_vectors(tmp_path)


def test_fusion_by_hand():
    one = {"q": {"a": 9.0, "b": 8.0, "c": 7.0}}
    two = {"q": {"c": 0.3, "a": 0.2}, "p": {"x": 1.0}}
    fused = fuse([one, two])
    assert list(fused["q"]) == ["a", "c", "b"]
    assert fused["q"] == pytest.approx({"a": 1 / 61 + 1 / 62, "c": 1 / 63 + 1 / 61, "b": 1 / 62}, rel=1e-8)
    assert fused["p"] == pytest.approx({"x": 1 / 61})
    assert fuse([one, two], k=0)["q"]["a"] == 1.5
    assert list(fuse([one, two], depth=1)["q"]) == ["a"]
    assert fuse([one, two]) == fuse([two, one])
    assert all(float(f"{score:.9g}") == score for score in fused["q"].values())  # the same from a run file


# ---------------------------------------------------------------------------------------------------------- rounding, keys


@pytest.mark.parametrize("rising", [True, False])
def test_rounded_products_of_vectors_of_very_different_lengths(data, rising, lanes, monkeypatch):
    """A bound that holds for the rows so far does not hold for longer ones."""
    monkeypatch.setattr("foretext.retrieval.rounded.ROWS", 300)
    queries, vectors = data
    lengths = np.geomspace(0.05, 50, len(vectors), dtype=np.float32)[:, None]
    vectors = vectors * (lengths if rising else lengths[::-1])
    for k in (1, 10):
        np.testing.assert_array_equal(search(queries, vectors, k, block_rows=1000, rounded=True)[1], by_sorting(queries, vectors, k)[1])


def test_a_longer_row_is_held_to_its_own_bound():
    """Its product is rounded below what shorter rows leave to be looked at."""
    rng = np.random.default_rng(0)
    query = np.full((1, 64), 1 / 8, np.float32)
    across = rng.standard_normal(64).astype(np.float32)
    across -= across.mean()
    vectors = np.tile(-0.5 * query, (6000, 1))
    vectors[3] = query
    vectors[5000] = 1.005 * query + across * 60 / np.linalg.norm(across)
    assert search(query, vectors, 1, rounded=True)[1].tolist() == search(query, vectors, 1, rounded=False)[1].tolist()


def test_rounding_may_take_a_whole_half_step_off_every_number():
    """To whole numbers, as the highest is 127: the nearest loses every half, another gains as many."""
    vectors = np.full((400, 257), 0.1, np.float32)
    vectors[:, 0] = 127
    vectors[5, 1:] = 0.5  # 0
    vectors[9, 1::2], vectors[9, 2::2] = 0.501, 0.49  # 1 and 0
    assert search(np.ones((1, 257), np.float32), vectors, 1, rounded=True)[1].tolist() == [[5]]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_rounded_products_of_few_dimensions(dimensions, lanes):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        vectors = -np.abs(rng.standard_normal((5003, dimensions), dtype=np.float32))
        queries = np.abs(rng.standard_normal((257, dimensions), dtype=np.float32))
        np.testing.assert_array_equal(search(queries, vectors, 1, rounded=True)[1], by_sorting(queries, vectors, 1)[1])


def test_rounded_products_of_more_dimensions_than_can_be_added_up():
    vectors = np.random.default_rng(0).choice(np.float32([-1, 1]), (300, 140_000))
    vectors[[7, 8, 9]] = 1
    vectors[9, :20_000] = vectors[8, -18_000:] = -1
    assert search(np.ones((2, 140_000), np.float32), vectors, 2, rounded=True)[1].tolist() == [[7, 8]] * 2


@pytest.mark.parametrize("of_queries, of_vectors", [(1e9, 1e9), (1e12, 1e8), (1e-12, 1e-12), (1, 1e-22)])
def test_rounded_cosines_of_very_long_and_short_vectors(data, of_queries, of_vectors):
    queries, vectors = data[0] * np.float32(of_queries), data[1] * np.float32(of_vectors)
    found = [search(queries, vectors, 10, "cosine", rounded=rounded)[1] for rounded in (True, False)]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("rounded", [True, False])
def test_more_queries_than_are_multiplied_at_once(rounded):
    rng = np.random.default_rng(1)
    queries, vectors = rng.standard_normal((300, 16), dtype=np.float32), rng.standard_normal((7000, 16), dtype=np.float32)
    np.testing.assert_array_equal(search(queries, vectors, 7, rounded=rounded)[1], by_sorting(queries, vectors, 7)[1])
    np.testing.assert_array_equal(search(queries[:1], vectors, 7, block_rows=5, rounded=rounded)[1], by_sorting(queries[:1], vectors, 7)[1])
    vectors[6500, 3] = np.inf
    with pytest.raises(UserError, match="document number 6500 is not finite"):
        search(queries, vectors, 7, rounded=rounded)


def test_keys_are_in_the_order_of_scores_then_of_falling_numbers():
    scores = torch.tensor([-torch.inf, -3.5, -1e-40, -0.0, 0.0, 1e-40, 2.25, torch.inf])
    keys = keys_of(scores, torch.tensor([2**32 - 1, 7, 5, 4, 3, 2, 1, 0]))
    assert (keys.diff() > 0).all() and scores_of(keys).tolist() == scores.tolist()
    best = Best(1, 8)
    best.keys = keys[None]
    assert best.numbers.tolist() == [[-1, 7, 5, 4, 3, 2, 1, 0]]  # the lowest key is that of an empty place


def test_rescored_leaves_empty_places_to_the_end(data):
    queries, vectors = data
    candidates = np.array([[5, -1, 9, -1], [-1, -1, -1, 2]])
    for shards in ([vectors], [vectors[:6], vectors[6:]]):
        scores, numbers = rescored(queries[:2], shards, candidates, 3, "dot")
        assert sorted(numbers[0, :2].tolist()) == [5, 9] and numbers[0, 2] == -1 and numbers[1].tolist() == [2, -1, -1]
        assert np.isneginf(scores[numbers < 0]).all() and np.isfinite(scores[numbers >= 0]).all()


# ---------------------------------------------------------------------------------------------------------- likely limits, held vectors


@pytest.fixture(scope="module")
def many():
    """So many vectors that a sample of them is looked at first."""
    rng = np.random.default_rng(2)
    return rng.standard_normal((90, 24), dtype=np.float32), rng.standard_normal((40_000, 24), dtype=np.float32)


@pytest.fixture
def scans(monkeypatch):
    """How many queries each scan is for."""
    seen = []
    scanned = ExactSearch._scanned

    def counted(self, scan, show):
        seen.append(len(scan))
        return scanned(self, scan, show)

    monkeypatch.setattr(ExactSearch, "_scanned", counted)
    return seen


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("k", [1, 10, 60])
def test_likely_limits_lose_nothing(many, scans, similarity, rounded, k):
    queries, vectors = many
    expected_scores, expected = by_sorting(queries[:40], vectors, k, similarity == "cosine")
    scores, indices = search(queries[:40], vectors, k, similarity, rounded=rounded)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(scores, expected_scores)
    assert scans[0] == 40 and sum(scans[1:]) <= 4


def test_a_sample_that_misleads_costs_a_second_scan(many, scans):
    """All documents that are near a query are in the sample, where they stand for ten times as many."""
    queries, vectors = many[0][:20], many[1].copy()
    vectors[sampled(len(vectors))[:30]] += 3 * queries[0]
    np.testing.assert_array_equal(search(queries, vectors, 50, rounded=False)[1], by_sorting(queries, vectors, 50)[1])
    assert scans[0] == 20 and 1 <= scans[1] < 20 and len(scans) == 2
    np.testing.assert_array_equal(search(queries, vectors, 50, rounded=True)[1], by_sorting(queries, vectors, 50)[1])


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("order", ["rising", "falling"])
def test_limits_of_rows_in_order(many, order, rounded):
    queries = many[0][:20]
    vectors = many[1][np.argsort((many[1] @ queries[0]) * (1 if order == "rising" else -1))]
    np.testing.assert_array_equal(search(queries, vectors, 20, rounded=rounded)[1], by_sorting(queries, vectors, 20)[1])


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [5, 31_111])
def test_a_faulty_row_is_named_whether_it_is_in_the_sample_or_not(many, fault, row, rounded, lanes):
    assert (5 in sampled(40_000)) and (31_111 not in sampled(40_000))
    vectors = many[1].copy()
    vectors[row, 7] = fault
    for queries in (many[0][:1], many[0]):
        with pytest.raises(UserError, match=f"document number {row} is not finite"):
            search(queries, vectors, 10, rounded=rounded)
    vectors[sampled(40_000)] = fault
    with pytest.raises(UserError, match=f"document number {min(row, 0)} is not finite"):
        search(many[0], vectors, 10, rounded=rounded)


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="only where a CPU multiplies 8 bits are vectors held")
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_held_vectors_find_the_same(many, lanes, similarity, monkeypatch):
    queries, vectors = many
    held = ExactSearch([vectors[:7], vectors[7:30_000], vectors[30_000:]], similarity, hold=True)
    assert held.held.codes.shape == vectors.shape and held.held.codes.dtype == torch.int8
    monkeypatch.setattr(module, "blocks", None)  # what is held is not read again
    for some in (queries[:1], queries[:30], queries):
        scores, indices = held.search(some, 20)
        expected_scores, expected = by_sorting(some, vectors, 20, similarity == "cosine")
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(scores, expected_scores)


def test_margins_are_counted_in_words_of_any_size():
    """Seven queries by thirteen rows: a word holds one."""
    rng = np.random.default_rng(4)
    queries, vectors = rng.standard_normal((7, 5), dtype=np.float32), rng.standard_normal((1300, 5), dtype=np.float32)
    for block_rows in (13, 16, 20):
        found = search(queries, vectors, 4, block_rows=block_rows, rounded=False)[1]
        np.testing.assert_array_equal(found, by_sorting(queries, vectors, 4)[1])


def _deep_below(rng):
    """The first rows are so far below zero that a small product beside them is lost."""
    vectors = np.zeros((4096, 4), np.float32)
    vectors[:2048, 0], vectors[2048:, 0] = -1e8, rng.random(2048)
    return np.eye(1, 4, dtype=np.float32).repeat(200, 0), vectors


def _sampled_below(rng):
    vectors = np.zeros((40_000, 4), np.float32)
    vectors[:, 0] = rng.random(40_000)
    vectors[sampled(40_000), 0] = -1e8
    return np.eye(1, 4, dtype=np.float32).repeat(20, 0), vectors


def _overflow_of_a_difference(rng):
    vectors = np.full((4000, 1), -2e38, np.float32)
    vectors[2000:] = 2e38
    return np.ones((1, 1), np.float32), vectors


def _lanes_of_different_depth(rng):
    vectors = np.zeros((16_384, 2), np.float32)
    vectors[:8192, 0] = -rng.random(8192) - 5
    vectors[10, 0], vectors[8192:10_240, 0], vectors[10_240:12_288, 0] = 0.5, -1000, rng.random(2048) * 2 - 1
    vectors[12_288:, 0] = -1
    return np.float32([[1, 0]]).repeat(150, 0), vectors


def _far_from_one(rows, queries):
    """Squares of such numbers are no fp32 numbers; the products are."""
    def made(rng):
        base, other = rng.standard_normal((2, 64))
        other -= other @ base / (base @ base) * base
        vectors, asked = other + 3e-3 * rng.standard_normal((5000, 64)), base + 0.01 * rng.standard_normal((8, 64))
        return (asked * queries).astype(np.float32), (vectors * rows).astype(np.float32)
    return made


def _a_query_whose_length_overflows(rng):
    vectors = np.zeros((9000, 4), np.float32)
    vectors[4500:] = 1e-5 * rng.random((4500, 4))
    return np.full((1, 4), 2e19, np.float32), vectors


def _backwards(rng):
    return rng.standard_normal((3, 8), dtype=np.float32), rng.standard_normal((3000, 8), dtype=np.float32)[::-1]


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("made", [
    _deep_below, _sampled_below, _overflow_of_a_difference, _lanes_of_different_depth, _far_from_one(1e20, 1e-5),
    _far_from_one(1e-25, 1e10), _far_from_one(1e10, 1e-25), _a_query_whose_length_overflows, _backwards])
def test_exact_whatever_the_numbers(made, rounded, lanes):
    for seed in range(3):
        queries, vectors = made(np.random.default_rng(seed))
        for k in (1, 5):
            found = search(queries, vectors, k, rounded=rounded)
            expected = by_sorting(queries[:1] if (queries == queries[0]).all() else queries, vectors, k)
            for ours, true in zip(found, expected):
                np.testing.assert_array_equal(ours, np.broadcast_to(true, ours.shape))

