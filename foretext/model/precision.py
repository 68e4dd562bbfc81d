"""What a device computes well in, and where and in what a model is loaded unless told."""

import torch


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 matmuls run in hardware here."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported()


def default_device(device: str | torch.device | None = None) -> torch.device:
    """The device that is named, or else the GPU if there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def default_dtype(device: torch.device) -> torch.dtype:
    """fp32 on a CPU, so that scores are those of other libraries; bf16 on a GPU that multiplies it."""
    return torch.bfloat16 if device.type == "cuda" and has_bf16(device) else torch.float32
