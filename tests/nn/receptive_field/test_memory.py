"""Terms are never all in memory, in passes of any order; budgets are kept or refused."""

from __future__ import annotations

import pytest
import torch

import hesse
from hesse.core.errors import MemoryBudgetError
from hesse.nn import ReceptiveFieldConv2d
from hesse.nn.receptive_field import blocks, composite

from .common import hidden_product, plus, product, tangent
from .live import peak

SHAPE, CHANNELS, FILTERS, KERNEL = (2, 8, 28, 24), 8, 10, 5
OUT = 2 * FILTERS * 24 * 20
TERMS = OUT * CHANNELS * KERNEL**2 * 4  # bytes: 7.7 MB, where the output has 0.04


def test_the_measure_counts_what_is_alive() -> None:
    x = torch.zeros(1000)
    assert peak(lambda: (x + 1) + 1) == 8000
    assert peak(lambda: ((x + 1) + 1) + 1) == 8000
    assert peak(lambda: [x + 1, x + 2, x[2:].view(2, -1)]) == 8000


def near_one(pixel: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return 1 + torch.tan(pixel + weight) / 50


def both(fn: object, reduce: str = "sum") -> tuple[ReceptiveFieldConv2d, torch.nn.Conv2d, torch.Tensor]:
    module = ReceptiveFieldConv2d(fn, CHANNELS, FILTERS, KERNEL, reduce=reduce)  # pyright: ignore[reportArgumentType]
    return module, torch.nn.Conv2d(CHANNELS, FILTERS, KERNEL), torch.rand(SHAPE)


@pytest.mark.parametrize("fn", [product, hidden_product])
def test_multiply_and_sum_takes_at_most_twice_the_memory_of_a_convolution(fn: object) -> None:
    module, conv, _ = both(fn)
    x = torch.rand(4, CHANNELS, 60, 56)
    own = x.nbytes + module.weight.nbytes
    with torch.no_grad():
        module(x)  # the first call of a process maps pages that it never touches
        assert own + peak(lambda: module(x)) <= 2 * (own + peak(lambda: conv(x)))


@pytest.mark.parametrize("reduce", ["sum", "prod", "max", "logsumexp"])
def test_a_gradient_keeps_no_terms(reduce: str) -> None:
    module, _, _ = both(near_one, reduce)
    x = torch.rand(2, CHANNELS, 52, 48, requires_grad=True)
    terms = 2 * FILTERS * 48 * 44 * CHANNELS * KERNEL**2 * 4  # 34 MB

    def run() -> object:
        return torch.autograd.grad(module(x).sum(), [x, *module.parameters()])

    assert peak(run) < terms / 6


@pytest.mark.parametrize("reduce", ["sum", "prod", torch.amax])
def test_a_second_derivative_keeps_no_terms(reduce: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composite, "PIECE", 2**18)
    module, _, x = both(tangent, reduce)  # pyright: ignore[reportArgumentType]
    x.requires_grad_()

    def run() -> object:
        (g,) = torch.autograd.grad(module(x).sum(), [x], create_graph=True)
        return torch.autograd.grad(g.square().sum(), [x, module.weight])

    assert peak(run) < TERMS / 2


def test_blocks_keep_to_the_budget() -> None:
    module, _, x = both(plus)
    expected = module(x)
    for budget in (OUT * 4 + 2**18, OUT * 4 + 2**16):
        with hesse.memory(budget), torch.no_grad():
            assert peak(lambda: module(x)) <= budget + module.weight.nbytes
            torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)


def test_a_budget_below_the_output_is_refused() -> None:
    module, x = ReceptiveFieldConv2d(plus, 2, 3, 2), torch.rand(1, 2, 9, 8)
    with hesse.memory(600), pytest.raises(MemoryBudgetError, match="receptive field") as error:
        module(x)
    with hesse.memory(error.value.least):
        module(x)


def test_blocks_cover_everything_once() -> None:
    for groups, sizes, block in ((1, (7, 9), 2**12), (2, (30, 31), 2**10), (4, (5, 5), 2**20), (1, (3, 200), 2**11)):
        module = ReceptiveFieldConv2d(plus, 8, 12, 3, groups=groups, padding=1)
        x = module.geometry.pad(torch.zeros(5, 8, *sizes))
        seen = torch.zeros(5, *module.geometry.out_sizes(x.shape[2:]))
        plan = blocks.plan(module.geometry, x, budget=seen.numel() * 12 * 4 + block)
        for images, rows in plan.places():
            seen[images, rows] += 1
        taps = torch.zeros(8 // groups, 3, 3)
        for tap in plan.tap_blocks():
            for position in tap.positions:
                taps[(tap.channels, *position)] += 1
        filters = torch.zeros(12 // groups)
        for part in plan.filter_blocks():
            filters[part] += 1
        assert (seen == 1).all() and (taps == 1).all() and (filters == 1).all()
