"""Every objective on every layout, small: what the table-wide tests run over."""

from functools import lru_cache

import numpy as np
import torch

from foretext.model.presets import preset
from foretext.model.towers import new_encoder
from foretext.objectives import OBJECTIVES, TASKS
from foretext.text.batches import Batches
from foretext.text.clusters import ClusterSource, texts_of
from foretext.text.evidence import Clusters
from foretext.text.grouped import GroupedPairs, Lists
from foretext.text.labelled import LabelledTexts
from foretext.text.pairs import Conversations, Texts
from foretext.text.tokenizer import Tokenizer
from tests.conftest import made_up_texts

LAYOUTS = ("bert-tiny", "mpnet-tiny", "modernbert-tiny")
OWN_LAYOUT = {"convert": "convert-mini"}  # an objective that goes with its own network alone
EVERY = OBJECTIVES | TASKS
TABLE = [(name, layout) for name in EVERY for layout in ([OWN_LAYOUT[name]] if name in OWN_LAYOUT else LAYOUTS)]
TABLE += [("dual", "convert-mini")]

# At temperature .02 a rounding of a cosine is multiplied by 50, which alone is above the 1e-6 asked of fp32 gradients.
# A dot product of vectors that are not normalised is just as sharp. An untrained cross-encoder scores the passages of a group alike, and
# the gradient of the listwise loss is the small difference of large ones: test_rerank.py compares it in fp64.
CONFIGS = {"contrastive": {"temperature": 0.1}, "marge": {"refresh_every": 2, "cluster_tokens": 200},
           "dual": {"scale_start": 5.0, "reduction": "2ha", "towers": "separate"},
           "convert": {"score_scale": "learned", "scale_start": 5.0}, "cocondenser": {"temperature": 32.0},
           "seq2seq": {"decoder_layers": 2},
           "rerank": {"dropout": 0.0, "loss": "pointwise"}, "classify": {"dropout": 0.0, "labels": ("a", "b", "c")}}

NOTHING_TO_CHOOSE = {"marge", "contrastive", "convert", "clm", "classify"}  # given pairs and whole texts: every epoch shows the same


@lru_cache
def small_tokenizer() -> Tokenizer:
    return Tokenizer.train(made_up_texts(400, seed=7), kind="wordpiece", vocab_size=512)


def make_objective(name: str, layout: str = "bert-tiny", seed: int = 0, **changes):
    """A tiny objective with random weights; biases and gains perturbed, so that nothing hides behind zeros and ones."""
    torch.manual_seed(seed)
    layout, config = OWN_LAYOUT.get(name, layout), dict(CONFIGS.get(name, {}))
    if layout.startswith("convert"):  # no dropout in the encoder: it has none inside
        config |= {"dropout": changes.pop("dropout", 0.0)}
        changes.pop("attention_dropout", None)
        changes = {"width": 64, "ffn_width": 128, "windows": (2, 5, 48)} | changes
    if layout.startswith("modernbert"):
        changes = {"layers": 4, "window": 8} | changes  # a global, two local and a global layer, windows shorter than the texts
    encoder = new_encoder(preset(layout, small_tokenizer().size, max_len=64, **changes))
    objective = EVERY[name](encoder, small_tokenizer(), EVERY[name].Config(**config))
    with torch.no_grad():
        for parameter in objective.parameters():
            if parameter.ndim == 1:
                parameter += 0.05 * torch.randn_like(parameter)
        if layout.startswith("convert"):
            encoder.words.weight *= 20  # fresh, it says nearly the same of every text, and differences of vectors are rounding
    return objective


class Talks:
    """Conversations of three texts; every third has no earlier turn."""

    def __init__(self, contexts: list[str], responses: list[str], earlier: list[str], tokenizer: Tokenizer):
        self.sides = [Texts(texts, tokenizer) for texts in (contexts, responses, earlier)]
        self.lengths = sum(side.lengths for side in self.sides)

    def read(self, rows: np.ndarray, keys: torch.Tensor) -> Conversations:
        contexts, responses, earlier = (side.read(rows, keys) for side in self.sides)
        kept = torch.where(torch.from_numpy(rows % 3 == 0), 0, earlier.lengths)
        return Conversations(contexts, responses, earlier.part(torch.zeros_like(kept), kept))


def make_source(objective, count: int = 48):
    """Made-up texts of mixed length in the form the objective reads."""
    texts = made_up_texts(count, seed=11)
    halves = [text.split(" ") for text in texts]
    queries = [" ".join(words[: len(words) // 2]) for words in halves]
    passages = [" ".join(words[len(words) // 2 :]) for words in halves]
    numbers = np.arange(count)
    if objective.name == "convert":
        return Talks(queries, passages, made_up_texts(count, seed=12), small_tokenizer())
    if objective.reads == "clusters":
        return related_texts(texts)
    if objective.reads == "groups":
        positives, negatives = Lists.of(numbers[:, None].tolist()), Lists.of([[(i + j) % count for j in range(1, 7)] for i in numbers])
        return GroupedPairs(queries, passages, numbers, positives, negatives, small_tokenizer(), size=3)
    if objective.reads == "labelled":
        return LabelledTexts(queries, passages, torch.arange(count) % 3, small_tokenizer())
    if objective.reads == "pairs":
        return GroupedPairs.linked(queries, passages, np.stack((np.arange(count), np.arange(count)), 1), small_tokenizer())
    return Texts(texts, small_tokenizer())


def related_texts(texts: list[str], tokenizer: Tokenizer | None = None) -> ClusterSource:
    """Texts in fixed clusters: two neighbours are rebuilt from themselves and the two texts after them."""
    source, count = Texts(texts, tokenizer or small_tokenizer()), len(texts)
    groups = [([i, i + 1], [(i + j) % count for j in range(4)]) for i in range(0, count, 2)]
    return ClusterSource(*2 * [texts_of(source, np.arange(count))], Clusters.of(groups))


def one_step(objective, batch_size: int = 32, micro_tokens: int = 10**9, step: int = 0, rank: int = 0, world: int = 1):
    """The micro-batches of a step over the made-up texts."""
    source = make_source(objective)
    return Batches(source, objective.collate, batch_size, micro_tokens, seed=5, rank=rank, world=world).step(step)
