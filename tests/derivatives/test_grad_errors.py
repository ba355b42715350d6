"""What `hesse.grad` refuses, and what it says: typed errors that name the leaf, the call and the remedy."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hesse.autodiff.direct_checks import ZeroGradientWarning
from hesse.core.errors import DetachedError, DeviceError, LeafError, NonScalarError, StructureError, UnsupportedError
from hesse.derivatives.grad import grad

from .test_grad import normal

X = normal(4)


def test_what_is_no_function() -> None:
    with pytest.raises(StructureError, match="already computed tensor"):
        grad(X.sum())  # pyright: ignore[reportArgumentType]
    with pytest.raises(StructureError, match="a dict in the place"):
        grad({})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"a": [X, torch.arange(3)]}, r"torch\.int64 at 'a\.1'"),
        (torch.tensor([True]), r"torch\.bool at 'the argument'"),
        ({"a": {"b": np.zeros(3)}}, r"ndarray at 'a\.b'"),
        ([X, nn.Linear(2, 2)], r"Linear at '1'(.|\n)*hesse\.functional\(module\)"),
        (np.zeros(3), "ndarray at 'the argument'"),
        ({"a": X, "set": {1.0}}, "set at 'set'"),
    ],
)
def test_leaves_that_cannot_be_differentiated(params: Any, message: str) -> None:
    with pytest.raises(LeafError, match=message):
        grad(lambda p: X.sum())(params)
    with pytest.raises(LeafError, match=message), torch.no_grad():
        grad(lambda p: X.sum())(params)


def test_integers_are_refused_inside_transforms_too() -> None:
    with pytest.raises(LeafError, match=r"torch\.int64"):
        torch.func.vmap(lambda x: grad(lambda p: p.sum())(x).grads)(torch.arange(6).reshape(2, 3))


@pytest.mark.parametrize("params", [{}, [], {"a": 1, "b": None}, "text", 3])
def test_nothing_to_differentiate_by(params: Any) -> None:
    with pytest.raises(StructureError, match="no tensor or float"):
        grad(lambda p: X.sum())(params)


def test_values_that_are_no_real_number() -> None:
    with pytest.raises(NonScalarError, match=r"shape \(4,\)(.|\n)*partial_grad=True"):
        grad(lambda x: x * 2)(X)
    with pytest.raises(NonScalarError, match=r"shape \(0,\)"):
        grad(lambda x: x[:0])(X)
    with pytest.raises(NonScalarError, match=r"complex(.|\n)*\.real"):
        grad(lambda z: z.sum())(torch.complex(X, X))
    with pytest.raises(NonScalarError, match="complex"):
        grad(lambda z: 3j)(X)
    with pytest.raises(LeafError, match=r"torch\.int64"):
        grad(lambda x: x.argmax())(X)
    for out in (None, "text", (), [X.sum()]):
        with pytest.raises(StructureError, match=f"returned {type(out).__name__}"):
            grad(lambda x, out=out: out)(X)
    assert torch.equal(grad(lambda x: x.sum(0, keepdim=True))(X).grads, torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("f", "op"),
    [
        (lambda x: x.sum().item(), "item"),
        (lambda x: float(x.sum()), "__float__"),
        (lambda x: (x * 2).detach().sum(), "detach"),
        (lambda x: torch.tensor((x**2).tolist()).sum(), "tolist"),
        (lambda x: torch.tensor(x.sum().item(), requires_grad=True) * 2, "new leaf"),
        (lambda x: (x.sum().detach() * 2, x), "detach"),
    ],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_the_call_that_cuts_the_graph_is_named(f: Any, op: str) -> None:
    with pytest.raises(DetachedError, match=op) as caught:
        grad(f)(X)
    if op != "new leaf":
        assert "test_grad_errors.py:" in str(caught.value)
    with torch.no_grad(), pytest.raises(DetachedError, match=op):
        grad(f)(X)


def test_cut_by_no_grad() -> None:
    def f(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x.exp()
        return y.sum()

    with pytest.raises(DetachedError, match=r"`exp`.*torch\.no_grad"):
        grad(f)(X)


def test_gradients_that_really_are_zero() -> None:
    zeros = torch.zeros(4, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = grad(lambda x: 3.0)(X)
        assert torch.equal(result.grads, zeros) and result.value == 3.0
        assert torch.equal(grad(lambda x: torch.ones(()))(X).grads, zeros)
        parameter = nn.Parameter(torch.ones(()))
        assert torch.equal(grad(lambda x: parameter * 2)(X).grads, zeros)
        assert grad(lambda t: 1)(2.0).grads == 0.0
    state = torch.get_rng_state()
    with pytest.warns(ZeroGradientWarning, match=r"`gt` at .*test_grad_errors\.py.*piecewise constant"):
        result = grad(lambda x: (x > 0).double().mean() + torch.rand(()) * 0)(X)
    assert torch.equal(result.grads, zeros) and result.value == (X > 0).double().mean()
    torch.set_rng_state(state)


def test_parameters_changed_in_place() -> None:
    x, p = X.clone(), {"a": X.clone(), "b": [X.clone()]}
    with pytest.raises(StructureError, match=r"in place(.|\n)*x\.clone\(\)"):
        grad(lambda x: x.mul_(2).sum())(x)
    with pytest.raises(StructureError, match=r"in place(.|\n)*x\.clone\(\)"):
        grad(lambda x: x.mul_(2).sum())(x.requires_grad_())

    def sly(p: Any) -> Tensor:
        with torch.no_grad():
            p["b"][0].add_(1)
        return (p["a"] * p["b"][0]).sum()

    with pytest.raises(StructureError, match=r"changed 'b\.0' in place"):
        grad(sly)(p)
    upstream = {"a": X, "b": [X.clone().requires_grad_() * 1]}
    with pytest.raises(StructureError, match=r"'b\.0' in place"):
        grad(lambda p: (p["b"][0].mul_(2) * p["a"]).sum())(upstream)


def test_mixed_devices() -> None:
    params = {"a": torch.ones(3), "b": torch.ones(3, device="meta")}
    with pytest.raises(DeviceError, match="'a' on cpu, 'b' on meta"):
        grad(lambda p: torch.linalg.solve(torch.eye(3), p["a"]) @ p["b"])(params)


def test_inference_mode_and_reentrant_checkpoints() -> None:
    with torch.inference_mode(), pytest.raises(UnsupportedError, match=r"torch\.no_grad"):
        grad(lambda x: x.sum())(X)
    with pytest.raises(UnsupportedError, match="use_reentrant=False"):
        grad(lambda x: checkpoint(lambda y: y.sin(), x, use_reentrant=True).sum())(X)


def test_errors_of_the_function_come_through() -> None:
    class Own(RuntimeError):
        pass

    def f(x: Tensor) -> Tensor:
        raise Own("mine")

    with pytest.raises(Own, match="mine"):
        grad(f)(X)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        with pytest.raises(Own):
            grad(f)(X)
        assert not torch.is_grad_enabled()
