"""Write a folder that transformers' AutoModelForSequenceClassification and sentence-transformers' CrossEncoder load; check that they do."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foretext.files import whole_file, whole_folder
from foretext.interop.export import PROBES, TOLERANCE, quiet
from foretext.model.folder import Heads, write_heads
from foretext.model.huggingface import write_encoder
from foretext.retrieval.classifier import TextClassifier

# Short: the passage alone is cut here, the longer of the two in CrossEncoder, which is the same for queries of up to half the length.
QUERIES = ("array mean", "Größe", "東京?", "", "x ** 2", "word")
PROBLEMS = {"classes": "single_label_classification", "labels": "multi_label_classification", "score": "regression"}


def export_classifier(model: TextClassifier, folder: str | Path, card: Mapping[str, Any], heads: Heads | None = None,
                      overwrite: bool = False) -> Path:  # fmt: skip
    """Write config, weights and tokenizer; load them again elsewhere and compare the scores of probe texts.

    Args:
        card: for README.md: title, summary, data, steps, encoder, metrics.
        heads: the head, where no class of transformers holds one like it; the encoder then travels as a plain encoder folder, whose
            `auto_map` names ours.
    Raises:
        UserError: the folder exists, or the family cannot be written.
        RuntimeError: another library gives other scores.
    """
    with whole_folder(folder, overwrite) as temporary:
        write(model, temporary, card, heads)
        verify(model, temporary, stock=heads is None)
    return Path(folder)


def write(model: TextClassifier, folder: Path, card: Mapping[str, Any], heads: Heads | None) -> None:
    """Write every file into an existing folder, unchecked."""
    tokenizer, config = model.tokenizer, model.encoder.config
    ids = {"pad": tokenizer.pad_id, "cls": tokenizer.cls_id, "sep": tokenizer.sep_id}
    settings = {"id2label": {str(i): label for i, label in enumerate(model.labels)},
                "label2id": {label: i for i, label in enumerate(model.labels)}, "problem_type": PROBLEMS[model.task]}  # fmt: skip
    if model.task == "score":  # else CrossEncoder puts a sigmoid on a single output
        settings["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0.0"}
    write_encoder(model.encoder, folder, ids, vocab_size=tokenizer.size, sequence=model.head if heads is None else None, settings=settings)
    tokenizer.save(folder, model.max_len, token_types=config.family in ("bert", "electra"))
    if heads is not None:
        from foretext.interop.auto_model import ForetextClassifier, write_auto_map

        write_heads(folder, heads)
        write_auto_map(folder, AutoModelForSequenceClassification=ForetextClassifier)
    with whole_file(folder / "README.md", "w") as file:
        file.write(model_card(model, card, heads))


def model_card(model: TextClassifier, card: Mapping[str, Any], heads: Heads | None) -> str:
    """README.md with the YAML head that the hub reads."""
    import jinja2

    template = (Path(__file__).parent / "classifier-card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.ChainableUndefined, keep_trailing_newline=True)
    return environment.from_string(template).render(model=model, config=model.encoder.config, card=card, heads=heads)


def verify(model: TextClassifier, folder: Path, stock: bool = True) -> dict[str, float]:
    """Largest difference of the probe texts' logits, alone and in pairs, by library; the folder is as `write` left it.

    Raises:
        RuntimeError: a difference above 1e-5 (of the largest logit or of 1, whichever is larger).
    """
    probes = [*PROBES, "word " * min(model.max_len, 1024)]
    if model.cut == "second":
        room = (model.max_len - 4) // 2
        fitting = [bool(n <= room) for n in model.tokenizer.encode_flat(QUERIES)[1]]
        pairs = [[text for text, fits in zip(side, fitting) if fits] for side in (QUERIES, probes)]
    else:
        pairs = [[*QUERIES, *probes], [*probes, *reversed(probes)]]
    dtype, model.dtype = model.dtype, torch.float32
    try:
        expected = (model.logits(probes), model.logits(*pairs))
        with quiet():
            again = TextClassifier.load(folder, "cpu", torch.float32)
            again.cut = model.cut
            found = {"foretext": (again.logits(probes), again.logits(*pairs))}
            found["transformers"] = _with_transformers(model, folder, probes, pairs, stock)
            if stock and len(model.labels) == 1 and importlib.util.find_spec("sentence_transformers"):
                found["sentence-transformers"] = (expected[0], _with_cross_encoder(folder, pairs))
    finally:
        model.dtype = dtype
    scale = max(1.0, *(float(np.abs(logits).max()) for logits in expected))
    apart = {library: max(float(np.abs(a - b).max()) for a, b in zip(logits, expected)) / scale for library, logits in found.items()}
    for library, difference in apart.items():
        if not difference <= TOLERANCE:  # also where it is nan
            raise RuntimeError(f"the exported model is not the same in {library}: logits differ by {difference:.1e}")
    return apart


def _with_transformers(model: TextClassifier, folder: Path, probes: list[str], pairs: list[list[str]],
                       stock: bool) -> tuple[np.ndarray, np.ndarray]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from foretext.interop.auto_model import ForetextClassifier

    kind = AutoModelForSequenceClassification if stock else ForetextClassifier
    tokenizer, network = AutoTokenizer.from_pretrained(folder), kind.from_pretrained(folder).eval()
    cut = "only_second" if model.cut == "second" else "longest_first"

    def logits(*texts: list[str]) -> np.ndarray:
        options = {"truncation": cut if len(texts) == 2 else True, "max_length": model.max_len, "padding": True, "return_tensors": "pt"}
        with torch.no_grad():
            return network(**tokenizer(*texts, **options)).logits.numpy()

    return logits(probes), logits(*pairs)


def _with_cross_encoder(folder: Path, pairs: list[list[str]]) -> np.ndarray:
    from sentence_transformers import CrossEncoder

    scorer = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    return np.asarray(scorer.predict(list(zip(*pairs)), show_progress_bar=False))[:, None]
