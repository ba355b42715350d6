"""Losses drawn from their signatures, each with its plain per-sample form and its normalizer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.parameters.drawing import describe, draw_options

KNOWN = (
    nn.CrossEntropyLoss, nn.NLLLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss,
    nn.PoissonNLLLoss, nn.KLDivLoss,
)  # fmt: skip


@dataclass
class DrawnLoss:
    """A loss and its targets.

    Attributes:
        loss: what is given to hesse.
        by_sample: the unreduced contribution of a batch of one, with plain torch.
        mass: what the batch loss divides the sum of contributions by.
        final: brings the network's output into the loss's domain.
        targets: for outputs of the given shape.
    """

    label: str
    loss: Callable[[Any, Any], Tensor]
    by_sample: Callable[[Any, Any], Tensor]
    mass: Callable[[Tensor, Tensor], float]
    final: Callable[[Tensor], Tensor]
    targets: Callable[[torch.Size], Tensor]


def _identity(x: Tensor) -> Tensor:
    return x


def _positive(x: Tensor) -> Tensor:
    return F.softplus(x) + 0.1


def draw_loss(rng: random.Random, generator: torch.Generator) -> DrawnLoss:
    """One of PyTorch's losses with any of its options, or a callable of a user."""
    return _custom(rng, generator) if rng.random() < 0.25 else _known(rng, generator)


def _known(rng: random.Random, generator: torch.Generator) -> DrawnLoss:
    cls: Any = rng.choice(KNOWN)
    classes = 3
    labels = cls in (nn.CrossEntropyLoss, nn.NLLLoss)
    soft = cls is nn.CrossEntropyLoss and rng.random() < 0.3
    weight = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.2
    given = {
        "weight": weight if rng.random() < 0.5 and labels else None,
        "pos_weight": torch.rand((), generator=generator, dtype=torch.float64) + 0.5 if rng.random() < 0.5 else None,
        "ignore_index": rng.choice([-100, -100, 1]) if not soft else -100,
        "label_smoothing": rng.choice([0.0, 0.2]),
        "delta": rng.choice([1.0, 0.3]), "beta": rng.choice([1.0, 0.3]), "full": rng.random() < 0.5,
        "log_input": rng.random() < 0.5, "log_target": rng.random() < 0.5,
    }  # fmt: skip
    if cls is nn.KLDivLoss:
        given["reduction"] = rng.choice(["mean", "sum", "none", "batchmean"])
    options = draw_options(cls, rng, given)
    summed = cls(**{**options, "reduction": "sum"})

    def mass(output: Tensor, target: Tensor) -> float:
        if options["reduction"] in ("sum", "none"):
            return 1.0
        return float(summed(output, target) / cls(**options)(output, target))

    def targets(shape: torch.Size) -> Tensor:
        if labels and not soft:
            return torch.randint(0, classes, (shape[0], *shape[2:]), generator=generator)
        values = torch.rand(shape, generator=generator, dtype=torch.float64) * 0.8 + 0.1
        if soft or cls is nn.KLDivLoss:
            values = values / values.sum(1, keepdim=True)
        return values.log() if options.get("log_target") else values

    finals = {nn.NLLLoss: lambda x: F.log_softmax(x, 1), nn.KLDivLoss: lambda x: F.log_softmax(x, 1), nn.BCELoss: torch.sigmoid}
    final = _positive if options.get("log_input") is False else finals.get(cls, _identity)
    return DrawnLoss(describe(cls.__name__, options), cls(**options), summed, mass, final, targets)


def _custom(rng: random.Random, generator: torch.Generator) -> DrawnLoss:
    name, function = rng.choice(sorted(_CUSTOM.items()))
    average = name.endswith("mean")

    def real(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return DrawnLoss(name, function, function, lambda out, _: float(len(out)) if average else 1.0, _identity, real)


def _gaussian(output: Tensor, target: Tensor) -> Tensor:
    return F.gaussian_nll_loss(output, target, torch.full_like(output, 0.7), full=True)


def _cosine(output: Tensor, target: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(output.flatten(1), target.flatten(1), dim=1)).mean()


_CUSTOM = {
    "gaussian nll, mean": _gaussian,
    "cosine, mean": _cosine,
    "squares, sum": lambda output, target: ((output - target) ** 2).sum(),
    "log-cosh by sample, mean": lambda output, target: (output - target).cosh().log().flatten(1).sum(1).mean(),
    "soft margin, mean": lambda output, target: F.soft_margin_loss(output, target.sign()),
}
