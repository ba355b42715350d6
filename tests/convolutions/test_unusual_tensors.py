"""Weights of 16 bits, and weights and images of every layout, against `torch.linalg.pinv` in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hesse
from hesse.convolutions import ladder
from hesse.convolutions.operator import Convolution
from hesse.convolutions.pseudo_inverse import ConvolutionPseudoInverse
from tests.convolutions.dense_oracle import Case

CASES = (
    Case("dense", (3, 2, 3, 2), (2, 5, 4), {"padding": 1}),
    Case("circular", (3, 2, 3, 3), (2, 5, 4), {"padding": 1, "padding_mode": "circular"}),
    Case("circular wide", (2, 3, 3, 3), (3, 4, 5), {"padding": 1, "padding_mode": "circular"}),
    Case("patches", (5, 2, 2, 1), (2, 4, 3), {"stride": (2, 1)}),
    Case("groups", (4, 1, 3, 3), (2, 5, 4), {"padding": 1, "groups": 2}),
)
SQUARE = (
    Case("boundary", (2, 2, 3, 3), (2, 7, 6), {"padding": 1}),
    Case("circular", (2, 2, 3, 3), (2, 5, 4), {"padding": 1, "padding_mode": "circular"}),
)
HALF = (torch.bfloat16, torch.float16)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.mT.contiguous().mT,
    "strided": lambda t: torch.stack([t, -t], -1).flatten(-2)[..., ::2],
    "offset": lambda t: torch.cat([t.new_ones(1), t.flatten()])[1:].reshape(t.shape),
}


def truth(case: Case, weight: Tensor, Y: Tensor) -> Tensor:
    P = torch.linalg.pinv(case.matrix(weight.double()))
    return (Y.double().flatten(1) @ P.mT).reshape(len(Y), *case.in_shape)


def images(case: Case, count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    shape = case.operator(case.weight()).geometry.out_shape
    return torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sixteen_bits_lose_one_rounding(case: Case, dtype: torch.dtype) -> None:
    """As they are inverted in single precision and rounded at the end; the bound of the error knows."""
    weight = case.weight().to(dtype)
    A, Y, eps = case.operator(weight), images(case, 3, dtype), torch.finfo(dtype).eps
    expected = truth(case, weight, Y)
    for found in (hesse.pinv(A) @ Y, hesse.lstsq(A, Y), hesse.lstsq(A.T.T, Y)):
        assert isinstance(found, Tensor) and found.dtype == dtype
        assert float((found.double() - expected).norm() / expected.norm()) <= eps
    solution = hesse.lstsq(A, Y, full=True)
    error = (solution.value.double() - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert solution.forward_error is not None
    assert float(error.max()) <= solution.forward_error <= 3 * eps
    back = hesse.pinv(A).T @ expected.to(dtype)
    assert back.dtype == dtype and back.shape == Y.shape


@pytest.mark.parametrize("case", SQUARE, ids=str)
def test_sixteen_bits_in_systems_and_derivatives(case: Case) -> None:
    weight = (case.weight() * 0.2).bfloat16()
    weight[range(2), range(2), 1, 1] += 1
    A, Y = case.operator(weight), images(case, 2, torch.bfloat16)
    expected = truth(case, weight, Y)
    found = hesse.solve(A, Y)
    assert found.dtype == torch.bfloat16
    assert float((found.double() - expected).norm() / expected.norm()) <= 2**-8
    variable, wide = weight.clone().requires_grad_(), weight.double().requires_grad_()
    (hesse.pinv(case.operator(variable)) @ Y).float().square().sum().backward()
    (hesse.pinv(case.operator(wide)) @ Y.double()).square().sum().backward()
    assert variable.grad is not None and wide.grad is not None and variable.grad.dtype == torch.bfloat16
    assert float((variable.grad.double() - wide.grad).norm() / wide.grad.norm()) <= 2**-6


@pytest.mark.sampled(10)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["dense", "boundary", "krylov", "circular", "patches", "auto"])
def test_layouts_of_weights_and_images(method: str, layout: str) -> None:
    of: dict[str, Any] = {"circular": SQUARE[1], "patches": CASES[3]}
    case = of.get(method, SQUARE[0])
    weight = case.weight() * 0.2
    weight[range(2), range(2), 0, 0] += 1
    expected, Y = truth(case, weight, images(case, 3)), images(case, 3)
    unusual, batch = LAYOUTS[layout](weight), LAYOUTS[layout](Y)
    assert torch.equal(unusual, weight) and torch.equal(batch, Y)
    inverse = ladder.inverse(case.operator(unusual), method=method)
    torch.testing.assert_close(inverse.apply(batch).value, expected, rtol=1e-9, atol=1e-9)
    found = ConvolutionPseudoInverse(case.operator(unusual), method=method) @ batch
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(batch, Y) and torch.equal(unusual, weight)


@pytest.mark.parametrize("case", [*CASES, SQUARE[0]], ids=str)
def test_expanded_and_empty_batches(case: Case) -> None:
    weight = case.weight()
    A: Convolution = case.operator(weight)
    P, y = hesse.pinv(A), images(case, 1)
    expected = truth(case, weight, y)[0]
    many = y.expand(2, 3, *y.shape[1:])
    for found in (P @ many, hesse.lstsq(A, many)):
        assert isinstance(found, Tensor) and found.shape == (2, 3, *case.in_shape)
        torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-8, atol=1e-8)
    x = expected.expand(4, *case.in_shape)
    torch.testing.assert_close(A @ x, (A @ expected).expand(4, *y.shape[1:]), rtol=1e-12, atol=1e-12)
    spread = weight[:1].expand_as(weight)  # filters that are one piece of memory: no rank
    assert hesse.pinv(case.operator(spread)).shape == P.shape
    for empty, B in ((many[:, :0], P), (x[:0], P.T), (x[:0], A), (y[:0], A.T)):
        found = B @ empty
        assert found.shape == (*empty.shape[: -len(case.in_shape)], *B.out_space.shapes[0])
    assert hesse.lstsq(A, many[:, :0]).shape == (2, 0, *case.in_shape)
    assert hesse.factor(A).lstsq(y[:0]).shape == (0, *case.in_shape)
