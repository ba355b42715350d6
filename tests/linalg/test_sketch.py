"""Sketches: their factors, what leaving probes out does, and the error bar of leave-one-out means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.linalg.sketch import LeaveOneOut, Sketch, capacity, combine, explained, has_one_dtype, require_one_dtype

from .counted import Counted, random_matrix


def grown(M: Tensor, *counts: int, adjoint: bool = False) -> tuple[Sketch, Counted]:
    A = Counted(M)
    sketch = Sketch(A, adjoint=adjoint)
    for seed, count in enumerate(counts):
        probes = random_matrix(count, M.shape[1], dtype=M.dtype, seed=10 + seed)
        sketch.grow(probes, probes @ M.mT)
        sketch.complete(3)
    return sketch, A


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("adjoint", [False, True])
def test_growing_keeps_factors_and_never_multiplies_twice(dtype: torch.dtype, adjoint: bool) -> None:
    M = random_matrix(31, 31 if not adjoint else 23, dtype=dtype)
    sketch, A = grown(M, 5, 1, 4, adjoint=adjoint)
    Q = sketch.basis.mT
    torch.testing.assert_close(Q.mH @ Q, torch.eye(10, dtype=dtype), rtol=0, atol=1e-13)
    torch.testing.assert_close(Q @ sketch.triangle, M @ sketch.probes.mT, rtol=0, atol=1e-12)
    assert torch.equal(sketch.triangle, sketch.triangle.triu())
    torch.testing.assert_close(sketch.images.mT, (M.mH if adjoint else M) @ Q, rtol=0, atol=1e-12)
    assert sketch.rank == sketch.size == 10 == sum(A.blocks) and max(A.blocks) <= 3 and not sketch.captured


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_low_rank_is_noticed(scale: float) -> None:
    M = scale * random_matrix(40, 6) @ random_matrix(6, 40, seed=1)
    sketch, A = grown(M, 4, 5)
    assert sketch.captured and sketch.rank == 6 == sum(A.blocks)
    Q = sketch.basis[:6].mT
    torch.testing.assert_close(Q @ (Q.mT @ M), M, rtol=0, atol=1e-12 * scale * 100)
    torch.testing.assert_close(sketch.basis @ sketch.basis.mT, torch.eye(9, dtype=M.dtype), rtol=0, atol=1e-13)
    zero, A = grown(torch.zeros(40, 40, dtype=torch.float64), 4)
    assert zero.captured and zero.rank == 0 and not A.blocks


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_leaving_out_is_the_basis_of_the_others(dtype: torch.dtype) -> None:
    sketch, _ = grown(random_matrix(20, 20, dtype=dtype), 6)
    out, Q, m = LeaveOneOut(sketch.triangle), sketch.basis.mT, 6
    H = random_matrix(m, m, dtype=dtype, seed=5)
    single, pair = out.losses(H)
    for i in range(m):
        for j in range(m):
            kept = [k for k in range(m) if k not in (i, j)]
            other = torch.linalg.qr(sketch.products[kept].mT).Q
            inside = Q.mH @ other
            lost = H.trace() - (inside.mH @ H @ inside).trace()
            torch.testing.assert_close(single[i] if i == j else pair[i, j], lost, rtol=0, atol=1e-11)
        kept = [k for k in range(m) if k != i]
        other = torch.linalg.qr(sketch.products[kept].mT).Q
        rest = sketch.products[i] - other @ (other.mH @ sketch.products[i])
        assert float(out.left[i].abs()) == pytest.approx(float(rest.norm()), rel=1e-11)


def test_explained_is_the_share_of_a_flat_rank() -> None:
    U = torch.linalg.qr(random_matrix(600, 100)).Q
    sketch, _ = grown(U @ U.mT, 40)
    assert explained(sketch) == pytest.approx(0.39, abs=0.03)


def test_combine_is_between_leave_one_out_and_jackknife() -> None:
    x = random_matrix(12, 2)
    means = (x.sum(0) - x) / 11  # of a plain mean both errors are the usual one
    value, error = combine(x, means)
    torch.testing.assert_close(value, x.mean(0))
    torch.testing.assert_close(error, x.std(0) / 12**0.5)
    torch.testing.assert_close(combine(x, 4 * means)[1], 2 * error)


def test_capacity_and_dtypes() -> None:
    A = Counted(random_matrix(300, 200))
    assert capacity(A, "1GiB") == 100 and capacity(A, 2 * 8 * 300 * 8 * 7) == 7
    half = Counted(random_matrix(300, 300, dtype=torch.bfloat16))
    mixed_space = Space.of([torch.zeros(2), torch.zeros(3, dtype=torch.complex64)])
    mixed = Counted(random_matrix(5, 5, dtype=torch.complex64), mixed_space, mixed_space)
    for B in (half, mixed):
        assert capacity(B, "1GiB") == 0 and not has_one_dtype(B)
        with pytest.raises(StructureError, match="one dtype"):
            require_one_dtype(B, "this")
    require_one_dtype(A, "this")
