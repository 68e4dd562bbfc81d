"""transformers' auto classes on what no class of theirs holds, where foretext is installed: `trust_remote_code=True`.

A folder's `config.json` names, under `auto_map`, classes of its `modeling_foretext.py`, which holds no code but an import from here.

    B texts   L places of the longest   D width of the encoder   d features of a vector   K outputs
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from foretext.files import read_json, whole_file, write_json
from foretext.model.encoder import Tokens
from foretext.model.folder import locate
from foretext.model.towers import MODEL_TYPE, Side, Towers, load_towers, write_towers
from foretext.retrieval.classifier import TextClassifier

MODULE = "modeling_foretext"


class ForetextConfig(PretrainedConfig):
    """What `config.json` says, as attributes: `encoder`, `towers`, `quantize`."""

    model_type = MODEL_TYPE


class ForetextModel(PreTrainedModel):
    """A dual encoder: token states, and the vectors that foretext makes of them."""

    config_class = ForetextConfig

    def __init__(self, config: ForetextConfig, towers: Towers):
        super().__init__(config)
        self.towers = towers

    @classmethod
    def from_pretrained(cls, source: str | Path, *args: Any, config: ForetextConfig | None = None, revision: str | None = None,
                        **others: Any) -> "ForetextModel":
        """Read a local folder or hub id, weights in fp32 (foretext's own reader unpacks quantised ones); other options have no effect."""
        folder = locate(source, revision)
        return cls(config or ForetextConfig.from_pretrained(folder), load_towers(folder)).eval()

    def save_pretrained(self, folder: str | Path, **others: Any) -> None:
        """The model alone, weights in fp32; `foretext export` writes the tokenizer beside it."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_towers(self.towers, Path(folder))
        write_auto_map(Path(folder), AutoConfig=ForetextConfig, AutoModel=ForetextModel)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, side: Side = "document") -> BaseModelOutputWithPooling:
        """Embed texts of one side: "query" (what is asked, a message) or "document" (what answers, a response).

        Returns:
            `last_hidden_state` (B, L, D), 0 at padding, and `pooler_output` (B, d).
        """
        tokens, mask = unpadded(input_ids, attention_mask)
        encoder, reduction = self.towers.network(side)
        states = encoder(tokens)
        padded = states.new_zeros(*input_ids.shape, states.shape[1])
        padded[mask] = states
        return BaseModelOutputWithPooling(padded, self.towers.finish(reduction(states, tokens.layout), side))


class ForetextClassifier(PreTrainedModel):
    """An encoder that transformers knows, with a head that it does not."""

    def __init__(self, config: PretrainedConfig, model: TextClassifier):
        super().__init__(config)
        self.encoder, self.head = model.encoder, model.head

    @classmethod
    def from_pretrained(cls, source: str | Path, *args: Any, config: PretrainedConfig | None = None, revision: str | None = None,
                        **others: Any) -> "ForetextClassifier":
        """Read a local folder or hub id, weights in fp32; other options have no effect."""
        folder = locate(source, revision)
        return cls(config or AutoConfig.from_pretrained(folder), TextClassifier.load(folder, "cpu", torch.float32)).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None,
                token_type_ids: Tensor | None = None) -> SequenceClassifierOutput:
        """`logits` (B, K)"""
        tokens, mask = unpadded(input_ids, attention_mask)
        if token_type_ids is not None and self.encoder.config.types > 1:
            tokens = replace(tokens, types=token_type_ids[mask])
        return SequenceClassifierOutput(logits=self.head(self.encoder, tokens))


def unpadded(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tokens, Tensor]:
    """(B, L) with padding at either end -> the tokens, and (B, L) bool where they are."""
    mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    return Tokens.of(input_ids[mask], mask.sum(1).tolist()), mask


def write_auto_map(folder: Path, **classes: type) -> None:
    """Let transformers' auto classes find these of this file from an existing model folder.

    Example: `write_auto_map(folder, AutoConfig=ForetextConfig, AutoModel=ForetextModel)`
    """
    names = {auto: kind.__name__ for auto, kind in classes.items()}
    found = {"auto_map": {auto: f"{MODULE}.{name}" for auto, name in names.items()}}
    write_json(folder / "config.json", read_json(folder / "config.json") | found)
    imported = ", ".join(names.values())
    with whole_file(folder / f"{MODULE}.py", "w") as file:
        file.write('"""Lets transformers open this folder; needs the package foretext."""\n\n'
                   f"from {__name__} import {imported}  # noqa: F401\n")
