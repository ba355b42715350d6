"""Curvature matrices are solved through their structure; Kronecker factors go to files and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.core.errors import StructureError
from tests.parameters import oracle
from tests.parameters.special import Free, L

LOSS = nn.CrossEntropyLoss()


def _cross(s: Any, x: Tensor) -> Tensor:
    return s.head(s.attention(x[:, :2], x, x)[0].mean(1))


def _make() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        attention = nn.MultiheadAttention(6, 2, batch_first=True)
        model = Free(_cross, attention=attention, head=L(6, 3), unused=L(2, 2)).double()
        return model, torch.randn(7, 4, 6, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0, 2, 2])


@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
def test_few_samples_are_solved_by_their_gram_matrix(kind: str) -> None:
    model, x, y = _make()
    if kind == "empirical":
        A = hesse.fisher(model, LOSS, (x, y), kind="empirical")
    else:
        A = hesse.ggn(model, LOSS, (x, y), kind=kind)  # pyright: ignore[reportArgumentType]
    damped = A + 0.3 * hesse.identity(A.in_space)
    b = A.in_space.normal(generator=torch.Generator().manual_seed(1))
    found = hesse.solve(damped, b, method="woodbury", full=True)
    expected = torch.linalg.solve(hesse.dense(A) + 0.3 * torch.eye(A.shape[0], dtype=torch.float64), A.in_space.ravel(b))
    assert oracle.difference(A.in_space.ravel(found.value), expected) < 1e-10


@pytest.mark.parametrize("make", [hesse.kfac, hesse.ekfac])
@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_damped_kronecker_factors_are_solved_by_structure(make: Any, factor: float) -> None:
    model, x, y = _make()
    K = make(model, LOSS, (x, y), kind="ggn")
    A = factor * K + 0.2 * hesse.identity(K.in_space)
    b = K.in_space.normal(generator=torch.Generator().manual_seed(1))
    found = hesse.solve(A, b, full=True)
    assert found.method == "structure"
    shift = 0.2 * torch.eye(K.shape[0], dtype=torch.float64)
    expected = torch.linalg.solve(factor * hesse.dense(K) + shift, K.in_space.ravel(b))
    assert oracle.difference(K.in_space.ravel(found.value), expected) < 1e-10
    logarithm = float(torch.linalg.slogdet(hesse.dense(K) + shift).logabsdet)
    assert float(hesse.logdet(K + 0.2 * hesse.identity(K.in_space))) == pytest.approx(logarithm, rel=1e-10)


@pytest.mark.parametrize("make", [hesse.kfac, hesse.ekfac])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_files(make: Any, damping: float, tmp_path: Path) -> None:
    model, x, y = _make()
    K = make(model, LOSS, (x, y), kind="ggn")
    K = K.damped(damping) if damping else K
    hesse.save(K, tmp_path / "k.safetensors")
    found = hesse.load(tmp_path / "k.safetensors", like=model)
    assert oracle.difference(hesse.dense(found), hesse.dense(K)) < 1e-14
    assert found.mass == K.mass and found.kinds == K.kinds and repr(found) == repr(K)  # pyright: ignore[reportAttributeAccessIssue]
    assert any(place.box for place in K.places)  # the projections of the queries and of the rest
    with pytest.raises(StructureError, match=r"head\.weight|attention"):
        hesse.load(tmp_path / "k.safetensors", like=nn.Linear(3, 2))


def test_low_rank_plus_diagonal(tmp_path: Path) -> None:
    model, x, y = _make()
    G = hesse.ggn(model, LOSS, (x, y))
    dense = hesse.dense(G)
    errors = []
    for k in (2, 6, 14):  # rank 14 is all of it: seven samples, two roots each
        A = hesse.low_rank_plus_diagonal(G, k)
        assert oracle.difference(hesse.diagonal(A), dense.diagonal()) < 1e-10
        errors.append(oracle.difference(hesse.dense(A), dense))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-8
    hesse.save(A, tmp_path / "a.safetensors")
    assert oracle.difference(hesse.dense(hesse.load(tmp_path / "a.safetensors", like=model)), dense) < 1e-8
    found = hesse.solve(A + 0.1 * hesse.identity(G.in_space), G.in_space.normal(), full=True)
    assert found.method == "structure"
