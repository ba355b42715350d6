"""Batches of singular value decompositions with one cut-off for all of them: what the direct ways to invert share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hesse.convolutions.operator import Convolution

_NOISE = 16  # times eps and the root of the larger side of a block: singular values below cannot be told from zero
_SMALL = 512  # blocks of up to this side are decomposed by one thread


def cutoff_ratio(A: Convolution, rtol: float | None) -> float:
    """`rtol`, or without one ``max(m, n) eps`` of double precision, as `torch.linalg.pinv`, but at least the eps of the weight.

    Weights of single precision are decomposed in double, and their rounding moves singular values by ``eps |weight|``
    whatever the size of the image; ``max(m, n)`` times the single eps would be 0.06 for an image of 32 x 128 x 128.
    """
    if rtol is not None:
        return rtol
    return max(max(A.shape) * torch.finfo(torch.float64).eps, torch.finfo(A.weight.dtype).eps)


def factor_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which weights are decomposed: double precision."""
    return torch.complex128 if dtype.is_complex else torch.float64


@dataclass(frozen=True)
class Cut:
    """Where singular values are cut off.

    Attributes:
        norm: the largest.
        threshold: those up to it count as zero.
        smallest: of those that are kept; `norm` if there is none.
        truncated: how many count as zero.
        gap: `smallest` over the largest that counts as zero; infinite if none does or those are zero to rounding.
    """

    norm: float
    threshold: float
    smallest: float
    truncated: int
    gap: float

    @property
    def condition(self) -> float:
        """Of what is kept; 1 if that is nothing."""
        return self.norm / self.smallest if self.norm else 1.0


def cut(values: Tensor, counts: Tensor, rtol: float, side: int) -> Cut:
    """The cut-off of the singular values of a whole operator.

    Args:
        values: singular values of its blocks, all of them.
        counts: int64, of the same shape: how often each occurs.
        rtol: those up to `rtol` times the largest count as zero, as for `torch.linalg.pinv`.
        side: the larger side of a block.
    """
    norm = float(values.max()) if values.numel() else 0.0
    is_kept = values > rtol * norm
    kept, dropped = values[is_kept], values[~is_kept]
    smallest = float(kept.min()) if kept.numel() else norm
    largest = float(dropped.max()) if dropped.numel() else 0.0
    noise = _NOISE * side**0.5 * torch.finfo(values.dtype).eps * norm
    gap = smallest / largest if largest > noise and kept.numel() else float("inf")
    return Cut(norm, rtol * norm, smallest, int(counts[~is_kept].sum()), gap)


class Factors(NamedTuple):
    """Decompositions ``U diag(values) Vh`` of a batch of blocks ``[*batch, m, n]``, economy size."""

    U: Tensor
    values: Tensor
    Vh: Tensor

    def pinv_rows(self, Y: Tensor, threshold: float, *, adjoint: bool = False) -> Tensor:
        """The pseudo-inverse times rows: ``[*batch, k, m] -> [*batch, k, n]``, or its adjoint the other way round."""
        inverted = torch.where(self.values > threshold, self.values, torch.inf).reciprocal()[..., None, :]
        if adjoint:
            return ((Y @ self.Vh.mT) * inverted) @ self.U.mT
        return ((Y @ self.U.conj()) * inverted) @ self.Vh.conj()

    def null_rows(self, threshold: float, *, adjoint: bool = False) -> Tensor:
        """Orthonormal rows that the block maps to (nearly) nothing, of one block ``[m, n]``; with `adjoint` its adjoint."""
        basis = self.U.mT if adjoint else self.Vh.conj()
        kept = basis[self.values > threshold]
        full = torch.linalg.qr(kept.mT, mode="complete").Q.mT if len(kept) else torch.eye(basis.shape[-1]).to(basis)
        return full[len(kept) :]


def decompose(blocks: Tensor) -> Factors:
    """Singular value decompositions of ``[*batch, m, n]``, economy size."""
    with one_thread(max(blocks.shape[-2:])):
        return Factors(*torch.linalg.svd(blocks, full_matrices=False))


@contextmanager
def one_thread(side: int) -> Iterator[None]:
    """Within it this thread works alone if blocks of this side are too small for several (torch counts them for each thread).

    A batch of small blocks is decomposed one after the other; several threads on each make it 2 to 100 times slower.
    """
    before = torch.get_num_threads()
    if side > _SMALL or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
