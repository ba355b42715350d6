"""XTrace: the trace from a low-rank approximation whose probes are left out one by one.

Epperly, Tropp, Webber: XTrace: making the most of every sample in stochastic trace estimation (SIAM J. Matrix
Anal. Appl. 45, 2024). With the basis Q_i of the products ``A omega_j``, j != i, and ``P_i = 1 - Q_i Q_i^H``,

    t_i = tr(Q_i^H A Q_i) + omega_i^H P_i A P_i omega_i,

which is unbiased; XTrace is the mean over i. On spectra with a flat tail the length of ``P_i omega_i`` makes
most of the variance. The paper normalizes it ("resphering"), which is unbiased for spherical probes only. Here
it is a control variate: ``t_i - c_i (|P_i omega_i|^2 - dim of its space)`` with ``c_i`` the mean of the
others' quadratic forms over that dimension. Up to second order this equals resphering, and it keeps random
signs, which see nothing of the diagonal (on diagonally dominant matrices a factor of 3 in the error).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.linalg.options import is_hermitian, rounding
from hesse.linalg.sketch import LeaveOneOut, Sketch, combine, small
from hesse.operators import LinearOperator


class TraceOf:
    """The trace as a quantity that `hesse.linalg.adaptive` estimates; samples are ``[k, 1]``."""

    adjoint = False

    def __init__(self, A: LinearOperator) -> None:
        self._hermitian, self._eps, self._dim = is_hermitian(A), rounding(A), A.shape[0]

    def plain(self, probes: Tensor, products: Tensor) -> Tensor:
        """``v^H A v`` for each probe (Hutchinson 1989)."""
        return self.real(small((probes.conj() * products).sum(-1)))[:, None]

    def noise(self, products: Tensor) -> float:
        """Rounding error of a sample."""
        return self._eps * float(torch.linalg.vector_norm(products, dim=-1).mean()) * self._dim**0.5

    def tail(self, sketch: Sketch) -> Tensor:
        """``omega_i^H P_i A omega_i``, which needs no images: the spread that deflation would leave."""
        out = LeaveOneOut(sketch.triangle)
        W = small(sketch.basis.conj() @ sketch.probes.mT)
        x = W - out.s * (out.s.conj() * W).sum(0)
        own = small((sketch.probes.conj() * sketch.products).sum(-1))
        forms = own - (x.conj() * sketch.triangle).sum(0)
        excess = small(sketch.probes.abs().square().sum(-1)) - x.abs().square().sum(0) - (self._dim - sketch.size + 1)
        return self.real(_controlled(forms, excess.real, self._dim - sketch.size + 1))[:, None]

    def beyond(self, sketch: Sketch, probes: Tensor, products: Tensor) -> Tensor:
        """``tr(Q^H A Q) + v^H (1 - Q Q^H) A (1 - Q Q^H) v`` for probes that the sketch has not seen (Hutch++)."""
        Q, Z = sketch.basis[: sketch.rank], sketch.images[: sketch.rank]
        H = small(Q.conj() @ Z.mT)
        inside = small(Q.conj() @ probes.mT)
        forms = small((probes.conj() * products).sum(-1)) - (small(Z.conj() @ probes.mT).conj() * inside).sum(0)
        forms = forms - (inside.conj() * small(Q.conj() @ products.mT)).sum(0) + (inside.conj() * (H @ inside)).sum(0)
        return self.real(forms + H.trace())[:, None]

    def deflated(self, sketch: Sketch) -> tuple[Tensor, Tensor]:
        """The XTrace estimate ``[1]`` and its standard error."""
        if sketch.captured:
            known = (sketch.basis[: sketch.rank].conj() * sketch.images[: sketch.rank]).sum(-1)
            value = self.real(small(known).sum())[None]
            return value, torch.zeros(1, dtype=torch.float64)
        singles, means = _leave_out(sketch)
        value, error = combine(self.real(singles), self.real(means))
        return value[None], error[None]

    def real(self, values: Tensor) -> Tensor:
        """The values, real where the trace must be."""
        return values.real if self._hermitian else values


def _controlled(forms: Tensor, excess: Tensor, free: int) -> Tensor:
    """Quadratic forms less what the length of their vectors explains, by the mean of the others."""
    slope = (forms.sum(0) - forms) / (len(forms) - 1) / free
    return forms - slope * excess


def _leave_out(sketch: Sketch) -> tuple[Tensor, Tensor]:
    """``[m]`` estimates at probe i with the basis of the others, and ``[m]`` whole estimates without probe j.

    In coordinates of the basis ``P omega`` is ``omega - Q x``, and x differs from ``w = Q^H omega`` by a vector
    u in the plane of what was left out, so that every form is a sum over entries of a few m x m matrices.
    """
    out, m = LeaveOneOut(sketch.triangle), sketch.size
    s, g, w = out.s, out.g, out.w
    H = small(sketch.basis.conj() @ sketch.images.mT)
    W = small(sketch.basis.conj() @ sketch.probes.mT)
    T = small(sketch.images.conj() @ sketch.probes.mT)
    own = small((sketch.probes.conj() * sketch.products).sum(-1))
    lengths = small(sketch.probes.abs().square().sum(-1)).real - W.abs().square().sum(0)
    inner = own - (T.conj() * W).sum(0) - (W.conj() * sketch.triangle).sum(0) + (W.conj() * (H @ W)).sum(0)
    h, b = s.mH @ H @ s, s.mH @ W
    right, left = s.mH @ (H @ W), T.mH @ s - W.mH @ (H @ s)  # s_j^H H w_i at [j, i]; (T - H^H w)_i^H s_j at [i, j]
    own_h, alone = h.diagonal(), b.diagonal()

    free, lost = sketch.operator.shape[0] - m + 1, out.losses(H)
    single = inner + left.diagonal() * alone + alone.conj() * (out.left - right.diagonal())
    single = single + alone.abs().square() * own_h
    singles = H.trace() - lost[0] + _controlled(single, lengths + alone.abs().square() - free, free)

    # u = first * s_i + second * s_j
    first = w * (alone[:, None] - g * b.mT)
    second = w * (b.mT - g.conj() * alone[:, None])
    pair = inner[:, None] + left.diagonal()[:, None] * first + left * second
    pair = pair + first.conj() * (out.left - right.diagonal())[:, None] - second.conj() * right.mT
    pair = pair + first.abs().square() * own_h[:, None] + second.abs().square() * own_h
    pair = pair + first.conj() * second * h + second.conj() * first * h.mT
    reach = (first.conj() * alone[:, None] + second.conj() * b.mT).real
    apart = 1 - torch.eye(m, dtype=torch.float64)
    pair = pair * apart
    slope = (pair.sum(0) - pair) / (m - 2) / (free + 1)
    pairs = H.trace() - lost[1] + pair - slope * (lengths[:, None] + reach - (free + 1))
    return singles, (pairs * apart).sum(0) / (m - 1)
