"""`hessian`: closed forms, rows, trees, budgets, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesse.core.errors import HolomorphyError, LeafError, MemoryBudgetError, MixedSamplesError, NonScalarError, StructureError
from hesse.derivatives import hessian
from hesse.operators import LinearOperator

from ..autodiff.programs import REAL, ReverseOnlySquare, hessian_by_loops, seeded


def sine_curvature(x: float, y: float, z: float) -> Tensor:
    """The Hessian of sin(xyz)."""
    g = torch.tensor([y * z, x * z, x * y], dtype=REAL)
    p = torch.tensor([[0, z, y], [z, 0, x], [y, x, 0]], dtype=REAL)
    return math.cos(x * y * z) * p - math.sin(x * y * z) * torch.outer(g, g)


def test_closed_forms() -> None:
    points = seeded(30, 3)
    expected = torch.stack([sine_curvature(*point.tolist()) for point in points])
    rows = hessian(lambda p: torch.sin(p.prod(-1)), points, structure="batched")
    torch.testing.assert_close(rows.hessian, expected)
    torch.testing.assert_close(rows.value, points.prod(-1).sin())
    torch.testing.assert_close(hessian(lambda p: torch.sin(p.prod()), points[4]).hessian, expected[4])
    squares = hessian(lambda p: (p**2).sum(-1, keepdim=True), points, structure="batched").hessian
    assert torch.equal(squares, 2 * torch.eye(3, dtype=REAL).expand(30, 3, 3))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4,), (3, 4), (0,)])
def test_all_shapes(shape: tuple[int, ...]) -> None:
    x, n = seeded(*shape), math.prod(shape)
    M = seeded(n, n, seed=1)
    H = hessian(lambda t: t.flatten() @ M @ t.flatten() + (t**3).sum(), x).hessian
    assert H.shape == shape + shape
    torch.testing.assert_close(H.reshape(n, n), M + M.mT + torch.diag(6 * x.flatten()))


PROGRAMS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: F.cross_entropy(x.reshape(2, 3), torch.tensor([2, 0])),
    "convolution": lambda x: F.conv1d(x.reshape(1, 1, 6), seeded(2, 1, 3), padding=1, stride=2).tanh().pow(2).sum(),
    "max pool": lambda x: (F.max_pool1d(x.reshape(1, 1, 6), 2) ** 3).sum(),
    "layer norm": lambda x: (F.layer_norm(x.reshape(2, 3), (3,)) ** 3 * seeded(2, 3)).sum(),
    "batch norm": lambda x: (F.batch_norm(x.reshape(3, 2), None, None, training=True) ** 3 * seeded(3, 2)).sum(),
    "python function": lambda x: (ReverseOnlySquare.apply(x) * x).sum(),
    "in place": lambda x: x.clone().mul_(x).cumsum(0).pow_(2).sum(),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("grad", [True, False])
def test_programs(name: str, grad: bool) -> None:
    x, f = seeded(6), PROGRAMS[name]
    expected = hessian_by_loops(f, x)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(hessian(f, x).hessian, expected, rtol=1e-9, atol=1e-11)


def test_trees() -> None:
    x = ({"a": seeded(2), "none": None}, [3.0, 5])
    H = hessian(lambda t: (t[0]["a"] ** 2).sum() * t[1][0] ** 2, x).hessian
    aa, as_ = H[0]["a"][0]["a"], H[0]["a"][1][0]
    torch.testing.assert_close(aa, 18 * torch.eye(2, dtype=REAL))
    torch.testing.assert_close(as_.double(), 12 * seeded(2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(H[1][0][0]["a"].double(), 12 * seeded(2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(float(H[1][0][1][0]), 2 * float((seeded(2) ** 2).sum()), rtol=1e-6, atol=1e-6)
    assert H[1][1] == 5 and H[0]["none"] is None
    pieces = hessian(lambda t: (t["a"] ** 2).sum() + t["b"].sum(), {"a": seeded(2), "b": torch.zeros(0, dtype=REAL)}).hessian
    assert pieces["a"]["b"].shape == (2, 0) and pieces["b"]["b"].shape == (0, 0)


def test_layouts_agree() -> None:
    x = seeded(4, 2)

    def f(t: Tensor) -> Tensor:
        return (t**3).sum(-1) * t[..., 0]

    whole = hessian_by_loops(lambda t: f(t).sum(), x)
    rows = hessian(f, x, structure="batched").hessian
    torch.testing.assert_close(rows, torch.stack([whole[i, :, i] for i in range(4)]))
    torch.testing.assert_close(hessian(f, x, structure="batched", layout="dense").hessian, whole)
    v = seeded(4, 2, seed=1)
    for g, options in ((f, {"structure": "batched"}), (lambda t: f(t).sum(), {})):
        A = hessian(g, x, layout="operator", **options).hessian
        assert isinstance(A, LinearOperator)
        torch.testing.assert_close(A @ v, torch.tensordot(whole, v, 2))


def test_rows_that_are_numbers() -> None:
    x = seeded(5)
    torch.testing.assert_close(hessian(lambda t: t**4, x, structure="batched").hessian, 12 * x**2)


@pytest.mark.parametrize(
    "f",
    [
        lambda t: (t**2).sum().expand(4),
        lambda t: (t**2).sum(1) + torch.stack([t[0, 0] * t[1, 1], *t.new_zeros(3)]),
        lambda t: (t**2).sum(1) + (t[3, 0] ** 2) * torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=REAL),
        lambda t: (t - t.mean(0)).pow(2).sum(1),
        lambda t: t.flip(0).pow(2).sum(1),
    ],
)
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_rows_that_meet_only_in_the_second_derivative_are_refused(f: Callable[[Tensor], Tensor], scale: float) -> None:
    """At zero the first derivatives of these functions vanish, so that only their second ones show the mixture."""
    with pytest.raises(MixedSamplesError, match="influences other rows"):
        hessian(f, scale * seeded(4, 2), structure="batched")


def test_the_proof_of_rows_in_modules() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = seeded(5, 3)
    with pytest.raises(MixedSamplesError, match="batch normalization in train mode"):
        hessian(net, x, structure="batched")
    rows = hessian(net.eval(), x, structure="batched").hessian
    for row, H in zip(x, rows, strict=True):
        torch.testing.assert_close(H, hessian_by_loops(lambda t: net(t[None]).sum(), row))


def test_third_derivatives() -> None:
    x, w = seeded(3).requires_grad_(), seeded(3, seed=1).requires_grad_()
    for f, options in ((lambda t: (w * t**4).sum(), {}), (lambda t: w * t**4, {"structure": "batched"})):
        H = hessian(f, x, **options).hessian
        gx, gw = torch.autograd.grad(H.sum(), (x, w))
        torch.testing.assert_close(gx, 24 * (w * x).detach())
        torch.testing.assert_close(gw, 12 * x.detach() ** 2)
    T = torch.func.jacrev(lambda t: hessian(lambda s: s.prod(), t).hessian)(x.detach())
    a, b, c = x.tolist()
    assert T[0, 1, 2] == T[2, 0, 1] == 1 and T[0, 0].abs().max() == 0
    torch.testing.assert_close(hessian(lambda s: s.prod(), x.detach()).hessian[0], torch.tensor([0, c, b], dtype=REAL))
    assert a


def test_inside_vmap() -> None:
    X = seeded(4, 3)
    got = torch.func.vmap(lambda t: hessian(lambda s: torch.sin(s.prod()), t).hessian)(X)
    torch.testing.assert_close(got, torch.stack([sine_curvature(*row.tolist()) for row in X]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    x = seeded(2, 2).to(dtype)
    assert hessian(lambda t: (t**3).sum(), x).hessian.dtype == dtype
    assert hessian(lambda t: (t**3).sum(1), x, structure="batched").hessian.dtype == dtype


@pytest.mark.parametrize("structure", ["dense", "batched"])
def test_memory(structure: Any) -> None:
    x = seeded(20, 3)

    def f(t: Tensor) -> Tensor:
        y = (t**3).sum(-1)
        return y if structure == "batched" else y.sum()

    with pytest.raises(MemoryBudgetError, match="at least") as caught:
        hessian(f, x, structure=structure, memory=100)
    H = hessian(f, x, structure=structure, memory=caught.value.least).hessian
    torch.testing.assert_close(H, hessian(f, x, structure=structure).hessian)


def test_one_run_of_the_function() -> None:
    runs = 0

    def f(t: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        return (t**3).sum(-1)

    hessian(lambda t: f(t).sum(), seeded(4, 3))
    hessian(f, seeded(4, 3), structure="batched")
    hessian(f, seeded(3), layout="operator")
    assert runs == 3


def test_refusals() -> None:
    x = seeded(3)
    for structure in ("dense", "batched"):
        with pytest.raises(StructureError, match=r"already computed tensor(.|\n)*pass the function"):
            hessian((x**2).sum(), x, structure=structure)
        with pytest.raises(LeafError, match=r"torch.int64 at 'x'"):
            hessian(lambda t: (t**2).sum(), torch.arange(3), structure=structure)
    with pytest.raises(NonScalarError, match=r"shape \(3,\)(.|\n)*structure='batched'"):
        hessian(lambda t: t**2, x)
    with pytest.raises(NonScalarError, match=r"\[n\] or \[n, 1\]"):
        hessian(lambda t: t**2, seeded(3, 2), structure="batched")
    with pytest.raises(HolomorphyError):
        hessian(lambda t: t.abs().sum(), 1j * x)
    with pytest.raises(HolomorphyError):
        hessian(torch.abs, 1j * x, structure="batched")
    with pytest.raises(StructureError, match="layout is one of"):
        hessian(lambda t: t.sum(), x, layout="csr")
