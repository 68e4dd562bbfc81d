"""`foretext generate`: texts from a model that writes (seq2seq, clm), by greedy choice, beams or sampling."""

from collections.abc import Sequence
from pathlib import Path

import torch

from foretext.config import check
from foretext.errors import UserError
from foretext.files import read_json
from foretext.model.bart import load_bart
from foretext.model.folder import locate, read_heads
from foretext.model.generation import GenerationConfig
from foretext.model.huggingface import load as load_huggingface
from foretext.objectives import OBJECTIVES
from foretext.objectives.base import Objective
from foretext.objectives.seq2seq import Seq2Seq
from foretext.progress import progress
from foretext.text.tokenizer import Tokenizer
from foretext.training.distributed import World
from foretext.verbs.models import model_folder
from foretext.verbs.pretrain import continue_heads

GREEDY = GenerationConfig()
AT_ONCE = 32  # texts; changes memory, not the result (of greedy choice and beams)


def generate(model: str | Path, texts: Sequence[str], config: GenerationConfig = GREEDY) -> list[str]:
    """What the model writes for each text: a target for each source (seq2seq), or the text and how it goes on (clm).

    From MARGE one text comes of all of them together: they are its evidence.

    Args:
        model: a run folder, its export, or a BART folder that this package wrote.
    Raises:
        UserError: the model cannot write, or a prompt is too long to go on from.
    """
    objective = load_writer(model)
    tokenizer, made = objective.tokenizer, []
    prompts = [torch.from_numpy(ids).long() for ids in tokenizer.encode(list(texts))]
    at_once = len(prompts) if objective.reads == "clusters" else AT_ONCE  # evidence belongs together
    with progress("writing", len(prompts)) as advance:
        for first in range(0, len(prompts), at_once):
            some = prompts[first : first + at_once]
            made += [tokenizer.decode(ids.tolist()) for ids in objective.generate(some, config)]
            advance(len(some))
    return made


def load_writer(model: str | Path) -> Objective:
    """The objective that a folder was trained with, its weights complete, in eval mode."""
    folder = Path(locate(model_folder(model)))
    tokenizer = Tokenizer.load(folder)
    if read_json(folder / "config.json").get("model_type") == "bart":
        encoder, decoder, output = load_bart(folder)
        objective = Seq2Seq(encoder, tokenizer, Seq2Seq.Config(decoder_layers=len(decoder.blocks)))
        objective.decoder, objective.output = decoder, output
        return objective.to(World.join().device).eval()
    heads, run = read_heads(folder), Path(model) / "run.json"
    trained = read_json(run)["settings"]["objective"] if run.is_file() else {"name": heads.objective} | heads.options if heads else {}
    kind = OBJECTIVES.get(trained.get("name"))
    if kind is None or not hasattr(kind, "generate"):
        writers = ", ".join(name for name, kind in OBJECTIVES.items() if hasattr(kind, "generate"))
        found = f"was trained with {trained['name']}, which does not write" if trained else "does not say that it can write"
        raise UserError(f"{model}: {found}; name a run folder of one of {writers}")
    found = load_huggingface(folder)
    options = {name: value for name, value in trained.items() if name != "name"}
    objective = kind(found.encoder, tokenizer, check(kind.Config, options, f"{folder}/heads.json"))
    fresh = [note for note in continue_heads(objective, found.head, heads) if note.startswith("start fresh")]
    if fresh:
        raise UserError(f"{folder}: its heads are not complete ({fresh[0].removeprefix('start fresh: ')} missing); export the run again")
    return objective.to(World.join().device).eval()
