"""Faults of training: optimizers, schedules, clipping, data, mixed precision, several steps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.nonfinite.fault import Fault, Step, planted, trained

FAULTS: list[Fault] = []
fault = planted(FAULTS)


@fault("Adam in float16, whose eps is zero there", "optimizer", "adam|div|step")
def adam_in_half() -> Step:
    weight = nn.Parameter(torch.randn(4, dtype=torch.float16))
    optimizer = torch.optim.Adam([weight], lr=1e-3)
    x = torch.tensor([1e-3, 0.0, 2e-4, 1.0], dtype=torch.float16)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = (weight * x).sum()
        loss.backward()
        optimizer.step()  # FAULT
        return loss

    return step


@fault("RMSprop with eps=0", "optimizer", "rms|div|step")
def rmsprop_without_epsilon() -> Step:
    table = nn.Embedding(6, 3)
    optimizer = torch.optim.RMSprop(table.parameters(), lr=1e-2, eps=0.0, foreach=False)
    tokens = torch.tensor([0, 2, 5])

    def step() -> None:
        loss = table(tokens).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # FAULT

    return step


@fault("a learning rate beyond float32", "optimizer", "add|sgd|step|mul")
def learning_rate_overflows() -> Step:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e38)
    x, y = torch.randn(4, 3) * 10, torch.randn(4, 1)

    def step() -> Tensor:
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()  # FAULT
        optimizer.zero_grad()
        return loss

    return step


@fault("a learning rate too large: the loss overflows after a few steps", "forward", "pow|square|mul")
def learning_rate_diverges() -> Step:
    weight = nn.Parameter(torch.randn(3, 1))
    optimizer = torch.optim.SGD([weight], lr=1e4)
    x, y = torch.randn(8, 3), torch.randn(8, 1)

    def step() -> list[float]:
        history = []
        for _ in range(8):
            optimizer.zero_grad()
            error = x @ weight - y
            loss = (error**2).mean()  # FAULT
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        return history

    return step


@fault("gradients clipped by hand to a norm that is zero", "optimizer|forward", "div|recip")
def clipped_by_zero_norm() -> Step:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1, bias=False))
    nn.init.constant_(model[0].bias, -30.0)
    x = torch.randn(2, 3)

    def clip(limit: float) -> None:
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.stack([g.norm() for g in grads]).norm()
        factor = limit / norm  # FAULT
        for g in grads:
            g.mul_(factor)

    def step() -> Tensor:
        model.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        clip(1.0)
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(1e-2 * p.grad)
        return loss

    return step


@fault("clip_grad_norm_ of an infinite gradient makes all of them NaN", "backward", "sqrt")
def clipped_infinite_gradient() -> Step:
    scale, model = nn.Parameter(torch.zeros(1)), nn.Linear(3, 1)
    optimizer = torch.optim.SGD([scale, *model.parameters()], lr=1e-2)
    x = torch.randn(4, 3)

    def step() -> Tensor:
        optimizer.zero_grad()
        width = scale.abs().sqrt()  # FAULT
        loss = (model(x) + width).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_([scale, *model.parameters()], 1.0)
        optimizer.step()
        return loss

    return step


@fault("an optimizer of one's own takes the root of a negative moment", "optimizer", "sqrt")
def own_optimizer() -> Step:
    class Centered(torch.optim.Optimizer):
        def __init__(self, params: Iterable[Tensor]) -> None:
            super().__init__(params, {"lr": 1e-2, "beta": 0.5})

        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    state = self.state[p]
                    mean = state.setdefault("mean", torch.zeros_like(p))
                    power = state.setdefault("power", torch.zeros_like(p))
                    mean.lerp_(p.grad, 0.9)
                    power.lerp_(p.grad.square(), 0.5)
                    deviation = (power - mean.square()).sqrt()  # FAULT
                    p.addcdiv_(mean, deviation + 1e-8, value=-group["lr"])

    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    optimizer = Centered(model.parameters())

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return step


@fault("a trust ratio of an update that is zero", "optimizer|forward", "div|mul")
def trust_ratio() -> Step:
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.bias)
    x = torch.randn(4, 3)
    x -= x.mean(0)

    def step() -> Tensor:
        loss = (model(x) * torch.tensor([1.0, 2.0])).mean() * 0
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                update = g * (p.norm() / g.norm())  # FAULT
                p.add_(update, alpha=-0.1)
        return loss

    return step


@fault("an optimizer in a hook, run while backward runs", "optimizer|backward", "div|rsqrt")
def optimizer_in_a_hook() -> Step:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    nn.init.constant_(model[0].bias, -20.0)
    x = torch.randn(4, 3)

    def update(p: Tensor) -> None:
        with torch.no_grad():
            p -= 1e-2 * p.grad / p.grad.abs().amax()  # FAULT
        p.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(update)

    def step() -> Tensor:
        loss = model(x).sum()
        loss.backward()
        return loss

    return step


@fault("a moving average of weights corrected by 1 - decay**0", "forward|optimizer", "div")
def average_corrected_too_early() -> Step:
    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    average = [torch.zeros_like(p) for p in model.parameters()]
    teacher = nn.Linear(3, 1)
    count = torch.zeros(())

    def step() -> Tensor:
        with torch.no_grad():
            for a, p, t in zip(average, model.parameters(), teacher.parameters(), strict=True):
                a.mul_(0.9).add_(p, alpha=0.1 * float(count > 0))
                t.copy_(a / (1 - 0.9**count))  # FAULT
        loss = (model(x) - teacher(x).detach()).square().mean()
        loss.backward()
        count.add_(1)
        return loss

    return step


@fault("a NaN in a table of numbers read by NumPy", "data|forward", "input|linear|mm|addmm|from_numpy|tensor")
def nan_in_the_table() -> Step:
    model = nn.Linear(3, 2)
    rows = np.array([[0.5, 1.0, 2.0], [1.5, np.nan, 0.0]], dtype=np.float32)

    def step() -> Tensor:
        x = torch.from_numpy(rows)  # FAULT
        h = model(x)  # ALSO
        loss = h.square().mean()
        loss.backward()
        return loss

    return step


@fault("a dataset takes the logarithm of a count of zero", "forward|data", "log")
def logarithm_in_the_dataset() -> Step:
    class Counts(Dataset[tuple[Tensor, Tensor]]):
        def __init__(self) -> None:
            self.counts = torch.tensor([[1.0, 2.0], [4.0, 1.0], [3.0, 0.0], [1.0, 1.0]])

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            x = torch.log(self.counts[index])  # FAULT
            return x, x.new_tensor(index)

    model = nn.Linear(2, 1)
    loader = DataLoader(Counts(), batch_size=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.mse_loss(model(x)[:, 0], y)
            loss.backward()
            optimizer.step()

    return step


@fault("samples with a NaN, collated by a DataLoader", "data|forward", "input|stack|linear|mm|addmm")
def nan_from_the_loader() -> Step:
    samples = [(torch.randn(3), torch.randn(1)) for _ in range(4)]
    samples[2][0][1] = float("inf")
    loader = DataLoader(samples, batch_size=4)
    model = nn.Linear(3, 1)

    def step() -> None:
        for x, y in loader:  # FAULT
            prediction = model(x)  # ALSO
            loss = F.l1_loss(prediction, y)
            loss.backward()

    return step


@fault("autocast to float16: a layer overflows", "forward", "linear|mm|addmm")
def autocast_layer_overflows() -> Step:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 1)
            nn.init.constant_(self.up.weight, 60.0)

        def forward(self, x: Tensor) -> Tensor:
            h = self.up(x)  # FAULT
            return self.down(torch.relu(h))

    net, x = Net(), torch.full((2, 8), 200.0)

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            y = net(x)
        return y.float().mean()

    return trained(loss, net.parameters())


@fault("a loss in float16 multiplied by a scale", "forward", "mul")
def scaled_loss_overflows() -> Step:
    net = nn.Linear(4, 3).half()
    x = torch.randn(5, 4).half() * 4

    def step() -> Tensor:
        y = net(x)
        loss = y.square().mean()
        scaled = loss * 65536.0  # FAULT
        scaled.backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 1e-3 * p.grad / 65536.0
        return loss

    return step


@fault("a running sum in float16", "forward", "cumsum")
def running_sum_in_half() -> Step:
    rate = nn.Parameter(torch.full((300,), 400.0).half())

    def loss() -> Tensor:
        time = torch.cumsum(rate, 0)  # FAULT
        return time.float().mean() / 1e4

    return trained(loss, [rate])


@fault("bfloat16 gradients times a large loss weight leave the range", "backward|forward", "mul")
def weighted_bfloat16() -> Step:
    weight = nn.Parameter(torch.randn(3, dtype=torch.bfloat16))

    def loss() -> Tensor:
        penalty = weight.square().sum()
        return penalty.float() * 1e30 * 1e30  # FAULT

    return trained(loss, [weight])


@fault("two losses in turn; the second one's weight is a quotient by a past loss of zero", "forward", "div")
def balanced_losses() -> Step:
    model = nn.Linear(3, 2)
    x, previous = torch.randn(4, 3), torch.tensor([0.7, 0.0])

    def step() -> Tensor:
        y = model(x)
        current = torch.stack([y[:, 0].square().mean(), (y[:, 1] * 0).sum()])
        balance = torch.softmax(current.detach() / previous, 0)  # FAULT
        loss = (balance * current).sum()
        loss.backward()
        previous.copy_(current.detach())
        return loss

    return step


@fault("a training loop stops at its own assertion; the cause is five lines above", "forward", "log")
def stopped_by_an_assertion() -> Step:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 1))
    x, y = torch.randn(5, 3), torch.tensor([[2.0], [1.0], [-1.0], [4.0], [1.0]])

    def step() -> None:
        prediction = model(x)
        target = torch.log(y)  # FAULT
        error = prediction - target
        weight = torch.ones_like(error)
        loss = (weight * error.square()).mean()
        loss.backward()
        assert torch.isfinite(loss), "the loss is not finite"

    return step
