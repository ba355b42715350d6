"""Faults in backward: the forward pass is finite, or what is not finite in it is hidden afterwards; double backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.nonfinite.fault import Fault, Step, planted, trained

FAULTS: list[Fault] = []
fault = planted(FAULTS)


@fault("a Euclidean norm by hand, of a zero row", "backward", "sqrt")
def norm_by_hand() -> Step:
    x = torch.randn(3, 4)
    x[1] = 0
    weight = torch.randn(4, 4, requires_grad=True)

    def length(h: Tensor) -> Tensor:
        squares = (h * h).sum(-1)
        return squares.sqrt()  # FAULT

    def loss() -> Tensor:
        return length(x @ weight).mean()

    return trained(loss, [weight])


@fault("where() hides a root's value, not its slope", "backward", "sqrt")
def root_in_the_other_branch() -> Step:
    x = nn.Parameter(torch.tensor([4.0, 0.0, -1.0]))

    def loss() -> Tensor:
        positive = x.clamp(min=0)
        root = torch.sqrt(positive)  # FAULT
        y = torch.where(x > 0, root, torch.zeros_like(x))
        return y.sum()

    return trained(loss, [x])


@fault("where() hides a quotient's infinity, not its slope", "forward|backward", "div")
def quotient_in_the_other_branch() -> Step:
    x = nn.Parameter(torch.tensor([2.0, 0.0, 3.0]))

    def loss() -> Tensor:
        sinc = torch.sin(x) / x  # FAULT
        return torch.where(x == 0, torch.ones_like(x), sinc).sum()

    return trained(loss, [x])


@fault("where() hides an overflow, not its slope", "forward|backward", "exp")
def exponential_in_the_other_branch() -> Step:
    x = nn.Parameter(torch.tensor([1.0, -2.0, 120.0]))

    def elu(h: Tensor) -> Tensor:
        negative = torch.exp(h) - 1  # FAULT
        return torch.where(h > 0, h, negative)

    return trained(lambda: elu(x).sum(), [x])


@fault("min() of the clipped objective hides an infinite ratio, not its slope", "forward|backward", "exp")
def clipped_policy_ratio() -> Step:
    log_p = nn.Parameter(torch.tensor([0.1, 100.0, -0.2]))
    old, advantage = torch.tensor([0.0, -2.0, 0.0]), torch.tensor([1.0, 1.0, -1.0])

    def loss() -> Tensor:
        ratio = (log_p - old).exp()  # FAULT
        clipped = ratio.clamp(0.8, 1.2)
        return -torch.minimum(ratio * advantage, clipped * advantage).mean()

    return trained(loss, [log_p])


@fault("a softmax over nothing, made zero afterwards", "forward|backward", "softmax")
def cleaned_softmax() -> Step:
    weight = torch.randn(4, 4, requires_grad=True)
    x, bias = torch.randn(3, 4), torch.zeros(3, 4)
    bias[2], bias[0, 1] = float("-inf"), float("-inf")

    def loss() -> Tensor:
        scores = x @ weight + bias
        attention = scores.softmax(-1)  # FAULT
        attention = torch.nan_to_num(attention)
        return (attention @ torch.arange(4.0)).square().mean()

    return trained(loss, [weight])


@fault("a power below 1 at zero", "backward", "pow")
def slope_of_power() -> Step:
    x = nn.Parameter(torch.tensor([0.0, 1.0, 8.0]))

    def loss() -> Tensor:
        return (x ** (1 / 3)).sum()  # FAULT

    return trained(loss, [x])


@fault("the slope of acos at 1", "backward", "acos")
def slope_of_angle() -> Step:
    a = nn.Parameter(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    b = torch.tensor([[1.0, 0.0], [0.8, 0.6]])

    def loss() -> Tensor:
        cosine = (a * b).sum(1).clamp(-1, 1)
        angle = cosine.acos()  # FAULT
        return angle.sum()

    return trained(loss, [a])


@fault("the root of the variance of a constant", "backward", "sqrt")
def deviation_of_constant() -> Step:
    model = nn.Linear(3, 2)
    x = torch.ones(5, 3)

    def loss() -> Tensor:
        variance = model(x).var(0)
        return torch.sqrt(variance).sum()  # FAULT

    return trained(loss, model.parameters())


@fault("an entropy whose probability is zero", "backward", "entr")
def slope_of_entropy() -> Step:
    p = nn.Parameter(torch.tensor([0.5, 0.5, 0.0]))

    def loss() -> Tensor:
        entropy = torch.special.entr(p)  # FAULT
        return -entropy.sum()

    return trained(loss, [p])


@fault("a loss as the root of a squared error that is zero", "backward", "sqrt|pow")
def charbonnier_without_epsilon() -> Step:
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    x, y = torch.randn(4, 2), torch.tensor([[1.0], [0.0], [2.0], [0.5]])

    def charbonnier(error: Tensor) -> Tensor:
        return error.square().pow(0.5).mean()  # FAULT

    return trained(lambda: charbonnier(model(x) - y), model.parameters())


@fault("the magnitude of a spectrum with an empty band", "backward", "sqrt")
def magnitude_of_silence() -> Step:
    gain = nn.Parameter(torch.ones(16))
    signal = torch.zeros(2, 16)
    signal[0] = torch.randn(16)

    def loss() -> Tensor:
        spectrum = torch.fft.rfft(signal * gain)
        power = spectrum.real**2 + spectrum.imag**2
        magnitude = power.sqrt()  # FAULT
        return magnitude.mean()

    return trained(loss, [gain])


@fault("the gradient of a quotient overflows although the quotient does not", "backward", "div")
def slope_of_quotient() -> Step:
    x = nn.Parameter(torch.tensor([1e-25, 1.0]))

    def loss() -> Tensor:
        inverse = 1e-10 / x  # FAULT
        return inverse.sum()

    return trained(loss, [x])


@fault("backward of a product leaves float32", "backward", "mul")
def backward_overflow_in_a_chain() -> Step:
    a = nn.Parameter(torch.tensor([1e-30, 1e-28]))

    def loss() -> Tensor:
        small = a * 1e25  # FAULT
        large = small * 1e20
        return large.sum()

    return trained(loss, [a])


@fault("gradients given to backward are a quotient by zero", "forward", "div|recip")
def weights_given_to_backward() -> Step:
    model = nn.Linear(3, 2)
    x, count = torch.randn(4, 3), torch.tensor([[2.0], [0.0], [1.0], [4.0]])

    def step() -> Tensor:
        y = model(x)
        share = 1 / count  # FAULT
        y.backward(share.expand_as(y))
        return y.detach().sum()

    return step


@fault("a hook divides the gradient by its norm, which is zero", "backward", "div")
def hook_divides() -> Step:
    first, second = nn.Linear(3, 4), nn.Linear(4, 1)
    x = torch.randn(2, 3)
    nn.init.zeros_(second.weight)

    def unit(grad: Tensor) -> Tensor:
        size = grad.norm()
        return grad / size  # FAULT

    def loss() -> Tensor:
        h = first(x)
        h.register_hook(unit)
        return second(torch.tanh(h)).square().sum()

    return trained(loss, [*first.parameters(), *second.parameters()])


@fault("F.normalize of a zero sample, eps=0", "backward|forward", "div|norm")
def normalize_without_epsilon() -> Step:
    model = nn.Linear(3, 3, bias=False)
    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])

    def loss() -> Tensor:
        h = model(x)
        unit = F.normalize(h, dim=1, eps=0.0)  # FAULT
        return unit[:, 0].sum()

    return trained(loss, model.parameters())
