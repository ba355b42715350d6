"""`hesse.grad` within and around other derivatives: `torch.func`, `vmap`, forward mode, hesse's own; fused kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import hesse
from hesse.derivatives.grad import grad

from .test_grad import normal


def f(x: Tensor) -> Tensor:
    return (x.sin() * x.flip(0) ** 2).sum()


X = normal(4)


def hessian_by_hand(f: Any, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    g = torch.autograd.grad(f(x), x, create_graph=True)[0]
    return torch.stack([torch.autograd.grad(y, x, retain_graph=True)[0] for y in g.flatten()]).reshape(*x.shape, *x.shape)


def inner(x: Tensor) -> Tensor:
    return grad(f)(x).grads


H = hessian_by_hand(f, X)


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd], ids=["jacrev", "jacfwd"])
def test_inside_jacobians(transform: Any) -> None:
    torch.testing.assert_close(transform(inner)(X), H, rtol=1e-12, atol=1e-12)


def test_inside_grad_jvp_vjp_and_hessian() -> None:
    v = normal(4, seed=1)
    torch.testing.assert_close(torch.func.jvp(inner, (X,), (v,))[1], H @ v, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.func.vjp(inner, X)[1](v)[0], H @ v, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.func.grad(lambda x: inner(x) @ v)(X), H @ v, rtol=1e-12, atol=1e-12)
    third = torch.func.hessian(inner)(X)
    x = X.clone().requires_grad_()
    g = torch.autograd.grad(f(x), x, create_graph=True)[0]
    row = torch.autograd.grad(g[1], x, create_graph=True)[0]
    expected = torch.stack([torch.autograd.grad(y, x, retain_graph=True)[0] for y in row])
    torch.testing.assert_close(third[1], expected, rtol=1e-12, atol=1e-12)


def test_vmap_gives_per_sample_gradients() -> None:
    w, x = {"w": normal(3, 5)}, normal(7, 5, seed=1)

    def loss(p: Any, row: Tensor) -> Any:
        return (p["w"] @ row).exp().sum(), row.sum()

    result = torch.func.vmap(grad(loss), in_dims=(None, 0))(w, x)
    for n in range(7):
        own = w["w"].clone().requires_grad_()
        value = (own @ x[n]).exp().sum()
        torch.testing.assert_close(result[0]["w"][n], torch.autograd.grad(value, own)[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(result[1][n], value.detach())
    torch.testing.assert_close(result[2], x.sum(1))


def test_vmap_of_partial_gradients_and_numbers() -> None:
    df = grad(lambda p: p["a"] * torch.stack([p["x"], p["x"] ** 2]), partial_grad=True)
    x, u = normal(3), normal(3, 2, seed=1)
    grads = torch.func.vmap(lambda x, u: df({"a": 2.0, "x": x}, u).grads)(x, u)
    torch.testing.assert_close(grads["x"], 2 * u[:, 0] + 4 * x * u[:, 1], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(grads["a"], x * u[:, 0] + x**2 * u[:, 1], rtol=1e-13, atol=1e-13)


def test_transforms_inside_the_function() -> None:
    result = grad(lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1])(X)
    torch.testing.assert_close(result.grads, H.sum(0), rtol=1e-12, atol=1e-12)


def test_constants_inside_a_transform_give_zeros() -> None:
    assert torch.equal(torch.func.vmap(lambda x: grad(lambda x: 3.0)(x).grads)(normal(2, 3)), torch.zeros(2, 3).double())


def test_hesse_jacobian_hessian_and_linearize() -> None:
    torch.testing.assert_close(hesse.jacobian(inner, X).jacobian, H, rtol=1e-12, atol=1e-12)
    g = lambda x: (grad(f)(x).grads ** 2).sum()  # noqa: E731
    expected = hessian_by_hand(lambda x: (torch.autograd.grad(f(x), x, create_graph=True)[0] ** 2).sum(), X)
    torch.testing.assert_close(hesse.hessian(g, X).hessian, expected, rtol=1e-11, atol=1e-11)
    v = normal(4, seed=1)
    torch.testing.assert_close(hesse.linearize(inner, X).jacobian @ v, H @ v, rtol=1e-12, atol=1e-12)
    outer = grad(lambda x: hesse.jacobian(f, x).jacobian.square().sum())(X).grads
    torch.testing.assert_close(outer, 2 * H @ inner(X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recording", [True, False])
def test_forward_mode_goes_through(recording: bool) -> None:
    v = normal(4, seed=1)
    with torch.set_grad_enabled(recording), fwd.dual_level():
        result = grad(f)(fwd.make_dual(X, v))
        tangent = fwd.unpack_dual(result.grads).tangent
        rise = fwd.unpack_dual(result.value).tangent
    torch.testing.assert_close(tangent, H @ v, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rise, inner(X) @ v, rtol=1e-12, atol=1e-12)


def second(f: Any, x: Tensor) -> Tensor:
    """The gradient of the squared gradient's sum, by hesse.grad twice."""
    return grad(lambda x: grad(f)(x).grads.square().sum())(x).grads


def differences(f: Any, x: Tensor, v: Tensor, h: float = 1e-5) -> Tensor:
    """The derivative of the squared gradient's sum along v, by central differences of plain gradients."""

    def value(x: Tensor) -> Tensor:
        x = x.detach().clone().requires_grad_()
        return torch.autograd.grad(f(x), x)[0].square().sum()

    return (value(x + h * v) - value(x - h * v)) / (2 * h)


def programs() -> dict[str, tuple[Any, Tensor]]:
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 4).double().requires_grad_(False)
    heads = nn.MultiheadAttention(4, 2, batch_first=True).double().requires_grad_(False)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)).double()
    original = normed.parametrizations.weight.original1.detach().clone()
    norms = normed.parametrizations.weight.original0.detach().clone()
    index = torch.tensor([0, 2, 1, 2])
    weights = normal(2, 3, seed=8)
    return {
        "lstm": (lambda x: lstm(x)[0].square().sum(), normal(5, 2, 3)),
        "attention": (lambda x: F.scaled_dot_product_attention(x, x.sin(), x.cos()).square().sum(), normal(1, 2, 5, 4)),
        "heads": (lambda x: heads(x, x, x, need_weights=False)[0].square().sum(), normal(1, 5, 4)),
        "weight norm": (lambda v: (weights * torch._weight_norm(v, norms, 0)).sum().exp(), original),
        "bags": (lambda w: F.embedding_bag(index, w, torch.tensor([0, 2])).exp().sum(), normal(3, 2)),
        "checkpoint": (lambda x: checkpoint(lambda y: y.sin().exp(), x, use_reentrant=False).sum(), normal(3)),
        "custom": (lambda x: Square.apply(x).sin().sum(), normal(3)),
    }


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return 2 * ctx.saved_tensors[0] * grads[0]


@pytest.mark.parametrize("name", list(programs()))
def test_second_derivatives_where_kernels_are_fused(name: str) -> None:
    g, x = programs()[name]
    v = normal(*x.shape, seed=9)
    found = (second(g, x) * v).sum()
    torch.testing.assert_close(found, differences(g, x, v), rtol=1e-6, atol=1e-7)


def test_fused_attention_is_replaced_where_the_query_is_constant_and_the_closed_over_key_requires_grad() -> None:
    x, key = normal(1, 2, 5, 4), normal(1, 2, 5, 4, seed=1).requires_grad_()
    g = grad(lambda x: F.scaled_dot_product_attention(x, key, key).square().sum())(x).grads
    found = torch.autograd.grad(g.square().sum(), key)[0]
    v, h = normal(1, 2, 5, 4, seed=2), 1e-5

    def value(k: Tensor) -> Tensor:
        y = x.clone().requires_grad_()
        return torch.autograd.grad(F.scaled_dot_product_attention(y, k, k).square().sum(), y)[0].square().sum()

    k = key.detach()
    torch.testing.assert_close((found * v).sum(), (value(k + h * v) - value(k - h * v)) / (2 * h), rtol=1e-6, atol=1e-7)
