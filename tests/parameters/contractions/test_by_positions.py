"""Inner products from products of positions, against rows written out by einsum in float64."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from hesse.parameters.contractions import gram
from hesse.parameters.contractions.by_positions import gram_by_positions, pays
from hesse.rules.forms import Contract

SHAPES = [(1, 2, 30, 41), (1, 3, 50, 40), (3, 2, 20, 11), (2, 4, 90, 70)]  # groups, positions, a, b


def form(n: int, shape: tuple[int, int, int, int], seed: int, dtype: torch.dtype = torch.float64) -> Contract:
    groups, t, a, b = shape
    generator = torch.Generator().manual_seed(seed)
    sides = [torch.randn(n, groups, t, width, generator=generator, dtype=torch.float64).to(dtype) for width in (a, b)]
    return Contract(*sides)


def rows_of(use: Contract) -> Tensor:
    return torch.einsum("ngta,ngtb->ngab", use.left[:].double(), use.right[:].double()).flatten(1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("elements", [2**21, 700])
def test_two_sets_and_one_with_itself(shape: tuple[int, int, int, int], elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["hesse.parameters.contractions.by_positions"], "_ELEMENTS", elements)
    first, second = form(7, shape, 0), form(4, (shape[0], shape[1] + 1, *shape[2:]), 1)
    assert pays(form(40, shape, 0), form(40, shape, 1))
    found = gram_by_positions(first, second)
    assert found is not None and torch.allclose(found, rows_of(first) @ rows_of(second).T, rtol=1e-12, atol=1e-10)
    alone = gram_by_positions(first, first)
    expected = rows_of(first) @ rows_of(first).T
    assert alone is not None and torch.allclose(alone.tril(), expected.tril(), rtol=1e-12, atol=1e-10)


def test_it_is_chosen_where_it_pays() -> None:
    wide, long = form(64, (1, 2, 60, 60), 0), form(64, (1, 40, 20, 30), 0)
    assert pays(wide, wide) and not pays(long, long)
    for use in (wide, long):
        expected = rows_of(use) @ rows_of(use).T
        assert torch.allclose(gram(use, use, 0, {}).tril(), expected.tril(), rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype: torch.dtype) -> None:
    first, second = form(40, (1, 2, 60, 70), 2, dtype), form(41, (1, 2, 60, 70), 3, dtype)
    expected = rows_of(first) @ rows_of(second).T
    found = gram(first, second, 0, {})
    assert found.dtype == torch.float32 and float((found - expected).norm() / expected.norm()) < 2e-6


def test_positions_that_cancel_are_written_out() -> None:
    use = form(33, (1, 2, 50, 60), 4, torch.float32)
    left, right = use.left[:].clone(), use.right[:].clone()
    left[5, :, 1], right[5, :, 1] = -left[5, :, 0], right[5, :, 0] * (1 + 1e-4)
    use, other = Contract(left, right), form(30, (1, 2, 50, 60), 5, torch.float32)
    assert gram_by_positions(use, other) is None and gram_by_positions(use, use) is None
    expected = rows_of(use) @ rows_of(other).T
    error = (gram(use, other, 0, {})[5].double() - expected[5]).norm() / expected[5].norm()
    assert float(error) < 2e-3  # of the digits that are left in the row itself


def test_derivatives_pass_through() -> None:
    use = form(40, (1, 2, 50, 60), 6)
    left = use.left[:].clone().requires_grad_()
    found = gram(Contract(left, use.right), form(30, (1, 2, 50, 60), 7), 0, {}).square().sum()
    rows = torch.einsum("ngta,ngtb->ngab", left, use.right[:]).flatten(1)
    expected = (rows @ rows_of(form(30, (1, 2, 50, 60), 7)).T).square().sum()
    assert torch.allclose(*(torch.autograd.grad(value, left)[0] for value in (found, expected)), rtol=1e-9)
