"""Derivatives of any order, under every transform, and by the library's own questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.testing import assert_close

import hesse
from hesse.nn import ReceptiveFieldConv1d, ReceptiveFieldConv2d, ReceptiveFieldConv3d

from .common import FUNCTIONS, REDUCTIONS, neuron, plus, tangent
from .oracle import Case

Sweep = Callable[[Sequence[Any], int], list[Any]]


def as_function(module: torch.nn.Module) -> Callable[..., Tensor]:
    names = [name for name, _ in module.named_parameters()]
    return lambda x, *values: functional_call(module, dict(zip(names, values, strict=True)), (x,))


def test_first_and_second_derivatives_by_differences(sweep: Sweep) -> None:
    cases = [(name, reduce) for name in FUNCTIONS if name != "distance" for reduce in (*REDUCTIONS, torch.median)]
    for name, reduce in sweep(cases, 2):
        torch.manual_seed(0)  # a case has the same numbers whatever was drawn before: differences need to stay off kinks
        fn, weight_shape = FUNCTIONS[name]
        module = ReceptiveFieldConv2d(
            fn,
            2,
            2,
            (2, 1),
            weight_shape=weight_shape,
            reduce=reduce,
            groups=2,
            stride=(1, 2),
            padding=(0, 1),
            dtype=torch.float64,
        )
        x = torch.rand(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(as_function(module), (x, *module.parameters()), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(as_function(module), (x, *module.parameters()))


@pytest.mark.parametrize("reduce", ["sum", "prod", "logsumexp"])
def test_third_derivatives(reduce: str) -> None:
    module = ReceptiveFieldConv1d(tangent, 1, 2, 2, reduce=reduce, stride=2, bias=False, dtype=torch.float64)
    case = Case(tangent, (2,), reduce=reduce, stride=(2,), dilation=(1,), padding=((0, 0),))
    x = torch.rand(1, 1, 4, dtype=torch.float64, requires_grad=True)
    found = []
    for y in (module(x), case.run(x, module.weight, None)):
        first = torch.autograd.grad((y**2).sum(), [x, module.weight], create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), [x, module.weight], create_graph=True)
        found.append(torch.autograd.grad(sum((g**3).sum() for g in second), [x, module.weight]))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reduce", ["sum", "prod", "max", "logsumexp"])
def test_transforms_agree_with_loops(reduce: str) -> None:
    module = ReceptiveFieldConv2d(neuron, 2, 2, 2, weight_shape=(2,), reduce=reduce, dtype=torch.float64)
    f, params = as_function(module), tuple(p.detach() for p in module.parameters())
    x = torch.randn(3, 2, 3, 4, dtype=torch.float64)

    def loss(w: Tensor, x: Tensor) -> Tensor:
        return (f(x, w, params[1]) ** 2).sum()

    right = torch.stack([torch.autograd.grad((module(one) ** 2).sum(), module.weight)[0] for one in x])
    assert_close(vmap(grad(loss), (None, 0))(params[0], x), right, rtol=1e-11, atol=1e-11)
    batched = vmap(lambda w: f(x, w, params[1]))(torch.stack([params[0], 2 * params[0]]))
    assert_close(batched[1], f(x, 2 * params[0], params[1]), rtol=1e-12, atol=1e-12)
    tangent_of_weight = torch.randn_like(params[0])
    _, along = jvp(lambda w: loss(w, x), (params[0],), (tangent_of_weight,))
    assert_close(along, (right.sum(0) * tangent_of_weight).sum(), rtol=1e-11, atol=1e-11)
    of_one = hessian(lambda w: loss(w, x[0]))(params[0]).reshape(32, 32)
    assert_close(of_one, hesse.hessian(lambda w: loss(w, x[0]), params[0]).hessian.reshape(32, 32), rtol=1e-10, atol=1e-10)
    variable = params[0].clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(variable, x[0]), variable, create_graph=True)
    rows = torch.stack([torch.autograd.grad(e, variable, retain_graph=True)[0].flatten() for e in g.flatten()])
    assert_close(of_one, rows, rtol=1e-10, atol=1e-10)


def test_one_transform_after_another() -> None:
    """What is found out under one transform is not kept in its tensors: they die with it."""
    module = ReceptiveFieldConv2d(tangent, 1, 2, 2, reduce="prod", dtype=torch.float64)
    x = torch.rand(1, 1, 3, 4, dtype=torch.float64)
    of_input = hessian(lambda x: module(x).sum())(x)
    params, images = dict(module.named_parameters()), torch.rand(3, 1, 3, 4, dtype=torch.float64)
    found = vmap(grad(lambda p, z: functional_call(module, p, (z[None],)).sum()), (None, 0))(params, images)
    right = torch.stack([torch.autograd.grad(module(z[None]).sum(), module.weight)[0] for z in images])
    assert_close(found["weight"], right, rtol=1e-12, atol=1e-12)
    assert_close(hessian(lambda x: module(x).sum())(x), of_input, rtol=0, atol=0)


def test_transforms_of_what_a_function_closes_over() -> None:
    x, h, slopes = torch.rand(2, 1, 3, 4, dtype=torch.float64), 1e-6, [torch.tensor(0.7, dtype=torch.float64)]
    for examined_before in (False, True):
        module = ReceptiveFieldConv2d(lambda p, w: torch.tanh(p * w * slopes[-1]), 1, 2, 2, dtype=torch.float64)

        def loss(slope: Tensor, module: torch.nn.Module = module) -> Tensor:
            slopes.append(slope)
            return module(x).sum()

        if examined_before:
            loss(slopes[0])
        along = grad(loss)(slopes[0])
        together = vmap(grad(loss))(slopes[0].expand(2))
        right = (loss(slopes[0] + h) - loss(slopes[0] - h)) / (2 * h)
        assert_close(along.detach(), right.detach(), rtol=1e-8, atol=0)
        assert_close(together.detach(), right.detach().expand(2), rtol=1e-8, atol=0)


@pytest.mark.parametrize("recording", [True, False])
@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_forward_mode_by_what_a_function_closes_over(recording: bool, reduce: str) -> None:
    x, h = torch.rand(2, 1, 3, 4, dtype=torch.float64), 1e-6
    slopes: list[Tensor] = []
    module = ReceptiveFieldConv2d(lambda p, w: torch.tanh(p + w) * slopes[-1] ** 2, 1, 2, 2, reduce=reduce, dtype=torch.float64)
    values = []
    for slope in (0.7 - h, 0.7 + h):
        slopes.append(torch.tensor(slope, dtype=torch.float64))
        values.append(module(x).detach())
    with torch.set_grad_enabled(recording), forward_ad.dual_level():
        slopes.append(forward_ad.make_dual(torch.tensor(0.7, dtype=torch.float64), torch.ones((), dtype=torch.float64)))
        along = forward_ad.unpack_dual(module(x)).tangent
    assert along is not None
    assert_close(along.detach(), (values[1] - values[0]) / (2 * h), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("reduce", ["sum", "prod", torch.amax])
def test_gradients_for_several_cotangents_at_once(reduce: Any) -> None:
    module = ReceptiveFieldConv1d(tangent, 2, 3, 2, reduce=reduce, dtype=torch.float64)
    x = torch.rand(2, 2, 5, dtype=torch.float64, requires_grad=True)
    y = module(x)
    u = torch.randn(4, *y.shape, dtype=torch.float64)
    (together,) = torch.autograd.grad(y, x, u, is_grads_batched=True, retain_graph=True)
    for one, row in zip(u, together, strict=True):
        assert_close(torch.autograd.grad(y, x, one, retain_graph=True)[0], row, rtol=1e-11, atol=1e-11)
    rows = torch.func.vmap(lambda one: torch.autograd.grad(y, x, one, retain_graph=True)[0])(u)
    assert_close(rows, together, rtol=1e-11, atol=1e-11)


def test_only_what_is_asked_for() -> None:
    module = ReceptiveFieldConv3d(plus, 1, 2, 2, reduce="max", dtype=torch.float64)
    x = torch.rand(1, 1, 3, 3, 4, dtype=torch.float64)
    module.weight.requires_grad_(False)
    assert module(x).requires_grad  # the bias
    module.bias.requires_grad_(False)
    assert not module(x).requires_grad
    x.requires_grad_()
    (alone,) = torch.autograd.grad(module(x).sum(), x)
    module.weight.requires_grad_(True)
    assert_close(torch.autograd.grad(module(x).sum(), [x, module.weight])[0], alone, rtol=0, atol=0)
    with torch.inference_mode():
        assert_close(module(x), module(x), rtol=0, atol=0)


def test_the_librarys_questions() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        ReceptiveFieldConv2d(tangent, 1, 2, 2, reduce="logsumexp", dtype=torch.float64),
        torch.nn.Flatten(),
        torch.nn.Linear(12, 3, dtype=torch.float64),
    )
    x, target = torch.rand(4, 1, 3, 4, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    loss = torch.nn.CrossEntropyLoss()
    rows = hesse.parameter_jacobian(model, loss, (x, target)).dense()
    for i in range(4):
        right = torch.autograd.grad(loss(model(x[i : i + 1]), target[i : i + 1]), list(model.parameters()))
        assert_close(rows[i], torch.cat([g.flatten() for g in right]), rtol=1e-10, atol=1e-11)
    assert hesse.check_module(model[0], x).ok
    recorded = hesse.grad(lambda w: functional_call(model[0], {"weight": w}, (x,)).sum(), compile="replay")
    for factor in (1.0, 1.5):
        w = factor * model[0].weight.detach()
        variable = w.clone().requires_grad_()
        right = torch.autograd.grad(functional_call(model[0], {"weight": variable}, (x,)).sum(), variable)[0]
        with torch.no_grad():
            assert_close(recorded(w).grads, right, rtol=1e-10, atol=1e-11)
