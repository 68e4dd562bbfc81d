"""The module that sentence-transformers loads from a dual encoder's folder: `SentenceTransformer(folder, trust_remote_code=True)`.

The library asks for `trust_remote_code` before it imports any module that is not its own; the folder holds no code, only this name.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.models import Module
from torch import Tensor

from foretext.model.encoder import Tokens
from foretext.retrieval.towers import TowerEncoder


class DualEncoder(Module):
    """Texts to vectors by the tower of the task: `encode_query`, `encode_document`; plain `encode` takes the documents' side."""

    forward_kwargs = {"task"}
    save_in_root = True

    def __init__(self, folder: str):
        super().__init__()
        self.folder, self.model = Path(folder), TowerEncoder.load(folder, "cpu", torch.float32)
        self.towers = self.model.towers  # registered, so that the library moves it
        self.tokenizer, self.max_seq_length = None, self.model.max_len

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> "DualEncoder":
        from foretext.model.folder import locate

        return cls(str(locate(model_name_or_path) / subfolder))

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        for file in self.folder.iterdir():
            if file.name not in ("modules.json", "README.md") and file.is_file():
                shutil.copyfile(file, Path(output_path) / file.name)

    def preprocess(self, inputs: list[str], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """ids (n, L) and attention_mask (n, L)"""
        rows = self.model.tokenizer.encode([(prompt or "") + text for text in inputs])
        tokenizer, most = self.model.tokenizer, self.max_seq_length - 2
        rows = [torch.tensor([tokenizer.cls_id, *row[:most].tolist(), tokenizer.sep_id]) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        return {"input_ids": pad(rows, True, tokenizer.pad_id), "attention_mask": pad([torch.ones_like(row) for row in rows], True)}

    tokenize = preprocess  # its name up to version 5

    def forward(self, features: dict[str, Tensor], task: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        mask = features["attention_mask"].bool()
        tokens = Tokens.of(features["input_ids"][mask], mask.sum(1).tolist())
        features["sentence_embedding"] = self.towers([("query" if task == "query" else "document", tokens)])[0]
        return features

    def get_sentence_embedding_dimension(self) -> int:
        return self.towers.dimension

    get_embedding_dimension = get_sentence_embedding_dimension

    def get_max_seq_length(self) -> int:
        return self.max_seq_length
