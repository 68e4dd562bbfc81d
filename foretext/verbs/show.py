"""`foretext show`: what an objective asks of the model, about a text of your own or rows of a store."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from foretext.errors import UserError
from foretext.objectives.base import Batch, Objective
from foretext.objectives.show import Shown
from foretext.text.batches import Source
from foretext.text.pairs import Texts
from foretext.text.randomness import example_keys, permutation
from foretext.text.sentences import split_sentences
from foretext.text.store import Store
from foretext.text.tokenizer import Tokenizer
from foretext.training.refresh import arranged
from foretext.verbs import pretrain as pretraining
from foretext.verbs.pretrain import PretrainConfig

SENTENCE = 2000  # characters, longest


def show(what: str, texts: list[str] = (), store: str | None = None, tokenizer: str | None = None, encoder: str | None = None,
         count: int = 2, epoch: int = 0, sets: list[str] = ()) -> tuple[list[Shown], Tokenizer]:
    """What `what` asks about `texts`, or about the first `count` rows that a run over `store` would read in this epoch.

    Args:
        tokenizer: folder or hub id; default: the store's, or the encoder's.
        encoder: as for `pretrain`; only what a network answers depends on it (ELECTRA's generator writes the samples).
        sets: settings as for `pretrain` ("objective.share=.3", "training.seed=2").
    Raises:
        UserError: neither texts nor a store, no tokenizer, or texts that are too short to make pairs of.
    """
    if bool(texts) == bool(store):
        raise UserError("say what to show by one of --text and --store")
    config = pretraining.settings(None, {"objective.name": what, "store": store or "", "output": "", "encoder.start": encoder,
                             "valid_share": 0.0}, sets)
    opened = Store.open(store) if store else None
    words = find_tokenizer(opened, tokenizer, encoder)
    longest = pretraining.longest_row(opened) if opened else max(len(ids) for ids in words.encode(texts)) + 2
    objective = pretraining.make_objective(config, words, max(longest, pretraining.SHORTEST_MAX_LEN)).eval()
    source = arranged(objective, read_from(objective, config, opened, texts), config.training.seed)
    batch = first_batch(objective, source, config.training.seed, epoch, count if opened else len(texts))
    return objective.show(batch), words


def find_tokenizer(store: Store | None, tokenizer: str | None, encoder: str | None) -> Tokenizer:
    """The store's tokenizer, the one that is named, or the encoder's own, in this order."""
    if store:
        return store.tokenizer
    if tokenizer:
        return Tokenizer.load(tokenizer)
    if encoder and not pretraining.is_preset(encoder):
        return Tokenizer.load(pretraining.model_folder(encoder))
    raise UserError("a text needs a tokenizer: name a folder that has one with --tokenizer or --encoder, or take rows of a --store")


def read_from(objective: Objective, config: PretrainConfig, store: Store | None, texts: list[str]) -> Source:
    """The store's rows, or the texts themselves, in the form that the objective reads."""
    if store:
        return pretraining.sources(config, store, objective)[0]
    if objective.reads == "documents":
        return Texts(texts, objective.tokenizer)
    return pretraining.sources(config, in_memory(texts, objective.tokenizer), objective)[0]


def in_memory(texts: list[str], tokenizer: Tokenizer) -> Any:
    """Each text as a row and a document of its own, with what of a store the making of pairs reads."""
    pieces = [split_sentences(text, SENTENCE) for text in texts]
    ids, lengths = tokenizer.encode_pieces(pieces)
    counts = np.array([len(sentences) for sentences in pieces])
    ends = np.concatenate(([0], np.cumsum(lengths)))
    sentence_offsets = np.concatenate(([0], np.cumsum(counts)))
    offsets = ends[sentence_offsets]
    return SimpleNamespace(path=Path("--text"), pairs=False, tokens=ids, offsets=offsets, documents=np.arange(len(texts)),
                           title_lengths=np.zeros(len(texts), np.int64), sentence_offsets=sentence_offsets,
                           sentence_starts=ends[:-1] - np.repeat(offsets[:-1], counts))


def first_batch(objective: Objective, source: Source, seed: int, epoch: int, count: int) -> Batch:
    """The batch of the first examples of an epoch; texts that were named keep their order."""
    total = len(source.lengths)
    rows = np.arange(total) if count >= total else permutation(total, seed, epoch)[:count]
    return objective.collate(source.read(rows, example_keys(seed, epoch, torch.from_numpy(rows))))
