"""Conjugate gradients for a block of right-hand sides, checked against true residuals."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core.errors import SymmetryError
from hesse.core.progress import track
from hesse.linalg.answer import Answer
from hesse.linalg.options import rounding
from hesse.linalg.products import apply, row_norms
from hesse.operators import LinearOperator


def conjugate_gradients(
    A: LinearOperator, B: Tensor, rtol: float, max_iterations: int, preconditioner: LinearOperator | None
) -> Answer:
    """Solve ``A x = b`` for the rows b of ``B`` (Hestenes and Stiefel 1952), all at once.

    Each right-hand side has its own step lengths; those that are done drop out of the products. When the
    recursion says that one has converged, its residual is computed afresh, and it starts again from there if
    the recursion was wrong.

    Args:
        A: a Hermitian positive definite operator.
        B: ``[k, dim]`` in the working dtype.
        rtol: tolerance of ``|b - A x| / |b|``.
        max_iterations: steps allowed.
        preconditioner: an approximation of the inverse of A, Hermitian positive definite.

    Raises:
        SymmetryError: a direction of negative curvature was met: A (or the preconditioner) is not positive
            definite.
    """
    size = row_norms(B)
    unit = torch.where(size > 0, size, torch.ones_like(size))[:, None]  # so that tiny b do not underflow when squared
    state = _State(A, B / unit, rtol, preconditioner)
    for _ in track(range(max_iterations), "conjugate gradients", max_iterations):
        if not len(state.active):
            break
        state.step()
    x = torch.where(state.done[:, None], state.x, state.best)
    return Answer(x * unit, _condition(state), state.iterations, state.trouble)


class _State:
    """What the recursion carries from step to step; one row for each right-hand side."""

    def __init__(self, A: LinearOperator, b: Tensor, rtol: float, preconditioner: LinearOperator | None) -> None:
        self.A, self.b, self.rtol, self.preconditioner = A, b, rtol, preconditioner
        self.flat = 4 * rounding(A)  # curvatures below this fraction of the norm cannot be told from zero
        self.x, self.r = torch.zeros_like(b), b.clone()
        size = torch.linalg.vector_norm(b, dim=-1)
        self.active, self.done = torch.nonzero(size > 0)[:, 0], size == 0
        self.best, self.least = torch.zeros_like(b), size  # the x of the smallest residual so far, and that
        self.iterations, self.norm, self.trouble = 0, 0.0, ""
        self.p = self._precondition(self.r)
        self.rz = self._positive(self.r, self.p)
        self.last_true = torch.full_like(self.rz, torch.inf)
        self.steps: list[tuple[float, float]] = []  # (alpha, beta) of the first active row, until it restarts or ends
        self.watched = int(self.active[0]) if len(self.active) else -1

    def step(self) -> None:
        """One step of every row that is not done."""
        on = self.active
        p, Ap = self.p[on], apply(self.A, self.p[on])
        curvature, is_flat = self._curvature(p, Ap)
        alpha = torch.where(is_flat, torch.zeros_like(curvature), self.rz[on] / curvature)
        self.x[on] += alpha[:, None] * p
        self.r[on] -= alpha[:, None] * Ap
        self.iterations += 1
        self._remember(on)
        restarted = self._settle(on, is_flat)
        z = self._precondition(self.r[on])
        rz = self._positive(self.r[on], z)
        beta = torch.where(restarted | (self.rz[on] <= 0), torch.zeros_like(rz), rz / self.rz[on])
        self.p[on] = z + beta[:, None] * p
        self.rz[on] = rz
        self._note(on, alpha, beta, restarted)

    def _curvature(self, p: Tensor, Ap: Tensor) -> tuple[Tensor, Tensor]:
        """``Re p^H A p``, and where it cannot be told from zero; negative curvature is refused."""
        curvature, square = _real_inner(p, Ap), _real_inner(p, p)
        lengths = torch.linalg.vector_norm(Ap, dim=-1) / square.sqrt()
        self.norm = max(self.norm, float(lengths.nan_to_num(0.0).max()))
        threshold = self.flat * self.norm * square
        if bool((curvature < -threshold).any()):
            raise SymmetryError(
                "Conjugate gradients need a positive definite operator.",
                f"negative curvature in step {self.iterations + 1}: {type(self.A).__name__} of shape "
                f"{self.A.shape} is indefinite",
                "add damping (A + c * hesse.identity(A.in_space)), or use method='dense' if it is meant so",
            )
        return curvature, curvature <= threshold

    def _remember(self, on: Tensor) -> None:
        seen = torch.linalg.vector_norm(self.r[on], dim=-1)
        better = on[seen < self.least[on]]
        self.best[better] = self.x[better]
        self.least[on] = torch.minimum(seen, self.least[on])

    def _settle(self, on: Tensor, is_flat: Tensor) -> Tensor:
        """Take out the rows that are done or stuck; returns which of `on` go on from their true residual."""
        claims = (torch.linalg.vector_norm(self.r[on], dim=-1) <= 0.9 * self.rtol) | is_flat
        if not bool(claims.any()):
            return claims
        rows = on[claims]
        self.r[rows] = self.b[rows] - apply(self.A, self.x[rows])
        true = torch.linalg.vector_norm(self.r[rows], dim=-1)
        done = true <= self.rtol
        is_singular = ~done & is_flat[claims]
        is_stuck = ~done & (true > 0.5 * self.last_true[rows])
        if bool(is_singular.any()):
            self.trouble = "A is singular to working precision, and b is not in its range"
        elif bool(is_stuck.any()):
            self.trouble = "rounding errors allow no smaller residual in this dtype"
        self.last_true[rows] = true
        self.done[rows] = done
        out = set(rows[done | is_singular | is_stuck].tolist())
        self.active = torch.tensor([i for i in on.tolist() if i not in out], dtype=on.dtype, device=on.device)
        return claims

    def _note(self, on: Tensor, alpha: Tensor, beta: Tensor, restarted: Tensor) -> None:
        if self.watched < 0 or int(on[0]) != self.watched:
            return
        if float(alpha[0]) > 0:
            self.steps.append((float(alpha[0]), float(beta[0])))
        if bool(restarted[0]):
            self.watched = -1

    def _precondition(self, r: Tensor) -> Tensor:
        return r.clone() if self.preconditioner is None else apply(self.preconditioner, r)

    def _positive(self, r: Tensor, z: Tensor) -> Tensor:
        rz = _real_inner(r, z)
        if self.preconditioner is not None and bool((rz < 0).any()):
            raise SymmetryError(
                "A preconditioner of conjugate gradients must be positive definite.",
                f"r^H M r = {float(rz.min()):.2g} with {type(self.preconditioner).__name__}",
                "pass an approximation of the inverse of A that is Hermitian with positive eigenvalues",
            )
        return rz


def _real_inner(a: Tensor, b: Tensor) -> Tensor:
    """``Re a^H b`` of each row."""
    product = (a.conj() * b).sum(-1)
    return product.real if product.is_complex() else product


def _condition(state: _State) -> float | None:
    """The (preconditioned) condition number that the steps of the first right-hand side show, from below."""
    from scipy.linalg import eigvalsh_tridiagonal

    steps = state.steps
    if not steps:
        return None
    diagonal = [1 / alpha for alpha, _ in steps]
    for j in range(1, len(steps)):
        diagonal[j] += steps[j - 1][1] / steps[j - 1][0]
    off = [max(beta, 0.0) ** 0.5 / alpha for alpha, beta in steps[:-1]]
    values = eigvalsh_tridiagonal(diagonal, off)
    return float(values[-1] / values[0]) if values[0] > 0 else float("inf")
