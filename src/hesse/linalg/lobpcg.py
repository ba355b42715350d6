"""The locally optimal block preconditioned conjugate gradient method for eigenpairs at one end of a spectrum.

Knyazev (SIAM J. Sci. Comput. 23, 2001), with the orthonormal basis of Hetmaniuk and Lehoucq (J. Comput. Phys. 218,
2006): in the span of the vectors X, the preconditioned residuals W and the last directions P, the best vectors come
next. Converged ones stay in the basis, but ask for no further product (soft locking).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hesse.core.memory import given_budget, too_small
from hesse.core.progress import track
from hesse.linalg.lanczos import Ritz
from hesse.linalg.products import apply, beside, normal_vectors, share_of_vectors, work_dtype
from hesse.linalg.quadrature import LanczosRuns
from hesse.operators import LinearOperator

_NORM_STEPS = 8
_HELD = 31  # blocks at the highest: vectors, products, directions, the basis of all of them, and what makes it orthonormal
_REFRESH = 20  # iterations after which rounding errors of A X are wiped out


def block_size(k: int) -> int:
    """Vectors iterated for `k` wanted ones: some more, so that the last converge too."""
    return k + max(2, k // 3)


class Lobpcg:
    """The state of one iteration; `run` drives it.

    Args:
        A: a Hermitian operator.
        k: number of eigenpairs wanted; ``3 * block_size(k)`` must not pass the dimension.
        sign: 1 for the smallest eigenvalues, -1 for the largest.
        rtol: a pair has converged when its residual is below ``rtol`` times the spectral norm.
        preconditioner: close to the inverse of `A`, Hermitian positive definite; None for none.
        generator: source of the starting block.

    Raises:
        MemoryBudgetError: the blocks, and a product beside them, do not fit.
    """

    def __init__(
        self,
        A: LinearOperator,
        k: int,
        sign: int,
        rtol: float,
        preconditioner: LinearOperator | None,
        generator: torch.Generator,
    ) -> None:
        self.A, self.k, self.sign, self.rtol = A, k, sign, rtol
        self.preconditioner, self.generator = preconditioner, generator
        self.dtype, self.products = work_dtype(A.in_space.dtype), 0
        self.taken = _HELD * block_size(k) * A.in_space.dim * self.dtype.itemsize
        given, least = given_budget(None, A.in_space.device), math.ceil(self.taken / share_of_vectors(A))
        if given is not None and least > given:
            raise too_small(given, least, f"{k} eigenpairs of dimension {A.shape[0]} by LOBPCG (Lanczos takes less)")
        runs = LanczosRuns(A, normal_vectors(A.in_space, 1, generator))
        with beside(A, self.taken):
            runs.grow(_NORM_STEPS)
        self.scale, self.products = float(runs.gauss()[0].abs().max()), runs.products
        self.X = _orthonormal(normal_vectors(A.in_space, block_size(k), generator), None)
        self.AX = self._times(self.X)
        self.P, self.AP = self.X[:0], self.AX[:0]
        self.values = torch.zeros(0)

    def run(self, max_products: int) -> Ritz:
        """Iterate until the wanted pairs have converged or the products are spent."""
        done = False
        self._best(self.X, self.AX)
        for steps, residuals in enumerate(track(self._residuals(), "eigenvalues (LOBPCG)"), 1):
            sizes = torch.linalg.vector_norm(residuals, dim=-1)
            open_ = sizes > 0.25 * self.rtol * self.scale
            done = not bool(open_[: self.k].any())
            if done or self.products + int(open_.sum()) > max_products:
                break
            if steps % _REFRESH == 0 and self.products + len(self.X) + int(open_.sum()) <= max_products:
                self.X = _orthonormal(self.X, None)
                self.AX = self._times(self.X)
                self.P, self.AP = self.P[:0], self.AP[:0]
            self._advance(residuals[open_])
        values = self.sign * self.values[: self.k].cpu().double()
        return Ritz(values, self.X[: self.k], self.products, self.scale, done)

    def _residuals(self) -> Iterator[Tensor]:
        while True:
            yield self.AX - self.values[:, None].to(self.X.dtype) * self.X

    def _times(self, V: Tensor) -> Tensor:
        self.products += len(V)
        with beside(self.A, self.taken):
            return self.sign * apply(self.A, V).to(self.dtype)

    def _advance(self, residuals: Tensor) -> None:
        W = residuals
        if self.preconditioner is not None:
            with beside(self.preconditioner, self.taken):
                W = apply(self.preconditioner, residuals).to(self.dtype)
        held = torch.cat([self.X, self.P])
        W = _orthonormal(W, held)
        if not len(W):  # the residuals lie in the span: look elsewhere
            W = _orthonormal(normal_vectors(self.A.in_space, 1, self.generator), held)
        self._best(torch.cat([held, W]), torch.cat([self.AX, self.AP, self._times(W)]))

    def _best(self, S: Tensor, AS: Tensor) -> None:
        """The best vectors in the span of the orthonormal rows S, and the directions that led to them."""
        count = len(self.X)
        T = S.conj() @ AS.mT
        values, C = torch.linalg.eigh((T + T.mH) / 2)
        self.scale = max(self.scale, float(values.abs().max()))
        best = C[:, :count]
        moved = best.clone()
        moved[:count] = 0
        moved = _orthonormal(moved.mT, best.mT) if len(S) > count else moved.mT[:0]
        self.X, self.AX, self.values = best.mT @ S, best.mT @ AS, values[:count]
        self.P, self.AP = moved @ S, moved @ AS


def _orthonormal(V: Tensor, against: Tensor | None) -> Tensor:
    """Orthonormal rows that span those of V without what lies in the rows `against`, up to rounding."""
    sizes = torch.linalg.vector_norm(V, dim=-1)
    V = V[sizes > 0] / sizes[sizes > 0][:, None]
    for _ in range(2):
        if against is not None and len(V):
            V = V - (V @ against.mH) @ against
        if len(V):
            _, sizes, right = torch.linalg.svd(V, full_matrices=False)
            V = right[sizes > 100 * torch.finfo(V.dtype).eps * max(float(sizes[0]), 1e-2)]
    return V
