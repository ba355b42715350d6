"""A recorded run holds what was computed, what was read, and what cannot be repeated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hesse.autodiff.compiled.trace import Trace, record, same_value
from hesse.autodiff.compiled.unrecorded import note_irregular
from hesse.parameters.contractions.moments import Known

aten = torch.ops.aten


def targets(trace: Trace) -> list[str]:
    return [n.target.overloadpacket.__name__ for n in trace.graph.nodes if hasattr(n.target, "overloadpacket")]


def test_forward_and_backward_are_recorded_with_their_phase_and_line() -> None:
    w = torch.randn(3, dtype=torch.float64)

    def run() -> Tensor:
        leaf = w.detach().requires_grad_()
        with torch.enable_grad():
            value = torch.sin(leaf).sum()
        return torch.autograd.grad(value, leaf)[0]

    trace, result = record(run, [w])
    assert torch.equal(result, w.cos())
    phases = {n.target.overloadpacket.__name__: n.meta["phase"] for n in trace.graph.nodes if "phase" in n.meta and
              hasattr(n.target, "overloadpacket")}  # fmt: skip
    assert phases["sin"] == "forward" and phases["cos"] == "backward"
    sources = {n.target.overloadpacket.__name__: n.meta["source"] for n in trace.graph.nodes if n.meta.get("source") and
               hasattr(n.target, "overloadpacket")}  # fmt: skip
    assert sources["sin"].file == __file__ and sources["sin"].line == sources["cos"].line


def test_closed_over_tensors_become_inputs_and_data_becomes_a_constant() -> None:
    x, hidden = torch.randn(2), torch.randn(2)
    trace, _ = record(lambda: x * hidden + torch.tensor([1.0, 2.0]), [x])
    assert [t is hidden for t in trace.captured] == [True]
    assert [t.tolist() for t in trace.constants.values()] == [[1.0, 2.0]]
    assert [n.name for n in trace.graph.nodes if n.op == "placeholder"] == ["input_0", "captured_0"]


@pytest.mark.parametrize(
    ("read", "kind", "expected"),
    [
        (lambda x: bool(x.sum() > 0), "value", True),
        (lambda x: x[1].item(), "value", 2.0),
        (lambda x: int(x[0]), "value", 1.0),
        (lambda x: x.tolist(), "elements", [1.0, 2.0, -1.0]),
        (lambda x: torch.equal(x, x), "value", True),
        (lambda x: x[x > 0], "shape", (2,)),
        (lambda x: torch.nonzero(x), "shape", (3, 1)),
        (lambda x: torch.unique(x), "shape", (3,)),
    ],
)
def test_reads(read, kind, expected) -> None:
    x = torch.tensor([1.0, 2.0, -1.0])

    def run() -> Tensor:
        read(x)
        return x * 2

    trace, _ = record(run, [x])
    assert not trace.refused
    assert any(r.kind == kind and r.expected == expected for r in trace.reads)


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
        lambda x: x.data_ptr(),
        lambda x: x.untyped_storage(),
        lambda x: setattr(x, "data", torch.zeros(3)),
        lambda x: setattr(x, "grad", torch.zeros(3)),
        lambda x: (x.detach().requires_grad_() * 2).sum().backward(),
        lambda x: torch.autograd.backward((x.detach().requires_grad_() * 2).sum()),
        lambda x: x.clone().resize_(2),
        lambda x: torch.tensor([0.0] * 70000),
    ],
)
def test_what_cannot_be_repeated_is_refused_after_the_run_went_on_to_its_end(act) -> None:
    x = torch.tensor([1.0, 2.0, -1.0])

    def run() -> Tensor:
        with torch.enable_grad():
            act(x)
        return torch.ones(1) * 7

    trace, result = record(run, [x])
    assert trace.refused
    assert result.item() == 7


def test_results_that_hold_more_than_tensors_and_plain_values_are_refused() -> None:
    class Holder:
        def __init__(self, value: Tensor) -> None:
            self.value = value

    x = torch.ones(2)
    assert "Holder" in record(lambda: (x * 2, Holder(x)), [x])[0].refused
    assert not record(lambda: (x * 2, "name", 3, None), [x])[0].refused


def test_writes_are_seen_also_where_the_schema_hides_them() -> None:
    x, mean, variance = torch.randn(4, 3), torch.zeros(3), torch.ones(3)
    trace, _ = record(lambda: torch.nn.functional.batch_norm(x, mean, variance, training=True), [x, mean, variance])
    assert trace.aliases.written & trace.aliases.external
    trace, _ = record(lambda: torch.nn.functional.batch_norm(x, mean, variance, training=False), [x, mean, variance])
    assert not trace.aliases.written
    trace, _ = record(lambda: x.clone().mul_(2), [x])
    assert trace.aliases.written and not trace.aliases.written & trace.aliases.external


def test_random_numbers_of_a_generator_of_ones_own_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    assert record(lambda: torch.rand(3), [])[0].random
    assert not record(lambda: torch.rand(3, generator=generator), [])[0].random


def test_same_value() -> None:
    nan = float("nan")
    assert same_value(nan, nan) and same_value([1.0, nan], [1.0, nan]) and same_value(0.0, 0.0)
    assert not same_value(0.0, -0.0) and not same_value(1, True) and not same_value(1, 1.0) and not same_value([1], [1, 2])


@pytest.mark.parametrize("lasting", [False, True])
def test_a_run_that_plans_is_not_the_one_to_be_recorded(lasting: bool) -> None:
    def run() -> Tensor:
        note_irregular("it plans", lasting=lasting)
        return torch.ones(2)

    trace, _ = record(run, [])
    assert trace.irregular == "it plans"
    assert trace.refused == ("it plans" if lasting else "")
    note_irregular("nobody records")


def test_comparisons_of_addresses_by_hesse_itself_are_noted() -> None:
    x = torch.eye(3)
    known = Known()
    trace, _ = record(lambda: known.product(x) + known.product(x), [x])
    assert trace.compares_memory
    assert not trace.refused
    trace, _ = record(lambda: x.data_ptr(), [x])
    assert "its address" in trace.refused
