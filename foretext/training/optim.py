"""Optimisers, parameter groups and schedules (objectives.md 17): plain functions of the number of updates done."""

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn


class OptimConfig(BaseModel):
    """How weights move."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    schedule: Literal["linear", "cosine", "poly", "constant", "inverse_sqrt"] = Field("linear", description="after warm-up")
    warmup: float = Field(0.1, ge=0, description="below 1: share of all updates; else number of updates")
    end_lr: float = Field(0.0, ge=0, description="where linear, cosine and poly end")
    power: float = Field(1.0, gt=0, description="of poly; 1 is linear")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW; .98 for large batches (RoBERTa, table 9)")
    eps: float = Field(1e-6, gt=0, description="AdamW (BERT's code)")
    weight_decay: float = Field(0.01, ge=0, description="AdamW, decoupled; not on biases, norms and other vectors (BERT's code)")
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0: never clipped, still logged")

    @model_validator(mode="after")
    def _useful(self) -> "OptimConfig":
        if self.power != 1.0 and self.schedule != "poly":
            raise ValueError(f"power {self.power} has no effect with schedule {self.schedule}: use poly")
        if self.end_lr and self.schedule in ("constant", "inverse_sqrt"):
            raise ValueError(f"end_lr {self.end_lr} has no effect with schedule {self.schedule}")
        if self.end_lr > self.lr:
            raise ValueError(f"end_lr {self.end_lr} is above lr {self.lr}")
        return self


def learning_rate(config: OptimConfig, done: int, total: int) -> float:
    """The rate of the next update, when `done` of `total` updates are made; written before the step is taken."""
    warm = round(config.warmup * total) if config.warmup < 1 else round(config.warmup)
    warm = max(1, warm) if config.warmup else 0
    if done < warm:
        return config.lr * (done + 1) / warm
    share = min(1.0, (done - warm) / max(1, total - warm))
    if config.schedule in ("linear", "poly"):
        return (config.lr - config.end_lr) * (1 - share) ** config.power + config.end_lr
    if config.schedule == "cosine":
        return config.end_lr + (config.lr - config.end_lr) * (1 + math.cos(math.pi * share)) / 2
    if config.schedule == "inverse_sqrt":
        return config.lr * math.sqrt(max(1, warm) / max(done + 1, warm, 1))
    return config.lr


def make_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW with the field's two groups: matrices and tables decay, vectors and scalars do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    # The fused kernel is three times as fast on a CPU and saves launches on a GPU; the update is the same.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
