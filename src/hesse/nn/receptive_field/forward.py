"""The value of a receptive-field convolution, accumulated block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.nn.receptive_field.blocks import keep_pages, plan
from hesse.nn.receptive_field.kernel import Kernel


def evaluate(kernel: Kernel, x: Tensor, weight: Tensor) -> Tensor:
    """The value, without a graph; an associative reduction.

    Args:
        kernel: what to compute.
        x: padded, ``[N, in_channels, *padded]``.
        weight: ``[*weight_shape, out_channels, channels of a group, *kernel]``.

    Returns:
        ``[N, out_channels, *out]``. At its peak a few blocks are in memory besides it.

    Raises:
        MemoryBudgetError: the output and a block of one term do not fit into the budget.
    """
    reduction, geometry = kernel.reduction, kernel.geometry
    assert reduction is not None
    blocks = plan(geometry, x, fused=kernel.compiled is not None)
    keep_pages(x.device)
    windows, taps = geometry.windows(x), geometry.taps(weight)
    filters, partial, combine = blocks.filter_blocks(), kernel.partial(), reduction.combine
    weights = [(tap, tap.weights(taps, kernel.extra, filters)) for tap in blocks.tap_blocks()]
    out = torch.empty(
        x.shape[0], geometry.groups, geometry.filters, *blocks.out, dtype=kernel.accumulator, device=x.device
    )  # fmt: skip
    lead = (slice(None),) * (2 + geometry.dims)
    for images, rows in blocks.places():
        place, target = windows[(*lead, images, rows)], out[images, :, :, rows].movedim(0, 2)
        totals: list[Tensor] = []
        for tap, parts in weights:
            pixels = tap.pixels(place)
            if not totals:
                totals = [partial(pixels, part) for part in parts]
                continue
            for total, part in zip(totals, parts, strict=True):
                combine(total, partial(pixels, part))
        for total, which in zip(totals, filters, strict=True):
            target[:, which] = total.unflatten(-1, target.shape[2:])
    if kernel.reduce == "mean":
        out.div_(geometry.window)
    return out.flatten(1, 2).to(kernel.dtype)
