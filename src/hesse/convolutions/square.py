"""A square convolution of full rank, solved directly: a circulant on a torus, and a dense system for the ring of the image.

On the torus ``C z = [y; s]`` with unknown outputs s beyond the image, and the ring of z is what the padding says (zero, or
copies). With ``H = C^-1``, one small inverse a frequency, and the columns N of the constraint ``N^H z = 0``::

    S s = -N^H H E y,    S = N^H H E_s,    x = the image in H (E y + E_s s)

The entries of S are gathered from the answers of H to unit vectors. S is singular exactly if A is, with as many null vectors,
and ``log|det A| = sum over frequencies of log|det C| + log|det S|`` up to the sign (Schur complements; nullity theorem).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from hesse.convolutions import fields
from hesse.convolutions.border import BorderFactors
from hesse.convolutions.capacity import Response
from hesse.convolutions.fields import Columns, Skew
from hesse.convolutions.operator import Convolution
from hesse.convolutions.symbol import symbol
from hesse.convolutions.torus import Torus
from hesse.convolutions.truncation import one_thread

_GOOD = 1e4  # condition of a symbol that makes looking for a better torus needless


class SquareSystem:
    """Factors of a square convolution.

    Attributes:
        skew: axes along which the torus changes signs.
        is_singular: whether a pivot is zero.
        inverse: of the symbol, ``[frequencies, groups, in * phases, out]``.
        size: of the dense system, of each group.
    """

    def __init__(self, A: Convolution, skew: Skew, inverse: Tensor) -> None:
        self.geometry, self.skew, self.dtype = A.geometry, skew, A.weight.dtype
        self.torus, self.inverse = Torus(A.geometry.one_group), inverse.contiguous()  # LAPACK's order makes products slow
        self.outside, self.inside = ring_columns(self.torus)
        self.border = BorderFactors(capacity(self.inverse, self.torus, A, skew))
        self.size, self.is_singular = self.border.size, self.border.is_singular

    @staticmethod
    def fits(A: Convolution) -> bool:
        """Whether the symbol is square, and there are as many unknown outputs as constraints."""
        g = A.geometry
        torus = Torus(g.one_group)
        o, i = g.out_channels // g.groups, g.in_channels // g.groups
        return o == i * torus.phases and len(torus.out_ring) * o == len(torus.in_ring) * i and A.shape[0] == A.shape[1]

    def solve(self, y: Tensor, *, adjoint: bool = False) -> Tensor:
        """``A^-1 y``, or ``A^-H y``, for images ``[k, ...]``."""
        g, torus = self.geometry, self.torus
        sides = [(torus.outputs, 1, self.outside, g.out_shape), (torus.inputs, torus.phases, self.inside, g.in_shape)]
        start, end = sides if not adjoint else sides[::-1]
        field = fields.embed(y, start[0], g.groups, torus, start[1])
        missed = end[2].take(self._on_torus(field, end[1], adjoint), torus)
        forces = self.border.solve(missed, adjoint=adjoint)
        field = start[2].add(field, -forces, torus)
        return fields.extract(self._on_torus(field, end[1], adjoint), end[0], end[3], torus)

    def _on_torus(self, field: Tensor, phases: int, adjoint: bool) -> Tensor:
        waves = fields.spectrum(field, self.torus, self.skew)
        waves = fields.adjoint_product(self.inverse, waves) if adjoint else self.inverse @ waves
        return fields.from_spectrum(waves, self.torus, self.skew, self.dtype, phases)


def torus_symbol(A: Convolution, skew: Skew) -> Tensor:
    """``[*frequencies, groups, out, in * phases]`` on the torus of the convolution."""
    g = A.geometry
    weight = A.weight.unflatten(0, (g.groups, -1))
    return symbol(weight, Torus(g.one_group).size, stride=g.stride, dilation=g.dilation, skew=skew)


def ring_columns(torus: Torus) -> tuple[Columns, Columns]:
    """The unknown outputs, and the constraints of the inputs."""
    copies = torus.sources >= 0
    if not bool(copies.any()):
        return Columns(False, torus.out_ring), Columns(True, torus.in_ring)
    copied = torus.inputs[torus.sources.clamp(min=0)]
    return Columns(False, torus.out_ring), Columns(True, torus.in_ring, copied, copies)


def capacity(inverse: Tensor, torus: Torus, A: Convolution, skew: Skew) -> Tensor:
    """``S = N^H H E_s`` ``[groups, size, size]`` from the inverse symbol ``[frequencies, groups, in * phases, out]``."""
    outside, inside = ring_columns(torus)
    phases = (torus.phases, 1)
    table = fields.impulse_response(inverse, torus, skew, A.weight.dtype, phases)
    return Response(table, phases).between(inside, outside, torus, skew)


class InvertedSymbol(NamedTuple):
    """The inverse of a symbol ``[frequencies, groups, in * phases, out]``, on which torus, and how large the numbers get."""

    skew: Skew
    inverse: Tensor
    condition: float


def inverted_symbol(A: Convolution) -> InvertedSymbol | None:
    """The inverse symbol on the torus, with or without a change of sign along each axis, where it is best conditioned.

    A box of 3 has zeros on every torus whose size 3 divides, and none on the one that changes the sign. The condition is that
    of Frobenius norms. None if the symbol is singular on each of them.
    """
    best: InvertedSymbol | None = None
    for skew in itertools.product((False, True), repeat=A.geometry.ndim):
        C = torus_symbol(A, skew).detach().flatten(0, A.geometry.ndim - 1)
        with one_thread(max(C.shape[-2:])):
            H, info = torch.linalg.inv_ex(C)
        if bool(info.any()) or not bool(torch.isfinite(H).all()):
            continue
        condition = float(frobenius(C).max() * frobenius(H).max()) / C.shape[-1]
        if best is None or condition < best.condition:
            best = InvertedSymbol(skew, H, condition)
        if condition < _GOOD:
            break
    return best


def spectral_bound(C: Tensor) -> float:
    """An upper bound of the largest 2-norm of the matrices ``[..., o, i]``, at most 12 % too large up to 40 channels.

    ``|C|_2^16 <= |(C^H C)^8|_F``, by three squarings.
    """
    size = float(frobenius(C).max()) if C.numel() else 0.0
    if size == 0 or not math.isfinite(size):
        return size
    C = C / size
    G = C.mH @ C if C.shape[-1] <= C.shape[-2] else C @ C.mH
    for _ in range(3):
        G = G @ G
    return size * float(frobenius(G).max()) ** (1 / 16)


def frobenius(C: Tensor) -> Tensor:
    """The norms of complex matrices ``[..., o, i]`` (four times as fast as `torch.linalg.matrix_norm`)."""
    return torch.linalg.vector_norm(torch.view_as_real(C.resolve_conj()), dim=(-3, -2, -1))
