"""Determinants of convolutions against that of the matrix: signs, derivatives, transforms, tiny ones, masked kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hesse
from hesse.convolutions.determinant import inverse_is_below, log_determinant, plain_values, triangular
from hesse.convolutions.factory import convolution
from hesse.core.errors import MemoryBudgetError
from tests.convolutions.test_augmented import matrix_of
from tests.convolutions.test_square import CASES, COMPLEX, REAL, drawn


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("name", CASES)
def test_the_determinant_has_its_sign(name: str, dtype: torch.dtype) -> None:
    A = drawn(name, dtype)
    found = log_determinant(A)
    assert found is not None
    M = matrix_of(A)
    known = torch.linalg.slogdet(M)
    allowed = 1e-13 * float(torch.linalg.cond(M)) + 1e-11  # a relative change of M by eps moves the logarithm by this
    assert allowed < 1e-3
    assert found[0].dtype == (dtype if dtype.is_complex else REAL)
    assert abs(complex(found[0]) - complex(known.sign)) < allowed
    assert abs(float(found[1] - known.logabsdet)) < allowed


def test_the_determinant_can_be_differentiated_twice() -> None:
    shape, _, options = CASES["2-D"]
    weight = torch.randn(2, 2, *shape[2:], dtype=REAL, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def value(w: torch.Tensor) -> torch.Tensor:
        found = log_determinant(convolution(w, (2, 4, 3), **options))
        assert found is not None
        return found[1]

    assert torch.autograd.gradcheck(value, (weight,))
    assert torch.autograd.gradgradcheck(value, (weight,))


def dense_logabs(weight: Tensor, size: tuple[int, ...]) -> Tensor:
    """From PyTorch's own convolution of unit images."""
    eye = torch.eye(size[0] * size[1] * size[2], dtype=weight.dtype).reshape(-1, *size)
    return torch.linalg.slogdet(torch.nn.functional.conv2d(eye, weight, padding=1).flatten(1).mT).logabsdet


def test_transforms_of_functions() -> None:
    """Beyond the size of dense matrices: mapped over weights, Hessians by two transforms, gradients that are mapped."""
    size = (2, 13, 12)
    weights = torch.randn(3, 2, 2, 3, 3, dtype=REAL, generator=torch.Generator().manual_seed(4))

    def value(w: Tensor) -> Tensor:
        return hesse.slogdet(convolution(w, size, padding=1)).logabs

    known = torch.stack([dense_logabs(w, size) for w in weights])
    assert torch.allclose(torch.func.vmap(value)(weights), known, rtol=1e-11)
    mapped = torch.func.vmap(torch.func.grad(value))(weights)
    for w, found in zip(weights, mapped, strict=True):
        leaf = w.clone().requires_grad_()
        (exact,) = torch.autograd.grad(dense_logabs(leaf, size), leaf)
        assert torch.allclose(found, exact, rtol=1e-8, atol=1e-9)
    few = 0.15 * torch.randn(1, 1, 3, 3, dtype=REAL, generator=torch.Generator().manual_seed(5))
    few[..., 1, 1] += 1

    def single(w: Tensor) -> Tensor:
        return hesse.slogdet(convolution(w, (1, 20, 21), padding=1)).logabs

    exact = torch.autograd.functional.hessian(lambda w: dense_logabs(w, (1, 20, 21)), few)
    assert torch.allclose(torch.func.hessian(single)(few), exact, rtol=1e-6, atol=1e-6)


def test_determinants_that_are_tiny_beside_that_of_the_torus() -> None:
    """A kernel that winds: the boundary's determinant is below rounding, and the answer must not be made of it."""
    taps = torch.tensor([[[0.02, 0.5, 1.0]]], dtype=REAL)
    A = convolution(taps, (1, 701), padding=1)
    assert log_determinant(A) is None
    leaf = taps.clone().requires_grad_()
    found = hesse.slogdet(convolution(leaf, (1, 701), padding=1))
    known = torch.linalg.slogdet(matrix_of(A))
    assert float(found.sign.detach()) == float(known.sign)
    assert float(found.logabs.detach()) == pytest.approx(float(known.logabsdet), rel=1e-12)
    inverse = torch.linalg.inv(matrix_of(A))
    (gradient,) = torch.autograd.grad(found.logabs, leaf)
    exact = [float(inverse.diagonal(side).sum()) for side in (1, 0, -1)]
    assert torch.allclose(gradient.flatten(), torch.tensor(exact, dtype=REAL), rtol=1e-8)


MASKED = {
    "after": ((1, 1, 3), (1, 701), {"padding": 1}, lambda w: w * torch.tensor([0.0, 1.0, 1.0])),
    "before": ((4, 2, 3), (4, 301), {"padding": 1, "groups": 2}, lambda w: w * torch.tensor([1.0, 1.0, 0.0])),
    "in two dimensions": (
        (2, 2, 3, 3),
        (2, 14, 13),
        {"padding": 1},
        lambda w: w * torch.tensor([[0.1, 0.1, 0.1], [0.1, 1.0, 0.0], [0.0, 0.0, 0.0]]),
    ),
    "no middle": ((1, 1, 3), (1, 401), {"padding": 1}, lambda w: w * torch.tensor([0.0, 0.0, 1.0])),
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_kernels(name: str) -> None:
    shape, size, options, mask = MASKED[name]
    weight = mask(torch.randn(shape, dtype=REAL, generator=torch.Generator().manual_seed(6)))
    A = convolution(weight, size, **options)
    found = triangular(A)
    assert found is not None
    known = torch.linalg.slogdet(matrix_of(A))
    assert float(found[0]) == float(known.sign)
    assert float(found[1]) == pytest.approx(float(known.logabsdet), rel=1e-12)
    assert float(hesse.slogdet(A).logabs) == float(found[1])


def test_the_budget_holds() -> None:
    A = convolution(torch.randn(2, 2, 3, 3, dtype=REAL), (2, 20, 21), padding=1)
    with hesse.memory("1KB"), pytest.raises(MemoryBudgetError, match="84 unknowns"):
        hesse.slogdet(A)


def test_what_is_not_triangular() -> None:
    weight = torch.randn(1, 1, 3, dtype=REAL)
    assert triangular(convolution(weight, (1, 9), padding=1)) is None
    one_side = weight * torch.tensor([0.0, 1.0, 1.0])
    assert triangular(convolution(one_side.requires_grad_(), (1, 9), padding=1)) is None  # zero taps have derivatives
    reflected = convolution(one_side.detach(), (1, 9), padding=1, padding_mode="reflect")
    assert triangular(reflected) is None


def test_large_inverses_are_seen() -> None:
    S = torch.diag(torch.logspace(0, -9, 10, dtype=REAL))[None]
    assert inverse_is_below(S, 1e10)
    assert not inverse_is_below(S, 1e8)
    assert not inverse_is_below(0 * S, 1e8)
    assert not inverse_is_below(S * torch.nan, 1e8)
    assert inverse_is_below(S[:, :0, :0], 1.0)


def test_values_behind_transforms() -> None:
    seen: list[Tensor] = []

    def look(w: Tensor) -> Tensor:
        seen.append(plain_values(w))
        return w.sum()

    weights = torch.arange(24, dtype=REAL).reshape(2, 3, 4)
    torch.func.vmap(torch.func.grad(look), in_dims=1)(weights)
    assert torch.equal(seen[0], weights.movedim(1, 0))
    look(weights)
    assert torch.equal(seen[1], weights[None])
