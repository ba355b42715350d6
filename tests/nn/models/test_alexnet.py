"""`AlexNet` against its two halves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hesse.core.errors import StructureError
from hesse.nn.models import AlexNet

from .common import F64, check_part, filled, generator, normal

close = torch.testing.assert_close


@pytest.mark.parametrize("convolution", [{}, {"kernel_size": 3, "poolings": (2, 1, 2)}, {"kernel_size": 4, "input_stride": 2}])
@pytest.mark.parametrize("classifier", [True, False, None])
def test_the_dense_layers_fit(convolution: Any, classifier: bool | None) -> None:
    dense: Any = {} if classifier is None else {"classifier": classifier}
    f, params = AlexNet(2, 9, 12, convolution=convolution, dense=dense, dtype=F64)
    params, x = filled(params), normal(3, 2, 9, 12)
    features = f.convolution(params["convolution"], x).flatten(1)
    hidden = nn.functional.linear(features, *params["dense"]["layer1"].values()).relu()
    logits = nn.functional.linear(hidden, *params["dense"]["layer2"].values())
    close(f(params, x), logits.relu() if classifier is False else logits, rtol=1e-9, atol=1e-9)
    close(f(params, x[1]), f(params, x)[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("where", ["convolution", "dense", "both"])
def test_state(where: str) -> None:
    on: Any = {"batch_normalization": True}
    first, second = (on if where != "dense" else {}), (on if where != "convolution" else {})
    f, params = AlexNet(2, 6, 5, convolution={"kernel_size": 3, **first}, dense=second, dtype=F64)
    x = normal(4, 2, 6, 5)
    y, state = f(params, x, training=True)
    z = f.convolution(params["convolution"], x, training=True)
    z, one = z if where != "dense" else (z, {})
    z = f.dense(params["dense"], z.flatten(1), training=True)
    z, two = z if where != "convolution" else (z, {})
    close(y, z)
    close(state, {"convolution": one, "dense": two})
    again, kept = f(params, x, state)
    close(kept, state)
    assert not torch.equal(again, y)


def test_dropout_reaches_both_halves() -> None:
    f, params = AlexNet(2, 6, 5, convolution={"dropout": 0.5}, dense={"dropout": (0.0, 1.0)}, dtype=F64)
    y = f(params, normal(4, 2, 6, 5), training=True, generator=generator())
    close(y, params["dense"]["layer2"]["bias"].expand(4, 2))
    g, params = AlexNet(2, 6, 5, convolution={"dropout": 1.0}, dtype=F64)
    y = g(params, normal(4, 2, 6, 5), training=True, generator=generator())
    close(y, y[:1].expand(4, 2))


def test_pure() -> None:
    f, params = AlexNet(2, 6, 5, generator=generator(), convolution={"activation": "tanh"})
    check_part(f, params, torch.randn(3, 2, 6, 5, generator=generator()))
    assert not f.stateful


def test_messages() -> None:
    wrong: Any = {"input_features": 7}
    with pytest.raises(StructureError, match="'input_features'"):
        AlexNet(2, 6, 5, dense=wrong)
    with pytest.raises(StructureError, match="'input_features'"):
        AlexNet(2, 6, 5, convolution=wrong)
    with pytest.raises(StructureError, match="no output"):
        AlexNet(2, 6, 5, convolution={"poolings": 3})
    f, params = AlexNet(2, 6, 5)
    with pytest.raises(StructureError, match="images of shape"):
        f(params, torch.ones(3, 2, 5, 6))
