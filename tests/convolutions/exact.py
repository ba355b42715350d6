"""Least-squares solutions of minimum norm to more digits than float64 has, and what singular values say of a cut-off.

The singular subspace of what is kept is refined by one step of subspace iteration in NumPy's long double (80 bits on x86),
the solution in it by refinement of the augmented system (Björck 1967). Shares nothing with hesse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

EPS = 2.0**-52
LONG = np.finfo(np.longdouble).eps < 1e-18


@dataclass(frozen=True)
class Spectrum:
    """Of a matrix and a relative cut-off: what is kept.

    Attributes:
        values: all singular values, falling.
        rank: how many are above the cut-off.
        condition: the largest over the smallest kept; 1 for none.
        gap: the smallest kept over the largest dropped; infinite where one of them does not exist.
        clear: whether what is kept is plain: a gap of 3 at least, and no value so near to the cut-off that rounding errors
            of another algorithm may carry it over.
    """

    values: Tensor
    rank: int
    condition: float
    gap: float
    clear: bool


def spectrum(M: Tensor, rtol: float | None) -> Spectrum:
    """Of a matrix, with `torch.linalg.pinv`'s meaning of `rtol`."""
    values = torch.linalg.svdvals(M)
    top = float(values[0])
    noise = 20 * EPS * max(M.shape)
    rtol = max(M.shape) * EPS if rtol is None else rtol
    rank = int((values > rtol * top).sum())
    kept = float(values[rank - 1]) if rank else 0.0
    dropped = float(values[rank]) if rank < len(values) else 0.0
    condition = top / kept if rank else 1.0
    gap = kept / dropped if rank and dropped else float("inf")
    near = (values > (rtol - noise if rtol > noise else rtol / 5) * top) & (values < (rtol + noise) * top)
    return Spectrum(values, rank, condition, gap, not bool(near.any()) and gap > 3)


def pseudo_solution(M: Tensor, y: Tensor, rank: int) -> Tensor:
    """``A⁺ y`` of the best approximation A of M by a matrix of that rank, rounded to float64 at the end.

    Right to `condition` times 1e-19 or so where there is a gap; for a condition up to about 1e9.

    Args:
        M: ``[m, n]``, real or complex.
        y: ``[m]``.
        rank: of what is kept.
    """
    if rank == 0:
        return M.new_zeros(M.shape[1])
    scale = 2.0 ** math.frexp(float(M.abs().max()))[1]  # dividing by it rounds nothing
    wide = np.clongdouble if M.is_complex() else np.longdouble
    A, b = (M / scale).numpy().astype(wide), y.numpy().astype(wide)
    left, values, right = np.linalg.svd((M / scale).numpy(), full_matrices=False)
    rows: np.ndarray | None = None
    basis = A
    if rank < M.shape[1]:
        outer = A @ right[:rank].conj().T.astype(wide) / values[:rank]
        rows = A.conj().T @ outer / values[:rank]  # columns span the row space of what is kept
        basis = A @ rows
        left, values, right = np.linalg.svd(basis.astype(left.dtype), full_matrices=False)
    x = np.zeros(rank, dtype=wide)
    residual = np.zeros_like(b)
    for _ in range(12):  # of the augmented system [I B; B^H 0] [r; x] = [b; 0]
        first, second = b - residual - basis @ x, -(basis.conj().T @ residual)
        inner = left.conj().T @ first.astype(left.dtype)
        lifted = (right @ second.astype(left.dtype)) / values
        step = right.conj().T @ ((inner - lifted) / values)
        x = x + step
        residual = residual + first - left @ (inner - lifted)
        if np.linalg.norm(step.astype(left.dtype)) <= 1e-18 * np.linalg.norm(x.astype(left.dtype)):
            break
    solution = x if rows is None else rows @ x
    return torch.from_numpy((solution / scale).astype(left.dtype))
