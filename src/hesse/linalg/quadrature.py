"""Lanczos quadrature: Gauss and Gauss-Radau rules for ``v^H f(A) v``, many vectors v side by side.

``m`` Lanczos steps from ``v / |v|`` give a tridiagonal T, whose eigenvalues (nodes) and squared first components of
eigenvectors (weights) are the m-point Gauss rule of the spectral measure that v sees (Golub and Welsch 1969; Golub and
Meurant, *Matrices, Moments and Quadrature*, 2010). With one node held at a point below the spectrum it becomes the
Gauss-Radau rule; for functions whose derivatives alternate in sign the two rules lie on either side of the truth.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from hesse.core.errors import MemoryBudgetError
from hesse.core.memory import Budget, current_budget, format_bytes, given_budget
from hesse.linalg.options import rounding
from hesse.linalg.products import apply, beside, share_of_vectors, work_dtype
from hesse.linalg.symmetry import inner
from hesse.operators import LinearOperator

_SHARE = 0.65  # of a budget, for the vectors of all runs
_ENOUGH_STEPS = 200  # that most tolerances take
_CHUNK = 16  # steps whose basis vectors lie in one tensor
_EXTRA = 18  # vectors a run holds beside its basis, measured: of a product, of re-orthogonalization, and lost between them


def vectors_of_run(steps: int) -> int:
    """How many vectors a run of so many steps takes."""
    return -(-steps // _CHUNK) * _CHUNK + _EXTRA


def steps_that_fit(vectors: int) -> int:
    """How many steps a run of so many vectors takes: the inverse of `vectors_of_run`."""
    return (vectors - _EXTRA) // _CHUNK * _CHUNK


def vectors_that_fit(A: LinearOperator, memory: Budget | None, what: str) -> int:
    """How many basis vectors of all runs together fit into a part of the memory budget.

    Raises:
        MemoryBudgetError: not even one run of four steps fits.
    """
    per_vector = max(A.in_space.dim * work_dtype(A.in_space.dtype).itemsize, 1)
    budget, share = current_budget(memory, A.in_space.device), _share(A, memory)
    fits = int(share * budget / per_vector)
    if fits < vectors_of_run(4):
        raise memory_error(A, memory, 4, what)
    return fits


def products_beside(A: LinearOperator, memory: Budget | None) -> AbstractContextManager[None]:
    """Within this context products keep to what the basis vectors leave of the memory budget."""
    budget = given_budget(memory, A.in_space.device)
    return beside(A, int(_share(A, memory) * (budget or 0)), memory, kept=0)


def _share(A: LinearOperator, memory: Budget | None) -> float:
    return 0.5 if given_budget(memory, A.in_space.device) is None else min(share_of_vectors(A), _SHARE)


def memory_error(A: LinearOperator, memory: Budget | None, steps: int, what: str) -> MemoryBudgetError:
    """The error for a basis of so many steps that does not fit; names what holds the many more that may be needed."""
    budget = current_budget(memory, A.in_space.device)
    per_vector = max(A.in_space.dim * work_dtype(A.in_space.dtype).itemsize, 1)
    enough = vectors_of_run(min(A.shape[0], max(4 * steps, _ENOUGH_STEPS)))
    needed = math.ceil(per_vector * enough / _share(A, memory))
    return MemoryBudgetError(
        f"The memory budget is too small for {what}.",
        f"a budget of {format_bytes(budget)} for a Lanczos basis of dimension {A.shape[0]}, where "
        f"{format_bytes(needed)} are enough for {enough} vectors",
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
        for place, chunk in enumerate(self._basis):  # one by one, so that no two bases are held
            self._basis[place] = chunk[:count].clone()
            del chunk
        self._alphas = [a[:count] for a in self._alphas]
        self._betas = [b[:count] for b in self._betas]

    def finish(self) -> None:
        """Give up the vectors: the rules stay, and no step can follow."""
        self._basis, self._next = [], self._next[:0].clone()

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
        alpha = inner(q, W)
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
