"""The comparison that every test of a layer rule makes: rows and quantities against a loop over samples in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import hesse
from tests.parameters import oracle

RULE = frozenset({"rule"})
BY_CHAIN = frozenset({"rule", "chained"})  # weights that are functions of parameters


def curved(output: Tensor, target: Tensor) -> Tensor:
    """A loss whose derivative differs from element to element: one random factor a sample."""
    return (output.flatten(1).sin().sum(1) * target).sum()


def compare(model: nn.Module, *inputs: Tensor, paths: frozenset[str] = RULE, tolerance: float = 1e-12) -> None:
    """Rows, norms, Gram matrix and both products of a model's losses equal a loop over samples, and took the given paths."""
    count = len(next(iter(inputs)))
    target = torch.randn(count, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    batch: Any = inputs if len(inputs) > 1 else inputs[0]
    J = hesse.parameter_jacobian(model, curved, (batch, target))
    assert {path for taken in J.paths.values() for path in taken.split("+")} <= paths, J.paths
    rows = oracle.loss_rows(model, curved, batch, target)
    assert float(rows.norm()) > 0
    sizes = [p.numel() for p in oracle.trainable(model)]
    for (name, found), expected in zip(J.as_dict().items(), rows.split(sizes, 1), strict=True):
        assert oracle.difference(found.reshape(count, -1), expected) < tolerance, name
    assert oracle.difference(J.norms(), rows.norm(dim=1)) < tolerance
    assert oracle.difference(J.gram(), rows @ rows.mT) < tolerance
    assert oracle.difference(J.in_space.ravel(J.sum_of_squares()), rows.square().sum(0)) < tolerance
    v, u = torch.linspace(-1, 2, rows.shape[1]).double(), torch.linspace(1, -2, count).double()
    assert oracle.difference(J.flat @ v, rows @ v) < tolerance
    assert oracle.difference(J.T.flat @ u, rows.mT @ u) < tolerance


def seeded(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weight(*shape: int, seed: int = 1) -> nn.Parameter:
    """A parameter in float64."""
    return nn.Parameter(seeded(*shape, seed=seed))


def tokens(*shape: int, below: int, seed: int = 2) -> Tensor:
    """Tokens, many of them repeated."""
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))
