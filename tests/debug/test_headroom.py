"""Headroom in bits and the share of subnormal numbers, against closed forms."""

from __future__ import annotations

import linecache
import math

import pytest
import torch
from torch import Tensor, nn

from hesse.autodiff.events.headroom import bits_below
from hesse.debug import HeadroomReport, OpHeadroom, exponent_headroom


def row(report: HeadroomReport, op: str, phase: str = "forward") -> OpHeadroom:
    (found,) = [row for row in report.rows if row.op.split(".")[1] == op and row.phase == phase]
    return found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bits(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, -4.0, 0.5], dtype=dtype)

    def step() -> Tensor:
        y = x * 16
        return y.neg()

    report = exponent_headroom(step)
    assert [found.op for found in report.rows] == ["aten.mul.Tensor", "aten.neg.default"]
    found = row(report, "mul")
    assert (found.largest, found.dtype, found.calls, found.underflow, found.overflowed) == (64.0, dtype, 1, 0.0, False)
    assert found.headroom == pytest.approx(math.log2(torch.finfo(dtype).max) - 6, abs=1e-12)
    assert linecache.getline(found.file, found.line).strip() == "y = x * 16"


def test_the_nearest_comes_first_and_asks_of_another_type() -> None:
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
    nn.init.constant_(net.get_parameter("0.weight"), 100.0)
    nn.init.constant_(net.get_parameter("1.weight"), 1000.0)
    x = torch.ones(4, 2)

    def step() -> None:
        net(x).sum().backward()

    report = exponent_headroom(step, dtype=torch.float16)
    smallest = report.smallest
    assert smallest is not None
    assert (smallest.op, smallest.largest) == ("aten.sum.default", 4 * 6e5)
    assert smallest.headroom == pytest.approx(math.log2(65504 / 24e5))
    assert [found.headroom for found in report.rows] == sorted(found.headroom for found in report.rows)
    forward = [found for found in report.rows if found.module == "0" and found.phase == "forward"]
    assert [found.largest for found in forward] == [200.0]
    backward = [found for found in report.rows if found.module == "1" and found.phase == "backward"]
    assert max(found.largest for found in backward) == 1000.0
    assert str(report).splitlines()[1].startswith("over")
    assert exponent_headroom(step).smallest.headroom > 100  # pyright: ignore


def test_underflow() -> None:
    tiny = torch.finfo(torch.float16).smallest_normal
    x = torch.tensor([tiny * 2, tiny / 2, 0.0, 1.0, tiny / 4, tiny], dtype=torch.float16)
    report = exponent_headroom(lambda: x * 1)
    assert row(report, "mul").underflow == pytest.approx(2 / 5)
    assert [found.op for found in report.underflows] == ["aten.mul.Tensor"]
    assert "40.00%" in report.text


def test_overflow_and_what_is_meant() -> None:
    x = torch.tensor([6e4, 1.0], dtype=torch.float16)

    def step() -> Tensor:
        y = x.masked_fill(torch.tensor([False, True]), -torch.inf)
        z = x.clone()
        return z.mul_(2).neg() + y

    report = exponent_headroom(step)
    over = {found.op.split(".")[1]: found.overflowed for found in report.rows}
    assert over == {"mul_": True, "neg": False, "masked_fill": False, "clone": False, "add": False}
    assert report.rows[0].op == "aten.mul_.Tensor"
    assert report.rows[0].headroom == -math.inf
    assert row(report, "masked_fill").largest == 59994 or row(report, "masked_fill").largest == 60000


def test_nothing_ran() -> None:
    report = exponent_headroom(lambda: torch.arange(3) + 1)
    assert (report.rows, report.smallest, report.text) == ((), None, "no floating-point op ran")
    assert bits_below(0.0, torch.float32) == math.inf
    with pytest.raises(ZeroDivisionError):
        exponent_headroom(lambda: 1 / 0)
    assert torch._C._len_torch_dispatch_stack() == 0


def test_several_lines_are_rows_of_their_own() -> None:
    x = torch.ones(3)

    def step() -> None:
        for scale in (1.0, 8.0):
            x.mul(scale)
        x.mul(2.0)

    found = exponent_headroom(step).rows
    assert [(entry.largest, entry.calls) for entry in found] == [(8.0, 2), (2.0, 1)]
