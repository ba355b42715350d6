"""No stale answer: every change that a record of per-sample quantities does not stand for is seen."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.parameters.compile_rows import compile_rows
from tests.parameters.test_compiled_rows import QUIET, N, assert_same, batch, network

Batch = tuple[Any, Any]
ALL = os.environ.get("HESSE_TEST_ALL", "") not in ("", "0")


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


def divided(J: Any) -> Any:
    return J.T @ (torch.ones(J.count, dtype=torch.float64) / J.normalizer), J.norms()


def drawn_normalizer(seed: int) -> tuple[nn.Module, nn.Module, Callable[[int], Batch]]:
    """A model, a mean loss that divides by a sum over targets, and batches by number."""
    draw = random.Random(seed)
    classes, width, several = draw.choice([2, 3, 5]), draw.choice([2, 4]), draw.random() < 0.5
    shape = (draw.choice([4, 7]), width, *((4,) if several else ()))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(classes, dtype=torch.float64, generator=generator) + 0.1 if draw.random() < 0.7 else None
    options = {"weight": weight, "ignore_index": draw.choice([-100, 0, 1])}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        last = nn.Conv1d(width, classes, 2) if several else nn.Linear(width, classes)
        model = nn.Sequential(last, nn.Tanh(), nn.LogSoftmax(1)).double()
    smoothing = draw.choice([0.0, 0.2])
    loss = draw.choice([nn.NLLLoss(**options), nn.CrossEntropyLoss(**options, label_smoothing=smoothing)])

    def data(number: int) -> Batch:
        own = torch.Generator().manual_seed(1000 * seed + number)
        x = torch.randn(shape, dtype=torch.float64, generator=own)
        return x, torch.randint(classes, (shape[0], *((3,) if several else ())), generator=own)

    return model, loss, data


def test_normalizers_that_depend_on_the_targets_share_a_record(sweep: Callable[[Any, int], Any]) -> None:
    for seed in sweep(range(300), 6):
        model, loss, data = drawn_normalizer(seed)
        rows = compile_rows(model, loss, divided)
        for number in range(6):
            x, y = data(number)
            mean, norms = rows((x, y))
            assert norms.shape == (len(x),)
            value = loss(model(x), y)
            if value.isfinite():  # of no target at all it is 0 / 0
                expected = torch.autograd.grad(value, list(model.parameters()))
                assert_same(list(mean.values()), list(expected))
        assert rows.replays >= 4 and not rows.direct, seed


@QUIET
def test_normalizers_that_python_reads_are_recorded_by_value() -> None:
    model, loss = network(), nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), ignore_index=2)
    rows = compile_rows(model, loss, few)
    for seed in range(20):
        assert_same(rows(batch(seed)), few(hesse.parameter_jacobian(model, loss, batch(seed))))


LOOKUPS: dict[str, Callable[[], nn.Module]] = {
    "embedding": lambda: nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(20, 3)),
    "padding": lambda: nn.Sequential(nn.Embedding(7, 4, padding_idx=2), nn.Flatten(), nn.Linear(20, 3)),
    "by frequency": lambda: nn.Sequential(nn.Embedding(7, 4, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(20, 3)),
    "bag": lambda: nn.Sequential(nn.EmbeddingBag(7, 4, mode="mean"), nn.Linear(4, 3)),
}


def looked_up(J: Any) -> Any:
    return J.norms(), J.clipped_sum(0.5), J.sum_of_squares(), J.dense()


@QUIET
@pytest.mark.parametrize("name", LOOKUPS)
def test_tokens_share_a_record_however_many_are_equal(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LOOKUPS[name]().double()
    rows = compile_rows(model, nn.CrossEntropyLoss(), looked_up)
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randint(1 + step, (N, 5), generator=generator), torch.randint(3, (N,), generator=generator)
        norms, clipped, squares, dense = rows((x, y))
        expected = torch.stack([
            torch.cat([g.flatten() for g in torch.autograd.grad(
                nn.functional.cross_entropy(model(x[n : n + 1]), y[n : n + 1]), list(model.parameters()))])
            for n in range(N)
        ])  # fmt: skip
        assert_same(dense, expected)
        assert_same(norms, expected.norm(dim=1))
        assert_same(torch.cat([t.flatten() for t in squares.values()]), expected.square().sum(0))
        scale = (0.5 / expected.norm(dim=1)).clamp(max=1)
        assert_same(torch.cat([t.flatten() for t in clipped.values()]), scale @ expected)
    assert rows.replays >= 4 and not rows.direct


@QUIET
@pytest.mark.skipif(not ALL, reason="half a minute of compiling: HESSE_TEST_ALL=1")
def test_tokens_in_native_code() -> None:
    model = LOOKUPS["padding"]().double()
    rows = compile_rows(model, nn.CrossEntropyLoss(), lambda J: J.norms(), compile="native")
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        given = torch.randint(1 + step, (N, 5), generator=generator), torch.randint(3, (N,), generator=generator)
        assert_same(rows(given), hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), given).dense().norm(dim=1))
    assert rows.replays >= 4 and not rows.direct


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
