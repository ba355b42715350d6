"""A wrong gradient, a loss that becomes NaN, and the tools that find both, on handwritten digits.

Run it with::

    python examples/debugging.py [FIGURE]

or look at its targets one by one::

    hesse check examples/debugging.py:wrong_layer
    hesse check examples/debugging.py:mended_layer
    hesse check examples/debugging.py:wrong_model
    hesse nan   examples/debugging.py:diverging_step
    hesse graph examples/debugging.py:digits_model
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

import hesse
from drawing import BLUE, INK, ORANGE, destination, panels, save, style
from training import batches, load_rows

RATE, BATCH, STEPS = 4.0, 64, 200


class _Swish(torch.autograd.Function):
    """``x sigmoid(beta x)`` with a gradient by hand, which forgets a factor in the derivative by beta."""

    @staticmethod
    def forward(ctx, x: Tensor, beta: Tensor) -> Tensor:
        ctx.save_for_backward(x, beta)
        return x * torch.sigmoid(beta * x)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor]:
        x, beta = ctx.saved_tensors
        s = torch.sigmoid(beta * x)
        return g * (s + beta * x * s * (1 - s)), (g * x * s * (1 - s)).sum(0)  # the last x stands squared in a right one


class _MendedSwish(_Swish):
    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor]:
        x, beta = ctx.saved_tensors
        s = torch.sigmoid(beta * x)
        return g * (s + beta * x * s * (1 - s)), (g * x * x * s * (1 - s)).sum(0)


class Swish(nn.Module):
    """A swish whose slope is learned for each feature."""

    def __init__(self, features: int, function: type[torch.autograd.Function] = _Swish) -> None:
        super().__init__()
        self.beta, self.function = nn.Parameter(torch.linspace(0.5, 1.5, features)), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x, self.beta)


def wrong_layer() -> tuple[nn.Module, Tensor]:
    """A layer, and an input for it."""
    torch.manual_seed(0)
    return Swish(6), torch.randn(4, 6)


def mended_layer() -> tuple[nn.Module, Tensor]:
    """The same with the right gradient."""
    torch.manual_seed(0)
    return Swish(6, _MendedSwish), torch.randn(4, 6)


def network(function: type[torch.autograd.Function] = _MendedSwish) -> nn.Sequential:
    """Two layers with the swish between them."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 24), Swish(24, function), nn.Linear(24, 10))


def log_likelihood(output: Tensor, target: Tensor) -> Tensor:
    """The mean log-likelihood, written as in the textbook: a probability that underflows makes it NaN."""
    probabilities = torch.softmax(output, 1)
    chosen = nn.functional.one_hot(target, 10) * torch.log(probabilities)
    return -chosen.sum(1).mean()


def digits_model() -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], tuple[Tensor, Tensor]]:
    """The network, its loss and a batch."""
    (x, y), _ = load_rows()
    return network(), log_likelihood, (x[:BATCH], y[:BATCH])


def wrong_model() -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], tuple[Tensor, Tensor]]:
    """The same with the wrong layer in the network."""
    _, loss, batch = digits_model()
    return network(_Swish), loss, batch


def diverging_step() -> Callable[[], Tensor]:
    """A training step to call again and again; the learning rate is far too large."""
    training, _ = load_rows()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    generator = torch.Generator().manual_seed(0)

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from batches(training, BATCH, generator)

    data = endless()

    def step() -> Tensor:
        x, y = next(data)
        optimizer.zero_grad()
        loss = log_likelihood(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def slopes(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the output's sum by beta, as autograd gives it, and by central differences in float64."""
    f, params = hesse.functional(layer.double())
    gradient = hesse.grad(lambda p: f(p, x.double()).sum())(params).grads["beta"]
    beta, h = params["beta"], 1e-5
    moved = [[f({"beta": beta + sign * h * unit}, x.double()).sum() for sign in (1, -1)] for unit in torch.eye(len(beta))]
    return gradient, torch.stack([(up - down) / (2 * h) for up, down in moved])


def losses() -> list[float]:
    """The loss of each step, until one is not finite, which comes last."""
    step, values = diverging_step(), []
    while len(values) < STEPS:
        values.append(step().item())
        if not math.isfinite(values[-1]):
            break
    return values


def draw_slopes(axes: Axes) -> None:
    """The gradient that the wrong layer gives beside the right one."""
    wrong, right = slopes(*wrong_layer())
    mended, _ = slopes(*mended_layer())
    axes.plot(right, "o", color=INK, label="differences")
    axes.plot(wrong, "x", color=ORANGE, label="wrong layer")
    axes.plot(mended, "+", color=BLUE, markersize=12, label="mended layer")
    style(axes, "A factor is missing", "feature", "gradient by beta")
    axes.legend(frameon=False)


def draw_losses(axes: Axes) -> None:
    """The loss until it is NaN."""
    values = losses()
    axes.plot(range(1, len(values)), values[:-1], "o-", color=BLUE)
    axes.axvline(len(values), color=ORANGE, linestyle="--")
    axes.text(len(values), max(values[:-1]), " NaN", color=ORANGE, va="top")
    style(axes, "The step that is no longer finite", "training step", "loss")


def main(path: Path) -> tuple[hesse.CheckReport, hesse.CheckReport, hesse.debug.NonfiniteReport]:
    """Check both layers, find the NaN, and draw both."""
    wrong, mended = (hesse.check_module(*make()) for make in (wrong_layer, mended_layer))
    print(wrong, mended, sep="\n\n", end="\n\n")
    step = diverging_step()
    report = hesse.find_nonfinite(step)
    while not report.found:
        report = hesse.find_nonfinite(step)
    print(report)
    figure, (left, right) = panels()
    draw_slopes(left)
    draw_losses(right)
    save(figure, path)
    return wrong, mended, report


if __name__ == "__main__":
    main(destination("debugging.png"))
