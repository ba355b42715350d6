"""Random probes of an operator, their products, and the basis of what the products span."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.memory import Budget, current_budget, given_budget
from hesse.linalg.options import rounding
from hesse.linalg.products import apply, work_dtype
from hesse.operators import LinearOperator

_KEPT = 6  # vectors per probe: probe, product, basis, image, and two while they are made orthogonal
_HIGHEST = 8  # of them at the highest, while two factors are joined
_NEGLIGIBLE = 30.0  # roundings of a product, below which what is left of it outside the basis counts as nothing


class Sketch:
    """Probes ``Omega``, products ``Y = A Omega``, their QR factors and the images of the basis.

    Vectors are rows. `grow` adds probes with their products, `complete` multiplies the basis vectors that have
    no image yet, so that nothing is ever multiplied twice.

    Attributes:
        probes: ``[m, in]``.
        products: ``[m, out]``.
        basis: ``[m, out]``, orthonormal rows whose leading k span the leading k products.
        triangle: ``[m, m]``, double precision on the CPU: ``Y = Q R`` with the basis as columns of Q.
        images: ``[r, ...]``: `A` (or its adjoint) times the leading basis vectors.
        rank: how many leading basis vectors hold all of the products up to rounding.
    """

    def __init__(self, A: LinearOperator, *, adjoint: bool) -> None:
        space = A.out_space
        self.operator, self._image_of = A, A.H if adjoint else A
        self.probes = torch.zeros(0, A.in_space.dim, dtype=work_dtype(A.in_space.dtype), device=A.in_space.device)
        self.products = torch.zeros(0, space.dim, dtype=work_dtype(space.dtype), device=space.device)
        self.basis = self.products
        self.triangle = small(torch.zeros(0, 0, dtype=self.products.dtype))
        self.images = torch.zeros(0, self._image_of.shape[0], dtype=self.products.dtype, device=space.device)
        self.rank = 0

    @property
    def size(self) -> int:
        """How many probes."""
        return len(self.probes)

    @property
    def captured(self) -> bool:
        """Whether the basis holds the whole range of the operator, up to rounding and a chance of zero."""
        return self.rank < self.size

    @property
    def missing(self) -> int:
        """Products that `complete` would take."""
        return self.rank - len(self.images)

    def grow(self, probes: Tensor, products: Tensor) -> None:
        """Add probes and their products, and extend the basis."""
        old = self.size
        self.probes = torch.cat([self.probes, probes.to(self.probes.dtype)])
        self.products = torch.cat([self.products, products])
        # the factors of [Q Y_new]: its Q stays orthonormal where Y_new has nothing new to offer
        factors = torch.linalg.qr(torch.cat([self.basis, products]).mT)
        above = small(self.basis.conj() @ products.mT)
        below = small(factors.R[old:, old:])
        left = torch.cat([self.triangle, self.triangle.new_zeros(len(products), old)])
        self.triangle = torch.cat([left, torch.cat([above, below])], 1)
        self.basis = torch.cat([self.basis, factors.Q.mT[old:]])
        self._find_rank()

    def _find_rank(self) -> None:
        """Find the first product that lies in the span of those before it, and keep the triangle regular."""
        sizes = torch.linalg.vector_norm(self.triangle, dim=0)
        negligible = _NEGLIGIBLE * rounding(self.operator) * float(sizes.max())
        corner = self.triangle.diagonal()
        lost = (corner.abs() <= negligible).nonzero()
        self.rank = int(lost[0]) if len(lost) else self.size
        corner[corner.abs() <= negligible] = negligible or 1.0

    def outside(self, products: Tensor) -> Tensor:
        """What of some rows lies outside of the basis."""
        Q = self.basis[: self.rank]
        return products - (products @ Q.mH) @ Q

    def complete(self, at_once: int) -> int:
        """Multiply the basis vectors of `rank` that have no image yet; returns how many products that took."""
        spent = max(self.missing, 0)
        for start in range(len(self.images), self.rank, at_once):
            part = self.basis[start : min(start + at_once, self.rank)].contiguous()
            self.images = torch.cat([self.images, apply(self._image_of, part)])
        return spent


class LeaveOneOut:
    """What leaving probes out does to the basis ``Q`` of a sketch (Epperly, Tropp, Webber: SIAM J. Matrix Anal.
    Appl. 45, 2024, section 2 and appendix B).

    Without product i the basis spans ``Q (1 - s_i s_i^H) Q^H``; without i and j it loses the plane of ``s_i``
    and ``s_j``, whose projector is ``w (s_i s_i^H + s_j s_j^H - g s_i s_j^H - conj(g) s_j s_i^H)``.

    Attributes:
        s: ``[m, m]``, the unit columns ``s_i``.
        g: ``[m, m]``, ``g_ij = s_i^H s_j``.
        w: ``[m, m]``, ``1 / (1 - |g_ij|^2)``, 0 on the diagonal.
        left: ``[m]``, ``s_i^H R e_i``: what only product i brings to the basis.
    """

    def __init__(self, triangle: Tensor) -> None:
        eye = torch.eye(len(triangle), dtype=triangle.dtype)
        s = torch.linalg.solve_triangular(triangle.mH, eye, upper=False)
        self.s = s / torch.linalg.vector_norm(s, dim=0)
        self.g = self.s.mH @ self.s
        w = 1 / (1 - self.g.abs().square()).clamp_min(1e-10)
        self.w = w - torch.diag(w.diagonal())
        self.left = (self.s.conj() * triangle).sum(0)

    def losses(self, M: Tensor) -> tuple[Tensor, Tensor]:
        """``[m]`` and ``[m, m]``: what ``tr M`` loses without i, and without i and j (``M`` in the basis)."""
        h = self.s.mH @ M @ self.s
        own = h.diagonal()
        return own, self.w * (own[:, None] + own - self.g * h.mT - self.g.conj() * h)


def explained(sketch: Sketch) -> float:
    """Which part of the products (of their summed squares) lies in the span of the other products."""
    total = float(sketch.triangle.abs().square().sum())
    outside = float(LeaveOneOut(sketch.triangle).left.abs().square().sum())
    return max(1 - outside / total, 0.0) if total else 1.0


def small(tensor: Tensor) -> Tensor:
    """A small matrix in double precision on the CPU."""
    return tensor.detach().cpu().to(torch.complex128 if tensor.is_complex() else torch.float64)


def combine(singles: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Value and standard error of the mean of leave-one-out estimates.

    The leave-one-out samples share their deflation, so that the error from their variance is too small (by
    1.1 to 2 on the spectra of the tests); the jackknife's is never too small in expectation (Efron, Stein: The
    Annals of Statistics 9, 1981) but up to 5 times too large where the spectrum decays. The error given is
    their geometric mean, which was right within a factor of 2 and errs on the large side.

    Args:
        singles: ``[m, ...]``, the estimate at probe i, with the basis of the others.
        means: ``[m, ...]``, the whole estimate without probe j.
    """
    m = len(singles)
    spread = singles.std(0) / m**0.5
    jackknife = ((means - means.mean(0)).abs().square().sum(0) * ((m - 1) / m)).sqrt()
    return singles.mean(0), (spread * jackknife).sqrt()


def capacity(A: LinearOperator, memory: Budget | None) -> int:
    """How many probes a sketch may keep: in half of the memory budget, and at most half of the dimension (0 where
    the spaces have leaves of 16 bits, or both real and complex ones, which the basis vectors would not fit)."""
    if not has_one_dtype(A):
        return 0
    kept = _KEPT if given_budget(memory, A.in_space.device) is None else _HIGHEST
    per_probe = kept * max(A.shape) * A.in_space.dtype.itemsize
    room = current_budget(memory, A.in_space.device) // 2 // per_probe
    return int(min(min(A.shape) // 2, room))


def sketch_bytes(A: LinearOperator, probes: int) -> int:
    """Bytes of a sketch with so many probes, at the highest."""
    return _HIGHEST * max(A.shape) * A.in_space.dtype.itemsize * probes


def has_one_dtype(A: LinearOperator) -> bool:
    """Whether all leaves have one dtype, of at least 32 bits, so that a basis of products can be multiplied."""
    kinds = {*A.in_space.dtypes, *A.out_space.dtypes}
    return len(kinds) == 1 and work_dtype(A.in_space.dtype) == A.in_space.dtype


def require_one_dtype(A: LinearOperator, question: str) -> None:
    """Raise `StructureError` unless `has_one_dtype`."""
    if not has_one_dtype(A):
        kinds = ", ".join(sorted({str(dtype) for dtype in (*A.in_space.dtypes, *A.out_space.dtypes)})) or "no leaves"
        raise StructureError(
            f"{question} needs spaces whose leaves have one dtype of at least 32 bits.",
            f"{A} with {kinds}",
            "use method='hutchinson', or convert the parameters to one dtype",
        )
