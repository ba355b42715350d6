"""Bags of embeddings by plain ops: PyTorch's fused op has one derivative only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

FUSED_BAGS = {"EmbeddingBagBackward0"}
"""The node of the fused op."""


class PlainBags(TorchFunctionMode):
    """Within this mode, which belongs to the thread, `F.embedding_bag` is a lookup followed by a sum, mean or maximum."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.embedding_bag:
            return func(*args, **(kwargs or {}))
        return _plain(*args, **(kwargs or {}))


class WithPlainBags:
    """A function whose bags are computed by plain ops (where they can be)."""

    def __init__(self, f: Callable[[Any], Any]) -> None:
        self._f = f

    def __call__(self, x: Any) -> Any:
        """The function's value."""
        with PlainBags():
            return self._f(x)


def _plain(  # noqa: PLR0913 - the arguments of F.embedding_bag
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    cut = include_last_offset and offsets is not None and int(offsets[-1]) != len(input)  # what PyTorch says it must not be
    if max_norm is not None or scale_grad_by_freq or cut:  # one changes the weight, another is no derivative
        return F.embedding_bag(
            input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights,
            include_last_offset, padding_idx,
        )  # fmt: skip
    index, alive, place = _bags(input, offsets, include_last_offset)
    if padding_idx is not None:
        alive = alive & (index != padding_idx % len(weight))
    rows = weight[index]
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.flatten()[place].unsqueeze(2)
    if mode == "max":
        found = rows.masked_fill(~alive.unsqueeze(2), -torch.inf).amax(1) if index.shape[1] else rows.sum(1)
        return found.masked_fill(~alive.any(1, keepdim=True), 0.0)
    total = (rows * alive.unsqueeze(2)).sum(1)
    return total if mode == "sum" else total / alive.sum(1, keepdim=True).clamp(min=1).to(total.dtype)


def _bags(input: Tensor, offsets: Tensor | None, include_last_offset: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens of every bag ``[bags, longest]``, which of them are there, and their places in the flat input."""
    if input.ndim == 2:
        place = torch.arange(input.numel(), device=input.device).reshape(input.shape)
        return input, torch.ones_like(input, dtype=torch.bool), place
    assert offsets is not None
    end = offsets.new_tensor([len(input)])
    starts, stops = (offsets[:-1], offsets[1:]) if include_last_offset else (offsets, torch.cat([offsets[1:], end]))
    lengths = stops - starts
    steps = torch.arange(int(lengths.max()) if len(lengths) else 0, device=input.device)
    alive = steps < lengths.unsqueeze(1)
    place = (starts.unsqueeze(1) + steps).where(alive, torch.zeros_like(steps))
    return input[place], alive, place
