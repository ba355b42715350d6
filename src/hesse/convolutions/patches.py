"""Windows that share no cell: a small matrix for each kind of window."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from hesse.convolutions.geometry import Geometry
from hesse.convolutions.inverse import Applied, Inverse
from hesse.convolutions.operator import Convolution
from hesse.convolutions.small import windows
from hesse.convolutions.truncation import Factors, cut, cutoff_ratio, decompose, factor_dtype
from hesse.core.memory import Budget, current_budget


class Kind(NamedTuple):
    """Windows that read their cells with the same taps.

    Attributes:
        windows: ``[w]``, int64: places of the output image.
        cells: ``[w, t]``, int64: places of the input image, for each tap that is not over a zero.
        factors: ``[groups, ...]`` of the matrix ``[out, in * t]`` of each group.
    """

    windows: Tensor
    cells: Tensor
    factors: Factors


def applies(g: Geometry) -> bool:
    """Whether no two taps of any windows read the same cell."""
    for axis in range(g.ndim):
        cells = windows(g, axis)
        cells = cells[cells >= 0]
        if len(cells.unique()) < len(cells):
            return False
    return True


def make(A: Convolution, *, rtol: float | None = None, memory: Budget | None = None) -> PatchInverse | None:
    """The inverse window by window, or None where windows overlap (or the memory budget forbids it).

    1x1 kernels are among them, and kernels as large as the image.

    Args:
        A: the convolution.
        rtol: as for `torch.linalg.pinv`.
        memory: the budget; by default the one in force.

    Cost: a decomposition of ``[out, in * kernel]`` for each group and kind of window (one without padding).
    """
    g = A.geometry
    if not applies(g):
        return None
    block = A.weight.numel() * factor_dtype(A.weight.dtype).itemsize
    needed = 6 * block + 8 * math.prod(g.size)
    return PatchInverse(A, cutoff_ratio(A, rtol)) if needed <= current_budget(memory, A.weight.device) else None


@final
class PatchInverse(Inverse):
    """The pseudo-inverse of a block-diagonal convolution, with one cut-off for all windows and groups.

    Attributes:
        kinds: of windows that see at least one cell.
        cut: where singular values were cut off.
    """

    method = "patches"

    def __init__(self, A: Convolution, rtol: float) -> None:
        self.convolution, g = A, A.geometry
        self.kinds = list(_kinds(g, A.weight.detach().to(factor_dtype(A.weight.dtype))))
        values, counts = self._values()
        sides = [kind.factors.U.shape[-2:] + kind.factors.Vh.shape[-1:] for kind in self.kinds]
        self.cut = cut(values, counts, rtol, max(map(max, sides), default=1))
        self.gap = self.cut.gap
        # windows that see nothing, or few cells, have fewer singular values than the whole operator may have
        self.truncated = self.cut.truncated + min(A.shape) - int(counts.sum())

    def _values(self) -> tuple[Tensor, Tensor]:
        values = [kind.factors.values.flatten() for kind in self.kinds]
        counts = [torch.full_like(v, len(kind.windows), dtype=torch.int64) for v, kind in zip(values, self.kinds, strict=True)]
        nothing = torch.zeros(0, dtype=torch.float64, device=self.convolution.weight.device)
        return torch.cat([nothing, *values]), torch.cat([nothing.to(torch.int64), *counts])

    def apply(self, Y: Tensor, *, adjoint: bool = False) -> Applied:
        g = self.convolution.geometry
        shapes = (g.in_shape, g.out_shape) if adjoint else (g.out_shape, g.in_shape)
        flat = Y.reshape(len(Y), g.groups, shapes[0][0] // g.groups, -1)
        result = Y.new_zeros(len(Y), g.groups, shapes[1][0] // g.groups, math.prod(shapes[1][1:]))
        for kind in self.kinds:
            wanted = (kind.cells, kind.windows[:, None])
            read, write = wanted if adjoint else wanted[::-1]
            rows = flat[..., read].permute(1, 0, 3, 2, 4).to(kind.factors.U.dtype)  # [g, k, w, channels, taps]
            found = kind.factors.pinv_rows(
                rows.reshape(g.groups, -1, math.prod(rows.shape[3:])), self.cut.threshold, adjoint=adjoint
            )
            found = found.reshape(g.groups, len(Y), len(kind.windows), -1, write.shape[1])
            result[..., write] = found.permute(1, 0, 3, 2, 4).to(Y.dtype)
        return Applied(result.reshape(len(Y), *shapes[1]))

    def norm(self) -> float:
        return self.cut.norm

    def condition(self) -> float:
        return self.cut.condition

    def singular_values(self) -> Tensor:
        """All ``min(m, n)`` of the operator, in descending order, in double precision."""
        values, counts = self._values()
        values = values.repeat_interleave(counts)
        missing = min(self.convolution.shape) - len(values)
        return torch.cat([values, values.new_zeros(missing)]).sort(descending=True).values

    def null_vectors(self, *, adjoint: bool = False) -> Tensor:
        """``[nullity, *in_shape]``: orthonormal images that count as mapped to zero; with `adjoint` those of ``A^H``."""
        A, g = self.convolution, self.convolution.geometry
        shape = g.out_shape if adjoint else g.in_shape
        channels = shape[0] // g.groups
        eye = torch.eye(math.prod(shape[1:]), dtype=A.weight.dtype, device=A.weight.device)
        seen = torch.zeros(len(eye), dtype=torch.bool, device=eye.device)
        found = []
        for kind in self.kinds:
            places = kind.windows[:, None] if adjoint else kind.cells
            seen[places.flatten()] = True
            for group in range(g.groups):
                factors = Factors(*(t[group] for t in kind.factors))
                rows = factors.null_rows(self.cut.threshold, adjoint=adjoint).to(eye)
                rows = rows.reshape(len(rows), channels, places.shape[1])
                images = torch.einsum("nct,wtp->wncp", rows, eye[places]).flatten(0, 1)
                found.append(_in_group(images, group, g.groups))
        free = torch.nonzero(~seen)[:, 0]
        blank = torch.einsum("cd,wp->wcdp", torch.eye(shape[0]).to(eye), eye[free]).flatten(0, 1)
        return torch.cat([*found, blank]).reshape(-1, *shape)


def _in_group(images: Tensor, group: int, groups: int) -> Tensor:
    """``[n, channels / groups, p] -> [n, channels, p]``: zero in the other groups."""
    whole = images.new_zeros(len(images), groups, *images.shape[1:])
    whole[:, group] = images
    return whole.flatten(1, 2)


def _kinds(g: Geometry, weight: Tensor) -> list[Kind]:
    """Kinds of windows along each axis, and their products."""
    weight = weight.reshape(g.groups, g.out_channels // g.groups, g.in_channels // g.groups, *g.kernel)
    axes = [list(_axis_kinds(g, axis)) for axis in range(g.ndim)]
    found = []
    for parts in itertools.product(*axes):
        places, cells = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
        block = weight
        for axis, (seen, there, read) in enumerate(parts):
            block = block.index_select(3 + axis, seen.to(weight.device))
            places = (places[:, None] * g.out_size[axis] + there).flatten()
            cells = cells[:, None, :, None] * g.size[axis] + read[None, :, None, :]
            cells = cells.reshape(len(places), -1)
        block = block.reshape(*block.shape[:2], -1)
        found.append(Kind(places.to(weight.device), cells.to(weight.device), decompose(block)))
    return found


def _axis_kinds(g: Geometry, axis: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each kind of window along an axis that sees any cell: taps ``[t]``, windows ``[w]`` and cells ``[w, t]``."""
    cells = windows(g, axis)
    masks, which = (cells >= 0).unique(dim=0, return_inverse=True)
    found = []
    for kind, mask in enumerate(masks):
        if bool(mask.any()):
            there = torch.nonzero(which == kind)[:, 0]
            seen = torch.nonzero(mask)[:, 0]
            found.append((seen, there, cells[there][:, seen]))
    return found
