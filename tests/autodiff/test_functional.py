"""`functional`: a module as a pure function; the module itself never changes."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.autodiff import functional
from hesse.autodiff.functional import buffers_preserved, runs_elsewhere
from hesse.core.errors import LeafError, StructureError
from hesse.derivatives import jacobian

from .programs import REAL, seeded


def fingerprint(module: nn.Module) -> list[object]:
    """Identity, version and values of everything a module holds."""
    items = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    state: list[object] = [(n, id(t), t._version, t.requires_grad, t.grad is None, t.tolist()) for n, t in items]
    for name, part in module.named_modules(remove_duplicate=False):
        hooks = (len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks))
        state.append((name, id(part), part.training, sorted(part.__dict__), hooks))
    return state


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def by_hand(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(x @ p["0.weight"].mT + p["0.bias"]) @ p["2.weight"].mT + p["2.bias"]


def test_the_parameters_that_are_passed_are_the_ones_used() -> None:
    module, x = net(), seeded(5, 3)
    before = fingerprint(module)
    f, params = functional(module)
    assert list(params) == [name for name, _ in module.named_parameters()]
    assert not any(p.requires_grad for p in params.values())
    moved = {name: p + seeded(*p.shape) for name, p in params.items()}
    torch.testing.assert_close(f(params, x), module(x))
    torch.testing.assert_close(f(moved, x), by_hand(moved, x))
    torch.testing.assert_close(f({"2.bias": moved["2.bias"]}, x), by_hand({**params, "2.bias": moved["2.bias"]}, x))
    J = jacobian(lambda p: f(p, x).sum(0), params).jacobian
    torch.testing.assert_close(J["2.bias"], 5 * torch.eye(2, dtype=REAL))
    assert fingerprint(module) == before
    assert repr(f) == "functional(Sequential)"


def test_tied_weights_stand_once_and_serve_all_places() -> None:
    first, second = nn.Linear(3, 3, dtype=REAL), nn.Linear(3, 3, dtype=REAL)
    second.weight = first.weight
    module = nn.Sequential(first, second)
    before = fingerprint(module)
    f, params = functional(module)
    assert list(params) == ["0.weight", "0.bias", "1.bias"]
    w, x = seeded(3, 3), seeded(2, 3, seed=1)
    expected = (x @ w.mT + first.bias) @ w.mT + second.bias
    torch.testing.assert_close(f({**params, "0.weight": w}, x), expected)
    with pytest.raises(LeafError, match=r"'1.weight', which is tied to '0.weight'"):
        f({"1.weight": w}, x)
    assert fingerprint(module) == before


def test_a_module_under_two_names() -> None:
    part = nn.Linear(3, 3, dtype=REAL)
    module = nn.ModuleDict({"a": part, "b": nn.Sequential(part, nn.Tanh())})
    module.forward = lambda x: module["b"](module["a"](x))
    before = fingerprint(module)
    f, params = functional(module)
    assert list(params) == ["a.weight", "a.bias"]
    w, x = seeded(3, 3), seeded(2, 3, seed=1)
    torch.testing.assert_close(f({**params, "a.weight": w}, x), torch.tanh((x @ w.mT + part.bias) @ w.mT + part.bias))
    for _ in range(2):
        with pytest.raises(RuntimeError):
            f({**params, "a.weight": w}, seeded(2, 5))
    assert fingerprint(module) == before


def test_frozen_parameters_keep_the_modules_values() -> None:
    module = net()
    module[0].requires_grad_(False)
    f, params = functional(module)
    assert list(params) == ["2.weight", "2.bias"]
    torch.testing.assert_close(f(params, seeded(5, 3)), module(seeded(5, 3)))
    assert set(jacobian(lambda p: f(p, seeded(5, 3)), params).jacobian) == {"2.weight", "2.bias"}


def test_buffers_do_not_move() -> None:
    last = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 2))
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), last).double()
    x = seeded(6, 3)
    before = fingerprint(module)
    f, params = functional(module)
    f(params, x)
    jacobian(lambda p: f(p, x), params)
    assert fingerprint(module) == before
    values = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with buffers_preserved(module):
        loss = module(x).square().sum()
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, values[name]), name
    loss.backward()


class Counter(nn.Module):
    """Adds to a buffer that it may share."""

    def __init__(self, count: Tensor) -> None:
        super().__init__()
        self.register_buffer("count", count)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


def test_a_buffer_of_two_modules_stays_one() -> None:
    count = torch.ones((), dtype=REAL)
    module = nn.Sequential(Counter(count), Counter(count), nn.Linear(1, 1, bias=False, dtype=REAL))
    f, _ = functional(module)
    assert float(f({"2.weight": torch.ones(1, 1, dtype=REAL)}, torch.ones(1, 1, dtype=REAL))) == 6
    assert float(count) == 1


def test_refusals() -> None:
    f, params = functional(net())
    with pytest.raises(LeafError, match=r"unknown name '0.wieght'(.|\n)*functional"):
        f({**params, "0.wieght": params["0.weight"]}, seeded(5, 3))
    with pytest.raises(LeafError, match=r"'weight'(.|\n)*lazy"):
        functional(nn.LazyLinear(3))
    with pytest.raises(LeafError, match=r"'running_mean'(.|\n)*lazy"):
        functional(nn.LazyBatchNorm1d(affine=False))


def test_threads_do_not_see_each_others_parameters() -> None:
    module, x = net(), seeded(5, 3)
    before = fingerprint(module)
    f, params = functional(module)
    wrong: list[float] = []

    def work(scale: float) -> None:
        scaled = {name: scale * p for name, p in params.items()}
        expected = by_hand(scaled, x)
        for _ in range(40):
            if not torch.allclose(f(scaled, x), expected):
                wrong.append(scale)

    threads = [threading.Thread(target=work, args=(scale,)) for scale in (1.0, 2.0, -1.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong and fingerprint(module) == before


def test_a_module_is_not_read_while_another_thread_runs_it() -> None:
    module = net()
    f, params = functional(module)
    inside, go_on = threading.Event(), threading.Event()
    module[1].register_forward_hook(lambda *_: (inside.set(), go_on.wait(10))[0])
    seen: list[list[str]] = []
    runner = threading.Thread(target=lambda: f(params, seeded(5, 3)))
    reader = threading.Thread(target=lambda: seen.append(list(functional(module)[1])))
    runner.start()
    assert inside.wait(10)
    reader.start()
    reader.join(0.1)
    go_on.set()
    runner.join(10)
    reader.join(10)
    assert seen == [list(params)]


def test_the_module_can_be_forgotten() -> None:
    import gc
    import weakref

    module = net()
    seen = weakref.ref(module)
    f, params = functional(module)
    f(params, seeded(5, 3))
    del f, module
    gc.collect()
    assert seen() is None


def test_it_pickles_and_copies() -> None:
    module = nn.Linear(3, 2).double()
    f, params = functional(module)
    x = torch.randn(4, 3, dtype=torch.float64)
    for twin in (pickle.loads(pickle.dumps(f)), copy.deepcopy(f)):
        assert twin.module is not module
        assert torch.equal(twin(params, x), f(params, x))


def test_parts_that_changed_since_are_refused() -> None:
    module = net()
    f, params = functional(module)
    x = torch.ones(2, 3, dtype=torch.float64)
    kept, module[2] = module[2], nn.Tanh()
    with pytest.raises(LeafError, match=r"'2.weight', which the module has no longer"):
        f(params, x)
    del module[2]
    with pytest.raises(LeafError, match="'2', which the module has no longer"):
        f(params, x)
    module.append(kept)
    before = fingerprint(module)
    torch.testing.assert_close(f(params, x), module(x))
    assert fingerprint(module) == before


def test_a_part_that_was_replaced_runs_with_the_parameters_that_are_passed() -> None:
    module = net()
    f, params = functional(module)
    module[0] = nn.Linear(3, 4).double()
    x = torch.ones(2, 3, dtype=torch.float64)
    torch.testing.assert_close(f(params, x), by_hand(params, x))


def test_the_module_inside_a_wrapper_runs() -> None:
    module = net()
    f, params = functional(nn.DataParallel(module))
    assert list(params) == [name for name, _ in module.named_parameters()]
    x = torch.ones(2, 3, dtype=torch.float64)
    twice = {name: 2 * p for name, p in params.items()}
    torch.testing.assert_close(f(twice, x), by_hand(twice, x))


@pytest.mark.parametrize("module", [None, nn.Linear], ids=["none", "class"])
def test_what_is_no_plain_module_is_refused(module: nn.Module) -> None:
    with pytest.raises(StructureError, match=r"takes an nn\.Module that runs in Python"):
        functional(module)


def test_a_parameter_that_is_no_tensor_is_refused() -> None:
    module = net()
    f, params = functional(module)
    before = fingerprint(module)
    with pytest.raises(LeafError, match=r"a float at '2.bias'"):
        f({**params, "2.bias": 1.0}, torch.ones(2, 3, dtype=torch.float64))
    assert fingerprint(module) == before


def test_a_compiled_caller_gets_the_same_values() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    f, params = functional(module)
    params = {name: p + 1 for name, p in params.items()}
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = torch.compile(f, backend="eager", fullgraph=True)(params, x)
    torch.testing.assert_close(found, torch.func.functional_call(module, params, x))


class Mixing(nn.Module):
    """Multiplies by a buffer of any layout, to which it may write."""

    def __init__(self, mix: Tensor, *, writes: bool) -> None:
        super().__init__()
        self.writes = writes
        self.register_buffer("mix", mix)
        self.register_buffer("nowhere", torch.empty(3, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        result = (self.mix @ x.mT).mT
        if self.writes:
            self.mix.mul_(2)
        return result


@pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC)")
@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_sparse_buffers_and_those_without_memory(layout: torch.layout, writes: bool) -> None:
    values = seeded(3, 3)
    module = nn.Sequential(Mixing(values.to_sparse(layout=layout), writes=writes), nn.Linear(3, 2).double())
    x, y = seeded(5, 3), seeded(5, 2)
    with buffers_preserved(module):
        module(x)
        mix: Any = module[0].mix
        held = mix._values() if mix.is_sparse else mix.values()
        held.data.add_(1)  # which no version counts
    assert torch.equal(module[0].mix.to_dense(), values)
    batches = [(x, y)]
    v = {"1.weight": seeded(2, 3), "1.bias": seeded(2)}
    inputs = x @ values.mT
    error = inputs @ v["1.weight"].mT + v["1.bias"]  # the loss is the mean of five times two squares
    for G in (hesse.ggn(module, nn.MSELoss(), data) for data in ((x, y), batches)):
        product = G @ v
        torch.testing.assert_close(product["1.weight"], error.mT @ inputs / 5)
        torch.testing.assert_close(product["1.bias"], error.sum(0) / 5)
    assert torch.equal(module[0].mix.to_dense(), values)


def test_runs_of_other_threads_are_counted() -> None:
    inside, done = threading.Event(), threading.Event()
    model = nn.Sequential(nn.Linear(3, 2))
    f, params = hesse.functional(model)
    begun = runs_elsewhere(model)
    f(params, torch.ones(3))
    assert runs_elsewhere(model) == begun == runs_elsewhere(None) == 0

    def stand(*_: Any) -> None:
        inside.set()
        done.wait(60)

    model.register_forward_hook(stand)
    thread = threading.Thread(target=lambda: f(params, torch.ones(3)))
    thread.start()
    assert inside.wait(60)
    seen = [runs_elsewhere(model) for _ in range(3)]
    done.set()
    thread.join()
    after = runs_elsewhere(model)
    assert len({begun, *seen, after}) == 5 and runs_elsewhere(model) == after
