"""Sparse operators: what their products say to autograd and transforms, how they are made, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import scipy.sparse
import torch
from torch import Tensor
from torch.autograd import forward_ad

from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.operators import Sparse, Tag

from .zoo import drawing

T = drawing(torch.float64)
PLACES = torch.tensor([(0, 1), (0, 4), (2, 0), (2, 1), (2, 5)]).T


def matrix_of(values: Tensor, places: Tensor = PLACES, shape: tuple[int, int] = (4, 6)) -> Tensor:
    return torch.zeros(shape, dtype=values.dtype).index_put(tuple(places), values, accumulate=True)


@pytest.fixture(autouse=True, params=["large", "small"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operator counts as a large one, whose products are SciPy's where these may be, or as a small one."""
    monkeypatch.setattr("hesse.operators.sparse._FEW", 0 if request.param == "large" else 2000)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_products_are_differentiated_by_vectors_and_values(dtype: torch.dtype) -> None:
    t = drawing(dtype)
    values, v, u = t(5).requires_grad_(), t(2, 6).requires_grad_(), t(2, 4)
    found = torch.autograd.grad(Sparse(PLACES, values, 6, 4) @ v, (values, v), u)
    expected = torch.autograd.grad(v @ matrix_of(values).mT, (values, v), u)
    for a, b in zip(found, expected, strict=True):
        close(a, b)
    torch.autograd.gradcheck(lambda w, x: Sparse(PLACES.flip(0), w, 4, 6) @ x, (values, t(4).requires_grad_()))


def test_forward_mode_reaches_vectors_and_values() -> None:
    values, dvalues, v, dv = T(5), T(5), T(6), T(6)
    with forward_ad.dual_level():
        A = Sparse(PLACES, forward_ad.make_dual(values, dvalues), 6, 4)
        tangent = forward_ad.unpack_dual(A @ forward_ad.make_dual(v, dv)).tangent
        plain = forward_ad.unpack_dual(Sparse(PLACES, values, 6, 4) @ forward_ad.make_dual(v, dv)).tangent
    close(tangent, matrix_of(dvalues) @ v + matrix_of(values) @ dv)
    close(plain, matrix_of(values) @ dv)


def test_vmap_over_vectors_and_over_values() -> None:
    values, v = T(3, 5), T(3, 6)
    expected = torch.stack([matrix_of(w) @ x for w, x in zip(values, v, strict=True)])
    close(torch.func.vmap(lambda w, x: Sparse(PLACES, w, 6, 4) @ x)(values, v), expected)
    A = Sparse(PLACES, values[0], 6, 4)
    close(torch.func.vmap(lambda x: A @ x)(v), v @ matrix_of(values[0]).mT)
    close(torch.func.jacrev(lambda x: A @ x)(v[0]), matrix_of(values[0]))


def test_a_graph_traced_through_a_product_is_right_elsewhere() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    A, first, second = Sparse(PLACES, T(5), 6, 4), T(6), T(6)
    graph = make_fx(lambda x: A @ x)(first)
    close(graph(second), matrix_of(A.values) @ second)


def test_no_gradient_is_lost_or_kept_without_need() -> None:
    A = Sparse(PLACES, T(5).requires_grad_(), 6, 4)
    assert (A @ T(6)).requires_grad
    with torch.no_grad():
        assert not (A @ T(6)).requires_grad
    assert not (Sparse(PLACES, A.values.detach(), 6, 4) @ T(6)).requires_grad


def test_it_follows_what_is_written_into_its_values() -> None:
    values, v = T(5), T(6)
    A = Sparse(PLACES, values, 6, 4)
    A @ v
    values.mul_(2)
    close(A @ v, matrix_of(values) @ v)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_products_are_summed_in_float32(dtype: torch.dtype) -> None:
    n = 4000
    row = torch.stack([torch.zeros(n, dtype=torch.int64), torch.arange(n)])
    A = Sparse(row, torch.ones(n, dtype=dtype), n, 1)
    assert (A @ torch.ones(n, dtype=dtype)).dtype is dtype
    assert float(A @ torch.ones(n, dtype=dtype)) == 4000  # a running sum of bfloat16 stops at 256, of float16 at 2048


@pytest.mark.parametrize("flip", [False, True])
def test_the_scipy_array_shares_memory(flip: bool) -> None:
    A = Sparse(PLACES, T(5), 6, 4)
    B: Any = A.T if flip else A
    array = B.scipy_array()
    assert isinstance(array, scipy.sparse.csc_array if flip else scipy.sparse.csr_array)
    A.values.fill_(7)
    assert (torch.from_numpy(array.toarray()) == (B.flat @ torch.eye(B.shape[1], dtype=torch.float64))).all()


@pytest.mark.filterwarnings("ignore:Sparse")
def test_made_from_matrices() -> None:
    M = matrix_of(T(5))
    layouts = [M.to_sparse_csr(), M.to_sparse_csc(), M.to_sparse_bsr((2, 3))]
    for given in (M, M.to_sparse(), *layouts, scipy.sparse.csr_matrix(M.numpy()), scipy.sparse.coo_array(M.numpy())):
        A = Sparse.of(given)
        assert A.shape == (4, 6)
        close(A.flat @ torch.eye(6, dtype=torch.float64), M)
    twice = torch.sparse_coo_tensor(torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, 2.0]), (2, 2))
    assert float((Sparse.of(twice) @ torch.ones(2))[0]) == 3
    root = M.clone().requires_grad_()
    (Sparse.of(root.to_sparse()) @ torch.ones(6, dtype=M.dtype)).sum().backward()
    close(root.grad, (M != 0).to(M))  # pyright: ignore


def test_made_on_trees() -> None:
    space = Space.of({"b": T(2), "a": T(4)})
    A = Sparse.of(matrix_of(T(5)), in_space=space, tags=frozenset())
    assert A.in_space is space
    assert A.out_space.shapes == (torch.Size([4]),)


def test_large_products() -> None:
    t = torch.randint(50, (2, 3000), generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float64, torch.complex128):
        draw = drawing(dtype)
        values, V, u = draw(3000), draw(4, 50), draw(70)
        A, M = Sparse(t, values, 50, 70), torch.zeros(70, 50, dtype=dtype).index_put(tuple(t), values, accumulate=True)
        torch.testing.assert_close(A @ V, V @ M.mT, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(A @ V[0], M @ V[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(A.T @ u, M.mT @ u, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(A.H @ u, M.mH @ u, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(A @ V[0].real, M @ V[0].real.to(dtype), rtol=1e-12, atol=1e-12)


def test_repr() -> None:
    assert repr(Sparse(PLACES, T(5), 6, 4)) == "Sparse(4 x 6, 5 entries)"
    assert repr(Sparse(PLACES, T(5), 6, 6, frozenset({Tag.SYMMETRIC}))) == "Sparse(6 x 6, 5 entries, symmetric)"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Sparse(PLACES, T(4), 6, 4), r"shapes \(2, 5\) and \(4,\)"),
        (lambda: Sparse(PLACES, T(5), 5, 4), "columns from 0 to 5, of 5"),
        (lambda: Sparse(PLACES - 1, T(5), 6, 4), "rows from -1 to 1, of 4"),
        (lambda: Sparse(PLACES.double(), T(5), 6, 4), "torch.float64"),
        (lambda: Sparse.of(T(3)), r"shape \(3,\)"),
        (lambda: Sparse.of([[1.0]]), "list"),
        (lambda: Sparse.of(T(3, 2).to_sparse(1)), r"shape \(3, 2\)"),
        (lambda: Sparse.of(T(3, 2), in_space=Space.of(T(3))), r"\(3, 2\) for \(3, 3\)"),
    ],
)
def test_bad_input(make: Any, text: str) -> None:
    with pytest.raises(StructureError, match=text):
        make()


def test_indices_are_its_own() -> None:
    places, values = PLACES.clone(), T(5)
    A = Sparse(places, values, 6, 4)
    v = T(6)
    expected = matrix_of(values) @ v
    places.zero_()
    close(A @ v, expected)
    A.T.indices.zero_()  # pyright: ignore[reportAttributeAccessIssue]
    close(A @ v, expected)
