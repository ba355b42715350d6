"""Every op that runs is timed once, at the line of the user's code."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hesse.autodiff.compiled.profile import Profile
from hesse.autodiff.events.timing import timed_ops


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_ops_lines_and_phases() -> None:
    x = torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()

    def step() -> None:
        y = x.tanh()
        torch.autograd.grad((y * y).sum(), x)

    with Count() as count:
        step()
    started = time.perf_counter()
    with timed_ops() as profile:
        step()
    whole = time.perf_counter() - started
    ops = profile.report().ops
    runs = Counter()
    for op in ops:
        runs[op.op] += op.runs
    assert runs == count.ops
    assert {op.phase for op in ops if op.op == "aten.tanh_backward.default"} == {"backward"}
    (forward,) = [op for op in ops if op.op == "aten.tanh.default"]
    (backward,) = [op for op in ops if op.op == "aten.tanh_backward.default"]
    assert forward.source == backward.source
    assert forward.source is not None
    assert forward.source.line == step.__code__.co_firstlineno + 1
    assert 0 < sum(op.seconds for op in ops) < whole


def test_it_feeds_a_profile_that_stands() -> None:
    profile = Profile("detailed")
    for _ in range(3):
        with timed_ops(profile) as same:
            torch.ones(2).exp()
        assert same is profile
    assert {op.op: op.runs for op in profile.report().ops} == {"aten.ones.default": 3, "aten.exp.default": 3}
