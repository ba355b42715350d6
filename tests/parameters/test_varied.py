"""Every quantity of the parameter Jacobian on every model, kept and streamed, against rows from loops over samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from tests.parameters import oracle
from tests.parameters.varied import EVERY, VARIED, N, by_parameter, make, targets

TOLERANCE = 1e-10
pytestmark = pytest.mark.filterwarnings("ignore")
SUM = nn.MSELoss(reduction="sum")


def _squares(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).sum()


def _case(name: str, records: Any) -> tuple[hesse.ParameterJacobian, Tensor, nn.Module, Any]:
    model, inputs = make(name)
    y = targets(model, inputs)
    rows = oracle.loss_rows(model, _squares, inputs, y)
    return hesse.parameter_jacobian(model, SUM, (inputs, y), records=records), rows, model, inputs


def _require(found: Tensor, expected: Tensor) -> None:
    assert oracle.difference(found, expected) < TOLERANCE


@pytest.mark.parametrize("records", ["kept", "streamed"])
@pytest.mark.parametrize("name", EVERY)
def test_quantities(name: str, records: Any) -> None:
    J, rows, model, _ = _case(name, records)
    flat = J.in_space.ravel
    u, v = torch.randn(N, dtype=torch.float64), torch.randn(rows.shape[1], dtype=torch.float64)
    _require(J.dense(), rows)
    _require(J.norms(), rows.norm(dim=1))
    _require(J.gram(), rows @ rows.mT)
    _require(flat(J.sum_of_squares()), rows.square().sum(0))
    _require(flat(J.mean()), rows.mean(0))
    _require(flat(J.weighted_sum(u)), u @ rows)
    _require(J.flat @ v, rows @ v)
    for correction in (0, 1, 3):
        _require(flat(J.variance(correction=correction)), rows.var(0, correction=correction))
    parts = by_parameter(model, rows)
    found = J.norms("parameter")
    assert list(found) == list(parts)
    for key, part in parts.items():
        _require(found[key], part.norm(dim=1))


@pytest.mark.parametrize("records", ["kept", "streamed"])
@pytest.mark.parametrize("name", EVERY)
def test_clipped_sums(name: str, records: Any) -> None:
    J, rows, model, _ = _case(name, records)
    norms = rows.norm(dim=1)
    bound, weights = float(norms.median()) * 1.01, torch.linspace(-1, 2, N, dtype=torch.float64)
    scale = torch.tensor([min(1.0, bound / norm) if norm > 0 else 1.0 for norm in norms.tolist()], dtype=torch.float64)
    _require(J.in_space.ravel(J.clipped_sum(bound)), scale @ rows)
    _require(J.in_space.ravel(J.clipped_sum(bound, weights=weights)), (scale * weights) @ rows)
    by_layer: dict[str, list[str]] = {}
    for key in by_parameter(model, rows):
        by_layer.setdefault(key.rpartition(".")[0], []).append(key)
    assert list(J.norms("layer")) == list(by_layer)
    bounds = {layer: bound / (2 + i) for i, layer in enumerate(by_layer)}
    expected = {}
    for layer, keys in by_layer.items():
        together = torch.cat([by_parameter(model, rows)[key] for key in keys], 1).norm(dim=1)
        _require(J.norms("layer")[layer], together)
        scales = [min(1.0, bounds[layer] / norm) if norm > 0 else 1.0 for norm in together.tolist()]
        for key in keys:
            expected[key] = torch.tensor(scales, dtype=torch.float64) @ by_parameter(model, rows)[key]
    found = J.clipped_sum(bounds, per_layer=True)
    _require(J.in_space.ravel(found), torch.cat([expected[key] for key in by_parameter(model, rows)]))


@pytest.mark.parametrize("records", ["kept", "streamed"])
@pytest.mark.parametrize("name", EVERY)
def test_selected_samples_and_gram_with_another_batch(name: str, records: Any) -> None:
    J, rows, model, _ = _case(name, records)
    S, few = J.select([4, 1, 1, -1]), rows[[4, 1, 1, -1]]
    flat = S.in_space.ravel
    _require(S.dense(), few)
    _require(S.norms(), few.norm(dim=1))
    _require(S.gram(), few @ few.mT)
    _require(S.gram(J), few @ rows.mT)
    _require(flat(S.sum_of_squares()), few.square().sum(0))
    _require(flat(S.variance()), few.var(0))
    _require(flat(S.weighted_sum(torch.arange(4.0).double())), torch.arange(4.0).double() @ few)
    _, inputs = make(name, 4, seed=7)
    y = targets(model, inputs)
    others = oracle.loss_rows(model, _squares, inputs, y)
    K = hesse.parameter_jacobian(model, SUM, (inputs, y))
    _require(J.gram(K), rows @ others.mT)
    _require(K.gram(J), others @ rows.mT)


@pytest.mark.parametrize("records", ["kept", "streamed"])
@pytest.mark.parametrize("name", VARIED)
def test_output_rows(name: str, records: Any) -> None:
    model, inputs = make(name, 3)
    J = hesse.parameter_jacobian(model, None, (inputs, None), records=records)
    rows = oracle.output_rows(model, inputs, 3)
    shape = targets(model, inputs).shape
    _require(J.dense(), rows.reshape(*shape, -1))
    _require(J.norms(), rows.norm(dim=2).reshape(shape))
    _require(J.gram(), torch.einsum("ncd,mkd->ncmk", rows, rows).reshape(*shape, *shape))
    _require(J.in_space.ravel(J.sum_of_squares()), rows.square().sum((0, 1)))
    _require(J.in_space.ravel(J.variance()), rows.flatten(0, 1).var(0))
    picks = torch.tensor([[0, 2], [1, -1], [2, 0]])
    P = hesse.parameter_jacobian(model, None, (inputs, None), outputs=picks, records=records)
    chosen = rows[torch.arange(3).unsqueeze(1), picks]
    _require(P.dense(), chosen)
    _require(P.gram(J.select([1])).flatten(3), torch.einsum("nkd,mcd->nkmc", chosen, rows[1:2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", VARIED)
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    """Rows of the rounded model on rounded inputs, at the precision of the dtype (LSTMs run as one fused op in float32)."""
    model, inputs = make(name)

    def rounded(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.to(dtype) if x.is_floating_point() else x
        return {k: rounded(p) for k, p in x.items()} if isinstance(x, dict) else tuple(map(rounded, x))

    def double(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.double() if x.is_floating_point() else x
        return {k: double(p) for k, p in x.items()} if isinstance(x, dict) else tuple(map(double, x))

    model, inputs = model.to(dtype), rounded(inputs)
    y = targets(model, inputs).to(dtype)
    J = hesse.parameter_jacobian(model, SUM, (inputs, y))
    found = {
        "rows": J.dense(), "norms": J.norms(), "gram": J.gram(), "squares": J.in_space.ravel(J.sum_of_squares()),
        "clipped": J.in_space.ravel(J.clipped_sum(0.5)), "variance": J.in_space.ravel(J.variance()),
    }  # fmt: skip
    rows = oracle.loss_rows(model.double(), _squares, double(inputs), y.double())
    norms = rows.norm(dim=1)
    expected = {
        "rows": rows, "norms": norms, "gram": rows @ rows.mT, "squares": rows.square().sum(0),
        "clipped": (0.5 / norms).clamp(max=1) @ rows, "variance": rows.var(0),
    }  # fmt: skip
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    for key, value in expected.items():
        assert found[key].dtype == dtype
        assert float((found[key].double() - value).norm()) < tolerance * float(value.norm()), key
