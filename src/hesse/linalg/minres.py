"""MINRES: Hermitian systems, indefinite ones too, for a block of right-hand sides at once."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from hesse.core.progress import track
from hesse.linalg.answer import Answer
from hesse.linalg.rows import Rows
from hesse.linalg.symmetry import inner
from hesse.operators import LinearOperator

_MOST_STEPS = 1000  # of those that the condition number is read from


def minimal_residual(
    A: LinearOperator, B: Tensor, rtol: float, max_iterations: int, preconditioner: LinearOperator | None
) -> Answer:
    """Solve ``A x = b`` for the rows b of ``B`` by the smallest residuals over Krylov spaces (Paige and Saunders 1975).

    Each right-hand side has a recursion of its own; those that are done drop out of the products. When the recursion says
    that one has converged, its residual is computed afresh, and it starts again from there if the recursion was wrong.

    Args:
        A: a Hermitian operator, definite or not.
        B: ``[k, dim]`` in the working dtype.
        rtol: tolerance of ``|b - A x| / |b|``.
        max_iterations: steps allowed.
        preconditioner: an approximation of the inverse of A, or of its absolute value; Hermitian positive definite.

    Raises:
        SymmetryError: A does not equal its adjoint, or the preconditioner is not positive definite.

    Cost: a product a step; one more in the first block, which checks the symmetry of A, and one at the end.
    """
    state = _State(A, B, rtol, preconditioner)
    for _ in track(range(max_iterations), "MINRES", max_iterations):
        if not len(state.active):
            break
        state.step()
    return Answer(state.solution(), _condition(state.steps), state.iterations, state.trouble)


@dataclass
class _Lanczos:
    """The recursion of each active row: vectors ``[k, dim]``, then numbers ``[k]``."""

    older: Tensor  # Lanczos vectors, not normalized: the one before
    newer: Tensor  # and the present one,
    image: Tensor  # preconditioned
    w_older: Tensor  # directions in which x moves
    w_newer: Tensor
    beta_older: Tensor
    beta: Tensor
    d_bar: Tensor  # what the rotations so far have made of the tridiagonal matrix
    epsilon: Tensor
    cosine: Tensor
    sine: Tensor
    phi_bar: Tensor  # norm of the residual, in that of the preconditioner

    def keep(self, rows: Tensor) -> _Lanczos:
        return _Lanczos(*(getattr(self, field.name)[rows] for field in fields(self)))

    def put(self, rows: Tensor, other: _Lanczos) -> None:
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(other, field.name)


class _State(Rows):
    def __init__(self, A: LinearOperator, b: Tensor, rtol: float, preconditioner: LinearOperator | None) -> None:
        super().__init__(A, b, rtol, preconditioner, "MINRES")
        self.recursion = self._start(self.r)
        self.steps: list[tuple[float, float]] = []  # (alpha, beta) of the first active row, until it restarts or ends
        self.watched = int(self.active[0]) if len(self.active) else -1

    def _start(self, r: Tensor) -> _Lanczos:
        newer = r.clone()
        image = self.precondition(newer)
        beta = self.positive(newer, image).sqrt()
        zero, one = torch.zeros_like(beta), torch.ones_like(beta)
        none = (torch.zeros_like(r) for _ in range(3))
        older, w_older, w_newer = none
        return _Lanczos(
            older, newer, image, w_older, w_newer, one, beta, zero, zero.clone(), -one, zero.clone(), beta.clone()
        )

    def step(self) -> None:
        """One step of every row that is not done."""
        on, s = self.active, self.recursion
        v = _over(s.image, s.beta)
        q = self.product(v).to(v.dtype)
        q.addcmul_((s.beta / s.beta_older)[:, None], s.older, value=-1)
        alpha = inner(v, q)
        q.addcmul_(_ratio(alpha, s.beta)[:, None], s.newer, value=-1)
        s.older, s.newer = s.newer, q
        s.image = self.precondition(q)
        beta = self.positive(q, s.image).sqrt()
        delta = s.cosine * s.d_bar + s.sine * alpha
        g_bar = s.sine * s.d_bar - s.cosine * alpha
        d_bar = -s.cosine * beta
        gamma = torch.hypot(g_bar, beta)
        self.norm = max(self.norm, float(torch.hypot(torch.hypot(alpha, beta), s.beta * (s.beta_older != 1)).max()))
        cosine, sine = _ratio(g_bar, gamma), torch.where(gamma > 0, beta / gamma, torch.ones_like(gamma))
        is_flat = self._is_flat(gamma, torch.hypot(g_bar, d_bar))
        phi = torch.where(is_flat, torch.zeros_like(gamma), cosine * s.phi_bar)
        # the operator may keep the v that it was given
        w = v.addcmul(s.epsilon[:, None], s.w_older, value=-1).addcmul_(delta[:, None], s.w_newer, value=-1)
        w.mul_(_ratio(torch.ones_like(gamma), gamma)[:, None])
        s.w_older, s.w_newer = s.w_newer, w
        self.x.addcmul_(phi[:, None], w)
        # the residual in the 2-norm: r = sine^2 r - phi_bar cosine v_next
        moved = torch.where(is_flat, torch.zeros_like(gamma), _ratio(sine * s.phi_bar * cosine, beta))
        self.r.mul_(torch.where(is_flat, torch.ones_like(sine), sine**2)[:, None]).addcmul_(moved[:, None], q, value=-1)
        self.iterations += 1
        s.beta_older, s.beta, s.d_bar, s.epsilon = s.beta, beta, d_bar, s.sine * beta
        s.cosine, s.sine, s.phi_bar = cosine, sine, sine * s.phi_bar
        self.remember()
        stay, fresh = self.settle(is_flat)
        self._note(on, alpha, beta, fresh)
        self._go_on(stay, fresh)

    def _is_flat(self, gamma: Tensor, root: Tensor) -> Tensor:
        """Where ``|A r| = root |r|`` (before this step) is so small that no x reduces r by more than rounding errors of A x.

        That x would be longer than ``|r| / root``; the errors, of size ``eps |A| |x|``, may not exceed the tolerance.
        """
        missed = torch.linalg.vector_norm(self.r, dim=-1)
        return (gamma <= self.flat * self.norm) | (
            root <= self.norm * torch.clamp(self.flat * missed / self.rtol, self.flat, self.flat**0.5)
        )

    def _go_on(self, stay: Tensor, fresh: Tensor) -> None:
        if not bool(stay.all()):
            self.recursion = self.recursion.keep(stay)
        again = fresh[stay]
        if bool(again.any()):
            self.recursion.put(again, self._start(self.r[again]))

    def _note(self, on: Tensor, alpha: Tensor, beta: Tensor, fresh: Tensor) -> None:
        if self.watched < 0 or int(on[0]) != self.watched or len(self.steps) == _MOST_STEPS:
            return
        self.steps.append((float(alpha[0]), float(beta[0])))
        if bool(fresh[0]):
            self.watched = -1


def _condition(steps: list[tuple[float, float]]) -> float | None:
    """The (preconditioned) condition number that the steps of the first right-hand side show, from below.

    That of the tridiagonal matrix T with a row more than columns, from the eigenvalues of ``T^T T``, which has five diagonals.
    """
    from scipy.linalg import eig_banded

    if not steps:
        return None
    if not np.isfinite(steps).all():
        return float("inf")
    alpha, after = (np.array(column) for column in zip(*steps, strict=True))
    before = np.concatenate([[0.0], after[:-1]])
    bands = np.zeros((3, len(steps)))
    bands[0] = before**2 + alpha**2 + after**2
    bands[1, :-1] = after[:-1] * (alpha[:-1] + alpha[1:])
    bands[2, :-2] = after[:-2] * after[1:-1]
    squares = eig_banded(bands, lower=True, eigvals_only=True)
    return float((squares[-1] / squares[0]) ** 0.5) if squares[0] > 0 else float("inf")


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b, torch.zeros_like(a))


def _over(rows: Tensor, numbers: Tensor) -> Tensor:
    return rows * _ratio(torch.ones_like(numbers), numbers)[:, None]
