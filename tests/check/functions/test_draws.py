"""Random numbers in float64 runs: those that the function draws in its own type."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesse.check import check_derivatives, check_module
from hesse.check.functions.draws import DrawIn

from ..planted import draw, planted

DRAWING = {
    "rand": lambda x: x * torch.rand(x.shape, dtype=x.dtype),
    "randn_like": lambda x: x.sin() + x * torch.randn_like(x),
    "bernoulli of a tensor": lambda x: x * torch.bernoulli(x.detach().sigmoid()),
    "filled": lambda x: x * torch.empty_like(x).exponential_(),
    "inside of torch's own Python": lambda x: F.gumbel_softmax(x, dim=1),
    "windows": lambda x: F.fractional_max_pool2d(x.repeat(2, 1)[None], 2, output_size=(3, 2)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DRAWING)
def test_the_same_numbers(name: str, dtype: torch.dtype) -> None:
    x = draw(4, 5, seed=1, dtype=dtype)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        plain = DRAWING[name](x)
        torch.manual_seed(3)
        with DrawIn(dtype):
            exact = DRAWING[name](x.double())
    assert exact.dtype is torch.float64
    if name != "windows" or dtype is torch.float32:  # in bfloat16 the windows themselves are computed in bfloat16
        assert torch.allclose(exact.to(dtype), plain, rtol=20 * torch.finfo(dtype).eps, atol=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", DRAWING)
def test_differences_are_taken_in_float64(name: str) -> None:
    report = check_derivatives(DRAWING[name], draw(4, 5, seed=1, dtype=torch.float32))
    assert report.ok, str(report)
    assert not any("no equal run" in note for note in report.notes)


@pytest.mark.parametrize("module", [nn.FractionalMaxPool2d(2, output_size=(3, 4)), nn.FractionalMaxPool2d(2, output_ratio=0.6)])
def test_fractional_pools_are_decided(module: nn.Module) -> None:
    for seed in range(3):
        report = check_module(module, draw(2, 3, 8, 7, seed=seed, dtype=torch.float32))
        assert report.ok, str(report)


def test_a_wrong_gradient_under_noise() -> None:
    def noisy(x: Tensor) -> Tensor:
        return planted(lambda t: t.sin(), lambda g, t: 1.002 * g * t.cos())(x) * torch.rand(x.shape, dtype=x.dtype)

    report = check_derivatives(noisy, draw(4, 5, dtype=torch.float32))
    assert report.verdict == "wrong"
    assert "factor 1.002" in report.findings[0].diagnosis


def test_what_is_drawn_in_another_type_stays() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        plain = torch.rand(3)
        torch.manual_seed(3)
        with DrawIn(torch.bfloat16):
            assert torch.equal(torch.rand(3), plain)
