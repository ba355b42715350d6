"""Random vectors that depend on their number and the row of a batch alone, not on what is drawn together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hesse.core import random, tree
from hesse.core.mixing import mix_number

Noise = Callable[[Sequence[int], torch.dtype, torch.device, torch.Generator], Tensor]
_BLOCK = 256  # rows that are drawn by one generator


@dataclass(frozen=True)
class Probes:
    """Random vectors of the shape of a point, or of a batch of points.

    Attributes:
        noise: how numbers are drawn.
        samples: how many vectors.
        seed: what they follow from.
        device: where they are drawn.
        count: rows of the whole batch; None: one point.
        rows: which of them; None: all.
    """

    noise: Noise
    samples: int
    seed: int
    device: torch.device
    count: int | None = None
    rows: slice | None = None

    @classmethod
    def of(cls, x: Any, noise: Noise, samples: int, generator: torch.Generator | None, *, by_row: bool) -> Probes:
        """Vectors like the tree x, whose leaves begin with rows if `by_row`; from one number that the generator gives."""
        leaves = [leaf for leaf in tree.leaves(x) if isinstance(leaf, Tensor)]
        count = len(leaves[0]) if by_row and leaves and leaves[0].ndim else None
        device = torch.device("cpu") if generator is None else generator.device
        return cls(noise, samples, 0 if generator is None else random.seed_of(generator), device, count)

    def of_rows(self, rows: Tensor) -> Probes:
        """Those of some rows, whose numbers follow one another."""
        return replace(self, rows=slice(int(rows[0]), int(rows[-1]) + 1))

    def draw(self, part: slice, like: Sequence[Tensor]) -> list[Tensor]:
        """Some of the vectors, ``[k, *shape]`` a leaf.

        Args:
            part: their numbers.
            like: the leaves of the point, or of the rows.
        """
        found = [torch.empty((part.stop - part.start, *leaf.shape), dtype=leaf.dtype, device=leaf.device) for leaf in like]
        generator = torch.Generator(self.device)
        for place, number in enumerate(range(part.start, part.stop)):
            self._fill([leaf[place] for leaf in found], mix_number(self.seed + number), generator)
        return found

    def _fill(self, vector: list[Tensor], key: int, generator: torch.Generator) -> None:
        if self.count is None:
            generator.manual_seed(key % 2**63)
            for leaf in vector:
                leaf.copy_(self.noise(leaf.shape, leaf.dtype, leaf.device, generator))
            return
        rows = self.rows or slice(0, self.count)
        for start in range(rows.start - rows.start % _BLOCK, rows.stop, _BLOCK):
            length = min(_BLOCK, self.count - start)
            low, high = max(rows.start, start), min(rows.stop, start + length)
            generator.manual_seed(mix_number(key + start) % 2**63)
            for leaf in vector:
                block = self.noise((length, *leaf.shape[1:]), leaf.dtype, leaf.device, generator)
                leaf[low - rows.start : high - rows.start].copy_(block[low - start : high - start])
