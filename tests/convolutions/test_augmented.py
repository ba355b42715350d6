"""The augmented system on the torus against the dense one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hesse.convolutions.augmented import AugmentedSystem
from hesse.convolutions.operator import Convolution
from tests.convolutions.configurations import configuration


def matrix_of(A: Convolution) -> torch.Tensor:
    """From products with unit images, which `test_operator` compares with PyTorch's own."""
    eye = torch.eye(A.shape[1], dtype=A.weight.dtype).reshape(-1, *A.geometry.in_shape)
    return (A @ eye).flatten(1).mT


def unit(number: int) -> Convolution:
    """A drawn convolution, scaled to norm 1 (or left zero)."""
    A = configuration(number).operator()
    size = float(torch.linalg.matrix_norm(matrix_of(A), 2))
    return Convolution(A.weight / size, A.geometry) if size else A


def test_the_system_is_that_of_the_matrix(sweep: Callable[[range, int], list[int]]) -> None:
    for number in sweep(range(1000), 30):
        A, d = unit(number), 0.1
        g = A.geometry
        system = AugmentedSystem(A, d)
        assert system.size == AugmentedSystem.boundary(A)
        M = matrix_of(A)
        m, n = M.shape
        eye = torch.eye(m + n, dtype=M.dtype)
        K = torch.cat([torch.cat([eye[:m, :m], M], 1), torch.cat([M.mH, -(d**2) * eye[:n, :n]], 1)], 0)
        generator = torch.Generator().manual_seed(number)
        f, h = A.out_space.normal(2, generator=generator), A.in_space.normal(2, generator=generator)
        known = torch.linalg.solve(K, torch.cat([f.flatten(1), h.flatten(1)], 1).mT).mT
        r, x = system.solve(f, h)
        found = torch.cat([r.flatten(1), x.flatten(1)], 1)
        assert r.shape == (2, *g.out_shape)
        assert x.shape == (2, *g.in_shape)
        assert float(torch.linalg.vector_norm(found - known)) <= 1e-11 * float(torch.linalg.vector_norm(known)), number


@pytest.mark.parametrize("number", [3, 8, 21, 40])
def test_a_wrong_system_is_seen(number: int) -> None:
    """The comparison can fail: factors of another regularization give another answer."""
    A = unit(number)
    f, h = A.out_space.normal(1), A.in_space.normal(1)
    first, second = (AugmentedSystem(A, d).solve(f, h)[1] for d in (0.1, 0.1001))
    assert float(torch.linalg.vector_norm(first - second)) > 1e-9 * float(torch.linalg.vector_norm(first))
