"""The four Fisher matrices against enumeration of targets, quadrature and per-sample loops; over the zoo and in parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesse
from hesse.check import assert_operator
from hesse.core.errors import DataError, StructureError, UnsupportedError
from hesse.rules.losses import GaussianNLL
from tests.curvature import references, zoo
from tests.parameters import oracle
from tests.parameters.special import L

WEIGHT = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64)
OPTIONS: dict[str, Any] = {"weight": WEIGHT, "ignore_index": 1}
LOSS = nn.CrossEntropyLoss(**OPTIONS)
SUM = nn.CrossEntropyLoss(**OPTIONS, reduction="sum")


def _class_fisher(case: zoo.Case) -> Tensor:
    """The expected Fisher matrix by enumeration of labels; weights and ignored targets are those of the given labels."""
    J, output = references.output_jacobian(case.plain, case.inputs)
    logits = output.movedim(1, -1)
    weights = WEIGHT[case.labels] * (case.labels != 1)
    blocks = references.class_information(logits.flatten(0, -2), weights.flatten())
    J = J.reshape(*output.shape, -1).movedim(1, -2).flatten(0, -2)
    return J.mT @ blocks @ J / weights.sum()


@pytest.mark.parametrize("name", zoo.ZOO)
def test_zoo(name: str) -> None:
    case = zoo.make(name)
    expected = _class_fisher(case)
    assert oracle.difference(references.ggn(case.plain, LOSS, *case.batch), expected) < 1e-10
    for data in (case.batch, case.split()):
        E = hesse.fisher(case.model, LOSS, data, **case.options)
        if case.twice or data is case.batch:
            assert oracle.difference(hesse.dense(E), expected) < 1e-10
        assert oracle.difference(hesse.diagonal(E), expected.diagonal()) < 1e-10
        assert abs(float(hesse.trace(E)) - float(expected.trace())) < 1e-10 * float(expected.trace())


@pytest.mark.parametrize("name", zoo.ZOO)
def test_zoo_empirical(name: str) -> None:
    case = zoo.make(name)
    mass = float((WEIGHT[case.labels] * (case.labels != 1)).sum())
    expected = references.outer_products(case.plain, SUM, *case.batch) / mass
    with torch.no_grad():
        predicted = oracle.run(case.plain, case.inputs).argmax(1)
    weighted = nn.CrossEntropyLoss(weight=WEIGHT)
    guessed = references.outer_products(case.plain, nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum"), case.inputs, predicted)
    guessed = guessed / float(WEIGHT[predicted].sum())
    assert oracle.difference(guessed, expected) > 1e-3
    for data in (case.batch, case.split()):
        true = hesse.fisher(case.model, LOSS, data, kind="empirical", **case.options)
        assert oracle.difference(hesse.dense(true), expected) < 1e-10
        assert oracle.difference(hesse.diagonal(true), expected.diagonal()) < 1e-10
        assert abs(float(hesse.trace(true)) - float(expected.trace())) < 1e-10 * float(expected.trace())
    for labels in ("predicted", predicted):
        found = hesse.fisher(case.model, weighted, case.batch, kind="empirical", labels=labels, **case.options)
        assert oracle.difference(hesse.dense(found), guessed) < 1e-10
    data = case.split() if name == "mlp" else [case.batch]
    found = hesse.fisher(case.model, weighted, data, kind="empirical", labels="predicted", **case.options)
    assert oracle.difference(hesse.diagonal(found), guessed.diagonal()) < 1e-10


@pytest.mark.parametrize("name", ["mlp", "gru", "encoder, norm first", "dict inputs"])
def test_observed_is_the_hessian(name: str) -> None:
    case = zoo.make(name)
    expected = references.hessian(case.plain, LOSS, *case.batch)
    for data in (case.batch, case.split()):
        observed = hesse.fisher(case.model, LOSS, data, kind="observed", **case.options)
        assert oracle.difference(hesse.dense(observed), expected) < 1e-10
        assert hesse.Tag.PSD not in observed.tags


def _hermite(count: int = 24) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights) / math.sqrt(2 * math.pi)


def _two(o: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(torch.zeros_like(o), (-o).sigmoid()), (torch.ones_like(o), o.sigmoid())]


def _two_of_probabilities(p: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(torch.zeros_like(p), 1 - p), (torch.ones_like(p), p)]


def _counts(rate: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(torch.full_like(rate, k), (k * rate.log() - rate - math.lgamma(k + 1)).exp()) for k in range(40)]


def _normal(mean: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Targets of variance 1/2, for which the squared distance is the negative log-likelihood."""
    return [(mean + math.sqrt(0.5) * node, torch.full_like(mean, float(w))) for node, w in zip(*_hermite(), strict=True)]


def _laplace(mean: Tensor) -> list[tuple[Tensor, Tensor]]:
    half = torch.full_like(mean, 0.5)
    return [(mean - 1, half), (mean + 1, half)]  # the gradient is a sign, each with probability 1/2


def _labels_of(z: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each class's own indicator: the gradient is minus its indicator."""
    return [(torch.ones_like(z), z.exp())]


ELEMENTS: dict[str, tuple[Any, Callable[..., Tensor], Callable[[Tensor], Any], Callable[[], Tensor], Callable[..., Any]]] = {
    "bce of logits": (nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits, _two,
                      lambda: zoo.tokens(3, below=2).double(), lambda y: torch.ones_like(y)),
    "bce of logits, weighted": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT, weight=WEIGHT.flip(0)),
                                F.binary_cross_entropy_with_logits, _two, lambda: zoo.tokens(3, below=2).double(),
                                lambda y: WEIGHT.flip(0) * torch.where(y == 1, WEIGHT, 1.0)),
    "bce of probabilities": (nn.BCELoss(weight=WEIGHT), F.binary_cross_entropy, _two_of_probabilities,
                             lambda: zoo.tokens(3, below=2).double(), lambda y: WEIGHT.expand_as(y)),
    "counts of log rates": (nn.PoissonNLLLoss(reduction="sum"), F.poisson_nll_loss, lambda o: _counts(o.exp()),
                            lambda: zoo.tokens(3, below=4).double(), lambda y: torch.ones_like(y)),
    "counts of rates": (nn.PoissonNLLLoss(log_input=False), lambda o, t, reduction: o - t * (o + 1e-8).log(), _counts,
                        lambda: zoo.tokens(3, below=4).double(), lambda y: torch.ones_like(y)),
    "squares": (nn.MSELoss(), F.mse_loss, _normal, lambda: zoo.values(3), lambda y: torch.ones_like(y)),
    "distances": (nn.L1Loss(), F.l1_loss, _laplace, lambda: zoo.values(3), lambda y: torch.ones_like(y)),
    "divergence": (nn.KLDivLoss(reduction="batchmean"), lambda o, t, reduction: -t * o, _labels_of,
                   lambda: zoo.values(3).softmax(1), lambda y: torch.ones_like(y)),
}  # fmt: skip


def _transformed(name: str) -> nn.Module:
    model = zoo.make("mlp").model
    last = {"bce of probabilities": nn.Sigmoid(), "counts of rates": nn.Softplus(), "divergence": nn.LogSoftmax(1)}
    return nn.Sequential(model, last.get(name, nn.Identity()))


@pytest.mark.parametrize("name", ELEMENTS)
def test_expected_by_enumeration_of_targets(name: str) -> None:
    loss, likelihood, enumerate_targets, targets, weights = ELEMENTS[name]
    model, x, y = _transformed(name), zoo.values(4), targets()
    J, output = references.output_jacobian(model, x)
    element = lambda o, t: likelihood(o, t, reduction="none")  # noqa: E731
    pairs = enumerate_targets(output)
    if name != "divergence":
        assert oracle.difference(sum(p for _, p in pairs), torch.ones_like(output)) < 1e-10
    information = references.information(output, element, pairs, weights(y))
    mass = {"sum": 1.0, "mean": float(output.numel()), "batchmean": float(len(output))}[loss.reduction]
    expected = J.mT @ (information.flatten().unsqueeze(1) * J) / mass
    parts = list(zip(x.split(list(zoo.SIZES)), y.split(list(zoo.SIZES)), strict=True))
    for data in ((x, y), parts):
        E = hesse.fisher(model, loss, data)
        assert oracle.difference(hesse.dense(E), expected) < 1e-8
        assert oracle.difference(hesse.diagonal(E), expected.diagonal()) < 1e-8
        assert hesse.Tag.PSD in E.tags


def test_expected_of_a_gaussian_with_learned_variance() -> None:
    model = nn.Sequential(zoo.make("mlp").model, L(3, 4).double())
    x, y = zoo.values(4), zoo.values(2)
    J, output = references.output_jacobian(model, x)
    nodes, weights = _hermite()
    blocks = torch.zeros(zoo.N, 4, zoo.N, 4, dtype=torch.float64)
    for i in range(zoo.N):
        for d in range(2):
            for node, w in zip(nodes, weights, strict=True):
                z = output[i].clone().requires_grad_()
                t = (output[i, d] + (0.5 * output[i, 2 + d]).exp() * node).detach()
                negative = -torch.distributions.Normal(z[d], (0.5 * z[2 + d]).exp()).log_prob(t)
                (g,) = torch.autograd.grad(negative, z)
                blocks[i, :, i, :] += w * torch.outer(g, g)
    expected = J.mT @ blocks.reshape(4 * zoo.N, 4 * zoo.N) @ J / y.numel()
    for data in ((x, y), list(zip(x.split([5, 3]), y.split([5, 3]), strict=True))):
        assert oracle.difference(hesse.dense(hesse.fisher(model, GaussianNLL(), data)), expected) < 1e-10
    assert oracle.difference(hesse.dense(hesse.ggn(model, GaussianNLL(), (x, y))), expected) > 1e-3


def test_log_probabilities_are_as_good_as_logits() -> None:
    case = zoo.make("nested")
    linear = nn.Sequential(case.model, nn.LogSoftmax(1))
    for kind in ("expected", "observed", "empirical"):
        of_logits = hesse.dense(hesse.fisher(case.model, LOSS, case.batch, kind=kind))
        of_logs = hesse.dense(hesse.fisher(linear, nn.NLLLoss(**OPTIONS), case.batch, kind=kind))
        assert oracle.difference(of_logs, of_logits) < 1e-12


@pytest.mark.parametrize(
    "name",
    ["classes", "log-probabilities", "bce of logits, weighted", "squares", "counts of log rates", "distances", "gaussian"],
)
def test_sampled_is_right_on_average(name: str) -> None:
    x = zoo.values(4)
    if name in ELEMENTS:
        model, loss, y = _transformed(name), ELEMENTS[name][0], ELEMENTS[name][3]()
    else:
        last = {"classes": nn.Identity(), "log-probabilities": nn.LogSoftmax(1), "gaussian": L(3, 4).double()}[name]
        model = nn.Sequential(zoo.make("mlp").model, last)
        loss = {"classes": LOSS, "log-probabilities": nn.NLLLoss(**OPTIONS), "gaussian": GaussianNLL()}[name]
        y = zoo.values(2) if name == "gaussian" else zoo.labels()
    expected = hesse.dense(hesse.fisher(model, loss, (x, y)))
    probes = torch.randn(len(expected), 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    forms = []
    for seed in range(40):
        S = hesse.fisher(model, loss, (x, y), kind="sampled", samples=4, generator=torch.Generator().manual_seed(seed))
        forms.append((S.mm(S.in_space.unravel(probes.mT)), S.in_space))
    values = torch.stack([(space.ravel(found, 1) * probes.mT).sum(1) for found, space in forms])
    truth, errors = ((expected @ probes) * probes).sum(0), values.std(0) / len(values) ** 0.5
    assert bool((errors > 0).all()) and bool((errors < 0.2 * truth).all())
    assert bool(((values.mean(0) - truth).abs() < 5 * errors).all())


@pytest.mark.parametrize("name", zoo.ZOO)
def test_sampled_depends_on_the_seed_and_the_samples_only(name: str) -> None:
    case = zoo.make(name)

    def draw(data: Any, seed: int = 3) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        S = hesse.fisher(case.model, LOSS, data, kind="sampled", samples=3, generator=generator, **case.options)
        probes = S.in_space.normal(2, generator=torch.Generator().manual_seed(0))
        return S.in_space.ravel(S.mm(probes), 1)

    whole = draw(case.batch)
    order = torch.tensor([4, 7, 0, 2, 6, 1, 3, 5])
    assert oracle.difference(draw(case.split()), whole) < 1e-10
    assert oracle.difference(draw([case.part(part) for part in order.split([2, 5, 1])]), whole) < 1e-10
    assert oracle.difference(draw(case.batch, seed=4), whole) > 1e-3
    once = hesse.fisher(case.model, LOSS, case.batch, kind="sampled", **case.options)
    assert torch.equal(hesse.dense(once), hesse.dense(once))
    assert torch.linalg.eigvalsh(hesse.dense(once))[0] > -1e-12 * float(hesse.trace(once))


def test_many_samples_come_closer() -> None:
    case = zoo.make("mlp")
    expected = hesse.dense(hesse.fisher(case.model, LOSS, case.batch))
    errors = [
        oracle.difference(hesse.dense(hesse.fisher(case.model, LOSS, case.batch, kind="sampled", samples=k)), expected)
        for k in (1, 50)
    ]
    assert errors[1] < 0.25 < errors[0]


def test_laws() -> None:
    case = zoo.make("nested")
    for data in (case.batch, case.split()):
        for kind in ("expected", "sampled", "empirical", "observed"):
            assert_operator(hesse.fisher(case.model, LOSS, data, kind=kind))


def test_bad_input() -> None:
    case = zoo.make("mlp")

    def refused(error: type[Exception], match: str, loss: Any = LOSS, data: Any = None, **options: Any) -> None:
        with pytest.raises(error, match=match):
            hesse.fisher(case.model, loss, case.batch if data is None else data, **options)

    refused(StructureError, "'typo'", kind="typo")
    refused(StructureError, "labels= is", kind="empirical", labels="guessed")
    refused(StructureError, "labels= is", kind="empirical", labels=3)
    refused(StructureError, "belong to the empirical", kind="expected", labels="predicted")
    refused(StructureError, "labels=", kind="sampled", labels=case.labels)
    refused(DataError, "data set", data=case.split(), kind="empirical", labels=case.labels)
    for samples in (0, -2, None, 2.0):
        refused(StructureError, "samples=", kind="sampled", samples=samples)
    refused(DataError, "rows", kind="empirical", labels=case.labels[:3])
    squared = (case.inputs, zoo.values(3))
    for kind in ("expected", "sampled", "observed"):
        refused(UnsupportedError, "no known distribution", nn.HuberLoss(), squared, kind=kind)
    for kind in ("expected", "sampled"):
        refused(UnsupportedError, "kind='empirical'", lambda o, t: F.cross_entropy(o, t), kind=kind)
    observed = hesse.fisher(case.model, lambda o, t: F.cross_entropy(o, t), case.batch, kind="observed")
    assert oracle.difference(hesse.dense(observed), references.hessian(case.plain, F.cross_entropy, *case.batch)) < 1e-10
    empirical = hesse.fisher(case.model, nn.HuberLoss(reduction="sum"), squared, kind="empirical")
    rows = references.outer_products(case.plain, nn.HuberLoss(reduction="sum"), *squared)
    assert oracle.difference(hesse.dense(empirical), rows) < 1e-10


def test_predicted_labels_of_odd_outputs() -> None:
    model = nn.Sequential(L(4, 1).double(), nn.Flatten(0))
    with pytest.raises(DataError, match="largest outputs"):
        hesse.fisher(model, nn.BCEWithLogitsLoss(), (zoo.values(4), zoo.tokens(below=2).double()), kind="empirical",
                     labels="predicted")  # fmt: skip
