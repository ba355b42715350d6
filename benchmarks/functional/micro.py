"""Six small derivatives, each written with `torch.autograd.grad`, with `torch.func` and with hesse.

All three take the same tensors and give the same list of tensors. Sizes are such that the work of an operation is a
few microseconds: what is compared is the work around the operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, hessian, jacfwd, jvp, vmap

import hesse

Flat = Callable[..., list[Tensor]]

SAMPLES, FEATURES, HIDDEN = 32, 16, 32
STEPS = 20


@dataclass(frozen=True)
class Micro:
    """One derivative: `data` draws its tensors, the others compute it from them.

    `values_only` says that hesse compiles a function that takes derivatives inside, not a gradient function.
    """

    data: Callable[[torch.Generator], tuple[Tensor, ...]]
    by_hand: Flat
    by_func: Flat
    by_hesse: Callable[..., Any]
    values_only: bool = False


def leaves_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


def network(params: Sequence[Tensor], x: Tensor) -> Tensor:
    """Two hidden layers of tanh."""
    w1, b1, w2, b2, w3, b3 = params
    return torch.tanh(torch.tanh(x @ w1 + b1) @ w2 + b2) @ w3 + b3


def squared(params: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    return (network(params, x) - y).square().mean()


def lstm(params: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The last state of an LSTM over the first dimension of `x`, read out and compared with `y`."""
    w, b, read = params
    h = c = x.new_zeros(x.shape[1], b.shape[0] // 4)
    for step in x.unbind():
        i, f, o, g = (torch.cat([step, h], 1) @ w + b).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return (h @ read - y).square().mean()


def _weights(generator: torch.Generator, inputs: int = FEATURES, outputs: int = 4) -> list[Tensor]:
    tensors: list[Tensor] = []
    for rows, columns in ((inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, outputs)):
        tensors.append(torch.randn(rows, columns, generator=generator) / rows**0.5)
        tensors.append(0.1 * torch.randn(columns, generator=generator))
    return tensors


def _mlp_data(generator: torch.Generator) -> tuple[Tensor, ...]:
    batch = torch.randn(SAMPLES, FEATURES, generator=generator), torch.randn(SAMPLES, 4, generator=generator)
    return (*_weights(generator), *batch)


def _mlp_by_hand(*t: Tensor) -> list[Tensor]:
    leaves = leaves_of(t[:6])
    value = squared(leaves, *t[6:])
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def _mlp_by_func(*t: Tensor) -> list[Tensor]:
    grads, value = grad_and_value(squared)(t[:6], *t[6:])
    return [value, *grads]


def _split(loss: Callable[..., Any], params: int) -> Callable[..., Any]:
    """``df(*tensors)`` with the first `params` tensors as parameters."""

    def by_hesse(**options: Any) -> Flat:
        df = hesse.grad(loss, **options)

        def run(*t: Tensor) -> list[Tensor]:
            grads, value = df(t[:params], *t[params:])
            return [value, *grads]

        return run

    return by_hesse


# A Hessian times a vector: along the second six tensors.


def _product_data(generator: torch.Generator) -> tuple[Tensor, ...]:
    data = _mlp_data(generator)
    return (*data[:6], *(torch.randn(p.shape, generator=generator) for p in data[:6]), *data[6:])


def _product_by_hand(*t: Tensor) -> list[Tensor]:
    leaves = leaves_of(t[:6])
    grads = torch.autograd.grad(squared(leaves, *t[12:]), leaves, create_graph=True)
    return list(torch.autograd.grad(grads, leaves, t[6:12]))


def _product_by_func(*t: Tensor) -> list[Tensor]:
    return list(jvp(lambda *p: grad(squared)(p, *t[12:]), t[:6], t[6:12])[1])


def _slope(params: Sequence[Tensor], vectors: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    grads = hesse.grad(squared)(params, x, y).grads
    return torch.stack([(g * v).sum() for g, v in zip(grads, vectors, strict=True)]).sum()


def _product_by_hesse(**options: Any) -> Flat:
    df = hesse.grad(_slope, with_forward=False, **options)
    return lambda *t: list(df(t[:6], t[6:12], *t[12:]))


# Gradients of each sample.


def _per_sample_by_hand(*t: Tensor) -> list[Tensor]:
    leaves = leaves_of(t[:6])
    rows = [torch.autograd.grad(squared(leaves, x, y), leaves) for x, y in zip(*t[6:], strict=True)]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _per_sample_by_func(*t: Tensor) -> list[Tensor]:
    return list(vmap(grad(squared), (None, 0, 0))(t[:6], *t[6:]))


def _per_sample_by_hesse(*t: Tensor) -> list[Tensor]:
    return list(vmap(hesse.grad(squared, with_forward=False), (None, 0, 0))(t[:6], *t[6:]))


# The Hessian of one output with respect to one input.


def _hessian_data(generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(FEATURES, generator=generator), *_weights(generator, outputs=1))


def _output(x: Tensor, *params: Tensor) -> Tensor:
    return network(params, x)[0]


def _hessian_by_hand(x: Tensor, *params: Tensor) -> list[Tensor]:
    (leaf,) = leaves_of([x])
    (slope,) = torch.autograd.grad(_output(leaf, *params), leaf, create_graph=True)
    return [torch.stack([torch.autograd.grad(s, leaf, retain_graph=True)[0] for s in slope])]


def _hessian_by_func(x: Tensor, *params: Tensor) -> list[Tensor]:
    return [hessian(_output)(x, *params)]


def _hessian_by_hesse(x: Tensor, *params: Tensor) -> list[Tensor]:
    return [jacfwd(hesse.grad(_output, with_forward=False))(x, *params)]


# The gradient, by the parameters, of a loss that contains a Laplacian by the inputs (three of them).


def _laplacian_data(generator: torch.Generator) -> tuple[Tensor, ...]:
    batch = torch.randn(SAMPLES, 3, generator=generator), torch.randn(SAMPLES, generator=generator)
    return (*_weights(generator, 3, 1), *batch)


def _laplacian_loss(laplacian: Tensor, y: Tensor) -> Tensor:
    return (laplacian - y).square().mean()


def _residual_by_hand(params: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    (leaf,) = leaves_of([x])
    (slope,) = torch.autograd.grad(network(params, leaf).sum(), leaf, create_graph=True)
    total = torch.zeros_like(y)
    for k in range(x.shape[1]):
        total = total + torch.autograd.grad(slope[:, k].sum(), leaf, create_graph=True)[0][:, k]
    return _laplacian_loss(total, y)


def _laplacian_by_hand(*t: Tensor) -> list[Tensor]:
    leaves = leaves_of(t[:6])
    value = _residual_by_hand(leaves, *t[6:])
    return list(torch.autograd.grad(value, leaves, materialize_grads=True))  # the last bias changes nothing


def _residual_by_func(params: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    return _laplacian_loss(vmap(lambda point: hessian(_output)(point, *params).trace())(x), y)


def _laplacian_by_func(*t: Tensor) -> list[Tensor]:
    return list(grad(_residual_by_func)(t[:6], *t[6:]))


def _residual_by_hesse(params: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    def slope(x: Tensor, k: int) -> Tensor:
        return hesse.grad(lambda x: network(params, x).sum(), with_forward=False)(x)[:, k].sum()

    curvatures = [hesse.grad(slope, with_forward=False)(x, k)[:, k] for k in range(x.shape[1])]
    return _laplacian_loss(torch.stack(curvatures).sum(0), y)


def _laplacian_by_hesse(**options: Any) -> Flat:
    df = hesse.grad(_residual_by_hesse, with_forward=False, **options)
    return lambda *t: list(df(t[:6], *t[6:]))


# An LSTM over twenty steps.


def _lstm_data(generator: torch.Generator) -> tuple[Tensor, ...]:
    inputs, hidden, batch = 8, 16, 8
    shapes = (inputs + hidden, 4 * hidden), (4 * hidden,), (hidden, 2), (STEPS, batch, inputs), (batch, 2)
    return tuple(torch.randn(shape, generator=generator) * (0.3 if k < 3 else 1) for k, shape in enumerate(shapes))


def _lstm_by_hand(*t: Tensor) -> list[Tensor]:
    leaves = leaves_of(t[:3])
    value = lstm(leaves, *t[3:])
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def _lstm_by_func(*t: Tensor) -> list[Tensor]:
    grads, value = grad_and_value(lstm)(t[:3], *t[3:])
    return [value, *grads]


MICRO = {
    "mlp": Micro(_mlp_data, _mlp_by_hand, _mlp_by_func, _split(squared, 6)),
    "product": Micro(_product_data, _product_by_hand, _product_by_func, _product_by_hesse),
    "per_sample": Micro(_mlp_data, _per_sample_by_hand, _per_sample_by_func, _per_sample_by_hesse, values_only=True),
    "hessian": Micro(_hessian_data, _hessian_by_hand, _hessian_by_func, _hessian_by_hesse, values_only=True),
    "laplacian": Micro(_laplacian_data, _laplacian_by_hand, _laplacian_by_func, _laplacian_by_hesse),
    "lstm": Micro(_lstm_data, _lstm_by_hand, _lstm_by_func, _split(lstm, 3)),
}
