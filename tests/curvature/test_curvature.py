"""Curvature operators against dense references, over one batch and over uneven splits of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hesse
from hesse.core.errors import (
    DataError,
    DetachedError,
    MixedSamplesError,
    NondeterministicError,
    NonScalarError,
    OneShotDataError,
)
from hesse.testing import assert_operator_laws

from . import reference

TIGHT = 1e-10
SPLITS = ((0, 1), (1, 4), (4, 6), (6, 12), (12, 13))


class Small(nn.Module):
    """A convolution, a frozen, an unused and a tied parameter; outputs ``[n, 3]``."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(2, 3, 2)
        self.first = nn.Linear(3, 3, bias=False)
        self.again = nn.Linear(3, 3)
        self.again.weight = self.first.weight
        self.unused = nn.Parameter(torch.randn(2))
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.convolution(x)).mean(2)
        return self.again(torch.tanh(self.first(hidden))) + self.frozen


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.mT).mean(1))


@pytest.fixture(params=[Small, Attention])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = request.param().double()
        channels = 2 if request.param is Small else 4
        x, y = torch.randn(13, channels, 5, dtype=torch.float64), torch.randint(0, 3, (13,))
    y[0] = y[7] = -100
    return model, x, y


def losses() -> list[tuple[str, Callable[[Any, Any], Tensor], Callable[[Any, Any], Tensor]]]:
    """Label, loss of a batch, and the unreduced loss of one sample."""
    weight = torch.tensor([0.2, 1.7, 0.6], dtype=torch.float64)
    mean, total = nn.CrossEntropyLoss(weight, label_smoothing=0.1), nn.CrossEntropyLoss(weight, reduction="sum")
    smooth = nn.CrossEntropyLoss(weight, label_smoothing=0.1, reduction="sum")
    return [("mean", mean, smooth), ("sum", total, total)]


@pytest.mark.parametrize(("label", "loss", "of_one"), losses())
def test_one_batch_equals_dense_references(case: Any, label: str, loss: Any, of_one: Any) -> None:
    model, x, y = case
    assert reference.difference(hesse.dense(hesse.loss_hessian(model, loss, (x, y))), reference.hessian(model, loss, x, y)) < TIGHT
    assert reference.difference(hesse.dense(hesse.ggn(model, loss, (x, y))), reference.ggn(model, loss, x, y)) < TIGHT
    F = hesse.fisher(model, loss, (x, y), kind="empirical")
    mass = 1.0 if label == "sum" else float(loss.weight[y[y >= 0]].sum())
    assert F.mass == pytest.approx(mass, rel=1e-12)
    expected = reference.outer_products(model, of_one, x, y) / mass
    assert reference.difference(hesse.dense(F), expected) < TIGHT
    assert reference.difference(hesse.diagonal(F), expected.diagonal()) < TIGHT


@pytest.mark.parametrize(("label", "loss", "of_one"), losses())
def test_uneven_splits_equal_the_full_batch(case: Any, label: str, loss: Any, of_one: Any) -> None:
    """Class weights, label smoothing and a batch in which every target is ignored included."""
    model, x, y = case
    batches = [(x[a:b], y[a:b]) for a, b in SPLITS]
    assert reference.difference(hesse.dense(hesse.loss_hessian(model, loss, batches)), reference.hessian(model, loss, x, y)) < TIGHT
    assert reference.difference(hesse.dense(hesse.ggn(model, loss, batches)), reference.ggn(model, loss, x, y)) < TIGHT
    F = hesse.fisher(model, loss, batches, kind="empirical")
    expected = reference.outer_products(model, of_one, x, y) / F.mass
    assert reference.difference(hesse.dense(F), expected) < TIGHT
    assert reference.difference(hesse.diagonal(F), expected.diagonal()) < TIGHT


@pytest.mark.parametrize("reduce", [torch.mean, torch.sum])
def test_splits_of_a_loss_without_a_rule(case: Any, reduce: Any) -> None:
    model, x, _ = case
    y = torch.linspace(-1, 1, 13, dtype=torch.float64)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return reduce((output.sum(1) - target).abs() ** 3)

    batches = [(x[a:b], y[a:b]) for a, b in SPLITS]
    expected = reference.hessian(model, loss, x, y)
    assert reference.difference(hesse.dense(hesse.loss_hessian(model, loss, batches)), expected) < TIGHT


def test_a_shuffling_loader_gives_the_same_operator(case: Any) -> None:
    model, x, y = case
    loss = nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0))
    expected = reference.hessian(model, loss, x, y)
    assert reference.difference(hesse.dense(hesse.loss_hessian(model, loss, loader)), expected) < TIGHT


def test_predicted_labels(case: Any) -> None:
    model, x, y = case
    loss = nn.CrossEntropyLoss(reduction="sum")
    with torch.no_grad():
        predicted = model(x).argmax(1)
    F = hesse.fisher(model, loss, (x, y), kind="empirical", labels="predicted")
    assert reference.difference(hesse.dense(F), reference.outer_products(model, loss, x, predicted)) < TIGHT


def test_laws(case: Any) -> None:
    model, x, y = case
    loss = nn.CrossEntropyLoss()
    for A in (
        hesse.loss_hessian(model, loss, (x, y)),
        hesse.ggn(model, loss, (x, y)),
        hesse.fisher(model, loss, (x, y), kind="empirical"),
        hesse.ggn(model, loss, [(x[:3], y[:3]), (x[3:], y[3:])]),
    ):
        assert_operator_laws(A)


def test_params_selects_a_block(case: Any) -> None:
    model, x, y = case
    loss = nn.CrossEntropyLoss()
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    name, chosen = trainable[2]
    start = sum(p.numel() for _, p in trainable[:2])
    own = slice(start, start + chosen.numel())
    block = hesse.dense(hesse.loss_hessian(model, loss, (x, y), params=[name]))
    assert reference.difference(block, reference.hessian(model, loss, x, y)[own, own]) < TIGHT


def test_nothing_of_the_users_changes(case: Any) -> None:
    model, x, y = case
    loss = nn.CrossEntropyLoss()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random, mode = torch.get_rng_state(), model.training
    for A in (
        hesse.loss_hessian(model, loss, (x, y)), hesse.ggn(model, loss, [(x, y)]),
        hesse.fisher(model, loss, (x, y), kind="empirical"),
    ):  # fmt: skip
        hesse.trace(A @ A, method="exact")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters() if p.grad is not None)
    assert torch.equal(torch.get_rng_state(), random) and model.training == mode
    assert not any(part._forward_hooks or part._backward_hooks for part in model.modules())


def test_refusals() -> None:
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
    plain, loss = nn.Linear(4, 3), nn.CrossEntropyLoss()
    dropout = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    normalized = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    mean = normalized[1].running_mean.clone()
    for make in (hesse.loss_hessian, hesse.ggn):
        with pytest.raises(OneShotDataError, match=r"list\(data\)"):
            make(plain, loss, (batch for batch in [(x, y)]))
        with pytest.raises(NondeterministicError, match="'1'"):
            make(dropout, loss, (x, y))
        with pytest.raises(MixedSamplesError, match="'1'"):
            make(normalized, loss, (x, y))
        with pytest.raises(NonScalarError):
            make(plain, nn.CrossEntropyLoss(reduction="none"), (x, y))
        with pytest.raises(DataError, match="size 0"):
            make(plain, loss, (x[:0], y[:0]))
        with pytest.raises(DataError, match="no batch"):
            make(plain, loss, [])
        with pytest.raises(DetachedError, match="detach"):
            make(plain, lambda o, t: loss(o.detach(), t), (x, y))
    assert torch.equal(normalized[1].running_mean, mean)
    assert "PSD" not in {tag.name for tag in hesse.loss_hessian(plain, loss, (x, y)).tags}
