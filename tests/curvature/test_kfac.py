"""KFAC against its definition over the zoo, in every kind and form; where it is exact; in parts; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesse
from hesse.check import assert_operator
from hesse.core.errors import (
    DataError,
    DetachedError,
    MixedSamplesError,
    OneShotDataError,
    StructureError,
    SymmetryError,
    UnsupportedError,
)
from hesse.curvature import kfac
from hesse.curvature.ekfac import ekfac
from hesse.rules.losses import GaussianNLL
from tests.curvature import factors, references, zoo
from tests.parameters import oracle
from tests.parameters.fingerprint import changes, fingerprint
from tests.parameters.special import Free, L, P

WEIGHT = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64)
OPTIONS: dict[str, Any] = {"weight": WEIGHT, "ignore_index": 1, "label_smoothing": 0.1}
LOSS = nn.CrossEntropyLoss(**OPTIONS)
SUM = nn.CrossEntropyLoss(**OPTIONS, reduction="sum")


def _mass(case: zoo.Case) -> float:
    return float((WEIGHT[case.labels] * (case.labels != 1)).sum())


def _matrix(case: zoo.Case, kind: str, approximation: str = "expand") -> factors.Matrix:
    output = oracle.run(case.plain, case.inputs).detach()
    make = factors.slopes if kind == "empirical" else factors.roots
    names = [name for name, p in case.model.named_parameters() if p.requires_grad]
    return factors.matrix(case.plain, case.inputs, make(SUM, output, case.labels), _mass(case), approximation, names)


def _kinds(name: str, case: zoo.Case, approximation: str, widest: float = float("inf")) -> dict[str, str]:
    """What block every parameter has to get."""
    kinds = {}
    for parameter, p in case.model.named_parameters():
        if not p.requires_grad:
            continue
        is_table = "table" in parameter or "wte" in parameter
        chained = (
            "original" in parameter or parameter in ("up", "down") or (name == "low-rank update" and parameter == "a.weight")
        )
        several = name in ("tied embedding and head", "dict inputs") and is_table
        norm = any(word in parameter for word in ("norm", "bias")) or (p.ndim == 1)
        shallow = p.ndim > 2 and p.shape[1] == 1  # convolutions of one channel a group, whose rows are small
        has_factors = not (norm or shallow or chained or several or (is_table and approximation == "reduce"))
        fits = p.ndim > 1 and p.numel() // len(p) <= widest
        kinds[parameter] = "exact" if p.numel() <= widest else "blocks" if fits else "diagonal"
        kinds[parameter] = "kronecker" if has_factors else kinds[parameter]
        if parameter.startswith("u."):
            kinds[parameter] = "unused"
    return kinds


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_zoo(name: str, approximation: Any) -> None:
    case = zoo.make(name)
    before = fingerprint(case.model)
    kinds = _kinds(name, case, approximation)
    for kind in ("ggn", "empirical"):
        reference = _matrix(case, kind, approximation)
        expected = reference.approximation(kinds)
        K = kfac(case.model, LOSS, case.batch, kind=kind, approximation=approximation, **case.options)  # pyright: ignore[reportArgumentType]
        assert dict(K.kinds) == kinds
        assert oracle.difference(hesse.dense(K), expected) < 1e-10
        assert abs(K.mass - _mass(case)) < 1e-12
        parts = case.split((3, 2, 3)) if name in zoo.MERGED else case.split()
        S = kfac(case.model, LOSS, parts, kind=kind, approximation=approximation, **case.options)  # pyright: ignore[reportArgumentType]
        assert oracle.difference(hesse.dense(S), expected) < 1e-10
    assert changes(before, fingerprint(case.model)) == []


@pytest.mark.parametrize("name", zoo.ZOO)
def test_zoo_with_narrow_factors(name: str) -> None:
    case = zoo.make(name)
    kinds = _kinds(name, case, "expand", widest=4)
    reference = _matrix(case, "empirical")
    K = kfac(case.model, LOSS, case.batch, kind="empirical", widest=4, **case.options)
    assert dict(K.kinds) == kinds
    assert oracle.difference(hesse.dense(K), reference.approximation(kinds, widest=4)) < 1e-10


@pytest.mark.parametrize("name", zoo.MERGED)
def test_sequences_over_a_batch_of_one_sample(name: str) -> None:
    case = zoo.make(name)
    expected = _matrix(case, "empirical").approximation(_kinds(name, case, "expand"))
    assert oracle.difference(hesse.dense(kfac(case.model, LOSS, case.split(), kind="empirical")), expected) < 1e-10


@pytest.mark.parametrize("name", ["mlp", "frozen", "grouped", "dict inputs", "encoder, norm last"])
def test_the_expected_fisher_of_natural_losses_is_the_gauss_newton_matrix(name: str) -> None:
    case = zoo.make(name)
    expected = hesse.dense(kfac(case.model, LOSS, case.batch, kind="ggn", **case.options))
    found = hesse.dense(kfac(case.model, LOSS, case.batch, kind="expected", **case.options))
    assert oracle.difference(found, expected) < 1e-12


@pytest.mark.parametrize("name", ["re-used", "depthwise", "attention", "embedding with padding"])
def test_sampled_is_right_on_average(name: str) -> None:
    case = zoo.make(name)
    loss = nn.CrossEntropyLoss(weight=WEIGHT)
    expected = hesse.dense(kfac(case.model, loss, case.batch, kind="expected"))
    probes = torch.randn(len(expected), 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for seed in range(40):
        K = kfac(case.model, loss, case.batch, samples=4, generator=torch.Generator().manual_seed(seed))
        found.append((K.in_space.ravel(K.mm(K.in_space.unravel(probes.mT)), 1) * probes.mT).sum(1))
    forms = torch.stack(found)
    truth, errors = ((expected @ probes) * probes).sum(0), forms.std(0) / len(forms) ** 0.5
    assert bool((errors > 0).all()) and bool((errors < 0.2 * truth).all())
    assert bool(((forms.mean(0) - truth).abs() < 5 * errors).all())


def test_a_token_counts_the_same_in_all_kinds() -> None:
    def language(s: Any, tokens: Tensor) -> Tensor:
        return s.head(torch.tanh(s.table(tokens).cumsum(1))).transpose(1, 2)

    model = Free(language, table=nn.Embedding(5, 3), head=L(3, 5)).double()
    tokens, y = zoo.tokens(4, below=5), zoo.tokens(4, below=5, seed=6)
    frequency = torch.bincount(tokens.flatten(), minlength=5) / tokens.numel()
    for kind in ("empirical", "sampled", "ggn", "expected"):
        K = kfac(model, nn.CrossEntropyLoss(), (tokens, y), kind=kind, params=["table.weight"])  # pyright: ignore[reportArgumentType]
        counted = K.places[0].block.left[0]
        assert oracle.difference(counted / counted.sum(), frequency.double()) < 1e-6, kind


@pytest.mark.parametrize("make", [kfac, ekfac])
@pytest.mark.parametrize("name", ["tied linears", "re-used", "transposed", "embedding with padding", "sequence targets"])
def test_sampled_depends_on_the_seed_and_the_samples_only(name: str, make: Any) -> None:
    case = zoo.make(name)

    def draw(data: Any, seed: int = 3) -> Tensor:
        return hesse.dense(make(case.model, LOSS, data, samples=2, generator=torch.Generator().manual_seed(seed)))

    whole, order = draw(case.batch), torch.tensor([4, 7, 0, 2, 6, 1, 3, 5])
    assert oracle.difference(draw(case.split()), whole) < 1e-9
    assert oracle.difference(draw([case.part(part) for part in order.split([2, 5, 1])]), whole) < 1e-9
    assert oracle.difference(draw(case.batch, seed=4), whole) > 1e-3


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_linear_model_with_squared_distances_is_exact(reduction: str) -> None:
    model, x, y = L(5, 3).double(), zoo.values(5), zoo.values(3)
    loss = nn.MSELoss(reduction=reduction)
    exact = references.ggn(model, loss, x, y)
    for kind in ("ggn", "expected"):
        found = hesse.dense(kfac(model, loss, (x, y), kind=kind))  # pyright: ignore[reportArgumentType]
        assert oracle.difference(found[:15, :15], exact[:15, :15]) < 1e-12
        assert oracle.difference(found[15:, 15:], exact[15:, 15:]) < 1e-12
        assert not found[:15, 15:].any()


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
def test_one_sample_and_one_position_are_exact(approximation: Any) -> None:
    case = zoo.make("mlp")
    x, y = case.inputs[:1], torch.tensor([2])
    exact = references.outer_products(case.plain, F.cross_entropy, x, y)
    K = kfac(case.model, F.cross_entropy, (x, y), kind="empirical", approximation=approximation)
    found, start = hesse.dense(K), 0
    for p in case.model.parameters():
        part = slice(start, start + p.numel())
        assert oracle.difference(found[part, part], exact[part, part]) < 1e-12
        start += p.numel()


def test_gaussian_with_learned_variance() -> None:
    model, x, y = nn.Sequential(L(4, 3), nn.Tanh(), L(3, 4)).double(), zoo.values(4), zoo.values(2)
    K = kfac(model, GaussianNLL(), (x, y), kind="expected")
    exact = hesse.dense(hesse.fisher(model, GaussianNLL(), (x, y)))
    bias = slice(12, 15)
    assert oracle.difference(hesse.dense(K)[bias, bias], exact[bias, bias]) < 1e-12
    with pytest.raises(SymmetryError, match="negative"):
        kfac(model, GaussianNLL(), (x, y), kind="ggn")


def test_losses_without_a_rule() -> None:
    case, y = zoo.make("layer norm"), zoo.values(3)

    def coupled(o: Tensor, t: Tensor) -> Tensor:
        return (o - t).square().sum(1).cosh().mean()

    output = oracle.run(case.plain, case.inputs).detach()
    names = [name for name, _ in case.model.named_parameters()]
    reference = factors.matrix(case.plain, case.inputs, factors.roots(coupled, output, y), 1.0, "expand", names)
    expected = reference.approximation(_kinds("layer norm", case, "expand"))
    parts = list(zip(case.inputs.split([3, 5]), y.split([3, 5]), strict=True))
    for data in ((case.inputs, y), parts):
        assert oracle.difference(hesse.dense(kfac(case.model, coupled, data, kind="ggn")), expected) < 1e-10


def test_boxes_of_a_parameter_with_and_without_factors() -> None:
    model = Free(lambda s, x: F.linear(x, s.w[:12].view(3, 4), s.w[12:15]), w=P(17)).double()
    x, y = zoo.values(4), zoo.values(3)
    exact = references.ggn(model, nn.MSELoss(), x, y)
    K = kfac(model, nn.MSELoss(), (x, y), kind="ggn")
    found = hesse.dense(K)
    assert oracle.difference(found[:12, :12], exact[:12, :12]) < 1e-12
    assert oracle.difference(found[12:15, 12:15], exact[12:15, 12:15]) < 1e-12
    assert not found[15:].any() and not found[:12, 12:].any()
    assert "kronecker" in K.kinds["w"] and "exact" in K.kinds["w"]


def test_sub_networks() -> None:
    case = zoo.make("mlp")
    whole = kfac(case.model, LOSS, case.batch, kind="ggn")
    part = kfac(case.model, LOSS, case.batch, kind="ggn", params=lambda name, p: name.startswith("2."))
    assert oracle.difference(hesse.dense(part), hesse.dense(whole)[-15:, -15:]) < 1e-12


def test_laws() -> None:
    case = zoo.make("convolution 2d, strided")
    for kind in ("sampled", "empirical"):
        assert_operator(kfac(case.model, LOSS, case.split(), kind=kind))
        assert_operator(ekfac(case.model, LOSS, case.batch, kind=kind, widest=4))


@pytest.mark.parametrize("make", [kfac, ekfac])
def test_bad_input(make: Any) -> None:
    case = zoo.make("mlp")

    def refused(
        error: type[Exception], match: str, loss: Any = LOSS, data: Any = None, model: Any = None, **options: Any
    ) -> None:
        with pytest.raises(error, match=match):
            make(model or case.model, loss, case.batch if data is None else data, **options)

    refused(StructureError, "'exact'", kind="exact")
    refused(StructureError, "'shrink'", approximation="shrink")
    for widest in (0, -3):
        refused(StructureError, "widest", widest=widest)
    for samples in (0, -1, None, 1.5):
        refused(StructureError, "samples=", samples=samples)
    refused(StructureError, "belong to the empirical", labels="predicted")
    refused(DataError, "data set", data=case.split(), kind="empirical", labels=case.labels)
    refused(OneShotDataError, "generator", data=(batch for batch in case.split()))
    refused(DataError, "no batch", data=[])
    refused(DataError, "mass of 0", data=case.part(case.labels == 1))
    refused(UnsupportedError, "no known distribution", lambda o, t: F.cross_entropy(o, t))
    refused(UnsupportedError, "no known distribution", nn.HuberLoss(), (case.inputs, zoo.values(3)), kind="expected")
    refused(UnsupportedError, "linear in the output", nn.L1Loss(), (case.inputs, zoo.values(3)), kind="ggn")
    refused(DetachedError, "detach", model=Free(lambda s, x: s.m(x).detach(), m=case.model))
    mixing = Free(lambda s, x: (lambda h: h - h.mean(0))(s.m(x)), m=case.model)
    for kind in ("sampled", "ggn", "empirical"):
        refused(MixedSamplesError, "sample", model=mixing, kind=kind)
    refused(MixedSamplesError, "'1'", model=nn.Sequential(L(4), nn.BatchNorm1d(3)).double(), kind="empirical")


def test_dtypes_and_odd_sizes() -> None:
    case = zoo.make("convolution 2d, strided")
    expected = hesse.dense(kfac(case.model, LOSS, case.batch, kind="ggn"))
    for dtype, slack in ((torch.float32, 1e-5), (torch.bfloat16, 8e-2), (torch.float16, 1e-2)):
        model = zoo.make("convolution 2d, strided").model.to(dtype)
        K = kfac(
            model,
            nn.CrossEntropyLoss(**{**OPTIONS, "weight": WEIGHT.to(dtype)}),
            (case.inputs.to(dtype), case.labels),
            kind="ggn",
        )
        product = K.flat @ torch.ones(K.shape[0], dtype=dtype)
        assert product.dtype == dtype
        assert oracle.difference(product.double(), expected.sum(1)) < slack
        assert all(p.block.right.dtype == torch.float32 for p in K.places)
    one = kfac(case.model, LOSS, case.part(slice(0, 1)), kind="empirical")
    assert bool(hesse.dense(one).isfinite().all())
    single = nn.Sequential(L(4, 2), nn.Tanh(), L(2, 1), nn.Flatten(0)).double()
    K = kfac(single, nn.MSELoss(), (zoo.values(4), zoo.values()), kind="ggn")
    exact = references.ggn(single, nn.MSELoss(), zoo.values(4), zoo.values())
    assert oracle.difference(hesse.dense(K)[8:10, 8:10], exact[8:10, 8:10]) < 1e-12
