"""Every objective on every layout, small: what the table-wide tests run over."""

from functools import lru_cache

import numpy as np
import torch

from foretext.model.encoder import Encoder
from foretext.model.presets import preset
from foretext.objectives import OBJECTIVES
from foretext.text.batches import Batches
from foretext.text.pairs import LabelledPairs, Texts
from foretext.text.tokenizer import Tokenizer
from tests.conftest import made_up_texts

LAYOUTS = ("bert-tiny", "mpnet-tiny", "modernbert-tiny")
TABLE = [(name, layout) for name in OBJECTIVES for layout in LAYOUTS]

# At temperature .02 a rounding of a cosine is multiplied by 50, which alone is above the 1e-6 asked of fp32 gradients.
# A dot product of vectors that are not normalised is just as sharp.
CONFIGS = {"contrastive": {"temperature": 0.1}, "cocondenser": {"temperature": 32.0}}

NOTHING_TO_CHOOSE = {"contrastive", "clm"}  # given pairs and whole texts: every epoch shows the same


@lru_cache
def small_tokenizer() -> Tokenizer:
    return Tokenizer.train(made_up_texts(400, seed=7), kind="wordpiece", vocab_size=512)


def make_objective(name: str, layout: str = "bert-tiny", seed: int = 0, **changes):
    """A tiny objective with random weights; biases and gains perturbed, so that nothing hides behind zeros and ones."""
    torch.manual_seed(seed)
    if layout.startswith("modernbert"):
        changes = {"layers": 4, "window": 8} | changes  # a global, two local and a global layer, windows shorter than the texts
    encoder = Encoder(preset(layout, small_tokenizer().size, max_len=64, **changes))
    objective = OBJECTIVES[name](encoder, small_tokenizer(), OBJECTIVES[name].Config(**CONFIGS.get(name, {})))
    with torch.no_grad():
        for parameter in objective.parameters():
            if parameter.ndim == 1:
                parameter += 0.05 * torch.randn_like(parameter)
    return objective


def make_source(objective, count: int = 48):
    """Made-up texts of mixed length in the form the objective reads."""
    texts = made_up_texts(count, seed=11)
    if objective.reads == "pairs":
        halves = [text.split(" ") for text in texts]
        queries = [" ".join(words[: len(words) // 2]) for words in halves]
        passages = [" ".join(words[len(words) // 2 :]) for words in halves]
        return LabelledPairs(queries, passages, np.stack((np.arange(count), np.arange(count)), 1), small_tokenizer())
    return Texts(texts, small_tokenizer())


def one_step(objective, batch_size: int = 32, micro_tokens: int = 10**9, step: int = 0, rank: int = 0, world: int = 1):
    """The micro-batches of a step over the made-up texts."""
    source = make_source(objective)
    return Batches(source, objective.collate, batch_size, micro_tokens, seed=5, rank=rank, world=world).step(step)
