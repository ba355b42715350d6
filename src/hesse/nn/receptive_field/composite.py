"""A receptive-field convolution as ordinary operations: exact to any order, under every transform, for any reduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.core.memory import current_budget
from hesse.nn.receptive_field.blocks import TEMPORARIES, plan_whole
from hesse.nn.receptive_field.geometry import Geometry
from hesse.nn.receptive_field.kernel import Kernel
from hesse.nn.receptive_field.pull import Parts, Pull, in_batches
from hesse.nn.receptive_field.reductions import whole

PIECE = 2**22  # bytes of the terms of a piece, at most


def composite(kernel: Kernel, x: Tensor, weight: Tensor, *, recompute: bool) -> Tensor:
    """The value, piece by piece, each with whole windows.

    Args:
        kernel: what to compute; any reduction.
        x: padded, ``[N, in_channels, *padded]``.
        weight: ``[*weight_shape, out_channels, channels of a group, *kernel]``.
        recompute: keep no terms for the backward passes but compute them again, in passes of every order. Tensors that fn
            closes over then get no gradient, and `torch.func` and forward mode are out of reach.

    Returns:
        ``[N, out_channels, *out]``.

    Cost: with `recompute`, each order of differentiation evaluates fn once more than without.
    """
    geometry = kernel.geometry
    room = current_budget(None, x.device) // TEMPORARIES
    blocks = plan_whole(geometry, x, max(1, min(PIECE, room) // x.element_size()))
    weights = _by_filters(geometry, weight, blocks.filters, kernel.extra)
    images = []
    for part in x.split(blocks.images) if x.shape[0] else [x]:
        rows = []
        for first in range(0, blocks.out[0], blocks.rows):
            pixels = geometry.rows(part, first, min(first + blocks.rows, blocks.out[0]))
            pieces = [_piece(kernel, pixels, w, recompute) for w in weights]
            rows.append(_cat(pieces, 2).flatten(1, 2))
        images.append(_cat(rows, 2))
    return _cat(images, 0)


def _by_filters(geometry: Geometry, weight: Tensor, size: int, extra: int) -> Sequence[Tensor]:
    """The weights of some filters of every group at a time: ``[*weight_shape, groups, filters, channels, *kernel]``."""
    grouped = weight.unflatten(extra, (geometry.groups, geometry.filters))
    return grouped.split(size, extra + 1) if size < geometry.filters else [grouped]


def _cat(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _piece(kernel: Kernel, x: Tensor, weight: Tensor, recompute: bool) -> Tensor:
    def value(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return (_whole_windows(kernel, x, weight),)

    return recomputed(value, x, weight)[0] if recompute else value(x, weight)[0]


def _whole_windows(kernel: Kernel, x: Tensor, weight: Tensor) -> Tensor:
    """``[N, groups, filters, *out]``, all at once."""
    geometry, extra = kernel.geometry, kernel.extra
    windows = geometry.stacked(x)
    images, out = x.shape[0], windows.shape[-geometry.dims :]
    pixels = windows.reshape(geometry.window, geometry.groups, 1, -1)
    taps = weight.movedim((extra, extra + 1), (-2, -1))
    taps = taps.reshape(*weight.shape[:extra], geometry.window, geometry.groups, weight.shape[extra + 1], 1)
    result = whole(kernel.reduce, kernel.terms(pixels, taps)).to(kernel.dtype)
    return result.unflatten(-1, (images, *out)).movedim(2, 0)


def recomputed(f: Parts, *tensors: Tensor) -> tuple[Tensor, ...]:
    """``f(*tensors)``, a tuple of tensors, of which a graph keeps the arguments only; differentiable to any order."""
    return _Recomputed.apply(f, *tensors)  # pyright: ignore[reportReturnType]


class _Recomputed(torch.autograd.Function):
    """A function that is run again for its backward pass, which is itself such a function."""

    @staticmethod
    def forward(ctx: Any, f: Parts, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.f = f
        ctx.save_for_backward(*tensors)
        return f(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        run = recomputed if torch.is_grad_enabled() and not in_batches(cotangents) else _directly
        gradients = iter(run(Pull(ctx.f, needed), *ctx.saved_tensors, *cotangents))
        return None, *(next(gradients) if need else None for need in needed)


def _directly(f: Parts, *tensors: Tensor) -> tuple[Tensor, ...]:
    return f(*tensors)
