"""No stale answer: every change that a record of per-sample quantities does not stand for is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.parameters.compile_rows import compile_rows
from tests.parameters.test_compiled_rows import QUIET, N, assert_same, batch, network

Batch = tuple[Any, Any]


def few(J: Any) -> Any:
    return J.norms(), J.clipped_sum(0.5), J.mass


class Scaled(nn.Module):
    """A module with fewthing that a forward pass can read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.spare = (nn.Linear(*sizes) for sizes in ((5, 4), (4, 3), (4, 3), (4, 3)))
        self.spare.requires_grad_(False)
        self.norm, self.drop, self.scale, self.options = nn.BatchNorm1d(4), nn.Dropout(0.5), 1.0, {"power": 1}
        self.register_buffer("shift", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x)) * self.scale * FACTOR + self.shift
        return self.second(out := self.drop(torch.tanh(hidden) ** self.options["power"])) + self.third(out)


FACTOR = 1.0


def scaled() -> Scaled:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = Scaled().double().eval()
        model.norm.running_mean = torch.randn(4, dtype=torch.float64)
    return model


def _replace(model: Scaled) -> None:
    model.first = nn.Linear(5, 4).double()


def _tie(model: Scaled) -> None:
    model.third.weight = model.second.weight


def _hook(model: Scaled) -> None:
    def double(module: nn.Module, given: Any, out: Any) -> Any:
        return 2 * out

    model.first.register_forward_hook(double)


def _pre_hook(model: Scaled) -> None:
    model.second.register_forward_pre_hook(lambda module, given: (given[0] + 1,))


def _forward(model: Scaled) -> None:
    model.forward = lambda x: model.second(torch.relu(model.first(x)))


def _global(model: Scaled) -> None:
    global FACTOR
    FACTOR = 3.0


CHANGES: dict[str, Callable[[Scaled], Any]] = {
    "a number": lambda m: setattr(m, "scale", 2.0),
    "a number in a dict": lambda m: m.options.update(power=2),
    "a global": _global,
    "a buffer": lambda m: setattr(m, "shift", torch.ones(4, dtype=torch.float64)),
    "a buffer in place": lambda m: m.get_buffer("shift").add_(1),
    "running statistics": lambda m: setattr(m.norm, "running_var", torch.full((4,), 4.0, dtype=torch.float64)),
    "an option of a layer": lambda m: setattr(m.norm, "eps", 0.5),
    "a part": _replace,
    "the class of a part": lambda m: setattr(m, "norm", nn.Identity()),
    "a parameter": lambda m: setattr(m.first, "weight", nn.Parameter(torch.randn(4, 5, dtype=torch.float64))),
    "data of a parameter": lambda m: setattr(m.first.weight, "data", torch.randn(4, 5, dtype=torch.float64)),
    "strides of a parameter": lambda m: setattr(m.first.weight, "data", torch.randn(5, 4, dtype=torch.float64).T),
    "no bias": lambda m: setattr(m.first, "bias", None),
    "a frozen parameter": lambda m: m.first.weight.requires_grad_(False),
    "a freed parameter that is not used": lambda m: m.spare.weight.requires_grad_(True),
    "tied parameters": _tie,
    "a forward hook": _hook,
    "a hook before": _pre_hook,
    "the forward method": _forward,
    "another parameter": lambda m: m.register_parameter("extra", nn.Parameter(torch.ones(2, dtype=torch.float64))),
    "the forward method of a part": lambda m: setattr(m.drop, "forward", lambda x: 2 * x),
    "loaded values": lambda m: m.load_state_dict({k: 2 * v for k, v in m.state_dict().items()}),
    "nothing": lambda m: None,
}


@QUIET
@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_model(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "FACTOR", 1.0)
    model, loss = scaled(), nn.CrossEntropyLoss()
    rows = compile_rows(model, loss, few)
    for seed in range(3):
        rows(batch(seed))
    assert rows.replays == 1
    assert not rows.direct
    CHANGES[change](model)
    for seed in (4, 5, 6):
        assert_same(rows(batch(seed)), few(hesse.parameter_jacobian(model, loss, batch(seed))))
    assert not rows.direct


LOSSES: list[tuple[nn.Module, str, Any]] = [
    (nn.CrossEntropyLoss(), "ignore_index", 1),
    (nn.CrossEntropyLoss(), "label_smoothing", 0.3),
    (nn.CrossEntropyLoss(), "reduction", "sum"),
    (nn.CrossEntropyLoss(), "weight", torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)),
    (nn.CrossEntropyLoss(torch.ones(3, dtype=torch.float64)), "weight", torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)),
    (nn.SmoothL1Loss(), "beta", 0.2),
    (nn.HuberLoss(), "delta", 0.3),
    (nn.PoissonNLLLoss(), "log_input", False),
    (nn.PoissonNLLLoss(), "full", True),
    (nn.BCEWithLogitsLoss(), "pos_weight", torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)),
    (nn.KLDivLoss(reduction="sum"), "log_target", True),
    (nn.MSELoss(), "reduction", "sum"),
    (nn.MultiMarginLoss(), "margin", 0.2),
]


@QUIET
@pytest.mark.parametrize(("loss", "name", "value"), LOSSES, ids=[f"{type(a).__name__}.{b}" for a, b, _ in LOSSES])
def test_changes_of_the_loss(loss: nn.Module, name: str, value: Any) -> None:
    model = nn.Sequential(network(), nn.Softplus())
    labels = isinstance(loss, (nn.CrossEntropyLoss, nn.MultiMarginLoss))

    def data(seed: int) -> Batch:
        x, y = batch(seed)
        return x, y if labels else torch.rand(N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    before = getattr(loss, name)
    rows = compile_rows(model, loss, few)
    try:
        for seed in range(3):
            rows(data(seed))
        setattr(loss, name, value)
        for seed in (4, 5, 6):
            assert_same(rows(data(seed)), few(hesse.parameter_jacobian(model, loss, data(seed))))
    finally:
        setattr(loss, name, before)


@QUIET
def test_normalizers_that_depend_on_the_targets() -> None:
    model, loss = network(), nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), ignore_index=2)
    rows = compile_rows(model, loss, few)
    for seed in range(20):
        assert_same(rows(batch(seed)), few(hesse.parameter_jacobian(model, loss, batch(seed))))
    summed = compile_rows(model, nn.CrossEntropyLoss(loss.weight, ignore_index=2, reduction="sum"), lambda J: J.norms())
    for seed in range(20):
        expected = hesse.parameter_jacobian(model, loss, batch(seed)).norms()
        assert_same(summed(batch(seed)), expected)
    assert summed.replays >= 18


class Pairs(nn.Module):
    """Two inputs, whose factors of the Gram matrix are the same where the inputs are."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 3, bias=False), nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.left(x) + self.right(z)


def test_inputs_that_share_memory() -> None:
    torch.manual_seed(0)
    model, loss = Pairs().double(), nn.CrossEntropyLoss()
    rows = compile_rows(model, loss, lambda J: (J.gram(), J.clipped_sum(0.5), J.moments()))

    def expected(given: Batch) -> Any:
        J = hesse.parameter_jacobian(model, loss, given)
        return J.gram(), J.clipped_sum(0.5), J.moments()

    x, y = batch(0)
    z, data = batch(1)[0], torch.randn(9, 5, dtype=torch.float64)
    shared: list[Batch] = [((x, x), y), ((x, x.view_as(x)), y), ((data[:6], data[3:]), y), ((data[:6], data[:6]), y)]
    for given in [((x, z), y), *shared, *shared, ((x, z), y), *reversed(shared)]:
        found, its = rows(given), expected(given)
        assert_same(found[:2], its[:2])
        for name, moments in its[2].items():
            assert_same(found[2][name].dense(), moments.dense())
    assert rows.replays > 0
    assert not rows.direct
