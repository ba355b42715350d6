"""What every operator offers: products with trees, flat tensors, NumPy arrays; the errors of wrong input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hesse.core.errors import LeafError, StructureError
from hesse.core.space import Space
from hesse.operators import Dense, Diagonal, Function, Identity, LinearOperator, Tag
from hesse.operators.base import flat_space, stack

from .zoo import Layer, drawing

T = drawing(torch.float64)
M = T(2, 5)
A = Dense(M, Space.of({"b": T(2), "a": T(1, 3)}))


class OnlyTwoMethods(LinearOperator):
    """The least that a subclass writes."""

    def __init__(self) -> None:
        self.in_space, self.out_space = flat_space(5, M.dtype), flat_space(2, M.dtype)

    def mv(self, v: torch.Tensor) -> torch.Tensor:
        assert v.shape == (5,)
        return M @ v

    def transpose(self) -> LinearOperator:
        return Dense(M.mT)


def test_abstract_without_the_two_methods() -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (LinearOperator,), {"mv": lambda self, v: v})()


def test_two_methods_are_enough() -> None:
    B = OnlyTwoMethods()
    V = T(3, 4, 5)
    torch.testing.assert_close(B @ V, V @ M.mT)
    torch.testing.assert_close(B.flat @ T(5, 0), torch.zeros(2, 0, dtype=M.dtype))


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (0,), (2, 0)], ids=str)
def test_batch_axes_in_front(batch: tuple[int, ...]) -> None:
    V = {"b": T(*batch, 2), "a": T(*batch, 1, 3)}
    expected = torch.cat([V["b"], V["a"].flatten(-2)], dim=-1) @ M.mT
    torch.testing.assert_close(A @ V, expected)


def test_batch_axes_with_a_leaf_of_no_elements() -> None:
    space = Space.of({"a": torch.zeros(2), "e": torch.zeros(0)})
    V = {"a": torch.ones(4, 3, 2), "e": torch.ones(4, 3, 0)}
    result = Identity(space) @ V
    assert (result["a"].shape, result["e"].shape) == ((4, 3, 2), (4, 3, 0))


def test_vectors_of_another_container_type_are_rebuilt() -> None:
    B = Dense(T(2, 3), Space.of((torch.zeros(2), torch.zeros(1))))
    torch.testing.assert_close(B @ [torch.ones(2), torch.ones(1)], B @ (torch.ones(2), torch.ones(1)))


@pytest.mark.parametrize(
    ("vector", "error", "said"),
    [
        ({"b": T(2)}, StructureError, "no leaf at 'a'"),
        ({"b": T(2), "a": T(1, 3), "c": T(1)}, StructureError, "an unknown leaf at 'c'"),
        ({"a": T(1, 3), "b": T(2)}, StructureError, r"pass them in the order \['b', 'a'\]"),
        ({"b": T(2), "a": T(3)}, StructureError, r"\(3,\) at 'a', where \(1, 3\) belongs"),
        ({"b": T(4, 2), "a": T(5, 1, 3)}, StructureError, "at 'a'.*\n.*equal batch axes"),
        ({"b": T(2), "a": T(1, 3) * 1j}, LeafError, "complex128 at 'a'"),
        (T(5), StructureError, "an unknown leaf at the only leaf"),
    ],
)
def test_a_wrong_vector_is_refused_with_the_name_of_the_leaf(vector, error, said) -> None:
    with pytest.raises(error, match=said):
        A @ vector


@pytest.mark.parametrize("vector", [T(4), T(2, 5), T(5, 2, 2), torch.tensor(1.0), [1.0] * 5, np.ones(5)])
def test_flat_refuses_other_shapes(vector) -> None:
    with pytest.raises(StructureError, match=r"takes a tensor of shape \[5\] or \[5, k\]"):
        A.flat @ vector


def test_flat_is_callable_and_has_a_shape() -> None:
    x = T(5)
    assert A.flat.shape == (2, 5)
    torch.testing.assert_close(A.flat(x), M @ x)


def test_self_transpose_and_self_adjoint_are_the_operator_itself() -> None:
    D = Diagonal(T(3))
    assert D.T is D
    assert D.H is D
    C = Diagonal(T(3) * (1 + 1j))
    assert C.T is C
    torch.testing.assert_close(C.H @ torch.ones(3).to(torch.complex128), C.entries.conj())


@pytest.mark.parametrize("number", [2, 0.5, np.float64(2.0), torch.tensor(3.0)])
def test_scalars_on_either_side(number) -> None:
    x = T(5)
    B = Dense(M)
    torch.testing.assert_close((number * B) @ x, float(number) * (M @ x))
    torch.testing.assert_close((B * number) @ x, float(number) * (M @ x))
    torch.testing.assert_close((B / number) @ x, (M @ x) / float(number))


@pytest.mark.parametrize("other", [1.5, T(2), "text", None])
def test_what_is_no_operator_cannot_be_added(other) -> None:
    for operation in (lambda: A + other, lambda: A - other, lambda: other + A):
        with pytest.raises(TypeError):
            operation()


@pytest.mark.parametrize("factor", [T(2), T(1, 1), "text", None])
def test_what_is_no_number_cannot_scale(factor) -> None:
    with pytest.raises(TypeError):
        A * factor


class TestSciPy:
    """`to_scipy` takes what SciPy's solvers pass to it."""

    S = Dense(M).to_scipy()

    def test_dtype_and_shape(self) -> None:
        assert self.S.shape == (2, 5)
        assert self.S.dtype == np.float64
        assert Dense(M.to(torch.complex64)).to_scipy().dtype == np.complex64

    @pytest.mark.parametrize(
        "array",
        [np.arange(5.0)[::-1], np.arange(10.0)[::2], np.arange(5), np.asfortranarray(np.eye(5)[:, :3])],
    )
    def test_any_layout(self, array: np.ndarray) -> None:
        np.testing.assert_allclose(self.S @ array, M.numpy() @ array, rtol=1e-14)

    def test_read_only_arrays_without_a_warning(self, recwarn: pytest.WarningsRecorder) -> None:
        array = np.broadcast_to(np.float64(2), (5,))
        np.testing.assert_allclose(self.S.matvec(array), M.numpy() @ array, rtol=1e-14)
        assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]

    def test_complex_vectors_through_a_real_operator(self) -> None:
        array = np.arange(5.0) + 1j * np.arange(5.0)[::-1]
        np.testing.assert_allclose(self.S.matvec(array), M.numpy() @ array, rtol=1e-14)

    def test_solver(self) -> None:
        from scipy.sparse.linalg import lsqr

        b = np.array([1.0, -2.0])
        solution = lsqr(self.S, b, atol=1e-14, btol=1e-14)[0]
        np.testing.assert_allclose(solution, np.linalg.pinv(M.numpy()) @ b, rtol=1e-10)


def test_repr_is_short_and_names_the_tags() -> None:
    assert repr(OnlyTwoMethods()) == "OnlyTwoMethods(2 x 5)"
    assert repr(A.flat) == "Dense(2 x 5).flat"
    assert repr(Diagonal(T(3), frozenset({Tag.PSD}))) == (
        "Diagonal(3 x 3, diagonal, hermitian, positive semi-definite, symmetric)"
    )
    assert repr(Function(A.in_space, A.out_space, lambda v: v, lambda v: v)) == "Function(2 x 5)"


def test_stack() -> None:
    first, second = Layer(T(2), [T()]), Layer(T(2), [T()])
    result = stack([first, second])
    assert isinstance(result, Layer)
    torch.testing.assert_close(result.weight, torch.stack([first.weight, second.weight]))
    torch.testing.assert_close(result.bias[0], torch.stack([first.bias[0], second.bias[0]]))


def test_flat_space() -> None:
    space = flat_space(4, torch.float32)
    assert (space.dim, space.dtype, space.names) == (4, torch.float32, ("",))
