"""Lanczos quadrature: Gauss and Gauss-Radau rules for ``v^H f(A) v``, many vectors v side by side.

``m`` Lanczos steps from ``v / |v|`` give a tridiagonal T, whose eigenvalues (nodes) and squared first components of
eigenvectors (weights) are the m-point Gauss rule of the spectral measure that v sees (Golub and Welsch 1969; Golub and
Meurant, *Matrices, Moments and Quadrature*, 2010). With one node held at a point below the spectrum it becomes the
Gauss-Radau rule; for functions whose derivatives alternate in sign the two rules lie on either side of the truth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.errors import MemoryBudgetError
from hesse.core.memory import Budget, current_budget, format_bytes
from hesse.linalg.options import rounding
from hesse.linalg.products import apply, work_dtype
from hesse.operators import LinearOperator

_CHUNK = 16  # steps whose basis vectors lie in one tensor
EXTRA = 6  # vectors a run holds beside its basis: those of a product, and of a pass of re-orthogonalization


def vectors_that_fit(A: LinearOperator, memory: Budget | None, what: str) -> int:
    """How many basis vectors of all runs together fit into half of the memory budget.

    Raises:
        MemoryBudgetError: not even one run of four steps fits.
    """
    per_vector = max(A.in_space.dim * work_dtype(A.in_space.dtype).itemsize, 1)
    budget = current_budget(memory, A.in_space.device)
    fits, least = budget // (2 * per_vector), EXTRA + 4
    if fits < least:
        raise memory_error(A, budget, 2 * per_vector * least, what)
    return int(fits)


def memory_error(A: LinearOperator, budget: int, needed: int, what: str) -> MemoryBudgetError:
    """The error for a basis that does not fit."""
    return MemoryBudgetError(
        f"The memory budget is too small for {what}.",
        f"a budget of {format_bytes(budget)} for a Lanczos basis of dimension {A.shape[0]}, where "
        f"{format_bytes(needed)} are needed",
        f"pass memory={needed} or more, or a larger tolerance",
        needed,
    )


class LanczosRuns:
    """Lanczos iterations from several vectors at once, each with full re-orthogonalization against its own basis.

    Args:
        A: a Hermitian operator.
        starts: ``[b, dim]``: the starting vectors.

    Attributes:
        steps: steps taken, the same for all runs.
        products: products spent.
    """

    def __init__(self, A: LinearOperator, starts: Tensor) -> None:
        self.A = A
        self.norms = torch.linalg.vector_norm(starts, dim=-1)
        self._next = starts.to(work_dtype(starts.dtype)) / self.norms[:, None]
        self._basis: list[Tensor] = []
        self._alphas: list[Tensor] = []
        self._betas: list[Tensor] = []
        self._done = torch.zeros(len(starts), dtype=torch.bool, device=starts.device)
        self.steps = self.products = 0

    @property
    def is_exact(self) -> bool:
        """Whether every run has met all of the spectrum that its vector sees."""
        return self.steps >= self.A.shape[0] or bool(self._done.all())

    @property
    def squared_norms(self) -> Tensor:
        """``[b]``: squared norms of the starting vectors, on the CPU in double precision."""
        return self.norms.cpu().double().square()

    def keep(self, count: int) -> None:
        """Go on with the first `count` runs only."""
        self.norms, self._next, self._done = self.norms[:count], self._next[:count], self._done[:count]
        self._basis = [chunk[:count].clone() for chunk in self._basis]
        self._alphas = [a[:count] for a in self._alphas]
        self._betas = [b[:count] for b in self._betas]

    def grow(self, steps: int) -> None:
        """Take steps until there are this many (or as many as the dimension)."""
        while self.steps < min(steps, self.A.shape[0]) and not (self.steps and self.is_exact):
            self._step()

    def _step(self) -> None:
        q = self._next
        if self.steps % _CHUNK == 0:
            self._basis.append(q.new_zeros(len(q), _CHUNK, q.shape[1]))
        self._basis[-1][:, self.steps % _CHUNK] = q
        W = apply(self.A, q)
        self.products += len(q)
        alpha = _inner(q, W)
        W = W.to(q.dtype)[:, :, None]
        for _ in range(2):
            for V in self._basis:
                W = W - V.mT @ (V.conj() @ W)
        W = W[:, :, 0]
        beta = torch.linalg.vector_norm(W, dim=-1)
        scale = torch.maximum(alpha.abs(), beta)
        for a, b in zip(self._alphas, self._betas, strict=True):
            scale = torch.maximum(scale, torch.maximum(a.abs(), b))
        # a run that has ended goes on with zero vectors, and with nodes inside its spectrum that weigh nothing
        alpha = torch.where(self._done, self._alphas[0], alpha) if self._alphas else alpha
        self._done = self._done | (beta <= 4 * rounding(self.A) * scale)
        beta = torch.where(self._done, torch.zeros_like(beta), beta)
        self._next = torch.where(self._done[:, None], torch.zeros_like(W), W / torch.where(beta > 0, beta, 1)[:, None])
        self._alphas.append(alpha)
        self._betas.append(beta)
        self.steps += 1

    def _tridiagonal(self, steps: int) -> Tensor:
        """``[b, steps, steps]`` on the CPU in double precision."""
        T = torch.diag_embed(torch.stack(self._alphas[:steps], -1).cpu().double())
        if steps > 1:
            off = torch.stack(self._betas[: steps - 1], -1).cpu().double()
            T = T + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
        return T

    def gauss(self, steps: int | None = None) -> tuple[Tensor, Tensor]:
        """Nodes and weights ``[b, steps]`` of the Gauss rules; the weights of a run add up to 1."""
        return _rule(self._tridiagonal(self.steps if steps is None else steps))

    def radau(self, node: float) -> tuple[Tensor, Tensor]:
        """Nodes and weights ``[b, steps + 1]`` of the Gauss-Radau rules with a node held at a point.

        Args:
            node: a lower bound of the spectrum; moved below the nodes of the Gauss rule if rounding put it above.
        """
        T, m = self._tridiagonal(self.steps), self.steps
        values = torch.linalg.eigvalsh(T)
        low, spread = values[:, 0], (values.abs().amax(-1) * rounding(self.A)).clamp_min(1e-300)
        a = torch.minimum(torch.full_like(low, node), low - spread)
        beta = self._betas[m - 1].cpu().double()
        unit = torch.zeros(len(T), m, 1, dtype=T.dtype)
        unit[:, -1, 0] = beta.square()
        shifted = T - a[:, None, None] * torch.eye(m, dtype=T.dtype)
        corner = a + torch.linalg.solve(shifted, unit)[:, -1, 0]
        larger = torch.zeros(len(T), m + 1, m + 1, dtype=T.dtype)
        larger[:, :m, :m] = T
        larger[:, m - 1, m] = larger[:, m, m - 1] = beta
        larger[:, m, m] = torch.where(beta > 0, corner, values[:, 0])
        return _rule(larger)


def _rule(T: Tensor) -> tuple[Tensor, Tensor]:
    nodes, vectors = torch.linalg.eigh(T)
    return nodes, vectors[:, 0].square()


def _inner(a: Tensor, b: Tensor) -> Tensor:
    product = (a.conj() * b).sum(-1)
    return product.real if product.is_complex() else product
