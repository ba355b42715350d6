"""Generated code: memory that is kept, reads that stop it, several threads."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from hesse.autodiff.compiled.bindings import call_of, out_variant
from hesse.autodiff.compiled.optimize import optimize
from hesse.autodiff.compiled.replay import Deviation, Replay
from hesse.autodiff.compiled.trace import record

aten = torch.ops.aten


def replay_of(run, inputs, *, bind: bool = True) -> Replay:
    trace, _ = record(run, inputs)
    optimize(trace)
    return Replay(trace, bind=bind)


def chain(x: Tensor) -> Tensor:
    for _ in range(6):
        x = torch.tanh(x) * 1.5
    return torch.sin(x).t() @ x


def test_buffers_are_shared_within_a_call_and_between_calls() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    replay = replay_of(lambda: chain(x), [x])
    kept = replay._buffers.make()
    assert 2 <= len(replay._buffers._kinds) <= 3 < 12  # twelve operations, of which two results live at a time
    assert all(t.dtype == torch.float64 for t in kept)
    assert torch.equal(replay([x])[0], chain(x))
    held = replay._pool[0]
    y = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(replay([y])[0], chain(y))
    assert len(replay._pool) == 1 and replay._pool[0] is held


def test_results_are_new_at_each_call() -> None:
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    replay = replay_of(lambda: (chain(x), torch.exp(x)), [x])
    first = replay([x])
    kept = [t.clone() for t in first]
    replay([y])
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_threads_do_not_share_buffers() -> None:
    xs = [torch.randn(40, 30, dtype=torch.float64) for _ in range(4)]
    replay = replay_of(lambda: chain(xs[0]), [xs[0]])
    wrong: list[int] = []

    def work(index: int) -> None:
        expected = chain(xs[index])
        for _ in range(100):
            if not torch.equal(replay([xs[index]])[0], expected):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_read_stops_the_run() -> None:
    x = torch.tensor([1.0, 2.0])

    def run() -> Tensor:
        return x * 2 if x.sum() > 0 else x * 3

    replay = replay_of(run, [x])
    assert torch.equal(replay([x])[0], x * 2)
    found = replay([-x])
    assert isinstance(found, Deviation) and found.index == 0 and found.found is False


def test_a_shape_that_depends_on_data_stops_the_run() -> None:
    x = torch.tensor([1.0, -2.0, 3.0])
    replay = replay_of(lambda: x[x > 0] * 2, [x])
    assert replay([torch.tensor([-1.0, 2.0, 5.0])])[0].tolist() == [4.0, 10.0]
    assert isinstance(replay([torch.ones(3)]), Deviation)


def test_no_version_counter_is_forgotten_where_inputs_are_written() -> None:
    x, total = torch.ones(2), torch.zeros(2)
    trace, _ = record(lambda: total.add_(x), [x, total])
    optimize(trace)
    version = total._version
    Replay(trace)([x, total])
    assert total._version > version and total.tolist() == [2.0, 2.0]


def test_overloads_and_bindings_give_the_same() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    bound, plain = replay_of(lambda: chain(x), [x]), replay_of(lambda: chain(x), [x], bind=False)
    assert torch.equal(bound([x])[0], plain([x])[0])
    assert bound.operations == plain.operations


def test_variants_that_write_have_kernels_of_their_own() -> None:
    assert out_variant(aten.mm.default) == (aten.mm.out, "out")
    assert out_variant(aten.tanh_backward.default) == (aten.tanh_backward.grad_input, "grad_input")
    assert out_variant(aten.embedding.default) is None  # PyTorch's embedding.out makes a copy
    assert out_variant(aten.max_pool2d_with_indices.default) is None  # two results
    assert call_of(aten.mm.default, into=True, bind=True).function is torch._C._VariableFunctions.mm
    assert call_of(aten.mm.default, into=True, bind=False).function is aten.mm.out._op
