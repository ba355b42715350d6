"""Native code for traces: equal to the direct run on fresh data, on any thread, for any layout of the inputs; or refused."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.autodiff.compiled import native as native_module
from hesse.autodiff.compiled.functional_form import _split
from hesse.autodiff.compiled.inductor import read_after_handed_on
from hesse.autodiff.compiled.native import Native, NativeUnavailable, compile_native
from hesse.autodiff.compiled.optimize import optimize
from hesse.autodiff.compiled.replay import Deviation
from hesse.autodiff.compiled.trace import record

Outputs = Sequence[Tensor]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def native(f: Callable[..., Any], *inputs: Tensor) -> Native:
    trace, _ = record(lambda: f(*inputs), inputs)
    assert not trace.refused
    optimize(trace)
    runner, source = compile_native(trace)
    assert "def " in source
    assert isinstance(runner, Native)
    return runner


def results(runner: Native, *inputs: Tensor) -> list[Tensor]:
    found = runner(inputs)
    assert not isinstance(found, Deviation)
    return found


def agree(found: Outputs, wanted: Outputs, tolerance: float = 1e-12) -> None:
    assert len(found) == len(wanted)
    for mine, its in zip(found, wanted, strict=True):
        assert not mine.requires_grad
        torch.testing.assert_close(mine, its.detach(), rtol=tolerance, atol=tolerance)


def training_step(w: Tensor, b: Tensor, v: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Gradients and value of a small network, and a gradient of the gradients' norm."""
    with torch.enable_grad():
        variables = [t.detach().requires_grad_() for t in (w, b, v)]
        loss = (torch.tanh(x @ variables[0] + variables[1]) @ variables[2] - y).square().mean()
        gradients = torch.autograd.grad(loss, variables, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in gradients), variables)
    return (*(g.detach() for g in gradients), *second, loss.detach())


def step_data(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    shapes = ((4, 5), (5,), (5, 2), (7, 4), (7, 2))
    return tuple(numbers(*shape, seed=seed + k, dtype=dtype) for k, shape in enumerate(shapes))


@pytest.fixture(scope="module")
def step() -> Native:
    return native(training_step, *step_data(0))


def test_fresh_data(step: Native, untouched: None) -> None:
    for seed in (0, 10, 20):
        agree(results(step, *step_data(seed)), training_step(*step_data(seed)))


def test_results_are_not_written_to_by_later_calls(step: Native) -> None:
    first = results(step, *step_data(0))
    before = [t.clone() for t in first]
    results(step, *step_data(10))
    agree(first, before, 0.0)


def test_inputs_that_require_gradients(step: Native) -> None:
    inputs = [t.requires_grad_() for t in step_data(10)]
    assert torch.is_grad_enabled()
    agree(results(step, *inputs), training_step(*inputs))
    assert torch.is_grad_enabled()
    assert all(t.grad is None for t in inputs)


def test_two_threads(step: Native) -> None:
    wrong: list[str] = []

    def work(seed: int) -> None:
        try:
            inputs = step_data(seed)
            wanted = training_step(*inputs)
            for _ in range(100):
                agree(results(step, *inputs), wanted)
        except Exception as error:
            wrong.append(str(error))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_single_precision() -> None:
    runner = native(training_step, *step_data(0, torch.float32))
    for seed in (0, 10):
        data = step_data(seed, torch.float32)
        exact = training_step(*(t.double() for t in data))
        agree([t.double() for t in results(runner, *data)], exact, 2e-5)


def test_layouts_of_inputs() -> None:
    def f(*t: Tensor) -> tuple[Tensor, ...]:
        x, transposed, column, expanded, scalar, empty = t
        rows = torch.tanh(x @ transposed) * column[:, None] + expanded
        return rows, rows.sum(0) * scalar, empty * 2, transposed.T + scalar

    def data(seed: int, offset: int) -> tuple[Tensor, ...]:
        return (
            numbers(20, seed=seed)[offset : offset + 12].reshape(4, 3),
            numbers(5, 3, seed=seed + 1).T,
            numbers(4, 7, seed=seed + 2)[:, offset],
            numbers(5, seed=seed + 3).expand(4, 5),
            numbers(9, seed=seed + 4)[offset],
            numbers(0, 3),
        )

    runner = native(f, *data(0, 0))
    for seed, offset in ((0, 0), (10, 1), (20, 3), (30, 5)):
        agree(results(runner, *data(seed, offset)), f(*data(seed, offset)))


def test_results_share_no_memory() -> None:
    def f(x: Tensor) -> tuple[Tensor, ...]:
        y = x.sin()
        return x.clone(), x * 1, y, y.clone(), y[1:], x.T, torch.ones(2, dtype=x.dtype), torch.tensor([1.0, 2.0])

    x = numbers(4, 3)
    runner = native(f, x)
    for seed in (0, 1):
        x = numbers(4, 3, seed=seed)
        found = results(runner, x)
        wanted = [t.clone() for t in f(x)]
        agree(found, wanted)
        for index, result in enumerate(found):
            result.fill_(100.0)
            agree(found[index + 1 :], wanted[index + 1 :])
        agree([x], [numbers(4, 3, seed=seed)], 0.0)
    agree(results(runner, x), f(x))


def test_nothing_to_compute() -> None:
    runner = native(lambda x, y: (y, x), numbers(3), numbers(2))
    x, y = numbers(3, seed=1), numbers(2, seed=2)
    found = results(runner, x, y)
    agree(found, (y, x), 0.0)
    assert native(lambda x: (), numbers(3))([x]) == []


def test_reads_and_writes() -> None:
    def f(x: Tensor, memory: Tensor) -> Tensor:
        memory.mul_(0.5).add_(x.mean(0))
        if x.sum().item() > 0 and x[0].argsort().tolist() == [0, 1, 2]:
            return (x * memory).sum()
        return x.sum() * 2

    ordered = torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, -1.0]], dtype=torch.float64)
    runner = native(f, ordered, torch.zeros(3, dtype=torch.float64))
    total = float(ordered.sum())
    memory, wanted = numbers(3, seed=1), numbers(3, seed=1)
    deviation = runner([ordered + 1.0, memory])
    assert isinstance(deviation, Deviation)
    assert deviation.index == 0 and abs(deviation.found - total - 6.0) < 1e-12
    agree([memory], [wanted], 0.0)
    shuffled = ordered[:, [2, 0, 1]]
    value = f(ordered, wanted)
    agree(results(runner, ordered, memory), [value])
    agree([memory], [wanted])
    again = runner([shuffled, memory])
    assert isinstance(again, Deviation)
    agree([memory], [wanted])


def test_random_numbers_are_those_of_the_direct_run() -> None:
    def f(x: Tensor) -> tuple[Tensor, ...]:
        dropped = torch.nn.functional.dropout(x, 0.4)
        noise = torch.randn_like(x) + torch.rand(4, 3, dtype=x.dtype)
        kept = torch.bernoulli(torch.sigmoid(x)) + torch.empty_like(x).uniform_(1, 2)
        return dropped, noise * x, kept, torch.randperm(5), torch.nn.functional.rrelu(x, training=True)

    runner = native(f, numbers(4, 3))
    for seed in (1, 2):
        torch.manual_seed(seed)
        wanted = f(numbers(4, 3, seed=seed))
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        agree(results(runner, numbers(4, 3, seed=seed)), wanted)
        assert torch.equal(torch.get_rng_state(), state)


def test_complex_numbers_and_decompositions() -> None:
    def f(z: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        spectrum = torch.fft.rfft(a) * z
        return spectrum, spectrum.abs().sum(), torch.linalg.eigvalsh(a @ a.T), torch.linalg.solve(a @ a.T + torch.eye(4), a)

    def data(seed: int) -> tuple[Tensor, Tensor]:
        return torch.complex(numbers(4, 3, seed=seed), numbers(4, 3, seed=seed + 1)), numbers(4, 5, seed=seed + 2)

    runner = native(f, *data(0))
    for seed in (0, 10):
        agree(results(runner, *data(seed)), f(*data(seed)), 1e-10)


def allocations(run: Callable[[], Any]) -> list[int]:
    """Bytes of each piece of memory that torch allocates."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    assert profile.profiler is not None
    events: Sequence[Any] = profile.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


def test_a_call_allocates_its_results_and_one_piece_for_all_else(step: Native) -> None:
    inputs = step_data(10)
    wanted = sorted(max(t.nbytes, 1) for t in results(step, *inputs))
    found = sorted(allocations(lambda: step(inputs)))
    direct = allocations(lambda: training_step(*inputs))
    assert len(wanted) <= len(found) <= len(wanted) + 1 < len(direct) / 3


def test_what_has_no_wrapper_in_cpp_is_called_from_python(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import compile_fx

    compile_inner, wrappers = compile_fx.compile_fx_inner, []

    def without_cpp(*args: Any, cpp_wrapper: bool, **kwargs: Any) -> Any:
        wrappers.append(cpp_wrapper)
        if cpp_wrapper:
            raise NotImplementedError("no wrapper")
        return compile_inner(*args, cpp_wrapper=cpp_wrapper, **kwargs)

    monkeypatch.setattr(compile_fx, "compile_fx_inner", without_cpp)
    runner = native(lambda x: (x * 5).tanh(), numbers(4, 3))
    assert wrappers == [True, False]
    agree(results(runner, numbers(4, 3, seed=1)), [(numbers(4, 3, seed=1) * 5).tanh()])


def test_what_fails_from_cpp_is_called_from_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")  # where inductor refuses such fallbacks

    def f(x: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = torch.nn.functional.interpolate(leaf, size=(5, 7), mode="bilinear")
            return y.detach(), *torch.autograd.grad(y.square().sum(), leaf)

    runner = native(f, numbers(2, 3, 4, 6))
    assert "CppWrapperCodeCache" not in runner.code
    for seed in (0, 1):
        agree(results(runner, numbers(2, 3, 4, 6, seed=seed)), f(numbers(2, 3, 4, 6, seed=seed)))


def test_number_of_threads_changes() -> None:
    def f(x: Tensor) -> tuple[Tensor, ...]:
        y = torch.exp(-x.square())
        return y, y.sum(0), (y * x).sum()

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        runner = native(f, numbers(300, 201))
        for threads in (2, 1):
            torch.set_num_threads(threads)
            x = numbers(300, 201, seed=threads)
            agree(results(runner, x), f(x))
    finally:
        torch.set_num_threads(before)


def test_other_threads_get_no_wrong_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def f(x: Tensor) -> tuple[Tensor, ...]:
        return x.cos(), x.sum(0) * 3

    def wrong(*_: Any) -> Any:
        return lambda tensors: [part + 1 for part in f(tensors[0])], "def call"

    runner = native(f, numbers(6, 5))
    monkeypatch.setattr(native_module, "_compile", wrong)
    before = torch.get_num_threads()
    try:
        for more in (0, 1, 1):
            torch.set_num_threads(before + more)
            agree(results(runner, numbers(6, 5, seed=more)), f(numbers(6, 5, seed=more)))
    finally:
        torch.set_num_threads(before)


def adds_into_zeros(t: Tensor, h: Tensor, i: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, w: Tensor) -> Outputs:
    """A flat pointwise result of what was added into zeros, beside one whose loops it is fitted to."""
    h = h[:, None, None]
    s = (t * h + a * b).tanh() * c + d * t * torch.sin(d * c) * (a.exp() + b)
    picked = torch.gather((s * c).view(6, 20), 1, i) @ w
    out = torch.zeros(6, 20, dtype=t.dtype).scatter_add(1, i, picked).view(2, 3, 4, 5) * d * b + s * a * c + t
    return out.sum((0, 2, 3)), (out * c).sum((0, 2, 3)), (out * h + b * h).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_reads_a_sum_waits_for_it(dtype: torch.dtype) -> None:
    def data(seed: int) -> tuple[Tensor, ...]:
        t, a, b, c, d = (numbers(2, 3, 4, 5, seed=seed + k, dtype=dtype) for k in range(5))
        places = torch.randint(20, (6, 4), generator=torch.Generator().manual_seed(seed))
        return t, numbers(3, seed=seed + 5, dtype=dtype), places, a, b, c, d, numbers(4, 4, seed=seed + 6, dtype=dtype)

    runner = native(adds_into_zeros, *data(0))
    for seed in (0, 10):
        exact = adds_into_zeros(*(t.double() if t.is_floating_point() else t for t in data(seed)))
        agree([t.double() for t in results(runner, *data(seed))], exact, 1e-4 if dtype == torch.float32 else 1e-10)


def test_memory_that_was_handed_on_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    call = "auto buf1 = make(); f(buf1); auto buf10 = std::move(buf1);  // reuse\n"
    assert read_after_handed_on(f"{call} f(buf10.data_ptr()); g(xbuf1, buf12); buf1.reset();") == ""
    assert read_after_handed_on(f"{call} auto buf3 = std::move(buf10); f(buf3); g(buf1.data_ptr());") == "buf1"
    assert read_after_handed_on(f"{call} auto buf3 = std::move(buf10); f(buf3, buf10);") == "buf10"
    monkeypatch.setattr(native_module, "read_after_handed_on", lambda source: "buf1")
    with pytest.raises(NativeUnavailable, match="buf1 is read after its memory was handed on"):
        native(lambda x: (x * 7).tanh(), numbers(4, 3))


def test_settings_of_inductor_stay() -> None:
    from torch._inductor import config
    from torch._inductor.scheduler import SchedulerNode

    before, fit, tag = config.get_config_copy(), SchedulerNode.recompute_size_and_body, torch.compiler.config.cache_key_tag
    native(lambda x: (x * 2).tanh(), numbers(4, 3))
    assert config.get_config_copy() == before
    assert SchedulerNode.recompute_size_and_body is fit
    assert torch.compiler.config.cache_key_tag == tag


def test_what_cannot_be_compiled_is_refused() -> None:
    x = numbers(5)
    trace, _ = record(lambda: x[x > 0].sum(), [x])
    optimize(trace)
    with pytest.raises(NativeUnavailable, match="depends on values"):
        compile_native(trace)


def test_failures_of_inductor_are_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import compile_fx

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("no lowering\nmore")

    monkeypatch.setattr(compile_fx, "compile_fx_inner", fail)
    with pytest.raises(NativeUnavailable, match=r"^inductor could not compile it \(NotImplementedError: no lowering\)$"):
        native(lambda x: x * 3, numbers(2))


_OUT_OF_BOUNDS = """
import torch
from hesse.autodiff.compiled.native import compile_native
from hesse.autodiff.compiled.optimize import optimize
from hesse.autodiff.compiled.trace import record
torch.set_num_threads(2)
x, i = torch.linspace(0, 1, 20000), torch.arange(20000)
trace, _ = record(lambda: torch.tanh(x[i]) * 2, [x, i])
optimize(trace)
run, _ = compile_native(trace)
print("right:", torch.allclose(run([x, i])[0], torch.tanh(x) * 2))
i[3] = 10**9
try:
    run([x, i])
except Exception as error:
    print("raised:", error)
"""


def test_an_index_out_of_bounds_ends_no_process() -> None:
    done = subprocess.run([sys.executable, "-c", _OUT_OF_BOUNDS], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "right: True\nraised: " in done.stdout and "out of bounds" in done.stdout


_WITHOUT_COMPILER = """
import torch
from hesse.autodiff.compiled.native import NativeUnavailable, compile_native
from hesse.autodiff.compiled.optimize import optimize
from hesse.autodiff.compiled.trace import record
x = torch.ones(4, 3)
trace, _ = record(lambda: (x * 2).tanh(), [x])
optimize(trace)
try:
    compile_native(trace)
except NativeUnavailable as error:
    print("refused:", error.reason)
"""


def test_without_a_compiler(tmp_path: Path) -> None:
    environment = dict(os.environ, CXX="/nonexistent", PATH="", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_COMPILER], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert "refused: no working C++ compiler was found" in done.stdout, done.stderr


def test_constants_without_memory() -> None:
    fills, lifted = _split({"shape": torch.empty(2, 3, device="meta"), "ones": torch.ones(2), "rows": torch.arange(3)})
    place = torch.device
    assert fills == {"shape": ((2, 3), 0, torch.float32, place("meta")), "ones": ((2,), 1.0, torch.float32, place("cpu"))}
    assert list(lifted) == ["rows"]
