"""The same numbers in other strides."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def layouts(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Copies of a tensor with equal values and other strides.

    Args:
        tensor: of any shape.

    Yields:
        What it is, and the copy: "transposed" (the last two axes, or all of them reversed, in memory), "strided" (every second
        element of a buffer), "offset" (in the middle of a buffer), "channels-last" (four and five axes). Tensors of fewer than
        two elements have no other layout.
    """
    if tensor.numel() < 2:
        return
    if tensor.dim() >= 2 and min(tensor.shape[-2:]) > 1:
        yield "transposed", tensor.mT.contiguous().mT
    elif tensor.dim() >= 2 and sum(length > 1 for length in tensor.shape) > 1:
        axes = tuple(reversed(range(tensor.dim())))
        yield "transposed", tensor.permute(axes).contiguous().permute(axes)
    buffer = torch.ones((*tensor.shape[:-1], 2 * tensor.shape[-1]), dtype=tensor.dtype, device=tensor.device)
    view = buffer[..., 1::2]
    view.copy_(tensor)
    yield "strided", view
    buffer = torch.ones(tensor.numel() + 7, dtype=tensor.dtype, device=tensor.device)
    view = buffer[3 : 3 + tensor.numel()].view(tensor.shape)
    view.copy_(tensor)
    yield "offset", view
    if tensor.dim() in (4, 5) and tensor.shape[1] > 1:
        yield "channels-last", tensor.contiguous(memory_format=_CHANNELS[tensor.dim()])


def slices(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Copies of a tensor as parts of larger ones, whose other elements are ones; and complex ones conjugated on reading.

    Args:
        tensor: of any shape; a single number too.

    Yields:
        What it is, and the copy: "sliced" (cut out of a larger tensor along every axis: rows have no gaps, but gaps between
        them), "sliced along axis 1" and so on (along one inner axis only), "lazily conjugated".
    """
    if not tensor.numel():
        return
    axes = range(tensor.dim())
    yield "sliced", _cut(tensor, set(axes))
    for axis in axes[1:-1]:
        yield f"sliced along axis {axis}", _cut(tensor, {axis})
    if tensor.is_complex():
        yield "lazily conjugated", torch.conj_physical(tensor.resolve_conj()).conj()


def _cut(tensor: Tensor, axes: set[int]) -> Tensor:
    """The tensor in the middle of one that is longer at both ends of these axes; a number in the middle of a vector."""
    if not tensor.dim():
        view = torch.ones(3, dtype=tensor.dtype, device=tensor.device)[1]
    else:
        lengths = [length + 2 * (axis in axes) for axis, length in enumerate(tensor.shape)]
        view = torch.ones(lengths, dtype=tensor.dtype, device=tensor.device)
        for axis in axes:
            view = view.narrow(axis, 1, tensor.shape[axis])
    view.copy_(tensor)
    return view


_CHANNELS = {4: torch.channels_last, 5: torch.channels_last_3d}


def expanded(tensor: Tensor) -> list[Tensor]:
    """A tensor's slices repeated by a stride of zero: the first element everywhere, and the first slice along an axis."""
    axes = [axis for axis, length in enumerate(tensor.shape) if length > 1]
    if not axes:
        return []
    everywhere = tensor.reshape(-1)[:1].view((1,) * tensor.dim()).expand(tensor.shape)
    first = tensor.narrow(axes[0], 0, 1).expand(tensor.shape)
    return [everywhere, first] if len(axes) > 1 else [first]
