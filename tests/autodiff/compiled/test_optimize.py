"""Fewer operations, the same values; memory that is written to is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.autodiff.compiled.optimize import optimize
from hesse.autodiff.compiled.replay import Replay
from hesse.autodiff.compiled.trace import record

aten = torch.ops.aten
F64 = torch.float64


def compiled(run, inputs):
    trace, result = record(run, inputs)
    assert not trace.refused
    before = sum(n.op == "call_function" for n in trace.graph.nodes)
    optimize(trace)
    names = [n.target.overloadpacket.__name__ for n in trace.graph.nodes if hasattr(n.target, "overloadpacket")]
    return trace, result, names, before


def check(run, inputs, *others) -> list[str]:
    """Replay on the inputs and on others; the names of the operations that are left."""
    trace, _, names, _ = compiled(run, inputs)
    replay = Replay(trace)
    for given in (inputs, *others):
        inputs[:] = given
        torch.testing.assert_close(replay([*given, *trace.captured]), list(run()), rtol=1e-12, atol=1e-12)
    return names


def test_dead_code_and_repetitions_go() -> None:
    x = [torch.randn(3, 2, dtype=F64)]

    def run() -> tuple[Tensor, ...]:
        torch.exp(x[0])
        return (torch.sin(x[0]) * torch.sin(x[0]),)

    assert sorted(check(run, x, [torch.randn(3, 2, dtype=F64)])) == ["mul", "sin"]


def test_values_that_differ_by_type_only_are_not_shared() -> None:
    x = [torch.randn(3, dtype=F64)]
    check(lambda: (x[0] + 1, x[0] + True, x[0] * 0.0, x[0] * -0.0), x)
    trace, result, _, _ = compiled(lambda: (x[0] * 0.0, x[0] * -0.0), x)
    assert Replay(trace)(x)[1].signbit().tolist() == result[1].signbit().tolist()


def test_the_backward_of_a_sum_is_folded() -> None:
    x = [torch.randn(3, dtype=F64), torch.randn(3, dtype=F64)]

    def run() -> tuple[Tensor, ...]:
        leaf = x[0].detach().requires_grad_()
        with torch.enable_grad():
            value = (leaf * x[1]).sum()
        return torch.autograd.grad(value, leaf)

    names = check(run, x, [torch.randn(3, dtype=F64), torch.randn(3, dtype=F64)])
    assert set(names) <= {"mul", "clone"} and len(names) <= 1


def test_linear_layers_take_one_operation_forward() -> None:
    x = [torch.randn(4, 3, dtype=F64), torch.randn(3, 2, dtype=F64), torch.randn(2, dtype=F64)]
    assert check(lambda: (x[0] @ x[1] + x[2],), x) == ["addmm"]


def test_short_types_keep_their_roundings() -> None:
    x = [torch.randn(4, 300).half(), torch.randn(300, 2).half(), torch.randn(2).half()]
    trace, result, names, _ = compiled(lambda: (x[0] @ x[1] + x[2],), x)
    assert "addmm" not in names
    assert torch.equal(Replay(trace)(x)[0], result[0])


def test_pieces_side_by_side_are_concatenated() -> None:
    x = [torch.randn(2, 5, dtype=F64)]

    def run() -> tuple[Tensor, ...]:
        leaf = x[0].detach().requires_grad_()
        with torch.enable_grad():
            value = torch.sin(leaf[:, :3]).sum() + torch.exp(leaf[:, 3:]).sum()
        return torch.autograd.grad(value, leaf)

    names = check(run, x, [torch.randn(2, 5, dtype=F64)])
    assert "slice_backward" not in names and "cat" in names


@pytest.mark.parametrize("lengths", [(2, 3), (0, 5)])
def test_pieces_that_leave_a_gap_are_not(lengths) -> None:
    x = [torch.randn(2, 7, dtype=F64)]
    a, b = lengths

    def run() -> tuple[Tensor, ...]:
        leaf = x[0].detach().requires_grad_()
        with torch.enable_grad():
            value = torch.sin(leaf[:, :a]).sum() + torch.exp(leaf[:, a + 1 : b + 2]).sum()
        return torch.autograd.grad(value, leaf)

    check(run, x, [torch.randn(2, 7, dtype=F64)])


def test_writes_keep_their_order() -> None:
    x = [torch.randn(4, dtype=F64)]

    def run() -> tuple[Tensor, ...]:
        y = x[0].clone()
        before = y[:2] * 1
        y[0] = 7.0
        y.mul_(2)
        view = y[1:]
        view += before.sum()
        return y, before, torch.sin(y), torch.sin(x[0])

    check(run, x, [torch.randn(4, dtype=F64)])


def test_a_constant_that_is_written_to_is_new_at_each_call() -> None:
    x = [torch.randn(2, dtype=F64)]

    def run() -> tuple[Tensor, ...]:
        total = torch.tensor([0.0, 1.0], dtype=F64)
        total += x[0]
        return (total,)

    trace, result, _, _ = compiled(run, x)
    replay = Replay(trace)
    first, second = replay(x)[0], replay(x)[0]
    assert torch.equal(first, second) and torch.equal(first, result[0])


def test_results_share_no_memory_with_inputs_constants_or_each_other() -> None:
    x = [torch.randn(3, dtype=F64)]

    def run() -> tuple[Tensor, ...]:
        y = torch.sin(x[0])
        return x[0], x[0].view(1, 3), y, y[1:], y, torch.tensor([3.0]), torch.ones(2), x[0].sum().expand(4)

    trace, result, _, _ = compiled(run, x)
    found = Replay(trace)(x)
    torch.testing.assert_close(found, list(result), rtol=0, atol=0)
    memory = [t.untyped_storage().data_ptr() for t in (*found, *x, *trace.constants.values())]
    assert len(set(memory)) == len(memory)
    for t in found:
        t.add_(1)
    torch.testing.assert_close(Replay(trace)(x), list(result), rtol=0, atol=0)


def test_a_sum_over_one_sample_is_a_view() -> None:
    x = [torch.randn(1, 3, dtype=F64), torch.randn(1, 3, dtype=F64)]
    names = check(
        lambda: (torch.sin(x[0]).sum(0), (torch.cos(x[0]) * x[1]).sum(0, keepdim=True).view(3) * 2), x,
        [torch.randn(1, 3, dtype=F64), torch.randn(1, 3, dtype=F64)],
    )  # fmt: skip
    assert "sum" not in names


def test_random_numbers_are_drawn_although_nobody_uses_them() -> None:
    x = [torch.randn(3, dtype=F64)]

    def run() -> tuple[Tensor, ...]:
        torch.rand(5)
        return (torch.dropout(x[0], 0.5, True),)

    trace, _, _, _ = compiled(run, x)
    replay = Replay(trace)
    torch.manual_seed(3)
    expected = run()[0]
    torch.manual_seed(3)
    assert torch.equal(replay(x)[0], expected)


def test_a_product_added_to_itself() -> None:
    x = [torch.randn(3, 2, dtype=F64), torch.randn(2, 3, dtype=F64)]

    def run() -> tuple[Tensor, ...]:
        return x[0] @ x[1] + x[0] @ x[1], (x[0] + 1) @ x[1] + x[0] @ x[1]

    check(run, x, [torch.randn(3, 2, dtype=F64), torch.randn(2, 3, dtype=F64)])
