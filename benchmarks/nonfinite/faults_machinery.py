"""Faults inside torch's machinery: in-place code, custom Functions, checkpoints, vmap, compiled regions, complex, loops."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.nonfinite.fault import Fault, Step, planted, trained

FAULTS: list[Fault] = []
fault = planted(FAULTS)


@fault("a logarithm in place on one column, read through the whole", "forward", "log")
def logarithm_of_a_view() -> Step:
    weight = torch.randn(3, 3, requires_grad=True)
    x = torch.randn(4, 3)

    def loss() -> Tensor:
        features = torch.relu(x @ weight) * torch.tensor([1.0, 0.0, 1.0])
        column = features[:, 1]
        column.log_()  # FAULT
        return features.sum(1).square().mean()

    return trained(loss, [weight])


@fault("a buffer of NaN of which one place is never written", "data|forward", "full|sum")
def place_never_written() -> Step:
    weight = torch.randn(3, requires_grad=True)

    def loss() -> Tensor:
        collected = torch.full((5,), float("nan"))  # FAULT
        for k in range(4):
            collected[k] = (weight * k).sum()
        return collected.square().sum()  # ALSO

    return trained(loss, [weight])


@fault("backward of a custom Function divides by its input", "backward", "div")
def custom_backward() -> Step:
    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            y = torch.sqrt(x)
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
            (y,) = ctx.saved_tensors
            half = grad / 2
            return half / y  # FAULT

    x = nn.Parameter(torch.tensor([1.0, 0.0, 4.0]))

    def loss() -> Tensor:
        y = Root.apply(x)  # ALSO
        return y.sum()

    return trained(loss, [x])


@fault("inside a re-entrant checkpoint, only in backward", "backward", "pow|sqrt")
def reentrant_checkpoint() -> Step:
    first, second = nn.Linear(3, 4), nn.Linear(4, 1)
    x = torch.randn(2, 3)

    class Block(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            h = h - h.amin()
            h = h**0.5  # FAULT
            return h + 1

    block = Block()

    def loss() -> Tensor:
        h = checkpoint(block, first(x), use_reentrant=True)
        return second(h).mean()

    return trained(loss, [*first.parameters(), *second.parameters()])


@fault("in a function under vmap", "forward", "div")
def under_vmap() -> Step:
    weight = nn.Parameter(torch.randn(3))
    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [4.0, 5.0, 6.0]])

    def one(row: Tensor) -> Tensor:
        share = row / row.sum()  # FAULT
        return (share * weight).sum()

    def loss() -> Tensor:
        return torch.vmap(one)(x).square().mean()

    return trained(loss, [weight])


@fault("a tangent in forward mode", "forward", "sqrt|div|mul")
def tangent_of_root() -> Step:
    weight = torch.tensor([0.0, 1.0, 4.0])
    direction = torch.ones(3)

    def f(w: Tensor) -> Tensor:
        roots = torch.sqrt(w)  # FAULT
        return roots.sum()

    def step() -> Tensor:
        _, slope = torch.func.jvp(f, (weight,), (direction,))
        weight.sub_(0.1 * slope * direction)
        return slope

    return step


@fault("a second derivative by torch.func.hessian", "double backward|backward|forward", "pow|norm|sqrt|div|mul")
def func_hessian() -> Step:
    weight = torch.zeros(2)

    def f(w: Tensor) -> Tensor:
        return (w.abs() ** 1.5).sum()  # FAULT

    def step() -> Tensor:
        hessian = torch.func.hessian(f)(weight)
        weight.sub_(hessian @ torch.ones(2))
        return weight

    return step


@fault("in a compiled function (backend eager)", "forward", "log")
def compiled_forward() -> Step:
    weight = nn.Parameter(torch.randn(3, 2))
    x = torch.randn(4, 3)

    @functools.partial(torch.compile, backend="eager")
    def entropy(h: Tensor) -> Tensor:
        p = torch.softmax(h * 500, -1)
        log_p = torch.log(p)  # FAULT
        return -(p * log_p).sum(-1)

    return trained(lambda: entropy(x @ weight).mean(), [weight])


@fault("in a compiled function's backward (backend aot_eager)", "backward", "sqrt|where|div|mul")
def compiled_backward() -> Step:
    weight = nn.Parameter(torch.zeros(3))
    x = torch.randn(4, 3)

    def safe_root(h: Tensor) -> Tensor:
        root = torch.sqrt(h.clamp(min=0))  # FAULT
        return torch.where(h > 0, root, torch.zeros_like(h))

    compiled = torch.compile(safe_root, backend="aot_eager")
    return trained(lambda: compiled(x @ weight).sum() + weight.sum(), [weight])


@fault("in a compiled module (backend aot_eager), forward", "forward", "div")
def compiled_module() -> Step:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.linear(x) - 30)
            return h / h.amax(-1, keepdim=True)  # FAULT

    net = torch.compile(Scaled(), backend="aot_eager")
    x = torch.randn(4, 3)
    return trained(lambda: net(x).mean(), net.parameters())


@fault("the logarithm of a complex zero", "forward", "log")
def complex_logarithm() -> Step:
    weight = nn.Parameter(torch.randn(8))
    signal = torch.zeros(2, 8)
    signal[0] = torch.randn(8)

    def loss() -> Tensor:
        spectrum = torch.fft.fft(signal * weight)
        cepstrum = torch.log(spectrum)  # FAULT
        return torch.fft.ifft(cepstrum).real.square().mean()

    return trained(loss, [weight])


@fault("a complex quotient by zero", "forward", "div")
def complex_quotient() -> Step:
    h = nn.Parameter(torch.randn(4, dtype=torch.complex64))
    noise = torch.randn(4, dtype=torch.complex64)
    noise[2] = 0

    def loss() -> Tensor:
        wiener = h / noise  # FAULT
        return torch.view_as_real(wiener).square().sum()

    return trained(loss, [h])


@fault("the third step of a Newton iteration meets a slope of zero", "forward", "div")
def newton_iteration() -> Step:
    target = nn.Parameter(torch.tensor([1.0, 0.5]))

    def loss() -> Tensor:
        x = torch.tensor([0.0, 1.0]) + 0 * target
        for _ in range(3):
            value = x**3 - x * target
            slope = (3 * x**2 - target) * (x != 0)
            x = x - value / slope  # FAULT
        return x.square().sum()

    return trained(loss, [target])


@fault("Sinkhorn iteration with a column of zeros", "forward", "div")
def sinkhorn_iteration() -> Step:
    cost = nn.Parameter(torch.rand(3, 3))

    def loss() -> Tensor:
        plan = torch.exp(-cost * torch.tensor([1.0, 1.0, 1e4]))
        for _ in range(5):
            plan = plan / plan.sum(1, keepdim=True)
            plan = plan / plan.sum(0, keepdim=True)  # FAULT
        return (plan * cost).sum()

    return trained(loss, [cost])


@fault("in a comprehension over a generator of parts", "forward", "div|std|mean")
def in_a_comprehension() -> Step:
    model = nn.Linear(3, 2)
    parts = [torch.randn(4, 3), torch.randn(0, 3), torch.randn(2, 3)]

    def loss() -> Tensor:
        outputs = (model(part) for part in parts)
        means = [out.sum() / out.new_tensor(out.numel()) for out in outputs]  # FAULT
        return torch.stack(means).square().sum()

    return trained(loss, model.parameters())


@fault("behind functools.partial and a table of functions", "forward", "pow")
def behind_a_table() -> Step:
    kernels = {"inverse": functools.partial(torch.pow, exponent=-2), "linear": torch.neg}
    x, y = nn.Parameter(torch.randn(3, 2)), torch.randn(3, 2)
    with torch.no_grad():
        x[1] = y[1]

    def loss() -> Tensor:
        squares = (x - y).square().sum(1)
        total = kernels["linear"](squares).sum()
        return total + kernels["inverse"](squares).sum()  # FAULT

    return trained(loss, [x])


@fault("power iteration of a matrix that is zero", "forward", "div")
def power_iteration() -> Step:
    class SpectralPenalty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("v", torch.ones(3) / 3**0.5)

        def forward(self) -> Tensor:
            with torch.no_grad():
                for _ in range(2):
                    u = self.linear.weight @ self.v
                    self.v.copy_(u / u.norm())  # FAULT
            return (self.linear.weight @ self.v).norm()

    net = SpectralPenalty()
    nn.init.zeros_(net.linear.weight)
    return trained(lambda: net() + net.linear.bias.sum(), net.parameters())
