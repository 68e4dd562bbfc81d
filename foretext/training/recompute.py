"""Activation checkpointing: a block keeps its input alone and is computed again on the way back (Chen et al., arXiv 1604.06174)."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from foretext.model.encoder import Block


def recompute_activations(module: nn.Module) -> None:
    """Let every block inside `module` recompute its activations in the backward pass: the same gradients for a third more time.

    Dropout draws the same numbers again. Blocks whose parts an objective calls by itself (two streams) keep their activations.
    """
    for block in module.modules():
        if isinstance(block, Block):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
