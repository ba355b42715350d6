"""`jacobian`: maps with closed forms, all shapes, modes, layouts, dtypes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.core.errors import HesseError, HolomorphyError, MemoryBudgetError, StructureError, UnsupportedError
from hesse.derivatives import jacobian
from hesse.operators import LinearOperator

from ..autodiff.programs import REAL, LyingSquare, ReverseOnlySquare, by_loops, seeded

MODES = ["auto", "forward", "reverse"]


def polar(p: Tensor) -> Tensor:
    r, t = p.unbind(-1)
    return torch.stack([r * t.cos(), r * t.sin()], -1)


def polar_slope(r: float, t: float) -> Tensor:
    return torch.tensor([[math.cos(t), -r * math.sin(t)], [math.sin(t), r * math.cos(t)]], dtype=REAL)


def spherical(p: Tensor) -> Tensor:
    r, t, f = p.unbind(-1)
    return torch.stack([r * t.sin() * f.cos(), r * t.sin() * f.sin(), r * t.cos()], -1)


def spherical_slope(r: float, t: float, f: float) -> Tensor:
    st, ct, sf, cf = math.sin(t), math.cos(t), math.sin(f), math.cos(f)
    rows = [[st * cf, r * ct * cf, -r * st * sf], [st * sf, r * ct * sf, r * st * cf], [ct, -r * st, 0.0]]
    return torch.tensor(rows, dtype=REAL)


def sine_slope(x: float, y: float, z: float) -> Tensor:
    return math.cos(x * y * z) * torch.tensor([y * z, x * z, x * y], dtype=REAL)


def squares_slope(*x: float) -> Tensor:
    return 2 * torch.tensor(x, dtype=REAL)


MAPS: dict[str, tuple[int, Callable[[Tensor], Tensor], Callable[..., Tensor]]] = {
    "polar": (2, polar, polar_slope),
    "spherical": (3, spherical, spherical_slope),
    "sin(xyz)": (3, lambda p: torch.sin(p.prod(-1)), sine_slope),
    "sum of squares": (5, lambda p: (p**2).sum(-1), squares_slope),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MAPS)
def test_maps_with_closed_forms(name: str, mode: Any) -> None:
    width, f, slope = MAPS[name]
    points = seeded(20, width)
    points[:, 0] *= 300  # radii of up to a thousand
    expected = torch.stack([slope(*point.tolist()) for point in points])
    value, J = jacobian(f, points, structure="batched", mode=mode)
    torch.testing.assert_close(J, expected, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(value, f(points))
    torch.testing.assert_close(jacobian(f, points[3], mode=mode).jacobian, expected[3], rtol=1e-12, atol=1e-10)
    whole = jacobian(f, points, mode=mode).jacobian
    for i, j in itertools.product(range(20), range(20)):
        block = whole.select(0, i).select(-2, j)
        torch.testing.assert_close(block, expected[i] if i == j else torch.zeros_like(expected[i]), rtol=1e-12, atol=1e-10)


SHAPES: list[tuple[int, ...]] = [(), (1,), (3,), (4,), (3, 4), (2, 0)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "out"), list(itertools.product(SHAPES, SHAPES)))
def test_all_shapes(shape: tuple[int, ...], out: tuple[int, ...], mode: Any) -> None:
    x = seeded(*shape)
    n, m = math.prod(shape), math.prod(out)
    M = seeded(m, n, seed=1)
    J = jacobian(lambda t: (M @ t.flatten()).sin().reshape(out), x, mode=mode).jacobian
    assert J.shape == out + shape and J.dtype == REAL
    torch.testing.assert_close(J.reshape(m, n), (M @ x.flatten()).cos()[:, None] * M)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("d", "m"), list(itertools.product([(), (1,), (3,), (2, 2)], [(), (1,), (4,), (2, 0)])))
def test_all_shapes_of_rows(d: tuple[int, ...], m: tuple[int, ...], mode: Any) -> None:
    x, M = seeded(5, *d), seeded(math.prod(m), math.prod(d), seed=1)
    J = jacobian(lambda t: (t.reshape(5, -1) @ M.mT).sin().reshape(5, *m), x, structure="batched", mode=mode).jacobian
    assert J.shape == (5, *m, *d)
    expected = (x.reshape(5, -1) @ M.mT).cos()[:, :, None] * M
    torch.testing.assert_close(J, expected.reshape(5, *m, *d))


def test_layouts_agree() -> None:
    x = seeded(4, 3)
    dense = by_loops(spherical, x)
    for structure in ("auto", "dense", "batched"):
        torch.testing.assert_close(jacobian(spherical, x, structure=structure, layout="dense").jacobian, dense)
        rows = jacobian(spherical, x, structure=structure, layout="batched").jacobian
        torch.testing.assert_close(rows, torch.stack([dense[i, :, i] for i in range(4)]))
        A = jacobian(spherical, x, structure=structure, layout="operator").jacobian
        assert isinstance(A, LinearOperator)
        v = seeded(4, 3, seed=1)
        torch.testing.assert_close(A @ v, torch.tensordot(dense, v, 2))


@pytest.mark.parametrize("mode", MODES)
def test_trees(mode: Any) -> None:
    x = (seeded(2, 3), {"b": seeded(3, seed=1), "s": 2.0, "n": 4}, None)

    def f(t: Any) -> Any:
        return {"y": t[0] @ t[1]["b"] * t[1]["s"], "n": 7, "z": (t[1]["b"] ** 2, t[0].sum())}

    value, J = jacobian(f, x, mode=mode)
    assert value["n"] == J["n"] == 7 and J["y"][1]["n"] == 4 and J["y"][2] is None
    a, b = x[0], x[1]["b"]
    torch.testing.assert_close(J["y"][0], 2 * torch.einsum("ik,j->ikj", torch.eye(2, dtype=REAL), b))
    torch.testing.assert_close(J["y"][1]["b"], 2 * a)
    torch.testing.assert_close(J["y"][1]["s"].double(), a @ b, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(J["z"][0][1]["b"], torch.diag(2 * b))
    assert torch.equal(J["z"][0][0], torch.zeros(3, 2, 3, dtype=REAL))
    assert J["z"][0][1]["s"].shape == (3,) and not J["z"][0][1]["s"].any()
    assert torch.equal(J["z"][1][0], torch.ones(2, 3, dtype=REAL))


def test_rows_of_trees() -> None:
    x = {"a": seeded(4, 2), "b": seeded(4, seed=1)}
    for mode in MODES:
        J = jacobian(lambda t: (t["a"] * t["b"][:, None], t["b"].sin()), x, structure="batched", mode=mode).jacobian
        torch.testing.assert_close(J[0]["a"], x["b"][:, None, None] * torch.eye(2, dtype=REAL))
        torch.testing.assert_close(J[0]["b"], x["a"])
        assert not J[1]["a"].any()
        torch.testing.assert_close(J[1]["b"], x["b"].cos())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("structure", ["dense", "batched"])
def test_dtypes_are_those_of_x(dtype: torch.dtype, mode: Any, structure: Any) -> None:
    x = seeded(2, 2).to(dtype)
    for f in (torch.sin, lambda t: t.double().sin().repeat(1, 2), lambda t: t.float().sin().to(t.dtype).repeat(1, 2)):
        value, J = jacobian(f, x, mode=mode, structure=structure)
        assert J.dtype == dtype and value.dtype == f(x).dtype
        precise = by_loops(f, x.double())
        expected = precise if structure == "dense" else torch.stack([precise[i, :, i] for i in range(2)])
        slack = 2 * torch.finfo(torch.promote_types(dtype, torch.bfloat16)).eps if dtype != REAL else 1e-6
        torch.testing.assert_close(J.double(), expected, rtol=slack, atol=slack)


def test_mixed_dtypes() -> None:
    x = {"half": seeded(2).bfloat16(), "double": seeded(2)}
    for mode in MODES:
        J = jacobian(lambda t: torch.cat([t["half"].double(), t["double"], t["double"]]), x, mode=mode).jacobian
        assert (J["half"].dtype, J["double"].dtype) == (torch.bfloat16, REAL)
        assert torch.equal(J["half"].double(), torch.eye(6, dtype=REAL)[:, :2])


@pytest.mark.parametrize("mode", MODES)
def test_complex(mode: Any) -> None:
    z, M = seeded(3, dtype=torch.complex128), seeded(5, 3, seed=1, dtype=torch.complex128)
    J = jacobian(lambda t: (M @ t) ** 2, z, mode=mode).jacobian
    torch.testing.assert_close(J, 2 * (M @ z)[:, None] * M)
    torch.testing.assert_close(jacobian(torch.exp, z[:, None], structure="batched", mode=mode).jacobian, z.exp()[:, None, None])
    x = seeded(3, 2)
    J = jacobian(lambda t: torch.exp(1j * t) * t[:, :1], x, structure="batched", mode=mode).jacobian
    waves = torch.exp(1j * x)
    expected = torch.diag_embed(1j * waves * x[:, :1])
    expected[:, :, 0] += waves
    torch.testing.assert_close(J, expected)
    dense = jacobian(lambda t: torch.exp(1j * t), x, mode=mode).jacobian
    torch.testing.assert_close(dense.reshape(6, 6), torch.diag(1j * waves.flatten()))
    with pytest.raises(HolomorphyError):
        jacobian(torch.conj, z, mode=mode)
    with pytest.raises(HolomorphyError):
        jacobian(torch.abs, z, mode=mode)


def test_real_functions_against_complex_steps() -> None:
    def f(t: Tensor) -> Tensor:
        return torch.stack([t.prod().sin(), (t**3).sum().exp(), t[0] / t[1], t.cos().sum()])

    x, h = seeded(3), 1e-30
    eye = torch.eye(3, dtype=REAL)
    expected = torch.stack([f(x + 1j * h * e).imag / h for e in eye], -1)
    for mode in MODES:
        torch.testing.assert_close(jacobian(f, x, mode=mode).jacobian, expected, rtol=1e-13, atol=1e-14)


def test_lies_of_forward_mode_are_noticed() -> None:
    x = seeded(3, 4)
    dense = by_loops(lambda t: (t**2).repeat(1, 2), x)
    rows = torch.stack([dense[i, :, i] for i in range(3)])
    for f, reason in ((LyingSquare, "another derivative"), (ReverseOnlySquare, "cannot run in forward mode")):

        def wide(t: Tensor, f: Any = f) -> Tensor:
            return f.apply(t).repeat(1, 2)

        torch.testing.assert_close(jacobian(wide, x).jacobian, dense)
        torch.testing.assert_close(jacobian(wide, x, structure="batched").jacobian, rows)
        for structure in ("dense", "batched"):
            with pytest.raises(UnsupportedError, match=rf"{reason}(.|\n)*mode='reverse'"):
                jacobian(wide, x, structure=structure, mode="forward")


def test_low_precision_inside_is_no_lie() -> None:
    x = seeded(50)
    J = jacobian(lambda t: t.float().exp().double().repeat(3), x, mode="forward").jacobian
    torch.testing.assert_close(J[:50], torch.diag(x.exp()), rtol=1e-6, atol=1e-6)


def test_how_often_the_function_runs() -> None:
    runs = 0

    def f(t: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        return torch.cat([t.sin(), t.cos()], -1)

    for x, options, expected in [
        (seeded(3), {"mode": "reverse"}, 1),
        (seeded(3), {"mode": "forward"}, 2),
        (seeded(3), {}, 2),
        (seeded(4, 3), {"structure": "batched", "mode": "reverse"}, 1),
        (seeded(4, 3), {"structure": "batched"}, 2),
        (seeded(3), {"layout": "operator"}, 1),
    ]:
        runs = 0
        jacobian(f, x, **options)
        assert runs == expected, options


@pytest.mark.parametrize("options", [{}, {"mode": "forward"}, {"structure": "batched"}])
def test_least_memory_is_enough_and_no_less(options: dict[str, Any]) -> None:
    x = seeded(30, 4)
    with pytest.raises(MemoryBudgetError, match="at least") as caught:
        jacobian(torch.sin, x, memory=100, **options)
    least = caught.value.least
    torch.testing.assert_close(jacobian(torch.sin, x, memory=least, **options), jacobian(torch.sin, x, **options))
    with pytest.raises(MemoryBudgetError):
        jacobian(torch.sin, x, memory=least - 1, **options)
    torch.testing.assert_close(jacobian(torch.sin, x, memory=3 * least, **options), jacobian(torch.sin, x, **options))


def test_results_are_differentiable_upstream() -> None:
    w, x = seeded(3, seed=1).requires_grad_(), seeded(3).requires_grad_()
    for mode in MODES:
        for structure in ("dense", "batched"):
            value, J = jacobian(lambda t: w[:, None] * t[:, None] ** 3, x, mode=mode, structure=structure)
            gw, gx = torch.autograd.grad(J.sum() + 0 * value.sum(), (w, x))
            torch.testing.assert_close(gw, 3 * x.detach() ** 2)
            torch.testing.assert_close(gx, 6 * (w * x).detach())
            with torch.no_grad():
                value, J = jacobian(lambda t: w[:, None] * t[:, None] ** 3, x, mode=mode, structure=structure)
            assert not value.requires_grad and not J.requires_grad


def test_nested_and_inside_transforms() -> None:
    x, X, W = seeded(4), seeded(3, 4, seed=1), seeded(6, 4, seed=2)
    third = jacobian(lambda t: jacobian(lambda s: s**3, t).jacobian, x).jacobian
    torch.testing.assert_close(third, torch.diag_embed(torch.diag(6 * x)) * torch.eye(4, dtype=REAL)[:, :, None])
    for mode in MODES:

        def f(t: Tensor, mode: Any = mode) -> Tensor:
            return jacobian(lambda s: torch.tanh(W @ s), t, mode=mode).jacobian

        expected = torch.stack([by_loops(lambda s: torch.tanh(W @ s), row) for row in X])
        torch.testing.assert_close(torch.func.vmap(f)(X), expected)
        slope = (1 - torch.tanh(W @ x) ** 2)[:, None] * W
        expected = -2 * torch.einsum("i,ij,ik->ijk", torch.tanh(W @ x), slope, W)
        torch.testing.assert_close(torch.func.jacrev(f)(x), expected)
        torch.testing.assert_close(torch.func.jacfwd(f)(x), expected)
    squared = torch.func.grad(lambda t: (jacobian(torch.sin, t, structure="batched").jacobian ** 2).sum())(X)
    torch.testing.assert_close(squared, -2 * X.cos() * X.sin())
    Z = seeded(2, 3, dtype=torch.complex128)
    torch.testing.assert_close(torch.func.vmap(lambda z: jacobian(torch.exp, z).jacobian)(Z), torch.diag_embed(Z.exp()))


@pytest.mark.parametrize("option", ["structure", "layout", "mode"])
def test_unknown_options(option: str) -> None:
    options: dict[str, Any] = {option: "rows"}
    with pytest.raises(StructureError, match=f"{option} is one of(.|\n)*'rows'"):
        jacobian(torch.sin, seeded(3), **options)


def test_rows_without_a_batch_are_refused() -> None:
    for f, x in [(torch.sum, seeded(3, 2)), (torch.sin, torch.ones((), dtype=REAL)), (torch.sin, torch.zeros(0, 2))]:
        with pytest.raises(HesseError, match=r"batch"):
            jacobian(f, x, structure="batched")
