"""The frozen planted bugs: enough of them, of every kind, and their sound twins right in first and second order."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from benchmarks.checks.bug import Bug, Kind
from benchmarks.checks.frozen import BUGS, functional

BEYOND_GRADCHECK = {"tie or kink", "sparse input"}  # torch's checker fails there on right programs


def test_the_set() -> None:
    assert len(BUGS) == len({bug.name for bug in BUGS}) >= 34
    assert {bug.kind for bug in BUGS} == set(get_args(Kind))


@pytest.mark.parametrize("bug", [b for b in BUGS if b.kind not in BEYOND_GRADCHECK], ids=lambda bug: bug.name)
def test_the_sound_twin_is_right(bug: Bug) -> None:
    f, leaves = functional(bug.make(torch.float64, False))
    fast = sum(x.numel() for x in leaves) > 20
    with torch.random.fork_rng():
        torch.manual_seed(5)
        assert torch.autograd.gradcheck(f, leaves, fast_mode=fast)
        assert torch.autograd.gradgradcheck(f, leaves, fast_mode=fast)


@pytest.mark.parametrize("bug", [b for b in BUGS if b.kind != "input changed"], ids=lambda bug: bug.name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_twins_give_the_same_first_value(bug: Bug, dtype: torch.dtype) -> None:
    values = []
    with torch.random.fork_rng():
        for planted in (False, True):
            program = bug.make(dtype, planted)
            torch.manual_seed(5)
            values.append(program.call(*program.inputs))
    torch.testing.assert_close(values[0], values[1])


def test_the_sparse_twin_is_right() -> None:
    (bug,) = [b for b in BUGS if b.kind == "sparse input"]
    program = bug.make(torch.float64, False)
    a, x = program.inputs
    u = torch.randn(a.shape[0], x.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaf = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(program.call(leaf, x), leaf, u)
    expected = (u @ x.T)[tuple(a.indices())]
    torch.testing.assert_close(gradient.coalesce().values(), expected)
