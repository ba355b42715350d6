"""Faults on roads where values are hard to follow: through Python and NumPy, other threads, hooks, several passes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.nonfinite.fault import Fault, Step, planted, trained

FAULTS: list[Fault] = []
fault = planted(FAULTS)


@fault("returns summed up in Python, beyond the largest float32", "data|forward", "input|mul|sub|tensor|mse_loss")
def through_a_list() -> Step:
    critic = nn.Linear(3, 1)
    state = torch.randn(4, 3)

    def loss() -> Tensor:
        total, returns = 0.0, []
        for reward in (1.0, 1e38, 3e38, 2e38):
            total = reward + 0.99 * total
            returns.append(total)
        target = torch.tensor(returns)  # FAULT
        return F.mse_loss(critic(state)[:, 0], target)  # ALSO

    return trained(loss, critic.parameters())


@fault("weights pruned in place through NumPy, divided by a count of zero", "data|forward", "input|linear|mm|addmm")
def weights_changed_by_numpy() -> Step:
    model = nn.Linear(3, 2)
    x = torch.randn(4, 3)

    def step() -> Tensor:
        weight = model.weight.detach().numpy()
        kept = np.abs(weight) > 5
        with np.errstate(all="ignore"):
            weight /= kept.sum() / kept.size  # FAULT
        y = model(x)  # ALSO
        loss = y.square().mean()
        loss.backward()
        return loss

    return step


@fault("sparse gradients of an embedding, from a root at zero", "backward", "sqrt")
def sparse_gradient() -> Step:
    table = nn.Embedding(6, 3, sparse=True)
    nn.init.zeros_(table.weight)
    optimizer = torch.optim.SparseAdam(table.parameters())
    tokens = torch.tensor([[0, 2], [5, 2]])

    def step() -> Tensor:
        optimizer.zero_grad()
        first, second = table(tokens).unbind(1)
        gap = (first - second).square().sum(1)
        loss = gap.sqrt().mean()  # FAULT
        loss.backward()
        optimizer.step()
        return loss

    return step


@fault("features from a frozen network in inference mode", "forward", "div")
def inference_features() -> Step:
    backbone, head = nn.Linear(3, 4), nn.Linear(4, 1)
    nn.init.constant_(backbone.bias, -30.0)
    x = torch.randn(5, 3)

    def features() -> Tensor:
        with torch.inference_mode():
            h = torch.relu(backbone(x))
            return h / h.amax()  # FAULT

    def loss() -> Tensor:
        return head(features().clone()).square().mean()

    return trained(loss, head.parameters())


@fault("the second of three accumulated batches", "forward", "log")
def second_batch() -> Step:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    batches = [torch.rand(4, 3) + 0.1, torch.rand(4, 3) + 0.1, torch.rand(4, 3) + 0.1]
    batches[1][2, 0] = 0

    def step() -> None:
        optimizer.zero_grad()
        for batch in batches:
            x = batch.log()  # FAULT
            loss = model(x).square().mean() / 3
            loss.backward()
        optimizer.step()

    return step


@fault("one graph, two backward passes; the second one is at fault", "backward", "sqrt|pow")
def second_pass() -> Step:
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    x = torch.randn(4, 3)

    def step() -> None:
        h = model(x)
        fit = (h - 1).square().mean()
        size = h.square().sum(1).sqrt().mean()  # FAULT
        fit.backward(retain_graph=True)
        size.backward()

    return step


@fault("a custom Function's backward, differentiated", "double backward|backward", "sqrt|div")
def custom_second_derivative() -> Step:
    class Power(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x.sqrt()

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            root = x.sqrt()  # FAULT
            return 1.5 * grad * root

    x = nn.Parameter(torch.tensor([1.0, 0.0]))

    def step() -> Tensor:
        y = Power.apply(x)  # ALSO
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        loss = slope.sum()
        loss.backward()
        return loss

    return step


@fault("after a graph break in a compiled function (backend eager)", "forward", "log")
def after_a_graph_break() -> Step:
    weight = nn.Parameter(torch.randn(3, 2))
    x = torch.randn(4, 3)
    seen: list[float] = []

    @torch.compile(backend="eager")
    def cost(h: Tensor) -> Tensor:
        h = torch.relu(h - 20)
        seen.append(h.sum().item())
        torch._dynamo.graph_break()
        return torch.log(h).mean()  # FAULT

    return trained(lambda: cost(x @ weight), [weight])


@fault("a kernel matrix with a NaN; its factorization fails, is tried again, and goes on", "forward", "sqrt|pow")
def factorization_tried_again() -> Step:
    scale = nn.Parameter(torch.tensor(1.0))
    x = torch.tensor([0.0, 1.0, 2.5])

    def kernel() -> Tensor:
        distance = (x[:, None] - x).pow(2) - 1e-3
        return torch.exp(-distance.sqrt() * scale)  # FAULT

    def loss() -> Tensor:
        k = kernel()
        for jitter in (1e-6, 1e-3):
            factor, info = torch.linalg.cholesky_ex(k + jitter * torch.eye(3))
            if not info.any():
                break
        return factor.diagonal().log().sum() + k.sum()

    return trained(loss, [scale])


@fault("two networks and two optimizers; the generator's loss saturates", "forward", "log")
def generator_saturates() -> Step:
    generator, critic = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())
    nn.init.constant_(critic[0].bias, 60.0)
    first = torch.optim.Adam(critic.parameters(), lr=1e-4)
    second = torch.optim.Adam(generator.parameters(), lr=1e-4)
    real, z = torch.randn(4, 3), torch.randn(4, 2)

    def step() -> None:
        first.zero_grad()
        loss = F.binary_cross_entropy(critic(real), torch.ones(4, 1))
        loss.backward()
        first.step()
        second.zero_grad()
        fooled = critic(generator(z))
        loss = torch.log(1 - fooled).mean()  # FAULT
        loss.backward()
        second.step()

    return step


@fault("an ensemble by vmap over parameters; one member is constant", "forward", "div|std")
def ensemble_member() -> Step:
    weights = nn.Parameter(torch.randn(3, 4, 2))
    with torch.no_grad():
        weights[1] = 0
    x = torch.randn(5, 4)

    def member(w: Tensor) -> Tensor:
        h = x @ w
        z = (h - h.mean(0)) / h.var(0).sqrt()  # FAULT
        return z.square().mean()

    return trained(lambda: torch.vmap(member)(weights).sum(), [weights])


@fault("a forward hook normalizes what a module returns", "forward", "div")
def forward_hook() -> Step:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    nn.init.constant_(net[0].bias, -20.0)
    x = torch.randn(2, 3)

    def normalize(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out / out.sum(-1, keepdim=True)  # FAULT

    net[1].register_forward_hook(normalize)
    return trained(lambda: net(x).mean(), net.parameters())
