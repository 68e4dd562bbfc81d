"""Mine, train a reranker, score candidates, train in rounds: the road of a retriever at toy size, on made-up documents."""

import json

import numpy as np
import pytest
import torch

from foretext.config import check
from foretext.errors import UserError
from foretext.model.encoder import Encoder
from foretext.model.huggingface import save_encoder
from foretext.model.presets import preset
from foretext.retrieval.collection import Collection, write_collection
from foretext.retrieval.groups import read_groups
from foretext.retrieval.mine import MineConfig
from foretext.retrieval.rerank import CrossScorer
from foretext.retrieval.runs import read_run
from foretext.verbs.mine import mine_to, rounds
from foretext.verbs.reranker import RerankerConfig, finetune, score_candidates
from tests.conftest import made_up_texts
from tests.objectives.table import small_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a BEIR folder (queries are the heads of documents) and a tiny encoder."""
    folder = tmp_path_factory.mktemp("place")
    texts = made_up_texts(60, seed=9)
    documents = {f"d{i}": text for i, text in enumerate(texts)}
    queries = {f"q{i}": " ".join(text.split()[:4]) for i, text in enumerate(texts)}
    judged = {f"q{i}": {f"d{i}": 1} for i in range(60)}
    train, test = dict(list(judged.items())[:45]), dict(list(judged.items())[45:])
    write_collection(folder / "beir", Collection.of("toy", documents, queries, train=train, test=test))
    torch.manual_seed(3)
    words = small_tokenizer()
    ids = {"pad": words.pad_id, "cls": words.cls_id, "sep": words.sep_id}
    save_encoder(Encoder(preset("bert-tiny", words.size, max_len=64)), folder / "model", ids)
    words.save(folder / "model", 64)
    return folder


def reranker(place, output, **changes):
    values = {"data": str(place / "beir"), "negatives": str(place / "mined.jsonl"), "output": str(output), "group_size": 3,
              "encoder": {"start": str(place / "model")}, "training": {"steps": 6, "batch_size": 8}}  # fmt: skip
    return finetune(check(RerankerConfig, values | changes))


@pytest.fixture(scope="module")
def trained(place):
    """A file of mined negatives, and a reranker trained on them."""
    lines = mine_to(["bm25", str(place / "model")], str(place / "beir"), str(place / "mined.jsonl"), MineConfig(negatives=4, rank_to=30))
    assert any("negatives that both bm25 and" in line for line in lines)
    return reranker(place, place / "reranker")


def test_mined_files_hold_no_answers(place, trained):
    groups = read_groups(place / "mined.jsonl").groups
    assert len(groups) == 45
    for group in groups:
        answer = group.query_id.replace("q", "d")
        assert [entry.id for entry in group.positives] == [answer]
        assert answer not in {entry.id for entry in group.negatives}
    with pytest.raises(UserError, match="already exists"):
        mine_to(["bm25"], str(place / "beir"), str(place / "mined.jsonl"), MineConfig())


def test_margin_by_a_model(place, trained):
    mine_to([str(place / "model")], str(place / "beir"), str(place / "margin.jsonl"), MineConfig(negatives=30, rank_to=60, margin=0.97))
    for group in read_groups(place / "margin.jsonl").groups:
        assert all(entry.score <= 0.97 * group.positives[0].score + 1e-6 for entry in group.negatives)


def test_candidates_are_scored(place, trained):
    lines = score_candidates(str(place / "reranker"), str(place / "beir"), str(place / "scores"), k=5, split="test", with_positives=True)
    assert any("reranked" in line for line in lines)
    run, scores = read_run(place / "scores" / "run.trec")[0], read_run(place / "scores" / "scores.tsv")[0]
    assert all(len(ranked) <= 5 for ranked in run.values())
    assert all(query.replace("q", "d") in scores[query] for query in run)
    texts = {f"d{i}": text for i, text in enumerate(made_up_texts(60, seed=9))}
    query, document = next((q, d) for q, ranked in run.items() for d in ranked)
    words = " ".join(texts[query.replace("q", "d")].split()[:4])
    alone = CrossScorer.load(place / "reranker").score([words], [texts[document]])[0]
    assert scores[query][document] == pytest.approx(float(alone), abs=1e-4)
    before = str(place / "scores" / "run.trec")
    again = score_candidates(str(place / "reranker"), str(place / "beir"), str(place / "again"), run=before, k=3)
    assert all(len(ranked) <= 3 for ranked in read_run(place / "again" / "run.trec")[0].values())
    assert any("pairs" in line for line in again)


def test_groups_are_scored_and_distilled(place, trained):
    score_candidates(str(place / "reranker"), str(place / "mined.jsonl"), str(place / "teacher"))
    groups = read_groups(place / "teacher" / "groups.jsonl").groups
    assert all(entry.score is not None for group in groups for entry in (*group.positives, *group.negatives))
    done = reranker(place, place / "student", data=str(place / "teacher" / "groups.jsonl"), negatives=None, objective={"loss": "kl"})
    assert np.isfinite(done.result.last["loss"])
    with pytest.raises(UserError, match="needs teacher scores"):
        reranker(place, place / "other", objective={"loss": "margin_mse"}, negatives=None)


def test_a_query_that_leaves_no_room(place, trained):
    with pytest.raises(UserError, match="leaves a passage no room"):
        reranker(place, place / "long", objective={"max_len": 8})
    reranker(place, place / "cut", objective={"max_len": 8, "truncate_query": True}, training={"steps": 1})


def test_rounds_go_on_where_they_were(place, trained):
    training = {"training": {"steps": 3, "batch_size": 8}, "group_size": 2}
    config = MineConfig(negatives=3, rank_to=20)

    def run(count: int):
        return rounds(str(place / "model"), str(place / "beir"), str(place / "rounds"), count, config, training)

    one = run(1)
    made = (place / "rounds" / "round-1" / "run" / "export" / "model.safetensors").stat().st_mtime_ns
    two = run(2)
    assert [e.name for e in two.evaluations] == ["start", "round 1", "round 2"]
    assert (place / "rounds" / "round-1" / "run" / "export" / "model.safetensors").stat().st_mtime_ns == made
    assert two.evaluations[1].means() == pytest.approx(one.evaluations[1].means())
    assert any("round 2 - round 1" in line and "[" in line for line in two.report)
    starts = [json.loads((place / "rounds" / f"round-{i}" / "run" / "run.json").read_text())["settings"] for i in (1, 2)]
    assert starts[0]["training"] == starts[1]["training"]
    with pytest.raises(UserError, match="other settings"):
        rounds(str(place / "model"), str(place / "beir"), str(place / "rounds"), 2, MineConfig(negatives=4), training)


def test_a_retriever_is_no_reranker(place, trained):
    with pytest.raises(UserError, match="no head for sequences"):
        score_candidates(str(place / "model"), str(place / "beir"), str(place / "nothing"))
