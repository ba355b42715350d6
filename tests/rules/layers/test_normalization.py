"""Normalization in every precision, and as one fused op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.rules.forms import Dense
from hesse.rules.layers import Meeting, SampleAxis, layer_rules
from tests.parameters import oracle
from tests.parameters.special import Free
from tests.rules.layers.comparing import compare, seeded

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: nn.LayerNorm(4),
    "layer norm over two axes": lambda: nn.LayerNorm([3, 4]),
    "root mean square": lambda: nn.RMSNorm(4),
    "group norm": lambda: nn.GroupNorm(1, 3),
    "batch norm": lambda: nn.BatchNorm1d(3),
    "instance norm": lambda: nn.InstanceNorm1d(3, affine=True),
}
ONE_OP = ["layer norm", "layer norm over two axes", "group norm", "batch norm"]


@pytest.mark.parametrize("name", LAYERS)
def test_double_precision(name: str) -> None:
    compare(oracle.randomize(LAYERS[name]()).double().eval(), seeded(6, 3, 4))


def test_positions_first() -> None:
    layer = oracle.randomize(nn.LayerNorm(4)).double()
    compare(Free(lambda s, x: s.norm(x.transpose(0, 1)).transpose(0, 1), norm=layer), seeded(6, 3, 4))


def rows_of(y: Tensor, shapes: Sequence[torch.Size], g: Tensor) -> list[Tensor]:
    """The rows of scale and shift by the rule of the node behind y."""
    rows, node = [], y.grad_fn
    assert node is not None
    for index, shape in enumerate(shapes, 1):
        form = layer_rules.lookup(node.name())(Meeting(node, index, {0: g}, {0: SampleAxis(0, 1, 1)}, shape))
        assert isinstance(form, Dense)
        rows.append(form.rows)
    return rows


@pytest.mark.parametrize("wide_parameters", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ONE_OP)
def test_low_precision(name: str, dtype: torch.dtype, wide_parameters: bool) -> None:
    """As near to exact as a loop of PyTorch's; the scale's rows to float32 where it is in float32, as autocast has it."""
    layer: Any = oracle.randomize(LAYERS[name]()).eval()
    layer = layer.to(torch.float32 if wide_parameters else dtype)
    x, g = (seeded(6, 3, 4, seed=seed).to(dtype) for seed in (0, 7))
    y = layer(x)
    assert y.dtype == dtype
    found = rows_of(y, [layer.weight.shape, layer.bias.shape], g)
    own = [torch.autograd.grad(layer(x[n : n + 1]), [layer.weight, layer.bias], g[n : n + 1]) for n in range(6)]
    layer = layer.double()
    x, g = x.double(), g.double()
    exact = [torch.autograd.grad(layer(x[n : n + 1]), [layer.weight, layer.bias], g[n : n + 1]) for n in range(6)]
    for i in range(2):
        expected, by_loop = (torch.stack([row[i] for row in rows]).double() for rows in (exact, own))
        off, off_by_loop = (oracle.difference(rows, expected) for rows in (found[i].double(), by_loop))
        assert off <= (1e-6 if wide_parameters and i == 0 else 1.2 * off_by_loop + torch.finfo(dtype).eps)


def test_statistics_of_the_batch_take_no_rule() -> None:
    layer = nn.BatchNorm1d(3).double()
    y = layer(seeded(6, 3, 4))
    node: Any = y.grad_fn
    meeting = Meeting(node, 1, {0: torch.ones_like(y)}, {0: SampleAxis(0, 1, 1)}, layer.weight.shape)
    assert layer_rules.lookup(node.name())(meeting) is None


def test_fused_root_mean_square_norm() -> None:
    """CUDA's fused op, from what its node keeps."""
    x, weight, g = seeded(6, 3, 4), seeded(4, seed=1).requires_grad_(), seeded(6, 3, 4, seed=2)
    scale = (x.square().mean(2, keepdim=True) + 0.1).rsqrt()
    node = SimpleNamespace(_saved_input=x, _saved_result1=scale, _saved_weight=weight)
    rule = layer_rules.lookup("FusedRmsNormBackward0")
    form = rule(Meeting(node, 1, {0: g}, {0: SampleAxis(0, 1, 1)}, weight.shape))
    assert isinstance(form, Dense)
    rows = [torch.autograd.grad(F.rms_norm(x[n], (4,), weight, 0.1), weight, g[n])[0] for n in range(6)]
    torch.testing.assert_close(form.rows, torch.stack(rows), rtol=1e-12, atol=1e-12)
    assert rule(Meeting(node, 0, {0: g}, {0: SampleAxis(0, 1, 1)}, weight.shape)) is None
