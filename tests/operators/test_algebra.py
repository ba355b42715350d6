"""The algebra's errors, tags, masses and printed forms; its values are in test_all_operators.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.linalg import eigsh, logdet, solve
from hesse.linalg.dense import dense
from hesse.operators import (
    BlockDiagonal,
    Composed,
    Congruence,
    Conjugate,
    Dense,
    Diagonal,
    Function,
    Identity,
    LinearOperator,
    LowRank,
    Scaled,
    Sum,
    Tag,
    identity,
)

from .zoo import drawing

T = drawing(torch.float64)
WIDE, OTHER = Dense(T(3, 5)), Dense(T(3, 5))
SQUARE = Dense(T(3, 3))
REAL_PSD = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD})
PSD = Dense(torch.eye(3, dtype=torch.float64), tags=REAL_PSD)
COMPLEX = Dense(T(3, 3) * (1 + 1j))


class TestErrors:
    """Spaces that do not fit, and factors that leave the space."""

    def test_sum_between_different_spaces(self) -> None:
        with pytest.raises(StructureError, match=r"(?s)only between the same spaces.*dim=5.*dim=3"):
            WIDE + SQUARE
        with pytest.raises(StructureError):
            WIDE + WIDE.T
        named = Dense(WIDE.matrix, Space.of({"a": T(5)}))
        with pytest.raises(StructureError, match="'a'"):
            WIDE - named

    def test_composition_through_different_spaces(self) -> None:
        with pytest.raises(StructureError, match=r"(?s)A @ B needs.*dim=5.*dim=3"):
            WIDE @ SQUARE

    @pytest.mark.parametrize("middle", [Dense(T(5, 5)), Dense(T(5, 3)), Dense(T(3, 5))])
    def test_congruence_with_a_middle_of_another_space(self, middle: LinearOperator) -> None:
        with pytest.raises(StructureError, match=r"J\.H @ H @ J needs H"):
            Congruence(WIDE, middle)

    def test_complex_factor_on_a_real_operator(self) -> None:
        with pytest.raises(StructureError, match="between real spaces leaves its space"):
            1j * WIDE
        with pytest.raises(StructureError):
            WIDE * torch.tensor(1 + 1j)

    def test_empty_sum(self) -> None:
        with pytest.raises(StructureError, match="at least one"):
            Sum()

    def test_complex_factor_without_an_imaginary_part_keeps_the_space_real(self) -> None:
        for factor in (2 + 0j, torch.tensor(2 + 0j)):
            result = (factor * WIDE) @ torch.ones(5, dtype=torch.float64)
            assert result.dtype == torch.float64
            torch.testing.assert_close(result, 2 * WIDE.matrix.sum(1))


class TestTags:
    """What is known of a combination: no more than holds."""

    @pytest.mark.parametrize(
        ("operator", "expected"),
        [
            (PSD + PSD, REAL_PSD),
            (PSD + Dense(T(3, 3)), frozenset()),
            (PSD - PSD, REAL_PSD - {Tag.PSD}),
            (2 * PSD, REAL_PSD),
            (-2 * PSD, REAL_PSD - {Tag.PSD}),
            (torch.tensor(-2.0) * PSD, REAL_PSD - {Tag.PSD}),
            (-1 * (-PSD), REAL_PSD),
            (PSD @ PSD, frozenset()),
            (Diagonal(T(3)) @ Diagonal(T(3)), frozenset({Tag.DIAGONAL, Tag.SYMMETRIC})),
            (Diagonal(T(3)) @ PSD, frozenset()),
            (Congruence(WIDE), REAL_PSD),
            (Congruence(WIDE, PSD), REAL_PSD),
            (Congruence(WIDE, SQUARE), frozenset()),
            (Congruence(WIDE, Diagonal(T(3))), REAL_PSD - {Tag.PSD}),
            (Congruence(COMPLEX), frozenset({Tag.HERMITIAN, Tag.PSD})),
            (Congruence(COMPLEX, Dense(COMPLEX.matrix, tags=frozenset({Tag.SYMMETRIC}))), frozenset()),
            (Conjugate(PSD), REAL_PSD),
            ((1j) * Dense(COMPLEX.matrix, tags=REAL_PSD), frozenset({Tag.SYMMETRIC})),
            ((2 + 0j) * Dense(COMPLEX.matrix, tags=REAL_PSD), REAL_PSD),
            ((-2 + 0j) * Dense(COMPLEX.matrix, tags=REAL_PSD), REAL_PSD - {Tag.PSD}),
        ],
    )
    def test_of_combinations(self, operator: LinearOperator, expected: frozenset[Tag]) -> None:
        assert operator.tags == expected


def _lifted(matrix: Tensor) -> LinearOperator:
    """An operator whose transposes are new objects that hold functions."""
    space_in, space_out = Space.of(T(matrix.shape[1])), Space.of(T(matrix.shape[0]))
    return Function(space_in, space_out, lambda v: matrix @ v, lambda w: matrix.mT @ w)


class TestGrams:
    """``A.H @ A`` of one and the same A is known to be positive semi-definite; nothing that merely looks like it is."""

    TALL, COMPLEX_WIDE = Dense(T(5, 3)), Dense(torch.complex(T(3, 5), T(3, 5)))

    @pytest.mark.parametrize(
        "A",
        [
            WIDE,
            WIDE.T,
            2 * WIDE,
            WIDE - 3 * OTHER,
            SQUARE @ WIDE,
            Conjugate(WIDE),
            LowRank(T(3, 2), T(2), T(5, 2)),
            BlockDiagonal({"a": WIDE, "b": SQUARE}),
            _lifted(T(4, 3)),
        ],
        ids=lambda A: type(A).__name__,
    )
    def test_of_real_operators(self, A: LinearOperator) -> None:
        M = dense(A)
        for gram, matrix in ((A.T @ A, M.mT @ M), (A.H @ A, M.mT @ M), (A @ A.T, M @ M.mT), (A @ A.H, M @ M.mT)):
            assert gram.tags == REAL_PSD
            torch.testing.assert_close(dense(gram), matrix)

    def test_of_complex_operators(self) -> None:
        for A in (self.COMPLEX_WIDE, COMPLEX, (1 + 2j) * self.COMPLEX_WIDE, self.COMPLEX_WIDE.T, self.COMPLEX_WIDE.H):
            M = dense(A)
            for gram, matrix in ((A.H @ A, M.mH @ M), (A @ A.H, M @ M.mH)):
                assert gram.tags == {Tag.HERMITIAN, Tag.PSD}
                torch.testing.assert_close(dense(gram), matrix)
            for other, matrix in ((A.T @ A, M.mT @ M), (A @ A.T, M @ M.mT)):
                assert not other.tags
                torch.testing.assert_close(dense(other), matrix)

    @pytest.mark.parametrize(
        "product",
        [
            WIDE.T @ OTHER,
            (2 * WIDE).T @ WIDE,
            (WIDE + OTHER).T @ (OTHER + WIDE + WIDE),
            Dense(WIDE.matrix.mT.clone()) @ WIDE,
            SQUARE @ SQUARE,
            SQUARE.T @ SQUARE.T,
            Dense(WIDE.matrix[:, :3].mT) @ Dense(WIDE.matrix[:, 1:4]),
            Dense(WIDE.matrix[:, :3]) @ Dense(WIDE.matrix[:, :3]),
        ],
    )
    def test_others_are_not(self, product: LinearOperator) -> None:
        assert not product.tags

    def test_questions_that_need_it(self) -> None:
        A = self.TALL
        gram = A.T @ A
        values = torch.linalg.svdvals(A.matrix) ** 2
        torch.testing.assert_close(eigsh(gram, 2).values, values[:2])
        torch.testing.assert_close(float(logdet(gram)), float(values.log().sum()))
        b = T(3)
        torch.testing.assert_close(solve(gram, b, method="cg"), torch.linalg.solve(A.matrix.mT @ A.matrix, b))


class TestShape:
    """How combinations are built: nested sums and factors are laid flat, the identity disappears."""

    def test_sums_are_laid_flat(self) -> None:
        total = (WIDE + OTHER) + (WIDE - OTHER)
        assert isinstance(total, Sum)
        assert len(total.terms) == 4

    def test_factors_are_multiplied(self) -> None:
        scaled = 2 * (WIDE * 3)
        assert isinstance(scaled, Scaled)
        assert scaled.factor == 6
        assert scaled.operator is WIDE

    def test_identity_disappears(self) -> None:
        assert identity(WIDE.out_space) @ WIDE is WIDE
        assert WIDE @ Identity(WIDE.in_space) is WIDE
        assert isinstance(SQUARE @ WIDE, Composed)

    def test_identity_of_another_space_is_refused(self) -> None:
        with pytest.raises(StructureError):
            Identity(WIDE.in_space) @ WIDE


class WithMass(Dense):
    mass = 4.0


class TestMass:
    """The normalizer of the loss behind an operator survives what does not change the loss."""

    A = WithMass(PSD.matrix, tags=REAL_PSD)
    B = WithMass(T(3, 3))

    @pytest.mark.parametrize(
        "operator",
        [
            2 * B,
            B + Identity(B.in_space),
            B + B,
            Conjugate(B),
            Congruence(WIDE, A),
            2 * B + 0.1 * Identity(B.in_space),
        ],
    )
    def test_kept(self, operator: LinearOperator) -> None:
        assert operator.mass == 4.0

    def test_none_by_default_or_where_terms_disagree(self) -> None:
        other = WithMass(T(3, 3))
        other.mass = 5.0
        assert SQUARE.mass == 1.0
        assert (self.B + other).mass == 1.0


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        (WIDE + OTHER, "Dense(3 x 5) + Dense(3 x 5)"),
        (2 * WIDE, "2 * Dense(3 x 5)"),
        (-0.12345678 * WIDE, "-0.1235 * Dense(3 x 5)"),
        (torch.tensor(1.5) * WIDE, "1.5 * Dense(3 x 5)"),
        (SQUARE @ WIDE, "(Dense(3 x 3) @ Dense(3 x 5))"),
        (2 * (WIDE + OTHER), "2 * (Dense(3 x 5) + Dense(3 x 5))"),
        ((WIDE + OTHER).T @ WIDE, "((Dense(5 x 3) + Dense(5 x 3)) @ Dense(3 x 5))"),
        (WIDE - OTHER, "Dense(3 x 5) - Dense(3 x 5)"),
        ((1 + 2j) * COMPLEX, "(1+2j) * Dense(3 x 3)"),
        (Conjugate(COMPLEX), "Conjugate(Dense(3 x 3))"),
        (
            Congruence(WIDE, PSD),
            "Congruence(5 x 5 through 3, hermitian, positive semi-definite, symmetric)",
        ),
        (Congruence(WIDE, SQUARE), "Congruence(5 x 5 through 3)"),
    ],
)
def test_printed_form(operator: LinearOperator, expected: str) -> None:
    assert repr(operator) == expected
