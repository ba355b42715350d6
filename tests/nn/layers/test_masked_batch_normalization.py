"""`MaskedBatchNormalization` against `torch.nn.BatchNorm1d` on the valid rows alone."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import nn

from hesse.core.errors import StructureError
from hesse.nn.layers import MaskedBatchNormalization

from ..models.common import F64, filled, gradients, normal

close = torch.testing.assert_close
LENGTHS = torch.tensor([4, 1, 3])
MASK = (torch.arange(5) < LENGTHS[:, None]).double()  # [3, 5]


def reference(params: dict, momentum: float, eps: float) -> nn.BatchNorm1d:
    other = nn.BatchNorm1d(6, momentum=momentum, eps=eps, dtype=F64)
    other.load_state_dict(params, strict=False)
    return other


@pytest.mark.parametrize(("momentum", "eps"), [(0.1, 1e-5), (0.3, 0.2)])
@pytest.mark.parametrize("form", ["step", "one", "full", "bool"])
def test_statistics_of_the_valid_rows(momentum: float, eps: float, form: str) -> None:
    f, params = MaskedBatchNormalization(6, momentum=momentum, eps=eps, dtype=F64)
    assert bool((params["weight"] == 0.1).all())
    params = filled(params)
    masks = {"step": MASK, "one": MASK[..., None], "full": MASK[..., None].expand(3, 5, 6), "bool": MASK.bool()}
    mask, other, state, valid = masks[form], reference(params, momentum, eps), None, MASK.bool()
    for seed in (1, 2):
        x = normal(3, 5, 6, seed=seed) + 2  # off center, which the original got wrong
        y, state = f(params, x, mask, state, training=True)
        expected = other(x[valid])
        close(y[valid], expected, rtol=1e-11, atol=1e-11)
        assert not y[~valid].any()
    close(state["running_mean"], other.running_mean)
    close(state["running_var"], other.running_var)
    weights = torch.arange(1.0, y.numel() + 1, dtype=F64).reshape(y.shape).cos()
    theirs = torch.autograd.grad((expected * weights[valid]).sum(), list(other.parameters()))
    for a, b in zip(gradients(f, params, x, mask, training=True), theirs, strict=True):
        close(a, b, rtol=1e-10, atol=1e-10)
    other.eval()
    before = {name: t.clone() for name, t in state.items()}
    y, after = f(params, x, mask, state)
    close(y[valid], other(x[valid]), rtol=1e-11, atol=1e-11)
    close(after, before, rtol=0, atol=0)


def test_the_gradient_by_the_input() -> None:
    f, params = MaskedBatchNormalization(6, dtype=F64)
    params, x, valid = filled(params), normal(3, 5, 6), MASK.bool()
    rows = x[valid].clone().requires_grad_()
    x = x.requires_grad_()
    other = reference(params, 0.1, 1e-5)
    (a,) = torch.autograd.grad(f(params, x, MASK, training=True)[0].sin().sum(), [x])
    (b,) = torch.autograd.grad(other(rows).sin().sum(), [rows])
    close(a[valid], b, rtol=1e-10, atol=1e-10)
    assert not a[~valid].any()


def test_masked_places_have_no_influence() -> None:
    f, params = MaskedBatchNormalization(6, dtype=F64)
    x, valid = normal(3, 5, 6), MASK.bool()
    y, state = f(params, x, MASK, training=True)
    x[~valid] = math.nan
    x.requires_grad_()
    z, other = f(params, x, MASK, training=True)
    close(z, y, rtol=0, atol=0)
    close(other, state, rtol=0, atol=0)
    (g,) = torch.autograd.grad(z.square().sum(), [x])
    assert bool(g.isfinite().all())


def test_a_mask_for_each_feature() -> None:
    f, params = MaskedBatchNormalization(6, dtype=F64)
    params, x = filled(params), normal(9, 6)
    mask = normal(9, 6, seed=4) > -0.5
    y, state = f(params, x, mask, training=True)
    for k in range(6):
        column = x[mask[:, k], k]
        scaled = (column - column.mean()) / (column.var(correction=0) + 1e-5).sqrt()
        close(y[mask[:, k], k], scaled * params["weight"][k] + params["bias"][k])
        close(state["running_mean"][k], 0.1 * column.mean())
        close(state["running_var"][k], 0.9 + 0.1 * column.var())


def test_nothing_valid_leaves_the_state() -> None:
    f, params = MaskedBatchNormalization(6, dtype=F64)
    y, state = f(params, normal(3, 5, 6), torch.zeros(3, 5), training=True)
    assert not y.any()
    close(state, f.initial_state(params), rtol=0, atol=0)


def test_one_sample_by_running_statistics() -> None:
    f, params = MaskedBatchNormalization(6, dtype=F64)
    x = normal(8, 6)
    _, state = f(params, x, torch.ones(8), training=True)
    y, _ = f(params, x, torch.ones(8), state)
    close(f(params, x[3], torch.tensor(1.0), state)[0], y[3])
    close(f(params, x[3], torch.ones(6), state)[0], y[3])
    z, _ = f(params, x[3], torch.tensor(1), training=True)  # alone, a sample is its own mean
    close(z, params["bias"])


def test_pickles_and_messages() -> None:
    f, params = MaskedBatchNormalization()
    assert params["weight"].shape == (10,)
    assert pickle.loads(pickle.dumps(f)) == f
    with pytest.raises(StructureError, match="mask"):
        f(params, torch.ones(3, 5, 10), torch.ones(5, 3))
    with pytest.raises(StructureError, match="10 features"):
        f(params, torch.ones(3, 5), torch.ones(3))
