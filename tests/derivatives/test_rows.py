"""Rows of a batch a few at a time: the numbers of plain loops; all at once where rows are not alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import hesse
from hesse.core.errors import MixedSamplesError
from hesse.derivatives.rows import in_rows

D, N = 5, 70


def weights() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(9, D, dtype=torch.float64, generator=generator)
    return W, torch.randn(D, 9, dtype=torch.float64, generator=generator)


def field(x: Tensor) -> Tensor:
    W, V = weights()
    return torch.tanh(x @ W.mT) @ V.mT


def points() -> Tensor:
    return torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of rows that functions saw, with no budget too large to look at."""
    monkeypatch.setattr("hesse.derivatives.rows._SMALL", 10**9)
    return []


def noted(f: Callable[[Tensor], Tensor], sizes: list[int]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return f(x)

    return run


def test_divergence(sizes: list[int]) -> None:
    x = points()
    found = hesse.divergence(noted(field, sizes), x, memory="64MiB")
    expected = torch.stack([torch.autograd.functional.jacobian(field, row).trace() for row in x])
    torch.testing.assert_close(found.divergence, expected)
    torch.testing.assert_close(found.value, field(x))
    assert torch.equal(found.standard_error, torch.zeros(N, dtype=torch.float64))
    assert 8 in sizes
    assert max(sizes) < N


def test_laplacian(sizes: list[int]) -> None:
    def f(x: Tensor) -> Tensor:
        return field(x).square().sum(-1)

    x = points()
    found = hesse.laplacian(noted(f, sizes), x, structure="batched", memory="64MiB")
    expected = torch.stack([torch.autograd.functional.hessian(f, row).trace() for row in x])
    torch.testing.assert_close(found.laplacian, expected)
    assert max(sizes) < N


def test_without_a_budget_all_at_once(sizes: list[int]) -> None:
    hesse.divergence(noted(field, sizes), points())
    assert set(sizes) == {N}


@pytest.mark.parametrize("kind", ["numbered rows", "a constant for each row"])
def test_rows_that_are_not_alone_are_taken_at_once(kind: str, sizes: list[int]) -> None:
    own = torch.linspace(1, 2, N, dtype=torch.float64)[:, None]

    def f(x: Tensor) -> Tensor:
        return field(x) * (own[: len(x)] if kind == "numbered rows" else own)

    x = points()
    found = hesse.divergence(noted(f, sizes), x, memory="64MiB").divergence
    plain = torch.stack([torch.autograd.functional.jacobian(field, row).trace() for row in x])
    torch.testing.assert_close(found, plain * own[:, 0])
    assert N in sizes


def test_mixed_rows_are_refused(sizes: list[int]) -> None:
    with pytest.raises(MixedSamplesError):
        hesse.divergence(lambda x: field(x) - field(x).mean(0), points(), memory="64MiB")


def test_trees_without_common_rows_are_left_alone(sizes: list[int]) -> None:
    for x in (torch.tensor(1.0), {"a": torch.zeros(40, 2), "b": torch.zeros(30, 2)}, torch.zeros(7, 3)):
        assert in_rows(x, lambda part: pytest.fail("nothing is to be asked"), 10, "it") is None
