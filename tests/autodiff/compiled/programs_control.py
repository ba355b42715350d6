"""Programs whose path or result depends on values: branches, loops, checks, closed-over state."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .suite import Draw, Made, changing, program, watched

_SETTINGS = {"scale": 1.0}


@program("reads", "second")
def branch_on_value(d: Draw) -> Made:
    def f(w: Tensor, x: Tensor) -> Tensor:
        y = x @ w
        if y.sum() > 0:
            return y.square().sum()
        return (-y).exp().sum()

    return f, (d.normal(4), d.normal(d.n, 4)), {}


@program("reads")
def branch_on_item(d: Draw) -> Made:
    def f(w: Tensor, x: Tensor) -> tuple[Tensor, str]:
        level = x.mean().item()
        if level > 0.3:
            return (w * x).sum(), "high"
        if level > -0.3:
            return (w.square() * x).sum(), "middle"
        return (w.sin() * x).sum(), "low"

    return f, (d.normal(d.n), d.normal(d.n)), {}


@program("reads", "second")
def item_used_as_number(d: Draw) -> Made:
    def f(w: Tensor, x: Tensor) -> Tensor:
        scale = float(x.abs().max())
        return (w * x / scale).sin().sum() * math.sqrt(scale)

    return f, (d.normal(d.n), d.normal(d.n)), {}


@program("reads", "second")
def count_from_data(d: Draw) -> Made:
    def f(w: Tensor, count: Tensor) -> Tensor:
        x = w
        for _ in range(int(count)):
            x = torch.sin(x) + w
        return x.sum()

    return f, (d.normal(d.n), d.integers(3, 1)[0] + 1), {}


@program("reads")
def loop_until_large(d: Draw) -> Made:
    def f(w: Tensor) -> tuple[Tensor, int]:
        x, steps = w, 0
        while x.norm() < 20:
            x = x * 1.5 + 0.1 * w
            steps += 1
        return x.square().sum(), steps

    return f, (d.normal(d.n),), {}


@program("reads", "second")
def lengths_from_data(d: Draw) -> Made:
    def f(params: Any, x: Tensor, lengths: Tensor) -> Tensor:
        total = x.new_zeros(())
        for row, length in zip(x, lengths.tolist(), strict=True):
            total = total + torch.tanh(row[:length] @ params).sum()
        return total

    return f, (d.normal(3, 2), d.normal(d.n, 6, 3), d.integers(5, d.n) + 1), {}


@program("reads", "second")
def asserted_values(d: Draw) -> Made:
    def f(w: Tensor, x: Tensor) -> Tensor:
        assert torch.isfinite(x).all(), "not finite"
        y = torch.log1p((x @ w).exp())
        assert (y >= 0).all()
        return y.sum()

    return f, (d.normal(4), d.normal(d.n, 4)), {}


@program("reads", "second")
def line_search(d: Draw) -> Made:
    def f(w: Tensor, x: Tensor) -> Tensor:
        def loss(v: Tensor) -> Tensor:
            return (x @ v).cosh().log().sum() + 0.1 * v.square().sum()

        step, start = 1.0, loss(w)
        while loss(w - step * w.sign()) > start and step > 1e-2:
            step /= 2
        return loss(w - step * w.sin())

    return f, (d.normal(4), d.normal(d.n, 4)), {}


@program("reads")
def mixture_routing(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        gates = torch.softmax(x @ params["gate"], 1)
        choice = gates.argmax(1)
        total = x.new_zeros(())
        for k, expert in enumerate(params["experts"]):
            rows = choice == k
            if rows.any():
                total = total + (torch.tanh(x[rows] @ expert) * gates[rows, k, None]).sum()
        return total

    params = {"gate": d.normal(4, 3), "experts": [d.normal(4, 2) for _ in range(3)]}
    return f, (params, d.normal(d.n + 2, 4)), {}


@program("second")
def closed_over_tensor(d: Draw) -> Made:
    target = d.normal(3)

    def f(w: Tensor, x: Tensor) -> Tensor:
        return (torch.tanh(x @ w) - target).square().sum()

    return changing(f, lambda: target.mul_(-2)), (d.normal(4, 3), d.normal(d.n, 4)), {}


@program("second")
def closed_over_tensor_replaced(d: Draw) -> Made:
    target = d.normal(3)

    def f(w: Tensor, x: Tensor) -> Tensor:
        return (torch.tanh(x @ w) - target).square().sum()

    def change() -> None:
        nonlocal target
        target = target * 3 + 1

    return changing(f, change), (d.normal(4, 3), d.normal(d.n, 4)), {}


@program("second")
def closed_over_float(d: Draw) -> Made:
    rate = 0.1

    def f(w: Tensor) -> Tensor:
        return (w * rate).sin().sum()

    def change() -> None:
        nonlocal rate
        rate = rate * 3 + 1

    return changing(f, change), (d.normal(d.n),), {}


@program("second")
def closed_over_object(d: Draw) -> Made:
    options = SimpleNamespace(power=2, weights=[1.0, 0.5], active={"sin": True})

    def f(w: Tensor) -> Tensor:
        y = torch.sin(w) if options.active["sin"] else torch.cos(w)
        return sum(c * y**options.power for c in options.weights).sum()

    def change() -> None:
        options.power += 1
        options.weights.append(2.0)
        options.active["sin"] = not options.active["sin"]

    return changing(f, change), (d.normal(d.n),), {}


@program("second")
def global_setting(d: Draw) -> Made:
    _SETTINGS["scale"] = 1.0

    def f(w: Tensor) -> Tensor:
        return (w.square() * _SETTINGS["scale"]).sum()

    def change() -> None:
        _SETTINGS["scale"] += 1.0

    return changing(f, change), (d.normal(d.n),), {}


@program("second")
def callable_object(d: Draw) -> Made:
    class Loss:
        def __init__(self) -> None:
            self.weight, self.square = 0.5, True

        def __call__(self, w: Tensor, x: Tensor) -> Tensor:
            y = (x @ w) * self.weight
            return y.square().sum() if self.square else y.sin().sum()

    loss = Loss()

    def change() -> None:
        loss.weight, loss.square = 1.5, not loss.square

    return changing(loss, change), (d.normal(4), d.normal(d.n, 4)), {}


@program("mutates")
def running_average(d: Draw) -> Made:
    state = {"mean": torch.zeros(3, dtype=d.dtype), "steps": 0}

    def f(w: Tensor, x: Tensor) -> Tensor:
        y = torch.tanh(x @ w)
        state["mean"] = 0.9 * state["mean"] + 0.1 * y.detach().mean(0)
        state["steps"] += 1
        return (y - state["mean"]).square().sum()

    return watched(f, lambda: [state["mean"], state["steps"]]), (d.normal(4, 3), d.normal(d.n, 4)), {}


@program("mutates")
def buffer_written_in_place(d: Draw) -> Made:
    history = torch.zeros(4, 3, dtype=d.dtype)

    def f(w: Tensor, x: Tensor) -> Tensor:
        y = torch.sin(x @ w)
        history.copy_(history.roll(1, 0))
        history[0] = y.detach().mean(0)
        return (y * history.sum(0)).sum()

    return watched(f, lambda: [history]), (d.normal(4, 3), d.normal(d.n, 4)), {}


@program("mutates", "reads")
def values_logged(d: Draw) -> Made:
    log: list[float] = []

    def f(w: Tensor, x: Tensor) -> Tensor:
        loss = (x @ w).square().mean()
        log.append(loss.item())
        return loss

    return watched(f, lambda: list(log)), (d.normal(4), d.normal(d.n, 4)), {}


@program("second", "reads")
def numpy_inside(d: Draw) -> Made:
    def f(w: Tensor, x: Tensor) -> Tensor:
        weights = torch.from_numpy(x.abs().sum(1).numpy().copy())
        return ((x @ w).sin() * weights).sum()

    return f, (d.normal(4), d.normal(d.n, 4)), {}


@program("reads")
def new_tensor_of_values(d: Draw) -> Made:
    def f(w: Tensor, x: Tensor) -> Tensor:
        weights = torch.tensor([row.max().item() for row in x], dtype=x.dtype)
        return ((x @ w).sin() * weights).sum()

    return f, (d.normal(4), d.normal(d.n, 4)), {}


@program("second")
def default_arguments(d: Draw) -> Made:
    def f(w: Tensor, x: Tensor | None = None, *, factor: float = 2.0) -> Tensor:
        return (w if x is None else w * x).sin().sum() * factor

    return f, (d.normal(d.n),), {"factor": 1.0 + abs(d.number())}


@program("second")
def loop_with_python_state(d: Draw) -> Made:
    def f(w: Tensor, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        states = [x]
        for k in range(3):
            states.append(torch.tanh(states[-1] @ w + k * states[0]))
        return torch.stack(states).square().mean(), states

    return f, (d.normal(4, 4), d.normal(d.n, 4)), {}
