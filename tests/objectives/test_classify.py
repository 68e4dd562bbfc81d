"""Classifiers: losses by hand, heads, what files say, the verb from a file to predictions, and what confuses it."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foretext.config import check
from foretext.errors import UserError
from foretext.interop.classifier import export_classifier
from foretext.model.encoder import Encoder
from foretext.model.huggingface import save_encoder
from foretext.model.presets import preset
from foretext.objectives.classify import Classify
from foretext.retrieval.agreement import agreement, macro_f1
from foretext.retrieval.classifier import TextClassifier
from foretext.text.labelled import LabelledTexts, guess_task, names_of, read_labelled, targets_of
from foretext.text.randomness import example_keys
from foretext.training.optim import OptimConfig, make_optimizer
from foretext.verbs.classifier import ClassifierConfig, Columns, as_classifier, classify, finetune
from tests.conftest import made_up_texts
from tests.objectives.table import small_tokenizer

LABELS = ("bread", "fish", "salt")


def make(layout: str = "bert-tiny", **options) -> Classify:
    torch.manual_seed(0)
    encoder = Encoder(preset(layout, small_tokenizer().size, max_len=48))
    objective = Classify(encoder, small_tokenizer(), Classify.Config(**{"labels": LABELS, "dropout": 0.0} | options))
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return objective


def batch_of(objective: Classify, targets: torch.Tensor, pairs: bool = False, both: bool = False):
    count = len(targets)
    second = made_up_texts(count, seed=2) if pairs else None
    source = LabelledTexts(made_up_texts(count, seed=1), second, targets, small_tokenizer(), both)
    rows = np.arange(len(source.lengths))
    return objective.collate(source.read(rows, example_keys(1, 0, torch.from_numpy(rows))))


def by_hand(task: str, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if task == "classes":
        return F.nll_loss(logits.log_softmax(1), targets, reduction="sum")
    if task == "labels":
        return (F.softplus(logits) - logits * targets).mean(1).sum()
    return ((logits - targets) ** 2).sum()


def test_losses_by_hand():
    cases = {"classes": torch.arange(9) % 3, "labels": (torch.arange(27).view(9, 3) % 4 == 0).float(),
             "score": torch.linspace(0, 5, 9)[:, None]}  # fmt: skip
    for task, targets in cases.items():
        objective = make(task=task, labels=("score",) if task == "score" else LABELS)
        batch = batch_of(objective, targets, pairs=True)
        with torch.no_grad():
            logits, found = objective.head(objective.encoder, batch.texts), objective(batch).terms["classify"]
        torch.testing.assert_close(found, by_hand(task, logits, batch.targets))
        assert batch.counts == {"classify": 9}


def test_targets_follow_their_texts():
    """The batch is sorted by length; each text keeps its own target."""
    objective = make(task="score", labels=("score",))
    lengths = torch.tensor([float(len(ids)) for ids in small_tokenizer().encode(made_up_texts(9, seed=1))])
    batch = batch_of(objective, lengths[:, None])
    assert batch.targets[:, 0].clamp(max=46).add(2).tolist() == list(batch.texts.layout.lengths)


def test_double_unordered_reads_pairs_both_ways():
    objective = make()
    plain, both = (batch_of(objective, torch.arange(4) % 3, pairs=True, both=both) for both in (False, True))
    assert both.counts["classify"] == 2 * plain.counts["classify"]
    source = LabelledTexts(["ba"], ["de ki"], torch.tensor([1]), small_tokenizer(), both_orders=True)
    examples = source.read(np.array([0, 1]), example_keys(1, 0, torch.arange(2)))
    assert examples.targets.tolist() == [1, 1]
    n = examples.first.lengths.tolist()
    assert examples.first.ids[: n[0]].tolist() == examples.second.ids[-n[0] :].tolist()


@pytest.mark.parametrize("head", ["stock", "cls_linear", "mean"])
@pytest.mark.parametrize("layout", ["bert-tiny", "modernbert-tiny"])
def test_an_exported_classifier_predicts_the_same(head, layout, tmp_path, monkeypatch):
    from transformers import pipeline

    from foretext.model.folder import Heads

    objective = make(layout, head=head).eval()
    model = as_classifier(objective)
    extra = None if head == "stock" else Heads("classify", objective.config.model_dump(mode="json"), objective.heads())
    folder = export_classifier(model, tmp_path / "model", {}, extra)
    again = TextClassifier.load(folder)
    texts = made_up_texts(8, seed=5)
    np.testing.assert_allclose(again.logits(texts), model.logits(texts), atol=1e-5)
    assert again.labels == LABELS
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    theirs = pipeline("text-classification", str(folder), top_k=None, trust_remote_code=True)(texts, truncation=True)
    for given, logits in zip(theirs, model.logits(texts)):
        scores = {entry["label"]: entry["score"] for entry in given}
        np.testing.assert_allclose([scores[name] for name in LABELS], torch.from_numpy(logits).softmax(0), atol=1e-5)


def test_frozen_means_the_head_alone():
    objective = make(freeze=True)
    objective(batch_of(objective, torch.arange(6) % 3)).terms["classify"].backward()
    assert {name.split(".")[0] for name, p in objective.named_parameters() if p.grad is not None} == {"head"}


def test_layer_rates_are_electras():
    """With 12 layers and r .8 the last layer gets .8 (published: .64), embeddings .8^13 (.8^14), the head 1."""
    encoder = Encoder(preset("bert-tiny", small_tokenizer().size, layers=12))
    objective = Classify(encoder, small_tokenizer())
    for form, last, lowest in (("intended", 0.8, 0.8**13), ("published", 0.64, 0.8**14)):
        optimizer = make_optimizer(objective, OptimConfig(layer_decay=0.8, layer_decay_form=form))
        shares = {id(p): group["share"] for group in optimizer.param_groups for p in group["params"]}
        assert len(shares) == sum(1 for _ in objective.parameters())
        assert shares[id(encoder.blocks[11].up.weight)] == pytest.approx(last)
        assert shares[id(encoder.words.weight)] == pytest.approx(lowest)
        assert shares[id(objective.head.dense.weight)] == 1


def test_measures():
    truth, found = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 3])
    assert macro_f1(found, truth) == pytest.approx((2 / 3 + 4 / 5 + 0 + 0) / 4)
    assert agreement(np.eye(4)[found], truth, "classes")["accuracy"] == pytest.approx(0.6)
    scores = np.array([[0.1], [0.4], [0.35], [0.8]])
    assert agreement(scores, np.array([[1.0], [2.0], [3.0], [4.0]]), "score")["spearman"] == pytest.approx(0.8)
    several = agreement(np.array([[1.0, -1.0], [1.0, 1.0]]), np.array([[1, 0], [0, 1]]), "labels")
    assert several == {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 1) / 2)}


# -------------------------------------------------------------------------------------------------------------------- files


def test_files_in_every_form(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    texts, labels = ["one, \"two\"\nthree", "four"], ["b", "a"]
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "category"), *zip(texts, labels)])
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"sentence": t, "label": i}) + "\n" for t, i in zip(texts, labels)))
    pyarrow.parquet.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "c.parquet")
    for name in ("a.csv", "b.jsonl", "c.parquet"):
        data = read_labelled(tmp_path / name)
        assert (data.first, data.labels, data.second) == (texts, labels, None)
        assert "as the label" in data.notes[0]
    (tmp_path / "d.tsv").write_text('a "quoted\tb\t4.5\nc\td\t0\n')
    data = read_labelled(tmp_path / "d.tsv", "1", "2", "3")
    assert (data.first, data.second, data.labels, data.notes) == (['a "quoted', "c"], ["b", "d"], ["4.5", "0"], ())
    assert targets_of(data, names_of(data.labels, "score"), guess_task(data.labels)).tolist() == [[4.5], [0.0]]
    (tmp_path / "e.jsonl").write_text('{"text": "x", "labels": ["p", "q"]}\n{"text": "y", "labels": []}\n')
    data = read_labelled(tmp_path / "e.jsonl")
    assert guess_task(data.labels) == "labels"
    assert targets_of(data, ("p", "q"), "labels").tolist() == [[1, 1], [0, 0]]
    assert names_of(["10", "9", "9"], "classes") == ("9", "10")


def sentence(run, *expected: str) -> None:
    with pytest.raises(UserError) as error:
        run()
    assert all(part in str(error.value) for part in expected), error.value
    assert "\n" not in str(error.value)


def test_confusing_files(tmp_path):
    (tmp_path / "a.csv").write_text("alpha,beta\nx,y\n")
    sentence(lambda: read_labelled(tmp_path / "a.csv"), "no column has a name that is usual for a text", "alpha, beta")
    sentence(lambda: read_labelled(tmp_path / "a.csv", "gamma"), "there is no column 'gamma'")
    (tmp_path / "b.csv").write_text("text,label\nx,y,z\n")
    sentence(lambda: read_labelled(tmp_path / "b.csv"), "b.csv:2", "expected 2 columns")
    (tmp_path / "c.jsonl").write_text('{"text": "x", "label": "a"}\n{"text": 3, "label": "a"}\n')
    sentence(lambda: read_labelled(tmp_path / "c.jsonl"), "c.jsonl:2", "expected a text")
    (tmp_path / "d.jsonl").write_text('{"text": "x", "label": "new"}\n')
    sentence(lambda: targets_of(read_labelled(tmp_path / "d.jsonl"), LABELS, "classes"), "d.jsonl:1", "'new' is not among the 3 labels")
    sentence(lambda: read_labelled(tmp_path / "no.csv"), "no such file")


# ----------------------------------------------------------------------------------------------------------------- the verb


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder of a tiny encoder."""
    folder = tmp_path_factory.mktemp("start") / "model"
    torch.manual_seed(3)
    words = small_tokenizer()
    ids = {"pad": words.pad_id, "cls": words.cls_id, "sep": words.sep_id}
    save_encoder(Encoder(preset("bert-tiny", words.size, max_len=32)), folder, ids)
    words.save(folder, 32)
    return folder


def write(path, count: int, seed: int, pairs: bool = False):
    """Texts whose first word is the label's; a pair's score is the sum of both words' numbers."""
    draw = np.random.default_rng(seed)
    with open(path, "w") as file:
        for text in made_up_texts(count, seed=seed):
            a, b = draw.integers(3, size=2)
            words = ("ba", "de", "ki")
            record = {"text": f"{words[a]} {text[:20]}", "label": LABELS[a]}
            if pairs:
                record = {"sentence1": words[a], "sentence2": words[b], "score": float(a + b) + 0.5}
            file.write(json.dumps(record) + "\n")
    return str(path)


def settings(start, folder, **changes) -> ClassifierConfig:
    values = {"data": write(folder / "train.jsonl", 120, 1), "test": write(folder / "test.jsonl", 40, 2), "output": str(folder / "run"),
              "encoder": {"start": str(start)}, "training": {"steps": 40, "valid_every": 20, "batch_size": 16,
                                                             "optim": {"lr": 2e-3, "layer_decay": 0.9}}}  # fmt: skip
    return check(ClassifierConfig, values | changes)


def test_from_a_file_to_predictions(start, tmp_path):
    done = finetune(settings(start, tmp_path))
    assert done.scores["test"]["accuracy"] > 0.9
    assert set(done.scores) == {"valid", "test"}
    rows = (tmp_path / "run" / "predictions-test.tsv").read_text().splitlines()
    assert rows[0] == "line\tprediction\tprobability\tlabel"
    assert len(rows) == 41
    lines = classify(str(tmp_path / "run"), str(tmp_path / "test.jsonl"), str(tmp_path / "out.jsonl"), Columns())
    assert f"  accuracy   {done.scores['test']['accuracy']:.4f}" in "\n".join(lines)
    record = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert record["prediction"] in LABELS
    again = finetune(settings(start, tmp_path))
    assert again.scores == done.scores


def test_regression_of_pairs(start, tmp_path):
    data, test = (write(tmp_path / f"{name}.jsonl", count, seed, pairs=True) for name, count, seed in (("a", 200, 1), ("b", 40, 2)))
    done = finetune(settings(start, tmp_path, data=data, test=test, double_unordered=True, objective={"head": "cls_linear"},
                             training={"steps": 60, "batch_size": 16, "optim": {"lr": 2e-3}}))  # fmt: skip
    assert done.scores["test"]["spearman"] > 0.7
    assert TextClassifier.load(done.export).task == "score"


def test_what_the_verb_refuses(start, tmp_path):
    (tmp_path / "one.jsonl").write_text('{"text": "x", "label": "a"}\n' * 30)
    sentence(lambda: finetune(settings(start, tmp_path, data=str(tmp_path / "one.jsonl"), test=None)), "one class only, 'a'")
    (tmp_path / "odd.jsonl").write_text('{"text": "x", "label": "odd"}\n')
    sentence(lambda: finetune(settings(start, tmp_path, test=str(tmp_path / "odd.jsonl"))), "odd.jsonl:1", "'odd' is not among")
    sentence(lambda: classify(str(start), str(tmp_path / "odd.jsonl"), str(tmp_path / "p.tsv"), Columns()), "no head for sequences")
