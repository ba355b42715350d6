"""Block Lanczos with full re-orthogonalization and thick restarts.

Vectors are rows. The basis ``V`` (``[size, dim]``) and the block ``Q`` that comes next obey, for Hermitian
``A``,

    A V^T = V^T T + Q^T S,        T = conj(V) A V^T,

so that a Ritz pair ``(theta, V^T y)`` has the residual ``|S y|`` without a further product (Wu and Simon,
SIAM J. Matrix Anal. Appl. 22, 2000; in blocks as in Golub and Underwood 1977). A restart replaces ``V`` by
the wanted Ritz vectors, which keeps this relation with a diagonal ``T``. A block of p random vectors meets
every eigenspace in up to p dimensions, so that multiplicities below p come out whole. Where p wanted values
or more agree, the converged pairs are kept and a fresh random block looks for what the first one could not
see, until it finds nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.core.errors import MemoryBudgetError
from hesse.core.growth import settle, taken_bytes
from hesse.core.memory import current_budget, format_bytes, given_budget
from hesse.core.progress import track
from hesse.linalg.options import rounding
from hesse.linalg.products import apply, beside, normal_vectors, share_of_vectors, work_dtype
from hesse.operators import LinearOperator

_WIDEST_BLOCK = 4
_MOST = 0.65  # of the budget, for the least basis; what is left is for a product, and what a library takes for its own
_SCATTER = 1.25  # times as much as the vectors may lie scattered over, after some restarts
_FULL = 0.5  # of the budget: when so much is taken, what was freed is given back before the next product
_FRESH_STEPS = 8  # blocks after which a missed eigenvalue that stands out has shown itself
Key = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ritz:
    """What a Lanczos iteration found.

    Attributes:
        values: ``[k]``, best first, on the CPU in double precision.
        vectors: ``[k, dim]``, orthonormal rows.
        products: products spent.
        scale: the largest magnitude among all Ritz values seen, a lower bound of the spectral norm.
        converged: whether all residuals are as small as asked for.
    """

    values: Tensor
    vectors: Tensor
    products: int
    scale: float
    converged: bool


def block_width(k: int) -> int:
    """How many vectors are multiplied at once for `k` eigenpairs."""
    return min(k, _WIDEST_BLOCK)


def basis_size(A: LinearOperator, k: int) -> int:
    """How many basis vectors to hold for `k` eigenpairs: a good number, or what a part of the budget can take.

    Raises:
        MemoryBudgetError: even the least number that works does not fit.
    """
    width, dim = block_width(k), A.in_space.dim
    device = A.in_space.device
    good, least = min(max(24, 2 * k + 10 * width), dim), min(k + 3 * width, dim)
    given = given_budget(None, device)
    allowed = current_budget(None, device) // 2 if given is None else int(share_of_vectors(A) * given / _SCATTER)
    size = next((size for size in range(good, least, -1) if basis_bytes(A, k, size) <= allowed), least)
    needed = math.ceil(basis_bytes(A, k, least) / _MOST)
    budget = 2 * allowed if given is None else given
    if needed > budget:
        raise MemoryBudgetError(
            f"The memory budget is too small for {k} eigenpairs of dimension {dim}.",
            f"a budget of {format_bytes(budget)}, where {format_bytes(needed)} is needed",
            f"ask for fewer eigenpairs, or allow more: with hesse.memory({needed}): ...",
            needed,
        )
    return size


def basis_bytes(A: LinearOperator, k: int, size: int) -> int:
    """Bytes that are taken at the highest with a basis of so many vectors: at a restart, or while a block is orthogonalized."""
    width = block_width(k)
    kept = k + max(size - width - k, 0) // 2
    vectors = size + max(8 * width + 2, kept + 2 * width + k)
    return vectors * A.in_space.dim * work_dtype(A.in_space.dtype).itemsize


class BlockLanczos:
    """The state of one iteration; `run` drives it.

    Args:
        A: a Hermitian operator.
        k: number of eigenpairs wanted.
        key: maps Ritz values to numbers of which the largest are wanted.
        rtol: a pair has converged when its residual is below ``rtol`` times the spectral norm.
        generator: source of the starting block.
    """

    def __init__(self, A: LinearOperator, k: int, key: Key, rtol: float, generator: torch.Generator) -> None:
        self.A, self.k, self.key, self.rtol, self.generator = A, k, key, rtol, generator
        self.dim = A.in_space.dim
        self.width = min(block_width(k), self.dim)
        self.capacity = basis_size(A, k)
        given = given_budget(None, A.in_space.device)
        self._full = None if given is None else taken_bytes(A.in_space.device) + int(_FULL * given)
        dtype = work_dtype(A.in_space.dtype)
        self.basis = torch.zeros(self.capacity, self.dim, dtype=dtype, device=A.in_space.device)
        double = torch.complex128 if dtype.is_complex else torch.float64
        self.T = torch.zeros(self.capacity, self.capacity, dtype=double)
        self.S = torch.zeros(0, 0, dtype=double)
        self.size, self.products, self.scale = 0, 0, 0.0
        self.steps, self.verified = 0, None  # blocks since the last fresh one; values that are being verified
        self.next = self._random_block(self.width)

    def run(self, max_products: int) -> Ritz:
        """Iterate until the wanted pairs have converged or the products are spent."""
        with beside(self.A, basis_bytes(self.A, self.k, self.capacity), kept=0):
            return self._run(max_products)

    def _run(self, max_products: int) -> Ritz:
        for values, Y in track(self._cycles(), "eigenvalues (Lanczos)"):
            is_done = self._is_done(values, Y)
            if is_done or self.products + len(self.next) > max_products:
                vectors = self._combine(Y[:, : self.k])
                return Ritz(values[: self.k], vectors, self.products, self.scale, is_done)
            if self.size + len(self.next) > self.capacity:
                room = self.capacity - len(self.next)
                self._keep(values, Y, self.k + (room - self.k) // 2)
        raise AssertionError("unreachable: the cycles never end by themselves")

    def _cycles(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            self._expand()
            yield self._ritz()

    def _expand(self) -> None:
        """Append the next block, multiply it, and split the products along and across the basis."""
        if self._full is not None and taken_bytes(self.basis.device) > self._full:
            settle()
        block = self.next
        old, new = self.size, self.size + len(block)
        self.basis[old:new] = block
        self.size = new
        W = apply(self.A, block)
        self.products += len(block)
        along, W = self._project(W)
        self.T[:new, old:new] = along
        self.T[old:new, :new] = along.mH
        corner = self.T[old:new, old:new]
        self.T[old:new, old:new] = (corner + corner.mH) / 2
        self.scale = max(self.scale, float(torch.linalg.matrix_norm(self.T[:new, old:new], 2)))
        self.next, across = self._orthonormal(W)
        self.S = torch.zeros(len(self.next), new, dtype=self.T.dtype)
        self.S[:, old:new] = across
        self.steps += 1
        if not len(self.next) and self.size < self.dim:  # an invariant space: go on in what is orthogonal
            self.next = self._random_block(min(self.width, self.dim - self.size))
            self.S = torch.zeros(len(self.next), new, dtype=self.T.dtype)

    def _project(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients ``[size, w]`` of the rows of W along the basis, and what remains; taken out twice."""
        V = self.basis[: self.size]
        along = torch.zeros(self.size, len(W), dtype=self.T.dtype)
        for is_own in (False, True):  # W may be somebody else's
            part = V.conj() @ W.mT
            W = torch.addmm(W, part.mT, V, alpha=-1, out=W if is_own else None)
            along += part.cpu().to(along.dtype)
        return along, W

    def _orthonormal(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """Orthonormal rows that span those of W up to rounding, and the coefficients of W along them."""
        Q, R = torch.linalg.qr(W.mT)
        left, sizes, _ = torch.linalg.svd(R.cpu().to(self.T.dtype))
        keep = sizes > rounding(self.A) * self.scale
        turn = left[:, keep].to(device=Q.device, dtype=Q.dtype)
        _, block = self._project((Q @ turn).mT)
        block = torch.linalg.qr(block.mT).Q.mT if len(block) else block
        # the last QR may turn signs: measure the coefficients against the block that is handed on
        return block, (block.conj() @ W.mT).cpu().to(self.T.dtype)

    def _random_block(self, wanted: int) -> Tensor:
        fresh = normal_vectors(self.A.in_space, wanted, self.generator)
        for _ in range(2):
            _, fresh = self._project(fresh)
            fresh = torch.linalg.qr(fresh.mT).Q.mT
        return fresh

    def _ritz(self) -> tuple[Tensor, Tensor]:
        values, Y = torch.linalg.eigh(self.T[: self.size, : self.size])
        order = torch.argsort(self.key(values), descending=True, stable=True)
        self.scale = max(self.scale, float(values.abs().max()))
        return values[order], Y[:, order]

    def _is_done(self, values: Tensor, Y: Tensor) -> bool:
        if self.size >= self.dim:
            return True
        if self.size < self.k:
            return False
        residuals = torch.linalg.vector_norm(self.S @ Y, dim=0)
        tolerance = 0.25 * self.rtol * self.scale
        if bool((residuals[: self.k] > tolerance).any()):
            return False
        wanted = values[: self.k]
        if self.k <= self.width or _largest_cluster(wanted, 2 * tolerance) < self.width:
            return True
        if self.verified is not None and float((wanted - self.verified).abs().max()) <= 2 * tolerance:
            return self._is_verified(self.key(values), residuals, tolerance)
        self._verify(values, Y)
        return False

    def _is_verified(self, keys: Tensor, residuals: Tensor, tolerance: float) -> bool:
        """Whether the best of the others, all from the fresh block, has settled below the wanted ones."""
        if self.steps < _FRESH_STEPS or self.size == self.k:
            return False
        gap = float(keys[self.k - 1] - keys[self.k])
        return float(residuals[self.k]) <= max(0.1 * gap, tolerance)

    def _verify(self, values: Tensor, Y: Tensor) -> None:
        """Start again from the converged pairs and a fresh block, which meets what the first could not."""
        self.verified = values[: self.k].clone()
        self._keep(values, Y, self.k)
        self.next = self._random_block(min(self.width, self.dim - self.size))
        self.S = torch.zeros(len(self.next), self.size, dtype=self.S.dtype)
        self.steps = 0

    def _keep(self, values: Tensor, Y: Tensor, kept: int) -> None:
        """Replace the basis by its best Ritz vectors; the relation of the module's text still holds."""
        self.basis[:kept] = self._combine(Y[:, :kept])
        self.T.zero_()
        self.T[:kept, :kept] = torch.diag(values[:kept]).to(self.T.dtype)
        self.S = self.S @ Y[:, :kept]
        self.size = kept

    def _combine(self, Y: Tensor) -> Tensor:
        return Y.mT.to(device=self.basis.device, dtype=self.basis.dtype) @ self.basis[: self.size]


def _largest_cluster(values: Tensor, width: float) -> int:
    """The most values that lie within `width` of their neighbors in a row."""
    steps = values.sort().values.diff() <= width
    best = run = 1
    for near in steps.tolist():
        run = run + 1 if near else 1
        best = max(best, run)
    return best
