"""Direct mode's parts: one run, the walk over leaves, memory of gradients, the default mode of the graph's questions."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hesse.autodiff.direct import differentiate
from hesse.autodiff.direct_graph import hangs_on_others, has_fused_kernel
from hesse.autodiff.ownership import owned
from hesse.autodiff.variables import Variables, requires_grad
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
    assert [t.dtype for t in variables.tensors()] == [torch.float64, torch.get_default_dtype()]
    again = variables.restore([X, X])
    assert type(again) is OrderedDict and again["b"] == (X, "x", None) and again["a"] is X
    with pytest.raises(LeafError, match=r"'b\.0'"):
        Variables(OrderedDict(a=X, b=[object()]), "asked")


def test_requires_grad_looks_everywhere() -> None:
    linked = X.clone().requires_grad_()
    assert requires_grad({"a": [X, (linked,)]}) and requires_grad(OrderedDict(a=linked))
    assert not requires_grad({"a": [X, None, 2.0, "text"]})


def test_memory_of_gradients() -> None:
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
