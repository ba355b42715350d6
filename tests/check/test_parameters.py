"""Right gradients pass, wrong ones are named, and kinks raise no alarm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hesse.check import check_parameters
from hesse.core.errors import UnsupportedError


class Wrong(torch.autograd.Function):
    """The square, whose backward is off by a factor in the last column only."""

    factor = 1.01

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        scale = torch.ones_like(x)
        scale[..., -1] = Wrong.factor
        return 2 * x * scale * g


class Net(nn.Module):
    def __init__(self, square, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.square = nn.Linear(5, 7), nn.Linear(7, 3), square

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.square(torch.tanh(self.first(x))))


def batch(n: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, 5, generator=generator), torch.randint(3, (n,), generator=generator)


@pytest.fixture(autouse=True)
def _keep_rng():
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def test_a_right_gradient_is_confirmed() -> None:
    found = check_parameters(Net(lambda x: x**2), nn.CrossEntropyLoss(), batch())
    assert found.ok
    assert [row.name for row in found.rows] == ["first.weight", "first.bias", "second.weight", "second.bias"]
    assert all(row.error <= 3 * row.error_bar + 1e-9 and row.error_bar < 1e-6 for row in found.rows)
    assert all(1e-9 < row.own_dtype_error < 1e-5 for row in found.rows)
    assert not any(row.kink for row in found.rows)


def test_a_wrong_gradient_is_named_where_it_is_wrong() -> None:
    found = check_parameters(Net(Wrong.apply), nn.CrossEntropyLoss(), batch())
    verdicts = {row.name: row.verdict for row in found.rows}
    assert verdicts == {"first.weight": "wrong", "first.bias": "wrong", "second.weight": "ok", "second.bias": "ok"}
    assert not found.ok
    assert "2 wrong" in repr(found)
    assert 1e-4 < max(row.error for row in found.rows) < 0.1


def test_the_gradient_norm_is_that_of_the_float64_gradient() -> None:
    model, (x, y) = Net(lambda x: x**2), batch()
    found = check_parameters(model, nn.CrossEntropyLoss(), (x, y))
    loss = nn.functional.cross_entropy(model.double()(x.double()), y)
    expected = [g.norm().item() for g in torch.autograd.grad(loss, list(model.parameters()))]
    assert [row.gradient_norm for row in found.rows] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_kinks_raise_no_false_alarm(seed: int) -> None:
    """Zero biases and images with empty pixels: thousands of pre-activations at the kink itself or next to it."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 9), nn.ReLU(), nn.Linear(9, 3),
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if "bias" in name:
            nn.init.zeros_(parameter)
    x = torch.rand(24, 1, 8, 8) * (torch.rand(24, 1, 8, 8) > 0.6)
    y = torch.randint(3, (24,))
    found = check_parameters(model, nn.CrossEntropyLoss(), (x, y), generator=torch.Generator().manual_seed(seed))
    assert found.ok, found.rows
    assert any(row.kink for row in found.rows)


def test_a_wrong_gradient_is_found_among_kinks() -> None:
    Wrong.factor = 1.05
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 3))
    nn.init.zeros_(model[0].bias)

    class Spoiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x):
            return Wrong.apply(self.net(x))

    try:
        found = check_parameters(Spoiled(), nn.CrossEntropyLoss(), batch(30))
    finally:
        Wrong.factor = 1.01
    assert all(row.verdict == "wrong" for row in found.rows)


def test_a_gradient_that_is_wrong_at_a_smooth_point_is_not_excused_as_a_kink() -> None:
    def f(p, x):  # relu(w) - relu(-w) is w, but at w = 0 PyTorch's derivative is 0
        return x[:, 0] * (torch.relu(p["w"]) - torch.relu(-p["w"])) + p["b"]

    params = {"w": torch.zeros(()), "b": torch.ones(())}
    found = check_parameters((f, params), lambda out, y: ((out - y) ** 2).mean(), (torch.ones(4, 1), torch.zeros(4)))
    assert {row.name: row.verdict for row in found.rows} == {"w": "wrong", "b": "ok"}


def test_a_gradient_that_is_not_finite_is_wrong() -> None:
    def f(p, x):
        return x[:, 0] * torch.sqrt((p["w"] ** 2).sum()) + p["b"]

    params = {"w": torch.zeros(3), "b": torch.ones(())}
    found = check_parameters((f, params), lambda out, y: ((out - y) ** 2).mean(), (torch.ones(4, 1), torch.zeros(4)))
    row = found.rows[0]
    assert row.verdict == "wrong"
    assert math.isinf(row.error)


def test_unused_parameters_are_confirmed_as_zero() -> None:
    params = {"a": torch.ones(5, 3), "unused": torch.ones(2)}
    found = check_parameters((lambda p, x: x @ p["a"], params), nn.CrossEntropyLoss(), batch())
    assert found.ok
    assert found.rows[1].gradient_norm == 0
    assert found.rows[1].own_dtype_error == 0


def test_complex_parameters() -> None:
    generator = torch.Generator().manual_seed(0)
    params = {"z": torch.randn(5, 3, dtype=torch.complex64, generator=generator)}
    found = check_parameters((lambda p, x: ((1 + 2j) * x @ p["z"]).abs(), params), lambda out, y: out.square().mean(), batch())
    assert found.ok
    assert found.rows[0].error < 1e-8


def test_bfloat16_is_compared_with_float64() -> None:
    model = Net(torch.tanh).to(torch.bfloat16)
    x, y = batch()
    found = check_parameters(model, nn.CrossEntropyLoss(), (x.to(torch.bfloat16), y))
    assert found.ok
    assert found.own_dtype == torch.bfloat16
    assert all(1e-4 < row.own_dtype_error < 0.1 for row in found.rows)


def test_models_that_compute_in_float32_inside_are_undecided_or_confirmed_never_wrong() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(5, 3)

        def forward(self, x):
            return (1e4 + self.linear(x).float()).to(x.dtype) - 1e4  # rounds to 1e-3

    found = check_parameters(Single(), nn.CrossEntropyLoss(), batch())
    assert not any(row.verdict == "wrong" for row in found.rows)
    assert any(row.verdict == "undecided" for row in found.rows)


def test_models_that_cannot_run_in_float64_are_refused() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x):
            return self.linear(x) @ torch.eye(3)

    with pytest.raises(UnsupportedError, match=r"(?s)float64.*RuntimeError.*constants"):
        check_parameters(Constant(), nn.CrossEntropyLoss(), batch())


def test_models_that_differentiate_inside() -> None:
    def f(p, x):
        inner = (torch.tanh(x @ p["a"]) ** 2).sum()
        return torch.autograd.grad(inner, p["a"], create_graph=True)[0].square().sum().expand(len(x))

    params = {"a": torch.linspace(-1, 1, 15).reshape(5, 3)}
    assert check_parameters((f, params), lambda out, y: out.mean(), batch()).ok


def test_nothing_of_the_users_changes() -> None:
    model, data = Net(torch.sin), batch()
    torch.set_rng_state(torch.Generator().manual_seed(5).get_state())
    state = torch.get_rng_state()
    before = [p.detach().clone() for p in model.parameters()]
    check_parameters(model, nn.CrossEntropyLoss(), data)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(model.parameters(), before, strict=True))
