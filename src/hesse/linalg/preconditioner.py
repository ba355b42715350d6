"""Preconditioners: operators that approximate the inverse of a Hermitian one, made from what is cheap to know of it."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from hesse.core import random, tree
from hesse.core.batching import slices
from hesse.core.errors import StructureError, SymmetryError
from hesse.core.memory import Budget
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.linalg.diagonal import diagonal
from hesse.linalg.eigen import Eigen
from hesse.linalg.options import is_complex, require_hermitian, rounding
from hesse.linalg.products import apply, normal_vectors, rows_at_once, work_dtype
from hesse.operators import Conjugate, Diagonal, LinearOperator, Tag
from hesse.operators.spread import asked_together

_DAMP = "pass a larger damping"


@asked_together
def jacobi(
    A: LinearOperator, *, damping: float = 0.0, rtol: float | None = None, generator: torch.Generator | None = None
) -> Diagonal:
    """The inverse of the diagonal of ``A + damping I``, entry by entry in absolute value (Jacobi).

    Args:
        A: a Hermitian operator.
        damping: added to the diagonal.
        rtol: estimate the diagonal to this tolerance where it costs products (see `diagonal`); exact by default.
        generator: source of the random signs of the estimate.

    Returns:
        a positive definite diagonal operator.

    Raises:
        StructureError: an entry is zero.

    Cost: that of `diagonal`.
    """
    entries = diagonal(A, rtol=rtol, generator=generator).detach()
    size = (entries.real.to(work_dtype(entries.real.dtype)) + damping).abs()
    is_zero = size <= torch.finfo(size.dtype).tiny
    if bool(is_zero.any()):
        leaves = zip(A.in_space.names, is_zero.split(A.in_space.sizes), strict=True)
        where = next(name for name, part in leaves if bool(part.any()))
        raise StructureError(
            "The Jacobi preconditioner divides by the diagonal.",
            f"{int(is_zero.sum())} zero entries, the first at '{where}'",
            _DAMP,
        )
    return Diagonal(A.in_space.unravel((1 / size).to(entries.dtype)), frozenset({Tag.PSD, Tag.HERMITIAN}))


@final
class Deflation(LinearOperator):
    """``I + U diag(w) U^H`` for orthonormal U: the identity but in a few directions. Hermitian.

    Args:
        vectors: ``[k, dim]``, the columns of U as rows.
        weights: ``[k]``, real and above -1.
        space: the space of the vectors.
    """

    def __init__(self, vectors: Tensor, weights: Tensor, space: Space) -> None:
        self.in_space = self.out_space = space
        self.vectors, self.weights = vectors, weights
        self.tags = frozenset({Tag.PSD, Tag.HERMITIAN} | (set() if is_complex(self) else {Tag.SYMMETRIC}))

    def mv(self, v: Tree) -> Tree:
        return tree.map_tree(lambda leaf: leaf[0], self.mm(tree.map_tree(lambda leaf: leaf[None], v)))

    def mm(self, V: Tree) -> Tree:
        rows = self.in_space.ravel(V, 1).to(self.vectors.dtype)
        return self.in_space.unravel(rows + (rows @ self.vectors.mH * self.weights) @ self.vectors)

    def transpose(self) -> LinearOperator:
        return Conjugate(self)


def deflation(pairs: Eigen, *, damping: float = 0.0) -> Deflation:
    """A preconditioner of ``A + damping I`` from eigenpairs of the Hermitian A: ``I + U (floor / |L + damping| - 1) U^H``.

    The eigenvalues L of the pairs become one, up to the factor `floor`, the smallest ``|L + damping|`` among them, to which
    the rest of the spectrum is left as it is; the largest eigenpairs, ``hesse.eigsh(A, k)``, help positive definite systems,
    those by ``which="magnitude"`` indefinite ones (Frangella, Tropp and Udell 2023, equation 1.3).

    Args:
        pairs: as `eigsh` finds them.
        damping: that of the system.

    Returns:
        a positive definite operator.

    Raises:
        StructureError: ``A + damping I`` has the eigenvalue zero among these.
    """
    vectors = pairs.vectors
    space = Space.of(tree.map_tree(lambda leaf: leaf[0], vectors))
    flat = space.ravel(vectors, 1).detach()
    return _deflated(flat.to(work_dtype(flat.dtype)), pairs.values.detach(), damping, space)


def _deflated(vectors: Tensor, values: Tensor, damping: float, space: Space) -> Deflation:
    size = (values + damping).abs()
    floor = size.min() if len(size) else size.new_ones(())
    if len(size) and not float(floor) > 16 * torch.finfo(size.dtype).eps * float(size.max()):
        raise StructureError(
            "This preconditioner divides by the eigenvalues with their damping.",
            f"{float(floor):.2g} among them, {float(size.max()):.2g} the largest",
            f"{_DAMP}, or fewer eigenpairs",
        )
    return Deflation(vectors, (floor / size - 1).to(vectors.real.dtype), space)


@asked_together
def nystrom(
    A: LinearOperator,
    rank: int,
    *,
    damping: float = 0.0,
    generator: torch.Generator | None = None,
    memory: Budget | None = None,
) -> Deflation:
    """A preconditioner of ``A + damping I`` from the randomized Nystrom approximation of A.

    Frangella, Tropp and Udell, SIAM Journal on Matrix Analysis and Applications 44 (2023), algorithms 2.1 and 5.1; with
    twice as many vectors as A has eigenvalues above the damping, conjugate gradients take a number of steps that does not
    depend on the condition number.

    Args:
        A: a positive semi-definite operator, without the damping.
        rank: random vectors, at most the dimension.
        damping: that of the system.
        generator: source of the random vectors.
        memory: bytes, fraction or text; by default the budget in force.

    Returns:
        a positive definite operator, which holds ``rank`` vectors.

    Raises:
        SymmetryError: A is not tagged Hermitian, or not positive semi-definite.
        StructureError: `rank` is not between 1 and the dimension; no damping for an operator of lower rank.

    Cost: `rank` products, in blocks.
    """
    require_hermitian(A, "nystrom", "use another preconditioner")
    dim = A.shape[0]
    if not 1 <= rank <= dim:
        raise StructureError("nystrom needs 1 <= rank <= dim.", f"rank={rank} for dimension {dim}", "take fewer vectors")
    probes = torch.linalg.qr(normal_vectors(A.in_space, rank, generator or random.make_generator()).mT).Q.mT.contiguous()
    images = torch.empty_like(probes)
    count = rows_at_once(A, rank, f"a Nystrom approximation of rank {rank}", memory=memory, kept=4 * probes.nbytes)
    for part in slices(rank, count, "Nystrom approximation"):
        images[part] = apply(A, probes[part])
    core = images @ probes.mH  # transposed: rows are vectors
    core = (core + core.mH) / 2
    values, rotation = torch.linalg.eigh(core)
    largest = float(values.abs().max())
    if float(values[0]) < -10 * rounding(A) ** 0.5 * largest:
        raise SymmetryError(
            "The Nystrom approximation needs a positive semi-definite operator.",
            f"curvature {float(values[0]):.2g} in one direction, {largest:.2g} in another",
            "use jacobi, or deflation(hesse.eigsh(A, k, which='magnitude')) for an indefinite one",
        )
    # A ~ Y (W^H Y)^+ Y^H; what rounding makes of small curvature is left out
    kept = values > 4 * dim**0.5 * rounding(A) * largest
    halves = (rotation[:, kept].mH @ images).div_(values[kept].sqrt()[:, None])
    del probes, images
    _, roots, vectors = torch.linalg.svd(halves, full_matrices=False)
    found = roots**2
    return _deflated(vectors, found, damping, A.in_space)
