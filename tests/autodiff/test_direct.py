"""Direct mode's parts: one run, the walk over leaves, memory of gradients, the default mode of the graph's questions."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.autodiff import direct
from hesse.autodiff.direct import differentiate
from hesse.autodiff.direct_graph import hangs_on_others, has_fused_kernel
from hesse.autodiff.dispatching import LightMode
from hesse.autodiff.ownership import owned
from hesse.autodiff.variables import LINKED, OTHERS, Variables, requires_grad, survey
from hesse.core.errors import LeafError

X = torch.arange(1.0, 5.0, dtype=torch.float64)


def test_all_results_are_tensors() -> None:
    done = differentiate(lambda p, c: (p["a"] * p["t"] ** 2 * c).sum(), [0], [{"a": X, "t": 3.0}, 2.0], {})
    assert isinstance(done.grads[1], Tensor) and not done.attached
    assert torch.equal(done.grads[0], torch.full((4,), 18.0).double()) and float(done.grads[1]) == 120.0
    assert done.variables.like(done.grads, attached=False)["t"] == 120.0
    assert isinstance(done.variables.like(done.grads, attached=True)["t"], Tensor)


def test_the_function_runs_once_and_gets_containers_of_its_own() -> None:
    calls: list[Any] = []
    params = {"a": X, "b": [X]}

    def f(p: Any) -> Tensor:
        calls.append(p)
        value = (p["a"] * p["b"][0]).sum()
        p["b"].clear()
        return value

    assert torch.equal(differentiate(f, [0], [params], {}).grads[1], X)
    assert len(calls) == 1 and len(params["b"]) == 1


def test_seconds_of_the_passes_are_told() -> None:
    told: list[tuple[float, float]] = []
    differentiate(lambda x: x.sum(), [0], [X], {}, passed=lambda *seconds: told.append(seconds))
    assert len(told) == 1 and min(told[0]) > 0


def test_parameters_given_as_parameters_and_other_containers() -> None:
    tree = OrderedDict(a=nn.Parameter(X), b=(2.0, "x", None))
    variables = Variables(tree, "asked")
    assert variables.names() == ["a", "b.0"] and variables.has_numbers
    assert [t.dtype for t in variables.tensors()] == [torch.float64, torch.float64]
    again = variables.restore([X, X])
    assert type(again) is OrderedDict and again["b"] == (X, "x", None) and again["a"] is X
    with pytest.raises(LeafError, match=r"'b\.0'"):
        Variables(OrderedDict(a=X, b=[object()]), "asked")


def test_requires_grad_looks_everywhere() -> None:
    linked = X.clone().requires_grad_()
    assert requires_grad({"a": [X, (linked,)]}) and requires_grad(OrderedDict(a=linked))
    assert not requires_grad({"a": [X, None, 2.0, "text"]})


def test_one_walk_tells_what_a_tree_holds() -> None:
    linked = X.clone().requires_grad_()
    assert survey({"a": [X, nn.Parameter(X, requires_grad=False)], "b": (None, 3, "text", {})}) == 0
    assert survey([{"a": X}, [X, linked]]) == survey((X, nn.Parameter(X))) == survey(linked) == LINKED
    assert survey([X, 2.0]) == survey(1j) == survey([{"a": OrderedDict(b=X)}]) == OTHERS
    assert survey([2.0, {"a": linked}]) == survey([OrderedDict(a=linked)]) == LINKED | OTHERS


def test_numbers_are_as_precise_as_in_python() -> None:
    number, complex_number = Variables([0.1, 2 + 1j], "asked").tensors()
    assert number.dtype == torch.float64 and number.item() == 0.1 and complex_number.dtype == torch.complex128
    assert (number * torch.ones(2)).dtype == torch.float32


class Noted(torch.autograd.Function):
    """The identity; its backward notes whether autocasting is on, and whether the pass is recorded."""

    seen: ClassVar[list[tuple[bool, bool]]] = []

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        Noted.seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return grads[0] * 2


def test_backward_pass_is_the_same_watched_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradient() -> Tensor:
        done = differentiate(lambda x: (Noted.apply(x) ** 2).sum(), [0], [X], {})
        assert not done.attached and not done.grads[0].requires_grad
        return done.grads[0]

    Noted.seen.clear()
    found = [gradient()]
    with torch.autocast("cpu"):
        found.append(gradient())
    with LightMode():
        found.append(gradient())
    with torch.overrides.BaseTorchFunctionMode():
        found.append(gradient())
    monkeypatch.setattr(direct._log, "isEnabledFor", lambda level: True)
    found.append(gradient())
    assert all(torch.equal(g, 4 * X) for g in found) and Noted.seen == [(False, False)] * 5


def test_a_parameter_as_the_value() -> None:
    first, second = (differentiate(lambda x: x, [0], [X[2]], {}) for _ in range(2))
    first.grads[0].mul_(5)
    assert second.grads[0] == 1 and torch.equal(second.outputs, X[2]) and not second.attached


def test_memory_of_gradients() -> None:
    whole = torch.zeros(3, 2)
    rows = owned(whole.unbind(0), [torch.ones(2)] * 3, None)
    assert len({g.untyped_storage().data_ptr() for g in rows}) == 3
    assert owned([whole], [whole.detach()], None)[0] is not whole
    assert owned([torch.zeros(1).expand(3)], [torch.ones(3)], None)[0].is_contiguous()
    g, x = torch.zeros(4), torch.ones(4)
    apart = owned([g, torch.zeros(2, 3).t()], [x, x], [])
    assert apart[0] is g
    shared = owned([g, g, g[1:3], g.view(2, 2), torch.zeros(()).expand(4), x, None], [x] * 7, [])
    assert len({t.untyped_storage().data_ptr() for t in (*shared, x)}) == 8
    assert shared[4].is_contiguous() and torch.equal(shared[6], torch.zeros(4))
    cotangent = torch.ones(4)
    assert owned([cotangent], [x], [cotangent])[0] is not cotangent


def test_what_a_graph_hangs_on() -> None:
    x, other = X.clone().requires_grad_(), X.clone().requires_grad_()
    assert not hangs_on_others((x * 2, None, {"a": x.sin()}), [x])
    assert hangs_on_others((x * 2, {"a": [(other * x).sin()]}), [x])
    assert hangs_on_others((x * 2, other), [x]) and not hangs_on_others((x * 2, x, X), [x])
    q = torch.randn(1, 1, 3, 4).requires_grad_()
    assert has_fused_kernel(nn.functional.scaled_dot_product_attention(q, q, q).sum())
    assert not has_fused_kernel((q.sin(), q))


def test_leaves_made_inside_do_not_attach_the_result() -> None:
    p, x = torch.tensor([2.0, 3.0], dtype=torch.float64), torch.tensor([0.5, -1.0], dtype=torch.float64)

    def inside(p: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return hesse.grad(lambda y: (p * y**3).sum(), with_forward=False)(x).square().sum()

    found = hesse.grad(inside)(p, x).grads
    assert not found.requires_grad
    torch.testing.assert_close(found, 18 * p * x**4, rtol=1e-12, atol=0)

    def by_hand(p: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        y = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad((p * y**3).sum(), y, create_graph=True)
        return slope.square().sum()

    assert not hesse.grad(by_hand)(p, x).grads.requires_grad


def test_a_closed_over_leaf_attaches_the_result_however_it_is_held() -> None:
    layer, p = torch.nn.Linear(2, 1).double(), torch.ones(2, dtype=torch.float64)
    assert hesse.grad(lambda p: layer(p).square().sum())(p).grads.requires_grad
    held = [torch.ones(2, dtype=torch.float64, requires_grad=True)]
    found = hesse.grad(lambda p: (held[0] * p).square().sum())(p).grads
    (second,) = torch.autograd.grad(found.sum(), held[0])
    torch.testing.assert_close(second, 4 * p, rtol=1e-12, atol=0)
