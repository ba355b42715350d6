"""Shares of samples in diagonals against squared rows by plain loops; Hessian diagonals of ReLU networks; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.core.errors import DataError, MemoryBudgetError, UnsupportedError
from tests.curvature import references
from tests.parameters import oracle
from tests.parameters.special import L

WEIGHT = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64)
LOSS = nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=1)


def _make(activation: nn.Module) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Conv1d(2, 3, 2), activation, nn.MaxPool1d(2), nn.Flatten(), L(6, 3)).double()
        return model, torch.randn(7, 2, 5, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0, 2, 2])


def _summed(A: hesse.LinearOperator, shares: Any) -> Tensor:
    return A.in_space.ravel({name: share.sum(0) for name, share in shares.items()}) / A.mass


@pytest.mark.parametrize("kind", ["ggn", "sampled ggn", "expected", "sampled", "empirical", "hessian"])
def test_shares_add_up_to_the_diagonal(kind: str) -> None:
    model, x, y = _make(nn.ReLU())
    makers = {
        "ggn": lambda batch: hesse.ggn(model, LOSS, batch),
        "sampled ggn": lambda batch: hesse.ggn(model, LOSS, batch, kind="sampled", samples=3),
        "hessian": lambda batch: hesse.loss_hessian(model, LOSS, batch),
    }
    make = makers.get(kind, lambda batch: hesse.fisher(model, LOSS, batch, kind=kind))  # pyright: ignore[reportArgumentType]
    A = make((x, y))
    shares = hesse.diagonal_by_sample(A)
    assert {name: share.shape for name, share in shares.items()} == {n: (7, *p.shape) for n, p in model.named_parameters()}
    assert oracle.difference(_summed(A, shares), hesse.diagonal(A)) < 1e-12
    for n in (0, 4):  # a sample's share is its own diagonal, times its weight
        alone = make((x[n : n + 1], y[n : n + 1]))
        expected = hesse.diagonal(alone) * alone.mass
        assert oracle.difference(A.in_space.ravel({name: share[n] for name, share in shares.items()}), expected) < 1e-12
    assert not any(share[2:4].any() for share in shares.values())  # ignored


def test_hessian_diagonals() -> None:
    for activation in (nn.ReLU(), nn.Tanh()):
        model, x, y = _make(activation)
        expected = references.hessian(model, LOSS, x, y).diagonal()
        for data in ((x, y), [(x[:3], y[:3]), (x[3:], y[3:])]):
            H = hesse.loss_hessian(model, LOSS, data)
            assert oracle.difference(hesse.diagonal(H), expected) < 1e-10
            assert abs(float(hesse.trace(H)) - float(expected.sum())) < 1e-10
    assert hesse.trace(hesse.loss_hessian(*_make(nn.ReLU())[:1], LOSS, (x, y))).products == 0


def test_refused() -> None:
    model, x, y = _make(nn.Tanh())
    with pytest.raises(UnsupportedError, match="not piecewise linear"):
        hesse.diagonal_by_sample(hesse.loss_hessian(model, LOSS, (x, y)))
    with pytest.raises(UnsupportedError, match="Average"):
        hesse.diagonal_by_sample(hesse.ggn(model, LOSS, [(x, y)]))
    with pytest.raises(UnsupportedError, match="Identity"):
        hesse.diagonal_by_sample(hesse.identity(hesse.ggn(model, LOSS, (x, y)).in_space))
    with pytest.raises(MemoryBudgetError):
        hesse.diagonal_by_sample(hesse.ggn(model, LOSS, (x, y)), memory=100)
    G, H = hesse.ggn(model, LOSS, (x, y)), hesse.loss_hessian(model, LOSS, (x, y))
    with torch.no_grad():
        next(model.parameters()).add_(1)
    for ask in (lambda: hesse.diagonal_by_sample(G), lambda: hesse.diagonal(H), lambda: H @ H.in_space.normal()):
        with pytest.raises(DataError, match="in place"):
            ask()
