"""What a verb's MODEL means: its folder, and the encoder in it at the precision that is fastest on this machine."""

from pathlib import Path

import torch

from foretext.errors import UserError
from foretext.model.precision import default_device, has_bf16
from foretext.retrieval.embed import TextEncoder
from foretext.training.loop import tune_allocator

DTYPES = {"auto": None, "bf16": torch.bfloat16, "fp32": torch.float32}


def model_folder(name: str | Path) -> str:
    """A run folder's export, or the folder or hub id itself."""
    inside = Path(name) / "export"
    return str(inside) if any((inside / file).is_file() for file in ("config.json", "modules.json")) else str(name)


def open_encoder(model: str | Path, dtype: str = "auto", device: str | torch.device | None = None) -> TextEncoder:
    """The encoder of a run folder, model folder or hub id, to embed with alone (`TextEncoder.freeze`).

    Args:
        dtype: of the computation: bf16, fp32, or auto, which is bf16 where the device multiplies it in hardware, as in training.
        device: default: the GPU if there is one.
    Raises:
        UserError: an unknown dtype, or no model there.
    """
    chosen = encoding_dtype(dtype, device)
    tune_allocator()
    return TextEncoder.load(model_folder(model), device, chosen).freeze()


def encoding_dtype(name: str, device: str | torch.device | None = None) -> torch.dtype:
    """What auto, bf16 or fp32 means on this device (default: the GPU if there is one)."""
    if name not in DTYPES:
        raise UserError(f"--dtype {name}: there are {', '.join(DTYPES)}")
    device = default_device(device)
    return DTYPES[name] or (torch.bfloat16 if has_bf16(device) else torch.float32)
