"""Do dual encoders choose responses? Trained on the conversations of a folder (train.jsonl.gz, test.jsonl.gz: PolyAI's JSON lines) and
measured on its test part, beside BM25 and the mean of the model's own word vectors. 1-of-100 and the full set, with intervals.

    python benchmarks/response_selection.py FOLDER [--objective convert|dual|contrastive] [--multi] [--minutes 12]

`--multi` trains convert twice, without and with earlier turns, each for the whole time. Writes runs/response-selection/; a store or a
finished run that is there is used again.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

from foretext.config import check, gather
from foretext.files import whole_file
from foretext.retrieval.embed import TextEncoder
from foretext.retrieval.response_selection import MeanEmbeddings, bm25_scorer, difference, select, table, vector_scorer
from foretext.text.dialogues import read_examples
from foretext.text.prepare import prepare
from foretext.verbs.pretrain import PretrainConfig, pretrain

ADAMW = {"batch_size": 256, "micro_tokens": 16_384, "optim": {"lr": 1e-3, "betas": (0.9, 0.98)}}
RECIPES: dict[str, dict[str, Any]] = {  # what the few minutes of a small corpus ask for; Adadelta's 10,000 updates are out of reach here
    "contrastive": {"encoder": {"start": "bert-tiny", "max_len": 64}, "objective": {"temperature": 0.05, "symmetric": True}},
    "dual": {"encoder": {"start": "bert-tiny", "max_len": 64}, "objective": {"reduction": "2ha", "output": "ffn_stack", "dimension": 256}},
    "convert": {"encoder": {"start": "convert-mini"}, "objective": {"score_scale": "learned", "turns": 0}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--objective", choices=list(RECIPES), default="convert")
    parser.add_argument("--multi", action="store_true", help="convert: also with earlier turns")
    parser.add_argument("--minutes", type=float, default=12, help="of each training")
    parser.add_argument("--output", type=Path, default=Path("runs/response-selection"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of pretrain")
    options = parser.parse_args()
    store = options.output / "store"
    if not store.exists():
        print(prepare(options.folder / "train.jsonl.gz", store, dialogues=True, vocab_size=16_000))
    examples = list(read_examples(options.folder / "test.jsonl.gz"))
    name = f"{options.objective}, {options.minutes:g} minutes"
    model = TextEncoder.load(train(options, store, 0))
    words = MeanEmbeddings(model.encoder.words.weight.detach().cpu().numpy(), model.tokenizer)
    single = select(name, vector_scorer(model, examples), examples)
    baselines = [select("mean of its embeddings", vector_scorer(words, examples), examples),
                 select("BM25", bm25_scorer(examples), examples),
                 select("BM25, earlier turns", bm25_scorer(examples, earlier=True), examples)]
    lines = table([single, *baselines])
    if options.multi:
        model = TextEncoder.load(train(options, store, 10))
        multi = select(f"{name}, earlier turns", vector_scorer(model, examples, earlier=True), examples)
        hidden = select(f"{name}, earlier turns not shown", vector_scorer(model, examples), examples)
        lines = [*table([multi, hidden, single, *baselines]), *(difference(single, other) for other in baselines)]
    with whole_file(options.output / f"table-{options.objective}.txt", "w") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))


def train(options: argparse.Namespace, store: Path, turns: int) -> Path:
    """One training (or the export of a finished one)."""
    recipe = RECIPES[options.objective]
    objective = {"name": options.objective, **recipe["objective"], **({"turns": turns} if options.objective == "convert" else {})}
    output = options.output / (options.objective + ("-turns" if turns else ""))
    given = {"store": str(store), "output": str(output), "objective": objective, "encoder": recipe["encoder"], "pairs": {"kind": "turns"},
             "training": ADAMW | {"minutes": options.minutes}}
    return pretrain(check(PretrainConfig, gather(None, copy.deepcopy(given), options.set))).export


if __name__ == "__main__":
    main()
