"""Which graphs may be compiled without a look at their indices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hesse.autodiff.compiled.functional_form import functional_form
from hesse.autodiff.compiled.indices import indices_are_fixed
from hesse.autodiff.compiled.optimize import optimize
from hesse.autodiff.compiled.trace import record

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
FIXED = torch.tensor([3, 0, 0, 2, 1], dtype=torch.int32)
OWN = torch.tensor([3, 0, 0, 2, 1])


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda x: (x * 2).index_select(0, FIXED), True),
        (lambda x: (x * 2).index_select(0, FIXED) + x.sin()[0], True),
        (lambda x: x.roll(1, 0) * 2, True),
        (lambda x: x.sin(), False),
        (lambda x: x.index_select(0, OWN), False),
        (lambda x: x.index_select(0, FIXED).index_select(0, x[0].argsort()), False),
        (lambda x: x[x[:, 0].argsort()], False),
    ],
    ids=["fixed", "fixed and pointwise", "roll", "none", "captured", "one of each", "computed"],
)
def test_only_indices_that_cannot_change_are_trusted(f: Callable[[Tensor], Tensor], expected: bool) -> None:
    trace, _ = record(lambda: f(X), [X], {id(FIXED): FIXED})
    assert not trace.refused
    optimize(trace)
    assert indices_are_fixed(functional_form(trace)) is expected
