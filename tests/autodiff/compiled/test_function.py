"""Traces are found again, replaced where something changed, and given up where they cannot be right."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.autodiff.compiled import path as path_module
from hesse.autodiff.compiled.function import CompiledFunction, CompileNotice
from hesse.autodiff.compiled.profile import Profile
from hesse.autodiff.compiled.trace import Trace
from hesse.autodiff.compiled.unrecordable import Unrecordable
from hesse.autodiff.compiled.unrecorded import note_irregular

F64 = torch.float64


@contextmanager
def user_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Every one of a block; what the garbage collector says of files that others left open is none."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        yield seen


class Counted:
    """A compiled function, and how often Python ran."""

    def __init__(self, f, mode="replay", **options) -> None:
        self.profile = Profile("summary")
        self.compiled = CompiledFunction(f, f, mode=mode, profile=self.profile, **options)

    @property
    def runs(self) -> int:
        report = self.profile.report()
        return report.traces + sum(report.direct.values())

    def __call__(self, *args, **kwargs):
        return self.compiled(args, kwargs)


def test_the_second_call_does_not_run_python() -> None:
    c = Counted(lambda x, y: {"a": torch.sin(x) * y, "b": (x.sum(), "name", 3)})
    x, y = torch.randn(3, dtype=F64), torch.randn(3, dtype=F64)
    c(x, y)
    x, y = torch.randn(3, dtype=F64), torch.randn(3, dtype=F64)
    found = c(x, y)
    assert c.runs == 1
    assert torch.equal(found["a"], torch.sin(x) * y) and found["b"] == (x.sum(), "name", 3)


@pytest.mark.parametrize(
    "other",
    [(torch.randn(4, dtype=F64), 2), (torch.randn(3), 2), (torch.randn(3, dtype=F64), 3), (torch.randn(3, 1, dtype=F64), 2)],
)
def test_other_kinds_of_calls_are_recorded_apart(other) -> None:
    c = Counted(lambda x, n: x**n)
    first = (torch.randn(3, dtype=F64), 2)
    for args in (first, other, first, other):
        assert torch.equal(c(*args), args[0] ** args[1])
    assert c.runs == 2


def test_each_side_of_a_branch_is_recorded_once() -> None:
    def f(x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2 if x[0] > 1 else x * 3
        return x * 5

    c = Counted(f)
    cases = [torch.tensor(v) for v in ([2.0, 1.0], [0.5, 1.0], [-3.0, 1.0])]
    for x in (*cases, *reversed(cases), *cases):
        assert torch.equal(c(x), f(x))
    assert c.runs == 3


def test_a_loop_whose_length_depends_on_data() -> None:
    def f(x: Tensor) -> Tensor:
        while x.norm() > 1:
            x = x / 2
        return x

    c = Counted(f)
    for scale in (3.0, 5.0, 30.0, 4.0, 0.5, 40.0):
        x = torch.tensor([scale, 0.0])
        assert torch.equal(c(x), f(x))
    assert c.runs == 5


def test_closed_over_values_are_live() -> None:
    scale, hidden = 2.0, [torch.ones(2)]

    def f(x: Tensor) -> Tensor:
        return x * scale + hidden[0]

    c, x = Counted(f), torch.ones(2)
    assert c(x).tolist() == [3.0, 3.0]
    hidden[0] = torch.tensor([5.0, 7.0])
    assert c(x).tolist() == [7.0, 9.0] and c.runs == 1
    hidden[0].add_(1)
    assert c(x).tolist() == [8.0, 10.0] and c.runs == 1
    scale = 3.0
    assert c(x).tolist() == [9.0, 11.0] and c.runs == 2
    scale = 2.0
    assert c(x).tolist() == [8.0, 10.0] and c.runs == 2
    hidden[0] = torch.ones(1)
    assert c(x).tolist() == [3.0, 3.0] and c.runs == 3


def test_values_that_change_at_each_call_end_in_a_notice() -> None:
    def f(x: Tensor) -> Tensor:
        return x * x.sum().item()

    c = Counted(f)
    with user_warnings() as seen:
        for i in range(20):
            x = torch.tensor([1.0, float(i)])
            assert torch.equal(c(x), f(x))
    assert [w.category for w in seen] == [CompileNotice]
    assert "calls in a row" in str(seen[0].message) and c.runs == 20


def test_shapes_that_never_repeat_end_in_a_notice() -> None:
    c = Counted(lambda x: x * 2)
    with user_warnings() as seen:
        for n in range(1, 45):
            assert c(torch.ones(n)).tolist() == [2.0] * n
    assert len(seen) == 1 and "never seen before" in str(seen[0].message)
    assert c.profile.report().traces < 40
    c(torch.ones(20))
    assert c.profile.report().hits == 1


def test_what_happens_in_the_first_run_only_is_forgiven() -> None:
    cache: dict[str, float] = {}

    def f(x: Tensor) -> Tensor:
        if "scale" not in cache:
            cache["scale"] = 3.0
        return x * cache["scale"]

    c, x = Counted(f), torch.ones(2)
    for _ in range(4):
        assert c(x).tolist() == [3.0, 3.0]
    assert c.runs == 2


def test_what_a_function_prints_it_prints_at_each_call(capsys) -> None:
    def f(x: Tensor) -> Tensor:
        print("here")
        return x * 2

    c = Counted(f)
    with pytest.warns(CompileNotice, match="print"):
        for _ in range(4):
            c(torch.ones(2))
    assert capsys.readouterr().out == "here\n" * 4


def test_a_run_that_leaves_its_path_undoes_what_it_did() -> None:
    total = torch.zeros(2)

    def f(x: Tensor) -> Tensor:
        noise = torch.rand(2)
        total.add_(x)
        return total * noise if (x > 0).all() else total - noise

    c = Counted(f)
    results = []
    for call in (c, f):
        total.zero_()
        torch.manual_seed(0)
        results.append([call(torch.tensor(v)).tolist() for v in ([1.0, 2.0], [1.0, -1.0], [3.0, 2.0], [-1.0, 2.0], [1.0, 1.0])])
        results[-1].append(total.tolist())
    assert results[0] == results[1]
    assert c.runs == 2


def test_a_path_that_writes_knows_which_arguments_share_memory() -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        x.add_(1)
        return y * 1

    c = Counted(f)
    for _ in range(2):
        x, y = torch.zeros(2), torch.zeros(2)
        assert c(x, y).tolist() == [0.0, 0.0] and x.tolist() == [1.0, 1.0]
        base = torch.zeros(2)
        assert c(base, base[:]).tolist() == [1.0, 1.0]
    assert c.runs == 2


def test_an_error_of_the_function_is_the_users_own_and_changes_nothing() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.linalg.cholesky(x)

    c, good = Counted(f), torch.eye(2, dtype=F64)
    c(good)
    with pytest.raises(torch.linalg.LinAlgError):
        c(-good)
    assert torch.equal(c(good * 4), good * 2)
    assert c.runs == 1


def test_a_wrong_result_is_refused(monkeypatch) -> None:
    real = path_module.optimize

    def broken(trace) -> None:
        real(trace)
        for node in trace.graph.nodes:
            if node.target is torch.ops.aten.sin.default:
                node.target = torch.ops.aten.cos.default

    monkeypatch.setattr(path_module, "optimize", broken)
    c, x = Counted(torch.sin), torch.randn(3)
    with pytest.warns(CompileNotice, match="differs from the direct one"):
        c(x)
    assert torch.equal(c(x), x.sin()) and c.runs == 2


def test_a_binding_that_calls_another_operation_is_not_used(monkeypatch) -> None:
    from hesse.autodiff.compiled import bindings

    real = bindings._binding
    monkeypatch.setattr(bindings, "_binding", lambda name, out: torch.cos if name == "sin" else real(name, out))
    bindings.call_of.cache_clear()
    try:
        c, x = Counted(lambda x: torch.sin(x)[:2]), torch.randn(3)
        for _ in range(3):
            assert torch.equal(c(x), x.sin()[:2])
        assert c.runs == 1
    finally:
        bindings.call_of.cache_clear()


def test_a_binding_that_fails_is_not_used(monkeypatch) -> None:
    from hesse.autodiff.compiled import bindings

    def fail(*args, **kwargs):
        raise ValueError("no such call")

    real = bindings._binding
    monkeypatch.setattr(bindings, "_binding", lambda name, out: fail if name == "sin" else real(name, out))
    bindings.call_of.cache_clear()
    try:
        c, x = Counted(lambda x: torch.sin(x)[:2]), torch.randn(3)
        for _ in range(3):
            assert torch.equal(c(x), x.sin()[:2])
        assert c.runs == 1
    finally:
        bindings.call_of.cache_clear()


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda x: torch.from_numpy(x.numpy()) * 2, "NumPy"),
        (lambda x: x.to_sparse().to_dense() if x.is_sparse else x.clone().resize_(1), "memory"),
    ],
)
def test_what_cannot_be_recorded_runs_directly_and_says_so_once(f, reason) -> None:
    c, x = Counted(f), torch.ones(2)
    with user_warnings() as seen:
        for _ in range(3):
            assert torch.equal(c(x), f(x))
    assert c.runs == 3
    assert len(seen) == 1 and reason in str(seen[0].message)
    with pytest.raises(Unrecordable, match=reason):
        c.compiled.path((x,), {})


def test_settings_of_torch_are_part_of_the_kind() -> None:
    c, x = Counted(lambda x: x @ torch.ones(2, 2)), torch.ones(3, 2)
    assert c(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert c(x).dtype == torch.bfloat16
        assert c(x).dtype == torch.bfloat16
    assert c(x).dtype == torch.float32
    assert c.runs == 2


def test_the_default_dtype_is_part_of_the_kind() -> None:
    c, x = Counted(lambda x: x.sum() + torch.ones(2)), torch.ones(3, dtype=torch.int64)
    assert c(x).dtype == torch.float32
    torch.set_default_dtype(F64)
    try:
        assert c(x).dtype == F64
    finally:
        torch.set_default_dtype(torch.float32)
    assert c(x).dtype == torch.float32


SWITCHES: dict[str, tuple[Callable[[], object], Callable[[Any], object], Any]] = {
    "anomaly mode": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, True),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True),
    "precision of products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "high"),
    "threads": (torch.get_num_threads, torch.set_num_threads, torch.get_num_threads() + 1),
    "attention": (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp, False),
    "oneDNN": (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled, False),
    "cuDNN": (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled, False),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", SWITCHES)
def test_what_a_function_can_ask_torch_is_part_of_the_kind(name: str) -> None:
    read, write, other = SWITCHES[name]
    before = read()
    write(before)  # a choice, where there was a default
    c, x = Counted(lambda x: x * (2.0 if read() == before else 3.0)), torch.ones(3, dtype=F64)
    assert c(x).tolist() == c(x).tolist() == [2.0] * 3
    write(other)
    try:
        assert read() != before
        assert c(x).tolist() == c(x).tolist() == [3.0] * 3
    finally:
        write(before)
    assert c(x).tolist() == [2.0] * 3
    assert c.runs == 2


def test_a_signature_keeps_calls_apart_and_none_runs_directly() -> None:
    c = Counted(lambda x: x * 2, signature=lambda x: None if len(x) == 1 else str(len(x) % 2))
    for n in (2, 3, 1, 2, 3, 1):
        assert c(torch.ones(n)).tolist() == [2.0] * n
    assert c.runs == 4


def test_two_threads_share_one_function() -> None:
    def f(x: Tensor, n: int) -> Tensor:
        for _ in range(n):
            x = torch.tanh(x) * 2 if x.sum() > 0 else torch.sin(x)
        return x

    c = CompiledFunction(f, f, mode="replay")
    wrong: list[int] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(40):
            x = torch.randn(3 + seed % 2, generator=generator, dtype=F64)
            if not torch.equal(c((x, 3), {}), f(x, 3)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_inside_another_trace_or_transform_it_runs_directly() -> None:
    c, x = Counted(lambda x: torch.sin(x).sum()), torch.randn(3, 2, dtype=F64)
    c(x[0])
    assert torch.equal(torch.func.vmap(c)(x), torch.sin(x).sum(1))
    assert torch.equal(torch.func.grad(c)(x[0]), x[0].cos())
    with torch.device("cpu"):
        assert torch.equal(c(x[0]), torch.sin(x[0]).sum())


def test_the_profile_counts() -> None:
    c = Counted(lambda x: x * 2)
    for n in (2, 2, 3, 2):
        c(torch.ones(n))
    report = c.profile.report()
    assert report.hits == 2 and report.traces == 2


def test_a_detailed_profile_knows_what_each_operation_costs() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.sin(x) @ x.t()

    profile, x = Profile("detailed"), torch.randn(3, 2)
    c = CompiledFunction(f, f, mode="replay", profile=profile)
    for _ in range(4):
        assert torch.equal(c((x,), {}), f(x))
    ops = {cost.op: cost for cost in profile.report().ops}
    assert {"sin", "mm"} <= {name.removeprefix("aten.").split(".")[0] for name in ops}
    assert all(cost.runs == 3 and cost.source.file == __file__ for cost in ops.values() if "sin" in cost.op)


def test_what_the_garbage_collector_runs_is_not_the_functions() -> None:
    import gc
    import time

    def callback(phase: str, info: dict[str, int]) -> None:
        time.perf_counter()

    def f(x: Tensor) -> Tensor:
        parts = [[i] for i in range(2000)]  # enough containers for a collection
        return x * len(parts)

    gc.callbacks.append(callback)
    threshold = gc.get_threshold()
    gc.set_threshold(50)
    try:
        c, x = Counted(f), torch.ones(2)
        for _ in range(3):
            assert torch.equal(c(x), f(x))
        assert c.runs == 1 and gc.isenabled()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(callback)


def test_what_a_path_writes_is_checked_against_the_direct_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrongly(trace: Trace) -> None:
        optimize(trace)
        for node in trace.graph.nodes:
            if node.target is torch.ops.aten.add_.Tensor:
                node.args = (node.args[0], 5.0)

    optimize = path_module.optimize
    monkeypatch.setattr(path_module, "optimize", wrongly)

    def f(x: Tensor, y: Tensor) -> Tensor:
        y[1:].add_(1.0)
        return x.square()

    c, state = Counted(f), torch.zeros(3)
    with pytest.warns(CompileNotice, match="differs from the direct one"):
        assert c(torch.ones(3), state).tolist() == [1.0] * 3
    assert state.tolist() == [0.0, 1.0, 1.0]  # what the direct run wrote; what was tried is undone
    c(torch.ones(3), state)
    assert state.tolist() == [0.0, 2.0, 2.0]


def test_a_function_that_switches_autocast_off_is_replayed_without_it() -> None:
    def f(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return x @ x.T

    c, x = Counted(f), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            torch.testing.assert_close(c(x), f(x), rtol=1e-6, atol=1e-6)
    assert c.runs == 1


def test_a_run_that_plans_is_followed_by_one_that_is_recorded() -> None:
    def run(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            note_irregular("it plans")
        return 2 * x

    profile, x = Profile("summary"), torch.randn(3)
    compiled = CompiledFunction(run, run, mode="replay", variables=(), profile=profile)
    for grad_mode in (True, True, False, False, False):
        with torch.set_grad_enabled(grad_mode):
            assert torch.equal(compiled((x,), {}), 2 * x)
    assert (profile.report().traces, profile.report().hits) == (3, 2)
    x = torch.randn(4)
    with pytest.warns(CompileNotice, match="at every call it plans"):
        for _ in range(6):
            assert torch.equal(compiled((x,), {}), 2 * x)
    assert compiled.direct == "at every call it plans"


def test_a_record_that_cannot_be_simplified_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(trace: Trace) -> None:
        raise KeyError("node")

    monkeypatch.setattr(path_module, "optimize", fail)
    c, x = Counted(lambda x: 2 * x), torch.randn(3)
    with pytest.warns(CompileNotice, match="could not be simplified"):
        for _ in range(3):
            assert torch.equal(c(x), 2 * x)
    assert c.runs == 3
