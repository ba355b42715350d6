"""How tangents pass the nodes that networks are made of. What is not here, or gives None, is transposed by autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Rule = Callable[[Any, list[Tensor | None], Sequence[int]], Tensor | None]


class NoPushError(RuntimeError):
    """A graph along which tangents cannot walk."""


SYMMETRIC = frozenset(
    f"{name}Backward0"
    for name in (
        *("Relu", "Gelu", "Silu", "Tanh", "Sigmoid", "Softplus", "Elu", "LeakyRelu", "Mish", "Hardtanh", "Threshold"),
        *("Exp", "Log", "Sqrt", "Rsqrt", "Sin", "Cos", "Erf", "Abs", "Neg", "Reciprocal", "Softmax"),
    )
)
"""Nodes with one input whose Jacobian is symmetric, so that their backward is their forward derivative too."""


def _addmm(node: Any, arrived: list[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    bias, first, second = arrived
    alpha, beta = node._saved_alpha, node._saved_beta
    result = None if bias is None else bias if beta == 1 else bias * beta
    if second is not None:
        result = _added(result, node._saved_mat1, second, alpha)
    if first is not None:
        result = _added(result, first, node._saved_mat2, alpha)
    return result


def _added(result: Tensor | None, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    if result is None:
        return a @ b if alpha == 1 else alpha * (a @ b)
    return torch.addmm(result, a, b, alpha=alpha)


def _mm(node: Any, arrived: list[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    first, second = arrived
    result = None if first is None else first @ node._saved_mat2
    return result if second is None else _added(result, node._saved_self, second, 1)


def _bmm(node: Any, arrived: list[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    first, second = arrived
    if first is None or second is None:
        return node._saved_self @ second if first is None else first @ node._saved_mat2
    return torch.baddbmm(first @ node._saved_mat2, node._saved_self, second)


def _convolution(node: Any, arrived: list[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    a, B, c = arrived
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    options = [getattr(node, f"_saved_{name}") for name in names]
    if B is None:
        if a is None:
            return None if c is None else c.reshape(-1, *[1] * (len(shape) - 2))
        return torch.convolution(a, node._saved_weight, c, *options)
    if a is None:
        return torch.convolution(node._saved_input, B, c, *options)
    return torch.convolution(a, node._saved_weight, c, *options).add_(torch.convolution(node._saved_input, B, None, *options))


def _layer_norm(node: Any, arrived: list[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    x, weight, bias = arrived
    saved, mean, rstd, axes = node._saved_input, node._saved_result1, node._saved_result2, node._saved_normalized_shape
    result = bias
    if weight is not None:
        x_hat = (saved - mean) * rstd
        result = x_hat * weight if bias is None else torch.addcmul(bias, x_hat, weight)
    if x is not None:
        backward = torch.ops.aten.native_layer_norm_backward
        pushed = backward(x, saved, axes, mean, rstd, None, None, [True, False, False])[0]
        scale = node._saved_weight
        if result is None:
            return pushed if scale is None else pushed * scale
        return result + pushed if scale is None else torch.addcmul(result, pushed, scale)
    return result


def _max_pool2d(node: Any, arrived: list[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    (x,), places = arrived, node._saved_result1
    return None if x is None else x.flatten(-2).gather(-1, places.flatten(-2)).reshape(shape)


def _embedding(node: Any, arrived: list[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    weight, indices, ignored = arrived[0], node._saved_indices, _signed(node._saved_padding_idx)
    if weight is None or node._saved_scale_grad_by_freq:
        raise NoPushError("an embedding whose gradient is scaled by frequency")
    rows = torch.nn.functional.embedding(indices, weight)
    return rows if ignored < 0 else rows.masked_fill((indices == ignored).unsqueeze(-1), 0)


def _add(node: Any, arrived: list[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    first, second = arrived
    if first is None or second is None:
        return first if second is None else second * node._saved_alpha if node._saved_alpha != 1 else second
    return torch.add(first, second, alpha=node._saved_alpha)


def _sub(node: Any, arrived: list[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    first, second = arrived
    if first is None or second is None:
        return first if second is None else second * -node._saved_alpha
    return torch.sub(first, second, alpha=node._saved_alpha)


def _mul(node: Any, arrived: list[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    first, second = arrived
    if first is None or second is None:
        return node._saved_self * second if first is None else first * node._saved_other
    return torch.addcmul(first * node._saved_other, node._saved_self, second)


def _div(node: Any, arrived: list[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    return arrived[0] / node._saved_other if arrived[0] is not None and arrived[1:] in ([], [None]) else None


def _transpose(node: Any, arrived: list[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    return None if arrived[0] is None else arrived[0].transpose(_signed(node._saved_dim0), _signed(node._saved_dim1))


def _t(node: Any, arrived: list[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    return None if arrived[0] is None else arrived[0].t()


def _reshape(node: Any, arrived: list[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    return None if arrived[0] is None else arrived[0].reshape(shape)


def _same(node: Any, arrived: list[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    return arrived[0]


def _signed(axis: int) -> int:
    """A number that a node shows as if it had no sign."""
    return axis - 2**64 if axis >= 2**63 else axis


RULES: dict[str, Rule] = {
    "AddmmBackward0": _addmm,
    "MmBackward0": _mm,
    "BmmBackward0": _bmm,
    "ConvolutionBackward0": _convolution,
    "NativeLayerNormBackward0": _layer_norm,
    "MaxPool2DWithIndicesBackward0": _max_pool2d,
    "EmbeddingBackward0": _embedding,
    "AddBackward0": _add,
    "SubBackward0": _sub,
    "MulBackward0": _mul,
    "DivBackward0": _div,
    "TransposeBackward0": _transpose,
    "TBackward0": _t,
    "CloneBackward0": _same,
    "ExpandBackward0": _same,
    **dict.fromkeys(
        (
            *("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "UnsqueezeBackward0"),
            *("SqueezeBackward0", "SqueezeBackward1", "SqueezeBackward2"),
        ),
        _reshape,
    ),
}
