"""Restrictions and blocks along the diagonal, against submatrices cut out by index."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hesse.linalg.restriction_rules
from hesse.check import assert_operator
from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.linalg import dense, diagonal, norm, solve, trace
from hesse.linalg.diagonal_rules import diagonal_rule
from hesse.linalg.eigenvalues import eigenvalues_rule, floor_rule
from hesse.linalg.logdet_rules import logdet_rule
from hesse.linalg.norm_rules import norm_rule
from hesse.linalg.solve_rules import solve_rule
from hesse.linalg.trace_rules import trace_rule
from hesse.operators import BlockDiagonal, Congruence, Dense, Diagonal, LinearOperator, Tag, identity
from hesse.operators.restriction import DiagonalBlocks, Restriction, block_diagonal, restrict

from .zoo import drawing, flat

assert hesse.linalg.restriction_rules
T = drawing(torch.float64)
PSD = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD})
SPACE = Space.of({"b.w": T(2, 3), "b.v": T(2), "a": T(), "c.w": T(4)})  # 6, 2, 1, 4 elements
AT = {"b.w": range(6), "b.v": range(6, 8), "a": range(8, 9), "c.w": range(9, 13)}
ROOT = T(9, 13)
GRAM = ROOT.mT @ ROOT + torch.eye(13, dtype=torch.float64)
PLAIN = T(13, 13)


def at(*names: str) -> list[int]:
    return [k for name in names for k in AT[name]]


def within(groups: list[list[str]], M: Tensor) -> Tensor:
    """The matrix with zeros wherever row and column lie in different groups."""
    result = torch.zeros_like(M)
    for group in groups:
        for row in at(*group):
            for column in at(*group):
                result[row, column] = M[row, column]
    return result


def columns(A: LinearOperator) -> Tensor:
    """The matrix by products with unit vectors, one at a time."""
    n = A.in_space.dim
    return torch.stack([flat(A @ A.in_space.unravel(row)) for row in torch.eye(n, dtype=torch.float64)], 1)


@pytest.mark.parametrize("names", [["a"], ["c.w", "b.w"], ["b.v", "a", "c.w"], list(AT)])
def test_the_restriction_is_the_submatrix(names: list[str]) -> None:
    ordered = [name for name in AT if name in names]
    rows = torch.tensor(at(*ordered))
    A = restrict(Dense(PLAIN, SPACE, SPACE), names)
    torch.testing.assert_close(columns(A), PLAIN[rows][:, rows])
    assert A.in_space.names == A.out_space.names == tuple(ordered)
    assert A.tags == frozenset()
    assert_operator(A)
    S = restrict(Dense(GRAM, SPACE, SPACE, PSD), lambda name: name in names)
    torch.testing.assert_close(columns(S), GRAM[rows][:, rows])
    assert S.tags == PSD
    assert_operator(S)


def test_rectangular_parts() -> None:
    J = Dense(T(5, 13), SPACE, Space.of((T(2), T(3))))
    A = restrict(J, ["b.v", "c.w"])
    torch.testing.assert_close(columns(A), J.matrix[:, at("b.v", "c.w")])
    assert A.out_space.names == ("0", "1")
    B = restrict(J, ["c.w"], out=["1"])
    torch.testing.assert_close(columns(B), J.matrix[2:, at("c.w")])
    torch.testing.assert_close(columns(B.T), J.matrix[2:, at("c.w")].mT)
    for operator in (A, B, B.T, restrict(Dense(GRAM, SPACE, SPACE, PSD), ["a"], out=["b.w"])):
        assert operator.tags == frozenset()
        assert_operator(operator)


def test_a_restriction_of_a_restriction_is_one() -> None:
    A = restrict(restrict(Dense(PLAIN, SPACE, SPACE), ["b.w", "a", "c.w"], out=["b.v", "a"]), ["a", "c.w"])
    torch.testing.assert_close(columns(A), PLAIN[at("b.v", "a")][:, at("a", "c.w")])
    assert isinstance(A, Restriction) and isinstance(A.operator, Dense)


def test_a_block_of_vectors_is_one_product() -> None:
    class Once(Dense):
        def mv(self, v: Any) -> Any:
            raise AssertionError("one by one")

    A = restrict(Once(PLAIN, SPACE, SPACE), ["a", "b.v"])
    rows = torch.tensor(at("b.v", "a"))
    V = T(3, 5)
    torch.testing.assert_close(A.flat @ V, PLAIN[rows][:, rows] @ V)


def test_mass_and_printed_form() -> None:
    whole = Dense(PLAIN, SPACE, SPACE)
    whole.mass = 3.0
    A = restrict(whole, ["a"])
    assert A.mass == 3.0 == block_diagonal(whole).mass
    assert repr(A) == "Restriction(1 x 1 of Dense(13 x 13))"
    assert repr(block_diagonal(whole, "layer")).splitlines() == [
        "DiagonalBlocks(13 x 13 of Dense(13 x 13))",
        "  b: [8, 8]",
        "  : [1, 1]",
        "  c: [4, 4]",
    ]


@pytest.mark.parametrize("names", [["d"], [], lambda name: False])
def test_unknown_and_no_leaves_are_refused(names: Any) -> None:
    with pytest.raises(StructureError, match="paths of leaves"):
        restrict(Dense(PLAIN, SPACE, SPACE), names)


GROUPINGS: dict[str, tuple[Any, list[list[str]]]] = {
    "parameter": ("parameter", [["b.w"], ["b.v"], ["a"], ["c.w"]]),
    "layer": ("layer", [["b.w", "b.v"], ["a"], ["c.w"]]),
    "one": (lambda name: "all", [list(AT)]),
    "by last letter": (lambda name: name[-1], [["b.w", "c.w"], ["b.v"], ["a"]]),
    "dict": ({"x": ["a", "b.w"], "none": [], "y": ["c.w", "b.v"]}, [["b.w", "a"], ["b.v", "c.w"]]),
    "dict of neighbors": ({"x": ["b.w", "b.v"], "y": ["a", "c.w"]}, [["b.w", "b.v"], ["a", "c.w"]]),
}


@pytest.mark.parametrize("name", GROUPINGS)
def test_block_diagonals_are_zero_between_groups(name: str) -> None:
    by, groups = GROUPINGS[name]
    for M, tags in ((PLAIN, frozenset[Tag]()), (GRAM, PSD)):
        A = block_diagonal(Dense(M, SPACE, SPACE, tags), by)
        expected = within(groups, M)
        torch.testing.assert_close(columns(A), expected)
        torch.testing.assert_close(columns(A.T), expected.mT)
        assert A.tags == tags
        assert A.in_space == A.out_space == SPACE
        assert_operator(A)


@pytest.mark.parametrize("name", GROUPINGS)
def test_questions_about_block_diagonals(name: str) -> None:
    by, groups = GROUPINGS[name]
    A, M = block_diagonal(Dense(GRAM, SPACE, SPACE, PSD), by), within(groups, GRAM)
    b, eye = T(13), torch.eye(13, dtype=torch.float64)
    torch.testing.assert_close(dense(A), M)
    torch.testing.assert_close(diagonal(A), GRAM.diagonal())
    torch.testing.assert_close(torch.tensor(float(trace(A).value)), torch.tensor(float(GRAM.trace())))
    torch.testing.assert_close(flat(solve(A, SPACE.unravel(b))), torch.linalg.solve(M, b))
    damped = A + 0.3 * identity(SPACE)
    torch.testing.assert_close(flat(solve(damped, SPACE.unravel(b))), torch.linalg.solve(M + 0.3 * eye, b))
    torch.testing.assert_close(float(norm(A)), float(M.norm()))


class Passing(Dense):
    """A matrix that has a diagonal rule, which counts how often it is asked."""

    asked = 0


@diagonal_rule.register(Passing)
def _passing(A: Passing) -> Tensor:
    A.asked += 1
    return A.matrix.diagonal()


def test_a_known_diagonal_is_asked_for_once_for_all_blocks() -> None:
    for by in ("parameter", {"x": ["a", "b.w"], "y": ["c.w", "b.v"]}):
        whole = Passing(PLAIN, SPACE, SPACE)
        A = block_diagonal(whole, by)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(diagonal(A), PLAIN.diagonal())
        assert whole.asked == 1
        torch.testing.assert_close(complex(trace_rule(A) or 0), complex(PLAIN.trace()))
        assert whole.asked == 2
    torch.testing.assert_close(diagonal(restrict(whole, ["b.v", "a"])), PLAIN.diagonal()[at("b.v", "a")])
    torch.testing.assert_close(complex(trace_rule(restrict(whole, ["a"])) or 0), complex(PLAIN[8, 8]))
    assert whole.asked == 4
    assert diagonal_rule(restrict(whole, ["b.v"], out=["b.v", "a"])) is None


ORDER = ["c.w", "a", "b.w", "b.v"]


def rearranged(whole: LinearOperator) -> Restriction:
    space = Space.of({name: SPACE.unravel(torch.zeros(13, dtype=torch.float64))[name] for name in ORDER})
    return Restriction(whole, space)


def test_all_leaves_in_another_order() -> None:
    k = torch.tensor(at(*ORDER))
    M = GRAM[k][:, k]
    A = rearranged(Dense(GRAM, SPACE, SPACE, PSD))
    assert A.rearranges and not restrict(A, ["a"]).rearranges  # pyright: ignore[reportAttributeAccessIssue]
    assert_operator(A)
    B = T(2, 13)
    found = solve_rule(A, B, lambda part, rows: solve_rule(part, rows, None))  # pyright: ignore
    torch.testing.assert_close(found.value, torch.linalg.solve(M, B.mT).mT)  # pyright: ignore
    torch.testing.assert_close(logdet_rule(A), float(torch.logdet(M)))
    torch.testing.assert_close(norm_rule(A, 2), float(torch.linalg.matrix_norm(M, 2)))
    torch.testing.assert_close(eigenvalues_rule(A).values.sort().values, torch.linalg.eigvalsh(M))  # pyright: ignore
    torch.testing.assert_close(trace_rule(A), complex(M.trace()))
    torch.testing.assert_close(diagonal(A), M.diagonal())


def test_a_part_answers_only_what_the_whole_tells_of_it() -> None:
    A = restrict(Dense(GRAM, SPACE, SPACE, PSD), ["b.v", "a"])
    none = [solve_rule(A, T(2, 3), None), logdet_rule(A), norm_rule(A, 2), eigenvalues_rule(A)]  # pyright: ignore
    assert none == [None] * 4
    assert floor_rule(A) == 0.0
    d = T(13).abs() + 1
    assert floor_rule(restrict(Diagonal(SPACE.unravel(d)), ["a"])) == float(d.min())
    J = Dense(T(5, 13), SPACE)
    part = Congruence(restrict(J, ["a", "b.v"]))
    torch.testing.assert_close(diagonal_rule(part), J.matrix[:, at("b.v", "a")].square().sum(0))
    several = Dense(J.matrix, SPACE, Space.of((T(2), T(3))))
    assert diagonal_rule(Congruence(restrict(several, ["a"], out=["0"]))) is None
    torch.testing.assert_close(diagonal(Congruence(restrict(several, ["a"], out=["0"]))), J.matrix[:2, 8].square().sum(0, True))


def test_nested_trees_keep_their_nesting() -> None:
    example = {"z": (T(2), T(1, 2)), "a": T(3)}
    space = Space.of(example)
    M = T(7, 7)
    for by, blocks in (("layer", [range(4), range(4, 7)]), ({"x": ["z.0", "a"], "y": ["z.1"]}, [[0, 1, 4, 5, 6], [2, 3]])):
        A = block_diagonal(Dense(M, space, space), by)  # pyright: ignore[reportArgumentType]
        expected = torch.zeros_like(M)
        for block in blocks:
            for i in block:
                for j in block:
                    expected[i, j] = M[i, j]
        result, turned = A @ example, A.T @ example
        assert isinstance(result["z"], tuple) and isinstance(turned["z"], tuple)
        torch.testing.assert_close(flat(result), expected @ flat(example))
        torch.testing.assert_close(flat(turned), expected.mT @ flat(example))


@pytest.mark.parametrize(
    "by",
    ["row", {"x": ["a"]}, {"x": ["b.w", "b.v"], "y": ["a", "c.w", "b.v"]}, {"x": [*AT, "d"]}],
    ids=["unknown", "missing", "twice", "foreign"],
)
def test_bad_groupings_are_refused(by: Any) -> None:
    with pytest.raises(StructureError, match=r"exactly one group|by='parameter'"):
        block_diagonal(Dense(PLAIN, SPACE, SPACE), by)


def test_block_diagonals_are_square() -> None:
    with pytest.raises(StructureError, match="from a space to itself"):
        block_diagonal(Dense(T(5, 13), SPACE))


def test_the_blocks_are_operators() -> None:
    A = block_diagonal(Dense(PLAIN, SPACE, SPACE))
    assert isinstance(A, DiagonalBlocks) and isinstance(A, BlockDiagonal)
    torch.testing.assert_close(columns(A.blocks["b"]), PLAIN[:8, :8])
