"""NaN and infinity are told where they arise: op, line, phase, ranges and chain; what is meant is left alone."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from hesse.autodiff.events.records import facts
from hesse.autodiff.events.watching import NonFiniteEvent, Watch, watching

REAL = torch.float64


def events_of(step: Callable[[], object]) -> list[NonFiniteEvent]:
    events: list[NonFiniteEvent] = []
    with watching(events.append):
        step()
    return events


def line(event: NonFiniteEvent) -> str:
    assert event.source is not None
    with open(event.source.file, encoding="utf-8") as file:
        return file.read().splitlines()[event.source.line - 1].strip()


def short(events: list[NonFiniteEvent]) -> list[tuple[str, str, str, bool]]:
    return [
        (event.op.split(".")[1] if "." in event.op else event.op, event.kind, event.phase, event.origin) for event in events
    ]


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=REAL, requires_grad=True)


def test_finite_steps_make_no_event() -> None:
    x, w = torch.randn(5, 3), torch.randn(4, 3, requires_grad=True)
    assert not events_of(lambda: torch.autograd.grad((x @ w.T).tanh().logsumexp(-1).sum(), w))


def test_the_op_that_divides_by_zero() -> None:
    x = leaf(1.0, 0.0, 4.0)

    def step() -> None:
        y = x * 2
        z = 1 / y
        z.sum()

    events = events_of(step)
    assert short(events) == [
        ("reciprocal", "inf", "forward", True),
        ("mul", "inf", "forward", False),
        ("sum", "inf", "forward", False),
    ]
    first = events[0]
    assert line(first) == "z = 1 / y"
    assert (first.output.shape, first.output.dtype, first.output.infs, first.output.nans) == ((3,), REAL, 1, 0)
    assert (first.output.low, first.output.high) == (0.125, 0.5)
    assert (first.inputs[0].low, first.inputs[0].high) == (0.0, 8.0)
    assert first.value.tolist() == [0.5, torch.inf, 0.125]
    assert not first.value.requires_grad


def test_a_gradient_alone_is_bad_and_has_the_forward_line() -> None:
    x = leaf(0.0, 4.0)

    def step() -> None:
        y = x.sqrt()
        torch.autograd.grad(y.sum(), x)

    events = events_of(step)
    assert short(events) == [("div", "inf", "backward", True)]
    assert line(events[0]) == "y = x.sqrt()"
    assert [frame.function.rpartition(".")[2] for frame in events[0].stack[:2]] == ["step", "events_of"]


def test_the_trap_of_where() -> None:
    """where() hides the infinity of log(0) from the value, not from the gradient, which gets 0 / 0."""
    x = leaf(0.0, 2.0)

    def step() -> None:
        y = torch.where(x > 0, x.log(), 0.0)
        torch.autograd.grad(y.sum(), x)

    assert short(events_of(step)) == [("log", "inf", "forward", True), ("div", "nan", "backward", True)]


def test_the_chain_leads_from_the_cause() -> None:
    x = leaf(-1.0, 4.0)

    def step() -> None:
        y = x.log()
        z = y.exp()
        (z * 3).sum()

    events = events_of(step)
    assert [event.origin for event in events] == [True, False, False, False]
    assert [re.match(r"aten\.(\w+)", link)[1] for link in events[-1].chain] == ["log", "exp", "mul", "sum"]  # pyright: ignore
    assert len(events[0].chain) == 1
    text = str(events[-1])
    assert "nan from aten.sum.default (forward), passed on" in text
    assert "(z * 3).sum()" in text
    assert "chain: aten.log.default (forward) at " in text
    assert "float64[2] in [6, 12] with 1 nan of 2" not in str(events[0])
    assert "output: float64[2] in [1.386, 1.386] with 1 nan of 2" in str(events[0])


def test_graph_and_dot_of_a_value() -> None:
    x = leaf(0.0, 4.0)

    def step() -> None:
        unrelated = x.cos()
        (x.log() * 2).sum()
        unrelated.sum()

    event = events_of(step)[-1]
    assert [record.op.removeprefix("aten.") for record in event.graph()] == [
        "input",
        "log.default",
        "mul.Tensor",
        "sum.default",
    ]
    dot = event.dot()
    assert dot.count("color=red") == 3 * 2
    assert dot.count(" -> ") == 3
    assert dot.count("shape=invtrapezium") == 1


def test_bad_inputs_are_told_once() -> None:
    x = leaf(float("nan"), 1.0)

    def step() -> None:
        x.nan_to_num().sum()
        x.nan_to_num().sum()

    assert short(events_of(step)) == [("input", "nan", "data", True)]


def test_masks_of_infinity_are_meant() -> None:
    scores = torch.randn(3, 3, dtype=REAL, requires_grad=True)
    mask = torch.full((3, 3), -torch.inf, dtype=REAL).triu(1)

    def step() -> None:
        hidden = torch.ones(3, 3, dtype=torch.bool).triu(1)
        own = torch.zeros(3, 3, dtype=REAL).masked_fill(hidden, -torch.inf)
        added = (scores + mask).softmax(-1) + (scores + own).softmax(-1)
        chosen = torch.where(hidden, -torch.inf, scores).softmax(-1)
        written = scores.clone()
        written[hidden] = -torch.inf
        best = torch.full((3,), torch.inf, dtype=REAL).minimum(scores.amin(-1))
        loss = (added + chosen + scores.masked_fill(hidden, -torch.inf).softmax(-1) + written.softmax(-1)).square().sum()
        torch.autograd.grad(loss + best.sum(), scores)

    assert not events_of(step)


def test_nan_made_of_a_meant_infinity_is_a_cause() -> None:
    scores = torch.randn(2, 3, dtype=REAL)

    def step() -> None:
        hidden = torch.tensor([[True, True, True], [False, True, False]])
        scores.masked_fill(hidden, -torch.inf).softmax(-1)

    events = events_of(step)
    assert short(events) == [("_softmax", "nan", "forward", True)]
    assert events[0].inputs[0].infs == 4


def test_in_place_ops_show_what_they_were_given() -> None:
    def step() -> None:
        x = torch.tensor([1.0, -3.0], dtype=REAL) * 1
        x.log_()
        x.mul_(2)

    events = events_of(step)
    assert short(events) == [("log_", "nan", "forward", True), ("mul_", "nan", "forward", False)]
    assert (events[0].inputs[0].low, events[0].inputs[0].high) == (-3.0, 1.0)


def test_a_good_write_into_a_part_leaves_the_rest_offending() -> None:
    def step() -> None:
        x = torch.tensor([-1.0, 1.0, 1.0], dtype=REAL).log()
        x[2] = 5.0
        x.exp()
        x[:] = 1.0
        x.exp()

    assert short(events_of(step)) == [("log", "nan", "forward", True), ("exp", "nan", "forward", False)]


@pytest.fixture
def garbage_is_nan() -> Iterator[None]:
    """Fresh memory holds NaN, as PyTorch fills it in deterministic mode."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_memory_that_nobody_filled_is_not_checked(garbage_is_nan: None) -> None:
    def step() -> None:
        garbage = torch.empty(3, dtype=REAL)
        garbage.copy_(torch.ones(3, dtype=REAL))
        torch.add(torch.ones(3, dtype=REAL), 1, out=torch.empty(3, dtype=REAL))
        garbage.new_empty(5).zero_().exp()

    bad = torch.full((3,), torch.nan, dtype=REAL)
    assert torch.empty(3, dtype=REAL).isnan().all()
    assert not events_of(step)
    assert not events_of(lambda: bad.copy_(torch.ones(3, dtype=REAL)))


def test_memory_that_was_filled_is_checked() -> None:
    events = events_of(lambda: torch.empty(3, dtype=REAL).copy_(-torch.ones(3, dtype=REAL)).log())
    assert short(events) == [("log", "nan", "forward", True)]
    assert events[0].inputs[0].low == -1.0


def test_a_hook_may_end_the_pass() -> None:
    class StopHereError(Exception):
        pass

    def hook(event: NonFiniteEvent) -> None:
        raise StopHereError(event.op)

    x = leaf(0.0, 1.0)
    for step in (lambda: x.log(), lambda: torch.autograd.grad(x.sqrt().sum(), x)):
        with pytest.raises(StopHereError, match=r"log|div"), watching(hook):
            step()
    assert torch.isfinite(x.exp()).all()


def test_below_torch_func() -> None:
    x = torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=REAL)

    def roots(row: Tensor) -> Tensor:
        return row.sqrt().sum()

    events = events_of(lambda: torch.func.vmap(torch.func.grad(roots))(x))
    assert short(events)[0] == ("div", "inf", "backward", True)
    assert line(events[0]) == "return row.sqrt().sum()"
    assert events[0].output.shape == (2, 2)
    assert any(event.origin for event in events_of(lambda: torch.func.hessian(roots)(x[1])))


def test_double_backward() -> None:
    x = leaf(0.0, 2.0)

    def step() -> None:
        (grad,) = torch.autograd.grad((x.abs() ** 1.5).sum(), x, create_graph=True)
        torch.autograd.grad(grad.sum(), x)

    events = events_of(step)
    assert events
    assert {event.phase for event in events} == {"backward", "double backward"}
    assert line(events[0]) == "(grad,) = torch.autograd.grad((x.abs() ** 1.5).sum(), x, create_graph=True)"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64, torch.complex128])
def test_types(dtype: torch.dtype) -> None:
    events = events_of(lambda: torch.tensor([1.0, 0.0, 2.0], dtype=dtype).reciprocal())
    assert [event.origin for event in events] == [True]
    assert events[0].output.dtype == dtype


def test_sparse_gradients_are_checked() -> None:
    table = nn.Embedding(5, 2, sparse=True)

    def step() -> None:
        (table(torch.tensor([1, 3])).sum() * torch.tensor(0.0).log().exp().reciprocal()).backward()

    events = events_of(step)
    assert any(event.phase == "backward" and event.output.shape == (5, 2) for event in events)


def test_tensors_without_numbers_pass() -> None:
    def step() -> None:
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]).sin()
        torch.empty(0, 3).log()
        torch.zeros(2, 3, device="meta").log()
        torch.arange(3).sum()

    assert not events_of(step)


def test_logarithms_that_an_op_keeps_for_itself() -> None:
    scores = torch.randn(10, 2, 5, generator=torch.Generator().manual_seed(0), dtype=REAL).log_softmax(-1).requires_grad_()

    def step(length: int) -> None:
        lengths = torch.tensor([length, length])
        F.ctc_loss(scores, torch.tensor([[1, 2, 3], [4, 4, 1]]), lengths, torch.tensor([3, 3])).backward()

    assert not events_of(lambda: step(10))
    assert [event.output.shape for event in events_of(lambda: torch._foreach_log([torch.ones(2), torch.zeros(3)]))] == [(3,)]
    events = events_of(lambda: step(2))
    assert (events[0].op, events[0].kind, events[0].origin) == ("aten._ctc_loss.Tensor", "inf", True)


def test_other_modes_do_not_see_the_checks() -> None:
    graph = make_fx(lambda x: x.log().exp())
    traced: list[torch.fx.GraphModule] = []
    events = events_of(lambda: traced.append(graph(torch.tensor([0.0, 1.0]))))
    assert [str(node.target) for node in traced[0].graph.nodes if node.op == "call_function"] == [
        "aten.log.default",
        "aten.exp.default",
    ]
    assert [event.op for event in events] == ["aten.log.default"]


def test_a_training_step_with_its_optimizer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(REAL)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def step(scale: float) -> None:
        loss = model(torch.ones(2, 3, dtype=REAL)).mul(scale).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert not events_of(lambda: [step(1.0) for _ in range(3)])
    events = events_of(lambda: step(1e200))
    assert (short(events)[0], line(events[0])) == (
        ("pow", "overflow", "forward", True),
        "loss = model(torch.ones(2, 3, dtype=REAL)).mul(scale).square().sum()",
    )
    assert not all(event.origin for event in events)


def test_no_tensor_is_kept() -> None:
    import weakref

    held: list[weakref.ref[Tensor]] = []
    with watching(lambda event: None):
        x = torch.ones(3, dtype=REAL)
        y = x + 1
        held.append(weakref.ref(y))
        z = y * 2
        del y
        gc.collect()
        assert held[0]() is None
        assert z.sum() == 12


def test_two_threads_watch_apart() -> None:
    found: dict[str, list[NonFiniteEvent]] = {}

    def work(name: str, value: float) -> None:
        x = leaf(value)
        found[name] = events_of(lambda: [torch.autograd.grad(x.log().sum(), x) for _ in range(20)])

    threads = [threading.Thread(target=work, args=case) for case in (("bad", -1.0), ("good", 1.0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not found["good"]
    assert sum(event.origin for event in found["bad"]) == 20


def test_facts() -> None:
    value = torch.tensor([[1.0, float("nan"), -2.5], [float("inf"), -float("inf"), 7.0]])
    found = facts(value)
    assert (found.shape, found.low, found.high, found.nans, found.infs, found.finite) == ((2, 3), -2.5, 7.0, 1, 2, False)
    assert str(found) == "float32[2, 3] in [-2.5, 7] with 1 nan, 2 inf of 6"
    assert facts(torch.full((2,), torch.nan)).low is None
    assert facts(torch.tensor([1 + 2j, 3 - 4j])).low == -4.0
    nan, inf = float("nan"), float("inf")
    found = facts(torch.tensor([complex(nan, nan), complex(inf, inf), complex(nan, inf), 1j]))
    assert (found.nans, found.infs, found.low, found.high) == (2, 1, 0.0, 1.0)


def _large_sums() -> Tensor:
    x = torch.full((70_000,), 1.5, dtype=torch.float16)
    return (x * 2).div_(3).clone().reshape(7, 10_000) + 1


def _complex() -> Tensor:
    z = torch.tensor([1 + 2j, 0j], requires_grad=True)
    (z * (2 + 1j)).abs().square().sum().backward()
    return z.detach() / z.detach()


def _sparse() -> None:
    table = nn.Embedding(5, 2, sparse=True, _weight=torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 2.0], [1.0, 7.0], [1.0, 1.0]]))
    table(torch.tensor([1, 1, 3])).mul(torch.tensor(3e38)).mul(4.0).sum().backward()


def _parts_in_place() -> Tensor:
    x = (torch.ones(3, 4) * 2).requires_grad_() * 1
    x[1] = 0.0
    x[:, 1:3].sub_(5).log_()
    x.t()[0].div_(x[1, 0])
    return x.sum()


def _memory_shared() -> None:
    x = torch.tensor([[2.0, 1.0], [0.0, 1.0]]) * 1
    x[:, 0].div_(x[1, 0])


def _backward_of_a_view() -> None:
    x = leaf(1.0, 2.0)
    y = x.expand(4, 2)
    (y * 1e308).sum().backward()


def _unfilled() -> Tensor:
    x = torch.empty(4).uniform_(1.0, 2.0)
    y = torch.dropout(torch.ones(8, requires_grad=True) * 2, 0.5, True)
    return x.exp_().sum() + torch.empty(3).copy_(torch.ones(3)).sum() + y.sum()


def _lists() -> Tensor:
    parts = [torch.ones(2, requires_grad=True) * 3, torch.zeros(2)]
    torch._foreach_sqrt_(parts[1:])
    return torch.cat(parts).reciprocal().sum()


def _twice_differentiated() -> None:
    x = leaf(0.0, 4.0)
    (grad,) = torch.autograd.grad((x.abs() ** 1.5).sum(), x, create_graph=True)
    grad.sum().backward()


@pytest.mark.parametrize(
    "step",
    [
        _large_sums, _complex, _sparse, _parts_in_place, _memory_shared, _backward_of_a_view, _unfilled, _lists,
        _twice_differentiated,
    ],
)  # fmt: skip
def test_a_hasty_watch_finds_the_same_causes(step: Callable[[], object]) -> None:
    hasty: list[NonFiniteEvent] = []
    watch = Watch(hasty.append, ranges=False)
    with watch:
        step()
    watch.close()
    careful = events_of(step)
    assert [(event.op, event.kind, event.phase, event.origin, line(event)) for event in hasty] == [
        (event.op, event.kind, event.phase, event.origin, line(event)) for event in careful
    ]
    assert [[record.op for record in event.graph()][-2:] for event in hasty] == [
        [record.op for record in event.graph()][-2:] for event in careful
    ]
