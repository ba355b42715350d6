"""Whether a model's output is piecewise linear in each of its parameters, the others held fixed.

Then no second derivative of the output by one parameter (tensor) is left, and the block of a loss's Hessian that belongs
to this parameter is that of the Gauss-Newton matrix. ReLU networks are of this kind, with convolutions, pooling, residuals
and embeddings.
"""

from __future__ import annotations

from hesse.autodiff.layout import Walk

_LINEAR = {
    "AccumulateGrad", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D", "Add",
    "Alias", "Amax", "AsStrided", "AvgPool2D", "AvgPool3D", "Cat", "Clamp", "ClampMax", "ClampMin", "Clone",
    "ConstantPadNd", "Diagonal", "Embedding", "EmbeddingBag", "Expand", "FractionalMaxPool2D", "Gather", "Hardtanh",
    "Index", "IndexSelect", "LeakyRelu", "Max", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "Maximum", "Mean",
    "Minimum", "Narrow", "Neg", "Permute", "ReflectionPad1D", "ReflectionPad2D", "ReflectionPad3D", "Relu", "Repeat",
    "ReplicationPad1D", "ReplicationPad2D", "ReplicationPad3D", "ReshapeAlias", "Roll", "Select", "Slice", "Split",
    "SplitWithSizes", "Squeeze", "Stack", "Sub", "Sum", "T", "Threshold", "ToCopy", "Transpose", "Unbind", "Unfold",
    "UnsafeSplit", "UnsafeView", "Unsqueeze", "UpsampleBilinear2D", "UpsampleNearest1D", "UpsampleNearest2D",
    "UpsampleNearest3D", "View", "Where",
}  # fmt: skip
"""Ops that are piecewise linear in all of their inputs together, by the names of their nodes."""

_BILINEAR = {
    "Addmm": (1, 2),
    "Addmv": (1, 2),
    "Baddbmm": (1, 2),
    "Bmm": (0, 1),
    "Convolution": (0, 1),
    "Dot": (0, 1),
    "Linear": (0, 1),
    "Mm": (0, 1),
    "Mul": (0, 1),
    "Mv": (0, 1),
}
"""Ops that are linear in each of two inputs: which ones. (What else they take is added.)"""


def is_piecewise_linear(walk: Walk) -> bool:
    """Whether the graph's output is piecewise linear in each parameter, as far as the names of its nodes tell."""
    number = {i: k for k, i in enumerate(walk.tracked)}
    below: dict[int, int] = {}  # the parameters that a node leads to, a bit for each
    for i in _parents_first(walk):
        node, parents = walk.nodes[i], [0 if edge is None else below[edge[0]] for edge in walk.edges[i]]
        bits = 0
        for parent in parents:
            bits |= parent
        below[i] = bits | (1 << number[i] if i in number else 0)
        if not bits or i in number:
            continue
        if not node.name()[-1].isdigit():  # a node of the user's own, whatever its name
            return False
        op = node.name().rstrip("0123456789").removesuffix("Backward")
        if op in _BILINEAR:
            first, second = _BILINEAR[op]
            if len(parents) <= second or parents[first] & parents[second]:
                return False
        elif op not in _LINEAR:
            return False
    return True


def _parents_first(walk: Walk) -> list[int]:
    """The nodes such that everything a node comes from stands before it."""
    order: list[int] = []
    seen: set[int] = set()
    pending = [(0, False)] if walk.nodes else []
    while pending:
        i, is_done = pending.pop()
        if is_done:
            order.append(i)
            continue
        if i in seen:
            continue
        seen.add(i)
        pending.append((i, True))
        pending.extend((edge[0], False) for edge in walk.edges[i] if edge is not None and edge[0] not in seen)
    return order
