"""The pages for people who come from elsewhere: every command on them, at toy size, on made-up text."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import made_up_texts

PAGES = Path(__file__).parents[2] / "docs" / "coming-from"
SMALL = ["--steps", "3", "--set", "training.batch_size=8", "--set", "training.log_every=1"]
TOY = {  # verb -> what makes it small; the last of two equal settings counts
    "prepare": ["--vocab-size", "512", "--max-tokens", "62"], "pretrain": [*SMALL, "--set", "encoder.start=bert-tiny"],
    "retriever": [*SMALL, "--set", "group_size=3"], "reranker": [*SMALL, "--set", "group_size=3"],
    "mine": ["--rank-to", "20", "--negatives", "5"], "rerank": ["-k", "12"], "evaluate": [],
}


def commands(page: Path) -> list[list[str]]:
    """The commands of a page's bash blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("foretext ")]


@pytest.fixture
def place(tmp_path):
    texts = made_up_texts(60, seed=21)
    (tmp_path / "data" / "qrels").mkdir(parents=True)
    for name, records in (("corpus", ({"_id": f"d{i}", "title": "", "text": t} for i, t in enumerate(texts))),
                          ("queries", ({"_id": f"q{i}", "text": t[:40]} for i, t in enumerate(texts)))):
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for split, rows in (("train", range(40)), ("test", range(40, 60))):
        (tmp_path / "data" / "qrels" / f"{split}.tsv").write_text(
            "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in rows))
    return tmp_path


@pytest.mark.slow
def test_retromae(place):
    found = commands(PAGES / "retromae.md")
    assert [c[1] if c[1] != "finetune" else c[2] for c in found] == [
        "prepare", "pretrain", "mine", "retriever", "mine", "retriever", "mine", "reranker", "rerank", "retriever", "evaluate"]
    for command in found:
        verb = command[2] if command[1] == "finetune" else command[1]
        run = [sys.executable, "-c", "from foretext.cli import main; main()", *command[1:], *TOY[verb]]
        done = subprocess.run(run, cwd=place, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    assert "nDCG@10" in done.stdout
    assert (place / "runs" / "distilled" / "export" / "modules.json").is_file()
