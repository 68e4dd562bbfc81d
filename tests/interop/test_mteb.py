"""An encoder through mteb's own tasks, on data made here."""

import numpy as np
import pytest
import torch

pytest.importorskip("mteb")

import mteb  # noqa: E402
from datasets import Dataset, DatasetDict  # noqa: E402
from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.sts import AbsTaskSTS  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.models.models_protocols import EncoderProtocol  # noqa: E402

from foretext.errors import UserError  # noqa: E402
from foretext.interop.mteb import ForMTEB  # noqa: E402
from foretext.model.encoder import Encoder  # noqa: E402
from foretext.model.presets import preset  # noqa: E402
from foretext.retrieval.collection import Collection  # noqa: E402
from foretext.retrieval.embed import TextEncoder  # noqa: E402
from foretext.retrieval.evaluate import evaluate  # noqa: E402
from foretext.retrieval.sts import ScoredPairs, correlate  # noqa: E402
from foretext.summary import ReadSummary  # noqa: E402
from tests.conftest import made_up_texts  # noqa: E402

TEXTS = made_up_texts(60, seed=9)
DOCUMENTS = {f"d{i}": text for i, text in enumerate(TEXTS)}
QUERIES = {f"q{i}": " ".join(TEXTS[i].split()[:4]) for i in range(20)}
JUDGED = {f"q{i}": {f"d{i}": 1} for i in range(20)}


def about(kind: str, name: str, main_score: str) -> TaskMetadata:
    return TaskMetadata(name=name, description="made up", reference=None, dataset={"path": "made/up", "revision": "1"}, type=kind,
                        category="t2t", modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"], main_score=main_score)


class MadeUpSTS(AbsTaskSTS):
    metadata = about("STS", "MadeUpSTS", "cosine_spearman")

    def load_data(self, **_):
        self.dataset = DatasetDict(test=Dataset.from_dict({"sentence1": TEXTS[:30], "sentence2": TEXTS[30:], "score": SCORES.tolist()}))
        self.data_loaded = True


SCORES = np.round(np.random.default_rng(0).uniform(0, 5, 30), 2)


class MadeUpRetrieval(AbsTaskRetrieval):
    metadata = about("Retrieval", "MadeUpRetrieval", "ndcg_at_10")

    def load_data(self, **_):
        corpus = Dataset.from_list([{"id": key, "title": "", "text": text} for key, text in DOCUMENTS.items()])
        queries = Dataset.from_list([{"id": key, "text": text} for key, text in QUERIES.items()])
        self.dataset = {"default": {"test": {"corpus": corpus, "queries": queries, "relevant_docs": JUDGED, "top_ranked": None}}}
        self.data_loaded = True


@pytest.fixture(scope="module")
def model(tokenizer) -> TextEncoder:
    torch.manual_seed(0)
    encoder = Encoder(preset("bert-tiny", tokenizer.size, width=32, max_len=48))
    return TextEncoder(encoder, tokenizer, "mean", prompts={"query": "ask " + TEXTS[40].split()[0] + " ", "document": ""})


def scored(model: TextEncoder, task) -> dict:
    results = mteb.evaluate(ForMTEB(model, "me/tiny"), task, cache=None, show_progress_bar=False)
    assert results.model_name == "me/tiny"
    return results.task_results[0].scores["test"][0]


def test_retrieval_scores_are_ours(model):
    ours = evaluate(model, Collection.of("made-up", DOCUMENTS, QUERIES, test=JUDGED), measures=["nDCG@10", "Recall@100"]).means()
    theirs = scored(model, MadeUpRetrieval())
    assert 0.05 < ours["nDCG@10"] < 1
    assert theirs["ndcg_at_10"] == pytest.approx(ours["nDCG@10"], abs=1e-4)  # mteb rounds; the query prompt took part on both sides


def test_similarity_scores_are_ours(model):
    ours = correlate(model, ScoredPairs(TEXTS[:30], TEXTS[30:], SCORES, ReadSummary("made up")))
    assert scored(model, MadeUpSTS())["cosine_spearman"] == pytest.approx(ours.spearman, abs=1e-4)


def test_protocol(model):
    adapter = ForMTEB(model, "me/tiny")
    assert isinstance(adapter, EncoderProtocol)
    meta = adapter.mteb_model_meta
    assert (meta.name, meta.embed_dim, meta.max_tokens) == ("me/tiny", 32, 48) and meta.revision == model.fingerprint()[:16]
    batches = [{"text": TEXTS[:3]}, {"text": TEXTS[3:5]}]
    np.testing.assert_array_equal(adapter.encode(batches), model.encode(TEXTS[:5], "document"))
    a, b = model.encode(TEXTS[:4]), 3 * model.encode(TEXTS[4:8])
    torch.testing.assert_close(adapter.similarity(a, b).diagonal(), adapter.similarity_pairwise(a, b))
    assert adapter.similarity(a, b).abs().max() <= 1 + 1e-6  # cosines, whatever the lengths
    with pytest.raises(UserError, match="owner/model, found the name 'tiny'"):
        ForMTEB(model, "tiny")
