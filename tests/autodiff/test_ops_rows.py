"""Layer normalization, softmax, GELU and max-pooling with second derivatives of their own, against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from hesse.autodiff import ops_pointwise, ops_rows
from hesse.autodiff.second_order_ops import SecondOrderOps

from .programs import seeded
from .test_ops_convolution import third_derivatives_are_right

CASES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]], str]] = {
    "layer norm": (lambda x, w, b: F.layer_norm(x, (4,), w, b), [(2, 3, 4), (4,), (4,)], "LayerNormBackward"),
    "layer norm, two axes": (lambda x, *p: F.layer_norm(x, (3, 4), *p, 0.1), [(2, 3, 4), (3, 4), (3, 4)], "LayerNormBackward"),
    "layer norm, all axes": (lambda x, w: F.layer_norm(x, (3, 4), w), [(3, 4), (3, 4)], "LayerNormBackward"),
    "layer norm, no weight": (lambda x: F.layer_norm(x, (4,)), [(5, 4)], "LayerNormBackward"),
    "layer norm, bias only": (lambda x, b: torch.layer_norm(x, (4,), None, b), [(5, 4), (4,)], "LayerNormBackward"),
    "softmax": (lambda x: F.softmax(x, -1), [(2, 3, 4)], "SoftmaxBackward"),
    "softmax, first axis": (lambda x: torch.softmax(x, 0), [(4, 3)], "SoftmaxBackward"),
    "softmax, middle axis": (lambda x: x.softmax(dim=1), [(2, 4, 3)], "SoftmaxBackward"),
    "gelu": (F.gelu, [(3, 4)], "ElementwiseBackward"),
    "gelu, tanh": (lambda x: F.gelu(x, approximate="tanh"), [(3, 4)], "ElementwiseBackward"),
    "max pool": (lambda x: F.max_pool2d(x, 2), [(2, 1, 4, 6)], "MaxPool2dBackward"),
    "max pool, options": (lambda x: F.max_pool2d(x, (3, 2), 2, (1, 0), (1, 2), True), [(2, 2, 5, 6)], "MaxPool2dBackward"),
    "max pool, no batch": (lambda x: torch.max_pool2d(x, [2, 3], padding=1), [(2, 5, 6)], "MaxPool2dBackward"),
}  # fmt: skip


def normalized(x: Tensor, axes: int = 1, eps: float = 1e-5) -> Tensor:
    over = tuple(range(-axes, 0))
    return (x - x.mean(over, keepdim=True)) / (x.var(over, correction=0, keepdim=True) + eps).sqrt()


DEFINED: dict[str, Callable[..., Tensor]] = {
    "layer norm": lambda x, w, b: normalized(x) * w + b,
    "layer norm, two axes": lambda x, w, b: normalized(x, 2, 0.1) * w + b,
    "layer norm, all axes": lambda x, w: normalized(x, 2) * w,
    "layer norm, no weight": normalized,
    "layer norm, bias only": lambda x, b: normalized(x) + b,
}


@pytest.fixture(autouse=True)
def swap_small_tensors_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_rows, "SMALL", 0)
    monkeypatch.setattr(ops_pointwise, "SMALL", 0)


@pytest.mark.parametrize("name", CASES)
def test_first_second_and_third_derivatives(name: str) -> None:
    f, shapes, node = CASES[name]
    leaves = tuple(seeded(*shape, seed=k).requires_grad_() for k, shape in enumerate(shapes))

    def swapped(*tensors: Tensor) -> Tensor:
        with SecondOrderOps():
            y = f(*tensors)
        assert y.grad_fn is not None and y.grad_fn.name() == node
        return y

    assert torch.allclose(swapped(*leaves), f(*leaves), rtol=1e-14)
    assert gradcheck(swapped, leaves)
    assert gradgradcheck(swapped, leaves)
    assert third_derivatives_are_right(swapped, leaves)


@pytest.mark.parametrize("name", CASES)
def test_kept_and_batched_products(name: str) -> None:
    """What is kept for further products must be of the point, not of the vector."""
    f, shapes, _ = CASES[name]
    definition = DEFINED.get(name, f)  # PyTorch has no second derivative of a layer normalization with a bias alone
    leaves = tuple(seeded(*shape, seed=k).requires_grad_() for k, shape in enumerate(shapes))

    def gradient(mode: bool) -> tuple[Tensor, ...]:
        if not mode:
            return torch.autograd.grad(definition(*leaves).tanh().square().sum(), leaves, create_graph=True)
        with SecondOrderOps():
            y = f(*leaves)
        return torch.autograd.grad(y.tanh().square().sum(), leaves, create_graph=True)

    ours, plain = gradient(True), gradient(False)
    vectors = [seeded(3, *shape, seed=20 + k) for k, shape in enumerate(shapes)]
    batched = torch.autograd.grad(ours, leaves, vectors, retain_graph=True, is_grads_batched=True)
    for k in range(3):
        for which in ({0, *range(len(shapes))}, {0}, {len(shapes) - 1}):  # all leaves, and one alone
            v = [vectors[i][k] if i in which else torch.zeros(shapes[i], dtype=torch.float64) for i in range(len(shapes))]
            found = torch.autograd.grad(ours, leaves, v, retain_graph=True)
            expected = torch.autograd.grad(plain, leaves, v, retain_graph=True)
            for a, e, b in zip(found, expected, batched, strict=True):
                assert torch.allclose(a, e, rtol=1e-11, atol=1e-12)
                if len(which) == len(shapes):
                    assert torch.allclose(b[k], e, rtol=1e-11, atol=1e-12)
            chosen = [i for i in range(len(shapes)) if i in which]
            only = torch.autograd.grad([ours[i] for i in chosen], leaves, [v[i] for i in chosen], retain_graph=True)
            for a, e in zip(only, expected, strict=True):
                assert torch.allclose(a, e, rtol=1e-11, atol=1e-12)


def test_what_is_not_covered_is_left_to_pytorch() -> None:
    x = seeded(3, 4).requires_grad_()
    with SecondOrderOps():
        nodes = [
            F.softmax(x, 1, dtype=torch.float32).grad_fn,
            F.max_pool2d(x.reshape(1, 3, 4), 2, return_indices=True)[0].grad_fn,
            F.gelu(x.to(torch.bfloat16)).grad_fn,
        ]
        with pytest.raises(RuntimeError, match="normalized_shape"):
            F.layer_norm(x, (3,))
        with pytest.raises(IndexError):
            torch.softmax(x, 2)
    for node in nodes:
        assert node is not None and "Backward0" in node.name()
