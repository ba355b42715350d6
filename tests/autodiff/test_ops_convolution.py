"""Convolutions with a second derivative of their own, against finite differences and PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from hesse.autodiff.ops_convolution import Convolution, convolution
from hesse.autodiff.second_order_ops import SecondOrderOps

from .programs import REAL, seeded

PLAIN = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

CASES: dict[str, tuple[bool, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1d": (False, (2, 3, 7), (4, 3, 3), {}),
    "1d, stride, padding, dilation": (False, (2, 3, 9), (2, 3, 3), {"stride": 2, "padding": 3, "dilation": 2}),
    "1d, same": (False, (2, 2, 5), (3, 2, 3), {"padding": "same", "dilation": 2}),
    "2d": (False, (2, 3, 5, 4), (4, 3, 3, 2), {}),
    "2d, pairs": (False, (2, 3, 5, 6), (4, 3, 3, 2), {"stride": (1, 2), "padding": (2, 0), "dilation": (2, 3)}),
    "2d, a list of one": (False, (2, 2, 5, 6), (3, 2, 2, 2), {"stride": [2], "padding": [1]}),
    "2d, groups": (False, (2, 4, 4, 5), (6, 2, 3, 2), {"groups": 2, "padding": 1}),
    "2d, depthwise": (False, (1, 3, 5, 4), (3, 1, 2, 3), {"groups": 3, "stride": 2}),
    "2d, valid": (False, (2, 1, 4, 4), (2, 1, 3, 2), {"padding": "valid", "stride": 2}),
    "3d": (False, (2, 2, 3, 4, 3), (3, 2, 2, 1, 2), {"stride": (2, 1, 1), "padding": 1}),
    "transposed 1d": (True, (2, 3, 4), (3, 2, 3), {"stride": 3, "output_padding": 2, "padding": 1}),
    "transposed 2d, groups": (True, (2, 4, 3, 2), (4, 2, 2, 3), {"groups": 2, "dilation": (2, 1)}),
    "transposed 2d": (True, (1, 2, 3, 4), (2, 3, 3, 2), {"stride": 2, "output_padding": (1, 0), "padding": (0, 1)}),
    "transposed 3d": (True, (1, 2, 2, 3, 2), (2, 1, 2, 2, 1), {"stride": (1, 2, 1)}),
}


def operands(name: str) -> tuple[bool, Tensor, Tensor, Tensor, dict[str, Any]]:
    transposed, x_shape, w_shape, options = CASES[name]
    outputs = w_shape[1] * options.get("groups", 1) if transposed else w_shape[0]
    x, w, b = seeded(*x_shape), seeded(*w_shape, seed=1), seeded(outputs, seed=2)
    return transposed, x.requires_grad_(), w.requires_grad_(), b.requires_grad_(), options


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_first_second_and_third_derivatives(name: str, with_bias: bool) -> None:
    transposed, x, w, b, options = operands(name)
    plain = (TRANSPOSED if transposed else PLAIN)[x.ndim - 2]
    swap = convolution(x.ndim - 2, transposed=transposed)
    leaves = (x, w, b) if with_bias else (x, w)

    def swapped(*tensors: Tensor) -> Tensor:
        y = swap(*(tensors if with_bias else (*tensors, None)), **options)
        assert y is not None and y.grad_fn.name() == "ConvolutionBackward"  # type: ignore[union-attr]
        return y

    assert torch.equal(swapped(*leaves), plain(*leaves, **options))
    assert gradcheck(swapped, leaves)
    assert gradgradcheck(swapped, leaves)
    assert third_derivatives_are_right(swapped, leaves)


def third_derivatives_are_right(f: Any, leaves: tuple[Tensor, ...]) -> bool:
    """Against finite differences of second derivatives, in one direction (PyTorch's own are missing or wrong for some ops)."""

    def slope(*tensors: Tensor) -> Tensor:
        grads = torch.autograd.grad(f(*tensors).tanh().sum(), tensors, create_graph=True)
        return torch.stack([(g * seeded(*g.shape, seed=10 + k)).sum() for k, g in enumerate(grads)]).sum()

    return gradgradcheck(slope, leaves, atol=1e-4, fast_mode=True)


def test_only_what_is_needed_is_differentiated() -> None:
    _, x, w, b, _ = operands("2d")
    swap = convolution(2)
    for frozen in (x, w, b):
        frozen.requires_grad_(False)
        leaves = [t for t in (x, w, b) if t.requires_grad]
        y = swap(x, w, b)
        assert y is not None
        grads = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        found = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)
        grads = torch.autograd.grad(F.conv2d(x, w, b).square().sum(), leaves, create_graph=True)
        expected = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)
        for a, e in zip(found, expected, strict=True):
            assert torch.allclose(a, e, rtol=1e-11, atol=1e-11)
        frozen.requires_grad_(True)


def test_a_weight_that_only_the_bias_reaches() -> None:
    _, x, w, b, _ = operands("2d")
    y = convolution(2)(x, w, b)
    assert y is not None
    (grad,) = torch.autograd.grad((y * y.detach()).sum(), b, create_graph=True)
    assert not grad.requires_grad or torch.autograd.grad(grad.sum(), w, allow_unused=True)[0] is None
    g = seeded(*y.shape, seed=4).requires_grad_()
    (grad,) = torch.autograd.grad(y, b, g, create_graph=True)
    found = torch.autograd.grad(grad @ seeded(4, seed=5), g)[0]
    assert torch.allclose(found, seeded(4, seed=5).reshape(1, 4, 1, 1).expand_as(g), rtol=1e-14)


def test_products_batched_over_vectors() -> None:
    _, x, w, b, _ = operands("2d, groups")
    g = seeded(3, *w.shape, seed=7)
    found, expected = [], []
    for f, results in ((convolution(2), found), (F.conv2d, expected)):
        y = f(x, w, b, padding=1, groups=2)
        assert y is not None
        (grad,) = torch.autograd.grad(y.tanh().sum(), w, create_graph=True)
        results.append(torch.autograd.grad(grad, (x, w, b), g, is_grads_batched=True))
    for a, e in zip(found[0], expected[0], strict=True):
        assert torch.allclose(a, e, rtol=1e-11, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_what_is_not_covered_is_left_to_pytorch() -> None:
    x, w = seeded(2, 3, 5, 5).requires_grad_(), seeded(4, 3, 2, 2).requires_grad_()
    swap = convolution(2)
    assert swap(x, w, padding="same") is None, "an even kernel is padded on one side only"
    assert swap(x[0], w) is None, "no batch axis"
    assert swap(x[:0], w) is None and swap(x.detach(), w.detach()) is None
    assert swap(x.bfloat16(), w.bfloat16()) is None
    with torch.no_grad():
        assert swap(x, w) is None
    with torch.autocast("cpu"):
        assert swap(x, w) is None
    empty = torch.zeros(0, 3, 5, 5, dtype=REAL).requires_grad_()
    with SecondOrderOps():
        assert F.conv2d(empty, w).shape == (0, 4, 4, 4)
        assert torch.equal(F.conv2d(x, w, padding="same"), F.conv2d(x, w, padding="same"))
        with pytest.raises(RuntimeError, match="channels"):
            F.conv2d(x[:, :2], w)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_modules_with_every_padding_mode(padding_mode: str) -> None:
    layer = nn.Conv2d(3, 4, (3, 2), padding=(1, 2), padding_mode=padding_mode).double()
    x = seeded(2, 3, 5, 4)
    with SecondOrderOps():
        y = layer(x)
    assert y.grad_fn is not None and y.grad_fn.name() == f"{Convolution.__name__}Backward"
    assert torch.equal(y, layer(x))
