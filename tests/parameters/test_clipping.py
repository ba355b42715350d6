"""`clipped_sum` and `variance` at their edges: rows of zeros, bounds, weights, one row, parameters that are not used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.core.errors import StructureError
from tests.parameters import oracle
from tests.parameters.special import Free, L, P


def _model() -> nn.Module:
    return Free(lambda s, x: s.b(torch.tanh(s.a(x))) * s.scale, a=L(5, 4), b=L(4), scale=P(), idle=L(2, 2)).double()


def _jacobian(model: nn.Module, x: Tensor, **options: Any) -> hesse.ParameterJacobian:
    return hesse.parameter_jacobian(model, nn.MSELoss(reduction="sum"), (x, torch.zeros(len(x), 3).double()), **options)


def _rows(model: nn.Module, x: Tensor) -> Tensor:
    return oracle.loss_rows(model, lambda out, y: ((out - y) ** 2).sum(), x, torch.zeros(len(x), 3).double())


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("create_graph", [False, True])
def test_rows_of_zeros_stay_zeros(per_layer: bool, create_graph: bool) -> None:
    model, x = _model(), torch.randn(4, 5, dtype=torch.float64)
    loss = nn.CrossEntropyLoss(ignore_index=7, reduction="sum")
    y = torch.tensor([7, 1, 7, 2])
    J = hesse.parameter_jacobian(model, loss, (x, y), create_graph=create_graph)
    assert J.norms()[[0, 2]].tolist() == [0, 0]
    clipped = J.in_space.ravel(J.clipped_sum(1e-2, per_layer=per_layer))
    few = hesse.parameter_jacobian(model, loss, (x[[1, 3]], y[[1, 3]]))
    assert oracle.difference(clipped.detach(), few.in_space.ravel(few.clipped_sum(1e-2, per_layer=per_layer))) < 1e-12
    everything = hesse.parameter_jacobian(model, loss, (x, torch.full((4,), 7)), create_graph=create_graph)
    assert not bool(everything.in_space.ravel(everything.clipped_sum(1.0, per_layer=per_layer)).any())
    if create_graph:
        grads = torch.autograd.grad(clipped.square().sum() + J.norms().sum(), list(model.parameters()), allow_unused=True)
        assert all(bool(g.isfinite().all()) for g in grads if g is not None)


def test_bounds_so_large_that_nothing_is_clipped() -> None:
    model, x = _model(), torch.randn(4, 5, dtype=torch.float64)
    J, rows = _jacobian(model, x), _rows(model, x)
    for bound in (1e9, float("inf"), 10**9):
        assert oracle.difference(J.in_space.ravel(J.clipped_sum(bound)), rows.sum(0)) < 1e-12


def test_no_row_of_the_sum_is_longer_than_the_bound() -> None:
    model, x = _model(), 100 * torch.randn(4, 5, dtype=torch.float64)
    for i in range(4):
        one = _jacobian(model, x[i : i + 1])
        assert float(one.in_space.ravel(one.clipped_sum(0.3)).norm()) <= 0.3 * (1 + 1e-12)
        each = one.clipped_sum(0.3, per_layer=True)
        norms = dict.fromkeys(one.norms("layer"), 0.0)
        for name, leaf in each.items():
            norms[name.rpartition(".")[0]] += float(leaf.square().sum())
        assert max(norms.values()) ** 0.5 <= 0.3 * (1 + 1e-12)


@pytest.mark.parametrize(
    "bound", [0, -1.0, float("nan"), {"": 1.0, "a": 1.0}, {"": 1.0, "a": 1.0, "b": 1.0, "idle": 0.0}, {"c": 1.0}, {}]
)
def test_wrong_bounds_of_layers(bound: Any) -> None:
    J = _jacobian(_model(), torch.randn(4, 5, dtype=torch.float64))
    with pytest.raises(StructureError, match="positive bound"):
        J.clipped_sum(bound, per_layer=True)


@pytest.mark.parametrize("bound", [0, -1.0, float("nan"), {"": 1.0, "a": 1.0, "b": 1.0, "idle": 1.0}, {}])
def test_wrong_bounds_of_rows(bound: Any) -> None:
    J = _jacobian(_model(), torch.randn(4, 5, dtype=torch.float64))
    with pytest.raises(StructureError, match="positive bound"):
        J.clipped_sum(bound)


def test_weights_of_another_shape() -> None:
    J = _jacobian(_model(), torch.randn(4, 5, dtype=torch.float64))
    for wrong in (torch.ones(3).double(), torch.ones(4, 1).double(), torch.tensor(1.0)):
        with pytest.raises(StructureError, match="shape of the rows"):
            J.clipped_sum(1.0, weights=wrong)


def test_rows_of_outputs_are_clipped_one_by_one() -> None:
    model, x = _model(), torch.randn(4, 5, dtype=torch.float64)
    J = hesse.parameter_jacobian(model, None, x)
    rows, weights = oracle.output_rows(model, x, 4), torch.randn(4, 3, dtype=torch.float64)
    bound = float(rows.norm(dim=2).median()) * 1.0001
    scale = (bound / rows.norm(dim=2)).clamp(max=1)
    assert bool((scale < 1).any()) and bool((scale == 1).any())
    found = J.in_space.ravel(J.clipped_sum(bound, weights=weights))
    assert oracle.difference(found, torch.einsum("nc,ncd->d", scale * weights, rows)) < 1e-12


def test_variance_of_one_row() -> None:
    model, x = _model(), torch.randn(1, 5, dtype=torch.float64)
    J = _jacobian(model, x)
    assert bool(J.in_space.ravel(J.variance()).isnan().all())
    assert float(J.in_space.ravel(J.variance(correction=0)).abs().max()) < 1e-20


def test_variance_of_equal_rows_far_from_zero() -> None:
    model = Free(lambda s, x: x * s.w, w=P(3)).double()
    x = 1e6 + torch.randn(50, 3, dtype=torch.float64)
    J = hesse.parameter_jacobian(model, lambda out, y: out.sum(), (x, x))
    assert torch.allclose(J.variance()["w"], x.var(0), rtol=1e-9)


def test_variance_of_parameters_that_some_outputs_or_all_do_not_use() -> None:
    model = Free(lambda s, x: torch.cat([s.a(x), s.b(x) * s.w], 1), a=L(5, 2), b=L(5, 1), w=P(), idle=P(3)).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    J = hesse.parameter_jacobian(model, None, x)
    rows = oracle.output_rows(model, x, 4).flatten(0, 1)
    for correction in (0, 1, 2):
        found = J.in_space.ravel(J.variance(correction=correction))
        assert oracle.difference(found, rows.var(0, correction=correction)) < 1e-12
    assert J.paths["idle"] == "unused" and not bool(J.variance()["idle"].any())
    idle = J.select(params=["idle"])
    assert not bool(idle.norms().any()) and idle.dense().shape == (4, 3, 3) and not bool(idle.gram().any())
