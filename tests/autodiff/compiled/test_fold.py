"""Constants that follow from fixed tensors, sums of pieces, and operations that change nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from hesse.autodiff.compiled.optimize import optimize
from hesse.autodiff.compiled.replay import Deviation, Replay
from hesse.autodiff.compiled.trace import Trace, record

REAL = torch.float64
X = torch.randn(3, 6, dtype=REAL, generator=torch.Generator().manual_seed(0))
FIXED = torch.randn(3, 6, dtype=REAL, generator=torch.Generator().manual_seed(1))


def compiled(f: Callable[[Tensor], Tensor], fixed: Sequence[Tensor] = (FIXED,)) -> tuple[Trace, Counter[str]]:
    """The optimized trace of a function of X, after comparing its replay at two points; and how often it calls each op."""
    trace, _ = record(lambda: f(X), [X], {id(t): t for t in fixed})
    assert not trace.refused
    optimize(trace)
    replay = Replay(trace)
    for point in (X, X.sin()):
        found = replay([point, *trace.captured])
        assert not isinstance(found, Deviation)
        torch.testing.assert_close(found[0], f(point), rtol=1e-13, atol=1e-13)
    return trace, Counter(replay.operations)


def test_what_follows_from_fixed_tensors_is_computed_once() -> None:
    trace, calls = compiled(lambda x: x * (FIXED.roll(1, 1) - 2 * FIXED).exp())
    assert calls == {"mul": 1}
    assert len(trace.constants) == 1


def test_others_are_inputs_and_are_followed() -> None:
    held = FIXED.clone()
    trace, _ = record(lambda: X * held.exp(), [X], {id(FIXED): FIXED})
    optimize(trace)
    replay = Replay(trace)
    assert trace.captured == [held]
    held.mul_(2)
    found = replay([X, held])
    assert not isinstance(found, Deviation)
    torch.testing.assert_close(found[0], X * held.exp())


def test_what_is_too_large_is_computed_each_time() -> None:
    trace, _ = record(lambda: X * FIXED.exp(), [X], {id(FIXED): FIXED})
    trace.folding = FIXED.numel() * 8 - 1
    optimize(trace)
    assert "exp" in Replay(trace).operations


def test_memory_of_all_constants_is_bounded() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.cat([x * (FIXED + k).exp() for k in range(5)])

    trace, _ = record(lambda: f(X), [X], {id(FIXED): FIXED})
    trace.folding = FIXED.numel() * 8
    optimize(trace)
    assert Counter(Replay(trace).operations)["exp"] == 4  # one of five, and what the next one begins with
    kept = [name for name in trace.constants if name.startswith("folded")]
    assert sum(trace.constants[name].numel() for name in kept) <= 2 * FIXED.numel()


@pytest.mark.parametrize(
    ("pieces", "left"),
    [
        (lambda x: [(0, 2, x[:, :2]), (2, 6, x[:, 2:])], 0),
        (lambda x: [(4, 6, x[:, :2]), (0, 1, x[:, 5:]), (1, 4, x[:, :3])], 0),
        (lambda x: [(0, 3, x[:, :3]), (3, 6, x[:, 3:]), (1, 5, x[:, 1:5])], 1),
    ],
    ids=["two", "three", "overlap"],
)
def test_slices_side_by_side_are_joined(pieces: Callable[[Tensor], list[tuple[int, int, Tensor]]], left: int) -> None:
    def f(x: Tensor) -> Tensor:
        parts = [torch.ops.aten.slice_backward(p.sin(), [3, 6], 1, a, b, 1) for a, b, p in pieces(x)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total * 2

    _, calls = compiled(f)
    assert calls["cat"] == 1
    assert calls["slice_backward"] == left


def test_selections_side_by_side_are_stacked() -> None:
    def f(x: Tensor) -> Tensor:
        parts = [torch.ops.aten.select_backward(x[:, k].exp(), [3, 3], 1, 2 - k) for k in range(3)]
        return (parts[0] + x[:, :3]) + (parts[1] + parts[2])

    _, calls = compiled(f)
    assert calls["cat"] == 1
    assert not calls["select_backward"]


def test_pieces_with_a_gap_are_left() -> None:
    def f(x: Tensor) -> Tensor:
        a = torch.ops.aten.slice_backward(x[:, :2].sin(), [3, 6], 1, 0, 2, 1)
        return a + torch.ops.aten.slice_backward(x[:, 3:].sin(), [3, 6], 1, 3, 6, 1)

    assert not compiled(f)[1]["cat"]


def test_a_piece_that_is_used_elsewhere_stays() -> None:
    def f(x: Tensor) -> Tensor:
        a = torch.ops.aten.slice_backward(x[:, :2].sin(), [3, 6], 1, 0, 2, 1)
        return (a + torch.ops.aten.slice_backward(x[:, 2:].sin(), [3, 6], 1, 2, 6, 1)) * a

    compiled(f)


@pytest.mark.parametrize(
    ("f", "calls"),
    [
        (lambda x: (FIXED - x.sin()) + FIXED.exp(), {"sin": 1, "sub": 1}),
        (lambda x: (x.sin() - FIXED) - FIXED.exp(), {"sin": 1, "add": 1}),
        (lambda x: FIXED - (x.sin() - FIXED.exp()), {"sin": 1, "sub": 1}),
        (lambda x: FIXED - (FIXED.exp() - x.sin()), {"sin": 1, "add": 1}),
        (lambda x: (x.sin() + FIXED) + FIXED.exp(), {"sin": 1, "add": 1}),
        (lambda x: x.sin() + (-x.cos()), {"sin": 1, "cos": 1, "sub": 1}),
        (lambda x: (-x.cos()) + x.sin(), {"sin": 1, "cos": 1, "sub": 1}),
        (lambda x: x.sin().pow(1.0) * x.cos().pow(0) * 1.0, {"sin": 1}),
    ],
)
def test_fewer_operations(f: Callable[[Tensor], Tensor], calls: dict[str, int]) -> None:
    assert compiled(f)[1] == calls


def test_a_sum_that_is_read_keeps_its_last_bit() -> None:
    def f(x: Tensor) -> Tensor:
        total = (x.sin() + FIXED) + FIXED.exp()
        return x * 2 if float(total[0, 0]) != 0.5 else x

    trace, _ = record(lambda: f(X), [X], {id(FIXED): FIXED})
    optimize(trace)
    assert Counter(Replay(trace).operations)["add"] == 2
