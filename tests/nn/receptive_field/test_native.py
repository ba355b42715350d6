"""Blocks in native code give the eager numbers, or a notice and the eager numbers."""

from __future__ import annotations

import copy
import shutil
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from hesse.autodiff.compiled.mode import CompileNotice
from hesse.nn import ReceptiveFieldConv2d
from hesse.nn.receptive_field import native

from .common import tangent


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_blocks_give_the_eager_numbers() -> None:
    eager = ReceptiveFieldConv2d(tangent, 2, 5, 3, reduce="prod", padding=1)
    module = ReceptiveFieldConv2d(tangent, 2, 5, 3, reduce="prod", padding=1, compile="native")
    module.load_state_dict(eager.state_dict())
    x = torch.rand(2, 2, 9, 8, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileNotice)
        assert_close(module(x), eager(x), rtol=1e-5, atol=1e-6)
    found, right = (torch.autograd.grad(m(x).sum(), [x, *m.parameters()]) for m in (module, eager))
    for a, b in zip(found, right, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert_close(copy.deepcopy(module)(x), eager(x), rtol=1e-5, atol=1e-6)


def broken(compiled: Any) -> Any:
    def run(pixels: Tensor, weights: Tensor) -> Tensor:
        raise RuntimeError("no compiler")

    return run


def wrong(compiled: Any) -> Any:
    return lambda pixels, weights: compiled(pixels, weights) * 1.01


@pytest.mark.parametrize(("fault", "why"), [(broken, "no compiler"), (wrong, "other numbers")])
def test_what_cannot_be_compiled_runs_eagerly_with_a_notice(fault: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.torch, "compile", fault)
    module = ReceptiveFieldConv2d(tangent, 2, 5, 3, compile="native")
    eager = ReceptiveFieldConv2d(tangent, 2, 5, 3)
    eager.load_state_dict(module.state_dict())
    x = torch.rand(2, 2, 9, 8)
    with torch.no_grad(), pytest.warns(CompileNotice, match=why):
        value = module(x)
    assert_close(value, eager(x))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(module(x), value)
