"""The numbers of random projections: against loops in plain Python, whatever the chunk, the columns asked for and the type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hesse
from hesse.check import assert_operator
from hesse.operators.projections import RandomProjection, random_projection

from ..zoo import drawing, trees
from . import reference

T = drawing(torch.float64)
OPTIONS: list[dict[str, Any]] = [
    {"kind": "gaussian"},
    {"kind": "rademacher"},
    {"kind": "rademacher", "nonzeros": 1},
    {"kind": "rademacher", "nonzeros": 5},
    {"kind": "fjlt"},
]
KINDS = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options.values())))
SEEDS = (0, 5, -3, 2**63 + 11)


def make(dim: int, k: int, options: dict[str, Any], seed: int = 5, dtype: torch.dtype = torch.float64) -> RandomProjection:
    return random_projection(torch.empty(dim, dtype=dtype), k, seed=seed, **options)


@KINDS
@pytest.mark.parametrize(("dim", "k"), [(23, 6), (7, 16), (40, 8), (1, 5)])
def test_the_matrix(options: dict[str, Any], dim: int, k: int, untouched: None) -> None:
    seed = SEEDS[(dim + k) % len(SEEDS)]
    expected = reference.matrix(k=k, dim=dim, seed=seed, **options)
    torch.testing.assert_close(hesse.dense(make(dim, k, options, seed)), expected, rtol=1e-6, atol=0)
    single = hesse.dense(make(dim, k, options, seed, torch.float32))
    torch.testing.assert_close(single, expected.float(), rtol=1e-6, atol=0)


@KINDS
def test_the_first_and_the_last_columns_of_many(options: dict[str, Any]) -> None:
    dim, k = 600_011, 24
    P, v = make(dim, k, options), torch.zeros(dim, dtype=torch.float64)
    places = torch.tensor([0, 1, 32767, 43690, 43691, 262143, 262144, dim - 1])
    v[places] = T(len(places))
    entries = {"gaussian": reference.gaussian, "fjlt": reference.fjlt}
    columns = [sparse_column(entries.get(options["kind"]), options, k, int(place)) for place in places]
    torch.testing.assert_close(P @ v, torch.stack(columns, 1) @ v[places], rtol=1e-5, atol=1e-6)
    u = T(k)
    torch.testing.assert_close((P.T @ u)[places], torch.stack(columns, 1).T @ u, rtol=1e-5, atol=1e-6)


def sparse_column(make_matrix: Any, options: dict[str, Any], k: int, place: int) -> Tensor:
    """One column of the reference, of which only the block that it is in is written out."""
    original, shift = reference.column, place // 32 * 32
    reference.column = lambda seed, stream, c: original(seed, stream, c + shift)
    try:
        return reference.matrix(k=k, dim=place - shift + 1, seed=5, **options)[:, -1]
    finally:
        reference.column = original


@KINDS
@pytest.mark.parametrize("k", [1, 6, 16])
def test_laws(options: dict[str, Any], k: int, untouched: None) -> None:
    if options.get("nonzeros", 1) > k:
        options = {**options, "nonzeros": k}
    example = {"b": T(3, 5), "a": [T(7), T()]}
    P = random_projection(example, k, seed=3, **options)
    assert_operator(P)
    assert_operator(P.T)
    assert P.T.T is P


@KINDS
def test_some_columns(options: dict[str, Any]) -> None:
    P, v, u = make(61, 12, options), T(4, 61), T(4, 12)
    M = hesse.dense(P)
    some = torch.tensor([60, 3, 17, 4, 22, 59, 0])
    for places in (slice(0, 61), slice(13, 50), slice(60, 61), slice(5, 5), some):
        torch.testing.assert_close(P.times(v[:, places], places), v[:, places] @ M[:, places].T)
        torch.testing.assert_close(P.back(u, places), (u @ M)[:, places])
    torch.testing.assert_close(P.times(v), v @ M.T)
    torch.testing.assert_close(P.back(u), u @ M)
    assert P.times(v[:0]).shape == (0, 12)


@KINDS
@pytest.mark.parametrize("scattered", [False, True])
def test_vectors_given_by_pieces(options: dict[str, Any], scattered: bool) -> None:
    P, order = make(61, 12, options), torch.randperm(61, generator=torch.Generator().manual_seed(1))
    columns = (order if scattered else torch.arange(61))[1:].reshape(10, 6)
    group, vectors = torch.tensor([3, 9, 3, 0, 3, 7, 9]), torch.tensor([4, 0, 2, 4, 4, 0, 1])
    pieces, whole = T(7, 6).requires_grad_(), torch.zeros(6, 61, dtype=torch.float64)
    for piece, places, vector in zip(pieces.detach(), columns[group], vectors, strict=True):
        whole[vector, places] += piece
    found, M = P.times_pieces(pieces, vectors, columns[group], 6), hesse.dense(P)
    torch.testing.assert_close(found, whole @ M.T)
    found.square().sum().backward()
    torch.testing.assert_close(pieces.grad, (2 * whole @ M.T @ M)[vectors[:, None], columns[group]])
    assert not P.times_pieces(pieces[:0], vectors[:0], columns[group][:0], 6).any()


@KINDS
def test_products_are_differentiable_and_can_be_mapped(options: dict[str, Any]) -> None:
    P, v = make(37, 9, options), T(5, 37)
    M = hesse.dense(P)
    x = v[0].clone().requires_grad_()
    (P @ x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * M.T @ (M @ v[0]))
    torch.testing.assert_close(torch.vmap(P.mv)(v), v @ M.T)


@KINDS
def test_trees_of_all_nestings(options: dict[str, Any]) -> None:
    for tree in trees(T).values():
        P = random_projection(tree, 8, seed=2, **options)
        v = P.in_space.ravel(tree)
        torch.testing.assert_close(P @ tree, reference.matrix(k=8, dim=len(v), seed=2, **options) @ v, rtol=1e-5, atol=1e-6)


@KINDS
@pytest.mark.parametrize("into", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_types(options: dict[str, Any], into: torch.dtype, given: torch.dtype) -> None:
    P = random_projection(torch.empty(400, dtype=given), 16, dtype=into, seed=1, **options)
    v = T(400).to(given)
    result = P @ v
    expected = hesse.dense(random_projection(torch.empty(400, dtype=torch.float64), 16, seed=1, **options)) @ v.double()
    assert result.dtype is into
    torch.testing.assert_close(result.double(), expected, rtol=2 * torch.finfo(into).eps, atol=3e-5 + torch.finfo(into).eps)
    assert (P.T @ result).dtype is given


def test_a_projection_to_more_dimensions_starts_with_the_same_numbers() -> None:
    small, large = (hesse.dense(make(9, k, {"kind": "gaussian"})) for k in (6, 11))
    torch.testing.assert_close(small * 6**0.5, large[:6] * 11**0.5)


def test_small_matrices_are_kept_and_large_ones_are_not() -> None:
    small, large = make(50, 4, OPTIONS[0]), make(2**20 + 1, 4, OPTIONS[0])
    _ = small @ T(50), large @ T(2**20 + 1)
    assert [value.numel() for value in vars(small).values() if isinstance(value, Tensor)] == [200]
    assert not any(isinstance(value, Tensor) for value in vars(large).values())


def test_kept_matrices_are_fit_for_autograd() -> None:
    P = make(5, 3, OPTIONS[0])
    with torch.inference_mode():
        _ = P @ T(5)
    x = T(5).requires_grad_()
    (P @ x).sum().backward()
    torch.testing.assert_close(x.grad, hesse.dense(P).sum(0))
