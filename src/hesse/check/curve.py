"""How differences close in on reverse mode: the picture behind a verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesse.check.float64 import Float64Loss, slope
from hesse.check.replica import Model, Replica
from hesse.core.random import make_generator
from hesse.core.tree import Tree


def difference_curve(
    model: Model, loss: Callable[[Any, Any], Tensor], batch: tuple[Tree, Tree], name: str, *,
    generator: torch.Generator | None = None,
) -> list[tuple[float, float]]:
    """How plain central differences close in on reverse mode as the step shrinks, along one direction of one parameter.

    For a right derivative the disagreement falls with the square of the step, until rounding, which grows with its
    inverse, takes over; for a wrong one it stays.

    Args:
        model, loss, batch: as for `check_parameters`.
        name: of the parameter.
        generator: of the direction.

    Returns:
        Pairs (step relative to the parameter, disagreement relative to the gradient's norm), from large to small steps.

    Cost: 1 gradient and 42 evaluations of the loss in float64.
    """
    exact = Float64Loss(Replica(model, loss, batch, dtype=torch.float64))
    direction = exact.direction(name, make_generator() if generator is None else generator)
    reverse, scale = slope(exact.gradient[name], direction), exact.scale(name, exact.gradient)
    phi = exact.along(name, direction)
    steps = [10 ** (-0.5 * power) for power in range(21)]
    return [(h, abs((phi(h) - phi(-h)) / (2 * h) - reverse) / scale) for h in steps]
