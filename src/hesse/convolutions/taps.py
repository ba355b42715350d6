"""Which cell of the image each tap of each window reads: entries of the matrix without a product."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hesse.convolutions.geometry import Geometry


class Places(NamedTuple):
    """The multiplications that one pair of channels makes: ``y[row] += weight[tap] x[column]``, each ``[count]``, int64.

    Attributes:
        rows: flat cell of the output image.
        columns: flat cell of the input image.
        taps: flat place in the kernel.
    """

    rows: Tensor
    columns: Tensor
    taps: Tensor


def places(g: Geometry) -> Places:
    """All multiplications between an input and an output channel; at most cells of the output times taps."""
    rows, columns, taps = (torch.zeros(1, dtype=torch.int64) for _ in range(3))
    for axis in range(g.ndim):
        reads = g.reads(axis)
        m, k = torch.nonzero(reads >= 0, as_tuple=True)
        rows = (rows[:, None] * g.out_size[axis] + m).flatten()
        columns = (columns[:, None] * g.size[axis] + reads[m, k]).flatten()
        taps = (taps[:, None] * g.kernel[axis] + k).flatten()
    return Places(rows, columns, taps)


class Meetings(NamedTuple):
    """Taps of one axis that meet at one cell within one window, as they do where an image is not padded by zeros.

    An entry of the matrix is the sum of the taps that meet there; there are few different sets of them.

    Attributes:
        taps: ``[sets, kernel]``, bool: which taps meet.
        cells: ``[size, sets]``, int64: in how many windows exactly these taps read a cell.
        windows: ``[out, sets]``, int64: how many cells are read by exactly these taps of a window.
    """

    taps: Tensor
    cells: Tensor
    windows: Tensor


def meetings(g: Geometry, axis: int) -> Meetings:
    """The sets of taps that meet along an axis."""
    reads, kernel = g.reads(axis), g.kernel[axis]
    crowded = torch.nonzero((reads.sort(1).values.diff(dim=1) == 0).any(1))[:, 0]  # the others read each cell by one tap
    alone = reads >= 0
    alone[crowded] = False
    m, k = torch.nonzero(alone, as_tuple=True)
    few = reads[crowded]
    same = few[:, :, None] == few[:, None, :]
    leads = (few >= 0) & ~same.tril(-1).any(2)  # the first tap that reads a cell stands for all that do
    sets, which = same[leads].unique(dim=0, return_inverse=True)
    window, tap = torch.nonzero(leads, as_tuple=True)
    windows, cells = torch.cat([m, crowded[window]]), torch.cat([reads[m, k], few[window, tap]])
    kinds, one = torch.cat([k, kernel + which]), torch.ones((), dtype=torch.int64)
    shape = kernel + len(sets)
    return Meetings(
        torch.cat([torch.eye(kernel, dtype=torch.bool), sets]),
        torch.zeros(g.size[axis], shape, dtype=torch.int64).index_put((cells, kinds), one, accumulate=True),
        torch.zeros(g.out_size[axis], shape, dtype=torch.int64).index_put((windows, kinds), one, accumulate=True),
    )
