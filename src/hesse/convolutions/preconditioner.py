"""The circulant preconditioner of convolutions whose symbol is positive: the inverse on a larger torus, cropped."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.convolutions.circular import CircularInverse, blocks
from hesse.convolutions.geometry import Geometry
from hesse.convolutions.operator import Convolution
from hesse.convolutions.truncation import factor_dtype, one_thread
from hesse.core.memory import Budget, current_budget
from hesse.core.space import Space
from hesse.operators.base import LinearOperator

_PROVEN = 1e-10  # times the largest: from which on an eigenvalue is positive despite of rounding
_COPIES = 8  # of the symbol, while it is inverted
_PRIMES = (2, 3, 5)


@final
class CirculantPreconditioner(LinearOperator):
    """``x -> crop(C^-1 embed(x))`` for the circulant C on a torus somewhat larger than the image.

    Attributes:
        inverse: of C.
        size: of the image.
        is_transposed: whether this is the transpose.
    """

    def __init__(self, inverse: CircularInverse, size: tuple[int, ...], *, is_transposed: bool = False) -> None:
        self.inverse, self.size, self.is_transposed = inverse, size, is_transposed
        A = inverse.convolution
        self.in_space = self.out_space = Space.of(A.weight.new_empty(1).expand(A.geometry.in_channels, *size))

    def mv(self, v: Tensor) -> Tensor:
        return self.mm(v[None])[0]

    def mm(self, V: Tensor) -> Tensor:
        torus = self.inverse.convolution.geometry.size
        missing = [end for n, m in zip(reversed(self.size), reversed(torus), strict=True) for end in (0, m - n)]
        V = F.pad(V, missing)
        found = self.inverse.apply(V.conj(), adjoint=True).value.conj() if self.is_transposed else self.inverse.apply(V).value
        return found[(..., *(slice(n) for n in self.size))]

    def transpose(self) -> LinearOperator:
        return CirculantPreconditioner(self.inverse, self.size, is_transposed=not self.is_transposed)


def make(A: Convolution, *, rtol: float, memory: Budget | None = None) -> CirculantPreconditioner | None:
    """The preconditioner, or None where it is not known to be safe (or the memory budget forbids it).

    It is made where the Hermitian part of the symbol (times some sign) is positive definite on the whole torus. A zero-padded
    convolution of stride 1 that keeps the size is a compression of the circulant, so that its Hermitian part is positive
    definite, too (the numerical range of a compression lies in that of the whole): A has full rank, and so has the cropped
    inverse, whose Hermitian part is positive for the same reason. A preconditioner of a matrix that lacks rank would change
    which of its solutions is the shortest.

    Args:
        A: the convolution.
        rtol: what comes back proves that no singular value of A is below `rtol` times the largest.
        memory: the budget; by default the one in force.

    Cost: a Cholesky and a QR decomposition of ``[channels, channels]`` for each frequency.
    """
    g = A.geometry
    if not _is_compression(g):
        return None
    torus = tuple(_quick_length(n + max(pad)) for n, pad in zip(g.size, g.padding, strict=True))
    channels = g.in_channels // g.groups
    needed = _COPIES * 16 * math.prod(torus) * g.groups * channels**2
    if needed > current_budget(memory, A.weight.device):
        return None
    circulant = Convolution(A.weight.detach(), replace(g, size=torus, padding_mode="circular"))
    C = blocks(circulant.geometry, circulant.weight.to(factor_dtype(A.weight.dtype)))
    phase = torch.einsum("fcc->", C).sgn().conj()
    high = float(torch.linalg.matrix_norm(C).max())
    least = max(_PROVEN, rtol) * high * torch.eye(channels, dtype=C.dtype, device=C.device)
    with one_thread(channels):
        failed = torch.linalg.cholesky_ex((C * phase + (C * phase).mH) / 2 - least).info
    if bool(failed.any()) or not high > 0:
        return None
    return CirculantPreconditioner(CircularInverse(circulant, 0.0), g.size)


def _is_compression(g: Geometry) -> bool:
    """Whether A is ``crop C embed`` for a circulant C, with the same crop on both sides."""
    is_same = g.in_channels == g.out_channels and g.size == g.out_size and set(g.stride) == {1}
    return is_same and (g.padding_mode == "zeros" or not any(map(any, g.padding)))


def _quick_length(least: int) -> int:
    """The smallest product of 2, 3 and 5 that is not below."""
    n = least
    while True:
        rest = n
        for prime in _PRIMES:
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
