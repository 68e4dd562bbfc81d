"""Every objective on the same text, alike: does its held-out loss fall, and how.

    zcat wikipedia/*.jsonl.gz | head -c 10000000 | sed '$d' > wiki10.jsonl
    python benchmarks/curves.py wiki10.jsonl [--minutes 2] [--objectives mlm retromae]

Prepares the text, trains each objective from scratch on the same small encoder, prints its held-out losses along the run and
draws them (runs/curves/curves.svg). Losses of different objectives are not comparable: each predicts something else.
"""

import argparse
import json
from pathlib import Path

import foretext as ft

SHOWN = 9  # values of a curve that are printed
OTHERS = ("marge", "dual", "convert")  # measured by marge_retrieval.py and response_selection.py


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="anything `foretext prepare` reads")
    parser.add_argument("--output", type=Path, default=Path("runs/curves"))
    parser.add_argument("--minutes", type=float, default=2, help="of each objective")
    parser.add_argument("--objectives", nargs="+", default=[name for name in ft.objectives.OBJECTIVES if name not in OTHERS])
    given = parser.parse_args()
    curves = {}
    for name in given.objectives:
        encoder = "mpnet-tiny" if name == "mpnet" else "bert-tiny"
        # MPNet wants padding at id 1, which byte-level BPE has.
        kind = "bpe" if name == "mpnet" else "wordpiece"
        store = given.output / f"store-{kind}"
        if not store.exists():
            ft.prepare([given.text], store, tokenizer_kind=kind, vocab_size=8192, max_tokens=126)
        ft.pretrain(ft.PretrainConfig(
            store=str(store), output=str(given.output / name), objective={"name": name}, encoder={"start": encoder}, valid_share=0.03,
            training={"minutes": given.minutes, "batch_size": 64, "optim": {"lr": 1e-3}, "micro_tokens": 8192,
                      "valid_every": 25, "valid_examples": 512}))
        curves[name] = held_out(given.output / name)
        print(line(name, curves[name]), flush=True)
    print("\nheld-out loss (nats) against updates\n" + "\n".join(line(name, curve) for name, curve in curves.items()))
    draw(curves, given.output / "curves.svg")


def held_out(run: Path) -> list[tuple[int, float]]:
    """(updates, loss) of every validation of a run."""
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [(record["step"], record["valid_loss"]) for record in records if "valid_loss" in record]


def line(name: str, curve: list[tuple[int, float]]) -> str:
    """A few values of a curve, evenly spaced, the last included."""
    places = sorted({round(i * (len(curve) - 1) / (SHOWN - 1)) for i in range(SHOWN)})
    return f"{name:12}" + "  ".join(f"{curve[i][0]:>5}: {curve[i][1]:6.3f}" for i in places)


def draw(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """One small panel for each objective."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    columns = 4
    rows = -(-len(curves) // columns)
    figure, panels = pyplot.subplots(rows, columns, figsize=(11, 2.2 * rows), squeeze=False, layout="constrained")
    for panel in panels.flat[len(curves):]:
        panel.axis("off")
    for panel, (name, curve) in zip(panels.flat, curves.items()):
        panel.plot(*zip(*curve), color="#3366aa", linewidth=1.8)
        panel.set_title(name, fontsize=10)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("updates", fontsize=9)
    figure.supylabel("held-out loss (nats)", fontsize=9)
    figure.savefig(path)


if __name__ == "__main__":
    main()
