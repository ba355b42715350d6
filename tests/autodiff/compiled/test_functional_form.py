"""The functional form of a trace computes what the trace computed, and writes to nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp

from hesse.autodiff.compiled.functional_form import Functional, NativeUnavailable, functional_form
from hesse.autodiff.compiled.optimize import optimize
from hesse.autodiff.compiled.trace import Trace, record


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def traced(f: Callable[..., Any], *inputs: Tensor) -> Trace:
    copies = [t.clone() for t in inputs]  # a recorded run writes to what it is given
    trace, _ = record(lambda: f(*copies), copies)
    assert not trace.refused
    optimize(trace)
    return trace


def run(form: Functional, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return form.module(*inputs, *form.constants)


def writers(form: Functional) -> list[str]:
    return [str(n.target) for n in form.module.graph.nodes if n.op == "call_function" and n.target._schema.is_mutable]


def test_operations_in_place() -> None:
    def f(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        a = (x * 2).add_(y)
        a[0] = y[1]
        a[:, 1].mul_(3).sin_()
        return a, a.sum()

    inputs = numbers(4, 3), numbers(4, 3, seed=1)
    form = functional_form(traced(f, *inputs))
    assert not writers(form) and not form.written
    fresh = numbers(4, 3, seed=2), numbers(4, 3, seed=3)
    for found, wanted in zip(run(form, fresh), f(*fresh), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)


def test_written_inputs_are_outputs() -> None:
    def f(x: Tensor, memory: Tensor) -> Tensor:
        memory.mul_(0.5).add_(x.mean(0))
        return (x * memory).sum()

    form = functional_form(traced(f, numbers(4, 3), numbers(3, seed=1)))
    assert not writers(form)
    assert form.written == [1]
    x, memory = numbers(4, 3, seed=2), numbers(3, seed=3)
    loss, after = run(form, (x, memory))
    torch.testing.assert_close(memory, numbers(3, seed=3), rtol=0, atol=0)
    wanted = f(x, memory)
    torch.testing.assert_close((loss, after), (wanted, memory), rtol=1e-14, atol=0)


def test_constants() -> None:
    def f(x: Tensor) -> Tensor:
        return x * torch.tensor([1.0, 2.0, 4.0], dtype=x.dtype) + torch.tensor(3.0, dtype=x.dtype)

    form = functional_form(traced(f, numbers(4, 3)))
    assert [t.tolist() for t in form.constants] == [[1.0, 2.0, 4.0]]
    fresh = numbers(4, 3, seed=1)
    torch.testing.assert_close(run(form, (fresh,))[0], f(fresh), rtol=1e-15, atol=0)


def test_zero_tensors_get_memory() -> None:
    def f(w: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return jvp(grad(lambda w: torch.tanh(torch.tanh(x @ w) @ w).square().mean()), (w,), (v,))[1]

    trace = traced(f, numbers(3, 3), numbers(3, 3, seed=1), numbers(4, 3, seed=2))
    form = functional_form(trace)
    zeros = torch.ops.aten._efficientzerotensor.default
    assert any(node.target is zeros for node in trace.graph.nodes)
    assert not any(node.target is zeros for node in form.module.graph.nodes)
    fresh = numbers(3, 3, seed=3), numbers(3, 3, seed=4), numbers(4, 3, seed=5)
    torch.testing.assert_close(run(form, fresh)[0], f(*fresh), rtol=1e-12, atol=1e-14)


def test_reads_are_outputs_where_they_depend_on_data() -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        if torch.ops.aten.is_same_size(x, y) and x.sum().item() > 0 and not torch.equal(x, y):
            return x * max(x[0].tolist())
        return y

    x, y = numbers(2, 3).abs(), numbers(2, 3, seed=1)
    trace = traced(f, x, y)
    form = functional_form(trace)
    kinds = [(read.kind, read.node.target) for _, read in form.reads]
    assert [kind for kind, _ in kinds] == ["value", "value", "elements"]
    assert [trace.reads[index] for index, _ in form.reads] == [read for _, read in form.reads]
    total, equal, row, result = run(form, (x + 1, y))
    torch.testing.assert_close(total, (x + 1).sum(), rtol=1e-14, atol=0)
    assert equal.item() is False
    assert row.tolist() == (x + 1)[0].tolist()
    torch.testing.assert_close(result, (x + 1) * x[0].max(), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("f", "inputs", "reason"),
    [
        (lambda x: x[x > 0].sum(), (numbers(5),), "nonzero.* depends on values"),
        (lambda x: x.to_dense().sum() * 2, (numbers(3, 2).to_sparse(),), "layout torch.sparse_coo"),
        (lambda z: z.add_(1), (numbers(4, 3).T,), "not contiguous"),
    ],
)
def test_refused(f: Callable[..., Any], inputs: tuple[Tensor, ...], reason: str) -> None:
    copies = list(inputs)
    trace, _ = record(lambda: f(*copies), copies)
    optimize(trace)
    with pytest.raises(NativeUnavailable, match=reason) as caught:
        functional_form(trace)
    assert caught.value.reason == str(caught.value)


def test_lazily_conjugated_inputs_are_refused() -> None:
    z = torch.complex(numbers(3), numbers(3, seed=1))
    for tensor, word in ((z.conj(), "conjugated"), (z.conj().imag, "negated")):
        trace, _ = record(lambda t=tensor: t * 2, [tensor])
        optimize(trace)
        with pytest.raises(NativeUnavailable, match=word):
            functional_form(trace)


def test_written_inputs_that_share_memory_are_refused() -> None:
    base = numbers(5)
    first, second = base[:4], base[1:]
    trace, _ = record(lambda: first.mul_(2).sum() + second.sum(), [first, second])
    optimize(trace)
    with pytest.raises(NativeUnavailable, match="shares its memory"):
        functional_form(trace)


_POOLED = """
import torch
from hesse.autodiff.compiled.functional_form import functional_form
from hesse.autodiff.compiled.optimize import optimize
from hesse.autodiff.compiled.trace import record
x = torch.arange(32.0).reshape(1, 2, 4, 4).sin()
trace, _ = record(lambda: torch.nn.functional.max_pool2d(x, 2), [x])
optimize(trace)
form = functional_form(trace)
print("same:", torch.equal(form.module(x, *form.constants)[0], torch.nn.functional.max_pool2d(x, 2)))
"""


def test_max_pooling_in_a_new_process() -> None:
    done = subprocess.run([sys.executable, "-c", _POOLED], capture_output=True, text=True, timeout=300, check=False)
    assert "same: True" in done.stdout, done.stderr
