"""A convolution inside of a larger one that wraps around: which cells of the torus are the image, and which are its ring.

With stride s an input cell at padded place ``i = s q + r`` is phase r of the coarse cell q, so that the convolution on the
torus is one of stride 1 from ``in_channels prod(s)`` channels. The torus is as small as it can be: before and behind the image
zeros share their cells; cells that hold copies (reflect, replicate, circular) each have their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hesse.convolutions.geometry import Geometry


@dataclass(frozen=True)
class Slots:
    """Places on the torus, each of some channels.

    Attributes:
        phases: which channels, ``[n]``: phase r of the stride, flattened; zeros for outputs.
        cells: coarse cells, flattened, ``[n]``.
    """

    phases: Tensor
    cells: Tensor

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: Tensor) -> Slots:
        return Slots(self.phases[index], self.cells[index])


@dataclass(frozen=True)
class Torus:
    """The torus of a convolution with one group (or of each group).

    Attributes:
        geometry: of one group.
    """

    geometry: Geometry

    @cached_property
    def size(self) -> tuple[int, ...]:
        """Coarse cells, one number an axis."""
        return tuple(self._axis(axis) for axis in range(self.geometry.ndim))

    def _axis(self, axis: int) -> int:
        g = self.geometry
        n, (before, after), s, m = g.size[axis], g.padding[axis], g.stride[axis], g.out_size[axis]
        last = s * (m - 1) + g.reach[axis] - 1
        fine = max(before + n, last - before + 1) if g.padding_mode == "zeros" else before + n + after
        return max(m, -(-fine // s))

    @property
    def cells(self) -> int:
        """Coarse cells."""
        return math.prod(self.size)

    @property
    def phases(self) -> int:
        """Input cells in a coarse one."""
        return math.prod(self.geometry.stride)

    @cached_property
    def inputs(self) -> Slots:
        """The cells of the image, in its order."""
        g = self.geometry
        return self._slots([torch.arange(n) + before for n, (before, _) in zip(g.size, g.padding, strict=True)])

    @cached_property
    def outputs(self) -> Slots:
        """The cells of the output image, in its order."""
        return self._outputs([torch.arange(m) for m in self.geometry.out_size])

    @cached_property
    def sources(self) -> Tensor:
        """For each slot of `in_ring` the cell of the image that it copies; -1 for a zero. ``[ring]``."""
        return self._ring[1]

    @cached_property
    def in_ring(self) -> Slots:
        """The input slots outside of the image."""
        return self._ring[0]

    @cached_property
    def _ring(self) -> tuple[Slots, Tensor]:
        g = self.geometry
        axes = [torch.arange(q * s) for q, s in zip(self.size, g.stride, strict=True)]
        sources = torch.zeros((), dtype=torch.int64)
        inside = torch.ones((), dtype=torch.bool)
        for axis, places in enumerate(axes):
            n, before = g.size[axis], g.padding[axis][0]
            known = torch.full((len(places),), -1)
            table = g.sources(axis)
            if g.padding_mode == "zeros":
                known[before : before + n] = torch.arange(n)
            else:
                known[: len(table)] = table
            here = (places >= before) & (places < before + n)
            sources = torch.where((sources[..., None] < 0) | (known < 0), -1, sources[..., None] * n + known)
            inside = inside[..., None] & here
        ring = ~inside.flatten()
        return self._slots(axes)[ring], sources.flatten()[ring]

    @cached_property
    def out_ring(self) -> Slots:
        """The output cells outside of the output image."""
        inside = torch.ones((), dtype=torch.bool)
        for q, m in zip(self.size, self.geometry.out_size, strict=True):
            inside = inside[..., None] & (torch.arange(q) < m)
        return self._outputs([torch.arange(q) for q in self.size])[~inside.flatten()]

    @cached_property
    def touched(self) -> tuple[Tensor, Tensor]:
        """Which slots of `in_ring` an output of the image sees, and which cells of `out_ring` see its padded input."""
        g = self.geometry
        seen = torch.ones((), dtype=torch.bool)
        seeing = torch.ones((), dtype=torch.bool)
        for axis, (q, s) in enumerate(zip(self.size, g.stride, strict=True)):
            windows = (s * torch.arange(q)[:, None] + g.dilation[axis] * torch.arange(g.kernel[axis])) % (q * s)
            n, (before, after), m = g.size[axis], g.padding[axis], g.out_size[axis]
            low, high = (before, before + n) if g.padding_mode == "zeros" else (0, before + n + after)
            sees = ((windows >= low) & (windows < high)).any(1)
            is_seen = torch.zeros(q * s, dtype=torch.bool)
            is_seen[windows[:m].flatten()] = True
            seen, seeing = seen[..., None] & is_seen, seeing[..., None] & sees
        slots = self.in_ring
        fine = self._fine(slots)
        return seen.flatten()[fine], seeing.flatten()[self.out_ring.cells]

    def _fine(self, slots: Slots) -> Tensor:
        """Flat places on the fine torus of slots."""
        phases = unraveled(slots.phases, self.geometry.stride)
        cells = unraveled(slots.cells, self.size)
        flat = torch.zeros_like(slots.cells)
        for phase, cell, q, s in zip(phases, cells, self.size, self.geometry.stride, strict=True):
            flat = flat * (q * s) + cell * s + phase
        return flat

    def _slots(self, axes: list[Tensor]) -> Slots:
        """The slots at a grid of fine places."""
        phases = cells = torch.zeros((), dtype=torch.int64)
        for places, q, s in zip(axes, self.size, self.geometry.stride, strict=True):
            phases = phases[..., None] * s + places % s
            cells = cells[..., None] * q + places // s
        return Slots(phases.flatten(), cells.flatten())

    def _outputs(self, axes: list[Tensor]) -> Slots:
        cells = torch.zeros((), dtype=torch.int64)
        for places, q in zip(axes, self.size, strict=True):
            cells = cells[..., None] * q + places
        return Slots(torch.zeros_like(cells.flatten()), cells.flatten())


def unraveled(flat: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    """The coordinates of flat places, one tensor an axis (`torch.unravel_index` imports a computer algebra system first)."""
    coordinates: list[Tensor] = []
    for size in reversed(shape):
        coordinates.append(flat % size)
        flat = flat // size
    return coordinates[::-1]
