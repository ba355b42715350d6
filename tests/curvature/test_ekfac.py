"""EKFAC against dense matrices in KFAC's eigenvectors over the zoo; never worse than KFAC; in parts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.core.errors import DataError, StructureError
from hesse.curvature import kfac
from hesse.curvature.ekfac import ekfac
from hesse.curvature.kronecker_blocks import EigenBlock
from tests.curvature import references, zoo
from tests.parameters import oracle

WEIGHT = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64)
OPTIONS: dict[str, Any] = {"weight": WEIGHT, "ignore_index": 1, "label_smoothing": 0.1}
LOSS = nn.CrossEntropyLoss(**OPTIONS)
SUM = nn.CrossEntropyLoss(**OPTIONS, reduction="sum")


def _exact(case: zoo.Case, kind: str) -> Tensor:
    if kind == "ggn":
        return references.ggn(case.plain, LOSS, *case.batch)
    mass = float((WEIGHT[case.labels] * (case.labels != 1)).sum())
    return references.outer_products(case.plain, SUM, *case.batch) / mass


def _columns(case: zoo.Case, place: Any) -> Tensor:
    """The columns of the dense matrix that a block is about."""
    start = 0
    for name, p in case.model.named_parameters():
        if not p.requires_grad:
            continue
        if name == place.name:
            places = torch.arange(start, start + p.numel()).reshape(p.shape)
            return (places if place.box is None else places[tuple(slice(*pair) for pair in place.box)]).flatten()
        start += p.numel()
    raise KeyError(place.name)


def _bases(block: Any) -> list[Tensor]:
    """The eigenvectors of every group, written out."""
    groups, a, b = block.values.shape
    left = block.left if block.left.ndim == 3 else torch.eye(a, dtype=torch.float64).expand(groups, a, a)
    right = block.right if block.right.ndim == 3 else torch.eye(b, dtype=torch.float64).expand(groups, b, b)
    return [torch.kron(left[g].contiguous(), right[g].contiguous()) for g in range(groups)]


@pytest.mark.parametrize("widest", [4, 10**6])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_zoo(name: str, widest: int) -> None:
    case = zoo.make(name)
    kind = "ggn" if widest > 4 else "empirical"
    exact = _exact(case, kind)
    options: dict[str, Any] = {"kind": kind, "widest": widest, **case.options}
    K, E = kfac(case.model, LOSS, case.batch, **options), ekfac(case.model, LOSS, case.batch, **options)
    dense_k, dense_e = hesse.dense(K), hesse.dense(E)
    rebuilt = torch.zeros_like(exact)
    assert dict(E.kinds) == dict(K.kinds)
    for place, before in zip(E.places, K.places, strict=True):
        block, columns = place.block.eigen, _columns(case, place)
        assert isinstance(place.block, EigenBlock) == (block.kind == "kronecker")
        assert (place.name, place.box) == (before.name, before.box)
        whole, approximate = exact[columns][:, columns], dense_k[columns][:, columns]
        size = len(columns) // block.values.shape[0]
        for g, basis in enumerate(_bases(block)):
            part = slice(g * size, (g + 1) * size)
            assert oracle.difference(basis.mT @ basis, torch.eye(size, dtype=torch.float64)) < 1e-12
            turned = basis.mT @ approximate[part, part] @ basis
            assert float((turned - turned.diagonal().diag()).norm()) < 1e-12 * float(approximate.norm()) + 1e-30
            values = (basis.mT @ whole[part, part] @ basis).diagonal()
            if block.kind == "kronecker":
                assert float((block.values[g].flatten() - values).norm()) < 1e-10 * float(whole.norm()) + 1e-15
            grid = columns[part]
            rebuilt[grid.unsqueeze(1), grid] = basis @ values.diag() @ basis.mT
    assert oracle.difference(dense_e, rebuilt) < 1e-9
    assert abs(float(hesse.trace(E)) - float(exact.trace())) < 1e-9 * float(exact.trace())
    errors = [float(torch.linalg.matrix_norm(found - exact)) for found in (dense_e, dense_k)]
    assert errors[0] <= errors[1] + 1e-12 * float(torch.linalg.matrix_norm(exact))
    S = ekfac(case.model, LOSS, case.split((3, 2, 3)) if name in zoo.MERGED else case.split(), **options)
    assert oracle.difference(hesse.dense(S), dense_e) < 1e-8


@pytest.mark.parametrize("name", ["re-used", "convolution 2d, strided", "sequence targets", "grouped"])
def test_reduced_factors_keep_right_eigenvalues(name: str) -> None:
    case = zoo.make(name)
    exact = _exact(case, "ggn")
    E = ekfac(case.model, LOSS, case.batch, kind="ggn", approximation="reduce")
    assert abs(float(hesse.trace(E)) - float(exact.trace())) < 1e-10 * float(exact.trace())
    assert oracle.difference(hesse.dense(E), hesse.dense(ekfac(case.model, LOSS, case.batch, kind="ggn"))) > 1e-4


def test_one_batch_is_read_once_and_a_data_set_twice() -> None:
    case = zoo.make("mlp")
    runs: list[int] = []
    handle = case.model.register_forward_hook(lambda module, inputs, output: runs.append(len(inputs[0])))
    ekfac(case.model, LOSS, case.batch)
    ekfac(case.model, LOSS, case.split((3, 2, 3)))  # plans are made by now
    runs.clear()
    ekfac(case.model, LOSS, case.batch)
    once = list(runs)
    runs.clear()
    ekfac(case.model, LOSS, case.split((3, 2, 3)))
    handle.remove()
    assert once == [zoo.N] and runs == 2 * [3, 2, 3]


def test_samples_that_are_other_the_second_time() -> None:
    class Growing:
        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            return iter(case.split()[: 2 + self.passes])

    case = zoo.make("mlp")
    with pytest.raises((DataError, StructureError), match="data"):
        ekfac(case.model, LOSS, Growing(), kind="empirical")


@pytest.mark.parametrize("make", [kfac, ekfac])
@pytest.mark.parametrize("read", [1, 2, 3, 5])
def test_a_model_that_changes_while_the_data_are_read_is_refused(make: Any, read: int) -> None:
    model: Any = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double().eval()
    batches = [(torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 2, 1])) for _ in range(3)]

    class Changing:
        reads = 0

        def __iter__(self) -> Any:
            for batch in batches:
                if self.reads == read:
                    model[1].running_var.mul_(0.1)
                self.reads += 1
                yield batch

    if make is kfac and read > 2:
        make(model, nn.CrossEntropyLoss(), Changing())
        return
    with pytest.raises(DataError, match="running_var"):
        make(model, nn.CrossEntropyLoss(), Changing())


def test_an_exact_matrix_is_kept() -> None:
    case = zoo.make("layer norm")
    exact = _exact(case, "ggn")
    E = ekfac(case.model, LOSS, case.batch, kind="ggn")
    for place in E.places:
        if place.block.kind == "exact":
            columns = _columns(case, place)
            found = hesse.dense(E)[columns][:, columns]
            assert oracle.difference(found, exact[columns][:, columns]) < 1e-10
    assert set(E.kinds.values()) == {"kronecker", "exact"}
    assert math.isfinite(E.damped(1e-3).logdet())
