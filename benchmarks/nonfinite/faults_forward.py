"""Faults in the forward pass: elementary functions, reductions, losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.nonfinite.fault import Fault, Step, planted, trained

FAULTS: list[Fault] = []
fault = planted(FAULTS)


@fault("rows of counts divided by their sum, one row empty", "forward", "div")
def empty_row_normalized() -> Step:
    counts = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 2.0]])
    weight = torch.randn(3, 2, requires_grad=True)

    def loss() -> Tensor:
        total = counts.sum(1, keepdim=True)
        frequency = counts / total  # FAULT
        return (frequency @ weight).square().mean()

    return trained(loss, [weight])


@fault("softplus by hand: exp overflows", "forward", "exp")
def softplus_by_hand() -> Step:
    model = nn.Linear(4, 3)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 400.0, 0.0]])
    nn.init.ones_(model.weight)

    def loss() -> Tensor:
        h = model(x)
        grown = torch.exp(h)  # FAULT
        return torch.log1p(grown).mean()

    return trained(loss, model.parameters())


@fault("the logarithm of a softmax that underflowed", "forward", "log")
def log_of_softmax() -> Step:
    model = nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1))
    nn.init.constant_(model[0].bias, 0.0)
    with torch.no_grad():
        model[0].bias[2] = 300.0
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 0, 1])

    def loss() -> Tensor:
        p = model(x)
        return F.nll_loss(p.log(), y)  # FAULT

    return trained(loss, model.parameters())


@fault("binary cross-entropy by hand at a saturated probability", "forward", "log")
def cross_entropy_by_hand() -> Step:
    model = nn.Linear(2, 1)
    x, y = torch.tensor([[1.0, 1.0], [90.0, 90.0]]), torch.tensor([[0.0], [1.0]])
    nn.init.ones_(model.weight)

    def loss() -> Tensor:
        p = torch.sigmoid(model(x))
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()  # FAULT

    return trained(loss, model.parameters())


@fault("the standard deviation of a batch of one", "forward", "std")
def deviation_of_one() -> Step:
    model = nn.Linear(3, 2)
    x = torch.randn(1, 3)

    def loss() -> Tensor:
        h = model(x)
        centered = h - h.mean(0)
        spread = h.std(0)  # FAULT
        return (centered / (spread + 1e-5)).square().sum()

    return trained(loss, model.parameters())


@fault("the mean of the errors of a class that is not in the batch", "forward", "mean")
def empty_mean() -> Step:
    model = nn.Linear(3, 1)
    x, y, group = torch.randn(5, 3), torch.randn(5, 1), torch.tensor([0, 0, 2, 2, 0])

    def loss() -> Tensor:
        error = (model(x) - y).square()
        total = torch.zeros(())
        for k in range(3):
            total = total + error[group == k].mean()  # FAULT
        return total

    return trained(loss, model.parameters())


@fault("a cosine that rounding puts above 1, then its angle", "forward", "acos")
def angle_beyond_one() -> Step:
    a = torch.randn(512, 8, requires_grad=True)

    def loss() -> Tensor:
        unit = a / a.norm(dim=1, keepdim=True)
        cosine = (unit * unit.detach()).sum(1) * (1 + 1e-6)
        angle = torch.acos(cosine)  # FAULT
        return angle.mean()

    return trained(loss, [a])


@fault("pairwise 1/r with the diagonal in it; multiplied by zero afterwards", "forward", "recip|div|pow")
def inverse_distance_to_itself() -> Step:
    position = torch.randn(4, 3, requires_grad=True)
    others = 1 - torch.eye(4)

    def loss() -> Tensor:
        r = torch.cdist(position.detach(), position.detach())
        inverse = 1 / r  # FAULT
        energy = (inverse * others).sum()
        return energy + position.square().sum()

    return trained(loss, [position])


@fault("logarithm of positions that begin at zero", "forward", "log")
def logarithmic_positions() -> Step:
    weight = torch.randn(8, requires_grad=True)

    def loss() -> Tensor:
        position = torch.arange(8, dtype=torch.float32)
        distance = torch.log(position)  # FAULT
        return (distance * weight).tanh().sum() + (distance * weight).mean()

    return trained(loss, [weight])


@fault("the log-determinant of a singular matrix", "forward", "det")
def singular_log_determinant() -> Step:
    factor = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))

    def loss() -> Tensor:
        covariance = factor @ factor.mT
        _, volume = torch.linalg.slogdet(covariance)  # FAULT
        return -volume + covariance.square().sum()

    return trained(loss, [factor])


@fault("atanh of an action that tanh had rounded to 1", "forward", "atanh")
def inverse_of_saturated_tanh() -> Step:
    model = nn.Linear(3, 2)
    state = torch.randn(4, 3) * 300

    def loss() -> Tensor:
        action = torch.tanh(model(state))
        raw = torch.atanh(action)  # FAULT
        return raw.square().mean()

    return trained(loss, model.parameters())


@fault("a normal density whose scale came out as zero", "forward", "div")
def density_of_no_width() -> Step:
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    nn.init.constant_(model.bias, -2.0)
    x, y = torch.randn(5, 2), torch.randn(5)

    def loss() -> Tensor:
        mu, raw = model(x).unbind(1)
        scale = torch.relu(raw)
        deviation = (y - mu) / scale  # FAULT
        return (deviation.square() / 2 + scale).mean()

    return trained(loss, model.parameters())


@fault("a prediction of NaN, refused by the distribution it goes to", "forward", "log")
def error_follows_the_nan() -> Step:
    model = nn.Linear(2, 3)
    x = torch.tensor([[0.5, -0.5]])

    def step() -> Tensor:
        features = torch.log(x)  # FAULT
        logits = model(features)
        policy = torch.distributions.Categorical(logits=logits)
        action = policy.sample()
        loss = -policy.log_prob(action).mean()
        loss.backward()
        return loss

    return step


@fault("F.kl_div of the logarithm of probabilities that are zero", "forward", "log")
def divergence_of_logged_zeros() -> Step:
    logits = torch.tensor([[0.0, 200.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    p = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])

    def loss() -> Tensor:
        log_q = logits.softmax(-1).log()  # FAULT
        return F.kl_div(log_q, p, reduction="batchmean")

    return trained(loss, [logits])


@fault("cross-entropy of a batch in which every label is ignored", "forward", "nll_loss|cross_entropy")
def every_label_ignored() -> Step:
    model = nn.Linear(4, 3)
    x, y = torch.randn(5, 4), torch.full((5,), -100)

    def loss() -> Tensor:
        logits = model(x)
        return F.cross_entropy(logits, y)  # FAULT

    return trained(loss, model.parameters())


@fault("CTC of a target longer than its input", "forward", "ctc")
def target_longer_than_input() -> Step:
    model = nn.Linear(4, 5)
    x, target = torch.randn(3, 2, 4), torch.randint(1, 5, (2, 6))

    def loss() -> Tensor:
        log_p = model(x).log_softmax(-1)
        lengths = torch.tensor([3, 3]), torch.tensor([6, 2])
        return F.ctc_loss(log_p, target, *lengths)  # FAULT

    return trained(loss, model.parameters())


@fault("log cosh by hand", "forward", "cosh")
def log_cosh_by_hand() -> Step:
    model = nn.Linear(2, 1)
    x, y = torch.randn(6, 2), torch.tensor([[0.0], [1.0], [2.0], [1.0], [150.0], [0.0]])

    def loss() -> Tensor:
        error = model(x) - y
        return (
            error.abs()
            .cosh()  # FAULT
            .log()
            .mean()
        )

    return trained(loss, model.parameters())


@fault("Gumbel noise from a uniform number that is zero", "forward", "log")
def gumbel_of_zero() -> Step:
    logits = torch.zeros(2, 3, requires_grad=True)
    u = torch.tensor([[0.2, 0.0, 0.9], [0.5, 0.1, 0.3]])

    def loss() -> Tensor:
        noise = -torch.log(-torch.log(u))  # FAULT
        return (logits + noise).sum(-1).square().mean()

    return trained(loss, [logits])


@fault("a sum that leaves float32", "forward", "sum")
def sum_overflows() -> Step:
    scale = torch.tensor(1e36, requires_grad=True)

    def loss() -> Tensor:
        energy = torch.ones(1000) * scale
        total = energy.sum()  # FAULT
        return energy.mean() / total

    return trained(loss, [scale])


@fault("segments summed and divided by their sizes, one segment empty", "forward", "div")
def empty_segment() -> Step:
    model = nn.Linear(3, 2)
    x, graph = torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 3, 3])

    def pool(h: Tensor) -> Tensor:
        total = torch.zeros(4, 2).index_add(0, graph, h)
        size = torch.zeros(4).index_add(0, graph, torch.ones(6))
        return total / size[:, None]  # FAULT

    def loss() -> Tensor:
        return pool(model(x)).square().mean()

    return trained(loss, model.parameters())


@fault("zero multiplied by minus infinity in a mask", "forward", "mul")
def mask_times_infinity() -> Step:
    weight = torch.randn(4, 5, requires_grad=True)
    x, keep = torch.randn(3, 4), torch.ones(3, 5)
    keep[:, 3:] = 0

    def loss() -> Tensor:
        scores = x @ weight
        bias = (1 - keep) * float("-inf")  # FAULT
        return (scores + bias).softmax(-1).square().sum()

    return trained(loss, [weight])
