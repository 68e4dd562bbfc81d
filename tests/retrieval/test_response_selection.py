"""Response selection: ranks by hand, ties and copies, batches, and the baselines."""

import numpy as np
import pytest

from foretext.errors import UserError
from foretext.retrieval.response_selection import (
    MeanEmbeddings,
    bm25_scorer,
    different_responses,
    reads_earlier_turns,
    select,
    table,
    vector_scorer,
    write,
)
from foretext.text.dialogues import Example
from tests.conftest import made_up_texts


class Toy:
    """Vectors by name; earlier turns, where they are read, add theirs."""

    similarity = "dot"

    def __init__(self, vectors: dict[str, list[float]]):
        self.vectors = vectors

    def encode(self, texts, kind):
        return np.array([self.vectors[text] for text in texts], np.float32)


class Reader(Toy):
    def encode_contexts(self, contexts, earlier):
        return self.encode(contexts, "query") + np.array([self.vectors[turns] for turns in earlier], np.float32)


def examples(*pairs: tuple[str, str], earlier: tuple[str, ...] = ()) -> list[Example]:
    return [Example(context, response, earlier, f"t{i}") for i, (context, response) in enumerate(pairs)]


def test_ranks_by_hand():
    """Three candidates. a: 1 against 2 and 0, rank 2. b: 5 against 0 and -1, rank 1. c: -1 against 1 and 7, rank 3."""
    pairs = examples(("a", "A"), ("b", "B"), ("c", "C"))
    model = Toy({"a": [1, 0], "b": [0, 1], "c": [1, 1], "A": [1, 0], "B": [2, 5], "C": [0, -1]})
    found = select("toy", vector_scorer(model, pairs), pairs, 3)
    assert found.among.values["Recall@1"].tolist() == [0, 1, 0] and found.among.values["Recall@5"].tolist() == [1, 1, 1]
    assert np.allclose(found.among.values["MRR"], [1 / 2, 1, 1 / 3]) and found.left_out == 0
    assert found.full.values["Recall@1"].tolist() == [0, 1, 0] and found.responses == 3


def test_equal_scores_are_averaged_over_their_orders():
    """A model that scores everything alike is right once in n times, and its mean reciprocal rank is that of a random order."""
    pairs = examples(*((f"c{i}", f"r{i}") for i in range(20)))
    found = select("nothing", lambda rows: np.zeros((len(rows), 20)), pairs, 20)
    assert np.allclose(found.among.values["Recall@1"], 1 / 20) and np.allclose(found.among.values["Recall@5"], 5 / 20)
    assert np.allclose(found.among.values["MRR"], np.mean(1 / np.arange(1, 21)))
    better = np.zeros((20, 20))
    better[:, :3] = 1  # three rivals before the true one, but for the first three, who share the top
    found = select("something", lambda rows: better[rows], pairs, 20)
    assert np.allclose(found.among.values["Recall@1"][:3], 1 / 3) and not found.among.values["Recall@1"][3:].any()
    assert np.allclose(found.among.values["Recall@5"][3:], 2 / 17)


def test_a_copy_of_the_true_response_is_no_rival():
    pairs = examples(("a", "thanks"), ("b", "thanks"), ("c", "no"))
    assert different_responses(pairs) == ["thanks", "no"]
    model = Toy({"a": [1, 0], "b": [1, 0], "c": [1, 0], "thanks": [1, 0], "no": [0.5, 0]})
    found = select("toy", vector_scorer(model, pairs), pairs, 3)
    assert found.among.values["Recall@1"].tolist() == [1, 1, 0] and np.allclose(found.among.values["MRR"], [1, 1, 1 / 3])
    assert found.responses == 2 and found.full.values["Recall@1"].tolist() == [1, 1, 0]


def test_the_message_itself_is_no_rival():
    """Message b is the response to a: its own vector is nearest to it, and is not counted against its response."""
    pairs = examples(("a", "b"), ("b", "B"), ("c", "C"))
    model = Toy({"a": [1, 0], "b": [0, 2], "c": [3, 0], "B": [0, 1], "C": [2, 0]})
    found = select("toy", vector_scorer(model, pairs), pairs, 3)
    assert found.among.values["Recall@1"].tolist() == [0, 1, 1] and found.full.values["Recall@1"].tolist() == [0, 1, 1]


def test_batches_are_seeded_and_a_short_one_is_left_out():
    """25 examples, batches of 10: five are left out of the batches, but not of the ranking over all."""
    rng = np.random.default_rng(0)
    pairs, scores = examples(*((f"c{i}", f"r{i}") for i in range(25))), rng.normal(size=(25, 25))
    first, again, other = (select("random", lambda rows: scores[rows], pairs, 10, seed) for seed in (1, 1, 2))
    assert first.left_out == 5 and len(first.among.query_ids) == 20 and len(first.full.query_ids) == 25
    assert first.among.query_ids == again.among.query_ids != other.among.query_ids
    assert all(np.array_equal(first.among.values[name], again.among.values[name]) for name in first.among.values)
    assert not np.array_equal(first.among.values["MRR"], other.among.values["MRR"])
    for i in range(25):
        rank = 1 + (scores[i] > scores[i, i]).sum()
        assert first.full.values["Recall@10"][i] == (rank <= 10)
    with pytest.raises(UserError, match="do not fill a batch of 30"):
        select("random", lambda rows: scores[rows], pairs, 30)


def test_earlier_turns_reach_a_model_that_reads_them():
    pairs = [Example("a", "A", ("x", "y"), "t"), Example("b", "B", (), "t")]
    vectors = {"a": [0, 1], "b": [0, 1], "A": [1, 0], "B": [0, 1], "x y": [5, 0], "": [0, 0]}
    without = select("toy", vector_scorer(Reader(vectors), pairs), pairs, 2)
    read = select("toy", vector_scorer(Reader(vectors), pairs, earlier=True), pairs, 2)
    assert without.among.values["Recall@1"].tolist() == [0, 1] and read.among.values["Recall@1"].tolist() == [1, 1]
    assert reads_earlier_turns(Reader(vectors)) and not reads_earlier_turns(Toy(vectors))
    with pytest.raises(UserError, match="newest message only"):
        vector_scorer(Toy(vectors), pairs, earlier=True)


def test_bm25_finds_shared_words():
    texts = made_up_texts(60, seed=9)
    pairs = [Example("ki vu", text, (" ".join(text.split()[:4]),), "t") for text in texts]
    plain, read = (select("BM25", bm25_scorer(pairs, earlier), pairs, 20) for earlier in (False, True))
    assert plain.means()["Recall@1"] < 0.2 < 0.8 < read.means()["Recall@1"]  # only the earlier turns share words with the response
    unknown = [Example("qqq", text, (), "t") for text in texts]
    assert np.allclose(select("BM25", bm25_scorer(unknown), unknown, 20).among.values["Recall@1"], 1 / 20)


def test_mean_embeddings(tokenizer):
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(tokenizer.size, 8)).astype(np.float32)
    model = MeanEmbeddings(vectors, tokenizer)
    texts = ["ba ki lo", "", "mu na"]
    found = model.encode(texts)
    for text, vector in zip(texts, found):
        ids = tokenizer.encode([text])[0]
        assert np.allclose(vector, vectors[ids].mean(0) if len(ids) else 0, atol=1e-6)


def test_table_and_files(tmp_path):
    rng = np.random.default_rng(2)
    pairs = examples(*((f"c{i}", f"r{i}") for i in range(45)))
    good, bad = rng.normal(size=(45, 45)) + 4 * np.eye(45), rng.normal(size=(45, 45))
    found = [select(name, lambda rows, s=s: s[rows], pairs, 20) for name, s in (("good", good), ("bad", bad))]
    lines = table(found)
    assert "5 of a last, short batch left out" in lines[0]
    assert any(line.startswith("Recall@1 among 20, good - bad: +0.") and line.endswith("*") for line in lines)
    write(tmp_path / "out", found, {"seed": 0})
    rows = (tmp_path / "out" / "per-example-1.tsv").read_text().splitlines()
    assert len(rows) == 46 and len({row.count("\t") for row in rows}) == 1 and sum("\t\t" in row for row in rows) == 5
