"""The relative rounding of arithmetic: the dtype's, or that of TF32 where PyTorch may use it for float32."""

from __future__ import annotations

import torch

TF32 = 2.0**-10
"""Distance of the next number after 1 with the ten bits that NVIDIA's TF32 keeps of a factor."""


def machine_epsilon(dtype: torch.dtype, device: torch.device) -> float:
    """What results of arithmetic in a dtype on a device are rounded to, relative to their size.

    Args:
        dtype: floating-point or complex.
        device: where it is computed. On CUDA products and convolutions of float32 may be TF32 (convolutions are, unless
            PyTorch is told otherwise), whose rounding is returned then.

    Returns:
        ``torch.finfo(dtype).eps``, or `TF32`.

    Cost: no derivatives.
    """
    own = torch.finfo(dtype).eps
    if device.type == "cuda" and dtype in (torch.float32, torch.complex64) and _may_be_tf32():
        return max(own, TF32)
    return own


def _may_be_tf32() -> bool:
    try:
        return bool(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    except RuntimeError:  # set by PyTorch's newer names, after which the older ones cannot be read
        parts = torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
        return any(part.fp32_precision != "ieee" for part in parts)
