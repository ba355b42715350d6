"""Modes that surround a check, and modules that cannot be checked or copied."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.check.module import check_module
from hesse.core.errors import StructureError

from ..planted import draw


def linear() -> nn.Module:
    module = nn.Linear(3, 2)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(draw(*p.shape))
    return module


@pytest.mark.parametrize(
    "mode", [torch.no_grad(), torch.inference_mode(), torch.autocast("cpu")], ids=lambda m: type(m).__name__
)
def test_modes_around_a_check(mode) -> None:
    module, x = linear(), draw(4, 3, dtype=torch.float32)
    cached = torch.is_autocast_cache_enabled()
    with mode:
        recorded = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        report = check_module(module, x)
        assert recorded == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    assert report.ok, report
    assert torch.is_autocast_cache_enabled() == cached


def test_inputs_made_in_inference_mode() -> None:
    with torch.inference_mode():
        x = draw(4, 3, dtype=torch.float32)
    assert check_module(linear(), x).ok


def test_parameters_made_in_inference_mode() -> None:
    with torch.inference_mode():
        module = linear()
    with pytest.raises(StructureError, match="'weight' was made under inference_mode"):
        check_module(module, draw(4, 3, dtype=torch.float32))


def test_what_cannot_be_checked() -> None:
    x = draw(4, 3, dtype=torch.float32)
    with pytest.raises(StructureError, match="check_module checks modules that run in Python"):
        check_module(nn.DataParallel(linear()), x)
    with pytest.raises(StructureError, match="diagonal= is a function"):
        check_module(linear(), x, diagonal=3)  # pyright: ignore[reportArgumentType]


class Uncopied(nn.Module):
    """Cannot be copied; its calls are counted in a buffer, and multiply what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(2, 3, dtype=torch.float32))
        self.register_buffer("calls", torch.zeros(()))

    def __deepcopy__(self, memo):
        raise RuntimeError("no copies")

    def forward(self, x):
        self.calls.add_(1)
        y = x @ self.weight.mT
        return self.calls * (torch.tanh(y) if self.training else y)


def test_a_module_without_copies_is_put_back() -> None:
    module = Uncopied()
    weight, kept = module.weight, module.weight.detach().clone()
    report = check_module(module, draw(4, 3, dtype=torch.float32), level="full")
    assert report.ok, report
    assert module.weight is weight and torch.equal(weight, kept)
    assert not module.calls.any()


class Adds(nn.Module):
    """Writes to an input that its linear layer saved."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, x):
        y = self.inner(x)
        x += y
        return x


@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_backward_pass_that_raises_is_a_finding(level) -> None:
    (finding,) = check_module(Adds(), draw(4, 3), level=level).findings
    assert finding.check == "backward pass"
    assert "modified by an inplace operation" in finding.diagnosis


class Force(nn.Module):
    """An energy and its negative gradient, which the module takes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def forward(self, x):
        x.requires_grad_()
        energy = self.net(x).sum()
        return energy, -torch.autograd.grad(energy, x, create_graph=True)[0]


@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_module_that_differentiates_itself(level) -> None:
    report = check_module(Force(), draw(5, 3), level=level)
    assert report.ok, report


class Sparse(nn.Module):
    """A graph network's step: a sparse buffer times the input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(3, 2))
        self.register_buffer("laplacian", (draw(4, 4) * (draw(4, 4, seed=1) > 0)).to_sparse())

    def forward(self, x):
        return torch.tanh(torch.sparse.mm(self.laplacian, x) @ self.weight)


@pytest.mark.parametrize("level", ["quick", "full"])
def test_sparse_buffers(level) -> None:
    report = check_module(Sparse(), draw(4, 3), level=level)
    assert report.ok, report


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_cut_at_their_longest(dtype: torch.dtype) -> None:
    for seed in range(6):
        module = nn.Embedding(7, 3, max_norm=1.0, dtype=dtype)
        with torch.no_grad():
            module.weight.copy_(3 * draw(7, 3, seed=seed))
        report = check_module(module, torch.tensor([[0, 3], [6, 1]]))
        assert not report.findings, report
