from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.core.errors import StructureError
from hesse.nn.layers import LayerNormalization

from ..models.common import F64, check_part, filled, gradients, normal

close = torch.testing.assert_close


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_it_is_that_of_torch(shape: tuple[int, ...], eps: float) -> None:
    f, params = LayerNormalization(7, eps=eps, dtype=F64)
    assert bool((params["weight"] == 1).all())
    assert not params["bias"].any()
    params, x = filled(params), normal(*shape)
    other = nn.LayerNorm(7, eps=eps, dtype=F64)
    other.load_state_dict(params)
    y = f(params, x)
    close(y, other(x), rtol=1e-12, atol=1e-12)
    centered = x - x.mean(-1, keepdim=True)
    formula = centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt() * params["weight"] + params["bias"]
    close(y, formula, rtol=1e-12, atol=1e-12)
    weights = torch.arange(1.0, y.numel() + 1, dtype=F64).reshape(y.shape).cos()
    expected = torch.autograd.grad((other(x) * weights).sum(), list(other.parameters()))
    for a, b in zip(gradients(f, params, x), expected, strict=True):
        close(a, b, rtol=1e-10, atol=1e-10)
    check_part(f, params, x)


def test_defaults_and_messages() -> None:
    f, params = LayerNormalization()
    assert params["weight"].shape == (10,)
    with pytest.raises(StructureError, match="10 features"):
        f(params, torch.ones(10, 3))
