"""What arguments and closed-over tensors have in common, carry, or suffer: never a stale result, never a lost effect."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections import namedtuple
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

import hesse

from .test_function import Counted, user_warnings

F64 = torch.float64


class Pair(namedtuple("Pair", ["a", "b"])):
    scale = 2.0


@dataclass
class Config:
    rate: float
    scale: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        self.extra = 2 * self.rate

    def factor(self) -> float:
        return self.rate


class Level(IntEnum):
    LOW = 1
    HIGH = 5


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


@pytest.mark.parametrize("variables", [(0,), ()])
def test_a_tensor_that_was_given_and_closed_over_at_once(variables) -> None:
    anchor = numbers(3)

    def f(p: Tensor) -> Tensor:
        return ((p - anchor) ** 2).sum()

    c = Counted(f, variables=variables)
    for p in (anchor, anchor + 1, numbers(3), anchor):
        assert torch.allclose(c(p), f(p), rtol=1e-12)


def test_the_gradient_at_the_anchor_itself() -> None:
    anchor = numbers(3)
    df = hesse.grad(lambda p: ((p - anchor) ** 2).sum(), compile="replay")
    for p in (anchor, anchor + 1, numbers(3)):
        assert torch.allclose(df(p).grads, 2 * (p - anchor), rtol=1e-12)


@pytest.mark.parametrize("first_same", [True, False])
def test_code_that_asks_whether_two_arguments_are_the_same(first_same) -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return x * 2 if x is y else x * 3

    c, a, b = Counted(f, variables=()), numbers(3), numbers(3)
    for x, y in [(a, a), (a, b), (b, b), (b, a)][:: 1 if first_same else -1] * 2:
        assert torch.equal(c(x, y), f(x, y))


def test_code_that_asks_whether_an_argument_is_closed_over() -> None:
    one = numbers(3)

    def f(x: Tensor) -> Tensor:
        return x * 2 if x is one else one * 3

    c, other = Counted(f, variables=()), numbers(3)
    for x in (other, one, other, one):
        assert torch.equal(c(x), f(x))


def test_attributes_of_tensors_are_live() -> None:
    c = Counted(lambda x: x * x.scale, variables=())
    for scale in (2.0, 2.0, 3.0, torch.full((3,), 5.0, dtype=F64), torch.full((3,), 6.0, dtype=F64)):
        x = numbers(3)
        x.scale = scale
        assert torch.equal(c(x), x * scale)
    assert c.runs == 3


@pytest.mark.parametrize(
    ("read", "change"),
    [
        (lambda x: x * (1 if x.grad is None else 2), lambda x: setattr(x, "grad", numbers(3))),
        (lambda x: x * x._version, lambda x: x.add_(1)),
        (lambda x: x * x.storage_offset(), None),
        (lambda x: x * (1 if x.is_inference() else 2), None),
    ],
)
def test_what_no_guard_compares_is_not_recorded(read, change) -> None:
    c, base = Counted(read, variables=()), numbers(3, 3)
    with user_warnings() as seen:
        for row in range(3):
            x = base[row].clone() if change else base[row]
            assert torch.equal(c(x), read(x))
            if change:
                change(x)
                assert torch.equal(c(x), read(x))
    assert len(seen) == 1 and "asks a tensor that it did not compute for" in str(seen[0].message)


@pytest.mark.parametrize("log", [[], {}])
def test_an_argument_that_the_function_changes_is_changed_at_every_call(log) -> None:
    def f(x: Tensor, log) -> Tensor:
        if isinstance(log, dict):
            log[len(log)] = 1
        else:
            log.append(1)
        return x * 2

    c = Counted(f)
    with user_warnings() as seen:
        for calls in range(1, 5):
            c(numbers(2), log)
            assert len(log) == calls
    assert "changes what it is given" in str(seen[0].message)


def test_classes_of_arguments_are_live(monkeypatch) -> None:
    c = Counted(lambda x, k: x * k.rate * k.scale * k.factor() * k.extra)
    x = numbers(2)
    assert torch.equal(c(x, Config(1.5)), x * 1.5 * 2.0 * 1.5 * 3.0)
    assert torch.equal(c(x, Config(1.5)), x * 1.5 * 2.0 * 1.5 * 3.0) and c.runs == 1
    monkeypatch.setattr(Config, "scale", 4.0)
    assert torch.equal(c(x, Config(1.5)), x * 1.5 * 4.0 * 1.5 * 3.0)
    monkeypatch.setattr(Config, "factor", lambda self: 7.0)
    assert torch.equal(c(x, Config(1.5)), x * 1.5 * 4.0 * 7.0 * 3.0)
    other = Config(1.5)
    other.extra = 5.0
    assert torch.equal(c(x, other), x * 1.5 * 4.0 * 7.0 * 5.0)


@pytest.mark.parametrize("variables", [(0,), ()])
def test_class_attributes_of_named_tuples_are_live(variables, monkeypatch) -> None:
    c = Counted(lambda p: p.a * p.scale, variables=variables)
    for scale in (2.0, 2.0, 3.0, 3.0):
        monkeypatch.setattr(Pair, "scale", scale)
        a = numbers(2)
        assert torch.equal(c(Pair(a, 1)), a * scale)
    assert c.runs == 2


def test_equal_constants_of_any_type_are_one_kind_of_call() -> None:
    c = Counted(lambda x, rate, rows, part, level: x[part] * float(rate) * len(rows) * int(level))
    for rate, rows, part, level in [(0.5, 3, 2, Level.LOW)] * 3 + [(0.25, 3, 2, Level.LOW), (0.5, 3, 2, Level.HIGH)]:
        x = numbers(4)
        found = c(x, np.float64(rate), range(rows), slice(0, part), level)
        assert torch.equal(found, x[:part] * rate * rows * int(level))
    assert c.runs == 3


def test_keys_that_are_equal_and_not_the_same() -> None:
    c = Counted(lambda d: next(iter(d.values())) * (2 if isinstance(next(iter(d)), float) else 3), variables=())
    x = numbers(2)
    assert torch.equal(c({1: x}), x * 3) and torch.equal(c({1.0: x}), x * 2) and torch.equal(c({1: x}), x * 3)


def test_nothing_that_was_seen_is_kept_alive() -> None:
    hidden = {"list": [numbers(3)], "tensor": numbers(3)}

    def f(p: Tensor, x: Tensor) -> Tensor:
        return (p * x * hidden["tensor"] * hidden["list"][0]).sum()

    df, p, x = hesse.grad(f, compile="replay"), numbers(3), numbers(3)
    seen = [weakref.ref(t) for t in (p, x, hidden["tensor"], hidden["list"][0])]
    df(p, x)
    del p, x
    hidden["tensor"], hidden["list"] = numbers(3), [numbers(3)]
    df(numbers(3), numbers(3))
    gc.collect()
    assert [ref() is None for ref in seen] == [True] * 4


def test_the_first_result_has_memory_of_its_own_as_later_ones() -> None:
    kept = numbers(3)

    def f(x: Tensor) -> tuple[Tensor, ...]:
        y = x * 2
        return x, kept, y, y[1:]

    c = Counted(f, variables=())
    for _ in range(2):
        x = numbers(3)
        before, inside = x.clone(), kept.clone()
        for part in c(x):
            part.add_(1)
        assert torch.equal(x, before) and torch.equal(kept, inside)
        assert torch.equal(c(x)[3], x[1:] * 2)


def test_threads_that_take_different_paths_record_each_once() -> None:
    def f(x: Tensor) -> Tensor:
        return x * 2 if x[0] > 0 else x * 3 if x[1] > 0 else x * 5

    c, wrong = Counted(f, variables=()), []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(150):
            x = torch.randn(2, dtype=F64, generator=generator)
            try:
                if not torch.equal(c(x), f(x)):
                    wrong.append(x)
            except Exception as error:
                wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong and c.runs <= 6


def _forked(x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        return x * torch.rand(3, dtype=F64)


def _checkpointed(x: Tensor) -> Tensor:
    inside = torch.utils.checkpoint.checkpoint(lambda y: torch.dropout(y, 0.5, train=True).tanh(), x, use_reentrant=False)
    (slope,) = torch.autograd.grad(inside.sum(), x)
    return slope


@pytest.mark.parametrize("f", [_forked, _checkpointed])
def test_a_random_state_that_is_put_back_is_put_back_at_every_call(f) -> None:
    c = Counted(f, variables=())
    for call in range(3):
        x = numbers(3).requires_grad_()
        before = torch.get_rng_state()
        expected, after = f(x), torch.get_rng_state()
        torch.set_rng_state(before)
        with user_warnings() as seen:
            assert torch.equal(c(x), expected)
        assert torch.equal(torch.get_rng_state(), after)
        if call == 0:
            assert "puts back the state" in str(seen[0].message)


class Batch:
    def __init__(self, x: Tensor) -> None:
        self.x = x


def test_objects_that_are_new_at_each_call_are_let_go() -> None:
    c, seen = Counted(lambda p, batch: p * batch.x), []
    with user_warnings() as notices:
        for _ in range(40):
            batch = Batch(numbers(2))
            seen.append(weakref.ref(batch))
            p = numbers(2)
            assert torch.equal(c(p, batch), p * batch.x)
    del batch
    gc.collect()
    assert len(notices) == 1 and not any(ref() for ref in seen)


def test_arguments_that_contain_themselves_run_directly() -> None:
    ring = [2.0]
    ring.append(ring)
    c = Counted(lambda x, items: x * items[0])
    with user_warnings() as notices:
        x = numbers(2)
        assert torch.equal(c(x, ring), x * 2.0) and torch.equal(c(x, ring), x * 2.0)
    assert len(notices) == 1 and "nested too deeply" in str(notices[0].message)


def test_a_default_device_is_part_of_a_call() -> None:
    c, x = Counted(lambda x: x.sum() * torch.ones(2).is_meta), numbers(3)
    for device in ("cpu", "cpu", "meta", "meta", None):
        with torch.device(device or "cpu"):
            assert float(c(x)) == (float(x.sum()) if device == "meta" else 0.0)
    assert c.runs == 2
