"""Ops are exchanged while a function is recorded, for this thread only, and nothing is left behind."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

import hesse
from hesse.autodiff.recording import nodes
from hesse.autodiff.second_order import record_scalar

from .programs import seeded


class Net(nn.Module):
    """Convolution, pooling, normalization, attention weights and GELU, large enough that all are exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(2, 3, 3, padding=1), nn.ConvTranspose2d(3, 2, 2, stride=2)
        self.norm, self.linear, self.head = nn.LayerNorm(16, eps=0.1), nn.Linear(16, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 2, 16, 16] -> [n, 3]."""
        y = F.gelu(self.conv(x))
        y = self.norm(F.relu(self.up(F.max_pool2d(y, 2))))
        y = y + torch.softmax(y @ y.transpose(-1, -2), -1) @ y
        return self.head(F.gelu(self.linear(y), approximate="tanh").mean((1, 2)))


def problem() -> tuple[Net, dict[str, Tensor], Any]:
    torch.manual_seed(3)
    net = Net().double()
    params = {name: p.detach() for name, p in net.named_parameters()}
    x, y = seeded(8, 2, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])

    def f(p: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(net, p, (x,)), y)

    return net, params, f


def names(y: Tensor) -> set[str]:
    return {node.name() for node in nodes([y.grad_fn])}


OURS = {"ConvolutionBackward", "ElementwiseBackward", "MaxPool2dBackward", "LayerNormBackward", "SoftmaxBackward"}


def test_hessian_products_equal_those_of_the_plain_ops() -> None:
    _, params, f = problem()
    assert names(record_scalar(f, params, "").outputs[0]) >= OURS
    v = {name: seeded(*p.shape, seed=k) for k, (name, p) in enumerate(params.items())}
    expected = torch.func.jvp(torch.func.grad(f), (params,), (v,))[1]
    H = hesse.hessian_operator(f, params)
    for _ in range(2):
        found = H @ v
        for name in params:
            assert torch.allclose(found[name], expected[name], rtol=1e-10, atol=1e-12), name


def test_third_derivatives_through_a_hessian() -> None:
    _, params, f = problem()
    name = "conv.weight"
    w = params[name].clone().requires_grad_()
    v = seeded(*w.shape)
    H = hesse.hessian_operator(lambda w: f({**params, name: w}), w)
    found = torch.autograd.grad((H @ v * v).sum(), w)[0] * v

    def curvature(t: float) -> Tensor:
        w_t = w.detach() + t * v
        gradient = torch.func.grad(lambda w: f({**params, name: w}))
        return (torch.func.jvp(gradient, (w_t,), (v,))[1] * v).sum()

    h = 1e-5
    expected = (8 * (curvature(h) - curvature(-h)) - (curvature(2 * h) - curvature(-2 * h))) / (12 * h)
    assert torch.allclose(found.sum(), expected, rtol=1e-5)


def test_no_mode_is_left_after_an_error() -> None:
    def fails(x: Tensor) -> Tensor:
        F.gelu(x)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        hesse.hessian_operator(fails, seeded(70, 70))
    assert _get_current_function_mode_stack() == []
    assert names(F.gelu(seeded(70, 70).requires_grad_())) >= {"GeluBackward0"}


def test_other_threads_are_not_touched() -> None:
    inside, outside, seen = threading.Event(), threading.Event(), set[str]()

    def other() -> None:
        inside.wait(30)
        seen.update(names(F.gelu(seeded(70, 70).requires_grad_())))
        outside.set()

    def f(x: Tensor) -> Tensor:
        inside.set()
        assert outside.wait(30)
        y = F.gelu(x)
        assert "ElementwiseBackward" in names(y)
        return y.sum()

    thread = threading.Thread(target=other)
    thread.start()
    hesse.hessian_operator(f, seeded(70, 70))
    thread.join()
    assert "GeluBackward0" in seen and not seen & OURS


def test_transforms_forward_mode_and_checkpoints_inside_the_function() -> None:
    w = seeded(70, 70) / 10

    def layer(x: Tensor) -> Tensor:
        return torch.softmax(F.gelu(w @ x), -1)

    def with_grad(x: Tensor) -> Tensor:
        return torch.func.grad(lambda t: layer(t).square().sum())(x).square().sum()

    def with_vmap(x: Tensor) -> Tensor:
        return torch.func.vmap(lambda row: F.gelu(row).sum())(w @ x).square().sum()

    def with_jvp(x: Tensor) -> Tensor:
        return torch.func.jvp(layer, (x,), (w,))[1].square().sum()

    def with_checkpoint(x: Tensor) -> Tensor:
        y: Any = checkpoint(layer, x, use_reentrant=False)
        return y.square().sum()

    def plain(x: Tensor) -> Tensor:
        return layer(x).square().sum()

    x, v = seeded(70, 70, seed=1), seeded(70, 70, seed=2)
    for f in (with_grad, with_vmap, with_jvp, with_checkpoint):
        reference = plain if f is with_checkpoint else f
        expected = torch.func.jvp(torch.func.grad(reference), (x,), (v,))[1]
        assert torch.allclose(hesse.hessian_operator(f, x) @ v, expected, rtol=1e-9, atol=1e-11), f.__name__


def test_autocast_and_subclasses_are_left_alone() -> None:
    class Marked(Tensor):
        pass

    x = seeded(70, 70).float()
    with torch.autocast("cpu"):
        assert not names(record_scalar(lambda t: F.gelu(t @ t).sum(), x, "").outputs[0]) & OURS
    marked = x.as_subclass(Marked)
    assert not names(record_scalar(lambda t: F.gelu(t * marked).sum(), x, "").outputs[0]) & OURS
