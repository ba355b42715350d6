"""Every part has a graph: nothing in it depends on data or changes from call to call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import hesse
from hesse.core import tree
from hesse.nn.layers import LayerNormalization, MaskedBatchNormalization, SoftAttention
from hesse.nn.losses import binary_cross_entropy, cross_entropy, interval, least_squares, log_bce, log_multinomial, margin
from hesse.nn.models import (
    AlexNet,
    NeuralNetwork,
    RecurrentFWNetwork,
    RecurrentGRUNetwork,
    RecurrentLSTMNetwork,
    RecurrentNetwork,
    SpatialNetwork,
    sequence,
)

from .common import F64, filled, normal

PARTS: dict[str, tuple[Any, tuple[tuple[int, ...], ...]]] = {
    "neural network": (NeuralNetwork(3, (5, 2), batch_normalization=True, dtype=F64), ((4, 3),)),
    "spatial network": (SpatialNetwork(2, (3,), batch_normalization=True, poolings=2, dtype=F64), ((3, 2, 5, 6),)),
    "alexnet": (AlexNet(2, 5, 6, convolution={"hidden_features": (3,)}, dtype=F64), ((3, 2, 5, 6),)),
    "recurrent": (RecurrentNetwork(3, 4, dtype=F64), ((2, 5, 3),)),
    "gru": (RecurrentGRUNetwork(3, 4, dtype=F64), ((2, 5, 3),)),
    "gru after": (RecurrentGRUNetwork(3, 4, reset="after", dtype=F64), ((2, 5, 3),)),
    "lstm": (RecurrentLSTMNetwork(3, 4, output_type="all", dtype=F64), ((2, 5, 3),)),
    "normalized lstm": (RecurrentLSTMNetwork(3, 4, batch_normalization=True, dtype=F64), ((4, 5, 3),)),
    "fast weights": (RecurrentFWNetwork(3, 4, dtype=F64), ((2, 5, 3),)),
    "layer normalization": (LayerNormalization(3, dtype=F64), ((4, 3),)),
    "masked": (MaskedBatchNormalization(3, dtype=F64), ((4, 5, 3), (4, 5))),
    "attention": (SoftAttention(4, 3, 5, dtype=F64), ((2, 3, 5), (2, 4))),
    "sequence": (sequence(RecurrentNetwork(3, 4, dtype=F64), torch.tanh, NeuralNetwork(4, (2,), dtype=F64)), ((2, 5, 3),)),
}
TRAINED = {"neural network", "spatial network", "normalized lstm", "masked"}


def scalar(name: str, f: Any, params: Any, inputs: list[Tensor]) -> Tensor:
    y = f(params, *inputs, training=True) if name in TRAINED else f(params, *inputs)
    y = y[0] if isinstance(y, tuple) else y
    return (y.sin() * torch.arange(1.0, y.numel() + 1, dtype=F64).reshape(y.shape).cos()).sum()


@pytest.mark.parametrize("name", PARTS)
def test_gradients_replay_on_other_numbers(name: str) -> None:
    (f, params), shapes = PARTS[name]
    _, structure = tree.flatten(params)

    def gradients(leaves: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
        variables = [t.detach().requires_grad_() for t in leaves]
        return list(torch.autograd.grad(scalar(name, f, structure.unflatten(variables), inputs), variables))

    def numbers(seed: int) -> tuple[list[Tensor], list[Tensor]]:
        inputs = [normal(*shape, seed=seed + k) for k, shape in enumerate(shapes)]
        inputs[1:] = [(t > 0).double() if name == "masked" else t for t in inputs[1:]]
        return tree.leaves(filled(params, seed)), inputs

    graph = make_fx(gradients)(*numbers(10))
    for a, b in zip(graph(*numbers(20)), gradients(*numbers(20)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PARTS)
def test_grad_and_its_own_derivative(name: str) -> None:
    """`hesse.grad` against torch, and a Hessian-vector product by `grad` of `grad` against differences of gradients."""
    (f, params), shapes = PARTS[name]
    params = tree.map_tree(lambda t: 0.5 * t, filled(params))
    inputs = [normal(*shape, seed=k + 5) for k, shape in enumerate(shapes)]
    direction = filled(params, 7)

    def loss(params: Any) -> Tensor:
        return scalar(name, f, params, inputs)

    variables = [t.clone().requires_grad_() for t in tree.leaves(params)]
    expected = torch.autograd.grad(loss(tree.flatten(params)[1].unflatten(variables)), variables)
    result = hesse.grad(loss)(params)
    for a, b in zip(tree.leaves(result.grads), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)

    def along(params: Any) -> Tensor:
        return tree.inner(hesse.grad(loss)(params).grads, direction)

    def moved(step: float) -> list[Tensor]:
        return tree.leaves(hesse.grad(loss)(tree.map_tree(lambda p, d: p + step * d, params, direction)).grads)

    h = 1e-6
    for exact, up, down in zip(tree.leaves(hesse.grad(along)(params).grads), moved(h), moved(-h), strict=True):
        torch.testing.assert_close(exact, (up - down) / (2 * h), rtol=1e-4, atol=1e-4)


def test_losses_have_graphs() -> None:
    z, t = normal(4, 3), torch.softmax(normal(4, 3, seed=2), 1)
    hard = (t > 0.4).double()

    def run(z: Tensor, t: Tensor, hard: Tensor) -> Tensor:
        losses = [
            log_multinomial(z.log_softmax(1), t),
            cross_entropy(z, t),
            log_bce(z.sigmoid(), t),
            binary_cross_entropy(z, t),
        ]
        losses += [least_squares(z, t), margin(z, hard), margin(z, hard, reduction="mean"), interval(z, -0.5, t)]
        return torch.stack(losses)

    graph = make_fx(run)(z, t, hard)
    other = normal(4, 3, seed=3), torch.softmax(normal(4, 3, seed=4), 1), 1 - hard
    torch.testing.assert_close(graph(*other), run(*other), rtol=1e-12, atol=1e-12)
