"""Prepared derivatives at many points, against loops over `torch.autograd.grad` in float64."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.core.errors import DetachedError, MemoryBudgetError, NonFiniteError, StructureError, UnsupportedError
from hesse.sparse import SparseDerivative, prepare_hessian, prepare_jacobian

REAL = torch.float64
MODES = ["replay", "off"]


def point(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dtype=REAL, generator=torch.Generator().manual_seed(seed))


def rows(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The Jacobian, one row after the other."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        y = f(leaf).reshape(-1)
        found = [torch.autograd.grad(v, leaf, retain_graph=True, allow_unused=True, materialize_grads=True)[0] for v in y]
    return torch.stack([row.reshape(-1) for row in found])


def second_rows(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The Hessian, one row after the other."""

    def gradient(leaf: Tensor) -> Tensor:
        return torch.autograd.grad(f(leaf), leaf, create_graph=True)[0]

    return rows(gradient, x)


def chain(u: Tensor) -> Tensor:
    """A Jacobian of 8 x 9 for n = 9."""
    return (u[1:] - u[:-1]) ** 3 * u[1:]


def energy(u: Tensor) -> Tensor:
    return ((u[1:] - u[:-1]) ** 4).sum() + (u[2:] * u[:-2]).square().sum()


def species(y: Tensor) -> Tensor:
    """Two stacked fields on a grid."""
    u, v = y.view(2, 4, 5)
    around = u.roll(1, 0) + u.roll(-1, 1) - 2 * u
    return torch.stack([u * u * v + around, v.sin() - u * u * v]).view(-1)


def joined(y: Tensor) -> Tensor:
    """Pieces cut, padded and put together again."""
    left, right = y[:4], y[4:]
    padded = F.pad(left, (1, 2)) ** 2
    return torch.cat([padded[1:-1] * right[0], right.flip(0) * right[::2].sum(), left[1:] - left[:-1]])


def agree(found: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["column", "row", "bidirectional"])
@pytest.mark.parametrize(("f", "n"), [(chain, 9), (species, 40), (joined, 9)], ids=["chain", "species", "joined"])
def test_jacobians_at_many_points(f: Any, n: int, kind: Any, mode: Any) -> None:
    prepared = prepare_jacobian(f, point(n), kind=kind, compile=mode)
    for seed in range(3):
        value, jacobian = prepared(point(n, seed), layout="dense")
        agree(jacobian, rows(f, point(n, seed)))
        agree(value, f(point(n, seed)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["star", "acyclic", "column"])
def test_hessians_at_many_points(kind: Any, mode: Any) -> None:
    prepared = prepare_hessian(energy, point(10), kind=kind, compile=mode)
    for seed in range(3):
        value, hessian = prepared(point(10, seed), layout="dense")
        agree(hessian, second_rows(energy, point(10, seed)))
        assert value.shape == ()
        agree(value, energy(point(10, seed)))


def test_compiled_to_native_code() -> None:
    prepared = prepare_jacobian(species, point(40), compile="native")
    for seed in range(3):
        agree(prepared(point(40, seed), layout="dense").jacobian, rows(species, point(40, seed)))
    assert "compiled: " in prepared.explain() or "replayed instead of compiled" in prepared.explain()


@pytest.mark.parametrize(("mode", "runs"), [("replay", "6 runs agreed"), ("off", "12 runs agreed")])
def test_replays_do_not_run_the_function(mode: Any, runs: str) -> None:
    """But for the first, second, fourth and eighth of ten, which are checked."""
    prepared = prepare_jacobian(chain, point(9), compile=mode)
    for seed in range(12):
        prepared(point(9, seed))
    assert f"check: {runs} with a random product" in prepared.explain()


def followed(make: Callable[[], tuple[Callable[[Tensor], Tensor], Callable[[], None]]], mode: Any) -> SparseDerivative:
    """Evaluate before and after each of three changes of what a function closes over."""
    f, change = make()
    prepared = prepare_jacobian(f, point(8), compile=mode)
    with torch.no_grad():
        for seed in range(4):
            for _ in range(2):
                agree(prepared(point(8, seed), layout="dense").jacobian, rows(f, point(8, seed)))
            change()
    return prepared


def changed_float() -> Any:
    rate = 2.0

    def f(u: Tensor) -> Tensor:
        return u[1:] * u[:-1] * rate

    def change() -> None:
        nonlocal rate
        rate += 1.5

    return f, change


def tensor_in_place() -> Any:
    weight = point(7, 3)
    return lambda u: u[1:] * u[:-1] * weight, lambda: weight.mul_(1.5)


def tensor_bound_anew() -> Any:
    held = {"weight": point(7, 3)}

    def change() -> None:
        held["weight"] = held["weight"] + 1

    return lambda u: u[1:] * u[:-1] * held["weight"], change


def optimizer_step() -> Any:
    layer = nn.Conv1d(1, 1, 3, padding=1, dtype=REAL)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def change() -> None:
        with torch.enable_grad():
            layer(torch.ones(1, 1, 5, dtype=REAL)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return lambda u: layer(u.view(1, 1, -1)).view(-1).tanh(), change


def flag_in_an_object() -> Any:
    class Options:
        square = True

    options = Options()

    def change() -> None:
        options.square = not options.square

    return lambda u: u[1:] ** 2 + u[:-1] if options.square else u[1:] * u[:-1], change


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [changed_float, tensor_in_place, tensor_bound_anew, optimizer_step, flag_in_an_object])
def test_what_a_function_closes_over_is_followed(make: Any, mode: Any) -> None:
    followed(make, mode)


def test_a_pattern_left_behind_by_python_state_is_refused_at_every_call() -> None:
    shift = 1

    def f(u: Tensor) -> Tensor:
        return u.roll(shift) ** 2

    prepared = prepare_jacobian(f, point(6))
    agree(prepared(point(6, 1), layout="dense").jacobian, rows(f, point(6, 1)))
    shift = 2
    for seed in (2, 3):
        with pytest.raises(StructureError, match=r"at row \d, column \d, where the pattern gives"):
            prepared(point(6, seed))
    shift = 1
    agree(prepared(point(6, 4), layout="dense").jacobian, rows(f, point(6, 4)))


@pytest.mark.parametrize("mode", MODES)
def test_local_patterns_are_checked_where_no_branch_tells(mode: Any) -> None:
    def masked(u: Tensor) -> Tensor:
        return torch.where(u > 0, u**2, u.roll(1) ** 3)

    up = point(7).abs() + 0.1
    prepared = prepare_jacobian(masked, up, local=True, compile=mode)
    assert prepared.colored.pattern.nnz == 7
    for scale in (1.0, 2.0):
        agree(prepared(scale * up, layout="dense").jacobian, rows(masked, scale * up))
    assert ("replayed: " in prepared.explain()) is (mode == "replay")
    for scale in (-1.0, -2.0):
        with pytest.raises(StructureError, match="holds where its branches are taken"):
            prepared(scale * up)
    agree(prepared(3 * up, layout="dense").jacobian, rows(masked, 3 * up))


def test_an_index_that_is_written_to_is_followed_or_refused() -> None:
    index = torch.tensor([1, 2, 3, 3])
    prepared = prepare_jacobian(lambda u: u[:4] * u[index], point(5))
    for _ in range(2):
        agree(prepared(point(5, 1), layout="dense").jacobian, rows(lambda u: u[:4] * u[index], point(5, 1)))
    index[3] = 4  # outside of the pattern
    for _ in range(2):
        with pytest.raises(StructureError, match="was written to"):
            prepared(point(5, 2))
    index[3] = 3
    agree(prepared(point(5, 1), layout="dense").jacobian, rows(lambda u: u[:4] * u[index], point(5, 1)))
    index[2] = 2  # inside of it: fewer entries
    agree(prepared(point(5, 1), layout="dense").jacobian, rows(lambda u: u[:4] * u[index], point(5, 1)))


def test_values_of_constants_are_checked_at_each_evaluation() -> None:
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=REAL)

    def f(u: Tensor) -> Tensor:
        return u[:4] * u[1:] * mask

    prepared = prepare_jacobian(f, point(5), constants="values")
    assert prepared.colored.pattern.nnz == 4
    for seed in (1, 2):
        agree(prepared(point(5, seed), layout="dense").jacobian, rows(f, point(5, seed)))
    mask.data[1] = 2  # leaves no trace in the version counter
    for seed in (1, 2):
        with pytest.raises(StructureError, match="where the pattern gives 0"):
            prepared(point(5, seed))


def test_products_and_value_see_the_same_random_numbers() -> None:
    prepared = prepare_jacobian(lambda u: F.dropout(u[1:] * u[:-1], 0.5), point(41))
    seen = set()
    for _ in range(4):
        value, jacobian = prepared(point(41, 1), layout="dense")
        kept = value != 0
        assert torch.equal(kept, (jacobian != 0).any(1))
        agree(jacobian[kept], 2 * rows(lambda u: u[1:] * u[:-1], point(41, 1))[kept])
        seen.add(tuple(kept.tolist()))
    assert len(seen) > 1


def test_threads() -> None:
    prepared, wrong = prepare_jacobian(chain, point(9)), []

    def work(first: int) -> None:
        for seed in range(first, first + 15):
            found = prepared(point(9, seed), layout="dense").jacobian
            if not torch.allclose(found, rows(chain, point(9, seed)), rtol=1e-11, atol=1e-11):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(100 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_under_vmap() -> None:
    x = point(27, 5).view(3, 9)
    first = prepare_jacobian(chain, point(9))
    found = torch.func.vmap(lambda row: first(row, layout="dense").jacobian)(x)
    agree(found, torch.stack([rows(chain, row) for row in x]))
    second, v = prepare_hessian(energy, point(9)), point(9, 6)
    found = torch.func.vmap(lambda row: second(row, layout="operator").hessian @ v)(x)
    agree(found, torch.stack([second_rows(energy, row) @ v for row in x]))


def test_vmap_checks_at_the_example() -> None:
    prepared = prepare_jacobian(chain, point(9), pattern=torch.eye(8, 9))
    with pytest.raises(StructureError, match="where the pattern gives 0"):
        torch.func.vmap(lambda row: prepared(row, layout="dense").jacobian)(point(27).view(3, 9))


@pytest.mark.parametrize("mode", MODES)
def test_differentiable_by_x_and_by_what_is_closed_over(mode: Any) -> None:
    weight = point(8, 3).requires_grad_()

    def f(u: Tensor) -> Tensor:
        return chain(u) * weight.sin()

    def penalty(jacobian: Tensor) -> Tensor:
        return (jacobian**2 * torch.arange(72, dtype=REAL).view(8, 9)).sum()

    prepared = prepare_jacobian(f, point(9), compile=mode)
    for seed in (1, 2):
        x = point(9, seed).requires_grad_()
        found = torch.autograd.grad(penalty(prepared(x, layout="dense").jacobian), (x, weight))
        y = point(9, seed).requires_grad_()
        exact = torch.stack([torch.autograd.grad(v, y, create_graph=True)[0] for v in f(y)])
        for mine, its in zip(found, torch.autograd.grad(penalty(exact), (y, weight)), strict=True):
            agree(mine, its)
    with torch.no_grad():
        assert not prepared(point(9, 3), layout="dense").jacobian.requires_grad
    (alone,) = torch.autograd.grad(penalty(prepared(point(9, 3), layout="dense").jacobian), weight)
    assert alone.abs().sum() > 0


@pytest.mark.parametrize("kind", ["column", "row"])
def test_what_is_closed_over_may_begin_and_end_to_require_grad(kind: Any) -> None:
    weight = point(8, 3)
    prepared = prepare_jacobian(lambda u: chain(u) * weight, point(9), kind=kind)
    for requires in (True, True, False, False, True, True, False):
        weight.requires_grad_(requires)
        jacobian = prepared(point(9, 1), layout="dense").jacobian
        assert jacobian.requires_grad is requires
        agree(jacobian, rows(lambda u: chain(u) * weight, point(9, 1)))


def test_differentiable_hessians() -> None:
    prepared, x, y = prepare_hessian(energy, point(6)), point(6, 1).requires_grad_(), point(6, 1).requires_grad_()
    (found,) = torch.autograd.grad(prepared(x, layout="dense").hessian.square().sum(), x)
    (gradient,) = torch.autograd.grad(energy(y), y, create_graph=True)
    exact = torch.stack([torch.autograd.grad(v, y, create_graph=True)[0] for v in gradient])
    agree(found, torch.autograd.grad(exact.square().sum(), y)[0])


def test_without_grad_in_inference_mode_and_under_autocast() -> None:
    prepared = prepare_jacobian(chain, point(9))
    for mode in (torch.no_grad, torch.inference_mode, torch.no_grad):
        with mode():
            for seed in (1, 2):
                found = prepared(point(9, seed), layout="dense").jacobian.clone()
        agree(found, rows(chain, point(9, 2)))
    weight = point(30).view(5, 6).float()
    x = point(15, 1).view(3, 5).float()
    matrix = prepare_jacobian(lambda u: (u @ weight).tanh(), x)
    with torch.autocast("cpu", torch.bfloat16):
        low = matrix(x, layout="dense")
    full = matrix(x, layout="dense")
    assert (low.value.dtype, full.value.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(low.jacobian.float(), full.jacobian, rtol=0.05, atol=0.05)
    torch.testing.assert_close(full.jacobian, rows(lambda u: (u @ weight).tanh(), x), rtol=1e-5, atol=1e-5)


def test_other_dtypes_than_the_example() -> None:
    prepared = prepare_jacobian(chain, point(9))
    for dtype, tolerance in ((torch.float32, 1e-4), (REAL, 1e-11)):
        for seed in (1, 2):
            found = prepared(point(9, seed).to(dtype), layout="dense").jacobian
            assert found.dtype == dtype
            torch.testing.assert_close(found.to(REAL), rows(chain, point(9, seed)), rtol=tolerance, atol=tolerance)


def test_python_floats_and_empty_leaves() -> None:
    x = {"scale": 2.0, "u": point(4), "none": point(0)}

    def f(p: Any) -> Any:
        return {"scaled": p["u"][1:] * p["scale"], "none": p["none"] * 2}

    prepared = prepare_jacobian(f, x)
    for scale in (3.0, 5.0):
        value, jacobian = prepared({**x, "scale": scale}, layout="dense")
        exact = torch.cat([point(4)[1:, None], torch.zeros(3, 1, dtype=REAL), scale * torch.eye(3, dtype=REAL)], 1)
        agree(jacobian, exact)
        assert value["none"].shape == (0,)


def test_matrices_without_entries() -> None:
    prepared = prepare_jacobian(lambda u: u.round() * 3, point(5))
    for seed in (1, 2):
        value, jacobian = prepared(point(5, seed))
        assert jacobian._nnz() == 0
        assert jacobian.shape == (5, 5)
        agree(value, point(5, seed).round() * 3)
    assert prepare_jacobian(lambda u: u**2, point(0))(point(0)).jacobian.shape == (0, 0)
    assert not prepare_hessian(lambda u: u.sum(), point(3))(point(3), layout="dense").hessian.any()
    with pytest.raises(DetachedError, match="detach"):
        prepare_jacobian(lambda u: u.detach() * 3, point(5))(point(5))


def test_what_cannot_be_recorded_runs_directly_and_says_why() -> None:
    seen: list[int] = []

    def f(u: Tensor) -> Tensor:
        seen.append(len(seen))
        return chain(u)

    prepared = prepare_jacobian(f, point(9))
    for seed in range(3):
        agree(prepared(point(9, seed), layout="dense").jacobian, rows(chain, point(9, seed)))
    assert "runs directly: " in prepared.explain()
    assert "agreed with a random product" in prepared.explain()


def test_the_user_is_not_warned_of_what_runs_directly(recwarn: pytest.WarningsRecorder) -> None:
    test_what_cannot_be_recorded_runs_directly_and_says_why()
    assert not [w for w in recwarn if "runs directly" in str(w.message)]


def test_bad_points() -> None:
    prepared = prepare_jacobian(chain, point(9))
    prepared(point(9))
    bad = point(9)
    bad[3] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN in the input"):
        prepared(bad)
    for other in (point(8), {"u": point(9)}, point(9).view(3, 3)):
        with pytest.raises(StructureError):
            prepared(other)
    with pytest.raises(UnsupportedError, match="complex"):
        prepare_jacobian(lambda u: torch.complex(u, u), point(3), pattern=torch.eye(3))(point(3))
    with pytest.raises(StructureError, match="'off', 'replay', 'native'"):
        prepare_jacobian(chain, point(9), compile="fast")  # type: ignore[arg-type]


def test_a_value_of_another_shape_is_refused() -> None:
    sizes = [9]
    prepared = prepare_jacobian(lambda u: u[: sizes[0]] ** 2, point(9))
    prepared(point(9))
    sizes[0] = 8
    with pytest.raises(StructureError, match=r"\[8\](.|\n)*prepare it again"):
        prepared(point(9))


def test_memory_budget() -> None:
    def blocks(u: Tensor) -> Tensor:
        return u.view(3, -1).softmax(1)

    prepared = prepare_jacobian(blocks, point(60), memory="40KiB")
    for seed in (1, 2):
        agree(prepared(point(60, seed), layout="dense").jacobian, rows(blocks, point(60, seed)))
    assert prepared._program.chunks > 1
    with pytest.raises(MemoryBudgetError, match="at least"):
        prepare_jacobian(blocks, point(60), memory=100)(point(60))


class Straight(torch.autograd.Function):
    """Rounds, and lets gradients through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


@pytest.mark.parametrize("mode", MODES)
def test_custom_functions(mode: Any) -> None:
    def f(u: Tensor) -> Tensor:
        return Straight.apply(u)[1:] * u[:-1]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]

    prepared = prepare_jacobian(f, point(7), compile=mode)
    for seed in (1, 2):
        agree(prepared(point(7, seed), layout="dense").jacobian, rows(f, point(7, seed)))


def test_explain() -> None:
    prepared = prepare_jacobian(chain, point(9))
    assert "not evaluated yet" in prepared.explain()
    assert "check: none yet" in prepared.explain()
    prepared(point(9))
    assert "evaluated once" in prepared.explain()
    prepared(point(9, 1))
    text = prepared.explain()
    parts = "Jacobian of shape 8 x 9: 16 entries", "products: 2", "otherwise: row 2", "replayed: ", "check: 2 runs agreed"
    for part in parts:
        assert part in text
