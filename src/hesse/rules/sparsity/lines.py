"""Ops that work along some axes and treat the others alike: reductions, scans, softmax, sorting, transforms."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.rules.sparsity.forms import (
    Call,
    Grouped,
    Link,
    Moved,
    Pairs,
    Same,
    across,
    axes_of,
    places,
    sparsity_rules,
)

_REDUCTIONS = (
    "sum", "mean", "nansum", "prod", "std", "var", "std_mean", "var_mean", "amax", "amin", "aminmax", "max", "min", "logsumexp",
    "norm", "linalg_vector_norm", "median", "nanmedian", "kthvalue", "mode", "_softmax", "_log_softmax", "_safe_softmax",
    "softmax", "log_softmax", "sort", "topk", "argsort", "msort", "_fft_r2c", "_fft_c2c", "_fft_c2r", "linalg_cross", "renorm",
    "unique_consecutive", "_unique2", "unique_dim", "cummax", "cummin", "_cummax_helper", "_cummin_helper",
)  # fmt: skip
_SELECTIONS = ("sort", "topk", "max", "min", "median", "nanmedian", "kthvalue", "mode", "cummax", "cummin")
_DIMS = ("dim", "dims", "self_dim")


@sparsity_rules.register(*_REDUCTIONS)
def along(call: Call) -> list[Link]:
    """Each result on all of a line of the operand."""
    x = call.operands[0]
    named = [name for name in _DIMS if name in call.given]
    dims = axes_of(call[named[0]] if named else None, x.ndim)
    name = call.func.overloadpacket.__name__
    if name == "renorm":
        dims = [axis for axis in range(x.ndim) if axis not in dims]
    if name in ("unique_consecutive", "_unique2", "unique_dim"):
        dims = list(range(x.ndim))
    if len(dims) == 1 and name in _SELECTIONS and call.is_fixed(x) and len(call.outputs) > 1:
        return _selected(x, call.outputs[0], call.outputs[1], dims[0])
    return [(index, t, across(t, y, dims)) for index, y in enumerate(call.outputs) for t in call.operands]


def _selected(x: Tensor, y: Tensor, indices: Tensor, dim: int) -> list[Link]:
    """Each result is the element that its index names, to which autograd gives all of its gradient."""
    index = indices.cpu() if indices.ndim == x.ndim else indices.cpu().unsqueeze(dim)
    return [(0, x, Moved(places(x).gather(dim, index).view(y.shape)))]


@sparsity_rules.register("glu")
def gated(call: Call) -> list[Link]:
    """Each result on an element of the first half, and its partner in the second."""
    x, y = call["self"], call.outputs[0]
    return [(0, x, Grouped(torch.cat([places(y)] * 2, call["dim"]), places(y)))]


@sparsity_rules.register("glu_backward")
def gated_backward(call: Call) -> list[Link]:
    """Both halves on the gradient in their place, and on both."""
    grad, x, y = call["grad_output"], call["self"], call.outputs[0]
    halves = torch.cat([places(grad)] * 2, call["dim"])
    return [(0, grad, Grouped(places(grad), halves)), (0, x, Grouped(halves, halves))] if y.numel() else []


@sparsity_rules.register("trace")
def trace(call: Call) -> list[Link]:
    """The diagonal."""
    x = call["self"]
    rows, columns = torch.arange(x.shape[0]).unsqueeze(-1), torch.arange(x.shape[1])
    return [(0, x, Grouped(torch.where(rows == columns, 0, -1), torch.zeros((), dtype=torch.int64)))]


@sparsity_rules.register("cumsum", "cumprod", "logcumsumexp")
def scan(call: Call) -> list[Link]:
    """Each result on what stands in front of it; where a factor is zero the rule of a product's derivative looks no further."""
    x = call["self"]
    if not x.ndim or not x.numel():
        return [(0, x, Same())]
    return [(0, x, triangle(x, call["dim"] % x.ndim))]


def triangle(x: Tensor, axis: int, *, backwards: bool = False) -> Pairs:
    """Each element on itself and on those in front of it along an axis."""
    size = x.shape[axis]
    numbers = places(x).movedim(axis, -1).reshape(-1, size)
    i, j = torch.tril_indices(size, size)
    i, j = (j, i) if backwards else (i, j)
    return Pairs(places(x), numbers[:, j].flatten(), numbers[:, i].flatten(), places(x))


@sparsity_rules.register("_softmax_backward_data", "_log_softmax_backward_data")
def softmax_backward(call: Call) -> list[Link]:
    """Each result on a line of the gradient and of the output."""
    y = call.outputs[0]
    dims = axes_of(call["dim"], y.ndim)
    return [(0, t, across(t, y, dims)) for t in call.operands]
