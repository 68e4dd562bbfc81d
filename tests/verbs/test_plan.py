"""What a plan says agrees with the arithmetic it names."""

import json
import re

import pytest

from foretext.errors import UserError
from foretext.text.prepare import prepare
from foretext.verbs.plan import plan
from foretext.verbs.pretrain import settings
from tests.conftest import made_up_texts


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in made_up_texts(150, seed=21)))
    prepare([str(folder / "corpus.jsonl")], folder / "store", vocab_size=512, max_tokens=62)
    return str(folder / "store")


def described(store, name="mlm", sets=(), **options) -> dict[str, str]:
    given = {"objective.name": name, "store": store, "output": "unused", "encoder.start": "bert-tiny"}
    lines = plan(settings(None, given, ["training.batch_size=16", *sets]), seconds=1, **options)
    return {line.split(":")[0]: line.split(":", 1)[1] for line in lines}


def test_steps_follow_from_epochs(store):
    said = described(store, sets=["training.epochs=3"])
    steps = int(re.search(r"([\d,]+) steps", said["run"])[1].replace(",", ""))
    examples = int(re.search(r"([\d,]+) examples", said["data"])[1].replace(",", ""))
    assert steps == round(3 * examples / 16)
    assert "(3.0 passes)" in said["run"]


def test_more_gpus_take_less_time(store):
    alone, together = (described(store, sets=["training.steps=2000000"], gpu="l4", gpus=n)[f"{n} x l4"].split(",")[0] for n in (1, 8))
    minutes = [sum(int(n) * scale for n, scale in zip(re.findall(r"\d+", text)[::-1], (1, 60) if "s" in text else (60, 3600)))
               for text in (alone, together)]
    assert minutes[0] == pytest.approx(8 * minutes[1], rel=0.2)


def test_objectives_that_compare_rows_are_measured_split(store):
    assert "contrastive on bert-tiny" in described(store, "contrastive", ["training.micro_tokens=64"])


def test_an_objective_that_chooses_its_examples(store):
    said = described(store, "marge", ["objective.refresh_every=10"])
    assert said["run"].split()[:2] == ["2,000", "steps"]
    assert "marge on bert-tiny" in said


def test_auto_says_how_many_tokens_at_once(store, capsys):
    described(store, sets=["training.micro_tokens=auto"])
    assert "training.micro_tokens: 2,048, measured" in capsys.readouterr().err  # a step has fewer


def test_a_step_too_short_for_a_gpu_is_said(store):
    assert "more like 20s, as launching" in described(store, sets=["training.steps=1000"], gpu="H200")["1 x h200"]


@pytest.mark.parametrize("value", ["atuo", "0"])
def test_wrong_micro_tokens_are_one_sentence(store, value):
    with pytest.raises(UserError, match=rf"^training.micro_tokens: input should be .*, or input should be 'auto', found .?{value}"):
        described(store, sets=[f"training.micro_tokens={value}"])


def test_an_unknown_gpu_is_one_sentence(store):
    with pytest.raises(UserError, match="choose one of l4"):
        described(store, gpu="abacus")
