"""`linearize`: products with the derivative of any program, in both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hesse.autodiff import linearize
from hesse.core.errors import HolomorphyError, UnsupportedError

from . import one_way
from .programs import REAL, LyingSquare, ReverseOnlySquare, by_loops, differences, seeded

W = seeded(5, 3, seed=1)


def in_place(x: Tensor) -> Tensor:
    y = x.new_zeros(7)
    y[1:4] = x * 2
    y[4].add_(x[0] * x[1])
    y.mul_(x.sum())
    return y.relu_() - y[:1]


def branches(x: Tensor) -> Tensor:
    scale = x.sum().item()
    return (torch.tanh(W @ x) if x[0] > -100 else x) * (1 + 0 * scale)


def checkpointed(x: Tensor) -> Tensor:
    return checkpoint(lambda t: torch.tanh(W @ t), x, use_reentrant=False)


def gradient_inside(x: Tensor) -> Tensor:
    u = (x**3).sum() * x[0]
    return torch.autograd.grad(u, x, create_graph=True)[0].repeat(2)


PROGRAMS: dict[str, Callable[[Tensor], Tensor]] = {
    "matmul": lambda x: torch.tanh(W @ x),
    "wide": lambda x: torch.outer(x, x.exp()),
    "0-d": lambda x: (x**3).sum(),
    "in place": in_place,
    "branches": branches,
    "checkpoint": checkpointed,
    "gradient inside": gradient_inside,
    "no forward mode": lambda x: torch.sin(ReverseOnlySquare.apply(x)),
    "lying forward mode": lambda x: torch.sin(LyingSquare.apply(x)),
    "identity": lambda x: x,
    "view": lambda x: x.reshape(1, 3),
    "sort": lambda x: x.sort().values.cumsum(0),
    "custom inside vmap": lambda x: torch.func.vmap(torch.sin)(x) * x,
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("grad", [True, False])
def test_both_products(name: str, grad: bool) -> None:
    f, x = PROGRAMS[name], seeded(3)
    J = differences(f, x) if name not in ("gradient inside",) else by_loops(f, x)
    rows, expected = J.reshape(-1, 3), f(x.clone().requires_grad_()).detach()
    with torch.set_grad_enabled(grad):
        value, A = linearize(f, x)
        torch.testing.assert_close(value, expected)
        assert A.shape == (rows.shape[0], 3)
        u = seeded(*J.shape[:-1], seed=2)
        for v in (torch.zeros(3, dtype=REAL), torch.eye(3, dtype=REAL)[0], seeded(3, seed=3)):
            torch.testing.assert_close(A @ v, (rows @ v).reshape(J.shape[:-1]), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(A.T @ u, u.flatten() @ rows, rtol=1e-9, atol=1e-9)
        U, V = torch.stack([u, 2 * u]), seeded(2, 3, seed=4)
        torch.testing.assert_close(A.T @ U, torch.stack([A.T @ u, 2 * (A.T @ u)]))
        torch.testing.assert_close(A @ V, torch.stack([A @ V[0], A @ V[1]]))
        left, right = ((A @ V[0]) * u).sum(), ((A.T @ u) * V[0]).sum()
    torch.testing.assert_close(left, right)
    assert not left.requires_grad and not value.requires_grad


def test_a_first_vector_that_meets_no_lie_does_not_hide_it() -> None:
    x = seeded(4)
    for first in (torch.zeros(4, dtype=REAL), torch.eye(4, dtype=REAL)[0]):
        A = linearize(LyingSquare.apply, x).jacobian
        A @ first
        torch.testing.assert_close(A @ torch.ones(4, dtype=REAL), 2 * x)


def test_dropout_keeps_the_mask_of_its_one_run() -> None:
    x = seeded(40)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    F.dropout(x, 0.5)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    value, A = linearize(lambda t: F.dropout(t, 0.5), x)
    mask = torch.where(value == 0, 0.0, 2.0).to(REAL)
    assert 5 < int((mask > 0).sum()) < 35
    for seed in range(3):
        torch.testing.assert_close(A @ seeded(40, seed=seed), mask * seeded(40, seed=seed))
        torch.testing.assert_close(A.T @ seeded(40, seed=seed), mask * seeded(40, seed=seed))
    assert torch.equal(torch.get_rng_state(), after), "the products drew random numbers"


def test_embedding_with_a_padding_index() -> None:
    table, at = seeded(6, 2), torch.tensor([0, 2, 1, 0])
    for sparse in (False, True):
        A = linearize(lambda w, s=sparse: F.embedding(at, w, padding_idx=0, sparse=s).sin(), table).jacobian
        v, u = seeded(6, 2, seed=1), seeded(4, 2, seed=2)
        slope = table[at].cos() * (at != 0)[:, None]
        torch.testing.assert_close(A @ v, slope * v[at])
        expected = torch.zeros(6, 2, dtype=REAL)
        for row, i in enumerate(at.tolist()):
            expected[i] += slope[row] * u[row]
        torch.testing.assert_close(A.T @ u, expected)


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass(frozen=True)
class Params:
    weight: Tensor
    power: int
    name: str
    shift: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.weight, Tensor) or self.weight.ndim != 2:
            raise ValueError("made anew")


def test_trees_in_and_out() -> None:
    w, b = seeded(2, 3), seeded(3, seed=1)
    x = {"z": Params(w, 2, "w"), "a": Pair((b, None), [3, True])}

    def f(tree: dict[str, Any]) -> Any:
        p, (pair, (power, flag)) = tree["z"], tree["a"]
        assert (p.power, p.name, power, flag, pair[1]) == (2, "w", 3, True, None)
        return Pair({"y": p.weight**p.power @ pair[0]}, (p.shift * pair[0] ** power, None, "text", 7))

    value, A = linearize(f, x)
    assert value.second[1:] == (None, "text", 7)
    assert A.in_space.names == ("z.weight", "z.shift", "a.first.0")
    assert A.out_space.names == ("first.y", "second.0")
    moved = dataclasses.replace(x["z"], weight=seeded(2, 3, seed=2), shift=2.0)
    v = {"z": moved, "a": Pair((seeded(3, seed=3), None), [3, True])}
    pushed = A @ v
    dw, db = v["z"].weight, v["a"].first[0]
    torch.testing.assert_close(pushed.first["y"], 2 * w * dw @ b + w**2 @ db)
    torch.testing.assert_close(pushed.second[0], 2.0 * b**3 + 0.5 * 3 * b**2 * db, rtol=1e-6, atol=1e-6)
    assert pushed.second[1:] == (None, "text", 7)
    u = Pair({"y": seeded(2, seed=5)}, (seeded(3, seed=6), None, "text", 7))
    pulled = A.T @ u
    assert isinstance(pulled["z"], Params) and pulled["z"].name == "w"
    torch.testing.assert_close(pulled["z"].weight, 2 * w * torch.outer(u.first["y"], b))
    torch.testing.assert_close(pulled["a"].first[0], w.mT**2 @ u.first["y"] + 1.5 * b**2 * u.second[0])
    torch.testing.assert_close(torch.as_tensor(pulled["z"].shift, dtype=REAL), (b**3 * u.second[0]).sum(), rtol=1e-6, atol=1e-6)


def test_one_tensor_at_two_places_gives_two_partials() -> None:
    a = seeded(3)
    A = linearize(lambda p: p["left"] * p["right"] ** 2, {"left": a, "right": a}).jacobian
    pulled = A.T @ torch.ones(3, dtype=REAL)
    torch.testing.assert_close(pulled["left"], a**2)
    torch.testing.assert_close(pulled["right"], 2 * a**2)


def test_unused_leaves_and_constant_values_give_zeros() -> None:
    x = {"used": seeded(3), "unused": seeded(2, 2)}
    A = linearize(lambda p: (p["used"] * 2, torch.ones(4, dtype=REAL)), x).jacobian
    u = (seeded(3, seed=1), seeded(4, seed=2))
    pulled = A.T @ u
    torch.testing.assert_close(pulled["used"], 2 * u[0])
    assert torch.equal(pulled["unused"], torch.zeros(2, 2, dtype=REAL))
    pushed = A @ x
    torch.testing.assert_close(pushed[0], 2 * x["used"])
    assert torch.equal(pushed[1], torch.zeros(4, dtype=REAL))


def test_products_are_differentiable_by_what_is_upstream() -> None:
    w = seeded(3).requires_grad_()
    x = seeded(3, seed=1).requires_grad_()
    u = seeded(3, seed=2).requires_grad_()
    A = linearize(lambda t: w * t**3, x).jacobian
    for product in (A @ u, A.T @ u):
        gw, gx, gu = torch.autograd.grad(product.sum(), (w, x, u), retain_graph=True)
        torch.testing.assert_close(gw, 3 * x**2 * u)
        torch.testing.assert_close(gx, 6 * w * x * u)
        torch.testing.assert_close(gu, 3 * w * x**2)
    with torch.no_grad():
        assert not (A @ u).requires_grad and not (A.T @ u).requires_grad


def test_products_are_differentiable_by_the_vector_alone() -> None:
    x = seeded(3)
    for f in (torch.sin, lambda t: ReverseOnlySquare.apply(t).sin()):
        A = linearize(f, x).jacobian
        u = seeded(3, seed=2).requires_grad_()
        slope = by_loops(f, x).diagonal()
        for product in (A @ u, A.T @ u):
            torch.testing.assert_close(torch.autograd.grad(product.sum(), u)[0], slope)


def test_inside_and_outside_of_transforms() -> None:
    X, v, u = seeded(4, 3), seeded(3, seed=1), seeded(5, seed=2)

    def f(t: Tensor) -> Tensor:
        return torch.tanh(W @ t)

    pushed = torch.func.vmap(lambda t: linearize(f, t).jacobian @ v)(X)
    pulled = torch.func.vmap(lambda t: linearize(f, t).jacobian.T @ u)(X)
    for row, a, b in zip(X, pushed, pulled, strict=True):
        J = by_loops(f, row)
        torch.testing.assert_close(a, J @ v)
        torch.testing.assert_close(b, J.mT @ u)
    for g in (f, lambda t: ReverseOnlySquare.apply(f(t))):
        A, J = linearize(g, X[0]).jacobian, by_loops(g, X[0])
        torch.testing.assert_close(torch.func.jacrev(lambda t, A=A: A @ t)(X[1]), J)
    A, J = linearize(f, X[0]).jacobian, by_loops(f, X[0])
    torch.testing.assert_close(torch.func.vmap(lambda t: A @ t)(X), X @ J.mT)
    torch.testing.assert_close(torch.func.vmap(lambda t: A.T @ t)(seeded(4, 5)), seeded(4, 5) @ J)
    torch.testing.assert_close(torch.func.jacrev(lambda t: A.T @ t)(u), J.mT)


def test_linearized_twice() -> None:
    x = seeded(4)
    one = torch.ones(4, dtype=REAL)
    A = linearize(lambda t: linearize(lambda s: s**3, t).jacobian @ one, x).jacobian
    torch.testing.assert_close(A @ one, 6 * x)
    torch.testing.assert_close(A.T @ one, 6 * x)


def test_complex_functions_are_not_conjugated() -> None:
    z, M = seeded(3, dtype=torch.complex128), seeded(4, 3, seed=1, dtype=torch.complex128)
    A = linearize(lambda t: (M @ t) ** 3, z).jacobian
    J = 3 * (M @ z)[:, None] ** 2 * M
    v, u = seeded(3, seed=2, dtype=torch.complex128), seeded(4, seed=3, dtype=torch.complex128)
    torch.testing.assert_close(A @ v, J @ v)
    torch.testing.assert_close(A.T @ u, J.mT @ u)
    torch.testing.assert_close(A.H @ u, J.mH @ u)


@pytest.mark.parametrize("f", [torch.abs, lambda z: z.conj() * z, lambda z: torch.complex(z.real, z.imag**2)])
def test_functions_without_a_complex_derivative_are_refused(f: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(HolomorphyError, match="view_as_real"):
        linearize(f, seeded(3, dtype=torch.complex128))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    x = seeded(3).to(dtype)
    value, A = linearize(lambda t: t.double().sin(), x)
    assert value.dtype == REAL
    assert (A @ x).dtype == REAL and (A.T @ value).dtype == dtype
    torch.testing.assert_close(A @ x, x.double().cos() * x.double(), rtol=1e-6, atol=1e-6)


def test_how_often_the_function_runs() -> None:
    runs = 0

    def f(t: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        return torch.tanh(W @ t)

    x, u = seeded(3), seeded(5)
    A = linearize(f, x).jacobian
    assert runs == 1
    A.T @ u
    A.T @ seeded(6, 5)
    assert runs == 1, "backward passes use the kept graph"
    A @ x
    A @ seeded(6, 3)
    assert runs == 1, "and so do tangents"
    v = seeded(3, seed=1).requires_grad_()
    A @ v
    assert runs == 3, "a product to be differentiated: one run in forward mode, one for its check"
    A @ v
    assert runs == 4
    runs = 0
    A = linearize(lambda t: ReverseOnlySquare.apply(f(t)), x).jacobian
    A @ v
    A @ v
    assert runs == 2, "without forward mode: the recording and one attempt"


@pytest.mark.parametrize("name", one_way.FUNCTIONS)
@pytest.mark.parametrize("many", [False, True])
def test_where_only_reverse_mode_is_right_a_forward_product_is_refused(name: str, many: bool) -> None:
    own, x = one_way.FUNCTIONS[name], seeded(4)

    def f(t: Tensor) -> Tensor:
        return own(t)[1:] * t[:-1]

    A = linearize(f, x).jacobian
    with pytest.raises(UnsupportedError, match=rf"(?s)the backward of \S*{one_way.NAMES[name]}.*J\.T @ u"):
        A @ (torch.eye(4, dtype=REAL) if many else seeded(4, seed=1))
    torch.testing.assert_close(A.T @ torch.eye(3, dtype=REAL)[1], by_loops(f, x)[1])


def test_infinite_derivatives_are_multiplied_as_before() -> None:
    x = torch.tensor([0.0, 4.0], dtype=REAL)
    product = linearize(lambda t: ReverseOnlySquare.apply(t.sqrt()) + t.sqrt(), x).jacobian @ torch.ones(2, dtype=REAL)
    assert not product[0].isfinite()
    assert float(product[1]) == 1.25


def test_distances_without_a_second_derivative() -> None:
    x, others = seeded(4, 3), seeded(2, 3, seed=1)
    A = linearize(lambda t: torch.cdist(t, others), x).jacobian
    with pytest.raises(UnsupportedError, match="the backward of CdistBackward0"):
        A @ x
