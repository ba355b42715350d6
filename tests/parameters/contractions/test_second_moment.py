"""Second moments by BLAS and by plain products, in blocks; squares over roots that share a factor, or do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.parameters.contractions import SquaresOverRoots
from hesse.parameters.contractions import second_moment as module
from hesse.parameters.contractions.second_moment import SecondMoment
from hesse.rules.forms import Contract, Dense


@pytest.mark.parametrize("width", [5, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 10**6])
def test_sums_of_blocks(width: int, dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_blas_threads", lambda: threads)  # more than PyTorch has: BLAS is left alone
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2 * width, generator=generator, dtype=torch.float64).to(dtype)
    total = SecondMoment()
    for block in (x[:7, :width], x[7:30, :width], x[30:, :width].contiguous()):
        total.add(block)
    wide = x[:, :width].double()
    assert total.result().dtype == dtype
    slack = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(total.result().double(), wide.T @ wide, rtol=slack, atol=slack)


def _contract(left: Tensor, right: Tensor) -> Contract:
    return Contract(left[:, None, None], right[:, None, None])


@pytest.mark.parametrize("shared", ["left", "right", "neither", "the first two"])
def test_squares_over_roots(shared: str) -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(width: int) -> Tensor:
        return torch.randn(6, width, generator=generator, dtype=torch.float64)

    z, roots = draw(4), []
    for k in range(3):
        other = draw(3 if shared != "right" else 4)
        mine = z if shared in ("left", "right") or (shared == "the first two" and k < 2) else draw(4)
        roots.append((other, draw(4) if shared == "neither" else mine) if shared == "right" else (mine, other))
    if shared == "right":
        roots = [(other[:, :3], z) for other, _ in roots]
    total = SquaresOverRoots(12, 3)
    for left, right in roots:
        total.add(_contract(left, right))
    expected = sum(torch.einsum("na,nb->nab", left, right).square().sum(0).flatten() for left, right in roots)
    torch.testing.assert_close(total.result(), expected)


def test_roots_of_other_forms() -> None:
    rows = torch.randn(5, 6, dtype=torch.float64)
    total = SquaresOverRoots(6, 2)
    total.add(Dense(rows))
    total.add(_contract(rows[:, :2], rows[:, 2:5]))
    expected = rows.square().sum(0) + torch.einsum("na,nb->nab", rows[:, :2], rows[:, 2:5]).square().sum(0).flatten()
    torch.testing.assert_close(total.result(), expected)
