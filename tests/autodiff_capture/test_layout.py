"""Where the samples are: axes from shapes, merged axes from cotangents, samples taken out with their memory layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hesse.autodiff.layout import Walk, same_program, sample_axis, split_axis
from hesse.autodiff.model import select_rows
from hesse.rules.layers import SampleAxis


def test_the_axis_that_changes_holds_the_samples() -> None:
    assert sample_axis((6, 4), (3, 4), 6, 3) == SampleAxis(0, 1, 1)
    assert sample_axis((4, 30), (4, 15), 6, 3) == SampleAxis(1, 1, 5)
    assert sample_axis((4, 5), (4, 5), 6, 3) is None
    assert sample_axis((6, 6), (3, 3), 6, 3) is False  # two axes
    assert sample_axis((7,), (4,), 6, 3) is False  # one more than samples
    assert sample_axis((12,), (9,), 6, 3) is False  # two a sample, then three
    assert sample_axis((6, 4), (3, 4, 1), 6, 3) is False


def test_what_leads_to_no_parameter_is_no_part_of_a_walk() -> None:
    w, x = torch.randn(3, 4, requires_grad=True), torch.randn(5, 3)

    def walk(given: Tensor) -> Walk:
        return Walk.of(((given @ w).tanh() * given.sum()).cos(), {"w": w})

    plain, leaf = walk(x), walk(x.clone().requires_grad_())
    taken = walk(x.clone().requires_grad_()[torch.arange(2)] * 2)
    for other in (leaf, taken):
        assert same_program(plain, other) and [node.name() for node in other.nodes] == [node.name() for node in plain.nodes]
    assert not same_program(plain, Walk.of((x @ w).tanh().cos(), {"w": w}))
    unused = Walk.of(x.clone().requires_grad_().sum(), {"w": w})
    assert [node.name() for node in unused.nodes] == ["SumBackward0"] and unused.edges == ((None,),)


def _cotangents(owner: list[int], count: int) -> list[Tensor]:
    return [torch.tensor([[float(place == sample)] for place in owner]) for sample in range(count)]


def test_cotangents_tell_sample_major_from_time_major() -> None:
    guess = SampleAxis(0, 1, 4)
    major = split_axis(guess, _cotangents([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], 3))
    assert major.axes == (SampleAxis(0, 1, 4),) and major.is_alive and not major.is_mixed
    assert split_axis(guess, _cotangents([0, 1, 2] * 4, 3)).axes == (SampleAxis(0, 4, 1),)
    assert split_axis(guess, _cotangents([0, 0, 1, 1, 2, 2] * 2, 3)).axes == (SampleAxis(0, 2, 2),)


def test_cotangents_that_say_little_leave_several_layouts() -> None:
    nothing = split_axis(SampleAxis(0, 1, 4), [torch.zeros(12, 1)] * 3)
    assert len(nothing.axes) == 3 and not nothing.is_alive
    first_only = split_axis(SampleAxis(0, 1, 4), _cotangents([0, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 2], 3))
    assert len(first_only.axes) > 1 and first_only.is_alive


def test_cotangents_of_mixed_and_of_moved_samples() -> None:
    moved = split_axis(SampleAxis(0, 1, 1), _cotangents([1, 0, 2], 3))
    assert moved.axes == () and not moved.is_mixed
    mixed = split_axis(
        SampleAxis(0, 1, 1), [torch.tensor([[1.0], [0.2], [0.0]]), torch.tensor([[0.0], [1.0], [0.0]]), torch.zeros(3, 1)]
    )
    assert mixed.axes == () and mixed.is_mixed


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "batch second": lambda x: x.transpose(0, 1),
    "batch last": lambda x: x.permute(2, 0, 1),
    "every second": lambda x: x[..., ::2],
    "part of a larger one": lambda x: x[:, 1:4, 2:5],
    "expanded": lambda x: x[:, :1].expand_as(x),
    "one sample repeated": lambda x: x[:1].expand_as(x),
    "windows": lambda x: x.unfold(1, 3, 1),
    "channels last": lambda x: x[:, :, None].to(memory_format=torch.channels_last),
    "vector": lambda x: x[:, 0, 0],
}


@pytest.mark.parametrize("name", VIEWS)
def test_selected_samples_keep_values_and_layout(name: str) -> None:
    x = VIEWS[name](torch.arange(7 * 6 * 5.0).reshape(7, 6, 5))
    for rows in (torch.tensor([2]), torch.tensor([4, 0, 4]), torch.arange(len(x)).roll(1)):
        taken = select_rows({"x": x, "option": "sum"}, rows)
        assert torch.equal(taken["x"], x[rows]) and taken["option"] == "sum"
        if name not in ("windows", "vector"):
            assert taken["x"].is_contiguous() == x.is_contiguous() or len(rows) == 1


def _walk(function: Callable[[Tensor, Tensor], Tensor], count: int = 5) -> Walk:
    w = torch.ones(4, 3, requires_grad=True)
    return Walk.of(function(torch.ones(count, 4), w), {"w": w})


def test_signatures_tell_programs_apart() -> None:
    base = _walk(lambda x, w: (x @ w).sum(1))
    assert base.signature() == _walk(lambda x, w: (x @ w).sum(1)).signature()
    others: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, w: (x @ w).prod(1),
        lambda x, w: (x @ w.tanh()).sum(1),
        lambda x, w: (x @ w).sum(1, keepdim=True)[:, 0],
        lambda x, w: torch.stack([(x @ w).sum(1)] * 2)[1],
    ]
    assert all(base.signature() != _walk(other).signature() for other in others)
    assert _walk(lambda x, w: (x @ w).flip(0)).signature() != _walk(lambda x, w: (x @ w).flip(1)).signature()
    assert _walk(lambda x, w: (x @ w).unbind(1)[0]).signature() != _walk(lambda x, w: (x @ w).unbind(1)[1]).signature()
    assert same_program(base, _walk(lambda x, w: (x @ w).sum(1), count=3))
    assert not same_program(base, _walk(lambda x, w: (x @ w).sum(1) + 1, count=3))
