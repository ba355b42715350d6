"""Nothing of the user's changes: parameters, gradients, modes, hooks, random numbers, graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hesse.autodiff import functional, hessian_operator, linearize
from hesse.core.errors import HesseError
from hesse.derivatives import hessian, jacobian, laplacian

from ..autodiff.programs import REAL, seeded

CALLS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "jacobian": lambda net, x: jacobian(net, x),
    "forward": lambda net, x: jacobian(net, x, mode="forward"),
    "rows": lambda net, x: jacobian(net, x, structure="batched"),
    "hessian": lambda net, x: hessian(lambda t: net(t).sum(), x),
    "hessian rows": lambda net, x: hessian(lambda t: net(t).sum(1), x, structure="batched"),
    "laplacian": lambda net, x: laplacian(lambda t: net(t).sum(), x),
    "operator": lambda net, x: linearize(net, x).jacobian @ x,
    "curvature": lambda net, x: hessian_operator(lambda t: net(t).sum(), x) @ torch.stack([x, x]),
    "by parameters": lambda net, x: hessian(lambda p: functional(net)[0](p, x).sum(), functional(net)[1]),
    "refused": lambda net, x: hessian(net, x),
    "failing": lambda net, x: jacobian(net, x[:, :1]),
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("upstream", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_no_trace(name: str, upstream: bool) -> None:
    generator = torch.random.fork_rng()
    with generator:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    net[1].eval()
    net[0].weight.grad = torch.full((4, 3), 7.0, dtype=REAL)
    x = seeded(2, 3).requires_grad_(upstream)
    fired: list[Any] = []
    if upstream:
        x.register_hook(fired.append)
    net[0].weight.register_hook(fired.append)

    def look() -> list[Any]:
        items = [*net.named_parameters(), ("x", x)]
        grads = [None if t.grad is None else t.grad.tolist() for _, t in items]
        state = [grads, *((n, id(t), t._version, t.requires_grad, t.tolist()) for n, t in items)]
        modules = [(n, m.training, sorted(m.__dict__), len(m._forward_hooks)) for n, m in net.named_modules()]
        return [*state, *modules, x.is_leaf, sorted(x.__dict__)]

    before = look()
    try:
        CALLS[name](net, x)
    except (HesseError, RuntimeError):
        assert name in ("refused", "failing")
    assert look() == before
    assert not fired, "a hook of the user's fired on a gradient that was not asked for"


@pytest.mark.usefixtures("untouched")
def test_results_do_not_share_memory_with_the_point() -> None:
    x = seeded(3)
    kept = x.clone()
    jacobian(lambda t: t, x).jacobian.zero_()
    hessian(lambda t: t.pow(2).sum(), x).hessian.zero_()
    hessian_operator(lambda t: t.pow(2).sum() / 2, x).gradient.zero_()
    assert torch.equal(x, kept)
