"""Some eigenvalues and eigenvectors of a Hermitian operator, each with its residual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import singledispatch

import torch
from torch import Tensor

from hesse.core import random
from hesse.core.errors import NotConvergedError, StructureError
from hesse.core.tree import Tree
from hesse.linalg.dense import matrix_for, matrix_has_room
from hesse.linalg.diagonal import diagonal_rule
from hesse.linalg.lanczos import BlockLanczos, Ritz
from hesse.linalg.lobpcg import Lobpcg, block_size
from hesse.linalg.options import (
    ON_FAILURE,
    check_choice,
    check_positive,
    conclude,
    require_hermitian,
    rounding,
)
from hesse.linalg.products import apply, real_dtype, work_dtype
from hesse.operators import Kronecker, LinearOperator, Scaled, Tag
from hesse.operators.spread import asked_together

_DENSE_DIM = 256
COPIES = 5  # of a matrix, while its eigenvectors are computed
_SWITCH_DIM = 2000  # up to here the dense eigenvalues are affordable when Lanczos has a hard time
_METHODS = ("auto", "exact", "lanczos", "lobpcg")
_KEYS: dict[str, Callable[[Tensor], Tensor]] = {
    "largest": lambda values: values,
    "smallest": lambda values: -values,
    "magnitude": lambda values: values.abs(),
}


@dataclass(frozen=True, eq=False)
class Eigen:
    """Eigenpairs of a Hermitian operator.

    Attributes:
        values: ``[k]``, real; the most wanted first.
        vectors: a tree of the operator's space with a leading axis k; orthonormal.
        residuals: ``[k]``: ``|A v - value v|``, from a fresh product; an eigenvalue lies within this
            distance.
        products: products with the operator that were spent.
    """

    values: Tensor
    vectors: Tree = field(repr=False)
    residuals: Tensor
    products: int


@asked_together
def eigsh(  # noqa: PLR0913 - which pairs, by which method, how exactly, and within which limits
    A: LinearOperator,
    k: int = 6,
    *,
    which: str = "largest",
    method: str = "auto",
    preconditioner: LinearOperator | None = None,
    rtol: float | None = None,
    max_products: int | None = None,
    generator: torch.Generator | None = None,
    on_failure: str = "raise",
) -> Eigen:
    """The `k` wanted eigenpairs of a Hermitian operator, each with its residual from a fresh product.

    Multiple eigenvalues come out with their multiplicity. All work is done on the operator's device and in its dtype
    (16-bit ones in float32).

    Args:
        A: an operator tagged SYMMETRIC (real), HERMITIAN or PSD.
        k: how many pairs.
        which: ``"largest"`` (descending), ``"smallest"`` (ascending) or ``"magnitude"`` (largest first).
        method: ``"lanczos"``: block Lanczos with full re-orthogonalization and thick restarts (`hesse.linalg.lanczos`).
            ``"lobpcg"``: for one end of the spectrum, with a preconditioner (`hesse.linalg.lobpcg`). ``"exact"``: by the
            dense matrix. ``"auto"``: by the structure where it knows the answer, by the matrix up to dimension 256; else
            LOBPCG if there is a preconditioner, Lanczos if not, and the matrix up to dimension 2000 where they cost more.
        preconditioner: an operator close to the inverse of `A`, Hermitian positive definite; for LOBPCG.
        rtol: largest residual allowed, as a fraction of the spectral norm of `A`; by default 1e-6, or 32 roundings of the
            coarsest leaf dtype where that is larger (8 for 16-bit ones).
        max_products: products that may be spent; by default ``2000 + 100 k``.
        generator: source of the random starting block.
        on_failure: ``"raise"``, or ``"return"`` what was reached, with a warning.

    Raises:
        SymmetryError: the operator is not tagged Hermitian.
        StructureError: `k` is not between 1 and the dimension, or there is no such option.
        NotConvergedError: the residuals are larger than asked for; carries the `Eigen` reached.

    Cost: tens to hundreds of products, in blocks of ``min(k, 4)``: 6 pairs to the default tolerance take about 100 where
    eigenvalues decay, 400 to 700 in the bulk of a flat spectrum; up to dimension 2000 never more than twice the dimension.
    Holds ``max(24, 2 k + 10 min(k, 4))`` vectors, fewer on a small memory budget; LOBPCG ``8 k`` and as many products.
    """
    _check(A, k, which, method, preconditioner)
    check_choice("eigsh", "on_failure", on_failure, ON_FAILURE)
    check_positive("eigsh", rtol=rtol, max_products=max_products)
    eps = rounding(A)
    rtol = max(1e-6, (32 if eps < 1e-4 else 8) * eps) if rtol is None else rtol
    budget = 2000 + 100 * k if max_products is None else max_products
    found = _structured(A, k, which) if method == "auto" else None
    if found is None:
        search = _Search(A, k, which, rtol, generator or random.make_generator(), preconditioner)
        found = search.run(method, budget)
    result, allowed = _certified(A, found), rtol * found.scale + eps * float(found.values.abs().max())
    largest = float(result.residuals.max())
    if not found.converged or largest > allowed:
        asked = f"The {k} eigenpairs were not found to rtol={rtol:.2g}."
        text = f"residuals up to {largest:.2g} (allowed: {allowed:.2g}) after {result.products} products"
        remedy = "raise max_products or rtol, use float64, check that A is Hermitian (hesse.assert_operator)"
        conclude(NotConvergedError(asked, text, remedy, result), on_failure)
    return result


def _check(A: LinearOperator, k: int, which: str, method: str, preconditioner: LinearOperator | None) -> None:
    check_choice("eigsh", "which", which, tuple(_KEYS))
    check_choice("eigsh", "method", method, _METHODS)
    require_hermitian(A, "eigsh", "for other operators use hesse.svd, or the eigenpairs of A.H @ A")
    dim = A.in_space.dim
    if not 1 <= k <= dim:
        raise StructureError("eigsh needs 1 <= k <= dim.", f"k={k} for dimension {dim}", "ask for fewer pairs")
    if method == "lobpcg" and which == "magnitude":
        remedy = "ask for 'largest' or 'smallest', or use method='lanczos'"
        raise StructureError("LOBPCG finds eigenpairs at one end of the spectrum.", "which='magnitude'", remedy)
    if preconditioner is None:
        return
    if method in ("exact", "lanczos") or which == "magnitude":
        remedy = "use method='lobpcg' with which='smallest' or 'largest', or pass no preconditioner"
        raise StructureError("Only LOBPCG takes a preconditioner.", f"method={method!r}, which={which!r}", remedy)
    if not preconditioner.in_space == preconditioner.out_space == A.in_space:
        found = f"{preconditioner.in_space} to {preconditioner.out_space}"
        raise StructureError("A preconditioner maps the space of A to itself.", found, f"use an operator on {A.in_space}")


def _structured(A: LinearOperator, k: int, which: str) -> Ritz | None:
    known, top = eigsh_rule(A, k, which), eigsh_rule(A, 1, "magnitude")
    if known is None or top is None:
        return None
    return Ritz(*known, products=0, scale=float(top[0].abs().max()), converged=True)


@dataclass(frozen=True)
class _Search:
    """A search for eigenpairs that no structure knows."""

    A: LinearOperator
    k: int
    which: str
    rtol: float
    generator: torch.Generator
    preconditioner: LinearOperator | None

    def run(self, method: str, budget: int) -> Ritz:
        """By the matrix where it is small; else by an iteration, or the matrix once that has cost as much."""
        dim = self.A.in_space.dim
        if method == "exact" or (method == "auto" and dim <= max(_DENSE_DIM, 4 * self.k) and matrix_has_room(self.A, COPIES)):
            return _by_matrix(self.A, self.k, self.which)
        by_blocks = method == "lobpcg" or (method == "auto" and self.preconditioner is not None)
        if by_blocks and 3 * block_size(self.k) > dim:  # the three blocks would span the whole space
            return _by_matrix(self.A, self.k, self.which)
        first = dim if method == "auto" and dim <= _SWITCH_DIM and 2 * dim <= budget else budget
        found = self._lobpcg(first) if by_blocks else self._lanczos(first)
        if found.converged or first == budget or not matrix_has_room(self.A, COPIES):
            return found
        exact = _by_matrix(self.A, self.k, self.which)
        return replace(exact, products=exact.products + found.products)

    def _lanczos(self, budget: int) -> Ritz:
        return BlockLanczos(self.A, self.k, _KEYS[self.which], self.rtol, self.generator).run(budget)

    def _lobpcg(self, budget: int) -> Ritz:
        sign = 1 if self.which == "smallest" else -1
        return Lobpcg(self.A, self.k, sign, self.rtol, self.preconditioner, self.generator).run(budget)


def _by_matrix(A: LinearOperator, k: int, which: str) -> Ritz:
    matrix = matrix_for(A, "the eigenpairs", COPIES).detach()
    values, vectors = torch.linalg.eigh(matrix.to(work_dtype(matrix.dtype)))
    best = _best(values, k, which)
    return Ritz(values[best], vectors[:, best].mT, len(values), float(values.abs().max()), True)


def _certified(A: LinearOperator, found: Ritz) -> Eigen:
    """The pairs with residuals from fresh products of the vectors that are handed out."""
    vectors = found.vectors
    values = found.values.to(device=vectors.device, dtype=real_dtype(vectors.dtype))
    residuals = torch.linalg.vector_norm(apply(A, vectors) - values[:, None] * vectors, dim=-1)
    return Eigen(values, A.in_space.unravel(vectors), residuals, found.products + len(values))


def _best(values: Tensor, k: int, which: str) -> Tensor:
    return torch.argsort(_KEYS[which](values), descending=True, stable=True)[:k]


@singledispatch
def eigsh_rule(A: LinearOperator, k: int, which: str) -> tuple[Tensor, Tensor] | None:
    """The open rule behind `eigsh`: values ``[k]`` and rows ``[k, dim]``, best first, or None."""
    entries = diagonal_rule(A) if Tag.DIAGONAL in A.tags else None
    if entries is None:
        return None
    values = entries.detach().real.to(work_dtype(real_dtype(entries.dtype)))
    best = _best(values, k, which)
    vectors = torch.zeros(k, len(values), dtype=values.dtype, device=entries.device)
    vectors[torch.arange(k, device=best.device), best] = 1
    return values[best], vectors


@eigsh_rule.register(Scaled)
def _scaled(A: Scaled, k: int, which: str) -> tuple[Tensor, Tensor] | None:
    factor = complex(A.factor)
    if factor.imag or Tag.HERMITIAN not in A.operator.tags:
        return None
    turned = {"largest": "smallest", "smallest": "largest"}.get(which, which) if factor.real < 0 else which
    known = eigsh_rule(A.operator, k, turned)
    return None if known is None else (factor.real * known[0], known[1])


@eigsh_rule.register(Kronecker)
def _kronecker(A: Kronecker, k: int, which: str) -> tuple[Tensor, Tensor] | None:
    factors = [F.detach().to(work_dtype(F.dtype)) for F in (A.left, A.right)]
    if any(F.shape[0] != F.shape[1] or not torch.equal(F, F.mH) for F in factors):
        return None
    (left, P), (right, Q) = (torch.linalg.eigh(F) for F in factors)
    best = _best(torch.outer(left, right).flatten(), k, which)
    i, j = best // len(right), best % len(right)
    vectors = (P.mT[i][:, :, None] * Q.mT[j][:, None, :]).flatten(1)
    return left[i] * right[j], vectors
