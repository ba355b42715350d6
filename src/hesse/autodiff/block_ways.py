"""A block of vectors, one by one or in one batched pass: whichever was faster for this operator."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

SMALL_GRAPH_BYTES = 2**20  # below this, a pass is bound by overhead: what is not known yet is batched (benchmarks/blocks.py)
LARGE_GRAPH_BYTES = 2**24  # above this, a batched pass leaves the caches and needs memory for every vector: never batched

_FEW = 6  # blocks of fewer vectors are not taken apart
_TRIALS = 2  # both ways are timed so often before the faster one is taken

Products = Callable[[list[Tensor]], list[Tensor]]


class BlockWays:
    """The products of an operator with a block of vectors.

    Below `LARGE_GRAPH_BYTES`, the first blocks are taken apart: a few vectors go one way, the rest the other,
    and both are timed. Results of the two ways differ by rounding.
    Devices that work on while Python goes on are not timed: there, graphs below `SMALL_GRAPH_BYTES` are batched.

    Args:
        one: the product with one vector.
        together: the products with all vectors along the leading axis; may raise RuntimeError where an op cannot be batched.
        graph_bytes: bytes that one pass holds.
        device: where it runs.
    """

    def __init__(self, one: Products, together: Products, graph_bytes: int, device: torch.device) -> None:
        self._one, self._together = one, together
        self._is_small = graph_bytes < SMALL_GRAPH_BYTES
        self._may_time = graph_bytes < LARGE_GRAPH_BYTES and device.type == "cpu"
        self._seconds: dict[bool, list[float]] = {True: [], False: []}
        self._can_batch = True

    def __call__(self, parts: list[Tensor], *, follow: bool) -> list[Tensor]:
        """The products ``[k, *shape]`` with k > 0 vectors ``[k, *shape]``; with `follow` they can be differentiated."""
        count = parts[0].shape[0]
        if not self._can_batch or not self._may_time or follow or count < _FEW or len(self._seconds[True]) >= _TRIALS:
            return self._run(parts, follow=follow, batched=self._can_batch and self._prefers_batches())
        cut = 2 if self._is_small else count - 4
        pieces = [
            self._timed([p[:cut] for p in parts], batched=False),
            self._timed([p[cut:] for p in parts], batched=True),
        ]
        return [torch.cat(pair) for pair in zip(*pieces, strict=True)]

    def _prefers_batches(self) -> bool:
        looped, batched = self._seconds[False], self._seconds[True]
        return min(batched) < min(looped) if batched and looped else self._is_small

    def _timed(self, parts: list[Tensor], *, batched: bool) -> list[Tensor]:
        start = time.perf_counter()
        result = self._run(parts, follow=False, batched=batched)
        self._seconds[batched].append((time.perf_counter() - start) / parts[0].shape[0])
        return result

    def _run(self, parts: list[Tensor], *, follow: bool, batched: bool) -> list[Tensor]:
        if batched:
            try:
                return self._together(parts)
            except RuntimeError:
                self._can_batch = False
        rows = ([p[k] for p in parts] for k in range(parts[0].shape[0]))
        return _stacked([self._one(row) for row in rows]) if follow else self._filled(parts)

    def _filled(self, parts: list[Tensor]) -> list[Tensor]:
        """Every product written to its place as soon as it is there."""
        count = parts[0].shape[0]
        first = self._one([p[0] for p in parts])
        results = [part.new_empty(count, *part.shape) for part in first]
        for k in range(count):
            products = first if k == 0 else self._one([p[k] for p in parts])
            for result, product in zip(results, products, strict=True):
                result[k].copy_(product)
        return results


def _stacked(rows: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(parts) for parts in zip(*rows, strict=True)]
