"""Products of a function of the pixel and one of the weight are run as convolutions; nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from hesse.nn import ReceptiveFieldConv2d
from hesse.nn.receptive_field import forward, function
from hesse.nn.receptive_field.kernel import Kernel
from hesse.nn.receptive_field.separable import as_convolution

PRODUCTS = [
    lambda p, w: p * w, torch.mul, lambda p, w: w.mul(p), lambda p, w: -(p * w), lambda p, w: 2 * (p * w),
    lambda p, w: torch.tanh(p) * w.exp(), lambda p, w: p * (w + 1), lambda p, w: p**2 * (1 - w), lambda p, w: p * w * p.relu(),
    lambda p, w: torch.nn.functional.leaky_relu(p, 0.2) * abs(w) * -3.0, lambda p, w: (p * w) * 0.5,
]  # fmt: skip
OTHERS = [
    lambda p, w: p + w, lambda p, w: (p - w) ** 2, lambda p, w: torch.tanh(p * w), lambda p, w: p / w, lambda p, w: p * w + p,
    lambda p, w: p + 0 * w, lambda p, w: p * w * torch.tensor(2.0), lambda p, w: torch.maximum(p, w), lambda p, w: w * (p + w),
    lambda p, w: torch.where(p > 0.5, p, w), lambda p, w: p.square().add(w), lambda p, w: torch.add(p * w, p * w),
    lambda p, w: (p * w).abs(), lambda p, w: (p + w).mul_(w),
]  # fmt: skip


def both_ways(fn: Any, options: dict[str, Any], weight_shape: tuple[int, ...] = ()) -> tuple[Tensor | None, Tensor]:
    module = ReceptiveFieldConv2d(fn, 4, 6, 3, weight_shape=weight_shape, bias=False, dtype=torch.float64, **options)
    x = module.geometry.pad(torch.rand(2, 4, 6, 7, dtype=torch.float64))
    kernel = Kernel(fn, module.reduce, module.geometry, len(weight_shape), torch.float64)
    with torch.no_grad():
        return as_convolution(kernel, x, module.weight), forward.evaluate(kernel, x, module.weight)


@pytest.mark.parametrize("number", range(len(PRODUCTS)))
def test_products_are_convolutions(number: int) -> None:
    for options in ({}, {"groups": 2, "stride": 2, "reduce": "mean"}, {"dilation": (1, 2), "padding": 1}):
        separate, general = both_ways(PRODUCTS[number], options)
        assert separate is not None
        assert_close(separate, general, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("number", range(len(OTHERS)))
def test_other_functions_are_not(number: int) -> None:
    assert both_ways(OTHERS[number], {})[0] is None


def test_other_reductions_are_not() -> None:
    for reduce in ("prod", "max", "logsumexp", torch.sum):
        module = ReceptiveFieldConv2d(torch.mul, 2, 2, 2, reduce=reduce)
        kernel = Kernel(torch.mul, reduce, module.geometry, 0, torch.float32)
        assert as_convolution(kernel, torch.rand(1, 2, 3, 3), module.weight) is None


def test_several_weights() -> None:
    separate, general = both_ways(lambda p, w: p * (w[0] * w[1].exp()), {}, (2,))
    assert separate is not None
    assert_close(separate, general, rtol=1e-12, atol=1e-12)

    def unpacked(p: Tensor, w: Tensor) -> Tensor:
        a, b = w
        return p * (a - b)

    separate, general = both_ways(unpacked, {}, (2,))
    assert separate is not None
    assert_close(separate, general, rtol=1e-12, atol=1e-12)
    assert both_ways(lambda p, w: w[0] * p + w[1], {}, (2,))[0] is None
    assert both_ways(lambda p, w: p * w.prod(0), {}, (2,))[0] is None


def test_what_the_function_says_now_counts() -> None:
    """Nothing is remembered of the function: it may change."""
    state = {"sign": 1.0}
    module = ReceptiveFieldConv2d(lambda p, w: p * w * state["sign"], 2, 3, 2, bias=False)
    x = torch.rand(1, 2, 4, 4)
    first = module(x)
    state["sign"] = -2.0
    assert_close(module(x), -2 * first)


def test_the_module_takes_that_way(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def watched(*args: Any) -> Any:
        result = as_convolution(*args)
        taken.append(result is not None)
        return result

    monkeypatch.setattr(function, "as_convolution", watched)
    ReceptiveFieldConv2d(lambda p, w: p * w, 2, 3, 2)(torch.rand(1, 2, 4, 4))
    ReceptiveFieldConv2d(lambda p, w: p - w, 2, 3, 2)(torch.rand(1, 2, 4, 4))
    assert taken == [True, False]
