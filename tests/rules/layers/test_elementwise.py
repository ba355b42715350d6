"""Weights broadcast against data, and weights repeated for every sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hesse.rules.forms import Dense
from hesse.rules.layers import Meeting, SampleAxis, layer_rules
from tests.parameters import oracle
from tests.parameters.special import Free
from tests.rules.layers.comparing import BY_CHAIN, RULE, compare, seeded, weight

CALLS: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "divisor": (lambda s, x: x / s.w, (5,)),
    "divisor, broadcast": (lambda s, x: x / s.w, (4, 1)),
    "scalar divisor": (lambda s, x: x / s.w, ()),
    "dividend": (lambda s, x: s.w / x, (5,)),
    "dividend of integers": (lambda s, x: s.w / (x > 0).long().add(1), (4, 1)),
    "both": (lambda s, x: s.w / (x * s.w.exp()), (4, 5)),
    "chosen": (lambda s, x: torch.where(x > 0, s.w, x), (5,)),
    "chosen otherwise": (lambda s, x: torch.where(x > 0, x, s.w), (4, 1)),
    "chosen by sample": (lambda s, x: torch.where(x[:, :1, :1] > 0, s.w, x), (5,)),
    "one of two": (lambda s, x: torch.where(x > 0, s.w, 2 * s.w.sin()), (4, 5)),
    "repeated": (lambda s, x: x * s.w.repeat(len(x), 1, 1), (4, 5)),
    "repeated, new axis": (lambda s, x: x * s.w.repeat(len(x), 4, 1), (5,)),
    "repeated within samples": (lambda s, x: torch.cat([x, s.w.repeat(len(x), 1, 2)], 2), (4, 3)),
    "repeated along samples' own axis": (lambda s, x: x.flatten(0, 1) * s.w.repeat(len(x) * 2, 1), (2, 5)),
    "repeated in the middle": (lambda s, x: (x.transpose(0, 1) + s.w.repeat(1, len(x), 1)).sum(0), (4, 1, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_broadcast_weights(name: str) -> None:
    call, shape = CALLS[name]
    paths = BY_CHAIN if name in ("both", "one of two") else RULE
    compare(Free(lambda s, x: call(s, x).reshape(len(x), -1), w=weight(*shape)), seeded(6, 4, 5), paths=paths)


def test_repetitions_that_do_not_fit_into_samples_have_no_rule() -> None:
    w = weight(4)
    node: Any = w.repeat(6).grad_fn
    rule, g = layer_rules.lookup(node.name()), seeded(24)
    assert rule(Meeting(node, 0, {0: g}, {0: SampleAxis(0, 1, 2)}, w.shape)) is None  # 12 samples of two elements each
    assert rule(Meeting(node, 0, {0: g}, {0: SampleAxis(0, 4, 1)}, w.shape)) is None  # element by element
    form = rule(Meeting(node, 0, {0: g}, {0: SampleAxis(0, 3, 4)}, w.shape))
    assert isinstance(form, Dense)
    assert oracle.difference(form.rows, g.reshape(3, 2, 4).sum(0)) < 1e-15


@pytest.mark.parametrize("parameters", [1, 3])
@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 2, 4), (3, 2, 1, 2)])
def test_prelu(shape: tuple[int, ...], parameters: int) -> None:
    x = seeded(6, *shape)
    x[0] = 0
    compare(nn.PReLU(parameters).double(), x)
    compare(nn.PReLU(parameters).double(), x.transpose(0, -1).contiguous().transpose(0, -1))


def test_only_the_slope_of_prelu_has_a_rule() -> None:
    x, slope = weight(6, 3), weight(1, 3)
    node: Any = torch.prelu(x, slope.flatten()).grad_fn
    meeting = Meeting(node, 0, {0: seeded(6, 3)}, {0: SampleAxis(0, 1, 1)}, x.shape)
    assert layer_rules.lookup(node.name())(meeting) is None


@pytest.mark.parametrize("track", [False, True])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_instance_norm(axes: int, track: bool) -> None:
    layer: Any = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[axes - 1]
    model = oracle.randomize(layer(3, affine=True, track_running_stats=track)).double().eval()
    compare(model, seeded(6, 3, *(4, 2, 3)[:axes]))


@pytest.mark.parametrize("first", [True, False])
def test_attention_with_bias_of_keys(first: bool) -> None:
    def call(s: Any, x: Tensor) -> Tensor:
        inputs = x if first else x.transpose(0, 1)
        out = s.attention(inputs, inputs, inputs, need_weights=False)[0]
        return out if first else out.transpose(0, 1)

    attention = nn.MultiheadAttention(4, 2, add_bias_kv=True, batch_first=first).double()
    compare(Free(call, attention=attention), seeded(5, 3, 4), tolerance=1e-11)
