"""scipy's solvers on ``A.to_scipy()`` agree with hesse's on A."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch

from hesse.linalg import eigsh, solve
from hesse.linalg.svd import svd

from .counted import HERMITIAN, Counted, random_matrix, tree_space, with_spectrum

DTYPES = [torch.float64, torch.complex128]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("which", "theirs"), [("largest", "LA"), ("smallest", "SA"), ("magnitude", "LM")])
def test_eigsh(dtype: torch.dtype, which: str, theirs: str) -> None:
    values = torch.cat([torch.tensor([-3.0, -2.5]), torch.linspace(-1, 1, 293), torch.tensor([2, 2.2, 4, 5, 6.0])]).double()
    A = Counted(with_spectrum(values, dtype), tree_space(300, dtype), tree_space(300, dtype), HERMITIAN)
    found = eigsh(A, 3, which=which, rtol=1e-10)
    if theirs == "SA" and dtype.is_complex:
        expected = -sla.eigsh((-1 * A).to_scipy(), 3, which="LA", return_eigenvectors=False)
    else:
        expected = sla.eigsh(A.to_scipy(), 3, which=theirs, return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(found.values.numpy()), np.sort(expected), rtol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_svds(dtype: torch.dtype) -> None:
    M = random_matrix(310, 270, dtype=dtype) * torch.logspace(0, -3, 270, dtype=torch.float64)
    A = Counted(M, tree_space(270, dtype), tree_space(310, dtype))
    expected = np.sort(sla.svds(A.to_scipy(), 4, return_singular_vectors=False, random_state=0))[::-1]
    np.testing.assert_allclose(svd(A, 4, rtol=1e-9).values.numpy(), expected, rtol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lsmr(dtype: torch.dtype) -> None:
    space = tree_space(80, dtype)
    A = Counted(with_spectrum(torch.linspace(1, 5, 80), dtype), space, space, HERMITIAN)
    b = random_matrix(80, dtype=dtype, seed=4)
    expected = sla.lsmr(A.to_scipy(), b.numpy(), atol=1e-13, btol=1e-13)[0]
    found = space.ravel(solve(A, space.unravel(b), rtol=1e-12))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-10)
