"""How second derivatives pass backwards through one node when only diagonals are kept (Becker, LeCun 1988).

A rule takes what arrives at the node's outputs and gives what goes on to its inputs: ``h_in[i] = sum_k (dy_k / dx_i)**2 h[k]``.
Linear nodes run their backward pass with squared weights, and for the weights with squared inputs; nodes that only move data,
whose derivatives are 0 or 1, run their own backward pass. Elementwise nodes have no rule here: their derivative is squared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.autodiff.recording import node_outputs
from hesse.core.errors import UnsupportedError
from hesse.core.registry import Registry

Parts = Sequence[Tensor | None]


@dataclass(frozen=True, eq=False)
class Crossing:
    """A node, and what arrives at it.

    Attributes:
        node: the autograd node.
        arrived: what arrives at each of its outputs, None where nothing does.
        asked: what is asked of hesse, for error messages.
    """

    node: Any
    arrived: Parts
    asked: str

    @property
    def h(self) -> Tensor:
        """What arrives at the first output."""
        first = self.arrived[0]
        assert first is not None
        return first

    def saved(self, name: str) -> Any:
        """What the node saved under this name, tensors detached."""
        value = getattr(self.node, f"_saved_{name}")
        return value.detach() if isinstance(value, Tensor) else value

    def square(self, name: str) -> Tensor:
        """A saved tensor, squared; an empty one where the node did not save it, since no derivative needs it."""
        value = self.saved(name)
        return torch.zeros(()) if value is None else value.square()

    def needs(self, index: int) -> bool:
        """Whether an input of the node is part of the graph."""
        return self.node.next_functions[index][0] is not None

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """The shape of an input that is part of the graph."""
        parent, slot = self.node.next_functions[index]
        return tuple(node_outputs(parent)[slot].shape)

    def backward(self, *cotangents: Tensor | None) -> Parts:
        """The node's own backward pass."""
        result = self.node(*(cotangents or self.arrived))
        return result if isinstance(result, tuple) else (result,)


Rule = Callable[[Crossing], Parts]

square_rules: Registry[Rule] = Registry(
    "rule for squared derivatives", "register one with @square_rules.register('NameBackward0')"
)

_FUNCTIONS = [
    "Abs", "Acos", "Acosh", "Add", "Addcdiv", "Addcmul", "Asin", "Asinh", "Atan", "Atanh", "Celu", "Clamp", "ClampMax",
    "ClampMin", "Cos", "Cosh", "Digamma", "Div", "Elu", "Erf", "Erfc", "Exp", "Exp2", "Expm1", "Ceil", "Floor", "Gelu",
    "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyRelu", "Lerp", "Lgamma", "Log", "Log10", "Log1p", "Log2",
    "LogSigmoid", "Logaddexp", "Maximum", "Minimum", "Mish", "Mul", "Neg", "Pow", "PreluKernel", "Reciprocal", "Relu",
    "Round", "RreluWithNoise", "Rsqrt", "Rsub", "Sigmoid", "Sign", "Silu", "Sin", "Sinc", "Sinh", "Softplus",
    "Softshrink", "Sqrt", "Sub", "Tan", "Tanh", "Threshold", "Where", "Xlogy",
]  # fmt: skip
ELEMENTWISE = {f"{name}Backward{version}" for name in _FUNCTIONS for version in (0, 1)}
"""Nodes each element of whose output depends on one element of each input (after broadcasting)."""

_MOVEMENTS = [
    "Alias", "AsStrided", "Cat", "Clone", "Col2Im", "ConstantPadNd", "Diagonal", "Embedding", "Expand", "Flip", "Gather",
    "Im2Col", "Index", "IndexSelect", "MaskedFill", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "AdaptiveMaxPool2D",
    "AdaptiveMaxPool3D", "Permute", "PixelShuffle", "PixelUnshuffle", "ReflectionPad1D", "ReflectionPad2D",
    "ReflectionPad3D", "Repeat", "ReplicationPad1D", "ReplicationPad2D", "ReplicationPad3D", "ReshapeAlias", "Roll",
    "Select", "Slice", "Split", "SplitWithSizes", "Squeeze", "Stack", "Sum", "T", "ToCopy", "Transpose", "Tril", "Triu",
    "Unbind", "Unfold", "Unsqueeze", "UnsafeSplit", "UnsafeView", "UpsampleNearest1D", "UpsampleNearest2D",
    "UpsampleNearest3D", "View", "UnsafeSplitWithSizes", "ChannelShuffle",
]  # fmt: skip


@square_rules.register(
    *(f"{name}Backward{version}" for name in _MOVEMENTS for version in (0, 1, 2)), "MaxBackward0", "MinBackward0"
)
def movement(at: Crossing) -> Parts:
    """Data that move, are added up, or are chosen: derivatives are 0 or 1."""
    if getattr(at.node, "_saved_scale_grad_by_freq", False):
        raise refusal(at, "scales its derivative by frequencies", "set scale_grad_by_freq=False")
    return at.backward()


@square_rules.register("MeanBackward0", "MeanBackward1")
def mean(at: Crossing) -> Parts:
    """Entries 1 / count."""
    count = torch.Size(at.shape()).numel() / max(at.h.numel(), 1)
    return at.backward(at.h / count)


@square_rules.register("AvgPool2DBackward0", "AvgPool3DBackward0")
def average_pool(at: Crossing) -> Parts:
    """Entries 1 / divisor, which at the border depends on the options."""
    spatial = 2 if "2D" in at.node.name() else 3
    pool: Callable[..., Tensor] = F.avg_pool2d if spatial == 2 else F.avg_pool3d
    ones = torch.ones((1, *at.shape()[-spatial:]), dtype=at.h.dtype, device=at.h.device)
    options = [at.saved(name) for name in ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")]
    share = pool(ones, *options, at.saved("divisor_override"))  # positions inside / divisor
    inside = pool(ones, *options, 1)
    return at.backward(at.h * (share / inside))


@square_rules.register("AdaptiveAvgPool2DBackward0", "AdaptiveAvgPool3DBackward0")
def adaptive_average_pool(at: Crossing) -> Parts:
    """Entries 1 / (size of the window), windows from ``floor(k in / out)`` to ``ceil((k + 1) in / out)``."""
    h, spatial = at.h, 2 if "2D" in at.node.name() else 3
    for axis in range(-spatial, 0):
        long, short = at.shape()[axis], h.shape[axis]
        sizes = [-(-(k + 1) * long // short) - k * long // short for k in range(short)]
        h = h / torch.tensor(sizes, dtype=h.dtype, device=h.device).reshape(-1, *[1] * (-1 - axis))
    return at.backward(h)


@square_rules.register("MmBackward0", "BmmBackward0")
def matrix_product(at: Crossing) -> Parts:
    """``a @ b``."""
    a, b = at.square("self"), at.square("mat2")
    return at.h @ b.mT if at.needs(0) else None, a.mT @ at.h if at.needs(1) else None


@square_rules.register("AddmmBackward0", "BaddbmmBackward0")
def affine(at: Crossing) -> Parts:
    """``beta * c + alpha * a @ b``."""
    names = ("mat1", "mat2") if at.node.name() == "AddmmBackward0" else ("batch1", "batch2")
    a, b = (at.square(name) for name in names)
    scaled = at.h * at.saved("alpha") ** 2
    added = at.h * at.saved("beta") ** 2 if at.needs(0) else None
    return added, scaled @ b.mT if at.needs(1) else None, a.mT @ scaled if at.needs(2) else None


@square_rules.register("MvBackward0")
def matrix_vector(at: Crossing) -> Parts:
    """``A @ v``."""
    A, v = at.square("self"), at.square("vec")
    return torch.outer(at.h, v) if at.needs(0) else None, A.mT @ at.h if at.needs(1) else None


@square_rules.register("ConvolutionBackward0")
def convolution(at: Crossing) -> Parts:
    """Convolutions in 1, 2 and 3 dimensions, with any stride, padding, dilation and groups, transposed ones too."""
    image, weight = at.saved("input").square(), at.saved("weight").square()
    bias = at.saved("bias_sym_sizes_opt")
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    mask = [at.needs(index) for index in range(3)]
    return torch.ops.aten.convolution_backward(at.h, image, weight, bias, *(at.saved(name) for name in names), mask)


@square_rules.register("NativeBatchNormBackward0")
def batch_norm(at: Crossing) -> Parts:
    """Batch normalization with kept statistics: an affine map of each channel."""
    if at.saved("training"):
        raise refusal(at, "uses the statistics of the batch", "call model.eval()")
    image, gain = at.saved("input"), at.saved("weight")
    shape = (1, -1, *[1] * (image.ndim - 2))
    mean, variance = at.saved("running_mean").reshape(shape), at.saved("running_var").reshape(shape)
    precision = 1 / (variance + at.saved("eps"))
    rest = [axis for axis in range(image.ndim) if axis != 1]
    down = at.h * precision * (1 if gain is None else gain.square().reshape(shape))
    return down, (at.h * precision * (image - mean).square()).sum(rest), at.h.sum(rest)


def refusal(at: Crossing, found: str, remedy: str) -> UnsupportedError:
    """The error that names the node."""
    return UnsupportedError(at.asked, f"{at.node.name()}, which {found}", remedy)
