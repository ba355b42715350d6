"""Functions that are not what a receptive field needs are refused before they do harm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesse.core.errors import LeafError, NondeterministicError, StructureError
from hesse.nn import ReceptiveFieldConv2d, ReceptiveFieldConv3d

from .common import neuron, plus

X = torch.rand(2, 2, 4, 5)


@pytest.mark.parametrize(
    ("fn", "error", "found"),
    [(lambda p, w: (p * w).sum(0), StructureError, r"shape \(2, 2, 5\), where"),
     (lambda p, w: p, StructureError, r"shape \(3, 2, 1, 5\)"),
     (lambda p, w: p > w, LeafError, "torch.bool"),
     (lambda p, w: (p * w).round().long(), LeafError, "int64"),
     (lambda p, w: None, LeafError, "NoneType"),
     (lambda p, w: (p * w, p), LeafError, "tuple"),
     (lambda p, w: (p * w).softmax(0), StructureError, "other pixels"),
     (lambda p, w: p * w - p.mean(), StructureError, "other pixels"),
     (lambda p, w: p * torch.softmax(w, -1), StructureError, "other pixels"),
     (lambda p, w: p * F.normalize(w, dim=-1), StructureError, "other pixels"),
     (lambda p, w: p * w.cumsum(-1), StructureError, "other pixels"),
     (lambda p, w: p * (w - w.mean(-1, keepdim=True)), StructureError, "other pixels"),
     (lambda p, w: p.flip(2) * w, StructureError, "other pixels"),
     (lambda p, w: p.flip(0) * w, StructureError, "other pixels"),
     (lambda p, w: p * w.roll(1, 1), StructureError, "other pixels"),
     (lambda p, w: p * w * torch.rand(()), NondeterministicError, "second call"),
     (lambda p, w: p.mul_(2) + w, StructureError, "its pixels in place"),
     (lambda p, w: p.mul_(w), StructureError, "its pixels in place"),
     (lambda p, w: w.mul_(p), StructureError, "its weights in place"),
     (lambda p, w: w.exp_() + p, StructureError, "its weights in place")],
)  # fmt: skip
def test_what_is_no_elementwise_function_is_refused(fn: Any, error: type[Exception], found: str) -> None:
    module, x = ReceptiveFieldConv2d(fn, 2, 3, 2), X.clone()
    before = module.weight.detach().clone()
    with pytest.raises(error, match=found):
        module(x)
    assert torch.equal(x, X) and torch.equal(module.weight, before)


def test_statistics_of_several_weights_of_one_tap() -> None:
    """Axes of the weight shape are those of one tap: what is done along them is the function's own business."""
    torch.manual_seed(0)
    x, weight = torch.rand(1, 2, 4, 3, 5, dtype=torch.float64), torch.randn(4, 3, 2, 2, 1, 3, dtype=torch.float64)
    expected = F.conv3d(x, torch.softmax(weight, 0)[1])
    functions = [
        lambda p, w: p * torch.softmax(w, 0)[1],
        lambda p, w: p * torch.softmax(w, -5)[1],
        lambda p, w: torch.addcmul(torch.zeros_like(p), p, torch.softmax(w, -5)[1]),
    ]
    for fn in functions:
        module = ReceptiveFieldConv3d(fn, 2, 3, (2, 1, 3), weight_shape=(4,), bias=False, dtype=torch.float64)
        module.weight.data.copy_(weight)
        torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_few_digits_hide_nothing(dtype: torch.dtype) -> None:
    mixing = [
        lambda p, w: p * torch.softmax(w, -1),
        lambda p, w: p.flip(2) * w,
        lambda p, w: p * (w - w.mean(-1, keepdim=True)),
        lambda p, w: p * w.sort(-1).values,
    ]
    for fn in mixing:
        with pytest.raises(StructureError, match="other pixels"):
            ReceptiveFieldConv2d(fn, 2, 3, 2, dtype=dtype)(X.to(dtype))
    elementwise = [
        torch.add,
        lambda p, w: torch.tan(p + w),
        lambda p, w: (p / w).exp(),
        lambda p, w: torch.sigmoid(9 * (p - w)) ** 3,
    ]
    for fn in elementwise:
        ReceptiveFieldConv2d(fn, 2, 3, 2, dtype=dtype)(X.to(dtype))


def test_randomness_that_comes_later_is_refused_where_a_gradient_is_taken() -> None:
    dropout = nn.Dropout(0.5).eval()
    module = ReceptiveFieldConv2d(lambda p, w: dropout(torch.tanh(p * w)), 2, 3, 2)
    module(X)
    dropout.train()
    with pytest.raises(NondeterministicError, match="second call"):
        module(X)
    dropout.eval()
    module(X)


@pytest.mark.parametrize(
    ("fn", "found"),
    [(nn.Linear(2, 2), "fn=Linear"), (lambda p: p, "fn=<function"), (nn.Linear, "a class"), (lambda p, w, *, k: p, "fn=")],
)
def test_functions_that_do_not_take_a_pixel_and_a_weight(fn: Any, found: str) -> None:
    with pytest.raises(StructureError, match=found):
        ReceptiveFieldConv2d(fn, 2, 3, 2)


def test_one_weight_where_several_are_given() -> None:
    with pytest.raises(StructureError, match=r"shape \(2, 3, 2, 2, 5\), where pixel and weight broadcast to \(3, 2, 2, 5\)"):
        ReceptiveFieldConv2d(plus, 2, 3, 2, weight_shape=(2,))(X)
    ReceptiveFieldConv2d(neuron, 2, 3, 2, weight_shape=(2,))(X)


def test_functions_of_one_argument_alone_that_broadcast() -> None:
    module = ReceptiveFieldConv2d(lambda p, w: p + 0 * w, 2, 3, 2, bias=False)
    X_ = X.double()
    windows = torch.nn.functional.unfold(X_, 2).sum(1).view(2, 1, 3, 4).expand(2, 3, 3, 4)
    torch.testing.assert_close(module.double()(X_), windows)


def test_reductions_that_keep_the_axis_are_refused() -> None:
    def keep(terms: Tensor, dim: int) -> Tensor:
        return terms.sum(dim, keepdim=True)

    with pytest.raises(StructureError, match=r"shape \(1, 2, 2, 5\), from terms of shape \(3, 2, 2, 5\)"):
        ReceptiveFieldConv2d(plus, 2, 3, 2, reduce=keep)(X)
    with pytest.raises(StructureError, match="found: float"):
        ReceptiveFieldConv2d(plus, 2, 3, 2, reduce=lambda t, d: 1.0)(X)


def test_complex_numbers_have_no_maximum() -> None:
    with pytest.raises(LeafError, match="complex64"):
        ReceptiveFieldConv2d(plus, 2, 3, 2, reduce="max", dtype=torch.complex64)(X.to(torch.complex64))


def test_a_function_is_examined_once() -> None:
    calls = []

    def counted(p: Tensor, w: Tensor) -> Tensor:
        calls.append(type(p).__name__)
        return (p - w).abs()

    module = ReceptiveFieldConv2d(counted, 2, 3, 2)
    with torch.no_grad():
        module(X)
        first = len(calls)
        module(X)
    assert first > 3 and len(calls) - first <= 3
