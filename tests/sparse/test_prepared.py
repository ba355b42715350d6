"""What a prepared derivative does about what changes between its evaluations, and about what it is not made for."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hesse.core.errors import StructureError, UnsupportedError
from hesse.sparse import coloring, prepare_hessian, prepare_jacobian

REAL = torch.float64


def point(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dtype=REAL, generator=torch.Generator().manual_seed(seed))


def rows(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The Jacobian, one row after the other."""
    leaf = x.detach().clone().requires_grad_()
    return torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in f(leaf)])


def agree(prepared: Any, f: Callable[[Tensor], Tensor], x: Tensor) -> None:
    torch.testing.assert_close(prepared(x, layout="dense").jacobian, rows(f, x), rtol=1e-12, atol=1e-12)


def neighbor(x: Tensor) -> Tensor:
    return x * x.roll(1)


class Held:
    """Constants of a function, in a place where they can be replaced."""

    def __init__(self) -> None:
        self.index = torch.arange(6).roll(1)
        self.mask = torch.tensor([1, 0, 1, 0, 1, 0], dtype=REAL)
        self.matrix = torch.eye(6, dtype=REAL)

    def picked(self, x: Tensor) -> Tensor:
        return x[self.index] * x

    def chosen(self, x: Tensor) -> Tensor:
        return torch.where(self.mask > 0, x, x.roll(1)) * x

    def multiplied(self, x: Tensor) -> Tensor:
        return (self.matrix @ x) ** 2


def replace_index(held: Held) -> None:
    held.index = torch.arange(6).roll(2)


def write_index(held: Held) -> None:
    held.index.copy_(torch.arange(6).roll(2))


def write_data(held: Held) -> None:
    held.index.data.copy_(torch.arange(6).roll(2))


def write_numpy(held: Held) -> None:
    held.index.numpy()[:] = np.roll(np.arange(6), 2)


def replace_mask(held: Held) -> None:
    held.mask = 1 - held.mask


def write_mask_numpy(held: Held) -> None:
    held.mask.numpy()[:] = 1 - held.mask.numpy()


CHANGES = {
    "index replaced": ("picked", replace_index),
    "index written": ("picked", write_index),
    "index .data": ("picked", write_data),
    "index by NumPy": ("picked", write_numpy),
    "mask replaced": ("chosen", replace_mask),
    "mask by NumPy": ("chosen", write_mask_numpy),
}


@pytest.mark.parametrize("before", [1, 2, 3, 5])
@pytest.mark.parametrize("name", CHANGES)
def test_constants_that_move_entries_are_seen_at_once(name: str, before: int) -> None:
    which, change = CHANGES[name]
    held = Held()
    prepared = prepare_jacobian(getattr(held, which), point(6))
    for seed in range(before):
        agree(prepared, getattr(held, which), point(6, seed))
    change(held)
    for _ in range(2):
        with pytest.raises(StructureError, match=r"prepare it again|where the pattern gives"):
            prepared(point(6, 9))


def test_masks_that_move_within_a_given_pattern() -> None:
    held, band = Held(), torch.eye(6) + torch.eye(6).roll(-1, 1) > 0
    prepared = prepare_jacobian(held.chosen, point(6), pattern=band)
    for seed in range(9):
        held.mask = (torch.rand(6, generator=torch.Generator().manual_seed(seed)) > 0.5).to(REAL)
        agree(prepared, held.chosen, point(6, seed))


def test_a_mask_that_moves_within_a_found_pattern() -> None:
    """The pattern is found again at the first change, and does not hold at the second one."""
    held = Held()

    def picked(x: Tensor) -> Tensor:
        return x[held.index] * x + x.roll(1) + x.roll(2)

    prepared = prepare_jacobian(picked, point(6))
    for seed in range(3):
        agree(prepared, picked, point(6, seed))
    for seed in range(3):
        held.index = torch.arange(6).roll(2 - seed % 2)
        agree(prepared, picked, point(6, seed))
        agree(prepared, picked, point(6, seed + 1))
    assert "replayed" in prepared.explain()
    held.index = torch.arange(6).roll(3)
    with pytest.raises(StructureError, match="where the pattern gives 0"):
        prepared(point(6))


def test_replaced_by_equal_values() -> None:
    held = Held()
    prepared = prepare_jacobian(held.picked, point(6))
    for seed in range(6):
        held.index = held.index.clone()
        agree(prepared, held.picked, point(6, seed))
    assert "replayed" in prepared.explain()


def test_changing_indices_are_followed_and_checked() -> None:
    """Within a full pattern any index will do; each replay is checked once they have changed."""
    held = Held()
    band = sum(torch.eye(6).roll(k, 1) for k in (0, -1, -2)) > 0
    prepared = prepare_jacobian(held.picked, point(6), pattern=band)
    for seed in range(9):
        held.index = torch.arange(6).roll(1 + seed % 2)
        agree(prepared, held.picked, point(6, seed))
    held.index = torch.arange(6).roll(3)
    with pytest.raises(StructureError, match="where the pattern gives 0"):
        prepared(point(6))


@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csr", "to_sparse_csc"])
def test_sparse_constants(layout: str) -> None:
    held = Held()
    held.matrix = getattr(torch.eye(6, dtype=REAL).roll(1, 0) * point(6), layout)()
    prepared = prepare_jacobian(held.multiplied, point(6))
    for seed in range(5):
        agree(prepared, held.multiplied, point(6, seed))
    assert "replayed" in prepared.explain()
    held.matrix = held.matrix * 2.0
    agree(prepared, held.multiplied, point(6, 7))
    held.matrix = getattr(torch.eye(6, dtype=REAL).roll(2, 0), layout)()
    with pytest.raises(StructureError):
        prepared(point(6, 8))


def test_a_given_pattern_is_checked_beside_a_point_of_zeros() -> None:
    prepared = prepare_jacobian(neighbor, torch.zeros(5, dtype=REAL), pattern=torch.eye(5))
    with pytest.raises(StructureError, match="where the pattern gives 0"):
        prepared(torch.zeros(5, dtype=REAL))
    tree = prepare_hessian(lambda p: (p["a"] * p["b"]).sum() ** 3, {"a": torch.zeros(3), "b": torch.zeros(3)},
                           pattern=torch.eye(6).roll(3, 0) > 0)  # fmt: skip
    with pytest.raises(StructureError, match="where the pattern gives 0"):
        tree({"a": torch.zeros(3), "b": torch.zeros(3)})


@pytest.mark.parametrize("raises", [True, False])
def test_beside_a_point_the_function_may_be_undefined(raises: bool) -> None:
    def bounded(x: Tensor) -> Tensor:
        if raises and not torch.equal(x.detach(), point(5)):
            raise ValueError("not there")
        return x.where(x == point(5), torch.nan) * x

    prepared = prepare_jacobian(bounded, point(5), pattern=torch.eye(5))
    agree(prepared, bounded, point(5))


def test_an_entry_that_was_zero_by_accident_is_found_out_later() -> None:
    """The missing entries vanish at the first points and beside them."""

    def flat(x: Tensor) -> Tensor:
        return x * (x.roll(1) - 1).relu()

    prepared = prepare_jacobian(flat, torch.zeros(5, dtype=REAL), pattern=torch.eye(5))
    for _ in range(3):
        prepared(torch.zeros(5, dtype=REAL))
    with pytest.raises(StructureError, match="where the pattern gives 0"):
        prepared(point(5).abs() + 2)


def test_parameters_closed_over() -> None:
    layer = nn.Linear(4, 4).double()
    prepared = prepare_jacobian(layer, point(4))
    for seed in range(3):
        prepared(point(4, seed))
    assert "runs directly" in prepared.explain()
    assert "torch.no_grad()" in prepared.explain()
    with torch.no_grad():
        for seed in range(3):
            prepared(point(4, seed))
    assert "replayed: " in prepared.explain()
    assert "with gradients enabled" in prepared.explain()


OPTIONS = {
    "compile": (lambda: prepare_jacobian(neighbor, point(5), compile="jit"), "compile='jit'"),  # type: ignore[arg-type]
    "memory": (lambda: prepare_jacobian(neighbor, point(5), memory="lots"), "memory"),
    "memory of Hessians": (lambda: prepare_hessian(lambda x: x.sum() ** 2, point(5), memory=-5), "memory"),
    "kind": (lambda: prepare_jacobian(neighbor, point(5), kind="foo"), "kind='foo'"),  # type: ignore[arg-type]
    "star": (lambda: prepare_jacobian(lambda x: x**2, point(5), kind="star"), "kind='star'"),
    "acyclic": (lambda: prepare_jacobian(lambda x: x**2, point(5), kind="acyclic"), "kind='acyclic'"),
    "row of Hessians": (lambda: prepare_hessian(lambda x: x.sum() ** 2, point(5), kind="row"), "kind='row'"),
    "colors": (lambda: prepare_jacobian(neighbor, point(5), kind="column", pattern=coloring(torch.ones(5, 5), kind="row")),
               "kind='column'"),
    "star colors": (lambda: prepare_jacobian(neighbor, point(5), pattern=coloring(torch.ones(5, 5), kind="star")), "star"),
    "not a function": (lambda: prepare_jacobian(3, point(5)), "int in the place of the function"),  # type: ignore[arg-type]
    "a value": (lambda: prepare_hessian(point(1), point(1)), "tensor in the place of the function"),  # type: ignore[arg-type]
    "meta": (lambda: prepare_jacobian(neighbor, point(5).to("meta")), "meta"),
    "meta pattern": (lambda: prepare_jacobian(neighbor, point(5), pattern=torch.ones(5, 5, device="meta")), "meta"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_refused_by_name(name: str) -> None:
    make, words = OPTIONS[name]
    with pytest.raises((StructureError, UnsupportedError), match=words) as error:
        make()
    assert error.value.remedy


def test_the_budget_holds_for_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    from hesse.core.memory import current_budget
    from hesse.sparse import prepare

    original = prepare.found_within

    def watched(f: Any, x: Any, bound: Any, **options: Any) -> Any:
        seen.extend([current_budget(None), bound.room.given])
        return original(f, x, bound, **options)

    monkeypatch.setattr(prepare, "found_within", watched)
    prepare_jacobian(neighbor, point(5), memory="100MiB")
    assert seen == [100 * 2**20, 100 * 2**20]


class Model(nn.Module):
    """Holds indices."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("index", torch.arange(6).roll(1))

    def forward(self, x: Tensor) -> Tensor:
        return x[self.index] * x  # type: ignore[index]


@pytest.mark.parametrize("f", [neighbor, Model()], ids=["function", "module"])
@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda p: pickle.loads(pickle.dumps(p))],
                         ids=["deepcopy", "copy", "pickle"])  # fmt: skip
@pytest.mark.parametrize("calls", [0, 3])
def test_copies(f: Any, again: Any, calls: int) -> None:
    prepared = prepare_jacobian(f, point(6))
    for seed in range(calls):
        prepared(point(6, seed))
    other = again(prepared)
    assert other.colored.pattern == prepared.colored.pattern
    for seed in range(4):
        agree(other, f, point(6, seed))
        agree(prepared, f, point(6, seed))


def test_copies_check_what_they_cannot_watch() -> None:
    model = Model()
    prepared = copy.deepcopy(prepare_jacobian(lambda x: model(x), point(6)))
    for seed in range(3):
        agree(prepared, model, point(6, seed))
    model.index = torch.arange(6).roll(2)
    with pytest.raises(StructureError, match="where the pattern gives 0"):
        prepared(point(6))


@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "scipy", "blocks"])
def test_layouts_under_vmap(layout: Any) -> None:
    prepared = prepare_jacobian(neighbor, point(5))
    many = torch.stack([point(5, seed) for seed in range(3)])
    with pytest.raises(UnsupportedError, match="layout='dense'"):
        torch.func.vmap(lambda x: prepared(x, layout=layout).jacobian)(many)
    found = torch.func.vmap(lambda x: prepared(x, layout="dense").jacobian)(many)
    torch.testing.assert_close(found, torch.stack([rows(neighbor, x) for x in many]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prepare", [prepare_jacobian, prepare_hessian])
def test_preparing_inside_a_transform(prepare: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"torch\.func"):
        torch.func.vmap(lambda x: prepare(lambda z: z.square().sum()[None].sum(), x)(x)[0])(point(6).view(2, 3))


def test_long_functions_are_recorded_late() -> None:
    def long(x: Tensor) -> Tensor:
        for _ in range(160):
            x = x * 0.99 + 0.01
        return x * x.roll(1)

    prepared = prepare_jacobian(long, point(3))
    for seed in range(9):
        prepared(point(3, seed))
    assert "runs directly: the 10th evaluation is recorded" in prepared.explain()
    for seed in range(9, 13):
        agree(prepared, long, point(3, seed))
    assert "evaluation: replayed: " in prepared.explain()


def test_many_columns_are_computed_as_rows() -> None:
    full = prepare_jacobian(lambda x: x * x.sum() ** 2, point(33))
    assert full.colored.kind == "row"
    agree(full, lambda x: x * x.sum() ** 2, point(33, 1))
    assert prepare_jacobian(lambda x: x * x.sum() ** 2, point(32)).colored.kind == "column"
    assert prepare_jacobian(lambda x: x * x.sum() ** 2, point(33), kind="column").colored.kind == "column"


def test_where_no_pattern_was_given_none_is_blamed() -> None:
    flags = {"shift": 1}
    prepared = prepare_jacobian(lambda x: x * x.roll(flags["shift"]), point(5))
    prepared(point(5))
    flags["shift"] = 2
    with pytest.raises(StructureError, match="prepare it again") as error:
        prepared(point(5))
    assert "pass no pattern" not in str(error.value)
    given = prepare_jacobian(neighbor, point(5), pattern=torch.eye(5))
    with pytest.raises(StructureError, match="pass no pattern, or one with this entry"):
        given(point(5))
