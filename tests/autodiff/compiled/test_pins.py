"""Pins compare the values of closed-over tensors, whoever wrote them, and of sparse ones the places of the entries."""

from __future__ import annotations

import pytest
import torch

from hesse.autodiff.compiled.function import CompiledFunction
from hesse.autodiff.compiled.pins import Pins


def test_values_are_compared() -> None:
    index, weight = torch.arange(4), torch.ones(4)
    pins = Pins([weight, index], lambda t: not t.is_floating_point())
    assert len(pins) == 1
    assert pins.changed([weight * 2, index.clone()]) == []
    index.numpy()[2] = 0
    assert pins.changed([weight, index]) == ["torch.int64 of shape (4,)"]
    assert pins.changed([weight, torch.arange(4)]) == []


@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csr", "to_sparse_csc"])
def test_sparse_tensors_are_compared_by_their_places(layout: str) -> None:
    matrix = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]])
    pins = Pins([getattr(matrix, layout)()], lambda t: True)
    assert pins.changed([getattr(matrix * 2, layout)()]) == []
    assert len(pins.changed([getattr(matrix.flip(0), layout)()])) == 1


def test_blocks_are_compared_by_their_places() -> None:
    matrix = torch.eye(4)
    for layout in ("to_sparse_bsr", "to_sparse_bsc"):
        pins = Pins([getattr(matrix, layout)((2, 2))], lambda t: True)
        assert pins.changed([getattr(3 * matrix, layout)((2, 2))]) == []
        assert len(pins.changed([getattr(matrix.roll(2, 0), layout)((2, 2))])) == 1


def test_paths_hold_for_pinned_values_only() -> None:
    held = {"index": torch.tensor([2, 0, 1]), "weight": torch.ones(3)}
    seen: list[list[str]] = []

    def f(x: torch.Tensor) -> torch.Tensor:
        return x[held["index"]] * held["weight"]

    made = CompiledFunction(f, f, mode="replay")
    made.watches, made.moved = (lambda t: not t.is_floating_point()), seen.append
    x = torch.arange(3.0)
    made((x,), {})
    for weight in (2.0, 3.0):
        held["weight"] = torch.full((3,), weight)
        assert torch.equal(made((x,), {}), x[held["index"]] * weight)
    assert len(made.paths()) == 1
    assert not seen
    held["index"] = torch.tensor([1, 1, 0])
    assert torch.equal(made((x,), {}), x[held["index"]] * 3)
    assert seen == [["torch.int64 of shape (3,)"]]
    assert len(made.paths()) == 2


@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csr", "to_sparse_csc"])
def test_sparse_constants_are_recorded(layout: str) -> None:
    dense = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]], dtype=torch.float64)
    held = {"matrix": getattr(dense, layout)()}

    def f(x: torch.Tensor) -> torch.Tensor:
        return (held["matrix"] @ x) ** 2

    made = CompiledFunction(f, f, mode="replay")
    for scale in (1.0, 2.0, -1.0):
        held["matrix"] = getattr(dense * scale, layout)()
        x = torch.arange(3.0, dtype=torch.float64) + scale
        torch.testing.assert_close(made((x,), {}), (scale * (dense @ x)) ** 2)
    assert len(made.paths()) == 1
    held["matrix"] = getattr(torch.ones(2, 3, dtype=torch.float64), layout)()  # more entries
    torch.testing.assert_close(made((x,), {}), x.sum().expand(2) ** 2)
    assert len(made.paths()) == 2
