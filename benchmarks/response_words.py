"""How much of choosing responses is knowing words? A bag of words, one vector and one weight for each subword, trained on the pairs of
a folder (train.jsonl.gz, dev.jsonl.gz, test.jsonl.gz: PolyAI's JSON lines); 1-of-100 Recall@1 after every pass.

    python benchmarks/response_words.py FOLDER STORE [--share .25] [--width 256] [--turns]

STORE is the one that `response_selection.py` prepared. Shares of the pairs are given as many updates in all: what more pairs are worth.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretext.retrieval.response_selection import select, vector_scorer
from foretext.text.dialogues import Example, read_examples
from foretext.text.tokenizer import Tokenizer

BATCH = 512


class Words(nn.Module):
    """Texts as the sum of their subwords' vectors, each times a weight of its side, at length 1."""

    similarity = "cosine"

    def __init__(self, tokenizer: Tokenizer, width: int, dropout: float, responses: list[str]):
        super().__init__()
        self.tokenizer, self.dropout = tokenizer, dropout
        counts = torch.ones(tokenizer.size)
        for ids in tokenizer.encode(responses):
            counts[torch.from_numpy(np.unique(ids)).long()] += 1
        rarity = (len(responses) / counts).log().clamp(min=0.5)
        self.words = nn.Parameter(torch.randn(tokenizer.size, width) * width**-0.5)
        self.weights = nn.ParameterDict({side: rarity.log() for side in ("query", "document", "earlier")})
        self.scale = nn.Parameter(torch.tensor(20.0).log())

    def forward(self, texts: list[str], side: str) -> Tensor:
        ids, lengths = self.tokenizer.encode_flat(texts)
        ids, rows = torch.from_numpy(ids).long(), torch.from_numpy(np.repeat(np.arange(len(texts)), lengths))
        vectors = F.dropout(self.words[ids], self.dropout, self.training) * self.weights[side][ids].exp()[:, None]
        return F.normalize(vectors.new_zeros(len(texts), vectors.shape[1]).index_add(0, rows, vectors), dim=1)

    def asked(self, messages: list[str], earlier: list[str]) -> Tensor:
        return F.normalize(self(messages, "query") + 0.7 * self(earlier, "earlier"), dim=1)

    @torch.no_grad()
    def encode(self, texts: list[str], kind: str) -> np.ndarray:
        return self.eval()(texts, kind).numpy()

    @torch.no_grad()
    def encode_contexts(self, messages: list[str], earlier: list[str]) -> np.ndarray:
        return self.eval().asked(messages, earlier).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the training pairs")
    parser.add_argument("--passes", type=int, default=5, help="over all pairs; over a share as many updates")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--turns", action="store_true", help="read the turns before the message as well")
    options = parser.parse_args()
    torch.manual_seed(0)
    parts = {part: list(read_examples(options.folder / f"{part}.jsonl.gz")) for part in ("train", "dev", "test")}
    train = [parts["train"][i] for i in torch.randperm(len(parts["train"]))[:int(options.share * len(parts["train"]))].tolist()]
    model = Words(Tokenizer.load(options.store / "tokenizer"), options.width, options.dropout, [e.response for e in train])
    slow, quick = [model.words], [*model.weights.values(), model.scale]
    optimizer = torch.optim.Adam([{"params": slow, "lr": options.lr}, {"params": quick, "lr": 3 * options.lr}])
    print(f"{len(train):,} pairs; before training: {measured(model, parts, options.turns)}", flush=True)
    for done in range(1, round(options.passes / options.share) + 1):
        model.train()
        order = torch.randperm(len(train)).tolist()
        for first in range(0, len(order) - BATCH + 1, BATCH):
            step(model, [train[i] for i in order[first:first + BATCH]], optimizer, options.turns)
        print(f"pass {done}: {measured(model, parts, options.turns)}", flush=True)


def step(model: Words, examples: list[Example], optimizer: torch.optim.Optimizer, turns: bool) -> None:
    messages = [e.context for e in examples]
    asked = model.asked(messages, [" ".join(e.earlier) for e in examples]) if turns else model(messages, "query")
    scores = asked @ model([e.response for e in examples], "document").T * model.scale.exp()
    own = torch.arange(len(examples))
    optimizer.zero_grad()
    ((F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2).backward()
    optimizer.step()


def measured(model: Words, parts: dict[str, list[Example]], turns: bool) -> str:
    found = {part: select(part, vector_scorer(model, some, earlier=turns), some).among.means()["Recall@1"]
             for part, some in (("train", parts["train"][:3000]), ("dev", parts["dev"]), ("test", parts["test"]))}  # fmt: skip
    return ", ".join(f"{part} {value:.3f}" for part, value in found.items())


if __name__ == "__main__":
    main()
