"""Streamed records: a layer's record is freed as the backward pass leaves the layer, and every quantity may be asked again."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import hesse
from hesse.autodiff import capture
from hesse.core.errors import DataError
from tests.parameters import oracle
from tests.parameters.special import Free, L
from tests.parameters.varied import make, targets

SUM = nn.MSELoss(reduction="sum")
LAYERS = 12
QUANTITIES: dict[str, Callable[[hesse.ParameterJacobian], Any]] = {
    "norms": lambda J: J.norms(),
    "norms by layer": lambda J: J.norms("layer"),
    "squares": lambda J: J.sum_of_squares(),
    "mean": lambda J: J.mean(),
    "variance": lambda J: J.variance(),
    "clipped": lambda J: J.clipped_sum(1.0),
    "clipped by layer": lambda J: J.clipped_sum(1.0, per_layer=True),
    "gram": lambda J: J.gram(),
    "moments": lambda J: J.moments(),
    "rows": lambda J: J.dense(),
    "rows of some": lambda J: J.select([3, 1]).dense(),
    "product": lambda J: J.flat @ torch.ones(J.in_space.dim, dtype=torch.float64),
}


class Watch:
    """How many cotangents that reached a layer have their memory still, at once."""

    def __init__(self) -> None:
        self.seen: list[StorageWeakRef] = []
        self.most = 0

    def __call__(self, cotangents: Any) -> None:
        self.seen += [StorageWeakRef(g.untyped_storage()) for g in cotangents if g is not None]
        self.most = max(self.most, self.alive())

    def alive(self) -> int:
        """Those that are alive now."""
        return sum(not ref.expired() for ref in self.seen)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    seen, original = Watch(), capture.form_of

    def form_of(walk: Any, meeting: Any, cotangents: Any, *rest: Any) -> Any:
        seen(cotangents)
        return original(walk, meeting, cotangents, *rest)

    monkeypatch.setattr(capture, "form_of", form_of)
    yield seen


def _deep(positions: int) -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(*[nn.Sequential(L(9, 9), nn.Tanh()) for _ in range(LAYERS)], nn.Flatten(1)).double()
    x = torch.randn(5, *([positions] if positions > 1 else []), 9, dtype=torch.float64)
    return model, x, torch.randn(5, 9 * positions, dtype=torch.float64)


@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("name", QUANTITIES)
def test_cotangents_are_freed_on_the_way(name: str, positions: int, watch: Watch) -> None:
    model, x, y = _deep(positions)
    J = hesse.parameter_jacobian(model, SUM, (x, y), records="streamed")
    gc.collect()
    assert watch.alive() == 0  # nothing of the check of the new graph is left
    watch.most = 0
    QUANTITIES[name](J)
    gc.collect()
    assert watch.alive() == 0 and watch.most <= 4  # a layer and the one before it, each for weight and bias
    kept = hesse.parameter_jacobian(model, SUM, (x, y))
    assert watch.alive() >= LAYERS - 1 and kept.count == 5  # the difference that it makes


def test_every_quantity_again_and_again() -> None:
    for name in ("self-attention", "overlapping slices", "low rank", "LSTM", "a table in three roles", "boolean routing"):
        model, x = make(name)
        y = targets(model, x)
        J = hesse.parameter_jacobian(model, SUM, (x, y), records="streamed")
        K = hesse.parameter_jacobian(model, SUM, (x, y))
        for _ in range(2):
            for quantity in ("norms", "sum_of_squares", "variance", "gram", "dense"):
                found, expected = getattr(J, quantity)(), getattr(K, quantity)()
                if isinstance(found, dict):
                    found, expected = J.in_space.ravel(found), J.in_space.ravel(expected)
                assert oracle.difference(found, expected) < 1e-12
        assert J.paths == K.paths


def test_masks_of_dropout_are_the_same_in_all_quantities() -> None:
    model = nn.Sequential(L(5, 40), nn.Dropout(0.5), nn.Tanh(), L(40)).double().train()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    J = hesse.parameter_jacobian(model, SUM, (x, y), records="streamed")
    rows = J.dense()
    assert oracle.difference(J.dense(), rows) == 0
    assert oracle.difference(J.norms(), rows.norm(dim=1)) < 1e-12
    assert oracle.difference(J.gram(), rows @ rows.mT) < 1e-12


def test_hooks_do_not_stay() -> None:
    """A quantity that fails half-way leaves nothing behind that would change the next one."""
    model, x, y = _deep(1)
    J = hesse.parameter_jacobian(model, SUM, (x, y), records="streamed")
    expected = J.norms()

    def fail(root: int, name: str, use: Any) -> None:
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            J.source.visit(fail)
    assert torch.equal(J.norms(), expected)


def test_parameters_changed_since() -> None:
    model, x, y = _deep(1)
    J = hesse.parameter_jacobian(model, SUM, (x, y), records="streamed")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    for quantity in ("norms", "gram", "dense"):
        with pytest.raises(DataError, match="changed in place"):
            getattr(J, quantity)()


def test_batch_changed_since() -> None:
    model, x, y = _deep(1)
    J = hesse.parameter_jacobian(model, SUM, (x, y), records="streamed")
    x.add_(1)
    with pytest.raises(DataError, match="changed in place"):
        J.norms()


def test_a_parameter_without_a_cotangent() -> None:
    """A use that no cotangent reaches for one output, but does for another."""
    model = Free(lambda s, x: torch.stack([s.a(x)[:, 0], s.b(s.a(x))[:, 1]], 1), a=L(5, 4), b=L(4), idle=L(2)).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    J = hesse.parameter_jacobian(model, None, x, records="streamed")
    rows = oracle.output_rows(model, x, 6)
    assert oracle.difference(J.dense(), rows) < 1e-12
    assert oracle.difference(J.norms(), rows.norm(dim=2)) < 1e-12
    assert oracle.difference(J.in_space.ravel(J.variance()), rows.flatten(0, 1).var(0)) < 1e-12
    assert oracle.difference(J.gram(), torch.einsum("ncd,mkd->ncmk", rows, rows)) < 1e-12
