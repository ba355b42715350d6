"""Parameters that share memory are found; tied ones, parts side by side and views of buffers are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.check.module import check_module
from hesse.check.modules.ledger import Ledger
from hesse.check.modules.memory import check_memory

from ..planted import draw


def found(module: nn.Module) -> set[tuple[str, str]]:
    ledger = Ledger()
    check_memory(module, ledger)
    assert all(finding.check == "memory of parameters" for finding in ledger.findings)
    assert bool(ledger.rows)
    return {(finding.leaf, finding.diagnosis.partition("'")[2].partition("'")[0]) for finding in ledger.findings}


class Two(nn.Module):
    """``tanh(x a^T) b``."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x):
        return torch.tanh(x @ self.a.mT) @ self.b


FLAT = draw(30, seed=4)
WRONG = {
    "one tensor twice": (FLAT[:16].view(4, 4), FLAT[:16].view(4, 4)),
    "a transposed view": (FLAT[:12].view(4, 3), FLAT[:12].view(4, 3).mT),
    "the last element is the first": (FLAT[:12].view(4, 3), FLAT[11:19].view(4, 2)),
    "every second element of the other": (FLAT[:24].view(8, 3), FLAT[:16:2].view(4, 2)),
}
RIGHT = {
    "side by side": (FLAT[:12].view(4, 3), FLAT[12:20].view(4, 2)),
    "interleaved": (FLAT[:24:2].view(4, 3), FLAT[1:17:2].view(4, 2)),
    "columns of one matrix": (FLAT.view(5, 6)[:4, :3], FLAT.view(5, 6)[:4, 3:5]),
    "copies": (FLAT[:12].view(4, 3).clone(), FLAT[:8].view(4, 2).clone()),
    "without elements": (FLAT[:0].view(0, 3), FLAT[:0].view(0, 2)),
}


@pytest.mark.parametrize("tensors", WRONG.values(), ids=WRONG)
def test_two_parameters_in_one_memory(tensors) -> None:
    assert found(Two(*tensors)) == {("a", "b")}


@pytest.mark.parametrize("tensors", RIGHT.values(), ids=RIGHT)
def test_parameters_that_share_no_element(tensors) -> None:
    assert not found(Two(*tensors))


def test_tied_parameters_are_one_parameter() -> None:
    module = Two(draw(4, 3), draw(4, 2))
    module.again = module.a
    assert not found(module)


def test_a_parameter_and_a_buffer() -> None:
    module = Two(draw(4, 3), draw(4, 2))
    module.register_buffer("start", module.a.data[1:])
    assert found(module) == {("a", "start")}
    module.start = module.start.clone()
    assert not found(module)


def test_buffers_may_be_views_of_each_other() -> None:
    module = Two(draw(4, 3), draw(4, 2))
    module.register_buffer("table", FLAT)
    module.register_buffer("part", FLAT[3:8])
    module.register_buffer("ids", FLAT[:1].expand(7))
    assert not found(module)


def test_an_expanded_parameter() -> None:
    assert found(Two(draw(1, 3).expand(4, 3), draw(4, 2))) == {("a", "")}
    assert not found(Two(draw(1, 3).expand(1, 3), draw(1, 2)))


def test_tensors_of_other_types_and_none() -> None:
    module = Two(draw(4, 3), draw(4, 2))
    module.register_buffer("bits", module.b.data.view(torch.int64))
    module.register_parameter("none", None)
    assert found(module) == {("b", "bits")}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_check_module_looks_at_memory(dtype) -> None:
    tensor = draw(4, 3, dtype=dtype)
    report = check_module(Two(tensor, tensor.mT[:, :].mT), draw(5, 3, dtype=dtype))
    assert [(f.check, f.leaf) for f in report.findings] == [("memory of parameters", "a")]
    assert check_module(Two(tensor, tensor.clone()), draw(5, 3, dtype=dtype)).ok
