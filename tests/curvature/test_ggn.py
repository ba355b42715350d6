"""The Gauss-Newton matrix, its rows, diagonal and trace over the zoo of architectures, for many losses, in parts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesse
from hesse.check import assert_operator
from hesse.core.errors import (
    DataError,
    NonScalarError,
    StructureError,
    UnsupportedError,
)
from hesse.curvature.gauss_newton import GaussNewton
from tests.curvature import references, zoo
from tests.parameters import oracle
from tests.parameters.fingerprint import changes, fingerprint

WEIGHT = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64)
OPTIONS: dict[str, Any] = {"weight": WEIGHT, "ignore_index": 1, "label_smoothing": 0.1}
LOSS = nn.CrossEntropyLoss(**OPTIONS)
SUM = nn.CrossEntropyLoss(**OPTIONS, reduction="sum")


def _pairwise(output: Tensor, target: Tensor) -> Tensor:
    """A loss hesse has no rule for, whose Hessian couples the classes."""
    return (torch.logsumexp(output.flatten(1), 1) + 0.1 * output.flatten(1).sum(1).square()).mean()


def _rows_of_positions(output: Tensor, target: Tensor) -> Tensor:
    """As language models are trained: all positions of all samples in one axis."""
    return F.cross_entropy(output.transpose(1, 2).flatten(0, 1), target.flatten(), reduction="sum")


@functools.cache
def _references(name: str) -> tuple[Tensor, Tensor]:
    """Hessian and Gauss-Newton matrix of an entry."""
    case = zoo.make(name)
    return references.hessian(case.plain, LOSS, *case.batch), references.ggn(case.plain, LOSS, *case.batch)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_zoo(name: str) -> None:
    case = zoo.make(name)
    before = fingerprint(case.model)
    hessian, expected = _references(name)
    G = hesse.ggn(case.model, LOSS, case.batch, **case.options)
    assert isinstance(G, GaussNewton)
    found = hesse.dense(G)
    assert oracle.difference(found, expected) < 1e-10
    assert float((found - found.mT).norm()) <= 1e-14 * float(found.norm())
    assert oracle.difference(hesse.diagonal(G), expected.diagonal()) < 1e-10
    assert abs(float(hesse.trace(G)) - float(expected.trace())) < 1e-10 * float(expected.trace())
    rows = G.rows()
    R = rows.dense().flatten(0, 1)
    assert len(R) <= zoo.N * zoo.C * case.labels[0].numel()
    assert oracle.difference(R.mT @ R / rows.mass, expected) < 1e-10
    if case.twice:
        found = hesse.dense(hesse.loss_hessian(case.model, LOSS, case.batch, **case.options))
        assert oracle.difference(found, hessian) < 1e-10
        assert float((found - found.mT).norm()) <= 1e-13 * float(found.norm())
    assert changes(before, fingerprint(case.model)) == []


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_data_set_in_uneven_parts(name: str) -> None:
    case = zoo.make(name)
    hessian, expected = _references(name)
    G = hesse.ggn(case.model, LOSS, case.split(), **case.options)
    if case.twice:
        assert oracle.difference(hesse.dense(G), expected) < 1e-10
    assert oracle.difference(hesse.diagonal(G), expected.diagonal()) < 1e-10
    if case.twice:
        H = hesse.loss_hessian(case.model, LOSS, case.split(), **case.options)
        assert oracle.difference(hesse.dense(H), hessian) < 1e-10


def _draw(case: zoo.Case, data: Any, seed: int = 5) -> Tensor:
    G = hesse.ggn(
        case.model, LOSS, data, kind="sampled", samples=2, generator=torch.Generator().manual_seed(seed), **case.options
    )
    return hesse.dense(G)


@pytest.mark.parametrize("name", ["mlp", "dict inputs"])
def test_a_sampled_matrix_does_not_depend_on_batches_and_order(name: str) -> None:
    case = zoo.make(name)
    whole = _draw(case, case.batch)
    order = torch.tensor([4, 7, 0, 2, 6, 1, 3, 5])
    shuffled = [case.part(part) for part in order.split([2, 5, 1])]
    assert oracle.difference(_draw(case, case.split()), whole) < 1e-10
    assert oracle.difference(_draw(case, shuffled), whole) < 1e-10
    assert oracle.difference(_draw(case, case.batch, seed=6), whole) > 1e-3


class Reshuffled:
    """A data set in another order and other batches at every pass."""

    def __init__(self, case: zoo.Case) -> None:
        self.case, self.passes = case, 0

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        self.passes += 1
        order = torch.randperm(zoo.N, generator=torch.Generator().manual_seed(self.passes))
        return iter([self.case.part(part) for part in order.split(3 - self.passes % 2)])


def test_a_sampled_matrix_over_data_that_are_shuffled_at_every_pass() -> None:
    case = zoo.make("mlp")
    data = Reshuffled(case)
    G = hesse.ggn(case.model, LOSS, data, kind="sampled", generator=torch.Generator().manual_seed(5))
    products = [G.flat @ torch.ones(G.shape[0], dtype=torch.float64) for _ in range(3)]
    once = hesse.ggn(case.model, LOSS, case.batch, kind="sampled", generator=torch.Generator().manual_seed(5))
    expected = once.flat @ torch.ones(G.shape[0], dtype=torch.float64)
    for found in products:
        assert oracle.difference(found, expected) < 1e-12


def _five_errors(draw: Callable[[int], Tensor], expected: Tensor, seeds: int) -> None:
    """The mean over seeds of quadratic forms lies within five standard errors, which are small."""
    probes = torch.randn(len(expected), 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    forms = torch.stack([((draw(seed) @ probes) * probes).sum(0) for seed in range(seeds)])
    truth = ((expected @ probes) * probes).sum(0)
    errors = forms.std(0) / seeds**0.5
    assert bool((errors < 0.15 * truth).all()) and bool((errors > 0).all())
    assert bool(((forms.mean(0) - truth).abs() < 5 * errors).all()), (forms.mean(0), truth, errors)


@pytest.mark.parametrize("loss", [LOSS, SUM, nn.MSELoss(), _pairwise], ids=["classes", "sum", "squares", "callable"])
def test_the_sampled_matrix_is_right_on_average(loss: Any) -> None:
    case = zoo.make("mlp")
    target = zoo.values(3, seed=9) if isinstance(loss, nn.MSELoss) else case.labels
    expected = references.ggn(case.plain, loss, case.inputs, target)

    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return hesse.dense(hesse.ggn(case.model, loss, (case.inputs, target), kind="sampled", samples=4, generator=generator))

    _five_errors(draw, expected, 40)


def test_random_rows_are_those_of_the_sampled_matrix() -> None:
    case = zoo.make("re-used")
    G = hesse.ggn(case.model, LOSS, case.batch)
    assert isinstance(G, GaussNewton)
    generator = torch.Generator().manual_seed(5)
    rows = G.rows(samples=2, generator=generator)
    R = rows.dense().flatten(0, 1)
    assert R.shape[0] == 2 * zoo.N
    assert oracle.difference(R.mT @ R / rows.mass, _draw(case, case.batch)) < 1e-12


LOSSES: dict[str, tuple[Any, Callable[[], Tensor]]] = {
    "sum": (SUM, lambda: zoo.labels()),
    "soft targets": (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2), lambda: zoo.values(3, seed=4).softmax(1)),
    "pos_weight": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT, weight=WEIGHT.flip(0)), lambda: zoo.values(3, seed=4).sigmoid()),
    "squares": (nn.MSELoss(), lambda: zoo.values(3)),
    "squares, sum": (nn.MSELoss(reduction="sum"), lambda: zoo.values(3)),
    "counts": (nn.PoissonNLLLoss(), lambda: zoo.tokens(3, below=5).double()),
    "huber": (nn.HuberLoss(delta=0.7), lambda: zoo.values(3)),
    "smooth l1": (nn.SmoothL1Loss(beta=0.7, reduction="sum"), lambda: zoo.values(3)),
    "callable, mean": (_pairwise, lambda: zoo.labels()),
    "callable, sum": (lambda o, t: (o - t).cosh().sum(), lambda: zoo.values(3)),
}


@pytest.mark.filterwarnings("error:Using a target size")
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    loss, targets = LOSSES[name]
    case, y = zoo.make("layer norm"), targets()
    expected = references.ggn(case.plain, loss, case.inputs, y)
    parts = [(part.inputs, part.y) for part in _parts(case.inputs, y)]
    for data in ((case.inputs, y), parts):
        G = hesse.ggn(case.model, loss, data)
        assert oracle.difference(hesse.dense(G), expected) < 1e-10
        assert oracle.difference(hesse.diagonal(G), expected.diagonal()) < 1e-10
        assert abs(float(hesse.trace(G, method="exact")) - float(expected.trace())) < 1e-10 * float(expected.trace())
    H = hesse.loss_hessian(case.model, loss, parts)
    assert oracle.difference(hesse.dense(H), references.hessian(case.plain, loss, case.inputs, y)) < 1e-10


class _Part:
    def __init__(self, inputs: Tensor, y: Tensor) -> None:
        self.inputs, self.y = inputs, y


def _parts(x: Tensor, y: Tensor) -> list[_Part]:
    return [_Part(*pair) for pair in zip(x.split(list(zoo.SIZES)), y.split(list(zoo.SIZES)), strict=True)]


def test_positions_in_the_axis_of_samples() -> None:
    case = zoo.make("dict inputs")
    expected = references.ggn(case.plain, _rows_of_positions, *case.batch)
    for data in (case.batch, case.split()):
        G = hesse.ggn(case.model, _rows_of_positions, data, **case.options)
        assert oracle.difference(hesse.dense(G), expected) < 1e-10
        assert oracle.difference(hesse.diagonal(G), expected.diagonal()) < 1e-10


def test_a_batch_in_which_nothing_counts() -> None:
    case = zoo.make("mlp")
    kept = case.labels != 1
    expected = references.ggn(case.plain, LOSS, case.inputs[kept], case.labels[kept])
    data = [case.part(~kept), case.part(kept)]
    for options in ({}, {"kind": "sampled", "samples": 1}):
        G = hesse.ggn(case.model, LOSS, data, **options)  # pyright: ignore[reportArgumentType]
        found = hesse.dense(G)
        assert bool(found.isfinite().all())
        if not options:
            assert oracle.difference(found, expected) < 1e-10
    with pytest.raises(DataError, match="mass of 0"):
        hesse.dense(hesse.ggn(case.model, LOSS, [case.part(~kept)]))


def test_laws_of_sampled_and_averaged_matrices() -> None:
    case = zoo.make("nested")
    for data in (case.batch, case.split()):
        for kind in ("exact", "sampled"):
            A = hesse.ggn(case.model, LOSS, data, kind=kind)
            assert_operator(A)
            assert hesse.Tag.PSD in A.tags


@pytest.mark.parametrize("samples", [None, 0, -1, 1.5])
def test_bad_numbers_of_samples(samples: Any) -> None:
    case = zoo.make("mlp")
    with pytest.raises(StructureError, match="samples="):
        hesse.ggn(case.model, LOSS, case.batch, kind="sampled", samples=samples)


def test_losses_that_are_refused() -> None:
    case = zoo.make("mlp")
    with pytest.raises(StructureError, match="'typo'"):
        hesse.ggn(case.model, LOSS, case.batch, kind="typo")  # pyright: ignore[reportArgumentType]
    with pytest.raises(NonScalarError, match="shape"):
        hesse.ggn(case.model, nn.CrossEntropyLoss(reduction="none"), case.batch)
    linear = nn.Sequential(case.model, nn.LogSoftmax(1))
    for kind in ("exact", "sampled"):
        with pytest.raises(UnsupportedError, match="cross_entropy for nll_loss"):
            hesse.ggn(linear, nn.NLLLoss(), case.batch, kind=kind)
        with pytest.raises(UnsupportedError, match="zero"):
            hesse.ggn(case.model, nn.L1Loss(), (case.inputs, zoo.values(3)), kind=kind)
        with pytest.raises(UnsupportedError, match="kl_div"):
            hesse.ggn(linear, F.kl_div, (case.inputs, zoo.values(3).softmax(1)), kind=kind)
