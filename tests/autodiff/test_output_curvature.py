"""The second derivative of a loss by the output: roots, random roots and blocks against dense Hessians; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesse
from hesse.autodiff.model import as_model
from hesse.autodiff.output_curvature import (
    CallableCurvature,
    RootCotangents,
    SampledCotangents,
    loss_curvature,
    refuse_linear,
    require_distribution,
)
from hesse.core.errors import MemoryBudgetError, MixedSamplesError, NonScalarError, SymmetryError, UnsupportedError
from hesse.rules.losses import GaussianNLL
from tests.curvature import references
from tests.parameters import oracle
from tests.parameters.special import L

N = 5


def _values(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _coupled(o: Tensor, t: Tensor) -> Tensor:
    return torch.logsumexp(o.flatten(1), 1).mean() + 0.3 * (o.flatten(1).sum(1) ** 2).mean()


def _flat_in_some_directions(o: Tensor, t: Tensor) -> Tensor:
    return (o[:, 0] + 2 * o[:, 1]).square().sum()


LOSSES: dict[str, tuple[Any, Tensor, Any]] = {
    "classes": (nn.CrossEntropyLoss(label_smoothing=0.1), _values(3), torch.tensor([0, 2, 1, 1, 0])),
    "sequences": (nn.CrossEntropyLoss(ignore_index=0), _values(3, 2), torch.tensor([[0, 2], [1, 1], [0, 0], [2, 1], [1, 0]])),
    "squares": (nn.MSELoss(reduction="sum"), _values(3), _values(3, seed=3)),
    "callable": (_coupled, _values(2, 3), _values(1)),
    "callable of low rank": (_flat_in_some_directions, _values(3), _values(1)),
    "callable of [n]": (lambda o, t: (o - t[:, 0]).cosh().mean(), _values(), _values(1)),
    "linear callable": (lambda o, t: o.sum(), _values(3), _values(1)),
}


def _curvature(name: str) -> Any:
    loss, output, target = LOSSES[name]
    return loss_curvature(loss, output, target, None, "hessian", "a test")


@pytest.mark.parametrize("name", LOSSES)
def test_forms(name: str) -> None:
    loss, output, target = LOSSES[name]
    expected = references.loss_hessian_by_output(loss, output, target)
    found = _curvature(name)
    form, factor, size = found.form, found.factor, output.numel()
    assert isinstance(form, CallableCurvature) == ("callable" in name)
    units = torch.eye(size, dtype=torch.float64).reshape(size, *output.shape)
    columns = torch.stack([form.mv(unit) for unit in units]).reshape(size, size) * factor
    assert oracle.difference(columns.mT, expected) < 1e-12
    assert oracle.difference(form.mv(units).reshape(size, size) * factor, expected) < 1e-12
    assert oracle.difference(form.diagonal().flatten() * factor, expected.diagonal()) < 1e-12
    assert form.is_psd
    roots = torch.stack([form.root(k) for k in range(form.count)])
    outer = torch.zeros(N, size // N, N, size // N, dtype=torch.float64)
    for root in roots:
        for i in range(N):
            outer[i, :, i] += torch.outer(root[i].flatten(), root[i].flatten())
    assert oracle.difference(outer.reshape(size, size) * factor, expected) < 1e-12
    assert oracle.difference(columns.mT, columns) < 1e-12


@pytest.mark.parametrize(("name", "rank"), [("callable", 6), ("callable of low rank", 1), ("callable of [n]", 1),
                                            ("linear callable", 1)])  # fmt: skip
def test_no_more_roots_than_the_rank(name: str, rank: int) -> None:
    assert _curvature(name).form.count == rank


@pytest.mark.parametrize("name", LOSSES)
def test_random_roots(name: str) -> None:
    loss, output, target = LOSSES[name]
    if name == "linear callable":
        return
    expected, found = references.loss_hessian_by_output(loss, output, target), _curvature(name)
    generator = torch.Generator().manual_seed(0)

    def uniform(stream: int, shape: Any) -> Tensor:
        return torch.rand(tuple(shape), generator=generator, dtype=torch.float64)

    cotangents = SampledCotangents(found.form, 400, uniform, found.factor**0.5)
    assert len(cotangents) == 400
    drawn = torch.stack([cotangents[k] for k in range(400)]).flatten(1) * 400**0.5
    probes = torch.randn(output.numel(), 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    probes[output[0].numel() :] = 0  # one sample: those of others are drawn independently
    forms = (drawn @ probes).square()
    truth, errors = ((expected @ probes) * probes).sum(0), forms.std(0) / 20
    assert bool(((forms.mean(0) - truth).abs() <= 5 * errors + 1e-12).all())


def test_sequences_of_cotangents() -> None:
    found = _curvature("squares")
    roots = RootCotangents(found.form, 0.5)
    assert len(roots) == 3 and len(list(roots)) == 3
    assert oracle.difference(roots[1], 0.5 * found.form.root(1)) < 1e-15
    for index in (3, -1):
        with pytest.raises(IndexError):
            roots[index]
    sampled = SampledCotangents(found.form, 2, lambda stream, shape: torch.full(tuple(shape), 0.1 + stream / 2).double())
    assert len(list(sampled)) == 2 and torch.equal(sampled[1], sampled[1])
    with pytest.raises(IndexError):
        sampled[2]


def test_nothing_counts() -> None:
    found = loss_curvature(nn.CrossEntropyLoss(ignore_index=1), _values(3), torch.ones(N).long(), None, "hessian", "a test")
    assert found.divisor == 0 and found.factor == 0


def test_a_callable_that_is_not_convex() -> None:
    found = loss_curvature(lambda o, t: (o[:, 0] * o[:, 1]).mean(), _values(3), _values(1), None, "hessian", "a test")
    expected = references.loss_hessian_by_output(lambda o, t: (o[:, 0] * o[:, 1]).mean(), _values(3), None)
    assert oracle.difference(found.form.diagonal().flatten(), expected.diagonal()) < 1e-15
    assert not found.form.is_psd
    for ask in (lambda: found.form.root(0), lambda: found.form.sample(lambda shape: torch.rand(tuple(shape)).double())):
        with pytest.raises(SymmetryError, match="5 of 5 samples: the loss is not convex in the output"):
            ask()


def test_a_callable_that_couples_samples() -> None:
    found = loss_curvature(lambda o, t: (o - o.mean(0)).square().sum(), _values(3), _values(1), None, "hessian", "a test")
    expected = references.loss_hessian_by_output(lambda o, t: (o - o.mean(0)).square().sum(), _values(3), None)
    v = _values(3, seed=5)
    assert oracle.difference(found.form.mv(v).flatten(), expected @ v.flatten()) < 1e-12
    for ask in (found.form.diagonal, lambda: found.form.root(0)):
        with pytest.raises(MixedSamplesError, match="couples samples"):
            ask()


def test_a_callable_of_a_wide_output() -> None:
    output = torch.randn(4, 3000)
    found = loss_curvature(lambda o, t: torch.logsumexp(o, 1).mean(), output, torch.zeros(4), None, "hessian", "a test")
    assert found.form.mv(output).shape == output.shape
    with hesse.memory("100MiB"), pytest.raises(MemoryBudgetError, match="CrossEntropyLoss"):
        found.form.diagonal()


def test_refusals() -> None:
    output, labels = _values(3), torch.tensor([0, 2, 1, 1, 0])

    def refused(error: type[Exception], match: str, loss: Any, target: Any, kind: Any = "hessian", model: Any = None) -> None:
        with pytest.raises(error, match=match):
            loss_curvature(loss, output, target, model, kind, "a test")

    refused(NonScalarError, "shape", nn.CrossEntropyLoss(reduction="none"), labels)
    refused(NonScalarError, "shape", lambda o, t: o, labels)
    refused(UnsupportedError, "no known distribution", nn.HuberLoss(), output, "information")
    refused(UnsupportedError, "no known distribution", lambda o, t: o.sum(), output, "information")
    model = L(4).double()
    refused(UnsupportedError, "parameter 'weight'", lambda o, t: o.sum() + model.weight.sum(), labels, model=as_model(model))


def test_what_is_a_distribution() -> None:
    for loss in (nn.CrossEntropyLoss(), F.cross_entropy, nn.MSELoss(), nn.L1Loss(), GaussianNLL(), nn.PoissonNLLLoss(),
                 nn.BCELoss(), nn.NLLLoss(), nn.KLDivLoss()):  # fmt: skip
        require_distribution(loss, "expected", "a test")
    require_distribution(lambda o, t: o.sum(), "observed", "a test")
    for kind in ("expected", "observed"):
        with pytest.raises(UnsupportedError, match="SmoothL1Loss"):
            require_distribution(nn.SmoothL1Loss(), kind, "a test")
    with pytest.raises(UnsupportedError, match="lambda"):
        require_distribution(lambda o, t: o.sum(), "sampled", "a test")
    for loss in (nn.NLLLoss(), F.l1_loss, nn.KLDivLoss(), nn.SmoothL1Loss(beta=0)):
        with pytest.raises(UnsupportedError, match="linear in the output"):
            refuse_linear(loss, "a test")
    refuse_linear(nn.CrossEntropyLoss(), "a test")
    refuse_linear(lambda o, t: o.sum(), "a test")
