"""Entries of a symmetric matrix from an acyclic coloring, by substitution.

Any two colors make a forest. A leaf of a tree is the only entry of its row in the color of its neighbor, so it is read off;
with it known, its neighbor has one entry less in that color, and so on: Coleman and Cai, SIAM J. Algebr. Discrete Methods 1986.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hesse.sparse.pattern import Indices, Pattern


@dataclass(frozen=True)
class Level:
    """Entries that can be computed at once.

    Args:
        entries: ``[k]``, their places among the entries.
        mirrors: ``[k]``, those of their mirror images, which get the same values.
        known: ``[m]``, entries to be subtracted.
        targets: ``[m]``, from which of the k each is subtracted.
    """

    entries: Tensor
    mirrors: Tensor
    known: Tensor
    targets: Tensor

    def subtract(self, values: Tensor) -> Tensor:
        """Values with those of this level made right."""
        entries, mirrors, known, targets = (t.to(values.device) for t in (self.entries, self.mirrors, self.known, self.targets))
        solved = values.index_select(0, entries)
        if len(known):
            solved = solved.index_add(0, targets, -values.index_select(0, known))
        return values.index_copy(0, torch.cat([entries, mirrors]), torch.cat([solved, solved]))


def levels(pattern: Pattern, colors: Indices) -> tuple[Level, ...]:
    """In which order the entries off the diagonal are computed.

    Args:
        pattern: symmetric.
        colors: ``[n]``, an acyclic coloring.

    Returns:
        As many levels as half of the longest path in two colors.

    Cost: no gradients; a few passes over the entries for each level.
    """
    off = np.flatnonzero(pattern.rows != pattern.indices)
    rows, columns = pattern.rows[off], pattern.indices[off]
    size, count = pattern.shape[0], int(colors.max(initial=0)) + 1
    place = {key: number for number, key in enumerate((rows * size + columns).tolist())}
    mirror = np.array([place[key] for key in (columns * size + rows).tolist()], np.int64)
    group = rows * count + colors[columns]  # entries of one row and color are mixed in one product
    left, solved, found = np.ones(len(off), bool), np.zeros(len(off), bool), []
    while left.any():
        open_entries = np.bincount(group[left], minlength=size * count)
        ready = np.flatnonzero(left & (open_entries[group] == 1))
        ready = ready[~(np.isin(mirror[ready], ready) & (mirror[ready] < ready))]  # both ends of a tree of two vertices
        known = np.flatnonzero(solved & np.isin(group, group[ready]))
        target_of = dict(zip(group[ready].tolist(), range(len(ready)), strict=True))
        targets = np.array([target_of[g] for g in group[known].tolist()], np.int64)
        found.append(Level(*(torch.from_numpy(a) for a in (off[ready], off[mirror[ready]], off[known], targets))))
        done = np.concatenate([ready, mirror[ready]])
        left[done], solved[done] = False, True
    return tuple(found)
