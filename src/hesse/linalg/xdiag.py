"""XDiag: the diagonal from a low-rank approximation whose probes are left out one by one.

Epperly, Tropp, Webber (SIAM J. Matrix Anal. Appl. 45, 2024, section 5): with the basis Q_i of the products
``A omega_j``, j != i, and random signs, ``diag(Q_i Q_i^H A) + conj(omega_i) * (1 - Q_i Q_i^H) A omega_i`` is
unbiased; XDiag is the mean over i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.linalg.options import rounding
from hesse.linalg.sketch import LeaveOneOut, Sketch, combine
from hesse.operators import LinearOperator


class DiagonalOf:
    """The diagonal as a quantity that `hesse.linalg.adaptive` estimates; samples are ``[k, dim]``."""

    adjoint = True

    def __init__(self, A: LinearOperator) -> None:
        self._eps = rounding(A)

    def plain(self, probes: Tensor, products: Tensor) -> Tensor:
        """``conj(v) * A v`` for each probe (Bekas, Kokiopoulou, Saad: Applied Numerical Mathematics 57, 2007)."""
        return probes.conj() * products

    def noise(self, products: Tensor) -> float:
        """Rounding error of a sample, as a 2-norm."""
        return self._eps * float(torch.linalg.vector_norm(products, dim=-1).mean())

    def tail(self, sketch: Sketch) -> Tensor:
        """``conj(omega_i) * P_i A omega_i``, which needs no images: the spread that deflation would leave."""
        out = LeaveOneOut(sketch.triangle)
        return sketch.probes.conj() * ((out.s * out.left).mT.to(sketch.basis) @ sketch.basis)

    def beyond(self, sketch: Sketch, probes: Tensor, products: Tensor) -> Tensor:
        """``diag(Q Q^H A) + conj(v) * (1 - Q Q^H) A v`` for fresh probes (Baston and Nakatsukasa 2022)."""
        known = (sketch.basis[: sketch.rank] * sketch.images[: sketch.rank].conj()).sum(0)
        return sketch.outside(products).mul_(probes.conj()).add_(known)

    def deflated(self, sketch: Sketch) -> tuple[Tensor, Tensor]:
        """The XDiag estimate ``[dim]`` and its standard errors."""
        known = (sketch.basis[: sketch.rank] * sketch.images[: sketch.rank].conj()).sum(0)
        if sketch.captured:
            return known, torch.zeros_like(known.abs())
        m, like = sketch.size, sketch.basis
        out = LeaveOneOut(sketch.triangle)
        g, w, left = (part.to(like) for part in (out.g, out.w, out.left))
        rows = out.s.mT.to(like)
        Q, Z, signs = rows @ sketch.basis, (rows @ sketch.images).conj(), sketch.probes.conj()
        own, flipped = Q * Z, signs * Q
        singles = known - own + left[:, None] * flipped
        # the same sums over the planes of two left out, entry by entry, summed over i
        lost = w.mT @ own + w.sum(0)[:, None] * own - ((w * g).mT @ Q) * Z - Q * ((w * g.conj()).mT @ Z)
        gained = (w * left[:, None]).mT @ flipped - Q * ((w * g.conj() * left[:, None]).mT @ signs)
        return combine(singles, known + (gained - lost) / (m - 1))
