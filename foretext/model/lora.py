"""Low-rank adapters (LoRA, arXiv 2106.09685) on the matrices of an encoder's blocks, through the `peft` library.

The encoder's own weights stand still; each matrix W becomes W + (alpha / rank) B A, with B zero at the start. `merge_lora` adds the product
to W, and the encoder is an ordinary one again.
"""

import copy

from torch import nn

from foretext.errors import UserError
from foretext.model.encoder import Encoder

MATRICES = ["qkv", "out", "up", "down"]  # of a Block


def add_lora(encoder: Encoder, rank: int, alpha: float, dropout: float = 0.0) -> None:
    """Put adapters into `encoder`, in place; only they are trained.

    Args:
        rank: columns of B. alpha: the product counts alpha / rank times. dropout: on what A reads.
    Raises:
        UserError: the library is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("lora needs the package peft: pip install 'foretext[peft]'") from None
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=MATRICES), encoder)


def merge_lora(encoder: Encoder) -> Encoder:
    """A copy of `encoder` with its adapters added to its matrices; the encoder itself where it has none."""
    if not any(hasattr(module, "lora_A") for module in encoder.modules()):
        return encoder
    merged = copy.deepcopy(encoder)
    for block in merged.blocks:
        for name in MATRICES:
            adapted: nn.Module = getattr(block, name)
            adapted.merge()
            setattr(block, name, adapted.get_base_layer())
    return merged.requires_grad_(True)
