from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.nn.layers import SoftAttention

from ..models.common import F64, filled, generator, gradients, normal

close = torch.testing.assert_close


def one(params: dict, subject: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """One sample, by sums over features and choices."""
    logits = []
    for k in range(subject.shape[1]):
        logits.append((params["weight_subject"] * subject[:, k]).sum() + (params["weight_hidden"][k] * h).sum())
    z = torch.stack(logits)
    if "bias" in params:
        z = z + params["bias"]
    else:
        centered = z - z.mean()
        z = centered / (centered.square().mean() + 1e-5).sqrt()
        z = z * params["normalization"]["weight"] + params["normalization"]["bias"]
    focus = z.exp() / z.exp().sum()
    return sum(focus[k] * subject[:, k] for k in range(len(focus))), focus


@pytest.mark.parametrize("layer_normalization", [False, True])  # True failed in the original
def test_formulas(layer_normalization: bool) -> None:
    f, params = SoftAttention(4, 3, 5, layer_normalization=layer_normalization, dtype=F64)
    assert ("bias" in params) != layer_normalization
    params, subject, h = filled(params), normal(6, 3, 5), normal(6, 4, seed=5)
    attention, focus = f(params, subject, h)
    assert (attention.shape, focus.shape) == ((6, 3), (6, 5))
    close(focus.sum(1), torch.ones(6, dtype=F64))
    for n in range(6):
        expected = one(params, subject[n], h[n])
        close((attention[n], focus[n]), expected, rtol=1e-11, atol=1e-11)
        close(f(params, subject[n], h[n]), expected, rtol=1e-11, atol=1e-11)

    def loop(params: dict, subject: Tensor, h: Tensor) -> Tensor:
        return torch.stack([one(params, s, g)[0] for s, g in zip(subject, h, strict=True)])

    ours = gradients(f, params, subject, h)
    for a, b in zip(ours, gradients(loop, params, subject, h), strict=True):
        close(a, b, rtol=1e-9, atol=1e-9)
    assert pickle.loads(pickle.dumps(f)) == f


def test_defaults_and_messages() -> None:
    f, params = SoftAttention(generator=generator())
    assert [tuple(t.shape) for t in params.values()] == [(15,), (20, 10), (20,)]
    _, again = SoftAttention(generator=generator())
    close(params, again, rtol=0, atol=0)
    with pytest.raises(StructureError, match="features come before choices"):
        f(params, torch.ones(2, 20, 15), torch.ones(2, 10))
    for h in (torch.ones(2, 9), torch.ones(3, 10), torch.ones(1, 2, 10)):
        with pytest.raises(StructureError, match="takes"):
            f(params, torch.ones(2, 15, 20), h)
