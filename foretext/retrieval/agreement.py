"""How well predictions agree with labels: accuracy and macro-F1 of classes, correlation of numbers; and predictions as a file.

N examples   K labels
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foretext.errors import UserError
from foretext.files import refuse_existing, whole_file
from foretext.retrieval.metrics import interval
from foretext.retrieval.sts import pearson, spearman


def predicted(logits: np.ndarray, task: str) -> np.ndarray:
    """(N, K) logits -> the class (N,), the labels (N, K) bool of probability over a half, or the score (N,)."""
    if task == "score":
        return logits[:, 0]
    return logits > 0 if task == "labels" else logits.argmax(1)


def macro_f1(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Mean over labels of 2 * hits / (times predicted + times true); a label that is in neither does not count.

    Args:
        predictions, targets: (N,) class numbers, or (N, K) bool.
    """
    if predictions.ndim == 1:
        names = np.arange(max(predictions.max(), targets.max()) + 1)
        predictions, targets = predictions[:, None] == names, targets[:, None] == names
    hits, both = (predictions & targets).sum(0), predictions.sum(0) + targets.sum(0)
    return float((2 * hits[both > 0] / both[both > 0]).mean())


def agreement(logits: np.ndarray, targets: np.ndarray, task: str) -> dict[str, float]:
    """`accuracy` and `macro_f1`, or `spearman` and `pearson`; see `predicted` and `foretext.text.labelled.targets_of`."""
    found = predicted(logits, task)
    if task == "score":
        return {"spearman": spearman(found, targets[:, 0]), "pearson": pearson(found, targets[:, 0])}
    if task == "labels":
        return {"accuracy": float((found == (targets > 0.5)).all(1).mean()), "macro_f1": macro_f1(found, targets > 0.5)}
    return {"accuracy": float((found == targets).mean()), "macro_f1": macro_f1(found, targets)}


def agreement_lines(name: str, logits: np.ndarray, targets: np.ndarray, task: str) -> list[str]:
    """For a person; accuracy with its 95 % interval."""
    found = agreement(logits, targets, task)
    lines = [f"{name}: {len(logits):,} examples"]
    for measure, value in found.items():
        spread = ""
        if measure == "accuracy" and task == "classes":
            ends = interval((predicted(logits, task) == targets).astype(float))
            spread = f"   [{ends.low:.4f}, {ends.high:.4f}]"
        lines.append(f"  {measure:<10} {value:.4f}{spread}")
    return lines


def write_predictions(path: str | Path, logits: np.ndarray, labels: Sequence[str], task: str, lines: Sequence[int],
                      given: Sequence | None = None, overwrite: bool = False) -> Path:  # fmt: skip
    """Write one prediction a line: .tsv (line, prediction, probability[, label]) or .jsonl (all probabilities).

    Args:
        lines: where each example stood in its file. given: its label there.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    if path.suffix not in (".tsv", ".jsonl"):
        raise UserError(f"{path}: predictions are written as .tsv or .jsonl; name the file so")
    shares = probabilities(logits, task)
    chosen = predicted(logits, task)
    with whole_file(path, "w") as file:
        if path.suffix == ".tsv":
            columns = ["line", "prediction"] + ["probability"] * (task != "score") + ["label"] * (given is not None)
            file.write("\t".join(columns) + "\n")
        for i, line in enumerate(lines):
            if task == "score":
                said, sure = f"{chosen[i]:.6g}", None
            elif task == "labels":
                said = [name for name, here in zip(labels, chosen[i]) if here]
                sure = float(np.where(chosen[i], shares[i], 1 - shares[i]).min())
            else:
                said, sure = labels[chosen[i]], float(shares[i, chosen[i]])
            if path.suffix == ".jsonl":
                record = {"line": line, "prediction": float(said) if task == "score" else said}
                record |= {"probabilities": {name: round(float(p), 6) for name, p in zip(labels, shares[i])}} if task != "score" else {}
                record |= {"label": given[i]} if given is not None else {}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
            else:
                cells = [str(line), ", ".join(said) if task == "labels" else said] + ([f"{sure:.6f}"] if sure is not None else [])
                cells += [] if given is None else [", ".join(given[i]) if isinstance(given[i], tuple) else given[i]]
                file.write("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in cells) + "\n")
    return path


def probabilities(logits: np.ndarray, task: str) -> np.ndarray:
    """(N, K): a softmax over classes, a sigmoid for each of several labels; a score as it is."""
    if task == "classes":
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)
    return 1 / (1 + np.exp(-logits)) if task == "labels" else logits
