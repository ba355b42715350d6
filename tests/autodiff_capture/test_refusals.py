"""Bad input gets a typed error that names what was found and the remedy, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import hesse
from hesse.core.errors import (
    DataError,
    DetachedError,
    DeviceError,
    LeafError,
    MixedSamplesError,
    NonFiniteError,
    NonScalarError,
    StructureError,
    UnsupportedError,
)  # fmt: skip
from tests.parameters.fingerprint import changes, fingerprint
from tests.parameters.special import Free, L, P

X, Y = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
MSE = nn.MSELoss()
V = torch.ones(6, 3, dtype=torch.float64)


def _nan() -> Tensor:
    x = X.clone()
    x[4, 2] = torch.nan
    return x


def _checkpointed(s: Any, x: Tensor) -> Tensor:
    return checkpoint(s.b, torch.tanh(s.a(x)), use_reentrant=True)  # pyright: ignore[reportReturnType]


def _batch_norm(training: bool, stats: bool = True) -> nn.Module:
    return nn.Sequential(L(5, 4), nn.BatchNorm1d(4, track_running_stats=stats), L(4)).train(training)


def _two() -> nn.Module:
    return Free(lambda s, p, q: s.a(p) + q, a=L())


def _complex() -> nn.Module:
    weight = nn.Parameter(torch.ones(5, 3, dtype=torch.complex128))
    return Free(lambda s, x: (x.to(s.w.dtype) @ s.w).abs(), w=weight)


def _two_at_least(s: Any, x: Tensor) -> Tensor:
    if len(x) < 2:
        raise ValueError("two at least")
    return s.a(x)


def _dropped_rows() -> nn.Module:
    return Free(lambda s, x: s.a(x)[:4], a=L())


CASES: dict[str, tuple[Callable[[], nn.Module], Any, Any, type[Exception], str]] = {
    "train-mode batch norm": (lambda: _batch_norm(True), MSE, (X, V), MixedSamplesError, r"'1' \(BatchNorm1d\)"),
    "batch norm without statistics": (lambda: _batch_norm(False, False), MSE, (X, V), MixedSamplesError,
                                      r"'1' \(BatchNorm1d\)"),
    "max_norm": (lambda: nn.Embedding(3, 3, max_norm=1.0), MSE, (Y, V), UnsupportedError, "max_norm"),
    "reentrant checkpointing": (lambda: Free(_checkpointed, a=L(5, 4), b=L(4)), MSE, (X, V), UnsupportedError,
                                "use_reentrant=False"),
    "complex parameter": (_complex, MSE, (X, V), UnsupportedError, "complex parameter 'w'"),
    "NaN input": (L, MSE, (_nan(), V), NonFiniteError, "first in sample 4"),
    "NaN in a second input": (_two, MSE, ((X, V * torch.nan), V), NonFiniteError, "input '1'"),
    "empty batch": (L, MSE, (X[:0], V[:0]), DataError, "size 0"),
    "targets too short": (L, MSE, (X, V[:5]), DataError, "target has 5 rows where input has 6"),
    "inputs of two lengths": (_two, MSE, ((X, V[:2]), V), DataError, "input '1' has 2 rows where input '0' has 6"),
    "input without an axis": (_two, MSE, ((X, torch.tensor(1.0)), V), DataError, "has no axis"),
    "no pair": (L, MSE, (X, V, V), DataError, r"\(inputs, targets\)"),
    "no tensor": (L, MSE, ("x", "y"), DataError, "no tensor"),
    "other device": (L, MSE, (X.to("meta"), V), DeviceError, "meta"),
    "vector loss": (L, lambda o, t: (o - t).square().sum(1), (X, V), NonScalarError, r"shape \(6,\)"),
    "number for a loss": (L, lambda o, t: float((o - t).sum()), (X, V), StructureError, r"\.item\(\)"),
    "detached loss": (L, lambda o, t: (o.detach() - t).square().mean(), (X, V), DetachedError, "detach"),
    "detached output": (lambda: Free(lambda s, x: s.a(x).detach(), a=L()), MSE, (X, V), DetachedError, "detach"),
    "loss of all pairs": (L, lambda o, t: torch.cdist(o, t).mean(), (X, X[:, :3]), MixedSamplesError, "neither the sum"),
    "loss of a ranking": (L, lambda o, t: (o.softmax(0) * t).sum(), (X, X[:, :3]), MixedSamplesError, "neither the sum"),
    "broadcast target": (L, MSE, (X, V[:, 0]), DataError, "broadcasting"),
    "rows dropped": (_dropped_rows, lambda o, t: o.sum(), (X, V), StructureError, r"\(4, 3\) for 6 samples"),
    "output for the batch": (lambda: Free(lambda s, x: s.a(x).sum(), a=L()), MSE, (X, V), StructureError, "for 6 samples"),
    "object output": (lambda: Free(lambda s, x: {"logits": s.a(x)}, a=L()), MSE, (X, V), StructureError, "output="),
    "nothing trainable": (lambda: L().requires_grad_(False), MSE, (X, V), StructureError, "requires_grad"),
    "NaN parameter": (lambda: Free(lambda s, x: x @ s.w, w=nn.Parameter(torch.full((5, 3), torch.nan))), MSE, (X, V),
                      NonFiniteError, "'w'"),
    "an uninitialized module": (lambda: nn.LazyLinear(3), MSE, (X, V), LeafError, "not initialized"),
    "fails on one sample": (lambda: Free(_two_at_least, a=L()), MSE, (X, V), UnsupportedError,
                            "not on 1 of them: ValueError: two"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_by_name(name: str) -> None:
    factory, loss, batch, error, message = CASES[name]
    model = factory()
    if name not in ("complex parameter",):
        model = model.double()
    lazy = any(isinstance(p, nn.UninitializedParameter) for p in model.parameters())
    before = {} if lazy else fingerprint(model)
    with pytest.raises(error, match=message) as caught:
        hesse.parameter_jacobian(model, loss, batch)
    assert isinstance(caught.value, hesse.HesseError) and caught.value.remedy
    assert lazy or changes(before, fingerprint(model)) == []


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(StructureError, match=r"nn\.Module or a pair"):
        hesse.parameter_jacobian("model", MSE, (X, V))
    with pytest.raises(LeafError, match="'k'"):
        params = {"w": torch.ones(5, 3).double(), "k": torch.tensor(3)}
        hesse.parameter_jacobian((lambda p, x: x @ p["w"], params), MSE, (X, V))


def test_an_exception_of_the_model_is_the_users_own() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        hesse.parameter_jacobian(Free(forward, a=L()).double(), MSE, (X, V))


def test_running_statistics_do_not_move() -> None:
    model = nn.Sequential(nn.InstanceNorm1d(2, affine=True, track_running_stats=True), nn.Flatten(), L(10)).double().train()
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    before = fingerprint(model)
    hesse.parameter_jacobian(model, F.cross_entropy, (x, Y)).norms()
    hesse.loss_hessian(model, F.cross_entropy, (x, Y)).flat @ torch.ones(37, dtype=torch.float64)
    assert changes(before, fingerprint(model)) == []


def test_grad_mode_of_the_caller_does_not_matter() -> None:
    model = L().double()
    expected = hesse.parameter_jacobian(model, F.cross_entropy, (X, Y)).dense()
    with torch.no_grad():
        assert torch.equal(hesse.parameter_jacobian(model, F.cross_entropy, (X, Y)).dense(), expected)
    assert not expected.requires_grad


def test_a_compiled_model_is_run_eagerly() -> None:
    model = nn.Sequential(L(5, 4), nn.Tanh(), L(4)).double()
    expected = hesse.parameter_jacobian(model, F.cross_entropy, (X, Y)).dense()
    H = hesse.dense(hesse.loss_hessian(model, F.cross_entropy, (X, Y)))
    compiled: Any = torch.compile(model, backend="aot_eager")
    compiled(X)
    assert torch.equal(hesse.parameter_jacobian(compiled, F.cross_entropy, (X, Y)).dense(), expected)
    assert torch.equal(hesse.dense(hesse.loss_hessian(compiled, F.cross_entropy, (X, Y))), H)


def test_losses_with_trees_of_targets() -> None:
    model, weights = L().double(), torch.linspace(0.5, 2, 6, dtype=torch.float64)

    def weighted(output: Tensor, target: Any) -> Tensor:
        return (F.cross_entropy(output, target["label"], reduction="none") * target["weight"]).mean()

    J = hesse.parameter_jacobian(model, weighted, (X, {"label": Y, "weight": weights}))
    plain = hesse.parameter_jacobian(model, F.cross_entropy, (X, Y)).dense()
    torch.testing.assert_close(J.dense(), plain * weights.unsqueeze(1), rtol=1e-12, atol=1e-12)
    assert J.mass == 6 and not J.additive


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize(("reduce", "mass"), [(torch.mean, None), (torch.sum, 1.0)])
def test_terms_that_cancel_do_not_hide_the_reduction(reduce: Any, mass: float | None, count: int) -> None:
    """A policy gradient whose advantages add up to zero, and a perfect fit: sum and mean have the same value."""
    model = L().double()
    advantage = torch.tensor([1.0, -2.0, 1.0, 3.0, -1.0, -2.0], dtype=torch.float64)[:count]
    x = X[:count]

    def ratio(output: Tensor, target: Tensor) -> Tensor:
        return reduce((output[:, 0] - output[:, 0].detach()).exp() * target)

    J = hesse.parameter_jacobian(model, ratio, (x, advantage))
    assert J.mass == (mass or count) and J.additive == (mass is not None)
    perfect = hesse.parameter_jacobian(model, lambda o, t: reduce((o - t).square().sum(1)), (x, model(x).detach()))
    assert perfect.mass == (mass or count)


def test_a_loss_with_parameters_of_its_own_is_fine() -> None:
    model, scale = L().double(), P(3)
    J = hesse.parameter_jacobian(model, lambda o, t: ((o - t).double() ** 2 * scale.double()).sum(), (X, V))
    assert J.dense().shape == (6, 18) and not J.dense().requires_grad
