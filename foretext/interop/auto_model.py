"""transformers' AutoModel on a dual encoder in foretext's own format, where foretext is installed (`trust_remote_code=True`).

The folder's `config.json` names, under `auto_map`, two classes of its `modeling_foretext.py`, which holds no code but an import from here.

    B texts   L places of the longest   D width of the encoder   d features of a vector
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from foretext.files import read_json, whole_file, write_json
from foretext.model.encoder import Tokens
from foretext.model.folder import locate
from foretext.model.towers import MODEL_TYPE, Side, Towers, load_towers, write_towers

MODULE = "modeling_foretext"
CODE = f'''"""Lets transformers' AutoModel open this folder; needs the package foretext."""

from {__name__} import ForetextConfig, ForetextModel

__all__ = ["ForetextConfig", "ForetextModel"]
'''


class ForetextConfig(PretrainedConfig):
    """What `config.json` says, as attributes: `encoder`, `towers`, `quantize`."""

    model_type = MODEL_TYPE


class ForetextModel(PreTrainedModel):
    """Token states, and the vectors that foretext makes of them."""

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
        write_auto_map(Path(folder))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, side: Side = "document") -> BaseModelOutputWithPooling:
        """Embed texts of one side: "query" (what is asked, a message) or "document" (what answers, a response).

        Returns:
            `last_hidden_state` (B, L, D), 0 at padding, and `pooler_output` (B, d).
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        tokens = Tokens.of(input_ids[mask], mask.sum(1).tolist())
        encoder, reduction = self.towers.network(side)
        states = encoder(tokens)
        padded = states.new_zeros(*input_ids.shape, states.shape[1])
        padded[mask] = states
        return BaseModelOutputWithPooling(padded, self.towers.finish(reduction(states, tokens.layout), side))


def write_auto_map(folder: Path) -> None:
    """Let AutoConfig and AutoModel find the classes above from a folder that `write_towers` wrote."""
    config = read_json(folder / "config.json")
    config["architectures"] = [ForetextModel.__name__]
    config["auto_map"] = {"AutoConfig": f"{MODULE}.{ForetextConfig.__name__}", "AutoModel": f"{MODULE}.{ForetextModel.__name__}"}
    write_json(folder / "config.json", config)
    with whole_file(folder / f"{MODULE}.py", "w") as file:
        file.write(CODE)
