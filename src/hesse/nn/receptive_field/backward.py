"""The gradient of a receptive-field convolution, recomputed block by block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hesse.nn.receptive_field.blocks import Blocks, plan
from hesse.nn.receptive_field.kernel import Kernel
from hesse.nn.receptive_field.pull import gradients
from hesse.nn.receptive_field.reductions import cotangents


def gradient(
    kernel: Kernel, x: Tensor, weight: Tensor, out: Tensor | None, g: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients by the padded input and the weight, without a graph.

    Each term's derivative is that of the user's function on a block; the sum over filters and positions is taken by autograd,
    since a block's pixels and weights are broadcast.

    Args:
        kernel: what was computed; an associative reduction.
        x: padded, ``[N, in_channels, *padded]``.
        weight: ``[*weight_shape, out_channels, channels of a group, *kernel]``.
        out: the value, ``[N, out_channels, *out]``, for "prod" (none of it zero) and "logsumexp".
        g: its cotangent.
        needed: whether x's and the weight's gradients are.

    Returns:
        The two gradients; None for what is not needed.

    Raises:
        MemoryBudgetError: the gradients and a block of one term do not fit into the budget.

    Cost: one evaluation of fn on each term and one backward pass of it; a second evaluation for "max" and "min".
    """
    return _Pull(kernel, x, weight, needed).run(out, g)


class _Pull:
    """The two gradients while they are accumulated."""

    def __init__(self, kernel: Kernel, x: Tensor, weight: Tensor, needed: Sequence[bool]) -> None:
        self.kernel, self.needed, geometry = kernel, needed, kernel.geometry
        self.blocks: Blocks = plan(geometry, x)
        self.windows, self.taps = geometry.windows(x), geometry.taps(weight)
        self.gx = torch.zeros_like(x, memory_format=torch.contiguous_format) if needed[0] else None
        self.gw = torch.zeros_like(self.taps, memory_format=torch.contiguous_format) if needed[1] else None
        self.filters = self.blocks.filter_blocks()
        self.weights = [(tap, tap.weights(self.taps, kernel.extra, self.filters)) for tap in self.blocks.tap_blocks()]

    def run(self, out: Tensor | None, g: Tensor) -> list[Tensor | None]:
        """Over all places."""
        geometry = self.kernel.geometry
        lead = (slice(None),) * (2 + geometry.dims)
        into = None if self.gx is None else geometry.windows(self.gx)
        g, out = self._by_group(g), None if out is None else self._by_group(out)
        for images, rows in self.blocks.places():
            where = (*lead, images, rows)
            self._place(
                self.windows[where],
                None if into is None else into[where],
                _flat(g, images, rows),
                None if out is None else _flat(out, images, rows),
            )
        return [self.gx, None if self.gw is None else geometry.untaps(self.gw)]

    def _by_group(self, image: Tensor) -> Tensor:
        return image.to(self.kernel.accumulator).unflatten(1, (self.kernel.geometry.groups, self.kernel.geometry.filters))

    def _place(self, place: Tensor, into: Tensor | None, g: Tensor, out: Tensor | None) -> None:
        count = None
        if self.kernel.reduce in ("max", "min"):
            out, count = self._extremes(place)
        states = [[None if s is None else s[:, part] for s in (g, out, count)] for part in self.filters]
        for tap, weights in self.weights:
            pixels = tap.pixels(place)
            gp = None if into is None else torch.zeros_like(pixels, memory_format=torch.contiguous_format)
            for part, weight, state in zip(self.filters, weights, states, strict=True):
                found = self._block(pixels, weight, state)
                if gp is not None:
                    gp += found[0]
                if self.gw is not None:
                    tap.add(found[-1].squeeze(-1), self.gw[..., part], self.kernel.extra)
            if into is not None and gp is not None:
                tap.add(gp, into)

    def _block(self, pixels: Tensor, weights: Tensor, state: Sequence[Tensor | None]) -> list[Tensor]:
        g, out, count = state
        assert g is not None and isinstance(self.kernel.reduce, str)
        leaves = [t.detach().requires_grad_(need) for t, need in zip((pixels, weights), self.needed, strict=True)]
        with torch.enable_grad():
            terms = self.kernel.terms(*leaves)
        u = cotangents(self.kernel.reduce, terms.detach(), g, out, count, self.kernel.geometry.window)
        return gradients([terms], [leaf for leaf in leaves if leaf.requires_grad], [u])

    def _extremes(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs at a place and how many terms equal them, from the very blocks that are then differentiated.

        The same numbers in blocks of another shape may differ in the last place, and no term would equal the output.
        """
        reduction = self.kernel.reduction
        assert reduction is not None
        found: list[tuple[Tensor, Tensor]] = []
        for i, (tap, weights) in enumerate(self.weights):
            pixels = tap.pixels(place)
            for j, weight in enumerate(weights):
                terms = self.kernel.terms(pixels, weight)
                part = reduction.partial(terms)
                number = (terms == part).sum(0)
                if i:
                    total, count = found[j]
                    best = reduction.combine(total.clone(), part)
                    number = count * (total == best) + number * (part == best)
                    found[j] = best, number
                else:
                    found.append((part, number))
        values, counts = zip(*found, strict=True)
        return torch.cat(values, 1), torch.cat(counts, 1)


def _flat(image: Tensor, images: slice, rows: slice) -> Tensor:
    """``[groups, filters, positions]`` at a place."""
    return image[images, :, :, rows].movedim(0, 2).flatten(2)
