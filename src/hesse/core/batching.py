"""Work in chunks along a leading axis, with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hesse.core import tree
from hesse.core.progress import track
from hesse.core.tree import Tree


def slices(total: int, chunk: int, label: str = "") -> Iterator[slice]:
    """Consecutive slices of at most `chunk` items that cover ``range(total)``; shows progress if labeled."""
    chunk = max(chunk, 1)
    starts = range(0, total, chunk)
    for start in track(starts, label, len(starts)) if label else starts:
        yield slice(start, min(start + chunk, total))


def map_chunks(fn: Callable[[Tree], Tree], batch: Tree, chunk: int, label: str = "") -> Tree:
    """Apply `fn`, which works on a leading axis, chunk by chunk, and join the results along that axis."""
    total = tree.leaves(batch)[0].shape[0]
    if chunk >= total:
        return fn(batch)
    pieces = [fn(tree.map_tree(lambda leaf, s=s: leaf[s], batch)) for s in slices(total, chunk, label)]
    return tree.map_tree(lambda *parts: torch.cat(parts), *pieces)


def separating_masks(total: int) -> Tensor:
    """Boolean masks ``[passes, total]`` such that for every ordered pair i != j some mask has i and not j.

    Items get distinct code words of equal weight (an antichain; Sperner 1928), so about
    ``log2(n) + log2(log2(n)) / 2`` masks suffice, where bits and their complements would need twice ``log2(n)``.
    """
    from itertools import combinations, islice
    from math import comb

    if total <= 1:
        return torch.ones(total, total, dtype=torch.bool, device="cpu")
    passes = next(p for p in range(1, 2 + 2 * total) if comb(p, p // 2) >= total)
    masks = torch.zeros(passes, total, dtype=torch.bool, device="cpu")
    for item, word in enumerate(islice(combinations(range(passes), passes // 2), total)):
        masks[list(word), item] = True
    return masks
