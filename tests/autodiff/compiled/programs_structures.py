"""Programs whose parameters, arguments or results have a structure of their own."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .suite import Draw, Made, program


@dataclass
class _Layer:
    weight: Tensor
    bias: Tensor
    name: str = "layer"


class _Pair(NamedTuple):
    first: Tensor
    second: Tensor


@program("second")
def dataclass_parameters(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        for layer in params:
            x = torch.tanh(x @ layer.weight + layer.bias)
        return x.sum()

    return f, ([_Layer(d.normal(4, 5), d.normal(5), "in"), _Layer(d.normal(5, 2), d.normal(2))], d.normal(d.n, 4)), {}


@program("second")
def named_tuple_parameters(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        return (x @ params.first).sin().sum() * params.second.square().sum()

    return f, (_Pair(d.normal(4, 2), d.normal(3)), d.normal(d.n, 4)), {}


@program("second", "integers")
def mixed_nesting(d: Draw) -> Made:
    def f(params: Any, x: Tensor, activation: str = "tanh") -> Tensor:
        h = x @ params["layers"][0][0] ** params["power"]
        h = getattr(torch, activation)(h) if params["on"] else h
        return (h * params["pair"].first).sum() + params["pair"].second.square().sum()

    layers = [(d.normal(4, 3), None), ()]
    params = OrderedDict(layers=layers, pair=_Pair(d.normal(3), d.normal(2)), power=2, on=True, name="net")
    return f, (params, d.normal(d.n, 4)), {"activation": "sigmoid"}


@program("second")
def aliased_leaves(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        return (x @ params["a"]).sin().sum() + (params["b"] ** 3).sum()

    w = d.normal(4, 3)
    return f, ({"a": w, "b": w}, d.normal(d.n, 4)), {}


@program("second")
def parameter_also_an_input(d: Draw) -> Made:
    def f(w: Tensor, same: Tensor) -> Tensor:
        return (w * same).sin().sum()

    w = d.normal(d.n, 3)
    return f, (w, w), {}


@program("second")
def overlapping_leaves(d: Draw) -> Made:
    def f(params: Any) -> Tensor:
        return (params[0] * params[1]).sin().sum()

    base = d.normal(d.n + 4)
    return f, ([base[:-2], base[2:]],), {}


@program("second")
def unused_leaf(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        return (x @ params["used"]).square().sum()

    return f, ({"used": d.normal(4, 2), "unused": d.normal(3), "deep": {"unused": d.normal(2, 2)}}, d.normal(d.n, 4)), {}


@program("second")
def python_float_parameters(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        return (params["scale"] * torch.sin(x) + params["shift"] ** 2).square().mean()

    return f, ({"scale": d.number(), "shift": d.number()}, d.normal(d.n, 4)), {}


@program("second")
def only_floats(d: Draw) -> Made:
    def f(params: Any) -> Any:
        a, b = params
        return a * b + a**3

    return f, ((d.number(), d.number()),), {}


@program("integers", "second")
def integer_arguments(d: Draw) -> Made:
    def f(params: Any, x: Tensor, power: int, *, layers: int = 1, flag: bool = False) -> Tensor:
        for _ in range(layers):
            x = torch.tanh(x @ params)
        return (x**power).sum() if flag else x.sum()

    return f, (d.normal(4, 4), d.normal(d.n, 4), d.n), {"layers": 2, "flag": True}


@program("second")
def float_argument(d: Draw) -> Made:
    def f(params: Any, x: Tensor, temperature: float) -> Tensor:
        return torch.logsumexp(x @ params / temperature, 1).sum()

    return f, (d.normal(4, 3), d.normal(d.n, 4), abs(d.number()) + 0.5), {}


@program("second")
def several_extras(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = x @ params
        return y.square().mean(), y, y.softmax(1)

    return f, (d.normal(4, 3), d.normal(d.n, 4)), {}


@program()
def python_extras(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> tuple[Any, ...]:
        y = x @ params
        return y.square().mean(), {"count": len(x), "prediction": [y, y.T]}, "name", None, 2.5

    return f, (d.normal(4, 3), d.normal(d.n, 4)), {}


@program("reads")
def extras_that_were_read(d: Draw) -> Made:
    def f(params: Any, x: Tensor, y: Tensor) -> tuple[Tensor, float, list[int]]:
        out = x @ params
        return (out - y).square().mean(), (out.argmax(1) == y.argmax(1)).double().mean().item(), out.argmax(1).tolist()

    return f, (d.normal(4, 3), d.normal(d.n, 4), d.normal(d.n, 3)), {}


@program()
def result_is_a_parameter(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (params["w"] * x).sum(), params["w"], x, params["w"][1:]

    return f, ({"w": d.normal(d.n)}, d.normal(d.n)), {}


@program()
def loss_is_a_leaf(d: Draw) -> Made:
    def f(params: Any) -> tuple[Tensor, Tensor]:
        return params["loss"], params["loss"]

    return f, ({"loss": d.normal(), "other": d.normal(d.n)},), {}


@program()
def frozen_by_detach(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = torch.tanh(x @ params["W"])
        out = torch.sin(x @ params["W"])
        return (out - target).square().sum() + (out.detach() * params["b"]).sum()

    return f, ({"W": d.normal(4, 3), "b": d.normal(3)}, d.normal(d.n, 4)), {}


@program("second")
def recursion_over_a_tree(d: Draw) -> Made:
    def encode(params: Any, node: Any) -> Tensor:
        if not isinstance(node, tuple):
            return node
        left, right = (encode(params, child) for child in node)
        return torch.tanh(torch.cat([left, right], -1) @ params["W"] + params["b"])

    def f(params: Any, node: Any) -> Tensor:
        return encode(params, node).square().sum()

    leaves = [d.normal(3) for _ in range(4)]
    tree = ((leaves[0], leaves[1]), (leaves[2], (leaves[3], leaves[0])))
    return f, ({"W": d.normal(6, 3), "b": d.normal(3)}, tree), {}
