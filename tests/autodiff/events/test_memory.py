"""Which writes may have left something non-finite in a storage: whole ones, partial ones, and memory that is used again."""

from __future__ import annotations

import pytest
import torch

from hesse.autodiff.events.memory import Memory, address
from hesse.autodiff.events.records import Brief, Log, Record, Status, all_finite, forward_name
from hesse.autodiff.source_lines import Place

LOG = Log()


def brief(op: str = "op", *parents: int) -> Brief:
    return op, Place(None, "forward", ()), parents, (3,), torch.float32, False


def record(status: Status) -> Record:
    return LOG.new(brief(), status)


def test_partial_writes_leave_the_rest_in_doubt() -> None:
    memory, x = Memory(), torch.zeros(4)
    bad, worse, fine = record("offends"), record("offends"), record("fine")
    memory.put(x, bad)
    memory.put(x[:2], fine)
    assert memory.doubt[address(x)] == [bad]
    assert memory.latest[address(x)] == fine.number
    memory.put(x[2:], worse)
    assert memory.doubt[address(x)] == [bad, worse]
    assert not bad.read
    memory.put(x, fine)
    assert address(x) not in memory.doubt
    assert bad.read
    assert worse.read
    memory.close()
    assert not memory.latest


def test_an_address_is_not_used_again_while_it_is_known() -> None:
    memory, seen, x = Memory(), set[int](), torch.zeros(1)
    for _ in range(50):
        x = torch.zeros(3)
        key = address(x)
        assert key not in seen
        seen.add(key)
        memory.put(x, record("fine"))
        assert memory.alive(key)
    del x
    assert not any(memory.alive(key) for key in seen)
    memory.close()


def test_memory_is_swept() -> None:
    memory, kept = Memory(), torch.ones(2)
    memory.put(kept, record("offends"))
    for _ in range(10_000):
        memory.put(torch.zeros(1), record("fine"))
    assert len(memory.latest) < 10_000
    assert address(kept) in memory.doubt
    memory.close()


def test_sums_that_overflow_are_looked_at_again() -> None:
    largest = torch.full((3,), torch.finfo(torch.float32).max)
    assert all_finite(largest)
    assert all_finite(torch.full((70_000,), 1.0, dtype=torch.float16))
    for bad in (float("nan"), float("inf"), -float("inf")):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64):
            x = torch.ones(5, dtype=dtype)
            x[3] = bad
            assert not all_finite(x)
            assert not all_finite(torch.stack([x, -x]))
    assert all_finite(torch.ones(3, dtype=torch.float8_e4m3fn))
    assert not all_finite(torch.tensor([[0.0, float("nan")]]).to_sparse())


def test_records_are_kept_within_bounds() -> None:
    log = Log()
    first = log.new(brief(), "offends")
    log.keep(first)
    last = first
    for _ in range(20_000):
        last = log.new(brief(), "fine")
    assert log.get(first.number) is first
    assert log.get(last.number) is last
    assert log.get(5) is None
    assert log.many((0, 5, last.number)) == [first, last]
    assert log.bad == [first]


@pytest.mark.parametrize(
    "node, name",
    [
        ("SqrtBackward0", "sqrt"), ("LogSoftmaxBackward0", "log_softmax"), ("Log1PBackward0", "log1p"),
        ("MaxPool2DWithIndicesBackward0", "max_pool2d_with_indices"), ("Atan2Backward0", "atan2"),
        ("DivideBackward", "Divide"), ("BackwardsBackward", "Backwards"), ("struct torch::autograd::AccumulateGrad", ""),
        ("torch::autograd::CopySlices", ""), ("", ""),
    ],
)  # fmt: skip
def test_nodes_are_called_by_their_operation(node: str, name: str) -> None:
    assert forward_name(node) == name
