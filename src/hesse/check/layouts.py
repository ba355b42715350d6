"""The same numbers in other strides."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def layouts(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Copies of a tensor with equal values and other strides: transposed, and every second element of a buffer.

    Args:
        tensor: of any shape.

    Yields:
        What it is, and the copy. Tensors of fewer than two elements have no other layout.
    """
    if tensor.numel() < 2:
        return
    if tensor.dim() >= 2 and min(tensor.shape[-2:]) > 1:
        yield "transposed", tensor.mT.contiguous().mT
    buffer = torch.zeros((*tensor.shape[:-1], 2 * tensor.shape[-1]), dtype=tensor.dtype, device=tensor.device)
    view = buffer[..., 1::2]
    view.copy_(tensor)
    yield "strided", view


def expanded(tensor: Tensor) -> Tensor | None:
    """A tensor's first slice, repeated along an axis by a stride of zero; None where no axis is longer than one."""
    for axis, length in enumerate(tensor.shape):
        if length > 1:
            return tensor.narrow(axis, 0, 1).expand(tensor.shape)
    return None
