"""Does MARGE learn to find paraphrases, with nothing but its own loss? Four versions of each chapter of the Bible, no names of books.

    python benchmarks/marge_retrieval.py BIBLE_DIR [--minutes 20] [--detached] [--output runs/marge]

The beginning of each chapter is a document. Measured is how often another version of the same chapter is among the 1 or 4 documents
whose vectors are nearest, over all documents but itself: before training, at every refresh, after training; and by BM25.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
import torch

from foretext.model.encoder import Encoder
from foretext.model.layers import Linear
from foretext.model.presets import preset
from foretext.objectives.marge import MARGE
from foretext.retrieval.bm25 import BM25
from foretext.text.clusters import ClusterSource, texts_of
from foretext.text.pairs import Texts
from foretext.text.tokenizer import Tokenizer
from foretext.training.distributed import World
from foretext.training.loop import TrainingConfig, train
from foretext.training.refresh import Corpus

ALONE = World(0, 1, torch.device("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bible", type=Path, help="folder with chapters.jsonl.gz")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--detached", action="store_true", help="no gradient from reconstruction to the document vectors")
    parser.add_argument("--output", type=Path, default=Path("runs/marge"))
    parser.add_argument("--words", type=int, default=48, help="of each chapter, from its beginning")
    parser.add_argument("--encoder", default="bert-tiny")
    parser.add_argument("--layers", type=int, default=2, help="of the encoder; all but one make the document's vector")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--beta", type=float, default=8.0, help="where the scale begins")
    parser.add_argument("--links", type=float, default=4.0, help="kept for each target, on average")
    parser.add_argument("--refresh-every", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16, help="clusters of a step")
    parser.add_argument("--chapters", type=int, default=None, help="only the first so many chapters, for a quick look")
    parser.add_argument("--mode", default="knn", choices=["pairs", "knn"])
    parser.add_argument("--init", default="fan_in", choices=["fan_in", "bert"], help="of all matrices: N(0, 1/inputs), or N(0, .02)")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()

    texts, chapters = read(given.bible, given.words, given.chapters)
    tokenizer = Tokenizer.train(texts, kind="wordpiece", vocab_size=8192)
    source = Texts(texts, tokenizer)
    longest = int(np.percentile(source.lengths, 95)) + 2
    documents = texts_of(source, np.arange(len(texts)))
    torch.manual_seed(given.seed)
    encoder = Encoder(preset(given.encoder, tokenizer.size, max_len=longest, layers=given.layers))
    objective = MARGE(encoder, tokenizer, MARGE.Config(
        relevance="detached" if given.detached else "trained", beta_start=given.beta, same_links=given.links, mode=given.mode,
        num_evidence=max(1, round(given.links)), decoder_layers=2, base_layers=1, refresh_every=given.refresh_every))
    if given.init == "fan_in":  # at this width N(0, .02) lets a first token hardly see its text: all cosines begin within 1e-4 of 1
        for module in objective.modules():
            if isinstance(module, Linear):
                torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
    print(f"{len(texts):,} documents of {source.lengths.mean():.0f} tokens on average; {given.encoder}, "
          f"{objective.config.document_layers} of {given.layers} layers make the vector; relevance {objective.config.relevance}")

    rows = [("BM25", *by_bm25(texts, chapters)), ("before training", *found(objective, source, chapters))]
    at_refresh = watch(objective, source, chapters)
    train(objective, ClusterSource(documents, documents), given.output, TrainingConfig(
        minutes=given.minutes, batch_size=given.batch_size, micro_tokens=8192, seed=given.seed, log_every=50, checkpoint_every=1000,
        precision="fp32",  # at first vectors differ in their third digit, about where bf16 ends; that bf16 does worse is not measured
        optim={"lr": given.lr, "warmup": 0.05, "schedule": "linear"}), world=ALONE, overwrite=True)
    rows += [(f"step {step}", *recalls) for step, recalls in at_refresh[1:]] + [("after training", *found(objective, source, chapters))]
    print(f"\n{'':18} recall@1 recall@4   (another version of the same chapter, of {len(texts):,} documents)")
    for name, one, four in rows:
        print(f"{name:18} {one:8.3f} {four:8.3f}")
    print("\n  step     loss   beta   relevance of evidence   of other clusters'   targets without links")
    lines = [json.loads(line) for line in (given.output / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "beta" in line]
    for line in lines[:: max(1, len(lines) // 12)] + lines[-1:]:
        print(f"{line['step']:6} {line['loss']:8.3f} {line['beta']:6.3f} {line['relevance_used']:15.3f} {line['relevance_random']:20.3f} "
              f"{line['targets_without_links']:18}")


def read(folder: Path, words: int, chapters: int | None) -> tuple[list[str], np.ndarray]:
    """The first `words` words of every chapter in every version, and the number of the chapter of each."""
    texts, names = [], []
    with gzip.open(folder / "chapters.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            texts.append(" ".join(record["text"].split()[:words]))
            names.append(f"{record['book']} {record['chapter']}")
    numbers = np.unique(names, return_inverse=True)[1]
    keep = np.flatnonzero(numbers < (chapters or len(names)))
    return [texts[i] for i in keep], numbers[keep]


def found(objective: MARGE, source: Texts, chapters: np.ndarray) -> tuple[float, float]:
    """Recall@1 and @4 of the vectors as they are."""
    vectors = torch.from_numpy(Corpus(objective, ALONE).embed(source, np.arange(len(chapters))))
    scores = vectors @ vectors.T
    return recalls(scores.fill_diagonal_(-2).topk(4).indices.numpy(), chapters)


def by_bm25(texts: list[str], chapters: np.ndarray) -> tuple[float, float]:
    """Recall@1 and @4 of BM25 with the whole document as the query."""
    numbers = BM25(texts).search(texts, 5)[1]
    return recalls(np.array([[i for i in row if i != own][:4] for own, row in enumerate(numbers.tolist())]), chapters)


def recalls(nearest: np.ndarray, chapters: np.ndarray) -> tuple[float, float]:
    same = chapters[nearest] == chapters[:, None]
    return float(same[:, 0].mean()), float(same.any(1).mean())


def watch(objective: MARGE, source: Texts, chapters: np.ndarray) -> list[tuple[int, tuple[float, float]]]:
    """(step, recalls) at every refresh, filled as the training goes."""
    seen, refresh = [], objective.refresh

    def watched(sources, corpus, seed, step, wanted):
        seen.append((step, found(objective, source, chapters)))
        print(f"step {step}: recall@1 {seen[-1][1][0]:.3f}, @4 {seen[-1][1][1]:.3f}", flush=True)
        return refresh(sources, corpus, seed, step, wanted)

    objective.refresh = watched
    return seen


if __name__ == "__main__":
    main()
