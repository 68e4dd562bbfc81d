"""What a refresh of MARGE costs, and how it grows with the corpus: embedding, search, clusters; exact and by FAISS.

    python benchmarks/refresh.py [--sizes 2000 4000 8000 16000] [--search exact ivfpq] [--shard 20000] [--encoder bert-tiny]

Texts are made-up tokens in groups of four that share most of them. Prints texts per second of each part, the time by which the largest
corpus exceeds proportion to the smallest, and the share of the training time at the default of 1,000 steps a round. One thread, and its
time, unless OMP_NUM_THREADS says otherwise.
"""

import argparse
import os

import numpy as np
import torch
from turns import clock

from foretext.model.encoder import Encoder
from foretext.model.presets import preset
from foretext.objectives.marge import MARGE, SHARD
from foretext.text.batches import Documents
from foretext.text.clusters import ClusterSource, texts_of
from foretext.text.tokenizer import Tokenizer
from foretext.training.distributed import World
from foretext.training.refresh import Corpus, Rounds
from foretext.training.step import backward

THREADS = int(os.environ.get("OMP_NUM_THREADS", 1))
now = clock(THREADS)
ALONE = World(0, 1, torch.device("cpu"))


class MadeUp:
    """`count` texts of `tokens` tokens; four neighbours share three quarters of them."""

    def __init__(self, count: int, tokens: int, vocabulary: int):
        draw = np.random.default_rng(0)
        shared = np.repeat(draw.integers(5, vocabulary, (-(-count // 4), tokens)), 4, axis=0)[:count]
        self.ids = np.where(draw.random(shared.shape) < 0.25, draw.integers(5, vocabulary, shared.shape), shared)
        self.lengths = np.full(count, tokens)

    def read(self, rows: np.ndarray, keys: torch.Tensor) -> Documents:
        return Documents(torch.from_numpy(self.ids[rows].ravel()), torch.from_numpy(self.lengths[rows]), keys, torch.from_numpy(rows))


class Timed(Corpus):
    """Keeps how long embedding took."""

    seconds = 0.0

    def embed(self, source, rows):
        begin = now()
        vectors = super().embed(source, rows)
        self.seconds += now() - begin
        return vectors


class Refresh:
    """A fresh model, and `size` texts that it has to arrange."""

    def __init__(self, size: int, how: str, encoder: str = "bert-tiny", tokens: int = 64, shard: int = SHARD):
        torch.manual_seed(0)
        vocabulary = [f"w{i}" for i in range(900)]
        tokenizer = Tokenizer.train([" ".join(vocabulary)] * 4, kind="wordpiece", vocab_size=1000)
        network = Encoder(preset(encoder, tokenizer.size, max_len=tokens + 2))
        self.size, self.objective = size, MARGE(network, tokenizer, MARGE.Config(search=how))
        shards = np.arange(size) // 4 % -(-size // shard)
        texts = texts_of(MadeUp(size, tokens, tokenizer.size), np.arange(size), shards=shards)
        self.source = ClusterSource(texts, texts)

    def run(self) -> tuple[float, float]:
        """Seconds of it all, and of embedding."""
        corpus, begin = Timed(self.objective, ALONE), now()
        self.objective.refresh([self.source], corpus, 1, 0, self.size)
        return now() - begin, corpus.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 4000, 8000, 16_000])
    parser.add_argument("--search", nargs="+", default=["exact", "ivfpq"])
    parser.add_argument("--encoder", default="bert-tiny")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--shard", type=int, default=SHARD, help="texts that are searched together, at most")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    print(f"{'search':8} {'texts':>8} {'seconds':>8} {'embedding':>10} {'texts/s':>8} {'search and clusters':>20} {'of training':>18}")
    for how in given.search:
        measured = []
        for size in given.sizes:
            made = Refresh(size, how, given.encoder, given.tokens, given.shard)
            seconds, embedding = made.run()
            measured.append(seconds - embedding)
            step = seconds_of_a_step(made.objective, made.source)
            share = seconds / (seconds + made.objective.refresh_every * step)
            print(f"{how:8} {size:8,} {seconds:8.2f} {embedding:10.2f} {size / seconds:8,.0f} {measured[-1]:20.2f} {share:18.1%}",
                  flush=True)
        grown = measured[-1] / measured[0] / (given.sizes[-1] / given.sizes[0])
        times = given.sizes[-1] // given.sizes[0]
        print(f"{how}: with {times} times the texts, search and clusters took {grown:.2f} times as long for each text\n")


def seconds_of_a_step(objective: MARGE, source: ClusterSource) -> float:
    """Of 16 clusters, the second of two."""
    rounds = Rounds(objective, source)
    rounds.begin()
    for step in range(2):
        begin = now()
        backward(objective, rounds.batches.step(step), ALONE)
    return now() - begin


if __name__ == "__main__":
    main()
