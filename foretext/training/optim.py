"""Optimisers, parameter groups and schedules: plain functions of the number of updates done."""

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from foretext.training.sharding import whole


class OptimConfig(BaseModel):
    """How weights move."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["adamw", "adadelta"] = Field("adamw", description="adadelta: rates near 1 (ConveRT); those of AdamW do not fit it")
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    schedule: Literal["linear", "cosine", "poly", "constant", "inverse_sqrt"] = Field("linear", description="after warm-up")
    warmup: float = Field(0.1, ge=0, description="below 1: share of all updates; else number of updates")
    end_lr: float = Field(0.0, ge=0, description="where linear, cosine and poly end")
    power: float = Field(1.0, gt=0, description="of poly; 1 is linear")
    compose: Literal["sequence", "product"] = Field(
        "sequence", description="warm-up then decay; or warm-up times a decay that starts at once (ELECTRA), with linear and poly")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW; .98 for large batches (RoBERTa, table 9)")
    rho: float = Field(0.9, gt=0, lt=1, description="Adadelta, how slowly its averages move (ConveRT)")
    eps: float = Field(1e-6, gt=0, description="AdamW (BERT's code), Adadelta")
    weight_decay: float = Field(0.01, ge=0, description="AdamW: decoupled; Adadelta: added to the gradient (L2). Not on biases, norms and "
                                                        "other vectors (BERT's code)")
    bias_correction: bool = Field(True, description="AdamW; false: moments as they are, small at first (BERT's and ELECTRA's code)")
    layer_decay: float = Field(1.0, gt=0, le=1, description="rate of each layer as a share of the one above, for fine-tuning (ELECTRA .8)")
    layer_decay_form: Literal["intended", "published"] = Field(
        "intended", description="published: one power more below the head, as ELECTRA's scores were made")
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0: never clipped, still logged")
    clip_what: Literal["all", "words"] = Field("all", description="whose norm: of all weights, or of the word table alone (ConveRT)")

    @model_validator(mode="after")
    def _useful(self) -> "OptimConfig":
        if self.power != 1.0 and self.schedule != "poly":
            raise ValueError(f"power {self.power} has no effect with schedule {self.schedule}: use poly")
        if self.compose == "product" and self.schedule not in ("linear", "poly"):
            raise ValueError(f"compose product has no effect with schedule {self.schedule}: use linear or poly")
        if self.layer_decay_form != "intended" and self.layer_decay == 1.0:
            raise ValueError("layer_decay_form has no effect with layer_decay 1: set layer_decay, for example to .8")
        for name in ("betas", "bias_correction") if self.kind == "adadelta" else ("rho",):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} {getattr(self, name)} has no effect with {self.kind}")
        if self.end_lr and self.schedule in ("constant", "inverse_sqrt"):
            raise ValueError(f"end_lr {self.end_lr} has no effect with schedule {self.schedule}")
        if self.end_lr > self.lr:
            raise ValueError(f"end_lr {self.end_lr} is above lr {self.lr}")
        return self


def learning_rate(config: OptimConfig, done: int, total: int) -> float:
    """The rate of the next update, when `done` of `total` updates are made; written before the step is taken."""
    warm = round(config.warmup * total) if config.warmup < 1 else round(config.warmup)
    warm = max(1, warm) if config.warmup else 0
    if config.compose == "product":
        decayed = (config.lr - config.end_lr) * (1 - min(1.0, done / total)) ** config.power + config.end_lr
        return decayed * (min(1.0, (done + 1) / warm) if warm else 1.0)
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
    """AdamW or Adadelta with the field's two groups, matrices and tables decay, vectors and scalars do not; twice as many for each rate."""
    groups: dict[tuple[float, bool], dict] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            share = layer_share(name, module.encoder.config.layers, config) if config.layer_decay < 1 else 1.0
            decays = parameter.ndim >= 2
            fresh = {"params": [], "weight_decay": config.weight_decay if decays else 0.0, "share": share}
            groups.setdefault((share, not decays), fresh)["params"].append(parameter)
    ordered = [groups[key] for key in sorted(groups)]
    if config.kind == "adadelta":
        return torch.optim.Adadelta(ordered, lr=config.lr, rho=config.rho, eps=config.eps)
    kind = torch.optim.AdamW if config.bias_correction else UncorrectedAdamW
    # The fused kernel is three times as fast on a CPU and saves launches on a GPU; the update is the same.
    return kind(ordered, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def clip_gradients(objective: nn.Module, config: OptimConfig) -> torch.Tensor:
    """Shorten gradients whose norm is above `clip`; returns the norm of all of them before."""
    everything = list(objective.parameters())
    if config.clip_what == "all":
        return whole(nn.utils.clip_grad_norm_(everything, config.clip or math.inf))
    norm = whole(nn.utils.get_total_norm([parameter.grad for parameter in everything if parameter.grad is not None]))
    if config.clip:
        nn.utils.clip_grad_norm_(objective.encoder.words.parameters(), config.clip)
    return norm


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Write the rate of the next update into every group, as that group's share."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def layer_share(name: str, layers: int, config: OptimConfig) -> float:
    """The share of the learning rate that the parameter `name` of an objective gets (ELECTRA, arXiv 2003.10555, appendix B).

    Heads 1; layer i of N decay^(N - i), counted from 0; everything below the layers decay^(N + 1).
    """
    part, _, rest = name.partition(".")
    if part != "encoder" or rest.startswith("final_norm."):
        return 1.0
    below = rest.partition(".")[0]
    if below == "blocks":
        power = layers - int(rest.split(".")[1])
    elif below in ("words", "positions", "types", "norm", "project", "relative"):
        power = layers + 1
    else:
        raise ValueError(f"{name} belongs to no layer of the encoder that layer_decay knows")
    return config.layer_decay ** (power + (config.layer_decay_form == "published"))


class UncorrectedAdamW(torch.optim.AdamW):
    """AdamW without bias correction: theta -= lr * (m / (sqrt(v) + eps) + weight_decay * theta).

    The corrected update with rate lr * (1 - b1^t) / sqrt(1 - b2^t), epsilon eps / sqrt(1 - b2^t) and a decay that undoes the change of
    rate is the same update, so the fused kernel does it.
    """

    @torch.no_grad()
    def step(self, closure=None):
        asked = []
        for group in self.param_groups:
            asked.append({name: group[name] for name in ("lr", "eps", "weight_decay")})
            group["updates"] = group.get("updates", 0) + 1
            first, second = (1 - beta ** group["updates"] for beta in group["betas"])
            factor = first / math.sqrt(second)
            group |= {"lr": group["lr"] * factor, "eps": group["eps"] / math.sqrt(second), "weight_decay": group["weight_decay"] / factor}
        try:
            return super().step(closure)
        finally:
            for group, values in zip(self.param_groups, asked):
                group |= values
