"""`foretext evaluate` on several collections, finished runs, rerankers and sentence pairs."""

import json

import numpy as np
import pytest
import torch

from foretext.cli import main
from foretext.errors import UserError
from foretext.interop.export import export
from foretext.model.encoder import Encoder
from foretext.model.presets import preset
from foretext.retrieval.collection import read_collection, write_collection
from foretext.retrieval.embed import TextEncoder
from foretext.retrieval.metrics import paired_difference, score
from foretext.retrieval.rerank import CrossScorer
from foretext.retrieval.runs import ranking, read_run, write_columns
from foretext.verbs.evaluate import Options, above, evaluate, evaluate_runs, evaluate_sts
from tests.processes import together
from tests.retrieval.test_evaluate import made_up


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """Two BEIR folders, a model, and runs."""
    folder = tmp_path_factory.mktemp("place")
    for name, size in (("one", 80), ("two", 50)):
        collection = made_up(size, 20)
        write_collection(folder / name, collection)
    torch.manual_seed(0)
    encoder = Encoder(preset("bert-tiny", tokenizer.size, width=32, max_len=48))
    export(TextEncoder(encoder, tokenizer, "mean"), folder / "model")
    evaluate("bm25", [folder / "one", folder / "two"], output=folder / "bm25")
    evaluate(str(folder / "model"), folder / "one", output=folder / "dense")
    return folder


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory, tokenizer):
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("cross")
    torch.manual_seed(1)
    config = BertConfig(vocab_size=tokenizer.size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                        max_position_embeddings=96, num_labels=1, pad_token_id=tokenizer.pad_id, initializer_range=0.5)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save(folder, max_len=96)
    return folder


def means(path):
    return {measure: value["mean"] for measure, value in json.loads(path.read_text())["scores"].items()}


def test_the_average_counts_every_collection_the_same(place):
    one, two = (means(place / "bm25" / name / "scores.json") for name in ("one", "two"))
    average = json.loads((place / "bm25" / "average.json").read_text())
    assert average["average"] == pytest.approx({measure: (one[measure] + two[measure]) / 2 for measure in one})
    lines = evaluate("bm25", [place / "one", place / "two"])
    table = next(i for i, line in enumerate(lines) if line.startswith("BM25  "))
    assert [line.split()[0] for line in lines[table + 2:table + 5]] == ["one", "two", "average"]
    assert lines[table + 4].split()[1] == f"{average['average']['nDCG@10']:.4f}"


def test_runs_are_compared_query_by_query(place):
    first, second = place / "bm25" / "one" / "run.trec", place / "dense" / "run.trec"
    lines = evaluate_runs([first, second], place / "one")
    ours, theirs = (score(read_collection(place / "one").qrels("test").grades, read_run(path)[0]) for path in (second, first))
    d = paired_difference(ours, theirs, "nDCG@10")
    row = next(line for line in lines if "queries" in line and line.startswith("nDCG@10"))
    assert f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]" in row and d.mean < 0
    gains = ours.values["nDCG@10"] - theirs.values["nDCG@10"]
    assert f"{(gains > 0).sum()} / {(gains == 0).sum()} / {(gains < 0).sum()} queries" in row


@pytest.mark.parametrize("shape", ["score", "rank", "msmarco"])
def test_anybodys_run_on_anybodys_judgements(place, shape, tmp_path):
    run, _ = read_run(place / "bm25" / "one" / "run.trec")
    if shape == "msmarco":
        ranked = [(query, document, rank) for query, found in run.items() for rank, document in enumerate(found, 1)]
        (tmp_path / "run").write_text("".join(f"{query}\t{document}\t{rank}\n" for query, document, rank in ranked))
    else:
        write_columns(tmp_path / "run", run, rank=shape == "rank")
    with open(tmp_path / "qrels.trec", "w") as file:
        for query, judged in read_collection(place / "one").qrels("test").grades.items():
            file.writelines(f"{query} 0 {document} {grade}\n" for document, grade in judged.items())
    for data in (place / "one", tmp_path / "qrels.trec"):  # without texts too
        evaluate_runs([tmp_path / "run"], data, output=tmp_path / "out", overwrite=True)
        assert means(tmp_path / "out" / "scores.json") == pytest.approx(means(place / "bm25" / "one" / "scores.json"), abs=1e-9)


def test_reranked_documents_stand_above_the_rest(place, cross_encoder, tmp_path):
    first = {"q": {"a": 9.0, "b": 8.0, "c": 7.0, "d": 6.0}, "p": {}}
    assert above({"q": {"a": -3.0, "b": -1.0}}, first)["q"] == {"a": -3.0, "b": -1.0, "c": -4.0, "d": -5.0}

    lines = evaluate(str(place / "model"), place / "one", Options(reranker=str(cross_encoder), k=10), tmp_path / "out")
    assert len([line for line in lines if line.startswith(("model  ", "first 10 reranked"))]) == 2
    before, after = read_run(place / "dense" / "run.trec")[0], read_run(tmp_path / "out" / "run.trec")[0]
    collection, scorer = read_collection(place / "one"), CrossScorer.load(cross_encoder)
    texts = dict(zip(collection.document_ids, collection.documents))
    for query in list(before)[:3]:
        top = ranking(before[query])[:10]
        scores = scorer.score([collection.queries[query]] * 10, [texts[document] for document in top])
        assert ranking(after[query])[:10] == [top[i] for i in np.argsort(-scores)]
        assert ranking(after[query])[10:] == ranking(before[query])[10:]
    with pytest.raises(UserError, match="k = 0"):
        evaluate("bm25", place / "one", Options(k=0))


def test_small_vectors_stand_beside_whole_ones(place):
    lines = evaluate(str(place / "model"), place / "one", Options(precision="int8", dimensions=16))
    assert any(line.startswith("model, 16 dimensions, int8, rescored 4x") for line in lines)
    assert any(line.startswith("model ") for line in lines)


def evaluate_all(place, cross_encoder, output):
    """Returns whether each evaluation had something to say."""
    model, one = str(place / "model"), place / "one"
    return [bool(lines) for lines in (
        evaluate(model, one, Options(hybrid=True, reranker=str(cross_encoder), k=10), output / "all"),
        evaluate(model, one, Options(precision="int8", dimensions=16), output / "small"),
        evaluate(model, place / "few", Options(reranker=str(cross_encoder), k=10), output / "few"),
        evaluate_sts(model, place / "pairs.csv", output / "similarity"))]


def test_two_processes_find_what_one_finds(place, cross_encoder, tmp_path):
    """They share out documents, queries and pairs, also of a collection with one query; the first one writes and talks."""
    write_collection(place / "few", made_up(30, 1))
    write_pairs(place, place / "pairs.csv")
    together(f"""
import os
from pathlib import Path
from tests.verbs.test_evaluate import evaluate_all
said = evaluate_all(Path({str(place)!r}), Path({str(cross_encoder)!r}), Path({str(tmp_path / "two")!r}))
assert said == [os.environ["RANK"] == "0"] * 4
""")
    evaluate_all(place, cross_encoder, tmp_path / "one")
    for name in ("all", "small", "few", "similarity"):
        alone, shared = (json.loads((tmp_path / way / name / "scores.json").read_text()) for way in ("one", "two"))
        assert shared | {"seconds": 0} == alone | {"seconds": 0}
    for name in ("all", "small", "few"):
        alone, shared = (read_run(tmp_path / way / name / "run.trec")[0] for way in ("one", "two"))
        for query, found in alone.items():  # a reranker's scores differ by rounding where other pairs stand beside them
            assert ranking(shared[query]) == ranking(found) and shared[query] == pytest.approx(found, abs=1e-4)


def write_pairs(place, file):
    texts = read_collection(place / "one").documents
    file.write_text("".join(f"{a},{b},{i % 5}\n" for i, (a, b) in enumerate(zip(texts[::2], texts[1::2]))))


def test_similarity(place, tmp_path):
    write_pairs(place, tmp_path / "a.csv")
    lines = evaluate_sts(str(place / "model"), tmp_path / "a.csv", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert any(line.startswith(f"  Spearman     {found['spearman']:.4f}") for line in lines) and found["pairs"] == 40


@pytest.mark.parametrize("arguments, said", [
    (["bm25"], "nothing to evaluate on"),
    (["bm25", "nowhere"], "nowhere: no such file or folder"),
    (["bm25", "one", "--task", "translation"], "--task translation: there are retrieval, sts"),
    (["model", "one", "--precision", "int4"], "precision 'int4': there are float32, int8, binary"),
    (["--run", "bm25/one/run.trec", "one", "two"], "a run belongs to one collection"),
    (["--run", "five-columns", "one"], "a run"),
    (["--run", "nowhere", "one"], "nowhere: no such file"),
    (["bm25", "one", "-o", "bm25"], "bm25 already exists"),
])
def test_wrong_input_is_one_sentence(place, arguments, said, monkeypatch, capsys):
    (place / "five-columns").write_text("q1 a b c d\n")
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.argv", ["foretext", "evaluate", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and said in error and error.count("\n") == 1
