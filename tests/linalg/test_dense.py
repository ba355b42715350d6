"""The matrix of every operator, by structure and by products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.core.errors import MemoryBudgetError
from hesse.core.space import Space
from hesse.linalg import dense, dense_rule
from hesse.operators import Composed, Congruence, Conjugate, Function, LinearOperator
from tests.operators.zoo import operators

from .counted import Counted, random_matrix, tree_space

DTYPES = {"float64": torch.float64, "float32": torch.float32, "complex128": torch.complex128}
ZOO = {(kind, name): case for kind, dtype in DTYPES.items() for name, case in operators(dtype).items()}


def hidden(A: LinearOperator) -> Function:
    """The same map, its structure out of sight of every rule."""
    return Function(A.in_space, A.out_space, A.mv, A.T.mv, A.tags)


@pytest.mark.parametrize("key", ZOO, ids=": ".join)
def test_every_operator(key: tuple[str, str]) -> None:
    A, M = ZOO[key]
    eps = torch.finfo(M.dtype).eps
    for B, N in ((A, M), (A.T, M.mT), (A.H, M.mH), (A.H @ A, M.mH @ M), (Conjugate(A), M.conj()), (3 * A, 3 * M)):
        expected = N.resolve_conj()
        torch.testing.assert_close(dense(B), expected, rtol=1e3 * eps, atol=1e3 * eps, check_dtype=False)
        assert dense(B).dtype == B.out_space.dtype
    torch.testing.assert_close(dense(hidden(A)), M, rtol=1e2 * eps, atol=1e2 * eps)


@pytest.mark.parametrize("shape", [(3, 11), (11, 3)])
def test_products_go_through_the_smaller_side(shape: tuple[int, int]) -> None:
    A = Counted(random_matrix(*shape))
    torch.testing.assert_close(dense(A), A.matrix, rtol=0, atol=0)
    assert A.blocks == [3] and not A.calls["mv"]


def test_chunks_keep_to_the_budget() -> None:
    A = Counted(random_matrix(40, 30))
    # the result (9600 bytes), and half of the rest for six copies of ten vectors in and out
    assert torch.equal(dense(A, memory=9600 + 10 * 2 * 6 * 70 * 8), A.matrix)
    assert A.blocks == [10, 10, 10]


def test_too_small_a_budget_says_the_least_that_would_do() -> None:
    A = Counted(random_matrix(40, 30))
    with pytest.raises(MemoryBudgetError, match="dense 40 x 30 matrix") as caught:
        dense(A, memory=9000)
    assert torch.equal(dense(A, memory=caught.value.least), A.matrix)


def test_no_transposed_products_between_real_and_complex() -> None:
    M = random_matrix(2, 9, dtype=torch.complex128)
    A = Counted(M, in_space=Space.of(torch.zeros(9, dtype=torch.float64)))
    assert torch.equal(dense(A), M)
    assert A.blocks == [9]


def test_rows_are_not_rounded_to_a_coarser_input_space() -> None:
    M = random_matrix(2, 9)
    A = Counted(M, in_space=Space.of(torch.zeros(9)))
    assert torch.equal(dense(A), M)


def test_composition_goes_through_the_bottleneck() -> None:
    first, second = Counted(random_matrix(20, 3)), Counted(random_matrix(3, 30, seed=1))
    torch.testing.assert_close(dense(Composed(first, second)), first.matrix @ second.matrix)
    assert first.blocks == [3] and second.blocks == [3]
    wide, narrow = Counted(random_matrix(4, 30)), Counted(random_matrix(30, 5, seed=1))
    torch.testing.assert_close(dense(Composed(wide, narrow)), wide.matrix @ narrow.matrix)
    assert sum(wide.blocks) == 4 and sum(narrow.blocks) == 4


def test_congruence_goes_through_the_smaller_side() -> None:
    outer, middle = Counted(random_matrix(3, 30)), Counted(random_matrix(3, 3, seed=1))
    expected = outer.matrix.mT @ middle.matrix @ outer.matrix
    torch.testing.assert_close(dense(Congruence(outer, middle)), expected)
    assert outer.blocks == [3] and middle.blocks == [3]
    tall = Counted(random_matrix(30, 3))
    torch.testing.assert_close(dense(Congruence(tall)), tall.matrix.mT @ tall.matrix)
    assert tall.blocks == [3, 3]


def test_trees_and_empty_spaces() -> None:
    M = random_matrix(9, 12)
    assert torch.equal(dense(Counted(M, tree_space(12), tree_space(9))), M)
    assert dense(Counted(random_matrix(4, 0))).shape == (4, 0)
    assert dense(Counted(random_matrix(0, 4))).shape == (0, 4)


def test_the_result_is_fresh() -> None:
    A, M = operators(torch.float64)["Dense wide"]
    dense(A).zero_()
    assert torch.equal(dense(A), M) and bool(M.abs().sum() > 0)


def test_derivatives_pass_through_products() -> None:
    M = random_matrix(3, 5).requires_grad_()
    weights = random_matrix(3, 5, seed=1)
    (dense(Counted(M)) * weights).sum().backward()
    torch.testing.assert_close(M.grad, weights)


def test_outside_packages_register_rules() -> None:
    class Ours(Counted):
        pass

    @dense_rule.register(Ours)
    def _ours(A: Ours, memory: object = None) -> Tensor:
        return A.matrix + 1

    A = Ours(random_matrix(3, 3))
    torch.testing.assert_close(dense(2 * A), 2 * A.matrix + 2)
