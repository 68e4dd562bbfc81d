"""An encoder as the `mteb` package wants one (extra `mteb`), so that every MTEB task scores it.

Reference: Muennighoff et al. 2023, "MTEB: Massive Text Embedding Benchmark"; the protocol is that of mteb 2.

Example:
    model = ForMTEB(TextEncoder.load("runs/mine/export"), "me/mine")
    mteb.evaluate(model, mteb.get_tasks(["SciFact", "STSBenchmark"]))
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from foretext.errors import UserError
from foretext.retrieval.embed import TextEncoder


class ForMTEB:
    """`encode`, `similarity`, `similarity_pairwise` and `mteb_model_meta` around a `TextEncoder`.

    Queries and documents get their own prompts, as everywhere in foretext; texts of tasks that know neither (similarity,
    classification, clustering) are encoded as documents.
    """

    def __init__(self, model: TextEncoder, name: str = "foretext/encoder", revision: str | None = None):
        """Wrap a model.

        Args:
            name: owner/model, under which mteb files the results.
            revision: of the weights; default: the first 16 digits of their fingerprint.
        Raises:
            UserError: mteb is missing, or the name has no owner.
        """
        try:
            from mteb.models import ModelMeta
            from mteb.models.model_meta import ScoringFunction
        except ImportError:
            raise UserError("MTEB's tasks need its package: pip install 'foretext[mteb]'") from None
        if name.count("/") != 1 or not all(name.split("/")):
            raise UserError(f"mteb files results under owner/model, found the name {name!r}; write for example me/mine")
        self.model = model
        self.mteb_model_meta = ModelMeta.create_empty({
            "name": name, "revision": revision or model.fingerprint()[:16], "embed_dim": model.dimension, "max_tokens": model.max_len,
            "n_parameters": sum(parameter.numel() for parameter in model.encoder.parameters()), "framework": ["PyTorch"],
            "similarity_fn_name": ScoringFunction(model.similarity), "use_instructions": bool(model.prompts)})  # fmt: skip

    def encode(self, inputs: Iterable[dict[str, Any]], *, prompt_type: Any = None, show_progress_bar: bool = False, **_: Any) -> np.ndarray:
        """Vectors (n, D) float32 of batches whose texts are under "text"; mteb joins a document's title and body there."""
        texts = [text for batch in inputs for text in batch["text"]]
        kind = "query" if prompt_type is not None and getattr(prompt_type, "value", prompt_type) == "query" else "document"
        return self.model.encode(texts, kind, show_progress=show_progress_bar)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """(n, m) similarities of the kind the model was trained for."""
        return self._rows(embeddings1) @ self._rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """(n,) similarities of row i with row i."""
        return (self._rows(embeddings1) * self._rows(embeddings2)).sum(dim=-1)

    def _rows(self, embeddings: Any) -> torch.Tensor:
        rows = torch.atleast_2d(torch.as_tensor(np.asarray(embeddings), dtype=torch.float32))
        return torch.nn.functional.normalize(rows, dim=-1) if self.model.similarity == "cosine" else rows
