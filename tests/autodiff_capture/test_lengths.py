"""Inputs of different lengths: a plan is taken over where lengths round up to the same power of two, and rows stay right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from tests.parameters import oracle
from tests.parameters.special import Free, L, P

SUM = nn.MSELoss(reduction="sum")


def _heads(s: Any, x: Tensor) -> Tensor:
    return s.b(s.m(x, x, x, need_weights=False)[0].mean(1))


def _heads_time_major(s: Any, x: Tensor) -> Tensor:
    steps = x.transpose(0, 1)
    return s.b(s.m(steps, steps, steps, need_weights=False)[0].mean(0))


def _merged_time_major(s: Any, x: Tensor) -> Tensor:
    n, t, _ = x.shape
    return s.b(torch.tanh(s.a(x.transpose(0, 1).reshape(t * n, -1))).reshape(t, n, -1).mean(0))


def _places(s: Any, x: Tensor) -> Tensor:
    return s.b(torch.tanh(s.a(x) + s.p[: x.shape[1]]).mean(1))


def _square(s: Any, x: Tensor) -> Tensor:
    return s.b((s.a(x) @ x.mT).softmax(2).matmul(x).tanh().mean(1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "positions": lambda: Free(lambda s, x: s.b(torch.tanh(s.a(x)).mean(1)), a=L(5, 4), b=L(4)),
    "a loss of sequences": lambda: nn.Sequential(L(5, 4), nn.Tanh(), L(4)),
    "time-major": lambda: Free(lambda s, x: s.b(torch.tanh(s.a(x.transpose(0, 1))).mean(0)), a=L(5, 4), b=L(4)),
    "merged, time-major": lambda: Free(_merged_time_major, a=L(5, 4), b=L(4)),
    "attention": lambda: Free(_heads, m=nn.MultiheadAttention(5, 1, batch_first=True), b=L(5)),
    "attention, time-major": lambda: Free(_heads_time_major, m=nn.MultiheadAttention(5, 5), b=L(5)),
    "learned places": lambda: Free(_places, a=L(5, 4), b=L(4), p=P(40, 4)),
    "products of positions": lambda: Free(_square, a=L(5, 5), b=L(5)),
    "best three": lambda: Free(lambda s, x: s.b(s.a(x).topk(3, 1)[0].mean(1)), a=L(5, 4), b=L(4)),
    "in order": lambda: Free(lambda s, x: s.b(s.a(x).sort(1)[0][:, 3]), a=L(5, 4), b=L(4)),
    "last position": lambda: Free(lambda s, x: s.b(torch.tanh(s.a(x))[:, -1]), a=L(5, 4), b=L(4)),
    "unrolled": lambda: Free(lambda s, x: s.b(s.r(x)[0].square().mean(1)), r=nn.GRU(5, 4, batch_first=True), b=L(4)),
    "convolution": lambda: Free(lambda s, x: s.b(s.a(x.mT).tanh().mean(2)), a=nn.Conv1d(5, 4, 3), b=L(4)),
}


def _runs(model: nn.Module, n: int, t: int) -> int:
    """How often the model ran for rows of n samples of length t, which are checked."""
    x = torch.randn(n, t, 5, dtype=torch.float64)
    with torch.no_grad():
        y = torch.randn_like(model(x))
    count = [0]
    handle = model.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    J = hesse.parameter_jacobian(model, SUM, (x, y))
    handle.remove()
    rows = oracle.loss_rows(model, lambda out, target: (out - target).square().sum(), x, y)
    assert oracle.difference(J.dense(), rows) < 1e-10
    assert oracle.difference(J.norms(), rows.norm(dim=1)) < 1e-10
    assert "sample by sample" not in J.paths.values()
    return count[0]


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_right_whatever_came_before(name: str) -> None:
    model = MODELS[name]().double()
    shapes = [(10, 9), (14, 10), (11, 13), (9, 14), (12, 12), (10, 17), (3, 12), (12, 4), (2, 14), (17, 33)]
    for n, t in shapes + shapes[::-1]:
        _runs(model, n, t)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("unrolled", "convolution", "last position")])
def test_a_new_length_of_the_same_power_costs_one_run(name: str) -> None:
    model = MODELS[name]().double()
    assert _runs(model, 4, 13) > 1
    for t in (14, 13, 14):  # products of lengths round up to the same powers, too: 4 * 5 * t * t to 4096
        assert _runs(model, 4, t) == 1
    assert _runs(model, 4, 17) > 1
    assert _runs(model, 4, 6) > 1 and _runs(model, 4, 7) > 1  # short lengths are taken as they are
    assert _runs(model, 4, 6) == _runs(model, 4, 17) == _runs(model, 4, 13) == 1


@pytest.mark.parametrize("shapes", [((4, 12), (4, 16)), ((12, 12), (16, 16)), ((11, 13), (16, 16))])
@pytest.mark.parametrize("name", ["positions", "time-major", "merged, time-major"])
def test_lengths_that_are_powers_of_two_themselves(name: str, shapes: tuple[tuple[int, int], ...]) -> None:
    model = MODELS[name]().double()
    for n, t in shapes:
        _runs(model, n, t)


@pytest.mark.parametrize("t", [15, 16])  # at t = 1 mod 3 two layouts fit the three samples that are tried first
def test_the_last_position_is_planned_once(t: int) -> None:
    model = MODELS["last position"]().double()
    assert _runs(model, 4, t) > 1
    assert _runs(model, 4, t) == 1


def test_other_numbers_of_samples_of_the_same_power() -> None:
    model = MODELS["positions"]().double()
    assert _runs(model, 10, 3) > 1
    assert _runs(model, 9, 3) == 1  # 27 and 30 rows round up to 32
    assert _runs(model, 11, 3) > 1  # 33 rows do not
    assert _runs(model, 15, 3) == _runs(model, 13, 3) == 1
    assert _runs(model, 17, 3) > 1


def test_length_and_number_of_samples_change_places() -> None:
    for name in ("positions", "time-major", "merged, time-major"):
        model = MODELS[name]().double()
        for n, t in ((9, 15), (15, 9), (12, 12), (12, 12), (10, 14), (14, 10)):
            _runs(model, n, t)


def test_a_plan_is_not_taken_over_by_another_layout() -> None:
    """Time-major and batch-major give graphs of the same nodes; with as many steps as samples, of the same shapes."""
    model = Free(
        lambda s, x: s.b(torch.tanh(s.a(x.transpose(0, 1) if s.turn else x)).sum(1 - s.axis)), a=L(5, 4), b=L(4)
    ).double()
    for n, t in ((12, 12), (12, 10), (10, 12)):
        for turn, axis in ((False, 0), (True, 1), (False, 0)):
            vars(model).update(turn=turn, axis=axis)
            _runs(model, n, t)
