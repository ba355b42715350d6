"""A guarded step runs as it would alone; one that fails is explained by its replay and undone."""

from __future__ import annotations

import copy
import linecache
import pickle
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hesse.debug import NonfiniteReport, NonFiniteStepError, Sentinel

REAL = torch.float64


class Training:
    """A step with dropout, running statistics, momentum and a schedule; a batch of zeros spoils its gradients."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(REAL)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.05)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.runs = 0

    def step(self, x: Tensor, *, noise: float = 0.0) -> Tensor:
        self.runs += 1
        self.optimizer.zero_grad()
        x = x + noise * (torch.randn(x.shape, dtype=REAL) + random.random() + float(np.random.rand()))
        lengths = (x * x).sum(1)
        size = lengths.sqrt().mean()
        loss = self.net(x * size).square().mean()
        torch.autograd.backward(loss)
        if x.requires_grad or not torch.isfinite(lengths.sqrt().reciprocal().sum()):
            with torch.no_grad():
                loss = loss / size
                self.net[0].weight.mul_(1 / size)  # pyright: ignore
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def state(self) -> list[Tensor]:
        tensors = [*self.net.state_dict().values()]
        for state in self.optimizer.state.values():
            tensors += list(state.values())
        rate = torch.tensor(self.optimizer.param_groups[0]["lr"])
        return [value.clone() for value in (*tensors, rate, torch.get_rng_state())]


def batches(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 3, generator=generator, dtype=REAL) for _ in range(count)]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def seeded() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)


def test_a_healthy_run_is_as_it_would_be_alone() -> None:
    alone, guarded = Training(), Training()
    sentinel = Sentinel(guarded.step, guarded.net, guarded.optimizer, stateful=[guarded.schedule])
    seeded()
    losses = [alone.step(x, noise=0.1) for x in batches(7)]
    expected = alone.state()
    seeded()
    assert same(losses, [sentinel(x, noise=0.1) for x in batches(7)])
    assert same(expected, guarded.state())
    assert (guarded.runs, sentinel.steps, sentinel.report) == (7, 7, None)


@pytest.mark.parametrize("window", [1, 4, 32])
def test_a_failing_step_is_explained_and_undone(window: int) -> None:
    training = Training()
    reports: list[NonfiniteReport] = []
    sentinel = Sentinel(
        training.step, training.net, training.optimizer, stateful=[training.schedule], hook=reports.append, window=window
    )
    seeded()
    for x in batches(6):
        sentinel(x, noise=0.1)
    before = training.state()
    sentinel(torch.zeros(5, 3, dtype=REAL))
    assert same(before, training.state())
    (report,) = reports
    assert sentinel.report is report
    assert report.found
    assert linecache.getline(report.file, report.line).strip() in (
        "loss = loss / size",
        "self.net[0].weight.mul_(1 / size)  # pyright: ignore",
    )
    assert np.isfinite(float(sentinel(batches(1)[0])))
    assert sentinel.steps == 7


def test_training_goes_on_as_if_the_step_had_not_been() -> None:
    def run(with_bad: bool) -> list[Tensor]:
        training = Training()
        sentinel = Sentinel(
            training.step, training.net, training.optimizer, stateful=[training.schedule], hook=lambda report: None
        )
        seeded()
        for number, x in enumerate(batches(8)):
            if with_bad and number == 5:
                sentinel(torch.zeros(5, 3, dtype=REAL))
            sentinel(x, noise=0.1)
        return training.state()

    assert same(run(True), run(False))


def test_the_optimizer_is_found_by_the_replay() -> None:
    net = nn.Linear(2, 1, dtype=REAL)
    optimizer = torch.optim.Adam(net.parameters(), eps=0.0)

    def step(x: Tensor) -> float:
        optimizer.zero_grad()
        loss = net(x).sum()
        loss.backward()
        optimizer.step()
        return loss.item()

    sentinel = Sentinel(step, net, optimizer)
    with pytest.raises(NonFiniteStepError) as caught:
        sentinel(torch.tensor([[0.0, 1.0]], dtype=REAL))
    error = caught.value
    assert error.report is not None
    assert (error.report.phase, error.report.tensor) == ("optimizer", "weight")
    assert error.found.startswith("weight after the step is not finite; nan from aten.")
    assert "Step 1 of a guarded training run" in str(error)
    assert not optimizer.state
    assert type(pickle.loads(pickle.dumps(NonFiniteStepError("a", "b", "c")))) is NonFiniteStepError


def test_a_step_that_raises() -> None:
    net = nn.Linear(2, 1)

    def step(x: Tensor) -> None:
        loss = net(x).log().sum()
        if not torch.isfinite(loss):
            raise FloatingPointError("loss")

    with torch.no_grad():
        net.weight.fill_(-1.0)
        net.bias.zero_()
    with pytest.raises(NonFiniteStepError) as caught:
        Sentinel(step, net)(torch.ones(1, 2))
    assert isinstance(caught.value.__cause__, FloatingPointError)
    assert caught.value.report is not None
    assert caught.value.report.op == "aten.log.default"
    with pytest.raises(KeyError):
        Sentinel(lambda: {}["missing"], net)()


def test_gradients_without_an_optimizer_and_tensors_without_a_module() -> None:
    w = torch.zeros(3, dtype=REAL, requires_grad=True)
    reports: list[NonfiniteReport] = []
    sentinel = Sentinel(lambda: w.square().sum().sqrt().backward(), [w], hook=reports.append)
    sentinel()
    assert (reports[0].phase, reports[0].sink) == ("backward", "gradient")
    assert w.grad is None


def test_what_was_not_finite_at_first_is_left_alone() -> None:
    net = nn.Linear(2, 1)
    net.register_buffer("lowest", torch.tensor([torch.inf, -torch.inf]))
    sentinel = Sentinel(lambda: net(torch.ones(1, 2)).sum(), net)
    sentinel()
    assert sentinel.steps == 1


def test_a_step_that_does_not_repeat_is_told() -> None:
    values = iter([1.0, float("nan"), 1.0, 1.0])
    sentinel = Sentinel(lambda: torch.tensor(next(values)), nn.Linear(1, 1))
    sentinel()
    with pytest.raises(NonFiniteStepError, match="did not show it again") as caught:
        sentinel()
    assert "pass the batch in" in caught.value.remedy


def test_random_numbers_and_hyperparameters_are_put_back() -> None:
    from hesse.debug.snapshot import Snapshot

    training, generator = Training(), torch.Generator().manual_seed(3)
    training.step(batches(1)[0])
    snapshot = Snapshot(training.net.parameters(), [training.optimizer], [training.schedule], [generator])
    snapshot.take()
    before, groups = training.state(), copy.deepcopy(training.optimizer.param_groups[0]["lr"])
    drawn = (torch.rand(2), torch.rand(2, generator=generator), np.random.rand(), random.random())
    pointers = [p.data_ptr() for p in training.net.parameters()]
    for x in batches(3):
        training.step(x, noise=1.0)
    training.net.get_parameter("0.weight").grad = None
    snapshot.restore()
    weights = [p.data_ptr() for p in training.net.parameters()]
    again = (torch.rand(2), torch.rand(2, generator=generator), np.random.rand(), random.random())
    assert torch.equal(drawn[0], again[0])
    assert torch.equal(drawn[1], again[1])
    assert drawn[2:] == again[2:]
    assert pointers == weights
    assert training.optimizer.param_groups[0]["lr"] == groups
    assert training.net[0].weight.grad is not None
    parameters = len([*training.net.parameters()])
    assert same([p.detach() for p in training.net.parameters()], [before[i] for i in _parameter_places(training.net)])
    assert len(training.optimizer.state) == parameters


def _parameter_places(net: nn.Module) -> list[int]:
    names = [name for name, _ in net.named_parameters()]
    return [number for number, name in enumerate(net.state_dict()) if name in names]
