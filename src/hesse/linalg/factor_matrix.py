"""Factorizations of a matrix: Cholesky, LU with partial pivoting, singular values."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from hesse.core.memory import Budget, given_budget, too_small
from hesse.linalg.answer import Answer, filter_factors
from hesse.linalg.factor import Factorization, factor_rule
from hesse.linalg.options import is_hermitian
from hesse.linalg.pinv_matrix import require_finite
from hesse.linalg.products import row_norms, work_dtype
from hesse.operators import Dense, LinearOperator, Tag
from hesse.operators.storage import storable

_BY_SVD = 8  # times the matrix, while its singular vectors are computed


class _Regular(Factorization):
    """Of a square matrix that is not singular: what LU and Cholesky factors share.

    Args:
        operator: with the matrix.
        method: the name of the way.
        condition: an estimate of the condition number in the 1-norm.
    """

    def __init__(self, operator: LinearOperator, method: str, condition: float) -> None:
        super().__init__(operator, method)
        self._condition = condition

    @property
    def condition(self) -> float:
        """In the 1-norm, estimated from below (Hager 1984; Higham 1988)."""
        return self._condition

    @cached_property
    def inverse_norm(self) -> float:
        """The Frobenius norm of the inverse, which bounds errors.

        Cost: as much as twice the factors, once.
        """
        eye = torch.eye(self.shape[0], dtype=work_dtype(self.in_space.dtype), device=self.in_space.device)
        return float(row_norms(self.columns(eye, False).reshape(1, -1)))

    def answer(self, B: Tensor, *, adjoint: bool = False) -> Answer:
        """By two triangular systems."""
        value = self.columns(B.mT, adjoint).mT
        return Answer(value, self._condition, truncated=0, inverse_norm=lambda: self.inverse_norm)

    @abstractmethod
    def columns(self, B: Tensor, adjoint: bool) -> Tensor:
        """``A^-1 B``, or with the adjoint of A, for columns ``[dim, k]``."""


class LuFactorization(_Regular):
    """``P A = L U``.

    Args:
        operator: with the matrix.
        LU, pivots: of `torch.linalg.lu_factor`.
        condition: an estimate of the condition number in the 1-norm.
    """

    def __init__(self, operator: LinearOperator, LU: Tensor, pivots: Tensor, condition: float) -> None:
        super().__init__(operator, "lu", condition)
        self.LU, self.pivots = _column_major(LU), pivots

    def columns(self, B: Tensor, adjoint: bool) -> Tensor:
        """By the triangular factors."""
        LU, B = _same(self.LU, B)
        return torch.linalg.lu_solve(LU, self.pivots, B, adjoint=adjoint)

    def log_abs_det(self) -> float:
        """From the pivots."""
        return float(self.LU.diagonal().abs().double().log().sum())


class CholeskyFactorization(_Regular):
    """``A = L L^H``.

    Args:
        operator: with the matrix.
        L: lower triangular.
        condition: an estimate of the condition number in the 1-norm.
    """

    def __init__(self, operator: LinearOperator, L: Tensor, condition: float) -> None:
        super().__init__(operator, "cholesky", condition)
        self.L = _column_major(L)

    def columns(self, B: Tensor, adjoint: bool) -> Tensor:
        """By the triangular factors; A is its own adjoint."""
        L, B = _same(self.L, B)
        return torch.cholesky_solve(B, L)

    def log_abs_det(self) -> float:
        """From the diagonal of L."""
        return 2 * float(self.L.diagonal().real.double().log().sum())


class SvdFactorization(Factorization):
    """``A = U diag(s) V^H`` without the singular values that count as zero: for matrices of any shape and rank.

    Args:
        operator: with the matrix.
        U: ``[out, rank]``.
        values: ``[rank]``, descending.
        V: ``[in, rank]``.
    """

    def __init__(self, operator: LinearOperator, U: Tensor, values: Tensor, V: Tensor) -> None:
        super().__init__(operator, "svd")
        self.U, self.values, self.V = (part.clone(memory_format=torch.contiguous_format) for part in (U, values, V))
        self.truncated = min(self.shape) - len(values)

    @property
    def condition(self) -> float:
        """In the 2-norm, of what was kept."""
        return float(self.values[0] / self.values[-1]) if len(self.values) else 1.0

    def answer(self, B: Tensor, *, adjoint: bool = False) -> Answer:
        """By the singular values that were kept."""
        return self._filtered(B, 0.0, (self.V, self.U) if adjoint else (self.U, self.V))

    def damped(self, B: Tensor, damping: float) -> Answer:
        """By the filtered singular values."""
        return self._filtered(B, damping, (self.U, self.V))

    def _filtered(self, B: Tensor, damping: float, vectors: tuple[Tensor, Tensor]) -> Answer:
        (U, B), V = _same(vectors[0], B), vectors[1]
        weights, condition, norm = filter_factors(self.values, damping, 0)
        value = (B @ U.conj() * weights) @ V.to(U.dtype).mT
        return Answer(value, condition, norm=norm, truncated=self.truncated)

    def log_abs_det(self) -> float:
        """The sum of the logarithms of the singular values."""
        return float(self.values.double().log().sum())


def _column_major(factor: Tensor) -> Tensor:
    """As LAPACK wants it, also after loading: no copy at each solution, and the same bits."""
    return factor.mT.contiguous().mT


def _same(factor: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(factor.dtype, B.dtype)
    return factor.to(dtype), B.to(dtype)


@factor_rule.register(Dense)
def _dense(A: Dense, memory: Budget | None) -> Factorization:
    matrix = A.matrix.detach().to(work_dtype(A.matrix.dtype))
    require_finite(matrix)
    if matrix.shape[0] != matrix.shape[1]:
        return _by_svd(A, matrix)
    found = _by_cholesky(A, matrix) if Tag.PSD in A.tags and is_hermitian(A) else None
    found = _by_lu(A, matrix) if found is None else found
    given = given_budget(memory, matrix.device)
    if found is None and given is not None and _BY_SVD * matrix.nbytes > given:
        raise too_small(given, _BY_SVD * matrix.nbytes, f"the singular values of a singular matrix of shape {A.shape}")
    return _by_svd(A, matrix) if found is None else found


def _by_cholesky(A: Dense, matrix: Tensor) -> Factorization | None:
    L, info = torch.linalg.cholesky_ex((matrix + matrix.mH).div_(2))
    if int(info):
        return None
    condition = one_norm(matrix) * inverse_one_norm(lambda b, _: torch.cholesky_solve(b, L), matrix)
    return CholeskyFactorization(A, L, condition) if condition * torch.finfo(matrix.dtype).eps < 1 else None


def _by_lu(A: Dense, matrix: Tensor) -> Factorization | None:
    LU, pivots, info = torch.linalg.lu_factor_ex(matrix)
    if int(info):
        return None
    inverse = inverse_one_norm(lambda b, adjoint: torch.linalg.lu_solve(LU, pivots, b, adjoint=adjoint), matrix)
    condition = one_norm(matrix) * inverse
    return LuFactorization(A, LU, pivots, condition) if condition * torch.finfo(matrix.dtype).eps < 1 else None


def _by_svd(A: Dense, matrix: Tensor) -> Factorization:
    U, values, Vh = torch.linalg.svd(matrix, full_matrices=False)
    cut = float(values.max()) * max(matrix.shape) * torch.finfo(values.dtype).eps if values.numel() else 0.0
    rank = int((values > cut).sum())
    return SvdFactorization(A, U[:, :rank], values[:rank], Vh.mH[:, :rank].resolve_conj())


def one_norm(matrix: Tensor) -> float:
    """The largest sum of moduli of a column."""
    return float(torch.linalg.matrix_norm(matrix, 1)) if matrix.numel() else 1.0


def inverse_one_norm(solve: Callable[[Tensor, bool], Tensor], matrix: Tensor) -> float:
    """The 1-norm of the inverse, estimated from below by a few solutions (Hager 1984, with the last vector of Higham 1988).

    Args:
        solve: ``(columns, adjoint)``: solves with the matrix or its adjoint.
        matrix: for its size and dtype.
    """
    size = len(matrix)
    if not size:
        return 1.0
    x, best = torch.full((size, 1), 1 / size, dtype=matrix.dtype, device=matrix.device), 0.0
    for _ in range(5):
        y = solve(x, False)
        reached = float(y.abs().sum())
        if not reached > best:
            break
        best = reached
        z = solve(torch.where(y == 0, torch.ones_like(y), y / y.abs()), True)
        place = int(z.abs().argmax())
        if float(z.abs()[place]) <= float((z.mH @ x).abs()):
            break
        x = torch.zeros_like(x)
        x[place] = 1
    k = torch.arange(size, dtype=torch.float64, device=matrix.device)
    turns = (1 - 2 * (k % 2)) * (1 + k / max(size - 1, 1))
    last = float(solve(turns[:, None].to(matrix.dtype), False).abs().sum())
    found = max(best, 2 * last / (3 * size))
    return found if math.isfinite(found) else math.inf


@storable.register(LuFactorization)
def _lu(A: LuFactorization) -> dict[str, object]:
    return {"operator": A.operator, "LU": A.LU, "pivots": A.pivots, "condition": A.condition}


@storable.register(CholeskyFactorization)
def _cholesky(A: CholeskyFactorization) -> dict[str, object]:
    return {"operator": A.operator, "L": A.L, "condition": A.condition}


@storable.register(SvdFactorization)
def _svd(A: SvdFactorization) -> dict[str, object]:
    return {"operator": A.operator, "U": A.U, "values": A.values, "V": A.V}
