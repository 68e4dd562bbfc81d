"""The commands as a person types them: the road at toy size, and what wrong input says."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.conftest import made_up_texts

TINY = ["--set", "encoder.start=bert-tiny", "--set", "training.batch_size=8", "--set", "training.checkpoint_every=5",
        "--set", "training.valid_every=10", "--set", "training.log_every=5", "--set", "valid_share=0.05"]


def foretext(*arguments, code: int = 0, **options) -> subprocess.CompletedProcess:
    """Run the command line as a process of its own."""
    command = [sys.executable, "-c", "from foretext.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300, **options)
    assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a corpus, a BEIR folder, and a store made from the corpus."""
    folder = tmp_path_factory.mktemp("road")
    texts = made_up_texts(150, seed=21)
    with open(folder / "corpus.jsonl", "w") as file:
        for i, text in enumerate(texts):
            file.write(json.dumps({"id": f"doc {i}", "text": text}) + "\n")
    beir = folder / "beir"
    (beir / "qrels").mkdir(parents=True)
    with open(beir / "corpus.jsonl", "w") as file:
        for i, text in enumerate(texts):
            file.write(json.dumps({"_id": f"d{i}", "title": "", "text": text}) + "\n")
    with open(beir / "queries.jsonl", "w") as file:
        for i, text in enumerate(texts):
            file.write(json.dumps({"_id": f"q{i}", "text": " ".join(text.split()[:6])}) + "\n")
    for split, rows in (("train", range(100)), ("test", range(100, 150))):
        (beir / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in rows))
    done = foretext("prepare", folder / "corpus.jsonl", "-o", folder / "store", "--vocab-size", 512, "--max-tokens", 62)
    assert "150 lines, 150 accepted" in done.stdout
    assert "next: foretext pretrain" in done.stdout
    return folder


@pytest.fixture(scope="module")
def run(place):
    """A pre-trained run."""
    done = foretext("pretrain", "contrastive", "-d", place / "store", "-o", place / "run", "--steps", 20, *TINY)
    assert "next: foretext encode" in done.stdout
    return place / "run"


def test_pretrain_leaves_a_run_folder(run):
    assert {"run.json", "metrics.jsonl", "tensorboard", "checkpoints", "export"} <= {path.name for path in run.iterdir()}
    reports = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in reports if "loss" in r] == [5, 10, 15, 20]
    assert [r["step"] for r in reports if "valid_loss" in r] == [10, 20]
    assert all(r["tokens_per_second"] > 0 and r["share_of_peak"] > 0 for r in reports if "loss" in r)


def test_the_same_command_again_does_nothing(place, run):
    before = (run / "metrics.jsonl").read_bytes()
    done = foretext("pretrain", "contrastive", "-d", place / "store", "-o", run, "--steps", 20, *TINY)
    assert "already trained" in done.stderr
    assert (run / "metrics.jsonl").read_bytes() == before


def test_other_settings_do_not_overwrite_a_run(place, run):
    done = foretext("pretrain", "contrastive", "-d", place / "store", "-o", run, "--steps", 21, *TINY, code=2)
    assert "training.steps: 20 there, 21 here" in done.stderr
    assert "Traceback" not in done.stderr


def test_finetune_evaluate_search_export(place, run):
    tuned = place / "tuned"
    foretext("finetune", "retriever", "-d", place / "beir", "--encoder", run, "-o", tuned, "--steps", 10, "--set", "training.batch_size=8")
    done = foretext("evaluate", tuned, place / "beir", "--hybrid", "-o", place / "scores")
    assert "BM25" in done.stdout
    assert "nDCG@10" in done.stdout
    assert {"scores.json", "run.trec", "per-query.tsv"} == {path.name for path in (place / "scores").iterdir()}
    foretext("encode", tuned, place / "corpus.jsonl", "-o", place / "index")
    words = made_up_texts(150, seed=21)[7]
    for option in ([], ["--hybrid"]):
        hits = foretext("search", place / "index", words, "-k", 3, *option).stdout
        assert "doc 7" in hits.splitlines()[0]
    foretext("search", place / "index", "--queries", place / "beir" / "queries.jsonl", "-o", place / "found.trec")
    assert len((place / "found.trec").read_text().splitlines()) == 150 * 150  # a run holds up to 1,000 documents for each query
    assert foretext("search", place / "index", "-", "-k", 1, input=f"{words}\n\nanother\n").stdout.count("\n") == 6
    done = foretext("export", tuned, "-o", place / "elsewhere")
    from sentence_transformers import SentenceTransformer

    from foretext.retrieval.embed import TextEncoder

    theirs = SentenceTransformer(str(place / "elsewhere"), device="cpu").encode(["some text"])
    np.testing.assert_allclose(theirs, TextEncoder.load(tuned / "export").encode(["some text"]), atol=1e-5)


def test_settings_file(place):
    text = foretext("init", "mlm").stdout
    file = place / "run.yaml"
    file.write_text(text.replace("stores/mine", str(place / "store")).replace("runs/mlm", str(place / "from-yaml")))
    foretext("pretrain", file, "--steps", 5, *TINY)
    file.write_text(text.replace("batch_size", "bach_size"))
    done = foretext("pretrain", file, code=2)
    assert "did you mean batch_size?" in done.stderr
    assert str(file) in done.stderr


@pytest.mark.parametrize("name", ["mpnet", "electra", "retromae", "dupmae", "condenser", "cocondenser", "clm", "contrastive", "retriever",
                                  "reranker", "classifier"])
def test_every_settings_file_is_valid(name):
    import yaml

    from foretext.config import check
    from foretext.verbs.init import TASKS, settings_file
    from foretext.verbs.pretrain import PretrainConfig

    check(TASKS[name][0] if name in TASKS else PretrainConfig, yaml.safe_load(settings_file(name)))


@pytest.mark.parametrize(("arguments", "said"), [
    (["prepare", "nowhere/*.txt", "-o", "out"], "nowhere"),
    (["pretrain", "mlmm", "-d", "STORE", "-o", "out"], "choose one of"),
    (["pretrain", "mlm", "-d", "nowhere", "-o", "out"], "no token store"),
    (["pretrain", "mlm", "-d", "STORE", "-o", "out", "--encoder", "bert-gigantic"], "bert-gigantic"),
    (["pretrain", "mlm", "-d", "STORE", "-o", "out", "--set", "training.optim.lr=fast"], "training.optim.lr"),
    (["pretrain", "mlm", "-d", "STORE", "-o", "out", "--set", "objective.shares=.2"], "did you mean share?"),
    (["pretrain", "mlm", "-d", "STORE", "-o", "out", "--set", "training.optim.power=2"], "no effect"),
    (["pretrain", "mlm", "-d", "STORE", "-o", "out", "--steps", "5", "--minutes", "1"], "one of steps, tokens, epochs and minutes"),
    (["pretrain", "nowhere.yaml"], "no such file"),
    (["evaluate", "nowhere", "BEIR"], "nowhere"),
    (["evaluate", "bm25", "BEIR", "--split", "dev"], "dev"),
    (["search", "nowhere", "a question"], "nothing to search"),
    (["encode", "RUN", "nowhere.txt", "-o", "out"], "nowhere.txt"),
    (["finetune", "retriever", "-d", "BEIR", "-o", "out", "--encoder", "bert-tiny"], "starts from scratch and has none"),
    (["export", "nowhere", "-o", "out"], "no finished run"),
    (["init", "nothing"], "choose one of"),
    (["prepare", "STORE/../corpus.jsonl", "-o", "out", "--shard", "3/2"], "--shard 3/2"),
    (["prepare", "STORE/../corpus.jsonl", "-o", "STORE"], "already exists"),
], ids=lambda value: "-".join(value[:3]) if isinstance(value, list) else None)
def test_wrong_input_is_one_sentence(place, run, tmp_path, arguments, said):
    names = {"STORE": str(place / "store"), "BEIR": str(place / "beir"), "RUN": str(run)}
    arguments = [names.get(a, a.replace("STORE/", f"{place}/store/")) for a in arguments]
    done = foretext(*arguments, code=2, cwd=tmp_path)
    message = [line for line in done.stderr.splitlines() if line.startswith("foretext: ")]
    assert len(message) == 1
    assert said in message[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_stop_signal_writes_a_checkpoint_and_the_same_command_goes_on(place, tmp_path):
    arguments = ["pretrain", "mlm", "-d", place / "store", "-o", tmp_path / "run", "--steps", "300", *TINY]
    command = [sys.executable, "-c", "from foretext.cli import main; main()", *map(str, arguments)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not list((tmp_path / "run").glob("checkpoints/step-*")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "the same command goes on" in said
    done = foretext(*arguments)
    assert "going on from step" in done.stderr


@pytest.mark.slow
def test_kill_9_and_resume_ends_with_the_same_bits(place, tmp_path):
    """Killed at random moments of its life, started again each time: the final weights are those of a run left alone."""
    def arguments(output):
        return ["pretrain", "retromae", "-d", place / "store", "-o", output, "--steps", "60", *TINY,
                "--set", "encoder.dropout=0.1", "--set", "training.checkpoint_every=7"]

    begin = time.monotonic()
    foretext(*arguments(tmp_path / "whole"))
    took = time.monotonic() - begin
    seed, kills = int(time.time()), 0
    print(f"the moments are those of seed {seed}")
    draw = np.random.default_rng(seed)
    while not (tmp_path / "killed" / "export").exists():
        command = [sys.executable, "-c", "from foretext.cli import main; main()", *map(str, arguments(tmp_path / "killed"))]
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=took * (float(draw.uniform(0.3, 0.9)) + 0.2 * kills))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert kills > 0
    whole, killed = (load_file(tmp_path / run / "checkpoints" / "step-60" / "objective.safetensors") for run in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for name, tensor in whole.items():
        assert (tensor == killed[name]).all(), name


def test_help_follows_the_road():
    """Every verb has its place, and the places are in order."""
    from typer.main import get_command

    from foretext.cli import app

    commands = get_command(app).commands
    panels = [command.rich_help_panel for command in commands.values()]
    assert list(dict.fromkeys(panels)) == ["Start", "Text", "Train", "Search", "Use"]
    order = list(commands)
    road = ("quickstart", "prepare", "pretrain", "finetune", "mine", "encode", "search", "evaluate", "export")
    assert [order.index(verb) for verb in road] == sorted(order.index(verb) for verb in road)
