"""`hessian_operator`: products with the Hessian from a kept graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hesse.autodiff import functional, hessian_operator
from hesse.core.errors import HolomorphyError, NonScalarError, StructureError
from hesse.operators import Tag

from .programs import REAL, ReverseOnlySquare, differences, hessian_by_loops, seeded

W = seeded(5, 6, seed=1)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quartic": lambda x: (x**4).sum() + x.prod(),
    "tanh": lambda x: torch.tanh(W @ x).logsumexp(0),
    "shape [1]": lambda x: (x**3).sum().reshape(1),
    "checkpoint": lambda x: checkpoint(lambda t: torch.tanh(W @ t), x, use_reentrant=False).pow(3).sum(),
    "max pool": lambda x: (F.max_pool2d(x.reshape(1, 2, 3), (1, 2), stride=1) ** 3).sum(),
    "python function": lambda x: ReverseOnlySquare.apply(x.sin()).sum(),
    "linear": lambda x: 3 * x.sum(),
    "branch": lambda x: (x**2).sum() if x[0].item() < 100 else x.sum(),
    "norm": lambda x: x.norm() * x[0],
    "linalg": lambda x: torch.linalg.det(torch.outer(x[:3], x[3:]) + 2 * torch.eye(3, dtype=REAL)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("grad", [True, False])
def test_products(name: str, grad: bool) -> None:
    f, x, V = FUNCTIONS[name], seeded(6), seeded(3, 6, seed=2)
    H = hessian_by_loops(lambda t: f(t).sum() + 0 * (t**2).sum(), x)
    with torch.set_grad_enabled(grad):
        A = hessian_operator(f, x)
        torch.testing.assert_close(A @ V[0], H @ V[0])
        torch.testing.assert_close(A @ V, V @ H)
        torch.testing.assert_close(A.gradient, differences(lambda t: f(t).sum(), x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(A.value, f(x))
    assert A.T is A and A.H is A and Tag.SYMMETRIC in A.tags
    assert not (A @ V[0]).requires_grad


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_modules_by_their_parameters(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    module = kind(2, 3, num_layers=2, batch_first=True, dtype=REAL)
    x, w = seeded(2, 4, 2), seeded(2, 4, 3, seed=1)
    f, params = functional(module)
    A = hessian_operator(lambda p: (f(p, x)[0] * w).sum(), params)
    v = {name: seeded(*p.shape, seed=3) for name, p in params.items()}

    def gradient(step: float) -> dict[str, Tensor]:
        moved = {name: (p + step * v[name]).requires_grad_() for name, p in params.items()}
        loss = (torch.func.functional_call(module, moved, (x,))[0] * w).sum()
        return dict(zip(moved, torch.autograd.grad(loss, list(moved.values())), strict=True))

    h, Hv = 1e-3, A @ v
    near, far = (gradient(h), gradient(-h)), (gradient(2 * h), gradient(-2 * h))
    for name in params:
        slope = (8 * (near[0][name] - near[1][name]) - (far[0][name] - far[1][name])) / (12 * h)
        torch.testing.assert_close(Hv[name], slope, rtol=1e-6, atol=1e-9)


def test_sparse_embeddings() -> None:
    table, at, v = seeded(5, 2), torch.tensor([1, 1, 4]), seeded(5, 2, seed=1)
    with torch.no_grad():
        A = hessian_operator(lambda w: (F.embedding(at, w, sparse=True) ** 3).sum(), table)
        count = torch.tensor([0.0, 2.0, 0.0, 0.0, 1.0], dtype=REAL)[:, None]
        torch.testing.assert_close(A @ v, 6 * count * table * v)


def test_products_are_differentiable_upstream() -> None:
    x, w, v = seeded(3).requires_grad_(), seeded(3, seed=1).requires_grad_(), seeded(3, seed=2).requires_grad_()
    A = hessian_operator(lambda t: (w * t**4).sum(), x)
    gx, gw, gv = torch.autograd.grad((A @ v).sum(), (x, w, v), retain_graph=True)
    torch.testing.assert_close(gx, 24 * w * x * v)
    torch.testing.assert_close(gw, 12 * x**2 * v)
    torch.testing.assert_close(gv, 12 * w * x**2)
    torch.testing.assert_close(torch.autograd.grad(A.gradient.sum(), w)[0], 4 * x**3)


def test_inside_transforms() -> None:
    X, v = seeded(4, 3), seeded(3, seed=1)
    out = torch.func.vmap(lambda t: hessian_operator(lambda s: (s**4).sum() * s[0], t) @ v)(X)
    for x, row in zip(X, out, strict=True):
        torch.testing.assert_close(row, hessian_by_loops(lambda s: (s**4).sum() * s[0], x) @ v)


def test_trees_of_tensors_and_floats() -> None:
    A = hessian_operator(lambda p: p["a"] ** 2 * p["b"][0] ** 3, {"a": 2.0, "b": (3.0, None, 7)})
    assert float(A.value) == 4 * 27
    product = A @ {"a": 1.0, "b": (0.0, None, 7)}
    assert (float(product["a"]), float(product["b"][0])) == (54, 108)
    assert product["b"][1:] == (None, 7)


def test_one_run_of_the_function() -> None:
    runs = 0

    def f(x: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        return (x**4).sum()

    A = hessian_operator(f, seeded(3))
    A @ seeded(3)
    A @ seeded(5, 3)
    assert runs == 1


def test_refusals() -> None:
    x = seeded(3)
    with pytest.raises(NonScalarError, match=r"shape \(3,\)(.|\n)*batched"):
        hessian_operator(lambda t: t**2, x)
    with pytest.raises(NonScalarError, match=r"\[\(\), \(\)\]"):
        hessian_operator(lambda t: (t.sum(), t.prod()), x)
    with pytest.raises(HolomorphyError, match="view_as_real"):
        hessian_operator(lambda t: (t.abs() ** 2).sum(), x.to(torch.complex128))
    with pytest.raises(StructureError, match="already computed tensor"):
        hessian_operator((x**2).sum(), x)
