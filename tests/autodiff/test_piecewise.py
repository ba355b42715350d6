"""What is piecewise linear in each of its parameters, and what is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.autodiff.forward import run_forward
from hesse.autodiff.model import as_model
from hesse.autodiff.piecewise import is_piecewise_linear
from tests.parameters.special import Free, L


def _residual(s: Any, x: Tensor) -> Tensor:
    return s.b(F.relu(s.a(x)) + x)


def _gated(s: Any, x: Tensor) -> Tensor:
    return s.b(F.relu(s.a(x)) * s.c(x))


def _squared(s: Any, x: Tensor) -> Tensor:
    return s.a(x) * s.a(x)


def _again(s: Any, x: Tensor) -> Tensor:
    return s.a(F.relu(s.a(x)))


def _scores(s: Any, x: Tensor) -> Tensor:
    z = s.a(x).unflatten(1, (2, 2))
    return (z @ z.mT).flatten(1)


CASES: dict[str, tuple[nn.Module, tuple[int, ...], bool]] = {
    "relu": (nn.Sequential(L(4, 5), nn.ReLU(), L(5, 2)), (4,), True),
    "convolutions and pooling": (
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.LeakyReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2),
                      nn.Flatten(), L(4, 3)), (2, 4, 5), True),
    "residual": (Free(_residual, a=L(4, 4), b=L(4, 3)), (4,), True),
    "product of two": (Free(_gated, a=L(4, 5), b=L(5, 2), c=L(4, 5)), (4,), True),
    "hard tanh": (nn.Sequential(L(4, 5), nn.Hardtanh(), L(5, 2)), (4,), True),
    "tanh": (nn.Sequential(L(4, 5), nn.Tanh(), L(5, 2)), (4,), False),
    "normalized": (nn.Sequential(L(4, 5), nn.LayerNorm(5), L(5, 2)), (4,), False),
    "used twice": (Free(_again, a=L(4, 4)), (4,), False),
    "squared": (Free(_squared, a=L(4, 4)), (4,), False),
    "attention's scores": (Free(_scores, a=L(4, 4)), (4,), False),
    "weight norm": (nn.Sequential(nn.utils.parametrizations.weight_norm(L(4, 5)), nn.ReLU(), L(5, 2)), (4,), False),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    model, shape, expected = CASES[name]
    model = model.double()
    run = run_forward(as_model(model), torch.randn(5, *shape, dtype=torch.float64), 5, "a test")
    assert is_piecewise_linear(run.walk) == expected
    if not expected:
        return
    x, params = torch.randn(1, *shape, dtype=torch.float64), dict(model.named_parameters())
    for name_, p in params.items():  # no second derivative of any output by any one parameter

        def output(q: Tensor, name_: str = name_) -> Tensor:
            return torch.func.functional_call(model, {**params, name_: q}, (x,)).sum()

        assert not torch.autograd.functional.hessian(output, p.detach()).any()


class Clamp(torch.autograd.Function):
    """A square, by a name that an op of PyTorch has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grads[0]


def test_functions_of_the_users_own_are_not_known_by_their_names() -> None:
    model = Free(lambda s, x: Clamp.apply(s.a(x)), a=L(4, 3)).double()
    run = run_forward(as_model(model), torch.randn(5, 4, dtype=torch.float64), 5, "a test")
    assert "ClampBackward" in {node.name() for node in run.walk.nodes}
    assert not is_piecewise_linear(run.walk)
