"""Where was the graph cut? The message names the call and its line; a derivative that really is zero is let through."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Variable

from hesse.autodiff import hessian_operator, linearize
from hesse.core.errors import DetachedError

from .programs import REAL, seeded


def by_detach(x: Tensor) -> Tensor:
    y = x * 2
    z = y.detach() ** 2  # cut
    assert y.sum().item() is not None
    return z.sum()


def by_item(x: Tensor) -> Tensor:
    return torch.tensor((x * 2).sum().item() ** 2)  # cut


def by_no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = torch.sin(x)  # cut
    return y.sum()


def by_numpy(x: Tensor) -> Tensor:
    y = torch.from_numpy(x.detach().numpy() ** 2)  # cut
    return y.sum()


def by_data(x: Tensor) -> Tensor:
    return (x * 2).data.sum()  # cut


def by_copy(x: Tensor) -> Tensor:
    y = torch.zeros(3, dtype=REAL)
    y[:] = (x * 2).detach()  # cut
    return y.sum()


def by_wrapping(x: Tensor) -> Tensor:
    loss = (x**2).sum().data  # cut
    return Variable(loss, requires_grad=True)


CUTS = [by_detach, by_item, by_no_grad, by_numpy, by_data, by_copy, by_wrapping]


@pytest.mark.parametrize("f", CUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("ask", [linearize, hessian_operator])
def test_the_message_names_the_line(f: Callable[[Tensor], Tensor], ask: Callable[..., object]) -> None:
    lines, start = inspect.getsourcelines(f)
    line = start + next(i for i, text in enumerate(lines) if "# cut" in text)
    with pytest.raises(DetachedError) as caught:
        ask(f, seeded(3))
    assert f"{__file__}:{line}" in str(caught.value)
    assert "keep the computation in torch" in str(caught.value)


def test_a_wrapped_loss_is_told_apart() -> None:
    with pytest.raises(DetachedError, match="new leaf"):
        hessian_operator(by_wrapping, seeded(3))
    with pytest.raises(DetachedError, match="new leaf"):
        hessian_operator(lambda x: Variable((x**2).sum(), requires_grad=True), seeded(3))


upstream = torch.ones(3, dtype=REAL, requires_grad=True)
model = nn.Linear(3, 1, dtype=REAL)
ZERO: list[Callable[[Tensor], Tensor]] = [
    lambda x: torch.ones((), dtype=REAL),
    lambda x: torch.zeros_like(x).sum(),
    lambda x: (x.new_ones(3) + torch.full_like(x, 2.0)).sum(),
    lambda x: (x > 0).to(REAL).mean(),
    lambda x: x.argmax().to(REAL),
    lambda x: x.long().sum().to(REAL),
    lambda x: torch.round(x).sum(),
    lambda x: torch.sign(x).sum() + x.floor().sum(),
    lambda x: (x * 0).sum(),
    lambda x: torch.where(x > 0, 1.0, -1.0).to(REAL).sum(),
    lambda x: torch.ones((), dtype=REAL) if x.sum() > 0 else torch.zeros((), dtype=REAL),
    lambda x: upstream.sum(),
    lambda x: (upstream * 2).sum(),
    lambda x: model(torch.ones(3, dtype=REAL)).sum(),
]


@pytest.mark.parametrize("f", ZERO)
def test_constant_and_piecewise_constant_functions_have_zero_derivatives(f: Callable[[Tensor], Tensor]) -> None:
    x = seeded(3)
    A, H = linearize(f, x).jacobian, hessian_operator(f, x)
    assert torch.equal(A.T @ torch.ones((), dtype=REAL), torch.zeros(3, dtype=REAL))
    assert float((A @ x).abs()) == 0
    assert torch.equal(H @ x, torch.zeros(3, dtype=REAL))
    assert torch.equal(H.gradient, torch.zeros(3, dtype=REAL))


def test_the_constant_gradient_of_a_linear_function_is_no_cut() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        (g,) = torch.autograd.grad((x * 3).sum(), x, create_graph=True)
        return g.sum()

    x = torch.ones(2, dtype=torch.float64)
    jacobian = linearize(f, x).jacobian
    assert (jacobian.T @ torch.ones((), dtype=torch.float64)).tolist() == [0.0, 0.0]

    def cut(x: torch.Tensor) -> torch.Tensor:
        (g,) = torch.autograd.grad((x**3).sum(), x)
        return g.sum()

    with pytest.raises(DetachedError, match="grad"):
        linearize(cut, x)
