"""The algebra of `KroneckerFactored` against dense matrices: boxes, groups, diagonal factors, parameters without a block."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import hesse
from hesse.check import assert_operator
from hesse.core.errors import HesseError, StructureError, SymmetryError
from hesse.core.space import Space
from hesse.curvature import KroneckerFactored
from hesse.curvature.kronecker import Place
from hesse.curvature.kronecker_blocks import FactorBlock
from tests.parameters import oracle

SHAPES = {"w": (3, 4), "grouped": (4, 2, 3), "table": (5, 2), "split": (6, 2), "bias": (4,), "scale": (3,), "unused": (2, 2)}

DIM = sum(math.prod(shape) for shape in SHAPES.values())


def _spd(groups: int, size: int, seed: int, rank: int | None = None) -> Tensor:
    root = torch.randn(groups, size, rank or size + 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.mT / size


def _made(dtype: torch.dtype = torch.float64, rank: int | None = None) -> tuple[KroneckerFactored, Tensor]:
    """The operator and its matrix, written out block by block."""
    diagonal = torch.rand(1, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64) + 0.1
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    blocks: list[tuple[str, Any, FactorBlock]] = [
        ("w", None, FactorBlock(_spd(1, 3, 0, rank), _spd(1, 4, 1), "kronecker")),
        ("grouped", None, FactorBlock(_spd(2, 2, 2), _spd(2, 6, 3), "kronecker")),
        ("table", None, FactorBlock(diagonal, _spd(1, 2, 4), "kronecker")),
        ("split", ((0, 2), (0, 2)), FactorBlock(_spd(1, 2, 5), _spd(1, 2, 6), "kronecker")),
        ("split", ((3, 6), (0, 2)), FactorBlock(_spd(1, 3, 7), _spd(1, 2, 8), "kronecker")),
        ("bias", None, FactorBlock(one, _spd(1, 4, 10), "exact")),
        ("scale", None, FactorBlock(diagonal[:, :3], one[0], "diagonal")),
    ]
    dense = torch.zeros(DIM, DIM, dtype=torch.float64)
    starts = dict(zip(SHAPES, [0, *torch.tensor([math.prod(s) for s in SHAPES.values()]).cumsum(0).tolist()], strict=False))
    places = []
    for name, box, block in blocks:
        grid = torch.arange(math.prod(SHAPES[name])).reshape(SHAPES[name]) + starts[name]
        columns = (grid if box is None else grid[tuple(slice(*pair) for pair in box)]).flatten()
        sides = [torch.diag_embed(s) if s.ndim == 2 else s for s in (block.left, block.right)]
        pairs = zip(*sides, strict=True)
        dense[columns.unsqueeze(1), columns] = torch.block_diag(*(torch.kron(a.contiguous(), b.contiguous()) for a, b in pairs))
        places.append(Place(name, box, FactorBlock(block.left.to(dtype), block.right.to(dtype), block.kind)))
    space = Space.of({name: torch.zeros(shape, dtype=dtype) for name, shape in SHAPES.items()})
    return KroneckerFactored(space, tuple(places), 2.5), dense


EYE = torch.eye(DIM, dtype=torch.float64)


def _function(matrix: Tensor, f: Any) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ f(values.clamp(min=0)).diag() @ vectors.mT


def _vectors(count: int) -> Tensor:
    return torch.randn(DIM, count, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_products_diagonal_trace_and_dense() -> None:
    K, dense = _made()
    assert oracle.difference(hesse.dense(K), dense) < 1e-12
    assert oracle.difference(K.flat @ _vectors(3), dense @ _vectors(3)) < 1e-12
    assert oracle.difference(K.flat @ _vectors(1)[:, 0], (dense @ _vectors(1))[:, 0]) < 1e-12
    assert oracle.difference(hesse.diagonal(K), dense.diagonal()) < 1e-12
    assert abs(float(hesse.trace(K)) - float(dense.trace())) < 1e-12 * float(dense.trace())
    values = torch.cat(list(K.eigenvalues())).sort().values
    assert oracle.difference(values, torch.linalg.eigvalsh(dense).clamp(min=0)) < 1e-12
    assert K.T is K or oracle.difference(hesse.dense(K.T), dense) < 1e-12
    assert K.logdet() == -math.inf and K.det() == 0 and K.mass == 2.5
    assert dict(K.kinds) == {"w": "kronecker", "grouped": "kronecker", "table": "kronecker", "split": "kronecker",
                             "bias": "exact", "scale": "diagonal", "unused": "unused"}  # fmt: skip
    assert_operator(K)


def test_a_block_of_vectors_is_not_changed() -> None:
    K, _ = _made()
    V = K.in_space.unravel(_vectors(2).mT)
    before = {name: part.clone() for name, part in V.items()}
    K.mm(V), K.damped(1.0).mm(V)
    assert all(torch.equal(V[name], before[name]) for name in V)


def test_exact_damping_and_functions() -> None:
    K, dense = _made()
    D, expected = K.damped(0.2), dense + 0.2 * EYE
    assert oracle.difference(hesse.dense(D), expected) < 1e-12
    assert oracle.difference(hesse.dense(K.damped(0.1).damped(0.1)), expected) < 1e-12
    assert oracle.difference(hesse.dense(D.inverse()), torch.linalg.inv(expected)) < 1e-12
    assert oracle.difference(hesse.dense(D.sqrt()), _function(expected, torch.sqrt)) < 1e-12
    assert oracle.difference(hesse.dense(K.sqrt()) @ hesse.dense(K.sqrt()), dense) < 1e-12
    for exponent in (-0.5, 0.25, 3, -2, 1):
        found = hesse.dense(D.power(exponent))
        assert oracle.difference(found, _function(expected, lambda x, e=exponent: x**e)) < 1e-11
    assert oracle.difference(hesse.dense(K.power(0)), EYE) < 1e-12
    assert oracle.difference(hesse.dense(K.power(2)), dense @ dense) < 1e-12
    assert abs(D.logdet() - float(torch.linalg.slogdet(expected)[1])) < 1e-10
    assert abs(D.det() - float(torch.linalg.det(expected))) < 1e-10 * D.det()
    assert oracle.difference(hesse.diagonal(D.inverse()), torch.linalg.inv(expected).diagonal()) < 1e-12
    assert abs(float(hesse.trace(D.inverse())) - float(torch.linalg.inv(expected).trace())) < 1e-10
    assert oracle.difference(hesse.dense(D.inverse().inverse()), expected) < 1e-11
    for operator in (D, D.inverse(), K.sqrt()):
        assert operator.mass == 2.5 and dict(operator.kinds) == dict(K.kinds)
        assert_operator(operator)


def test_determinants_that_overflow() -> None:
    K, dense = _made()
    huge = K.damped(1e9)
    assert math.isfinite(huge.logdet())
    assert abs(huge.logdet() - float(torch.linalg.slogdet(dense + 1e9 * EYE)[1])) < 1e-8 * huge.logdet()
    assert huge.det() == math.inf
    assert 0.0 <= K.damped(1e-30).det() < 1e-30


def test_heuristic_damping() -> None:
    K, _ = _made()
    found, c = hesse.dense(K.damped(0.2, "heuristic")), 0.2
    start = 0
    parts = []
    sides = {place.name: (place.block.left, place.block.right) for place in K.places}
    for name in ("w", "grouped"):
        left, right = sides[name]
        for A, B in zip(left, right, strict=True):
            pi = ((A.trace() / len(A)) / (B.trace() / len(B))) ** 0.5
            first, second = (
                A + pi * c**0.5 * torch.eye(len(A), dtype=A.dtype),
                B + c**0.5 / pi * torch.eye(len(B), dtype=B.dtype),
            )
            parts.append(torch.kron(first, second))
    expected = torch.block_diag(*parts)
    assert oracle.difference(found[: len(expected), : len(expected)], expected) < 1e-12
    start = len(expected) + 10 + 12
    exact = hesse.dense(K.damped(c))
    assert oracle.difference(found[start:, start:], exact[start:, start:]) < 1e-12  # no products: exactly
    unused = 24 + 12 + 10 + 4
    assert oracle.difference(found[unused : unused + 2, unused : unused + 2], c * torch.eye(2, dtype=torch.float64)) < 1e-12
    assert oracle.difference(found[-4:, -4:], c * torch.eye(4, dtype=torch.float64)) < 1e-12
    assert oracle.difference(hesse.dense(K.damped(c, "heuristic").inverse()), torch.linalg.inv(found)) < 1e-11


def test_solve() -> None:
    K, dense = _made()
    D, b = K.damped(0.2), _vectors(1)[:, 0]
    x = D.in_space.ravel(hesse.solve(D, D.in_space.unravel(b)))
    assert oracle.difference(x, torch.linalg.solve(dense + 0.2 * EYE, b)) < 1e-12
    solution = hesse.solve(D, D.in_space.unravel(b), full=True)
    assert solution.residual < 1e-12
    with pytest.raises(HesseError):
        hesse.solve(K, K.in_space.unravel(b))


def test_what_is_singular_is_refused() -> None:
    K, _ = _made()
    for ask in (K.inverse, lambda: K.power(-0.5)):
        with pytest.raises(SymmetryError, match=r"'unused'|what has no block"):
            ask()
    low, _ = _made(rank=1)
    whole = KroneckerFactored(low.in_space, low.places, 1.0, rest=1.0)
    with pytest.raises(SymmetryError, match="'w'"):
        whole.inverse()
    with pytest.raises(SymmetryError, match="add damping"):
        whole.power(-2)
    assert oracle.difference(hesse.dense(whole.damped(1e-3).inverse()) @ hesse.dense(whole.damped(1e-3)), EYE) < 1e-9


def test_float32_and_mixed_dtypes() -> None:
    K, dense = _made(torch.float32)
    expected = dense + 0.2 * EYE
    D = K.damped(0.2)
    assert hesse.dense(D).dtype == torch.float32
    assert oracle.difference(hesse.dense(D).double(), expected) < 1e-6
    assert oracle.difference(hesse.dense(D.inverse()).double(), torch.linalg.inv(expected)) < 1e-5
    assert abs(D.logdet() - float(torch.linalg.slogdet(expected)[1])) < 1e-4
    assert abs(float(hesse.trace(D)) - float(expected.trace())) < 1e-4
    narrow = Space.of({name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()})
    H = KroneckerFactored(narrow, K.places)
    product = H.flat @ torch.ones(DIM, dtype=torch.bfloat16)
    assert product.dtype == torch.bfloat16
    assert oracle.difference(product.double(), dense.sum(1)) < 1e-2
    assert oracle.difference(hesse.diagonal(H).double(), dense.diagonal()) < 1e-2


@pytest.mark.parametrize("arguments", [(-1.0,), (math.nan,), (1.0, "typo")])
def test_bad_damping(arguments: Any) -> None:
    K, _ = _made()
    with pytest.raises(StructureError, match="damped"):
        K.damped(*arguments)


def test_heuristic_damping_needs_factors() -> None:
    K, _ = _made()
    with pytest.raises(StructureError, match="Heuristic"):
        K.damped(0.1).damped(0.1, "heuristic")


def test_repr() -> None:
    text = repr(_made()[0])
    assert text.startswith(f"KroneckerFactored({DIM} x {DIM}, mass 2.5)")
    for line in ("w [3, 4]: kronecker 3 (x) 4", "grouped [4, 2, 3]: kronecker 2 x 2 (x) 6", "bias [4]: exact 4",
                 "split [6, 2]: kronecker 2 (x) 2, 3 (x) 2", "scale [3]: diagonal 3", "unused [2, 2]: unused"):  # fmt: skip
        assert line in text
