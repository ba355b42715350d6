"""Parts composed, and what every part shares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.nn.layers import LayerNormalization
from hesse.nn.models import NeuralNetwork, RecurrentLSTMNetwork, RecurrentNetwork, sequence

from .common import F64, check_part, filled, generator, gradients, normal

close = torch.testing.assert_close


def scaled(params: Tensor, x: Tensor) -> Tensor:
    return params * x


def test_parts_without_state() -> None:
    first, second = NeuralNetwork(3, (4,), dtype=F64), LayerNormalization(4, dtype=F64)
    scale = torch.full((4,), 3.0, dtype=F64)
    f, params = sequence(first, torch.square, second, (scaled, scale))
    assert params == [first[1], second[1], scale]
    x = normal(5, 3)
    close(f(params, x), scale * second[0](second[1], first[0](first[1], x).square()))
    check_part(f, params, x)
    assert not f.stateful
    assert len(gradients(f, params, x)) == 5


def test_parts_with_state() -> None:
    lower, upper = RecurrentLSTMNetwork(3, 4, output_type="all", dtype=F64), RecurrentNetwork(4, 2, dtype=F64)
    head = NeuralNetwork(2, (3,), batch_normalization=True, dtype=F64)
    f, params = sequence(lower, torch.tanh, upper, head)
    params, x = filled(params), normal(5, 6, 3)
    y, state = f(params, x, training=True)
    z, one = lower[0](params[0], x)
    z, two = upper[0](params[1], z.tanh())
    z, three = head[0](params[2], z, training=True)
    close(y, z)
    assert state[1] is None
    close([state[0], state[2], state[3]], [one, two, three])
    again, _ = f(params, x, state)
    z, _ = lower[0](params[0], x, one)
    z, _ = upper[0](params[1], z.tanh(), two)
    close(again, head[0](params[2], z, three)[0])


def test_sequences_nest_and_append() -> None:
    inner = sequence(NeuralNetwork(3, (4,), dtype=F64))
    f, params = sequence(inner, NeuralNetwork(4, (2,), dtype=F64))
    x = normal(5, 3)
    close(f(params, x), f.functions[1](params[1], inner[0](inner[1], x)))


def test_dropout_takes_the_generator() -> None:
    f, params = sequence(NeuralNetwork(30, (40,), dropout=0.5), torch.square)
    x = torch.ones(3, 30)
    a = f(params, x, training=True, generator=generator(1))
    assert torch.equal(a, f(params, x, training=True, generator=generator(1)))
    assert not torch.equal(a, f(params, x))


@pytest.mark.parametrize("parts", [(), (3,), (NeuralNetwork()[0],), ((torch.square, 1, 2),)])
def test_messages(parts: Any) -> None:
    with pytest.raises(StructureError):
        sequence(*parts)


def test_numbers_of_trees_and_states() -> None:
    f, params = sequence(RecurrentNetwork(3, 4))
    with pytest.raises(StructureError, match="2 trees for 1"):
        f(params * 2, torch.ones(2, 3))
    with pytest.raises(StructureError, match="2 items for 1"):
        f(params, torch.ones(2, 3), [None, None])
