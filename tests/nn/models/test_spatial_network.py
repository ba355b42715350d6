"""`SpatialNetwork` against `torch.nn` layers with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hesse.core import tree
from hesse.core.errors import LeafError, StructureError
from hesse.nn.models import SpatialNetwork

from .common import F64, check_part, filled, generator, gradients, normal

close = torch.testing.assert_close


def reference(params: dict[str, Any], paddings: list[Any], poolings: list[int], stride: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, layer in enumerate(params.values()):
        out, into, k, _ = layer["weight"].shape
        conv = nn.Conv2d(into, out, k, stride if index == 0 else 1, paddings[index], dtype=F64)
        conv.load_state_dict({name: layer[name] for name in ("weight", "bias")})
        layers.append(conv)
        if "normalization" in layer:
            norm = nn.BatchNorm2d(out, dtype=F64)
            norm.load_state_dict(layer["normalization"], strict=False)
            layers.append(norm)
        layers.append(nn.ReLU())
        if poolings[index] > 1:
            layers.append(nn.MaxPool2d(poolings[index]))
    return nn.Sequential(*layers)


CASES = [
    ({"kernel_size": 3}, ["same", "same"], [1, 1], 1),
    ({"kernel_size": 4}, ["same", "same"], [1, 1], 1),  # fractional padding in the original
    ({"kernel_size": (2, 3)}, ["same", "same"], [1, 1], 1),
    ({"kernel_size": 3, "padding": 0}, [0, 0], [1, 1], 1),
    ({"kernel_size": (3, 2), "padding": (2, 1)}, [2, 1], [1, 1], 1),
    ({"kernel_size": 3, "poolings": (2, 1)}, ["same", "same"], [2, 1], 1),
    ({"kernel_size": 3, "poolings": 2}, ["same", "same"], [2, 2], 1),
    ({"kernel_size": 3, "input_stride": 2, "padding": 1}, [1, 1], [1, 1], 2),
    ({"kernel_size": 5, "input_stride": 3}, [2, 2], [1, 1], 3),
]


@pytest.mark.parametrize("batch_normalization", [False, True])
@pytest.mark.parametrize(("options", "paddings", "poolings", "stride"), CASES)
def test_value_and_gradients(
    options: dict[str, Any], paddings: list[Any], poolings: list[int], stride: int, batch_normalization: bool
) -> None:
    f, params = SpatialNetwork(3, (4, 5), batch_normalization=batch_normalization, dtype=F64, **options)
    params, x = filled(params), normal(2, 3, 9, 11)
    other = reference(params, paddings, poolings, stride)
    y = f(params, x, training=True)
    y, state = y if batch_normalization else (y, None)
    theirs = other(x)
    close(y, theirs, rtol=1e-10, atol=1e-10)
    assert f.output_shape(9, 11) == tuple(theirs.shape[1:])
    weights = torch.arange(1.0, y.numel() + 1, dtype=F64).reshape(y.shape).cos()
    expected = torch.autograd.grad((theirs * weights).sum(), list(other.parameters()))
    for a, b in zip(gradients(f, params, x, training=True), expected, strict=True):
        close(a, b, rtol=1e-9, atol=1e-9)
    other.eval()
    evaluated = f(params, x, state)
    evaluated = evaluated[0] if batch_normalization else evaluated
    close(evaluated, other(x), rtol=1e-10, atol=1e-10)
    single = f(params, x[1], state)
    close(single[0] if batch_normalization else single, evaluated[1], rtol=1e-10, atol=1e-10)


def test_an_even_kernel_with_stride_pads_below_and_to_the_right() -> None:
    f, params = SpatialNetwork(2, (3,), kernel_size=4, input_stride=2, dtype=F64, activation=torch.abs)
    x = normal(2, 2, 7, 10)
    layer = params["layer1"]
    padded = torch.zeros(2, 2, 10, 13, dtype=F64)
    padded[:, :, 1:8, 1:11] = x
    expected = nn.functional.conv2d(padded, layer["weight"], layer["bias"], stride=2).abs()
    close(f(params, x), expected, rtol=1e-12, atol=1e-12)
    assert f.output_shape(7, 10) == tuple(expected.shape[1:])


def test_dropout_takes_whole_channels() -> None:
    f, params = SpatialNetwork(200, (200,), kernel_size=1, dropout=0.4, dtype=F64)
    params["layer1"]["weight"] = torch.eye(200, dtype=F64)[:, :, None, None]
    params["layer1"]["bias"] = torch.zeros(200, dtype=F64)
    x = torch.ones(30, 200, 2, 3, dtype=F64)
    close(f(params, x), x)
    for source in (generator(4), None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            y = f(params, x, training=True, generator=source)
        assert torch.equal(y, y[:, :, :1, :1].expand_as(y))
        assert abs(float((y == 0).double().mean()) - 0.4) < 0.035  # 6000 draws: five standard errors
        close(y.max(), torch.tensor(1 / 0.6, dtype=F64))
    assert f(params, x[0], training=True, generator=generator(4)).shape == (200, 2, 3)


def test_the_defaults_are_those_of_the_original() -> None:
    f, params = SpatialNetwork()
    shapes = [tuple(t.shape) for t in tree.leaves(params)]
    assert shapes == [(16, 3, 5, 5), (16,), (32, 16, 5, 5), (32,), (64, 32, 5, 5), (64,)]
    assert f.output_shape(8, 6) == (64, 8, 6)
    assert params["layer2"]["weight"].abs().max() <= 400**-0.5
    assert params["layer2"]["weight"].abs().max() > 0.99 * 400**-0.5
    check_part(f, params, torch.randn(2, 3, 8, 6, generator=generator()))


def test_messages() -> None:
    f, params = SpatialNetwork(3, (4, 5), poolings=3)
    with pytest.raises(StructureError, match="Layer 2 has no output"):
        f(params, torch.ones(3, 8, 20))
    with pytest.raises(StructureError, match="channels"):
        f(params, torch.ones(2, 4, 20, 20))
    with pytest.raises(LeafError, match="uint8"):
        f(params, torch.ones(3, 20, 20, dtype=torch.uint8))
    with pytest.raises(StructureError, match="poolings"):
        SpatialNetwork(3, (4, 5), poolings=(1, 2, 3))
    with pytest.raises(StructureError, match="positive"):
        SpatialNetwork(3, (4, 5), poolings=0)
