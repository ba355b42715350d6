"""Conjugate gradients for a block of right-hand sides, checked against true residuals."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.core.errors import SymmetryError
from hesse.core.progress import track
from hesse.linalg.answer import Answer
from hesse.linalg.rows import Rows
from hesse.linalg.symmetry import inner
from hesse.operators import LinearOperator


class NegativeCurvatureError(SymmetryError):
    """Conjugate gradients met a direction that shows that the operator is not positive definite."""


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
        NegativeCurvatureError: a direction of negative curvature was met.
        SymmetryError: A does not equal its adjoint, or the preconditioner is not positive definite.

    Cost: a product a step; one more in the first block, which checks the symmetry of A, one at the end, and one for a row
    that meets no curvature.
    """
    state = _State(A, B, rtol, preconditioner)
    for _ in track(range(max_iterations), "conjugate gradients", max_iterations):
        if not len(state.active):
            break
        state.step()
    return Answer(state.solution(), _condition(state), state.iterations, state.trouble)


class _State(Rows):
    """What the recursion carries from step to step; one row for each right-hand side."""

    def __init__(self, A: LinearOperator, b: Tensor, rtol: float, preconditioner: LinearOperator | None) -> None:
        super().__init__(A, b, rtol, preconditioner, "conjugate gradients")
        z = self.precondition(self.r)
        self.p = z.clone() if z is self.r else z
        self.rz = self.positive(self.r, z)
        self.pp = self.rz  # p^H M^-1 p with the preconditioner M
        self.rayleigh = 0.0  # the largest p^H A p / p^H M^-1 p: at most the norm of the preconditioned operator
        self.steps: list[tuple[float, float]] = []  # (alpha, beta) of the first active row, until it restarts or ends
        self.watched = int(self.active[0]) if len(self.active) else -1

    def step(self) -> None:
        """One step of every row that is not done."""
        on = self.active
        alpha, is_flat = self._advance()
        self.iterations += 1
        self.remember()
        stay, restarted = self.settle(is_flat)
        again, rz_before = restarted[stay], self.rz[stay]
        if not bool(stay.all()):
            self.p = self.p[stay]
        z = self.precondition(self.r)
        self.rz = self.positive(self.r, z)
        beta = torch.where(again | (rz_before <= 0), torch.zeros_like(self.rz), self.rz / rz_before)
        self.pp = self.rz + beta.square() * self.pp[stay]
        self.p = (self.p * beta[:, None]).add_(z)  # not in place: the operator may keep the p that it was given
        if len(on) and int(on[0]) == self.watched:
            self._note(float(alpha[0]), 0.0 if bool(restarted[0]) else float(beta[0]), bool(restarted[0]))

    def _advance(self) -> tuple[Tensor, Tensor]:
        """Move x and r along the directions; the step lengths, and which directions A maps to nothing."""
        Ap = self.product(self.p)
        curvature, is_flat = self._curvature(self.p, Ap)
        alpha = torch.where(is_flat, torch.zeros_like(curvature), self.rz / curvature)
        self.x.addcmul_(alpha[:, None], self.p)
        self.r.addcmul_(alpha[:, None], Ap, value=-1)
        return alpha, is_flat

    def _curvature(self, p: Tensor, Ap: Tensor) -> tuple[Tensor, Tensor]:
        """``Re p^H A p``, and where it cannot be told from zero; negative curvature is refused.

        With a preconditioner M that is told in the norm of ``M^-1``: entries of A of very different sizes hide no curvature.
        """
        curvature, square = inner(p, Ap), inner(p, p)
        lengths = torch.linalg.vector_norm(Ap, dim=-1) / square.sqrt()
        self.norm = max(self.norm, float(lengths.nan_to_num(0.0).max()))
        threshold = self.flat * self.norm * square
        is_flat = curvature <= threshold
        if self.preconditioner is not None:
            self.rayleigh = max(self.rayleigh, float((curvature / self.pp).nan_to_num(0.0, 0.0).max()))
            is_flat &= curvature <= self.flat * self.rayleigh * self.pp
        suspects = is_flat & (lengths > 10 * self.flat**0.5 * self.norm)
        rows = torch.nonzero(suspects)[:, 0].tolist()
        if bool((curvature < -threshold).any()) or any(self._is_bent(p[i : i + 1], Ap[i : i + 1]) for i in rows):
            raise NegativeCurvatureError(
                "Conjugate gradients need a positive definite operator.",
                f"negative curvature in step {self.iterations + 1}: {type(self.A).__name__} of shape "
                f"{self.A.shape} is indefinite",
                "add damping (A + c * hesse.identity(A.in_space)), or use method='minres' or 'dense' if it is meant so",
            )
        return curvature, is_flat

    def _is_bent(self, p: Tensor, Ap: Tensor) -> bool:
        """Whether a direction of no curvature that is not mapped to nothing shows a negative eigenvalue.

        For a positive semi-definite A, ``|w^H A p|^2 <= (p^H A p) (w^H A w)`` with any w, here with w along ``A p``.

        Cost: a product.
        """
        length, size = torch.linalg.vector_norm(p, dim=-1), torch.linalg.vector_norm(Ap, dim=-1)
        v, w = p / length[:, None], Ap / size[:, None]
        Aw = self.product(w.clone())  # the operator may keep what it is given
        norm = torch.maximum(torch.linalg.vector_norm(Aw, dim=-1), torch.full_like(size, self.norm)).double()
        noise = self.flat * norm
        along_v = (inner(v, Ap) / length).double().clamp_min(0) + noise
        along_w = inner(w, Aw).double().clamp_min(0) + noise
        return bool(((size / length).double().square() > along_v * along_w).any())

    def _note(self, alpha: float, beta: float, is_over: bool) -> None:
        if alpha > 0:
            self.steps.append((alpha, beta))
        if is_over:
            self.watched = -1


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
    if not all(map(math.isfinite, diagonal + off)):
        return math.inf
    values = eigvalsh_tridiagonal(diagonal, off)
    return float(values[-1] / values[0]) if values[0] > 0 else float("inf")
