"""A dual encoder: the network that turns the texts of each side into vectors to be compared, and the folder that holds it.

    T tokens   B texts   D width of the encoder   d features of a vector
"""

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from foretext.errors import UserError
from foretext.files import read_json, write_json
from foretext.model.convert import ConvertConfig, ConvertEncoder
from foretext.model.encoder import Encoder, EncoderConfig, Tokens
from foretext.model.folder import read_tensors
from foretext.model.layers import Linear
from foretext.model.quantize import Quantized, fake_quantized, pack, unpack
from foretext.model.reductions import FeedForwardStack, Reduce, Reduction, ReductionScale

Side = Literal["query", "document", "earlier", "both"]
"""Which text it is: what is asked (a context), what answers (a response), the turns before a context, and context and turns together."""

MODEL_TYPE = "foretext-towers"  # of config.json


class TowersConfig(BaseModel):
    """What stands on the encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    separate: bool = Field(False, description="an encoder and a reduction of its own for each side")
    reduction: Reduce = "mean"
    reduction_scale: ReductionScale = "inv_sqrt"
    output: Literal["identity", "linear", "ffn_stack"] = "identity"
    dimension: int | None = Field(None, description="d; default: the encoder's width")
    normalize: bool = True
    sides: tuple[Side, ...] = Field(("query", "document"), description="those with an output of their own")
    joint: Literal["both", "mean"] | None = Field(
        None, description="with turns before the context: compare by the vector of both, or by the mean of the three scores")
    ffn_input_ln: bool = True
    dropout: float = 0.0

    @model_validator(mode="after")
    def _fits(self) -> "TowersConfig":
        if self.output == "identity" and self.dimension is not None:
            raise ValueError(f"dimension {self.dimension} has no effect with output identity: take linear or ffn_stack")
        if self.reduction_scale != "inv_sqrt" and self.reduction not in ("sha", "2ha"):
            raise ValueError(f"reduction_scale {self.reduction_scale} has no effect with reduction {self.reduction}: take sha or 2ha")
        return self


class Towers(nn.Module):
    """Encoder -> reduction -> output of the side -> length 1 (if `normalize`).

    Args:
        encoder: of both sides, or of queries where `separate`; then the documents' starts as its copy.
        quantize: every forward sees the weights as the file will hold them (`model.quantize`).
    """

    def __init__(self, encoder: Encoder | ConvertEncoder, config: TowersConfig, quantize: Quantized | None = None):
        super().__init__()
        self.config, self.quantize = config, quantize
        self.encoder = encoder
        width = encoder.config.width
        self.reduction = Reduction(config.reduction, width, config.reduction_scale)
        self.second_encoder = self.second_reduction = None
        if config.separate:
            self.second_encoder = new_encoder(encoder.config)
            self.second_encoder.load_state_dict(encoder.state_dict())
            self.second_reduction = Reduction(config.reduction, width, config.reduction_scale)
        self.dimension = self.reduction.width if config.output == "identity" else config.dimension or width
        self.outputs = nn.ModuleDict({side: self._output() for side in config.sides})
        first, *others = self.outputs.values()
        for output in others:  # the sides start alike, so that equal words are near each other before anything is learnt
            output.load_state_dict(first.state_dict())

    @property
    def stock(self) -> bool:
        """Whether transformers and sentence-transformers hold each side as it is: an encoder they know, pooled, nothing on it."""
        return (self.config.output == "identity" and self.config.reduction in ("cls", "mean") and self.quantize is None
                and not isinstance(self.encoder, ConvertEncoder))

    def _output(self) -> nn.Module:
        width = self.reduction.width
        if self.config.output == "identity":
            return nn.Identity()
        if self.config.output == "linear":
            return Linear(width, self.dimension)
        return FeedForwardStack(width, self.dimension, self.config.dropout, self.config.ffn_input_ln)

    def forward(self, texts: list[tuple[Side, Tokens]], joined: tuple[Tensor, Tensor] | None = None, plain: bool = False) -> list[Tensor]:
        """Vectors (B, d) fp32 of several batches of texts, each of its side.

        Args:
            joined: rows of the first and of the second batch that belong together, (K,) each: their reductions are averaged and pass
                through the output of "both", as one more result (ConveRT section 3.3).
            plain: the weights as they are, also where `quantize` is set.
        """
        if self.quantize and not plain:
            return torch.func.functional_call(self, fake_quantized(self, self.quantize), (texts, joined, True))
        reduced = [self.reduce(tokens, side) for side, tokens in texts]
        made = [self.finish(r, side) for r, (side, _) in zip(reduced, texts)]
        if joined is not None:
            made.append(self.finish((reduced[0][joined[0]] + reduced[1][joined[1]]) / 2, "both"))
        return made

    def network(self, side: Side) -> tuple[Encoder | ConvertEncoder, Reduction]:
        """What reads a side's texts, and makes one vector of each."""
        if not (self.config.separate and side == "document"):
            return self.encoder, self.reduction
        self.second_encoder.compute_dtype = self.encoder.compute_dtype
        return self.second_encoder, self.second_reduction

    def reduce(self, tokens: Tokens, side: Side) -> Tensor:
        """(B, D or 2D) fp32"""
        encoder, reduction = self.network(side)
        if reduction.how == "cls":  # the last layer computes nothing but these rows
            return encoder(tokens, rows=tokens.layout.first_rows).float()
        return reduction(encoder(tokens), tokens.layout)

    def finish(self, reduced: Tensor, side: Side) -> Tensor:
        """(B, D or 2D) -> (B, d); a side without an output of its own has the queries'."""
        output = self.outputs[side if side in self.outputs else "query"]
        vectors = output(reduced)
        return F.normalize(vectors, dim=1) if self.config.normalize else vectors


def new_encoder(config: EncoderConfig | ConvertConfig) -> Encoder | ConvertEncoder:
    """A network with fresh weights."""
    return ConvertEncoder(config) if isinstance(config, ConvertConfig) else Encoder(config)


# ----------------------------------------------------------------------------------------------------------------- the folder


def is_towers(folder: Path) -> bool:
    """Whether a model folder holds a dual encoder in foretext's own format."""
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("model_type") == MODEL_TYPE


def write_towers(towers: Towers, folder: Path) -> None:
    """`config.json` and `model.safetensors` into an existing folder; quantised towers are stored as uint8 codes and fp16."""
    from safetensors.torch import save_file

    tensors = {name: tensor.cpu().contiguous() for name, tensor in pack(towers, towers.quantize).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", {
        "model_type": MODEL_TYPE, "format": 1, "quantize": towers.quantize,
        "encoder": towers.encoder.config.model_dump(mode="json"), "towers": towers.config.model_dump(mode="json"),
    })


def load_towers(folder: Path) -> Towers:
    """What `write_towers` wrote, on the CPU, weights in fp32.

    Raises:
        UserError: another format, or a file that does not fit its configuration.
    """
    config = read_json(folder / "config.json")
    if config.get("format") != 1:
        raise UserError(f"{folder}/config.json: format {config.get('format')!r} is unknown to this version, which reads format 1")
    kind = ConvertConfig if config["encoder"].get("family") == "convert" else EncoderConfig
    towers = Towers(new_encoder(kind(**config["encoder"])), TowersConfig(**config["towers"]))
    try:
        towers.load_state_dict(unpack(read_tensors(folder)))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{folder}: model.safetensors does not fit config.json ({reason}); export the model again") from None
    return towers
