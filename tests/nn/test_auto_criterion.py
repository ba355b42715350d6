"""`AutoCriterion`: a function of an input and a target, as a loss module."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import hesse
from hesse.core.errors import LeafError, NonScalarError, StructureError, UnsupportedError
from hesse.nn import AutoCriterion

from .functions_to_import import squares

F64 = {"dtype": torch.float64}


def test_value_and_gradient_are_the_functions() -> None:
    loss = AutoCriterion("Squares")(squares)
    y = torch.randn(5, 3, **F64, requires_grad=True)
    target = torch.randn(5, 3, **F64)
    expected = sum((y[i, j].item() - target[i, j].item()) ** 2 for i in range(5) for j in range(3))
    assert loss(y, target).item() == pytest.approx(expected, rel=1e-14)
    loss(y, target).backward()
    torch.testing.assert_close(y.grad, 2 * (y - target).detach(), rtol=1e-14, atol=1e-14)
    assert target.grad is None and not target.requires_grad


def test_the_target_has_a_gradient_where_it_asks_for_one() -> None:
    loss = AutoCriterion("Squares")(squares)
    y, target = torch.randn(4, **F64), torch.randn(4, **F64, requires_grad=True)
    torch.testing.assert_close(torch.autograd.grad(loss(y, target), target)[0], 2 * (target - y).detach())
    grads = hesse.grad(loss, 1)(y, target.detach()).grads
    torch.testing.assert_close(grads, 2 * (target - y).detach())


def test_trees_of_inputs_and_targets() -> None:
    def two(outputs, targets):
        return squares(outputs["a"], targets[0]) + 3 * squares(outputs["b"], targets[1])

    a, b = torch.randn(3, **F64, requires_grad=True), torch.randn(2, **F64, requires_grad=True)
    value = AutoCriterion("Two")(two)({"a": a, "b": b}, (torch.zeros(3, **F64), torch.ones(2, **F64)))
    ga, gb = torch.autograd.grad(value, (a, b))
    torch.testing.assert_close(ga, 2 * a.detach())
    torch.testing.assert_close(gb, 6 * (b - 1).detach())


def test_each_instance_has_its_own_function() -> None:
    cls = AutoCriterion("Mine")
    first, second = cls(squares), cls(lambda y, t: (y - t).abs().sum())
    y, t = torch.tensor([3.0, 5.0]), torch.tensor([1.0, 2.0])
    assert first(y, t).item() == 13.0 and second(y, t).item() == 5.0
    assert copy.deepcopy(second)(y, t).item() == 5.0
    assert repr(first) == "Mine(squares)" and isinstance(first, nn.Module) and AutoCriterion("Mine") is cls
    assert not list(first.parameters()) and not first.state_dict()


def test_it_is_saved_where_its_function_can_be_imported() -> None:
    loss, y, t = AutoCriterion("Kept")(squares), torch.randn(3), torch.randn(3)
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert type(again) is type(loss) and again(y, t) == loss(y, t)
    with pytest.raises(UnsupportedError, match="import"):
        pickle.dumps(AutoCriterion("Local")(lambda y, t: (y - t).sum()))


def test_a_custom_loss_for_hesse() -> None:
    net = nn.Linear(3, 2).double()
    x, y = torch.randn(4, 3, **F64), torch.randn(4, 2, **F64)
    J = hesse.parameter_jacobian(net, AutoCriterion("Squares")(squares), (x, y))
    rows = [torch.autograd.grad(((net(x[n]) - y[n]) ** 2).sum(), list(net.parameters())) for n in range(4)]
    torch.testing.assert_close(J.dense(), torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]))


def test_what_is_no_loss_is_refused() -> None:
    y, t = torch.randn(3), torch.randn(3)
    with pytest.raises(NonScalarError, match=r"(?s)each\(input, target\) gives one number.*\(3,\).*mean"):
        AutoCriterion("Each")(_each)(y, t)
    with pytest.raises(LeafError, match="float"):
        AutoCriterion("Number")(lambda y, t: 3.0)(y, t)
    with pytest.raises(StructureError, match="takes a function"):
        AutoCriterion("Nothing")(None)
    with pytest.raises(StructureError, match="class of that name"):
        AutoCriterion(squares)


def _each(y, t):
    return (y - t) ** 2


_each.__name__ = "each"
