"""Convolutions on a torus: the symbol of each frequency is inverted, with one cut-off for the whole operator."""

from __future__ import annotations

import math
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from hesse.convolutions.frequencies import Solved, Witness, blocks, cells, counts, images, phases, rows
from hesse.convolutions.geometry import Geometry
from hesse.convolutions.inverse import Applied, Inverse
from hesse.convolutions.operator import Convolution
from hesse.convolutions.truncation import Cut, cut, cutoff_ratio, decompose, factor_dtype, one_thread
from hesse.core.memory import Budget, current_budget

_COPIES = 6  # of the symbol, while it is inverted
_DOUBT = 4.0  # a frequency whose least singular value may be below this times the cut-off is decomposed


def make(A: Convolution, *, rtol: float | None = None, memory: Budget | None = None) -> CircularInverse | None:
    """The inverse by frequencies, or None where A is no convolution on a torus (or the memory budget forbids it).

    Args:
        A: the convolution.
        rtol: as for `torch.linalg.pinv`: a global tolerance.
        memory: the budget; by default the one in force.

    Cost: a QR decomposition of ``[out, in * prod(stride)]`` for each frequency and group; singular values only where one may
    be cut off, or where `norm`, `condition` or `singular_values` is asked for.
    """
    g = A.geometry
    if not g.is_circular:
        return None
    needed = _COPIES * math.prod(g.out_size) * A.weight[..., *(0,) * g.ndim].numel() * math.prod(g.stride) * 16
    needed = needed if A.weight.is_complex() else needed // 2
    return CircularInverse(A, cutoff_ratio(A, rtol)) if needed <= current_budget(memory, A.weight.device) else None


@final
class CircularInverse(Inverse):
    """The pseudo-inverse of a block-circulant convolution.

    Attributes:
        blocks: ``[frequencies * groups, out, in]``, complex: the transposed pseudo-inverses, in the dtype of the weight; `in`
            counts phases of the stride.
    """

    method = "circular"

    def __init__(self, A: Convolution, rtol: float) -> None:
        self.convolution, self._rtol, self._cut = A, rtol, None
        C = blocks(A.geometry, A.weight.detach().to(factor_dtype(A.weight.dtype)))
        inverse, doubtful = _inverse(C, rtol)
        self._values: Tensor | None = None
        if len(doubtful):
            self._values = _singular_values(C)
            found = decompose(C[doubtful])
            inverted = torch.where(found.values > self.cut.threshold, found.values, torch.inf).reciprocal()
            inverse[doubtful] = (found.Vh.mH * inverted[:, None, :]) @ found.U.mH
            self.truncated, self.gap = self.cut.truncated, self.cut.gap
        self.blocks = inverse.mT.to(A.weight.dtype.to_complex()).contiguous()

    @property
    def cut(self) -> Cut:
        """Where singular values were cut off."""
        if self._cut is None:
            self._cut = cut(*self._spectrum(), self._rtol, max(self._sides))
        return self._cut

    @property
    def _sides(self) -> tuple[int, int]:
        g = self.convolution.geometry
        return g.out_channels // g.groups, g.in_channels // g.groups * math.prod(g.stride)

    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Singular values ``[frequencies, groups * least side]`` and how often each occurs."""
        A = self.convolution
        if self._values is None:
            self._values = _singular_values(blocks(A.geometry, A.weight.detach().to(factor_dtype(A.weight.dtype))))
        times = counts(A.geometry, A.weight)
        values = self._values.reshape(len(times), -1)
        return values, times[:, None].expand_as(values)

    def apply(self, Y: Tensor, *, adjoint: bool = False) -> Applied:
        g = self.convolution.geometry
        found = torch.bmm(rows(g, Y, adjoint=adjoint), self._acting(adjoint))
        return Applied(images(g, found, Y.dtype, adjoint=adjoint))

    def measured(self, Y: Tensor, *, adjoint: bool = False) -> Applied:
        g = self.convolution.geometry
        right, inverse = rows(g, Y, adjoint=adjoint), self._acting(adjoint)
        found = torch.bmm(right, inverse)
        X = images(g, found, Y.dtype, adjoint=adjoint)
        sizes = torch.stack([torch.linalg.vector_norm(V, dim=tuple(range(1, V.ndim))) for V in (Y, X)])
        solved = Solved(right, found, sizes, inverse, self.truncated > 0)
        return Applied(X, backward_error=self._witness.backward_error(solved, adjoint=adjoint))

    def _acting(self, adjoint: bool) -> Tensor:
        """On rows: one product a frequency."""
        return self.blocks.mT if adjoint else self.blocks

    @cached_property
    def _witness(self) -> Witness:
        return Witness(self.convolution)

    def norm(self) -> float:
        return self.cut.norm

    def condition(self) -> float:
        return self.cut.condition

    def singular_values(self) -> Tensor:
        """All ``min(m, n)`` of the operator, in descending order, in double precision."""
        values, times = self._spectrum()
        return values.flatten().repeat_interleave(times.flatten()).sort(descending=True).values

    def null_vectors(self, *, adjoint: bool = False) -> Tensor:
        """``[nullity, *in_shape]``: orthonormal images that count as mapped to zero; with `adjoint` those of ``A^H``.

        Cost: decompositions of the frequencies that have some; the images themselves.
        """
        A, g = self.convolution, self.convolution.geometry
        C = blocks(g, A.weight.detach().to(factor_dtype(A.weight.dtype)))
        out, into = self._sides
        lacking = (into if not adjoint else out) > min(out, into)
        has = torch.ones(len(C), dtype=torch.bool) if lacking else (self._least() <= self.cut.threshold)
        found = [self._waves(C[place], place, adjoint) for place in torch.nonzero(has)[:, 0].tolist()]
        shape = g.out_shape if adjoint else g.in_shape
        return torch.cat([C.new_zeros(0, *shape).to(A.weight.dtype), *found])

    def _least(self) -> Tensor:
        """``[frequencies * groups]``: the least singular value of each block."""
        return self._spectrum()[0].reshape(-1, min(self._sides)).amin(-1)

    def _waves(self, block: Tensor, place: int, adjoint: bool) -> Tensor:
        """``[count, *shape]``: the waves of one frequency and group; of two opposite frequencies those of the first."""
        A, g = self.convolution, self.convolution.geometry
        is_real = not A.weight.is_complex()
        freq = (*g.out_size[:-1], g.out_size[-1] // 2 + 1) if is_real else g.out_size
        flat, group = divmod(place, g.groups)
        index = [int(i) for i in torch.unravel_index(torch.tensor(flat), freq)]
        opposite = [-i % n for i, n in zip(index, g.out_size, strict=True)]
        if is_real and index > opposite and opposite[-1] < freq[-1]:
            return A.weight.new_zeros(0, *(g.out_shape if adjoint else g.in_shape))
        is_own = is_real and index == opposite
        vectors = decompose(block.real if is_own else block).null_rows(self.cut.threshold, adjoint=adjoint).to(block.dtype)
        spectrum = block.new_zeros(len(vectors), g.groups, vectors.shape[1], *g.out_size)
        spectrum[(slice(None), group, slice(None), *index)] = vectors * math.prod(g.out_size) ** 0.5
        waves = torch.fft.ifftn(spectrum.flatten(1, 2), dim=tuple(range(-g.ndim, 0)))
        if is_own:
            waves = waves.real
        elif is_real:
            waves = 2**0.5 * torch.cat([waves.real, waves.imag])
        return (waves if adjoint else cells(g, waves)).to(A.weight.dtype)


def log_determinant(A: Convolution) -> tuple[Tensor, Tensor]:
    """The sign and ``log |det A|`` of a square convolution on a torus, as `torch.linalg.slogdet`; differentiable.

    Cost: an LU decomposition for each frequency and group.
    """
    g = A.geometry
    times = counts(g, A.weight)
    with one_thread(g.out_channels // g.groups):
        sign, value = torch.linalg.slogdet(blocks(g, A.weight))
    sign, value = (t.reshape(len(times), g.groups) for t in (sign, value))
    total = (value * times[:, None]).sum()
    whole = (sign if A.weight.is_complex() else sign[times == 1]).prod() * _parity(g)
    return whole if A.weight.is_complex() else whole.real.sgn(), total


def _inverse(C: Tensor, rtol: float) -> tuple[Tensor, Tensor]:
    """Pseudo-inverses of blocks of full rank, and the indices of blocks that may have a singular value below the cut-off."""
    is_wide = C.shape[-2] < C.shape[-1]
    with one_thread(max(C.shape[-2:])):
        Q, R = torch.linalg.qr(C.mH if is_wide else C)
        inverse = torch.linalg.solve_triangular(R, Q.mH, upper=True)
    # of orthonormal columns Q: |R^-1 Q^H| = |R^-1|, in the Frobenius norm not below the 2-norm
    least = torch.linalg.matrix_norm(inverse).reciprocal()
    largest = torch.linalg.matrix_norm(C)
    limit = _DOUBT * max(rtol, torch.finfo(least.dtype).eps) * float(largest.max())
    doubtful = torch.nonzero(~(least > limit))[:, 0]  # NaN and infinite ones are
    return (inverse.mH if is_wide else inverse), doubtful


def _singular_values(C: Tensor) -> Tensor:
    with one_thread(max(C.shape[-2:])):
        return torch.linalg.svdvals(C)


def _parity(g: Geometry) -> int:
    """The sign of the permutation that sorts the cells of an image by phases; 1 or -1."""
    if g.in_channels % 2 == 0 or set(g.stride) == {1}:
        return 1
    step = phases(g, torch.arange(math.prod(g.size)).reshape(1, 1, *g.size)).flatten()
    least = torch.arange(len(step))
    for _ in range(len(step).bit_length()):  # each cycle gets its least member for a name, in steps of doubled length
        least, step = torch.minimum(least, least[step]), step[step]
    cycles = int((least == torch.arange(len(step))).sum())
    return -1 if (len(step) - cycles) % 2 else 1
