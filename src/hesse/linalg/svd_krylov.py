"""Singular triplets through Hermitian eigenpairs: of ``A^H A``, and of ``[[0, A], [A^H, 0]]`` where squaring costs digits."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.errors import NotConvergedError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.linalg.eigen import Eigen, eigsh
from hesse.linalg.options import rounding
from hesse.linalg.products import apply, normal_vectors, work_dtype
from hesse.linalg.svd_rules import Triplets, best_of
from hesse.operators import Congruence, Conjugate, LinearOperator, Tag


class JordanWielandt(LinearOperator):
    """``[[0, A], [A^H, 0]]``, whose eigenvalues are plus and minus the singular values of `A`, and zeros.

    Args:
        A: any operator; the vectors are dicts of a ``left`` tree of `A.out_space` and a ``right`` one of `A.in_space`.
    """

    def __init__(self, A: LinearOperator) -> None:
        self.A = A
        self.in_space = self.out_space = Space.of({"left": A.out_space.zeros(), "right": A.in_space.zeros()})
        self.tags = frozenset({Tag.HERMITIAN} if self.in_space.dtype.is_complex else {Tag.HERMITIAN, Tag.SYMMETRIC})

    def mv(self, v: Tree) -> Tree:
        return {"left": self.A.mv(v["right"]), "right": self.A.H.mv(v["left"])}

    def mm(self, V: Tree) -> Tree:
        return {"left": self.A.mm(V["right"]), "right": self.A.H.mm(V["left"])}

    def transpose(self) -> LinearOperator:
        return Conjugate(self)


class SingularSearch:
    """A search for singular triplets that no structure knows.

    Args:
        A: any operator.
        k: how many.
        which: ``"largest"`` or ``"smallest"``.
        rtol: residual to reach, as a fraction of the spectral norm.
        generator: source of the random starting blocks.

    Attributes:
        products: products spent, with `A` or its adjoint.
        scale: the spectral norm of `A`, or a lower bound of it.
    """

    def __init__(self, A: LinearOperator, k: int, which: str, rtol: float, generator: torch.Generator) -> None:
        self.A, self.k, self.which, self.rtol, self.generator = A, k, which, rtol, generator
        self.products, self.scale = 0, 0.0
        # work on the side of the smaller dimension
        self.is_wide = A.shape[0] < A.shape[1]
        self.B = A.H if self.is_wide else A
        self.dtype = torch.promote_types(work_dtype(A.in_space.dtype), work_dtype(A.out_space.dtype))

    def run(self, budget: int) -> Triplets:
        """The best triplets found within the budget; `svd` checks their residuals."""
        found = self._by_squares(budget)
        U, values, V = found
        return Triplets(V, values, U) if self.is_wide else Triplets(U, values, V)

    def _eigenpairs(self, H: LinearOperator, k: int, which: str, rtol: float, budget: int) -> tuple[Eigen, Tensor]:
        found = _quiet_eigsh(H, k, which, rtol, budget, self.generator)
        self.products += 2 * found.products
        return found, H.in_space.ravel(found.vectors, 1).to(self.dtype)

    def _by_squares(self, budget: int) -> Triplets:
        """Of ``B^H B``; a second time with the tolerance that the smallest wanted value asks for, where that is smaller."""
        gram, eps = Congruence(self.B), rounding(self.A)
        if self.which == "smallest":
            self._find_scale(budget // 8)
        rtol = self.rtol
        while True:
            _, V = self._eigenpairs(gram, self.k, self.which, rtol, max((budget - self.products) // 2, self.k))
            found = self._rotated(V)
            self.scale = max(self.scale, float(found.values.max()))
            residual = self._left_residual(found)
            open_ = residual > self.rtol * self.scale
            if not bool(open_.any()) or self.products >= budget:
                return found
            tighter = 0.25 * self.rtol * float(found.values[open_].min()) / self.scale
            tighter = max(tighter, (0.2 * self.rtol) ** 2)  # whose root counts as zero
            if tighter < 16 * eps or rtol <= tighter:
                break
            rtol = tighter
        return self._by_jordan_wielandt(found, budget) if self.which == "largest" else found

    def _find_scale(self, budget: int) -> None:
        found, _ = self._eigenpairs(Congruence(self.B), 1, "largest", 1e-2, max(budget // 2, 8))
        self.scale = max(float(found.values[0]), 0.0) ** 0.5

    def _rotated(self, V: Tensor) -> Triplets:
        """The best triplets with right vectors in the span of the rows of V, and left ones for the zeros among them."""
        images = apply(self.B, V).to(self.dtype)
        self.products += len(V)
        U, values, turn = torch.linalg.svd(images.mT, full_matrices=False)
        V = turn.conj() @ V
        order = best_of(values, self.k, self.which)
        U, values, V = U.mT[order], values[order], V[order]
        zero = values <= 0.25 * self.rtol * max(self.scale, float(values.max()))
        if bool(zero.any()):
            U = self._left_kernel(U, zero)
        return Triplets(U, values, V)

    def _left_kernel(self, U: Tensor, zero: Tensor) -> Tensor:
        """Left vectors of the values that are zero.

        Among the largest, the others span all that B maps to: whatever is orthogonal to them will do. Among the
        smallest, they are looked for by themselves.
        """
        kept, count = U[~zero], int(zero.sum())
        if self.which == "largest":
            fresh = normal_vectors(self.B.out_space, count, self.generator).to(self.dtype)
        else:
            other = Congruence(self.B.H)
            _, fresh = self._eigenpairs(other, count, "smallest", self.rtol**2 + 16 * rounding(self.A), 4000 + 100 * count)
        for _ in range(2):
            fresh = fresh - (fresh @ kept.mH) @ kept
            fresh = torch.linalg.qr(fresh.mT).Q.mT
        U = U.clone()
        U[zero] = fresh
        return U

    def _left_residual(self, found: Triplets) -> Tensor:
        self.products += len(found.U)
        back = apply(self.B.H, found.U).to(self.dtype)
        return torch.linalg.vector_norm(back - found.values[:, None] * found.V, dim=-1)

    def _by_jordan_wielandt(self, before: Triplets, budget: int) -> Triplets:
        left = max((budget - self.products) // 2, 2 * self.k)
        _, pairs = self._eigenpairs(JordanWielandt(self.B), self.k, "largest", self.rtol / 2, left)
        rows = pairs[:, self.B.out_space.dim :]
        sizes = torch.linalg.vector_norm(rows, dim=-1)
        if float(sizes.min()) < 0.1:  # values near zero, whose pairs mix with the kernel
            return before
        found = self._rotated(torch.linalg.qr(rows.mT).Q.mT)
        better = self._left_residual(found).max() <= self._left_residual(before).max()
        return found if bool(better) else before


def _quiet_eigsh(A: LinearOperator, k: int, which: str, rtol: float, budget: int, generator: torch.Generator) -> Eigen:
    """What was found, converged or not: the triplets are checked by themselves."""
    try:
        return eigsh(A, k, which=which, method="lanczos", rtol=rtol, max_products=budget, generator=generator)
    except NotConvergedError as error:
        if not isinstance(error.partial, Eigen):  # of a product, which needs a solution itself
            raise
        return error.partial
