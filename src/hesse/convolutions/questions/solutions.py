"""`solve` and `lstsq` with convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.convolutions.certificate import certified
from hesse.convolutions.inverse import Inverse
from hesse.convolutions.inverse_norm import condition_of, inverse_norm_bound
from hesse.convolutions.operator import Convolution, TransposedConvolution
from hesse.convolutions.questions.inverses import inverse_of
from hesse.linalg import Answer, lstsq_rule, solve_rule
from hesse.linalg.factor import conjugated
from hesse.linalg.lstsq_rules import Inner as LstsqInner
from hesse.linalg.options import rounding
from hesse.linalg.products import apply, row_norms
from hesse.linalg.solution import Sizes, error_bound
from hesse.linalg.solve_rules import Inner as SolveInner
from hesse.operators import LinearOperator

_SINGULAR = "the convolution is singular to working precision"
_ROUNDINGS = 4.0


def answer(inverse: Inverse, B: Tensor, *, adjoint: bool = False, dtype: torch.dtype | None = None) -> Answer:
    """``A⁺ b`` for the rows b of B, with all that is known of it; with `adjoint` ``A⁺ᴴ b``.

    Args:
        inverse: of A.
        B: ``[k, out]``; with `adjoint` ``[k, in]``.
        adjoint: of the adjoint.
        dtype: to which solutions will be rounded; by default that in which A is inverted.
    """
    A = inverse.convolution
    lost = 0.0 if dtype in (None, A.weight.dtype) else torch.finfo(dtype).eps
    shape = A.geometry.in_shape if adjoint else A.geometry.out_shape
    found = certified(inverse, B.reshape(len(B), *shape).to(A.weight.dtype), adjoint=adjoint)
    X = found.value.reshape(len(B), A.shape[0] if adjoint else A.shape[1])
    return Answer(
        X,
        lambda: condition_of(inverse),
        found.iterations,
        found.trouble,
        norm=inverse.norm(),
        truncated=None if inverse.method == "krylov" else inverse.truncated,
        method=inverse.method,
        inverse_norm=lambda: inverse_norm_bound(inverse),
        forward_error=lambda: _forward_error(inverse, B, X, adjoint) + lost,
    )


def _forward_error(inverse: Inverse, B: Tensor, X: Tensor, adjoint: bool) -> float:
    """The bound of `error_bound`; the distance from the range of the adjoint is taken by the same inverse."""
    A = inverse.convolution
    M: LinearOperator = A.H if adjoint else A
    norm = inverse.norm()
    away = torch.zeros(len(X), dtype=torch.float64, device=X.device)
    if len(X) and (inverse.truncated or inverse.method == "krylov" or M.shape[1] > M.shape[0]):
        shape = A.geometry.out_shape if adjoint else A.geometry.in_shape
        lengths = row_norms(X)
        unit = X / torch.where(lengths > 0, lengths, 1)[:, None]  # A⁺ᴴ A⁺ of tiny or huge images would under- or overflow
        W = inverse.apply(unit.reshape(len(X), *shape), adjoint=not adjoint).value.flatten(1)
        unsure = _ROUNDINGS * rounding(A) * (1 + norm * row_norms(W))
        away = (lengths * (row_norms(unit - apply(M.H, W)) + unsure)).double()
    return error_bound(M, B.to(X.dtype), X, Sizes(norm, inverse_norm_bound(inverse), away))


def _solved(A: Convolution, B: Tensor, adjoint: bool) -> Answer:
    inverse = inverse_of(A)
    found = answer(inverse, B, adjoint=adjoint, dtype=A.weight.dtype)
    if not inverse.truncated:
        return found
    return Answer(found.value, float("inf"), found.iterations, _SINGULAR, truncated=inverse.truncated, method=inverse.method)


@solve_rule.register(Convolution)
def _solve(A: Convolution, B: Tensor, inner: SolveInner) -> Answer:
    return _solved(A, B, False)


@solve_rule.register(TransposedConvolution)
def _solve_transposed(A: TransposedConvolution, B: Tensor, inner: SolveInner) -> Answer:
    """By ``A^-T b = conj(A^-H conj(b))``."""
    return conjugated(_solved(A.convolution, B.conj(), True))


@lstsq_rule.register(Convolution)
def _lstsq(A: Convolution, B: Tensor, damping: float, inner: LstsqInner) -> Answer | None:
    """None with damping, which LSMR is good at."""
    return None if damping else answer(inverse_of(A), B, dtype=A.weight.dtype)


@lstsq_rule.register(TransposedConvolution)
def _lstsq_transposed(A: TransposedConvolution, B: Tensor, damping: float, inner: LstsqInner) -> Answer | None:
    if damping:
        return None
    of = A.convolution
    return conjugated(answer(inverse_of(of), B.conj(), adjoint=True, dtype=of.weight.dtype))
