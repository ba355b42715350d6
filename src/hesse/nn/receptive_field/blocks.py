"""How the work is cut: places (images and rows), taps and filters, so that what is in hand at once stays small.

Everything is computed on blocks of ``taps x filters x positions`` terms. On a CPU a block is about what the second-level cache
holds, and no larger than input and output; on an accelerator it is as large as pays for starting a kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from hesse.core.memory import Budget, chunk_size, current_budget
from hesse.nn.receptive_field.geometry import Geometry

CPU_BLOCK = 2**20  # bytes of a block of terms; with 2**18 a forward pass takes 1.6 times, with 2**22 1.0 times as long
ACCELERATOR_BLOCK = 2**26
POSITIONS = 4096  # of a block on a CPU: long enough to vectorize well
TAPS = 16
FUSED = 16  # times as many terms in a block, where these are not stored
TEMPORARIES = 6  # blocks that a function and its derivative hold at a time


@dataclass(frozen=True)
class Tap:
    """A block of taps: some channels of a group, at some kernel positions."""

    channels: slice
    positions: tuple[tuple[int, ...], ...]

    def pixels(self, place: Tensor) -> Tensor:
        """The pixels that these taps see.

        Args:
            place: windows, ``[channels, *kernel, groups, images, *out]``.

        Returns:
            ``[taps, groups, 1, images x out]``: a copy, unless it is one kernel position of an unpadded whole.
        """
        views = [place[(self.channels, *position)] for position in self.positions]
        block = views[0] if len(views) == 1 else torch.stack(views, 1).flatten(0, 1)
        return block.reshape(block.shape[0], block.shape[1], 1, -1)

    def weights(self, taps: Tensor, extra: int, filters: Sequence[slice]) -> list[Tensor]:
        """The weights of these taps.

        Args:
            taps: ``[*weight_shape, channels, *kernel, groups, filters]``.
            extra: axes of the weight shape.
            filters: blocks of them.

        Returns:
            For each block of filters, ``[*weight_shape, taps, groups, filters, 1]``.
        """
        lead = (slice(None),) * extra
        views = [taps[(*lead, self.channels, *position)] for position in self.positions]
        block = views[0] if len(views) == 1 else torch.stack(views, extra + 1).flatten(extra, extra + 1)
        return [block[..., part].unsqueeze(-1) for part in filters]

    def add(self, block: Tensor, place: Tensor, extra: int = 0) -> None:
        """Add a block, ``[*extra axes, taps, ...]``, to where its taps come from: `place` is a view and is written to."""
        lead = (slice(None),) * extra
        parts = block.unflatten(extra, (-1, len(self.positions)))
        for part, position in zip(parts.unbind(extra + 1), self.positions, strict=True):
            target = place[(*lead, self.channels, *position)]
            target.add_(part.reshape(target.shape))


@dataclass(frozen=True)
class Blocks:
    """Sizes of blocks.

    Attributes:
        geometry: of the convolution.
        count: images.
        out: sizes of the output.
        images, rows: of a place; several images only where their rows are all there.
        taps, filters: of a block.
    """

    geometry: Geometry
    count: int
    out: tuple[int, ...]
    images: int
    rows: int
    taps: int
    filters: int

    def places(self) -> Iterator[tuple[slice, slice]]:
        """Images and rows of the output."""
        for image in range(0, self.count, self.images):
            for row in range(0, self.out[0], self.rows):
                yield slice(image, min(image + self.images, self.count)), slice(row, min(row + self.rows, self.out[0]))

    def tap_blocks(self) -> list[Tap]:
        """All taps of a window, in blocks."""
        channels = self.geometry.channels
        positions = list(itertools.product(*map(range, self.geometry.kernel)))
        if self.taps < channels:
            parts = [slice(c, min(c + self.taps, channels)) for c in range(0, channels, self.taps)]
            return [Tap(part, (position,)) for position in positions for part in parts]
        size = _even(len(positions), self.taps // channels)
        return [Tap(slice(None), tuple(positions[i : i + size])) for i in range(0, len(positions), size)]

    def filter_blocks(self) -> list[slice]:
        """All filters of a group, in blocks."""
        return [slice(i, min(i + self.filters, self.geometry.filters)) for i in range(0, self.geometry.filters, self.filters)]


def _even(total: int, most: int) -> int:
    """The size of blocks that are about equally large."""
    return math.ceil(total / math.ceil(total / max(most, 1)))


def _images_and_rows(count: int, out: Sequence[int], positions: int) -> tuple[int, int]:
    """Images and rows of a place of about so many positions."""
    one = math.prod(out)
    if positions >= one:
        return _even(count, positions // max(one, 1)) if count and one else 1, out[0]
    return 1, _even(out[0], positions // math.prod(out[1:]))


def _block_elements(x: Tensor, geometry: Geometry, out: int, budget: Budget | None) -> int:
    size = x.element_size()
    most = CPU_BLOCK if x.device.type == "cpu" else ACCELERATOR_BLOCK
    wanted = max(min(most, (x.numel() + out) * size // 2), most // 4) // size
    allowed = current_budget(budget, x.device)
    needed = TEMPORARIES * size * geometry.groups
    return geometry.groups * chunk_size(max(wanted // geometry.groups, 1), needed, out * size, allowed, "a receptive field")


@cache
def keep_pages(device: torch.device) -> None:
    """Have the allocator keep the pages of blocks between two of them.

    glibc gives back what is free beyond twice the largest block that it ever mapped apart and was given back; a block that is
    made anew for each function call is then paged in each time (measured: 1.4 times the time of a forward pass).
    """
    if device.type == "cpu":
        torch.empty(4 * CPU_BLOCK, dtype=torch.uint8)


def plan(geometry: Geometry, x: Tensor, *, budget: Budget | None = None, fused: bool = False) -> Blocks:
    """Blocks for an input.

    Args:
        geometry: of the convolution.
        x: padded, ``[N, in_channels, *padded]``.
        budget: bytes that may be taken, the output included; None: that of `hesse.memory`.
        fused: terms are reduced as they are made, by compiled code: blocks have more of them.

    Raises:
        MemoryBudgetError: not even one term of each group fits.
    """
    out = geometry.out_sizes(x.shape[2:])
    total = x.shape[0] * geometry.out_channels * math.prod(out)
    elements = _block_elements(x, geometry, total, budget) * (FUSED if fused else 1)
    wanted = POSITIONS if x.device.type == "cpu" else elements
    cells = min(geometry.window * geometry.filters, 4 * TAPS)  # that a block holds for each position, at least
    positions = max(1, min(wanted, elements // geometry.groups, max(elements // (cells * geometry.groups), 256)))
    images, rows = _images_and_rows(x.shape[0], out, positions)
    cells = max(1, elements // max(geometry.groups * images * rows * math.prod(out[1:]), 1))
    filters = _even(geometry.filters, max(1, cells // min(TAPS, geometry.window)))
    return Blocks(geometry, x.shape[0], out, images, rows, min(geometry.window, max(1, cells // filters)), filters)


def plan_whole(geometry: Geometry, x: Tensor, elements: int) -> Blocks:
    """Blocks that hold whole windows: of about so many terms."""
    out = geometry.out_sizes(x.shape[2:])
    cells = max(1, elements // (geometry.window * geometry.groups))
    filters = _even(geometry.filters, min(geometry.filters, max(1, cells // 256)))
    images, rows = _images_and_rows(x.shape[0], out, max(1, cells // filters))
    return Blocks(geometry, x.shape[0], out, images, rows, geometry.window, filters)
