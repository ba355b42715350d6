"""Faults that nobody read who wrote what is measured: training."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.nonfinite.fault import Fault, Step, planted, trained

FAULTS: list[Fault] = []
fault = planted(FAULTS)


@fault("Adam with eps=0 and a parameter whose gradient is zero", "optimizer", "adam|div|step")
def adam_without_epsilon() -> Step:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    nn.init.constant_(model[0].bias, -20.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=0.0)
    x = torch.randn(5, 3)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()  # FAULT
        return loss

    return step


@fault("weight decay larger than 1 / learning rate", "forward|optimizer", "pow|square|add|mul|step")
def decay_diverges() -> Step:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=1e6)
    x, y = torch.randn(4, 2), torch.randn(4, 1)

    def step() -> None:
        for _ in range(7):
            error = model(x) - y
            loss = error.abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()  # FAULT

    return step


@fault("a schedule whose first rate is infinite", "optimizer", "add|sgd|mul|step")
def schedule_begins_at_infinity() -> Step:
    model = nn.Linear(3, 1)
    model.weight.data[0, 1] = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    x = torch.randn(4, 3)
    x[:, 1] = 0

    def inverse_root(epoch: int) -> float:
        with np.errstate(divide="ignore"):
            return float(np.float64(epoch) ** -0.5)  # ALSO

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, inverse_root)

    def step() -> Tensor:
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()  # FAULT
        schedule.step()
        optimizer.zero_grad()
        return loss

    return step


@fault("an update scaled by the deviation of a gradient with one element", "optimizer|forward", "std|div")
def deviation_of_one_gradient() -> Step:
    model, x = nn.Linear(3, 1), torch.randn(4, 3)

    def step() -> Tensor:
        loss = model(x).square().mean()
        loss.backward()
        for p in model.parameters():
            assert p.grad is not None
            spread = p.grad.std()  # FAULT
            p.data -= 1e-2 * p.grad / (spread + 1e-8)
            p.grad = None
        return loss

    return step


@fault("L-BFGS leads the parameters to where the loss is not defined", "forward|optimizer", "log")
def lbfgs_leaves_the_domain() -> Step:
    x = nn.Parameter(torch.tensor([0.02, 3.0]))
    optimizer = torch.optim.LBFGS([x], lr=1.0, max_iter=5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        barrier = -torch.log(x)  # FAULT
        loss = (barrier + 3 * x).sum()
        loss.backward()
        return loss

    def step() -> Tensor:
        for _ in range(3):
            loss = optimizer.step(closure)
        return loss

    return step


@fault("a NaN label", "data|forward", "input|mse_loss")
def nan_label() -> Step:
    model = nn.Linear(3, 1)
    x, y = torch.randn(4, 3), torch.tensor([[1.0], [0.0], [float("nan")], [2.0]])

    def loss() -> Tensor:
        prediction = model(x)
        return F.mse_loss(prediction, y)  # FAULT

    return trained(loss, model.parameters())


@fault("features standardized by the deviation of a constant column", "forward|data", "div")
def constant_column() -> Step:
    x = torch.randn(6, 3)
    x[:, 1] = 5
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def standardized(x: Tensor) -> Tensor:
        mean, std = x.mean(0), x.std(0)
        return (x - mean) / std  # FAULT

    return trained(lambda: net(standardized(x)).square().mean(), net.parameters())


@fault("float64 data too large for float32", "forward|data", "to|float|copy|cast")
def cast_overflows() -> Step:
    model = nn.Linear(2, 1)
    x = torch.tensor([[1e300, 2.0], [3.0, 4.0]], dtype=torch.float64)

    def loss() -> Tensor:
        single = x.to(torch.float32)  # FAULT
        return model(single).mean()

    return trained(loss, model.parameters())


@fault("the loss is scaled for float16, and the optimizer steps without unscaling", "backward", "linear|mm|addmm")
def scaled_without_scaler_step() -> Step:
    net = nn.Linear(4, 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    x = torch.randn(64, 4) * 10

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            y = net(x)  # FAULT
        loss = y.float().square().mean()
        scaler.scale(loss).backward()
        optimizer.step()
        return loss

    return step


@fault("an epsilon of 1e-8 is zero in float16", "forward", "div")
def epsilon_vanishes_in_half() -> Step:
    weight = nn.Parameter(torch.randn(3, 3).half())
    x = torch.ones(2, 3).half()
    x[1] = 0

    def loss() -> Tensor:
        h = torch.relu(x @ weight)
        share = h / (h.sum(-1, keepdim=True) + 1e-8)  # FAULT
        return share.float().square().mean()

    return trained(loss, [weight])
