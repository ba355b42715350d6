"""`functionalize`: constructors of a package that make pure functions."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

import hesse
from hesse.core.errors import LeafError, MissingExtraError
from hesse.nn import functionalize

F64 = {"dtype": torch.float64}


@pytest.mark.parametrize("package", ["torch.nn", "nn", torch.nn])
def test_a_package(package) -> None:
    fnn = functionalize(package)
    f, params = fnn.Linear(4, 3)
    assert list(params) == ["weight", "bias"] and params["weight"].shape == (3, 4)
    assert not any(p.requires_grad or isinstance(p, nn.Parameter) for p in params.values())
    x = torch.randn(5, 4)
    torch.testing.assert_close(f(params, x), x @ params["weight"].T + params["bias"])
    torch.testing.assert_close(f({name: 2 * p for name, p in params.items()}, x), 2 * f(params, x))
    assert torch.equal(fnn.ReLU()(x), x.clamp(min=0))
    assert torch.equal(fnn.MSELoss(reduction="sum")(x, x + 2), torch.tensor(80.0))
    assert fnn.functional is nn.functional and "Linear" in dir(fnn)
    assert repr(fnn) == "functionalize(torch.nn)" and repr(fnn.ReLU()) == "functionalize(ReLU)"
    assert inspect.signature(fnn.Linear) == inspect.signature(nn.Linear)
    assert fnn.Linear.__name__ == "Linear" and "torch.nn.modules.linear.Linear" in repr(fnn.Linear)
    with pytest.raises(AttributeError, match="Linaer"):
        fnn.Linaer  # noqa: B018


def test_gradients_of_a_net_of_functions() -> None:
    fnn = functionalize("nn")
    first, p1 = fnn.Linear(4, 6, **F64)
    second, p2 = fnn.Linear(6, 3, **F64)
    act, loss = fnn.Tanh(), fnn.CrossEntropyLoss()
    x, y = torch.randn(5, 4, **F64), torch.tensor([0, 2, 1, 1, 0])
    grads, value = hesse.grad(lambda p, x, y: loss(second(p["b"], act(first(p["a"], x))), y))({"a": p1, "b": p2}, x, y)
    w = [t.clone().requires_grad_() for t in (p1["weight"], p1["bias"], p2["weight"], p2["bias"])]
    scores = torch.tanh(x @ w[0].T + w[1]) @ w[2].T + w[3]
    by_hand = sum(torch.logsumexp(s, 0) - s[c] for s, c in zip(scores, y.tolist(), strict=True)) / 5
    expected = torch.autograd.grad(by_hand, w)
    torch.testing.assert_close(value, by_hand.detach(), rtol=1e-13, atol=1e-13)
    given = [grads["a"]["weight"], grads["a"]["bias"], grads["b"]["weight"], grads["b"]["bias"]]
    for a, b in zip(given, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_one_function_twice_in_a_graph() -> None:
    f, params = functionalize("nn").Linear(3, 3, **F64)
    x = torch.randn(2, 3, **F64)
    grads = hesse.grad(lambda p: f(p, f(p, x)).pow(2).sum())(params).grads
    w, b = (t.clone().requires_grad_() for t in params.values())
    expected = torch.autograd.grad((((x @ w.T + b) @ w.T + b) ** 2).sum(), (w, b))
    torch.testing.assert_close(grads["weight"], expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads["bias"], expected[1], rtol=1e-12, atol=1e-12)


def test_gradients_with_respect_to_input_and_target() -> None:
    loss = functionalize("nn").MSELoss(reduction="sum")
    y, t = torch.randn(4, **F64), torch.randn(4, **F64)
    torch.testing.assert_close(hesse.grad(loss)(y, t).grads, 2 * (y - t))
    torch.testing.assert_close(hesse.grad(loss, 1)(y, t).grads, 2 * (t - y))


def test_losses_of_several_tensors() -> None:
    fnn = functionalize("nn")
    a, b, c = torch.randn(3, 2, **F64), torch.randn(3, 2, **F64), torch.randn(3, 2, **F64)
    torch.testing.assert_close(fnn.TripletMarginLoss()(a, b, c), nn.TripletMarginLoss()(a, b, c))
    both = functionalize(_TwoLosses())
    torch.testing.assert_close(both([a, b], {"x": c, "y": c}), ((a - c) ** 2).mean() + 3 * (b - c).abs().mean())


class _TwoLosses(nn.Module):
    def forward(self, outputs, targets):
        x, y = outputs
        return nn.functional.mse_loss(x, targets["x"]) + 3 * nn.functional.l1_loss(y, targets["y"])


def test_modules_of_ones_own() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    f, params = functionalize(net)
    x = torch.randn(6, 3, **F64)
    before = net[1].running_mean.clone()
    torch.testing.assert_close(f(params, x), net(x))
    net[1].running_mean.copy_(before)
    f(params, x)
    assert torch.equal(net[1].running_mean, before)
    frozen = functionalize(nn.Linear(3, 2).requires_grad_(False))
    assert frozen(torch.randn(6, 3)).shape == (6, 2)
    norm = functionalize("nn").BatchNorm1d(2, affine=False)
    assert torch.equal(norm(x[:, :2].float()), norm(x[:, :2].float()))


def test_a_package_is_copied_and_pickled_by_name() -> None:
    for again in (copy.deepcopy(functionalize("nn")), pickle.loads(pickle.dumps(functionalize("nn")))):
        assert repr(again) == "functionalize(torch.nn)" and set(again.Linear(3, 2)[1]) == {"weight", "bias"}


def test_another_package_and_what_is_none() -> None:
    assert functionalize("torch.nn.modules.activation").ELU(alpha=2.0)(torch.tensor(-1e4)).item() == -2.0
    with pytest.raises(MissingExtraError, match=r"no_such_package"):
        functionalize("no_such_package.nn")
    with pytest.raises(MissingExtraError, match="''"):
        functionalize("")
    for value, words in ((3, "a int"), (nn.Linear, "the class Linear"), (None, "a NoneType")):
        with pytest.raises(LeafError, match=words):
            functionalize(value)
