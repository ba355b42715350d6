"""The squared Frobenius norm from a low-rank approximation whose probes are left out one by one.

With the basis Q_i of the products ``A omega_j``, j != i, ``|Q_i^H A|^2 + |(1 - Q_i Q_i^H) A omega_i|^2`` is
unbiased for ``|A|^2``: the leave-one-out idea of Epperly, Tropp and Webber (2024) for the trace of ``A A^H``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.linalg.options import rounding
from hesse.linalg.sketch import LeaveOneOut, Sketch, combine, small
from hesse.operators import LinearOperator


class SquaredNormOf:
    """The squared Frobenius norm as a quantity that `hesse.linalg.adaptive` estimates; samples are ``[k, 1]``."""

    adjoint = True

    def __init__(self, A: LinearOperator) -> None:
        self._eps = rounding(A)

    def plain(self, probes: Tensor, products: Tensor) -> Tensor:
        """``|A v|^2`` for each probe."""
        return small(torch.linalg.vector_norm(products, dim=-1)).square()[:, None]

    def noise(self, products: Tensor) -> float:
        """Rounding error of a sample."""
        return self._eps * float(small(torch.linalg.vector_norm(products, dim=-1)).square().mean())

    def tail(self, sketch: Sketch) -> Tensor:
        """``|P_i A omega_i|^2``, which needs no images: the spread that deflation would leave."""
        return LeaveOneOut(sketch.triangle).left.abs().square()[:, None]

    def beyond(self, sketch: Sketch, probes: Tensor, products: Tensor) -> Tensor:
        """``|Q^H A|^2 + |(1 - Q Q^H) A v|^2`` for probes that the sketch has not seen."""
        known = small(torch.linalg.vector_norm(sketch.images[: sketch.rank], dim=-1)).square().sum()
        return known + small(torch.linalg.vector_norm(sketch.outside(products), dim=-1)).square()[:, None]

    def deflated(self, sketch: Sketch) -> tuple[Tensor, Tensor]:
        """The estimate ``[1]`` and its standard error."""
        sizes = small(torch.linalg.vector_norm(sketch.images[: sketch.rank], dim=-1)).square()
        if sketch.captured:
            return sizes.sum()[None], torch.zeros(1, dtype=torch.float64)
        out, m = LeaveOneOut(sketch.triangle), sketch.size
        gram = small(sketch.images.conj() @ sketch.images.mT)
        single, pair = out.losses(gram)
        rest = out.left.abs().square()
        singles = sizes.sum() - single.real + rest
        means = sizes.sum() + (rest[:, None] * out.w - pair.real).sum(0) / (m - 1)
        value, error = combine(singles, means)
        return value[None], error[None]
