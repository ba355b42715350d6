"""LSMR: least squares with a rectangular operator, for a block of right-hand sides at once."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.progress import track
from hesse.linalg.answer import Answer
from hesse.linalg.exponents import near_one, times
from hesse.linalg.options import rounding
from hesse.linalg.products import apply, row_norms, work_dtype
from hesse.linalg.symmetry import inner, tolerance
from hesse.operators import LinearOperator


def lsmr(
    A: LinearOperator, B: Tensor, rtol: float, max_iterations: int, *, damping: float = 0.0, consistent: bool = False
) -> Answer:
    """Minimize ``|b - A x|^2 + damping |x|^2`` for the rows b of ``B``, of least norm among equals (Fong and Saunders 2011).

    Damping is taken as further rows ``sqrt(damping)`` times the identity. Each right-hand side has a recursion of its own, and
    drops out when it is done, which fresh products decide; it starts again from there if the recursion was wrong.

    Args:
        A: any operator.
        B: ``[k, out]`` in the working dtype.
        rtol: a row is done once ``|r| <= rtol |b|`` or ``|A^H r| <= rtol |A| |r|``, where r is its residual (with the damping
            rows).
        max_iterations: steps allowed.
        damping: not negative.
        consistent: accept the first of the two only; a row that cannot reach it says so in `trouble`.

    Returns:
        with the largest condition number seen (a lower bound), and a lower bound of the norm of A (with the damping rows).

    Raises:
        StructureError: ``A.H`` is not the adjoint of A.

    Cost: a product with A and one with its adjoint a step, and one of each at the end.
    """
    state = _State(A, B, rtol, damping**0.5, consistent)
    for _ in track(range(max_iterations), "LSMR", max_iterations):
        if not len(state.active):
            break
        state.step()
    return Answer(state.solution(), state.condition, state.iterations, state.trouble, state.norm / state.power)


@dataclass
class _Recursion:
    """The bidiagonalization and the rotations of each active row: vectors, then numbers ``[k]``."""

    u: Tensor  # [k, out], of norm one, as v
    v: Tensor  # [k, in]
    h: Tensor  # directions in which x moves
    h_bar: Tensor
    alpha: Tensor
    alpha_bar: Tensor
    zeta: Tensor
    zeta_bar: Tensor  # its modulus is |A^H r|
    rho: Tensor
    rho_bar: Tensor
    c_bar: Tensor
    s_bar: Tensor
    beta_dot: Tensor  # from here on: for the norm of r (section 5.1 of the paper)
    beta_ddot: Tensor
    rho_dot: Tensor
    tau_tilde: Tensor
    theta_tilde: Tensor
    largest: Tensor  # rho_bar so far; -1 before the first
    smallest: Tensor

    def keep(self, rows: Tensor) -> _Recursion:
        return _Recursion(*(getattr(self, field.name)[rows] for field in fields(self)))

    def put(self, rows: Tensor, other: _Recursion) -> None:
        for field in fields(self):  # not in place: the operator may keep the u and v that it was given
            setattr(self, field.name, getattr(self, field.name).index_put((rows,), getattr(other, field.name)))


class _State:
    """The rows that go on: `active` are their indices, `x` and `recursion` theirs alone, for right-hand sides of norm one."""

    def __init__(self, A: LinearOperator, b: Tensor, rtol: float, root: float, consistent: bool) -> None:
        self.A, self.AH, self.rtol, self.root, self.consistent = A, A.H, rtol, root, consistent
        self.dtype = torch.promote_types(b.dtype, work_dtype(A.in_space.dtype))
        self.flat, self.b, size = 4 * rounding(A), b, row_norms(b)
        self.unit = torch.where(size > 0, size, torch.ones_like(size))[:, None]
        self.active = torch.nonzero(size > 0)[:, 0]
        self.x, self._found = (b.new_zeros(count, A.shape[1], dtype=self.dtype) for count in (len(self.active), len(b)))
        self.last_miss = torch.full((len(b),), torch.inf, dtype=torch.float64, device=b.device)
        self.iterations, self.norm, self.condition, self.trouble = 0, root, 1.0, ""
        self.is_checked = False
        self.power = 0.0  # of two: the iteration is for A times it, and its damping; not known before the first product
        self.recursion = self._start(self._right(self.active))

    def solution(self) -> Tensor:
        """What is found for all rows; to be asked for once."""
        self._found[self.active] = self.x
        return self._found.mul_(self.unit).mul_(self.power)

    def _right(self, rows: Tensor) -> Tensor:
        """Right-hand sides of norm one, with the rows of the damping."""
        r = self.b.new_zeros(len(rows), self.A.shape[0] + (self.A.shape[1] if self.root else 0), dtype=self.dtype)
        r[:, : self.A.shape[0]] = self.b if len(rows) == len(self.b) else self.b[rows]
        return r.div_(self.unit[rows])

    def forward(self, V: Tensor) -> Tensor:
        """``[k, out]``, with the rows of the damping."""
        product = times(apply(self.A, V).to(V.dtype), self.power)
        return torch.cat([product, self.root * V], dim=-1) if self.root else product

    def adjoint(self, U: Tensor) -> Tensor:
        """``[k, in]``."""
        rows = U[:, : self.A.shape[0]].contiguous()
        product = apply(self.AH, rows).to(U.dtype)
        if not self.power:
            self.power = near_one(product, rows)
            self.root, self.norm = self.root * self.power, self.norm * self.power
        product = times(product, self.power)
        return product.add_(U[:, self.A.shape[0] :], alpha=self.root) if self.root else product

    def _start(self, r: Tensor) -> _Recursion:
        u, beta = _unit(r)
        v, alpha = _unit(self.adjoint(u) if len(u) else u.new_zeros(0, self.A.shape[1]))
        self.power = self.power or 1.0
        if len(alpha):
            self.norm = max(self.norm, float(alpha.max()))
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        numbers = (alpha, alpha, zero, alpha * beta, one, one, one, zero, zero, beta, one, zero, zero, -one, one * torch.inf)
        return _Recursion(u, v, v.clone(), torch.zeros_like(v), *(number.clone() for number in numbers))

    def step(self) -> None:
        """One step of every row that is not done."""
        s = self.recursion
        u = self.forward(s.v)
        if not self.is_checked:
            self._check_adjoint(s, u)
        u, beta = _unit(u.addcmul_(s.alpha[:, None], s.u, value=-1))
        s.u = u
        self.norm = max(self.norm, float(torch.hypot(s.alpha, beta).max()))
        v, alpha = _unit(self.adjoint(u).addcmul_(beta[:, None], s.v, value=-1))
        s.v = v
        c, sine, rho = _rotation(s.alpha_bar, beta)
        theta, theta_bar = sine * alpha, s.s_bar * rho
        c_bar, s_bar, rho_bar = _rotation(s.c_bar * rho, theta)
        zeta, zeta_bar = c_bar * s.zeta_bar, -s_bar * s.zeta_bar
        h_bar = s.h_bar.mul_(-_ratio(theta_bar * rho, s.rho * s.rho_bar)[:, None]).add_(s.h)
        self.x.addcmul_(_ratio(zeta, rho * rho_bar)[:, None], h_bar)
        h = s.h.mul_(-_ratio(theta, rho)[:, None]).add_(v)
        beta_hat, beta_ddot = c * s.beta_ddot, -sine * s.beta_ddot
        c_tilde, s_tilde, rho_tilde = _rotation(s.rho_dot, theta_bar)
        theta_tilde, rho_dot = s_tilde * rho_bar, c_tilde * rho_bar
        beta_dot = c_tilde * beta_hat - s_tilde * s.beta_dot
        tau_tilde = _ratio(s.zeta - s.theta_tilde * s.tau_tilde, rho_tilde)
        tau_dot = _ratio(zeta - theta_tilde * tau_tilde, rho_dot)
        residual = torch.hypot(beta_dot - tau_dot, beta_ddot)
        first = s.largest < 0  # rho_bar is then that of the start, which says nothing
        largest = torch.where(first, torch.zeros_like(rho), torch.maximum(s.largest, s.rho_bar))
        smallest = torch.where(first, s.smallest, torch.minimum(s.smallest, s.rho_bar))
        self._note_condition(largest, smallest, s.c_bar * rho)
        self.iterations += 1
        self.recursion = _Recursion(
            u, v, h, h_bar, alpha, c * alpha, zeta, zeta_bar, rho, rho_bar, c_bar, s_bar,
            beta_dot, beta_ddot, rho_dot, tau_tilde, theta_tilde, largest, smallest,
        )  # fmt: skip
        self._settle(residual, zeta_bar.abs())

    def _settle(self, residual: Tensor, normal: Tensor) -> None:
        """Look at the true residuals of the rows that claim to be done, and take out those that are done or stuck."""
        on = self.active
        # where all of b has to be met: no x reduces r by more than the rounding errors of A x
        enough = (
            torch.clamp(self.flat * residual / self.rtol, self.flat, self.flat**0.5) if self.consistent else 0.9 * self.rtol
        )
        is_flat = normal <= enough * self.norm * residual
        claims = (residual <= 0.9 * self.rtol) | is_flat
        if not bool(claims.any()):
            return
        rows = on[claims]
        r = self._right(rows)
        r -= self.forward(self.x[claims])
        missed, gradient = (torch.linalg.vector_norm(t, dim=-1).double() for t in (r, self.adjoint(r)))
        miss = missed / self.rtol
        if not self.consistent:
            scale = self.rtol * self.norm * missed
            miss = torch.minimum(miss, torch.where(scale > 0, gradient / scale, torch.zeros_like(scale)))
        is_done = miss <= 1
        is_singular = ~is_done & is_flat[claims] & self.consistent
        is_stuck = ~is_done & (miss > 0.5 * self.last_miss[rows])
        if bool(is_singular.any()):
            self.trouble = "A is singular or close to it, and b is not in its range"
        elif bool(is_stuck.any()):
            self.trouble = "rounding errors allow no smaller residual in this dtype"
        self.last_miss[rows] = miss
        stay = torch.ones_like(claims)
        stay[claims] = ~(is_done | is_singular | is_stuck)
        self._leave(stay)
        again = claims[stay]
        if bool(again.any()):
            self.recursion.put(again, self._start(r[stay[claims]]))

    def _leave(self, stay: Tensor) -> None:
        """Give up the vectors of the rows that do not stay, and keep what they found."""
        if not bool(stay.all()):
            self._found[self.active[~stay]] = self.x[~stay]
            self.active, self.x, self.recursion = self.active[stay], self.x[stay], self.recursion.keep(stay)

    def _check_adjoint(self, s: _Recursion, Av: Tensor) -> None:
        """By construction ``v = A^H u / alpha``, so that ``<u, A v>`` is alpha."""
        self.is_checked = True
        seen, size = inner(s.u, Av), torch.linalg.vector_norm(Av, dim=-1)
        worst = int(((seen - s.alpha).abs() - tolerance(self.A) * (size + s.alpha)).argmax())
        if float((seen - s.alpha).abs()[worst]) > tolerance(self.A) * float(size[worst] + s.alpha[worst]):
            raise StructureError(
                "LSMR needs an operator and its adjoint.",
                f"{type(self.A).__name__} of shape {self.A.shape}, for which <u, A v> = {float(seen[worst]) / self.power:.6g} "
                f"and <A.H u, v> = {float(s.alpha[worst]) / self.power:.6g}",
                "mend its transpose() (hesse.assert_operator)",
            )

    def _note_condition(self, largest: Tensor, smallest: Tensor, last: Tensor) -> None:
        low = torch.minimum(smallest, last.abs())
        ratio = torch.maximum(largest, last.abs()) / low
        seen = ratio[low > 0]
        if len(seen):
            self.condition = max(self.condition, float(seen.max()))


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The rows, scaled in place to norm one or zero, and their norms."""
    size = torch.linalg.vector_norm(rows, dim=-1)
    return rows.mul_(_ratio(torch.ones_like(size), size)[:, None]), size


def _rotation(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``c, s, r`` with ``c a + s b = r`` and ``c b = s a``."""
    r = torch.hypot(a, b)
    return torch.where(r > 0, a / r, torch.ones_like(r)), _ratio(b, r), r


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b != 0, a / b, torch.zeros_like(a))
