"""Short types: right code passes whatever it rounds, and a factor of 1.001 in float32 is found."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hesse.check import check_derivatives

from ..planted import draw, planted

RIGHT = {
    "softmax": lambda x: x.softmax(1), "mean of many": lambda x: x.repeat(50, 1).mean(), "product": lambda x: x.cumprod(1),
    "far from zero": lambda x: (x + 100).sin(), "layer norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "inner": lambda x: x @ x.mT, "kinks": lambda x: (x @ x.mT).relu().amax(1), "norm": lambda x: x.norm(dim=1),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", RIGHT)
def test_right_code_passes(name: str, dtype: torch.dtype) -> None:
    for seed in range(3):
        report = check_derivatives(RIGHT[name], draw(4, 5, seed=seed, dtype=dtype))
        assert report.ok, str(report)


@pytest.mark.parametrize("only", [True, False])
def test_a_factor_of_one_thousandth_in_float32(only: bool) -> None:
    def rule(g, x):
        return g * x.cos() * (1.001 if x.dtype == torch.float32 or not only else 1.0)

    report = check_derivatives(planted(torch.sin, rule), draw(4, 3, dtype=torch.float32))
    assert report.findings[0].check == ("own dtype against float64" if only else "reverse mode")
    assert "factor 1.001" in report.findings[0].diagnosis
