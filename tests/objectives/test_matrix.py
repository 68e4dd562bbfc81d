"""Any objective on any encoder: ten steps of every cell, made as `pretrain` makes it; docs/objectives.md shows what was found.

To write the table anew: FORETEXT_WRITE=1 python -m pytest -m "slow or not slow" tests/objectives/test_matrix.py
"""

import math
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from foretext.errors import UserError
from foretext.objectives import OBJECTIVES
from foretext.text.grouped import GroupedPairs
from foretext.text.pairs import Texts
from foretext.text.randomness import example_keys
from foretext.text.tokenizer import Tokenizer
from foretext.training.distributed import World
from foretext.training.step import backward
from foretext.verbs.pretrain import PretrainConfig, make_objective
from tests.conftest import made_up_texts
from tests.objectives.table import related_texts

ALONE = World(0, 1, torch.device("cpu"))
PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"
START, END = "<!-- from tests/objectives/test_matrix.py -->", "<!-- end -->"
STEPS, TEXTS, MAX_LEN = 10, 4, 32

COLUMNS = {  # heading -> (what training starts from, kind of the tokenizer)
    "bert": ("bert-tiny", "wordpiece"),
    "roberta": ("roberta-tiny", "bpe"),
    "electra": ("electra-tiny", "wordpiece"),
    "mpnet": ("mpnet-tiny", "bpe"),
    "modernbert": ("modernbert-tiny", "wordpiece"),
    "Hugging Face folder": ("MINILM", "own"),
    "mpnet, WordPiece": ("mpnet-tiny", "wordpiece"),
    "convert": ("convert-mini", "wordpiece"),
}
FAST = ("bert", "mpnet", "modernbert", "mpnet, WordPiece", "convert")  # columns of the quick version
TRAINS, ALONE_EXPORTED, REFUSED, NOT_TOGETHER = "yes", "yes ¹", "no ²", "no ³"


@lru_cache
def words_of(kind: str, folder: Path) -> Tokenizer:
    return Tokenizer.load(folder) if kind == "own" else Tokenizer.train(made_up_texts(400, seed=7), kind=kind, vocab_size=512)


def examples_for(objective):
    """A few texts, or their halves as pairs."""
    texts = made_up_texts(TEXTS, seed=11)
    if objective.reads == "documents":
        source = Texts(texts, objective.tokenizer)
    elif objective.reads == "clusters":
        source = related_texts(texts, objective.tokenizer)
    else:
        halves = [text.split(" ") for text in texts]
        numbers = np.arange(TEXTS)
        source = GroupedPairs.linked([" ".join(h[: len(h) // 2]) for h in halves], [" ".join(h[len(h) // 2 :]) for h in halves],
                               np.stack((numbers, numbers), 1), objective.tokenizer)
    rows = np.arange(len(source.lengths))
    return source.read(rows, example_keys(1, 0, torch.from_numpy(rows)))


def ten_steps(name: str, column: str, minilm: Path, folder: Path) -> str:
    """Train one cell: what the table says about it, checked."""
    start, kind = COLUMNS[column]
    config = PretrainConfig(store="", output="", objective={"name": name, "max_len": MAX_LEN},
                            encoder={"start": str(minilm) if start == "MINILM" else start})
    words = words_of(kind, minilm)
    if column == "mpnet, WordPiece":
        with pytest.raises(UserError, match="padding has id 1"):
            make_objective(config, words, MAX_LEN)
        return REFUSED
    family = start.split("-")[0] if start != "MINILM" else "bert"
    if family not in OBJECTIVES[name].families:
        with pytest.raises(UserError, match=f"objective {name} goes with encoders of .*, found {family}"):
            make_objective(config, words, MAX_LEN)
        return NOT_TOGETHER
    objective = make_objective(config, words, MAX_LEN)
    batch = objective.collate(examples_for(objective))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-4 if start == "MINILM" else 1e-3, fused=True)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        sums = backward(objective, [batch], ALONE)
        found = [term for term in objective.terms if term in sums]
        losses.append(sum(objective.weights.get(term, 1.0) * float(sums[term][0]) / sums[term][1] for term in found))
        optimizer.step()
    assert all(math.isfinite(loss) for loss in losses), (name, column, losses)
    assert losses[-1] < losses[0], (name, column, losses)
    try:
        objective.save_networks(folder / f"{name}-{column}")
    except UserError as error:
        assert "transformers" in str(error) and ("classes hold no" in str(error) or "no causal model of" in str(error))
        return ALONE_EXPORTED
    return TRAINS


def written() -> list[list[str]]:
    """The cells of the table in the documentation, heading first."""
    table = PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0].strip().splitlines()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("|")]
    return [lines[0], *lines[2:]]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_small_encoders_are_as_the_table_says(name, minilm, tmp_path):
    heading, *rows = written()
    row = {cells[0]: dict(zip(heading, cells)) for cells in rows}[f"[`{name}`](#{name})"]
    for column in FAST:
        assert ten_steps(name, column, minilm, tmp_path) == row[column]


@pytest.mark.slow
def test_the_table_is_what_every_cell_does(minilm, tmp_path):
    found = [["objective", *COLUMNS]]
    for name in OBJECTIVES:
        found.append([f"[`{name}`](#{name})", *(ten_steps(name, column, minilm, tmp_path) for column in COLUMNS)])
    if os.environ.get("FORETEXT_WRITE"):
        before, rest = PAGE.read_text(encoding="utf-8").split(START)
        lines = ["| " + " | ".join(cells) + " |" for cells in found]
        table = "\n".join([lines[0], "|---" * len(found[0]) + "|", *lines[1:]])
        PAGE.write_text(f"{before}{START}\n{table}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    assert written() == found, "docs/objectives.md has another table; the head of this file says how to write it anew"


def test_every_objective_has_a_paragraph():
    page = PAGE.read_text(encoding="utf-8")
    for name, objective in OBJECTIVES.items():
        part = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        file = objective.__module__.replace(".", "/") + ".py"
        assert f"../{file}" in part, name
        unknown = [field for field in objective.Config.model_fields if field != "max_len" and f"`{field}`" not in page]
        assert not unknown, f"{name}: docs/objectives.md does not name {unknown}"
