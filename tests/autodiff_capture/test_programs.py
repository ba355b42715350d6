"""Capture on programs that modules do not show: raw parameters, shared and computed weights, any Python, any structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import hesse
from hesse.core.errors import (
    DataError,
    DetachedError,
    DeviceError,
    HesseError,
    MixedSamplesError,
    NonFiniteError,
    UnsupportedError,
)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return 2 * x * w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, w = ctx.saved_tensors
        return 2 * g * w, (2 * g * x).sum(0)


class Program(nn.Module):
    """Two linear layers, a raw matrix and vector, and a function that uses them."""

    def __init__(self, use: Callable[[Program, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)
        self.W, self.low, self.v = (
            nn.Parameter(torch.randn(4, 4)),
            nn.Parameter(torch.randn(4, 2)),
            nn.Parameter(torch.randn(4)),
        )
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.use(self, x)))


def branch(m: Program, x: Tensor) -> Tensor:
    return m.a(x) if x.abs().sum().item() > 0 else x @ m.W


def in_place(m: Program, x: Tensor) -> Tensor:
    h = m.a(x)
    h[:, :2] *= m.v[:2]
    return h.relu_()


def loop(m: Program, x: Tensor) -> Tensor:
    h = torch.zeros_like(x)
    for _ in range(3):
        h = torch.tanh(m.a(h) + x @ m.W)
    return h


PROGRAMS: dict[str, Callable[[Program, Tensor], Tensor]] = {
    "squared": lambda m, x: x @ m.W**2,
    "transposed": lambda m, x: x @ m.W.t(),
    "left": lambda m, x: (m.W @ x.t()).t(),
    "product": lambda m, x: x @ (m.low @ m.low.t()),
    "twice": lambda m, x: m.a(torch.tanh(m.a(x))),
    "of another module": lambda m, x: F.linear(x, m.a.weight, m.v),
    "loop": loop,
    "branch": branch,
    "in place": in_place,
    "custom function": lambda m, x: Doubled.apply(x, m.v),
    "checkpoint": lambda m, x: checkpoint(m.a, x, use_reentrant=False),
    "distances": lambda m, x: torch.cdist(x, m.W),
    "where": lambda m, x: torch.where(x > 0, m.v, x),
    "outer": lambda m, x: torch.einsum("ni,ij,nj->ni", x, m.W, x),
    "sequence first": lambda m, x: m.a(x.reshape(len(x), 2, 2).transpose(0, 1).repeat(1, 1, 2)).mean(0),
    "normalized weight": lambda m, x: F.linear(x, m.W / m.W.norm(dim=1, keepdim=True)),
    "expanded": lambda m, x: torch.bmm(m.W.expand(len(x), 4, 4), x.unsqueeze(2)).squeeze(2),
    "fused": lambda m, x: torch.addmm(m.v, x, m.W, beta=0.5, alpha=-2.0),
    "slices": lambda m, x: torch.cat([x[:, :2] @ m.W[:2], x[:, 2:] @ m.W[2:]], 0).reshape(2, len(x), 4).sum(0),
    "sorted": lambda m, x: m.a(x)[x.sum(1).argsort()][x.sum(1).argsort().argsort()],
    "split": lambda m, x: torch.cat([x @ part.t() for part in m.W.split([1, 3])], 1),
}


def oracle(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    leaves, rows = list(model.parameters()), []
    for i in range(len(x)):
        value = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("name", PROGRAMS)
def test_rows_equal_per_sample_loops(name: str, count: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(count)
        model = Program(PROGRAMS[name]).double()
        x, y = torch.randn(count, 4, dtype=torch.float64), torch.randint(0, 3, (count,))
    rows = oracle(model, x, y)
    for _ in range(2):  # the second call takes the remembered plan
        J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), (x, y))
        assert float((J.dense() - rows).norm()) < 1e-12 * float(rows.norm())
        assert float((J.norms() - rows.norm(dim=1)).norm()) < 1e-12 * float(rows.norm())
        assert float((J.gram() - rows @ rows.mT).norm()) < 1e-12 * float(rows.norm()) ** 2


MIXING: dict[str, Callable[[Program, Tensor], Tensor]] = {
    "mean over samples": lambda m, x: m.a(x) - m.a(x).mean(0),
    "detached statistic": lambda m, x: m.a(x / x.std(0).detach()),
    "weight times a detached statistic": lambda m, x: x @ (m.W * x.detach().mean()),
    "neighbors": lambda m, x: m.a(x) + m.a(x).roll(1, 0),
    "softmax over samples": lambda m, x: m.a(x).softmax(0),
}


@pytest.mark.parametrize("name", MIXING)
def test_programs_that_mix_samples_are_refused(name: str) -> None:
    model = Program(MIXING[name]).double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randint(0, 3, (5,))
    with pytest.raises(MixedSamplesError):
        hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), (x, y))


def test_dropout_gives_the_rows_of_the_masks_drawn() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randint(0, 3, (5,))
    torch.manual_seed(7)
    J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), (x, y))
    torch.manual_seed(7)
    terms = F.cross_entropy(model(x), y, reduction="none")
    leaves = list(model.parameters())
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(t, leaves, retain_graph=True)]) for t in terms]
    assert torch.allclose(J.dense(), torch.stack(rows), atol=1e-13)


def test_inputs_and_models_of_other_kinds() -> None:
    linear = nn.Linear(4, 3).double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randint(0, 3, (5,))
    expected = hesse.parameter_jacobian(linear, nn.CrossEntropyLoss(), (x, y)).dense()

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear

        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            return {"logits": self.layer(left + right)}

    pick = {"output": lambda out: out["logits"]}
    loss = nn.CrossEntropyLoss()
    for inputs in ({"left": x, "right": 0 * x}, (x, 0 * x), [0 * x, x]):
        assert torch.allclose(hesse.parameter_jacobian(Named(), loss, (inputs, y), **pick).dense(), expected, atol=1e-14)
    tree = {"layers": [(linear.weight.detach(), linear.bias.detach())]}
    J = hesse.parameter_jacobian((lambda p, x: F.linear(x, *p["layers"][0]), tree), loss, (x, y))
    assert J.in_space.names == ("layers.0.0", "layers.0.1") and torch.allclose(J.dense(), expected, atol=1e-14)


def test_the_graph_may_change_between_calls() -> None:
    model = Program(lambda m, x: m.a(x) if m.training else x @ m.W).double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randint(0, 3, (5,))
    for _ in range(2):
        for mode in (True, False):
            model.train(mode)
            J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), (x, y))
            assert torch.allclose(J.dense(), oracle(model, x, y), atol=1e-13)
            assert (J.paths["a.weight"] == "unused") == (not mode)


def test_nothing_of_the_users_changes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).eval(), nn.Linear(4, 3))
    x, y = torch.randn(5, 4), torch.randint(0, 3, (5,))
    model[0].weight.grad = torch.ones(4, 4)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes, random = [part.training for part in model.modules()], torch.get_rng_state()
    attributes = [set(vars(part)) for part in model.modules()]
    hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), (x, y)).gram()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones(4, 4)) and model[2].weight.grad is None
    assert modes == [part.training for part in model.modules()] and torch.equal(torch.get_rng_state(), random)
    assert attributes == [set(vars(part)) for part in model.modules()] and not x.requires_grad


def test_refusals_name_what_was_found() -> None:
    linear, loss = nn.Linear(4, 3), nn.CrossEntropyLoss()
    x, y = torch.randn(5, 4), torch.randint(0, 3, (5,))
    bad: list[tuple[type[HesseError], str, Callable[[], Any]]] = [
        (DataError, "size 0", lambda: hesse.parameter_jacobian(linear, loss, (x[:0], y[:0]))),
        (DataError, "target has 3 rows", lambda: hesse.parameter_jacobian(linear, loss, (x, y[:3]))),
        (DataError, "as a batch", lambda: hesse.parameter_jacobian(linear, loss, x)),
        (NonFiniteError, "sample 2", lambda: hesse.parameter_jacobian(linear, loss, (with_nan(x), y))),
        (DeviceError, "meta", lambda: hesse.parameter_jacobian(linear, loss, (x.to("meta"), y))),
        (MixedSamplesError, "'1'", lambda: hesse.parameter_jacobian(normalized(), loss, (x, y))),
        (MixedSamplesError, "neither", lambda: hesse.parameter_jacobian(linear, lambda o, t: o.std(), (x, y))),
        (DetachedError, "item", lambda: hesse.parameter_jacobian(linear, rewrapped, (x, y))),
        (DetachedError, "detach", lambda: hesse.parameter_jacobian(Cut(), loss, (x, y))),
        (UnsupportedError, "max_norm", lambda: hesse.parameter_jacobian(nn.Embedding(4, 3, max_norm=1.0), loss, (y, y))),
        (UnsupportedError, "checkpoint", lambda: hesse.parameter_jacobian(reentrant(), loss, (x, y))),
    ]
    for error, words, call in bad:
        with pytest.raises(error, match=words):
            call()


class Cut(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 3)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).detach()


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def reentrant() -> nn.Module:
    return Program(lambda m, x: checkpoint(m.a, x.requires_grad_(), use_reentrant=True)).float()


def with_nan(x: Tensor) -> Tensor:
    return x.index_fill(0, torch.tensor([2]), torch.nan)


def rewrapped(output: Tensor, target: Tensor) -> Tensor:
    return torch.tensor(F.cross_entropy(output, target).item(), requires_grad=True)
