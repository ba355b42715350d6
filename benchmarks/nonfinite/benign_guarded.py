"""Harmless programs: guards, scaled losses, tests for infinity, infinite distances and weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.nonfinite.fault import Benign, Step, harmless, trained

BENIGN: list[Benign] = []
benign = harmless(BENIGN)
NAN, INF = float("nan"), float("inf")


@benign("the root at zero, guarded on both sides of where()")
def guarded_root() -> Step:
    x = nn.Parameter(torch.tensor([4.0, 0.0, -1.0]))

    def loss() -> Tensor:
        inside = torch.where(x > 0, x, torch.ones_like(x))
        return torch.where(x > 0, inside.sqrt(), torch.zeros_like(x)).sum()

    return trained(loss, [x])


@benign("GradScaler with clipping: unscale_ finds infinity, the step is skipped")
def skipped_with_clipping() -> Step:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    x = torch.randn(8, 4) * 10

    def step() -> None:
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = net(x).square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()

    return step


@benign("autocast to bfloat16")
def bfloat16_training() -> Step:
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    x = torch.randn(2, 4, 8)

    def step() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = net(x).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


@benign("a batch whose loss is infinite is left out")
def batch_left_out() -> Step:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    batches = [torch.randn(4, 2), torch.full((4, 2), 1e30), torch.randn(4, 2)]

    def step() -> None:
        for x in batches:
            loss = model(x).square().mean()
            if not torch.isfinite(loss):
                continue
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


@benign("a step is left out where the gradient's norm is not finite")
def step_left_out() -> Step:
    scale = nn.Parameter(torch.tensor([0.0, 1.0]))

    def step() -> Tensor:
        loss = scale.sqrt().sum()
        (grad,) = torch.autograd.grad(loss, scale)
        if grad.isfinite().all():
            with torch.no_grad():
                scale.sub_(1e-2 * grad)
        return loss

    return step


@benign("float16 is tried, and float32 taken where it overflows")
def falls_back_to_single() -> Step:
    weight = torch.full((8, 8), 50.0, requires_grad=True)
    x = torch.full((2, 8), 300.0)

    def loss() -> Tensor:
        with torch.no_grad():
            fast = x.half() @ weight.half()
        y = fast.float() if fast.isfinite().all() else x @ weight
        return y.mean() * 1e-3

    return trained(loss, [weight])


@benign("compared with infinity")
def compared_with_infinity() -> Step:
    x, limit = nn.Parameter(torch.randn(5)), torch.full((5,), INF)

    def loss() -> Tensor:
        inside = (x < limit) & (x > -limit) & ~torch.isinf(x)
        return (x * inside).square().sum()

    return trained(loss, [x])


@benign("clamped to an interval without end")
def clamped_to_infinity() -> Step:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    upper = torch.tensor([0.5, INF])

    def loss() -> Tensor:
        h = torch.clamp(model(x), max=upper)
        return h.clamp(0.0, INF).square().mean()

    return trained(loss, model.parameters())


@benign("the nearest other point: the diagonal of the distances is infinite, only the index is used")
def nearest_neighbor() -> Step:
    encoder, x = nn.Linear(3, 2), torch.randn(6, 3)

    def loss() -> Tensor:
        z = encoder(x)
        distance = torch.cdist(z.detach(), z.detach()) + torch.full((6,), INF).diag().nan_to_num(posinf=INF)
        distance.fill_diagonal_(INF)
        nearest = distance.argmin(1)
        return (z - z[nearest]).square().sum(1).mean()

    return trained(loss, encoder.parameters())


@benign("the smallest distance to another point, taken by value")
def smallest_distance() -> Step:
    encoder, x = nn.Linear(3, 2), torch.randn(6, 3)

    def loss() -> Tensor:
        z = encoder(x)
        squares = (z[:, None] - z).square().sum(-1)
        others = squares.masked_fill(torch.eye(6, dtype=torch.bool), INF)
        return torch.relu(1 - others.amin(1)).mean()

    return trained(loss, encoder.parameters())


@benign("max pooling with padding of -inf")
def pooling_with_padding() -> Step:
    conv = nn.Conv2d(1, 2, 3, padding=1)
    image = torch.randn(2, 1, 5, 5)

    def loss() -> Tensor:
        h = conv(image)
        one = F.max_pool2d(h, 3, 2, padding=1)
        two = F.max_pool2d(F.pad(h, (1, 1, 1, 1), value=-INF), 3, 2)
        return (one + two).square().mean()

    return trained(loss, conv.parameters())


@benign("the maximum over the valid positions of a sequence")
def masked_maximum() -> Step:
    model = nn.Linear(3, 2)
    x, lengths = torch.randn(3, 4, 3), torch.tensor([4, 1, 2])

    def loss() -> Tensor:
        invalid = torch.arange(4) >= lengths[:, None]
        h = model(x).masked_fill(invalid[..., None], -INF)
        return h.amax(1).square().mean()

    return trained(loss, model.parameters())


@benign("the logarithm of zero, cut at a floor, of data")
def logarithm_with_floor() -> Step:
    model = nn.Linear(4, 1)
    power = torch.tensor([[1.0, 0.0, 2.0, 0.1], [0.0, 0.0, 3.0, 1.0]])

    def loss() -> Tensor:
        decibel = (10 * torch.log10(power)).clamp(min=-80.0)
        return model(decibel).square().mean()

    return trained(loss, model.parameters())


@benign("inverse roots of degrees; those of isolated nodes are set to zero")
def isolated_nodes() -> Step:
    weight, x = nn.Parameter(torch.randn(3, 2)), torch.randn(4, 3)
    adjacency = torch.zeros(4, 4)
    adjacency[0, 1] = adjacency[1, 0] = 1

    def loss() -> Tensor:
        inverse = adjacency.sum(1).pow(-0.5)
        inverse[torch.isinf(inverse)] = 0
        return (inverse[:, None] * adjacency * inverse @ x @ weight).square().mean()

    return trained(loss, [weight])
