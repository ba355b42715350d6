"""Harmless programs: measures written down, cleaned gradients, compiled and mapped masks, plain training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.nonfinite.fault import Benign, Step, harmless, trained

BENIGN: list[Benign] = []
benign = harmless(BENIGN)
NAN, INF = float("nan"), float("inf")


@benign("inverse class counts, infinite for classes that are not there and never asked for")
def weights_never_asked_for() -> Step:
    model = nn.Linear(3, 4)
    x, y = torch.randn(6, 3), torch.tensor([0, 0, 2, 2, 2, 0])

    def loss() -> Tensor:
        weight = 1 / torch.bincount(y, minlength=4)
        each = F.cross_entropy(model(x), y, reduction="none")
        return (weight[y] * each).sum()

    return trained(loss, model.parameters())


@benign("a signal-to-noise ratio of infinity, written to a log")
def measure_written_down() -> Step:
    model, x = nn.Linear(3, 3), torch.randn(4, 3)
    log: list[float] = []

    def step() -> Tensor:
        y = model(x)
        loss = (y - x).square().mean()
        loss.backward()
        with torch.no_grad():
            noise = (x - x).square().sum()
            log.append((10 * torch.log10(x.square().sum() / noise)).item())
        return loss

    return step


@benign("the accuracy of a class without samples is NaN, in a table of measures")
def accuracy_of_nothing() -> Step:
    model = nn.Linear(3, 3)
    x, y = torch.randn(6, 3), torch.tensor([0, 0, 2, 2, 2, 0])
    table: dict[int, float] = {}

    def step() -> Tensor:
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        right = (logits.argmax(1) == y).float()
        for k in range(3):
            table[k] = right[y == k].mean().item()
        return loss

    return step


@benign("an entropy whose 0 log 0 is set to zero, for a log only")
def entropy_written_down() -> Step:
    model, x = nn.Linear(3, 3), torch.randn(4, 3) * 300
    log: list[float] = []

    def loss() -> Tensor:
        logits = model(x)
        with torch.no_grad():
            p = logits.softmax(-1)
            log.append(-torch.nan_to_num(p * p.log()).sum(-1).mean().item())
        return logits.square().mean()

    return trained(loss, model.parameters())


@benign("divergence of a target with zeros, by the library")
def divergence_with_zeros() -> Step:
    logits = nn.Parameter(torch.randn(2, 3))
    p = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])

    def loss() -> Tensor:
        own = torch.xlogy(p, p).sum()
        return F.kl_div(logits.log_softmax(-1), p, reduction="batchmean") + own

    return trained(loss, [logits])


@benign("labels of -100 in some places")
def some_labels_ignored() -> Step:
    model = nn.Linear(3, 4)
    x, y = torch.randn(5, 3), torch.tensor([1, -100, 3, -100, 0])
    return trained(lambda: F.cross_entropy(model(x), y), model.parameters())


@benign("shortest paths begin at infinity")
def shortest_paths() -> Step:
    length = torch.tensor([[0.0, 2.0, INF, INF], [INF, 0.0, 1.0, 7.0], [INF, INF, 0.0, 3.0], [1.0, INF, INF, 0.0]])
    bias = nn.Parameter(torch.randn(4))

    def loss() -> Tensor:
        distance = torch.full((4,), INF)
        distance[0] = 0
        for _ in range(4):
            distance = torch.minimum(distance, (distance[:, None] + length).amin(0))
        return (distance * bias).square().mean()

    return trained(loss, [bias])


@benign("infinite gradients made finite before the optimizer reads them")
def cleaned_gradients() -> Step:
    scale = nn.Parameter(torch.tensor([0.0, 1.0, 4.0]))
    optimizer = torch.optim.Adam([scale], lr=1e-3)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = scale.clamp(min=0).sqrt().sum()
        loss.backward()
        assert scale.grad is not None
        scale.grad.nan_to_num_(0.0, 1.0, -1.0)
        optimizer.step()
        return loss

    return step


@benign("an inactive unit's infinite slope is dropped by relu's own")
def slope_dropped_by_relu() -> Step:
    model = nn.Linear(3, 4)
    x = torch.randn(5, 3)
    nn.init.constant_(model.bias, -20.0)

    def loss() -> Tensor:
        return torch.relu(model(x)).sqrt().sum()

    return trained(loss, model.parameters())


@benign("vmap over masked scores")
def masks_under_vmap() -> Step:
    weight = nn.Parameter(torch.randn(4, 4))
    x, keep = torch.randn(3, 4), torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()

    def one(row: Tensor, kept: Tensor) -> Tensor:
        scores = torch.where(kept, row @ weight, -INF)
        return scores.softmax(-1).square().sum()

    return trained(lambda: torch.vmap(one)(x, keep).sum(), [weight])


@benign("a mask of -inf inside a checkpoint")
def checkpointed_mask() -> Step:
    weight = nn.Parameter(torch.randn(4, 4))
    x, future = torch.randn(4, 4), torch.ones(4, 4).triu(1).bool()

    def attention(h: Tensor) -> Tensor:
        return (h @ h.T).masked_fill(future, -INF).softmax(-1) @ h

    return trained(lambda: checkpoint(attention, x @ weight, use_reentrant=False).square().mean(), [weight])


@benign("L-BFGS with a line search")
def line_search() -> Step:
    x = nn.Parameter(torch.tensor([5.0, 3.0]))
    optimizer = torch.optim.LBFGS([x], lr=1.0, max_iter=4, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (x - 1).square().sum() + (x - 1).pow(4).sum()
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)


@benign("the maximum norm, given as an order of infinity")
def order_of_infinity() -> Step:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)

    def loss() -> Tensor:
        size = torch.linalg.vector_norm(model.weight, ord=INF)
        return model(x).square().mean() + size

    return trained(loss, model.parameters())


@benign("gradients with respect to a constant are asked for and infinite, and not used")
def gradient_not_used() -> Step:
    model, x = nn.Linear(2, 1), torch.tensor([[1.0, 0.0], [2.0, 1.0]], requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    def step() -> Tensor:
        loss = model(x.sqrt()).square().mean()
        grads = torch.autograd.grad(loss, [*model.parameters(), x])
        for p, g in zip(model.parameters(), grads[:2], strict=True):
            p.grad = g
        optimizer.step()
        return loss

    return step
