"""A tokenizer without a mask token: a sentence from the objectives that need one, and no word from the others."""

import pytest

from foretext.errors import UserError
from foretext.objectives import OBJECTIVES
from foretext.text.tokenizer import Tokenizer
from tests.objectives import table


@pytest.fixture
def maskless(monkeypatch) -> None:
    whole = table.small_tokenizer()
    without = Tokenizer(whole.backend, {role: token for role, token in whole.specials.items() if role != "mask"}, "without")
    monkeypatch.setattr(table, "small_tokenizer", lambda: without)


@pytest.mark.parametrize("name", [name for name, kind in OBJECTIVES.items() if kind.masks])
def test_those_that_mask_say_so(name, maskless):
    with pytest.raises(UserError, match="no mask token"):
        table.make_objective(name)


@pytest.mark.parametrize("name", ["clm", "contrastive"])
def test_others_need_none(name, maskless):
    objective = table.make_objective(name)
    objective(table.one_step(objective)[0])


def test_seq2seq_needs_one_for_infill_alone(maskless, monkeypatch):
    monkeypatch.setitem(table.CONFIGS, "seq2seq", {"noise": "delete"})
    objective = table.make_objective("seq2seq")
    batch = table.one_step(objective)[0]
    objective(batch)
    assert objective.show(batch)


def test_which_mask():
    assert {name for name, kind in OBJECTIVES.items() if kind.masks} >= {
        "mlm", "mpnet", "electra", "retromae", "dupmae", "condenser", "cocondenser"}
