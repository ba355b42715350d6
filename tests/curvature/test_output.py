"""The Hessian of losses by their predictions against `torch.func.hessian`; wide vocabularies without C x C."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import hesse
from hesse.check import assert_operator
from hesse.core.errors import DataError, LeafError, NonScalarError, StructureError, UnsupportedError
from hesse.curvature import kfac, output_hessian
from hesse.rules.losses import GaussianNLL
from tests.curvature import references, zoo
from tests.parameters import oracle

WEIGHT = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64)


def _coupled(o: Tensor, t: Tensor) -> Tensor:
    return (o.flatten(1).sum(1).exp() * (o - t).square().flatten(1).sum(1)).mean()


LOSSES: dict[str, tuple[Any, Callable[[], Tensor], Callable[[], Tensor]]] = {
    "classes": (nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=1, label_smoothing=0.1), lambda: zoo.values(3), zoo.labels),
    "classes, sum": (nn.CrossEntropyLoss(reduction="sum"), lambda: zoo.values(3), zoo.labels),
    "soft": (nn.CrossEntropyLoss(WEIGHT), lambda: zoo.values(3), lambda: zoo.values(3, seed=4).softmax(1)),
    "sequences": (nn.CrossEntropyLoss(WEIGHT, ignore_index=0), lambda: zoo.values(3, 2), lambda: zoo.labels(2)),
    "log-probabilities": (nn.NLLLoss(WEIGHT), lambda: zoo.values(3).log_softmax(1), zoo.labels),
    "bce": (nn.BCELoss(), lambda: zoo.values(3).sigmoid(), lambda: zoo.tokens(3, below=2).double()),
    "bce of logits": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), lambda: zoo.values(3), lambda: zoo.values(3, seed=4).sigmoid()),
    "one output": (nn.BCEWithLogitsLoss(), lambda: zoo.values(), lambda: zoo.tokens(below=2).double()),
    "squares": (nn.MSELoss(), lambda: zoo.values(3), lambda: zoo.values(3, seed=4)),
    "counts": (nn.PoissonNLLLoss(), lambda: zoo.values(3), lambda: zoo.tokens(3, below=5).double()),
    "rates": (nn.PoissonNLLLoss(log_input=False), lambda: zoo.values(3).exp(), lambda: zoo.tokens(3, below=5).double()),
    "huber": (F.huber_loss, lambda: zoo.values(3), lambda: zoo.values(3, seed=4)),
    "divergence": (nn.KLDivLoss(reduction="batchmean"), lambda: zoo.values(3), lambda: zoo.values(3, seed=4).softmax(1)),
    "gaussian": (GaussianNLL(), lambda: zoo.values(4), lambda: zoo.values(2, seed=4)),
    "callable": (_coupled, lambda: zoo.values(3, 2), lambda: zoo.values(3, 2, seed=4)),
    "callable with a dict": (lambda o, t: (o.exp() * t["scale"]).sum(), lambda: zoo.values(3),
                             lambda: {"scale": zoo.values(3, seed=4)}),  # pyright: ignore[reportAssignmentType]
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_observed(name: str) -> None:
    loss, make_output, make_target = LOSSES[name]
    output, target = make_output(), make_target()
    expected = references.loss_hessian_by_output(loss, output, target)
    A = output_hessian(loss, output.requires_grad_(), target)
    assert oracle.difference(hesse.dense(A), expected) < 1e-12
    assert oracle.difference(hesse.diagonal(A), expected.diagonal()) < 1e-12
    found = A @ torch.ones_like(output)
    assert not found.requires_grad and found.shape == output.shape
    assert output.grad is None
    if hesse.Tag.PSD in A.tags:
        assert float(torch.linalg.eigvalsh(expected)[0]) > -1e-12
    assert_operator(A)


def test_the_tag_of_what_is_convex() -> None:
    for name, psd in (("classes", True), ("squares", True), ("gaussian", False), ("callable", False)):
        loss, output, target = LOSSES[name]
        assert (hesse.Tag.PSD in output_hessian(loss, output(), target()).tags) == psd
    negative = nn.CrossEntropyLoss(weight=-WEIGHT)
    assert hesse.Tag.PSD not in output_hessian(negative, zoo.values(3), zoo.labels()).tags


def test_expected_is_the_observed_one_on_average() -> None:
    rate = zoo.values(3).exp()
    loss = nn.PoissonNLLLoss(log_input=False, eps=0.0)
    expected = torch.zeros(rate.numel(), dtype=torch.float64)
    for k in range(100):
        chance = (k * rate.log() - rate - math.lgamma(k + 1)).exp().flatten()
        observed = references.loss_hessian_by_output(loss, rate, torch.full_like(rate, k)).diagonal()
        expected += chance * observed
    found = output_hessian(loss, rate, torch.zeros_like(rate), kind="expected")
    assert oracle.difference(hesse.diagonal(found), expected) < 1e-10
    assert hesse.Tag.PSD in found.tags
    gaussian = output_hessian(GaussianNLL(), zoo.values(4), zoo.values(2), kind="expected")
    assert oracle.difference(hesse.dense(gaussian), hesse.diagonal(gaussian).diag()) < 1e-15


def test_what_boosting_asks_for() -> None:
    """Second-order boosting divides by ``p (1 - p)``."""
    margin, label = zoo.values(), zoo.tokens(below=2).double()
    found = hesse.diagonal(output_hessian(nn.BCEWithLogitsLoss(reduction="sum"), margin, label))
    p = margin.sigmoid()
    assert oracle.difference(found, p * (1 - p)) < 1e-12


def test_nothing_counts() -> None:
    A = output_hessian(nn.CrossEntropyLoss(ignore_index=1), zoo.values(3), torch.ones(zoo.N, dtype=torch.long))
    assert not hesse.dense(A).any()


@pytest.mark.parametrize("context", [torch.no_grad])
def test_without_grad_mode(context: Any) -> None:
    for name in ("classes", "callable"):
        loss, output, target = LOSSES[name]
        with context():
            A = output_hessian(loss, output(), target())
            found = hesse.dense(A)
        assert oracle.difference(found, references.loss_hessian_by_output(loss, output(), target())) < 1e-12


def test_half_precision() -> None:
    output, target = zoo.values(3).bfloat16(), zoo.labels()
    A = output_hessian(nn.CrossEntropyLoss(), output, target)
    expected = references.loss_hessian_by_output(nn.CrossEntropyLoss(), output.double(), target)
    assert hesse.diagonal(A).dtype == torch.bfloat16
    assert oracle.difference(hesse.diagonal(A).double(), expected.diagonal()) < 1e-2


def test_bad_input() -> None:
    output, target = zoo.values(3), zoo.labels()

    def refused(error: type[Exception], match: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(error, match=match):
            output_hessian(*arguments, **options)

    refused(LeafError, "int64", nn.MSELoss(), target, target)
    refused(LeafError, "list", nn.MSELoss(), [1.0], target)
    refused(LeafError, "complex", nn.MSELoss(), output.cfloat(), output)
    refused((DataError, StructureError), "'typo'", nn.MSELoss(), output, output, kind="typo")
    refused(NonScalarError, "shape", nn.MSELoss(reduction="none"), output, output)
    refused(NonScalarError, "shape", lambda o, t: o.square(), output, output)
    refused(UnsupportedError, "no known distribution", nn.HuberLoss(), output, output, kind="expected")
    refused(UnsupportedError, "no known distribution", lambda o, t: o.sum(), output, output, kind="expected")


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any op returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.op = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().size() // leaf.element_size() > self.elements:
                self.elements, self.op = leaf.untyped_storage().size() // leaf.element_size(), str(func)
        return result


VOCABULARY, WIDTH, TOKENS = 20_000, 3, 2


def _applied(A: hesse.LinearOperator) -> Any:
    return A @ A.in_space.normal()


def _asks() -> dict[str, Callable[[nn.Module, Any], Any]]:
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    return {
        "products of the output's Hessian": lambda m, b: (
            output_hessian(loss, m(b[0]).detach(), b[1]) @ torch.ones(4, VOCABULARY, TOKENS)
        ),
        "its diagonal": lambda m, b: hesse.diagonal(output_hessian(loss, m(b[0]).detach(), b[1])),
        "products of the Gauss-Newton matrix": lambda m, b: _applied(hesse.ggn(m, loss, b)),
        "a sampled diagonal": lambda m, b: hesse.diagonal(hesse.ggn(m, loss, b, kind="sampled")),
        "a sampled product": lambda m, b: _applied(hesse.fisher(m, loss, b, kind="sampled")),
        "sampled KFAC": lambda m, b: kfac(m, loss, b),
        "products of the Hessian": lambda m, b: _applied(hesse.loss_hessian(m, loss, b)),
        "empirical KFAC": lambda m, b: kfac(m, loss, b, kind="empirical"),
    }


@pytest.mark.parametrize("name", _asks())
def test_wide_vocabularies(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, VOCABULARY), Transposed())
    batch = torch.randn(4, TOKENS, WIDTH), torch.randint(0, VOCABULARY, (4, TOKENS))
    with Largest() as largest:
        _asks()[name](model, batch)
    logits = 4 * TOKENS * VOCABULARY
    assert logits <= largest.elements <= 4 * logits, (largest.elements, largest.op)


class Transposed(nn.Module):
    """Class scores on axis 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)
