"""Texts or pairs of texts in, logits out: a sequence-classification folder of ours or of transformers.

n texts   B texts of one batch   K outputs
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foretext.errors import UserError
from foretext.files import read_json
from foretext.model.encoder import Encoder, Tokens
from foretext.model.folder import locate, read_heads
from foretext.model.heads import SequenceHead
from foretext.model.huggingface import load as load_huggingface
from foretext.model.precision import default_device, default_dtype
from foretext.progress import progress
from foretext.retrieval.embed import in_lanes, inference
from foretext.retrieval.lanes import side_by_side
from foretext.text.batches import Documents
from foretext.text.joined import Cut, joined
from foretext.text.tokenizer import Tokenizer


class TextClassifier:
    """An encoder with a head on its sequences, and what turns texts into its input.

    Attributes:
        labels: names of the K outputs.
        task: "classes" (one of the labels), "labels" (any number of them) or "score" (a real number).
        last_cut: how many inputs of the latest `logits` did not fit.
    """

    def __init__(self, encoder: Encoder, head: SequenceHead, tokenizer: Tokenizer, labels: Sequence[str] = (), task: str = "classes",
                 max_len: int | None = None, dtype: torch.dtype | None = None, cut: Cut = "longest"):  # fmt: skip
        """Wrap live networks; their weights are used as they are at each call.

        Args:
            cut: which text of a pair gives way, see `foretext.text.joined`.
        """
        self.encoder, self.head, self.tokenizer, self.task, self.dtype, self.cut = encoder, head, tokenizer, task, dtype, cut
        self.labels = tuple(labels) or tuple(f"LABEL_{i}" for i in range(head.out.out_features))
        self.max_len = min(max_len or encoder.config.max_len, encoder.config.max_len)
        self.last_cut = 0

    @classmethod
    def load(cls, source: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "TextClassifier":
        """Load a folder or hub id, or a run folder's export.

        Args:
            device: default: the GPU if there is one.
            dtype: of the computation; default: fp32 on the CPU, bf16 on a GPU that multiplies it.
        Raises:
            UserError: the folder has no head for sequences.
        """
        inside = Path(source) / "export"
        folder = locate(inside if (inside / "config.json").is_file() else source)
        found, config, extra = load_huggingface(folder), read_json(folder / "config.json"), read_heads(folder)
        options = config.get("foretext") or {}
        head, labels = found.sequence, config.get("id2label") or {}
        task = {"regression": "score", "multi_label_classification": "labels"}.get(config.get("problem_type"), "classes")
        if head is None and extra is not None and extra.objective == "classify":
            options = extra.options
            names = options["labels"]
            head = SequenceHead(found.encoder.config, len(names), "linear", "mean" if options["head"] == "mean" else "cls")
            head.load_state_dict({name.removeprefix("head."): tensor for name, tensor in extra.tensors.items()})
            task, labels = options["task"], dict(enumerate(names))
        if head is None:
            raise UserError(f"{folder}: no head for sequences is here; name a folder that `foretext finetune` reranker or classifier "
                            "wrote, or one of a *ForSequenceClassification class of the families that are read")  # fmt: skip
        device = default_device(device)
        dtype = dtype or default_dtype(device)
        tokenizer_config = folder / "tokenizer_config.json"
        longest = read_json(tokenizer_config).get("model_max_length") if tokenizer_config.is_file() else None
        names = [label for _, label in sorted(labels.items(), key=lambda item: int(item[0]))]
        head.dropout = 0.0
        return cls(found.encoder.to(device).eval(), head.to(device).eval(), Tokenizer.load(folder), names, task,
                   int(min(longest or 10**9, found.encoder.config.max_len)), dtype)  # fmt: skip

    @property
    def device(self) -> torch.device:
        return self.encoder.words.weight.device

    def logits(self, first: Sequence[str], second: Sequence[str] | None = None, token_budget: int | None = None,
               show_progress: bool = False) -> np.ndarray:  # fmt: skip
        """(n, K) float32 for n texts, or n pairs of texts; no value depends on the others.

        Args:
            token_budget: real tokens per batch; default: 4,096 on a CPU, 65,536 on a GPU.
        """
        sides = [self._unique(first)] + ([] if second is None else [self._unique(second)])
        between = 0 if second is None else self.tokenizer.separators[self.encoder.config.family in ("bert", "electra")]
        lengths = sum(texts.lengths[rows] for texts, rows in sides) + 2 + between
        self.last_cut = int((lengths > self.max_len).sum())
        framed = lengths.clamp(max=self.max_len).numpy()
        batches, lanes = in_lanes(framed, token_budget, self.device)
        out = np.empty((len(framed), self.head.out.out_features), np.float32)
        training = self.head.training
        self.head.eval()

        def score(some: np.ndarray) -> int:
            parts = [texts.select(rows[torch.from_numpy(some)]) for texts, rows in sides]
            out[some] = self.head(self.encoder, self._tokens(parts, between).to(self.device)).cpu().numpy()
            return len(some)

        with inference(self.encoder, self.dtype), progress("scoring", len(framed)) if show_progress else nullcontext() as advance:
            for done in side_by_side(score, batches, lanes):
                if advance:
                    advance(done)
        self.head.train(training)
        return out

    def _tokens(self, parts: list[Documents], between: int) -> Tokens:
        if len(parts) == 1:
            framed = parts[0].framed(self.tokenizer.cls_id, self.tokenizer.sep_id, self.max_len)
            return Tokens.of(framed.ids, framed.lengths.tolist())
        framed, types = joined(*parts, self.tokenizer, between, self.max_len, self.cut)
        return Tokens.of(framed.ids, framed.lengths.tolist(), types if self.encoder.config.types > 1 else None)

    def _unique(self, texts: Sequence[str]) -> tuple[Documents, Tensor]:
        """The different texts, and which of them each text is: a query stands in many pairs."""
        places: dict[str, int] = {}
        rows = torch.tensor([places.setdefault(text, len(places)) for text in texts], dtype=torch.int64)
        ids, lengths = self.tokenizer.encode_flat(list(places))
        nothing = torch.zeros(len(places), dtype=torch.int64)
        return Documents(torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(lengths), nothing, nothing), rows
