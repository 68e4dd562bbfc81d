"""What a device computes well in."""

import torch


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 matmuls run in hardware here."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported()
