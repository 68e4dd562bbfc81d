"""`foretext finetune retriever` as a person uses it: what it leaves behind, when it stops, whom it learns from."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from foretext.config import check
from foretext.errors import UserError
from foretext.interop.export import export
from foretext.model.encoder import Encoder
from foretext.model.presets import preset
from foretext.objectives.contrastive import Contrastive
from foretext.retrieval.embed import TextEncoder
from foretext.retrieval.groups import read_groups, write_groups
from foretext.training import checkpoint
from foretext.verbs.pretrain import as_before
from foretext.verbs.retriever import FinetuneConfig, finetune
from tests.conftest import made_up_texts
from tests.objectives.table import small_tokenizer

TRAINING = {"steps": 6, "batch_size": 8, "precision": "fp32", "checkpoint_every": 3, "log_every": 2, "optim": {"lr": 1e-3}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A BEIR folder with train and dev judgements, negatives for it, and a tokenizer."""
    folder = tmp_path_factory.mktemp("retriever")
    texts = made_up_texts(80, seed=21)
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(texts)))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": f"q{i}", "text": t[:40]}) + "\n" for i, t in enumerate(texts)))
    for split, rows in (("train", range(48)), ("dev", range(48, 64))):
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in rows))
    (folder / "negatives.tsv").write_text("".join(f"q{i}\t{','.join(f'd{(i + j) % 80}' for j in range(1, 6))}\n" for i in range(48)))
    small_tokenizer().save(folder / "tokenizer", 64)
    return folder


def run(place, output, **options):
    training = TRAINING | options.pop("training", {})
    settings = {"data": str(place), "output": str(output), "tokenizer": str(place / "tokenizer"), "training": training,
                "encoder": {"start": "bert-tiny", "max_len": 64}, "negatives": str(place / "negatives.tsv"), "group_size": 3}
    return finetune(check(FinetuneConfig, settings | options))


def metrics(output, key: str) -> list[float]:
    return [record[key] for record in map(json.loads, (output / "metrics.jsonl").read_text().splitlines()) if key in record]


def test_the_best_checkpoint_is_exported_and_patience_ends_the_run(place, tmp_path):
    """A rate that wrecks the model soon: later validations are worse, the run ends early, the best weights leave."""
    training = {"steps": 40, "valid_every": 1, "patience": 4, "optim": {"lr": 0.5, "warmup": 0.0}}
    done = run(place, tmp_path / "run", valid_split="dev", training=training)
    found = metrics(tmp_path / "run", "valid_nDCG@10")
    assert len(found) < 40 and len(found) == done.result.steps
    assert done.result.best_step == int(np.argmax(found)) + 1 == done.result.steps - 4
    assert len(metrics(tmp_path / "run", "valid_MRR@10")) == len(found)
    best = load_file(tmp_path / "run" / "checkpoints" / f"step-{done.result.best_step}" / "objective.safetensors")
    exported = TextEncoder.load(done.export).encoder.state_dict()
    for name, value in exported.items():
        torch.testing.assert_close(best[f"encoder.{name}"], value, rtol=0, atol=0)
    again = run(place, tmp_path / "run", valid_split="dev", training=training)  # the same command again trains no further
    assert again.result.steps == done.result.steps and metrics(tmp_path / "run", "valid_nDCG@10") == found


def test_what_is_validated_is_what_the_export_scores(place, tmp_path):
    from foretext.retrieval.collection import read_collection
    from foretext.retrieval.evaluate import evaluate

    done = run(place, tmp_path / "run", valid_split="dev", objective={"query_prompt": "ba: "}, training={"steps": 2, "valid_every": 2})
    scores = evaluate(TextEncoder.load(done.export), read_collection(place), "dev", measures=("nDCG@10", "MRR@10"), same_id="keep").means()
    assert metrics(tmp_path / "run", "valid_nDCG@10")[-1] == pytest.approx(scores["nDCG@10"], abs=1e-6)
    assert metrics(tmp_path / "run", "valid_MRR@10")[-1] == pytest.approx(scores["MRR@10"], abs=1e-6)


@pytest.mark.parametrize("objective", [
    {"untied": True, "pooling": "cls"}, {"projection": 16, "pooling": "last"}, {"untied": True, "projection": 16, "normalize": False}])
def test_towers_and_projections_load_elsewhere(place, tmp_path, objective):
    from sentence_transformers import SentenceTransformer

    done = run(place, tmp_path / "run", objective=objective, training={"steps": 2})
    ours, theirs = TextEncoder.load(done.export), SentenceTransformer(str(done.export), device="cpu")
    texts = made_up_texts(5, seed=4)
    for kind, encode in (("query", theirs.encode_query), ("document", theirs.encode_document)):
        np.testing.assert_allclose(encode(texts), ours.encode(texts, kind), atol=1e-5)
    assert ours.dimension == objective.get("projection", 128)
    apart = np.abs(ours.encode(texts, "query") - ours.encode(texts, "document")).max()
    assert (apart > 1e-4) == bool(objective.get("untied"))
    trained, copied = TextEncoder.load(done.export), tmp_path / "copy"
    from foretext.verbs.pretrain import export_again

    export_again(tmp_path / "run", copied)
    np.testing.assert_array_equal(TextEncoder.load(copied).encode(texts), trained.encode(texts))


def test_pooling_and_prompts_stay_those_of_the_start(place, tmp_path, capsys):
    """But for what is set; a start that is no retriever's folder says nothing."""
    encoder, tokenizer = Encoder(preset("bert-tiny", small_tokenizer().size, max_len=64)), small_tokenizer()
    export(TextEncoder(encoder, tokenizer, "cls", prompts={"query": "ask: ", "passage": "say: "}), tmp_path / "start")
    found = []
    for name, objective in (("kept", {}), ("set", {"pooling": "mean", "query_prompt": ""})):
        run(place, tmp_path / name, encoder={"start": str(tmp_path / "start")}, tokenizer=None, objective=objective)
        model = TextEncoder.load(tmp_path / name / "export")
        found.append((model.pooling, model.prompt("query"), model.prompt("document")))
        assert "prompts 'ask: ' and 'say: '" in capsys.readouterr().err or objective
    assert found == [("cls", "ask: ", "say: "), ("mean", "", "say: ")]
    assert as_before(Contrastive.Config(), "bert-tiny").pooling is None
    file = tmp_path / "start" / "1_Pooling" / "config.json"
    file.write_text(file.read_text().replace("cls_token", "max_tokens_"))
    assert as_before(Contrastive.Config(), str(tmp_path / "start")).pooling is None  # its weights can be trained all the same
    assert "only 'cls', 'mean' and 'last' are read" in capsys.readouterr().err


def test_adapters_are_merged_at_export(place, tmp_path):
    pytest.importorskip("peft")
    done = run(place, tmp_path / "run", lora={"rank": 2}, valid_split="dev", training={"valid_every": 3})
    encoder = TextEncoder.load(done.export).encoder
    torch.manual_seed(1)  # training.seed: the weights it started from
    start = Encoder(preset("bert-tiny", small_tokenizer().size, max_len=64)).state_dict()
    moved = {name.split(".")[2] for name, value in encoder.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == {"qkv", "out", "up", "down"}


@pytest.mark.parametrize("teacher", ["scores", "retriever"])
def test_learning_from_a_teacher(place, tmp_path, teacher):
    if teacher == "scores":
        draw = np.random.default_rng(0)
        rows = [f"q{i}\td{(i + j) % 80}\t{draw.normal():.3f}\n" for i in range(48) for j in range(6)]
        (tmp_path / "scores.tsv").write_text("".join(rows))
        options = {"scores": str(tmp_path / "scores.tsv")}
    else:
        options = {"teacher": str(run(place, tmp_path / "teacher").folder)}
    run(place, tmp_path / "run", objective={"distill": "kl", "contrastive_weight": 0.1}, training={"log_every": 1}, **options)
    assert all(np.isfinite(metrics(tmp_path / "run", "distill"))) and min(metrics(tmp_path / "run", "distill")) > 0
    if teacher == "retriever":  # its vectors also say which passages of others answer
        run(place, tmp_path / "guided", objective={"margin": 0.0}, training={"log_every": 1}, **options)
        assert max(metrics(tmp_path / "guided", "masked_negatives")) > 0


def test_missing_scores(place, tmp_path):
    (tmp_path / "scores.tsv").write_text("q0\td0\t1\nq0\td1\t0\n")
    options = {"scores": str(tmp_path / "scores.tsv"), "objective": {"distill": "kl"}}
    with pytest.raises(UserError, match="score_missing"):
        run(place, tmp_path / "run", strict=["score_missing"], **options)
    run(place, tmp_path / "run", training={"steps": 1}, **options)
    with pytest.raises(UserError, match="no passage has a teacher score"):
        run(place, tmp_path / "other", objective={"distill": "kl"})


def test_groups_in_a_file_with_prompts(place, tmp_path):
    """A prompt of the file stands before its query, the settings' prompt before the others."""
    groups = read_groups(place, place / "negatives.tsv")
    for group in groups.groups[::2]:
        group.prompt = "find this: "
    file = write_groups(tmp_path / "train.jsonl", groups)
    from foretext.objectives.contrastive import Contrastive
    from foretext.verbs.retriever import numbered_queries

    objective = Contrastive(Encoder(preset("bert-tiny", small_tokenizer().size, max_len=64)), small_tokenizer(),
                            Contrastive.Config(query_prompt="ask: "))
    texts, _ = numbered_queries(read_groups(file), objective)
    assert texts[0].startswith("find this: ") and texts[1].startswith("ask: ")
    assert objective.prompts[0] == [small_tokenizer().cls_id]
    done = run(place, tmp_path / "run", data=str(file), negatives=None, training={"steps": 2})
    assert done.export.is_dir()


def test_resume_with_towers_adapters_and_validation_ends_with_the_same_bits(place, tmp_path, monkeypatch):
    options = {"objective": {"untied": True, "projection": 8}, "valid_split": "dev", "training": {"valid_every": 2}}
    run(place, tmp_path / "whole", **options)
    saved = checkpoint.Writer.save

    def dies(self, objective, optimizer, state, *rest):
        saved(self, objective, optimizer, state, *rest)
        if state["step"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.Writer, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            run(place, tmp_path / "broken", **options)
    run(place, tmp_path / "broken", **options)
    whole, broken = (load_file(tmp_path / name / "checkpoints" / "step-6" / "objective.safetensors") for name in ("whole", "broken"))
    assert whole.keys() == broken.keys() and all(torch.equal(whole[key], broken[key]) for key in whole)


@pytest.mark.parametrize(("options", "said"), [
    ({"training": {"patience": 2}}, "patience"),
    ({"teacher": "x"}, "no effect"),
    ({"scores": "x", "teacher": "y", "objective": {"distill": "kl"}}, "the one or the other"),
    ({"objective": {"distill": "kl"}, "group_size": 1}, "group_size"),
])
def test_settings_without_effect_are_refused(place, tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        run(place, tmp_path / "run", **options)


def test_a_live_cross_encoder_teaches_what_its_scores_in_a_file_teach(place, tmp_path):
    from foretext.verbs.reranker import RerankerConfig, score_candidates
    from foretext.verbs.reranker import finetune as finetune_reranker

    finetune_reranker(check(RerankerConfig, {
        "data": str(place), "negatives": str(place / "negatives.tsv"), "output": str(tmp_path / "teacher"), "group_size": 3,
        "tokenizer": str(place / "tokenizer"), "encoder": {"start": "bert-tiny", "max_len": 64}, "training": TRAINING}))
    groups = write_groups(tmp_path / "groups.jsonl", read_groups(place, place / "negatives.tsv"))
    score_candidates(str(tmp_path / "teacher"), str(groups), str(tmp_path / "scored"))
    ways = {"live": {"teacher": str(tmp_path / "teacher")}, "file": {"scores": str(tmp_path / "scored" / "scores.tsv")}}
    for name, options in ways.items():
        run(place, tmp_path / name, objective={"distill": "kl"}, training={"log_every": 1}, **options)
    live, file = (metrics(tmp_path / name, "distill") for name in ways)
    assert len(live) == TRAINING["steps"] and min(live) > 0
    np.testing.assert_allclose(live, file, rtol=1e-4)


def test_two_processes_stop_at_the_same_step_and_keep_the_best_checkpoint(place, tmp_path):
    """Both search their share, and hear the same: were they of two minds, one would wait for the other's gradient."""
    output = tmp_path / "run"
    (tmp_path / "run.yaml").write_text(json.dumps({
        "data": str(place), "output": str(output), "tokenizer": str(place / "tokenizer"), "negatives": str(place / "negatives.tsv"),
        "group_size": 3, "encoder": {"start": "bert-tiny", "max_len": 64}, "valid_split": "dev", "valid_measure": "MRR@10",
        "training": TRAINING | {"steps": 40, "valid_every": 1, "patience": 3, "optim": {"lr": 0.5, "warmup": 0.0}}}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "foretext.cli", "finetune",
               "retriever", str(tmp_path / "run.yaml")]
    ended = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    found = metrics(output, "valid_MRR@10")
    best = int(np.argmax(found)) + 1
    assert len(found) == best + 3 < 40
    assert {path.name for path in (output / "checkpoints").iterdir()} >= {f"step-{best}", f"step-{best + 3}"}
    weights = load_file(output / "checkpoints" / f"step-{best}" / "objective.safetensors")
    exported = TextEncoder.load(output / "export").encoder.state_dict()
    assert all(torch.equal(weights[f"encoder.{name}"], value) for name, value in exported.items())
