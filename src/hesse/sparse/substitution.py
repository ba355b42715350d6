"""Entries of a symmetric matrix from an acyclic coloring, by substitution.

Any two colors make a forest. A leaf of a tree is the only entry of its row in the color of its neighbor, so it is read off;
with it known, its neighbor has one entry less in that color, and so on: Coleman and Cai, SIAM J. Algebr. Discrete Methods 1986.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hesse.sparse.compressed import Indices
from hesse.sparse.pattern import Pattern


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

    Cost: no gradients; about 0.3 microseconds an entry, and 50 for each level.
    """
    off = np.flatnonzero(pattern.rows != pattern.indices)
    number = np.zeros(pattern.nnz, np.int64)
    number[off] = np.arange(len(off))
    mirror = number[pattern.by_column[off]]
    count = int(colors.max(initial=0)) + 1  # entries of one row and color are mixed in one product
    _, group = np.unique(pattern.rows[off] * count + colors[pattern.indices[off]], return_inverse=True)
    members = np.argsort(group, kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(group))])
    left, rest = np.diff(ends), np.add.reduceat(members, ends[:-1]) if len(off) else members  # a sum that one number is left of
    groups, marked, found = np.flatnonzero(left == 1), np.zeros(len(off), bool), []
    while len(groups):
        ready = rest[groups]
        marked[ready] = True
        ready = ready[~(marked[mirror[ready]] & (mirror[ready] < ready))]  # both ends of a tree of two vertices
        known, targets = _others(ready, members, ends, group[ready])
        found.append(Level(*(torch.from_numpy(a) for a in (off[ready], off[mirror[ready]], off[known], targets))))
        done = np.concatenate([ready, mirror[ready]])
        np.subtract.at(left, group[done], 1)
        np.subtract.at(rest, group[done], done)
        groups = np.unique(group[mirror[ready]])
        groups = groups[left[groups] == 1]
    return tuple(found)


def _others(ready: Indices, members: Indices, ends: Indices, groups: Indices) -> tuple[Indices, Indices]:
    """All other entries of the groups of some entries, and for each of them the number of that entry."""
    lengths = ends[groups + 1] - ends[groups]
    targets = np.repeat(np.arange(len(ready)), lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    entries = members[np.arange(starts[-1]) + np.repeat(ends[groups] - starts[:-1], lengths)]
    others = entries != ready[targets]
    return entries[others], targets[others]
