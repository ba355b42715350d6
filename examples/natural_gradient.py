"""Natural gradient on the digits model, exact and by KFAC, beside SGD and Adam.

Run it with::

    python examples/natural_gradient.py [FIGURE]

The natural gradient is the solution d of ``(F + c I) d = g`` with the Fisher matrix F of the batch and its gradient g (Amari
1998). `exact` solves it by conjugate gradients on products with F; `kronecker` inverts the approximation by Kronecker factors
(Martens, Grosse 2015). Both scale d to a bounded change of the model's predictions, ``dᵀ g <= 2 RADIUS`` to second order in
nats, so that no learning rate has to be found.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import hesse
from digits import LeNet, accuracy, load_images
from drawing import BLUE, GRAY, GREEN, ORANGE, destination, panels, save, style

BATCH = 256
LOSS = nn.CrossEntropyLoss()
Tree = dict[str, Tensor]
Direction = Callable[[nn.Module, tuple[Tensor, Tensor], Tree], Tree]


def exact(damping: float, radius: float) -> Direction:
    """The natural gradient itself, by conjugate gradients that KFAC preconditions."""
    generator = torch.Generator().manual_seed(2)

    def direction(model: nn.Module, batch: tuple[Tensor, Tensor], gradient: Tree) -> Tree:
        F = hesse.fisher(model, LOSS, batch, kind="expected")
        K = hesse.kfac(model, LOSS, batch, generator=generator)
        damped, rough_inverse = F + damping * hesse.identity(F.in_space), K.damped(damping).inverse()
        step = hesse.solve(damped, gradient, method="cg", preconditioner=rough_inverse, rtol=0.1)
        return within(radius, step, gradient)

    return direction


def kronecker(damping: float, radius: float) -> Direction:
    """The natural gradient with the Kronecker-factored Fisher matrix."""
    generator = torch.Generator().manual_seed(2)

    def direction(model: nn.Module, batch: tuple[Tensor, Tensor], gradient: Tree) -> Tree:
        K = hesse.kfac(model, LOSS, batch, generator=generator)
        return within(radius, K.damped(damping).inverse() @ gradient, gradient)

    return direction


def within(radius: float, step: Tree, gradient: Tree) -> Tree:
    """The step, shortened until ``stepᵀ F step / 2`` is at most `radius` nats."""
    decrease = sum((step[name] * gradient[name]).sum().item() for name in step)
    scale = min(1.0, (2 * radius / max(decrease, 1e-30)) ** 0.5)
    return {name: scale * part for name, part in step.items()}


@dataclass
class Run:
    """One way of training: its name, color, number of steps and learning rate, and what came out."""

    name: str
    color: str
    steps: int
    rate: float = 1.0
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD
    options: dict[str, float] = field(default_factory=dict)
    direction: Direction | None = None
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    test_accuracy: float = 0.0


def runs() -> list[Run]:
    """The four ways; the rates of SGD and Adam are the best of 0.03, 0.1, 0.3 and of 0.003, 0.01, 0.03."""
    return [
        Run("SGD with momentum", GRAY, 100, 0.1, options={"momentum": 0.9}),
        Run("Adam", GREEN, 100, 0.03, torch.optim.Adam),
        Run("natural gradient, KFAC", ORANGE, 40, direction=kronecker(0.003, 0.001)),
        Run("natural gradient, exact", BLUE, 15, direction=exact(0.01, 0.03)),
    ]


def train(run: Run, training: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> None:
    """Train from the same start on the same batches; the clock runs during steps only."""
    torch.manual_seed(0)
    model, generator, elapsed = LeNet(), torch.Generator().manual_seed(1), 0.0
    optimizer = run.optimizer(model.parameters(), lr=run.rate, **run.options)
    images, labels = training
    for _ in range(run.steps):
        chosen = torch.randint(len(labels), (BATCH,), generator=generator)
        start = time.perf_counter()
        optimizer.zero_grad()
        LOSS(model(images[chosen]), labels[chosen]).backward()
        if run.direction is not None:
            step = run.direction(model, (images[chosen], labels[chosen]), {n: p.grad for n, p in model.named_parameters()})
            for name, parameter in model.named_parameters():
                parameter.grad = step[name]
        optimizer.step()
        elapsed += time.perf_counter() - start
        with torch.no_grad():
            run.losses.append(LOSS(model(images), labels).item())
        run.seconds.append(elapsed)
    run.test_accuracy = accuracy(model, *test)


def draw(all_runs: list[Run], path: Path) -> None:
    """The loss on all training images, by step and by second."""
    figure, (by_step, by_second) = panels()
    for run in all_runs:
        by_step.plot(range(1, run.steps + 1), run.losses, color=run.color, label=run.name)
        by_second.plot(run.seconds, run.losses, color=run.color)
    for axes, title, unit in ((by_step, "per step", "step"), (by_second, "per second", "seconds")):
        style(axes, title, unit, "training loss")
        axes.set_yscale("log")
        axes.set_xscale("log")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    save(figure, path)


def main(path: Path) -> list[Run]:
    """Train in four ways, print a table, draw the figure."""
    training, test = load_images()
    all_runs = runs()
    print(f"{'':26}{'steps':>6}{'seconds':>9}{'loss':>8}{'test accuracy':>15}")
    for run in all_runs:
        train(run, training, test)
        print(f"{run.name:26}{run.steps:6}{run.seconds[-1]:9.1f}{run.losses[-1]:8.3f}{run.test_accuracy:15.1%}")
    draw(all_runs, path)
    return all_runs


if __name__ == "__main__":
    main(destination("natural_gradient.png"))
