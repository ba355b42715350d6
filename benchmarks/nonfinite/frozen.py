"""Faults that nobody read who wrote what is measured: forward and backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.nonfinite.fault import Fault, Step, planted, trained

FAULTS: list[Fault] = []
fault = planted(FAULTS)


@fault("softmax by hand without taking the maximum away", "forward", "exp")
def softmax_by_hand() -> Step:
    weight = torch.full((5, 3), 30.0, requires_grad=True)
    x, y = torch.rand(4, 5) + 1, torch.tensor([0, 2, 1, 0])

    def loss() -> Tensor:
        logits = x @ weight
        e = logits.exp()  # FAULT
        p = e / e.sum(1, keepdim=True)
        return -p.gather(1, y[:, None]).log().mean()

    return trained(loss, [weight])


@fault("a variance as a difference of two means is negative; its root", "forward", "sqrt")
def root_of_negative_variance() -> Step:
    scale = torch.ones(3, requires_grad=True)
    x = 4096.1 + 1e-3 * torch.randn(1000, 3)

    def loss() -> Tensor:
        z = x * scale
        variance = (z * z).mean(0) - z.mean(0) ** 2 - 1e-2
        std = torch.sqrt(variance)  # FAULT
        return ((z - z.mean(0)) / std).square().mean()

    return trained(loss, [scale])


@fault("a fractional power of a negative number", "forward", "pow")
def power_of_negative() -> Step:
    gamma = torch.tensor(0.8, requires_grad=True)
    image = torch.tensor([[0.5, 0.25], [-1e-3, 0.75]])

    def loss() -> Tensor:
        corrected = image**gamma  # FAULT
        return (corrected - 0.5).abs().mean()

    return trained(loss, [gamma])


@fault("log-probabilities of a row in which everything is masked", "forward", "sub")
def all_masked_log_probabilities() -> Step:
    weight = torch.randn(4, 6, requires_grad=True)
    x, mask = torch.randn(3, 4), torch.zeros(3, 6, dtype=torch.bool)
    mask[0, :2], mask[1] = True, True

    def loss() -> Tensor:
        scores = (x @ weight).masked_fill(mask, float("-inf"))
        log_p = scores - scores.logsumexp(-1, keepdim=True)  # FAULT
        return -log_p[:, 3].mean()

    return trained(loss, [weight])


@fault("cosine similarity by hand of a zero vector", "forward", "div")
def cosine_of_zero() -> Step:
    table = nn.Parameter(torch.randn(5, 4))
    with torch.no_grad():
        table[3] = 0

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        dot = (a * b).sum(-1)
        return dot / (a.norm(dim=-1) * b.norm(dim=-1))  # FAULT

    def loss() -> Tensor:
        first = similarity(table[0], table[1])
        return first + similarity(table[2], table[3])

    return trained(loss, [table])


@fault("the correction of a squashed policy: log of 1 - tanh(u)²", "forward", "log")
def squashed_log_probability() -> Step:
    mean, log_std = nn.Linear(3, 1), nn.Parameter(torch.zeros(1))
    state = torch.randn(4, 3) * 100

    def log_probability(u: Tensor, normal: torch.distributions.Normal) -> Tensor:
        log_p = normal.log_prob(u)
        return log_p - torch.log(1 - torch.tanh(u) ** 2)  # FAULT

    def loss() -> Tensor:
        normal = torch.distributions.Normal(mean(state), log_std.exp())
        u = normal.rsample()
        return log_probability(u, normal).mean()

    return trained(loss, [*mean.parameters(), log_std])


@fault("Kullback-Leibler divergence by hand with a target of zero", "forward", "log|mul|div")
def divergence_by_hand() -> Step:
    logits = torch.zeros(2, 3, requires_grad=True)
    p = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])

    def loss() -> Tensor:
        q = logits.softmax(-1)
        return (p * (p / q).log()).sum(-1).mean()  # FAULT

    return trained(loss, [logits])


@fault("Poisson loss whose rate is the exponential of a large input", "forward", "exp|poisson")
def poisson_rate_overflows() -> Step:
    model = nn.Linear(3, 1, bias=False)
    nn.init.ones_(model.weight)
    x, y = torch.tensor([[50.0, 60.0, 10.0], [0.0, 1.0, 0.0]]), torch.tensor([[3.0], [1.0]])

    def loss() -> Tensor:
        rate = model(x)
        return F.poisson_nll_loss(rate, y)  # FAULT

    return trained(loss, model.parameters())


@fault("a temperature annealed to zero", "forward", "div")
def temperature_of_zero() -> Step:
    model = nn.Linear(3, 4)
    x = torch.randn(2, 3)
    temperature = torch.tensor([1.0, 0.5, 0.0])

    def step() -> list[float]:
        losses = []
        for t in temperature:
            logits = model(x)
            p = F.softmax(logits / t, -1)  # FAULT
            loss = p.square().sum()
            loss.backward()
            losses.append(loss.item())
        return losses

    return step


@fault("masked log-probabilities times a target that is zero there", "forward", "mul")
def masked_times_zero() -> Step:
    weight = torch.randn(4, 5, requires_grad=True)
    x, mask = torch.randn(3, 4), torch.tensor([0, 0, 0, 1, 1]).bool()
    target = torch.tensor([0.2, 0.3, 0.5, 0.0, 0.0])

    def loss() -> Tensor:
        scores = (x @ weight).masked_fill(mask, float("-inf"))
        log_p = F.log_softmax(scores, -1)
        cross = target * log_p  # FAULT
        return -cross.sum(-1).mean()

    return trained(loss, [weight])


@fault("the slope of the square root at zero", "backward", "sqrt")
def slope_of_root() -> Step:
    amount = nn.Parameter(torch.tensor([4.0, 0.0, 9.0]))

    def loss() -> Tensor:
        side = amount.sqrt()  # FAULT
        return (side * torch.tensor([1.0, 2.0, 3.0])).sum()

    return trained(loss, [amount])


@fault("clamp() hides an overflow, not its slope", "forward|backward", "exp")
def clamped_exponential() -> Step:
    model = nn.Linear(2, 1)
    x = torch.tensor([[200.0, 200.0], [1.0, 0.0]])
    nn.init.ones_(model.weight)

    def loss() -> Tensor:
        rate = torch.exp(model(x))  # FAULT
        return rate.clamp(max=1e4).mean()

    return trained(loss, model.parameters())


@fault("eigenvectors of a matrix with equal eigenvalues", "backward", "eigh")
def equal_eigenvalues() -> Step:
    factor = nn.Parameter(torch.eye(3))

    def loss() -> Tensor:
        covariance = factor @ factor.mT
        _, vectors = torch.linalg.eigh(covariance)  # FAULT
        return vectors[0].square().sum() + vectors[:, 0].sum()

    return trained(loss, [factor])


@fault("singular vectors of a matrix with equal singular values", "backward", "svd")
def equal_singular_values() -> Step:
    weight = nn.Parameter(torch.eye(3)[:, :2].clone())

    def orthogonal(w: Tensor) -> Tensor:
        u, _, vh = torch.linalg.svd(w, full_matrices=False)  # FAULT
        return u * torch.tensor([1.0, 2.0]) @ vh

    return trained(lambda: orthogonal(weight)[0].sum(), [weight])


@fault("a module's backward hook scales by the inverse of a variance", "backward", "div|recip|rsqrt")
def module_hook_scales() -> Step:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    x = torch.randn(1, 3)

    def scaled(module: nn.Module, into: tuple[Tensor, ...], out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        variance = into[0].var(0, unbiased=False)
        return tuple(g * variance.rsqrt() for g in into)  # FAULT

    model[1].register_full_backward_hook(scaled)

    return trained(lambda: model(x).sum(), model.parameters())


@fault("the penalty on a gradient that is zero", "backward|double backward", "sqrt")
def gradient_penalty() -> Step:
    critic = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    nn.init.constant_(critic[0].bias, -50.0)
    real = torch.randn(4, 3)

    def loss() -> Tensor:
        x = real.clone().requires_grad_()
        (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        norm = slope.square().sum(1).sqrt()  # FAULT
        return (norm - 1).square().mean() + critic(real).mean()

    return trained(loss, critic.parameters())


@fault("the second derivative of |x|^1.5 at zero", "double backward", "pow")
def curvature_of_power() -> Step:
    x = nn.Parameter(torch.tensor([0.0, 1.0, -4.0]))

    def loss() -> Tensor:
        size = x.abs()
        potential = size.pow(1.5)  # FAULT
        (force,) = torch.autograd.grad(potential.sum(), x, create_graph=True)
        return force.sum()

    return trained(loss, [x])


@fault("a Hessian-vector product of a power that has one derivative at zero", "double backward", "pow|mul")
def curvature_at_the_edge() -> Step:
    weight = nn.Parameter(torch.tensor([0.0, 2.0]))
    direction = torch.tensor([1.0, 1.0])

    def energy(w: Tensor) -> Tensor:
        inside = w.clamp(min=0)
        return (inside**1.5).sum()  # FAULT

    def step() -> Tensor:
        (slope,) = torch.autograd.grad(energy(weight), weight, create_graph=True)
        (product,) = torch.autograd.grad(slope @ direction, weight)
        with torch.no_grad():
            weight.sub_(0.1 * product)
        return product

    return step


@fault("an inner loop of gradient descent leaves the domain of its loss", "forward", "log|mul")
def unrolled_inner_step() -> Step:
    start = nn.Parameter(torch.tensor([1.0, 0.5]))
    rate = nn.Parameter(torch.tensor(1.0))

    def step() -> Tensor:
        w = start
        for _ in range(2):
            inner = (torch.log(w) * w - w).sum() + w.square().sum() / 2  # FAULT
            (slope,) = torch.autograd.grad(inner, w, create_graph=True)
            w = w - rate * slope
        outer = w.square().sum()
        outer.backward()
        return outer

    return step
