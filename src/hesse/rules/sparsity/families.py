"""All families of rules, and ops that work element by element without PyTorch's tag that says so."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hesse.rules.sparsity import (
    bags,
    distances,
    foreach,
    indexing,
    interpolation,
    lines,
    losses,
    matrices,
    movement,
    normalization,
    pooling,
    products,
    sparse,
    windows,
)

FAMILIES = (
    bags, distances, foreach, indexing, interpolation, lines, losses, matrices, movement, normalization, pooling, products,
    sparse, windows,
)  # fmt: skip
POINTWISE = frozenset((
    "clone", "_to_copy", "copy", "contiguous", "native_dropout", "native_dropout_backward", "log_sigmoid_forward",
    "log_sigmoid_backward", "complex", "polar", "hardswish", "hardswish_backward", "hardsigmoid_backward", "special_ndtr",
    "prelu", "_prelu_kernel", "_prelu_kernel_backward", "elu_backward", "gelu_backward", "leaky_relu_backward",
    "threshold_backward", "tanh_backward", "sigmoid_backward", "silu_backward", "mish_backward", "softplus_backward",
    "softshrink_backward", "hardshrink_backward", "hardtanh_backward", "rrelu_with_noise", "rrelu_with_noise_backward",
    "rrelu_with_noise_functional", "infinitely_differentiable_gelu_backward", "lift_fresh", "lerp", "nan_to_num",
    "_conj_physical", "conj_physical", "real", "imag", "rsub", "_masked_scale",
))  # fmt: skip
FLAT = frozenset((
    "sign", "signbit", "floor", "ceil", "round", "trunc", "heaviside", "floor_divide", "zeros_like", "ones_like",
    "full_like", "empty_like", "rand_like", "randn_like", "randint_like", "new_empty", "new_empty_strided", "new_full",
    "new_ones", "new_zeros", "bernoulli", "zero", "argmax", "argmin", "bucketize", "searchsorted", "histc",
    "bincount", "count_nonzero", "uniform", "exponential", "geometric", "cauchy", "log_normal", "random", "isnan",
    "isinf", "poisson", "multinomial", "normal",
))  # fmt: skip
"""Their derivatives are zero."""
READS = frozenset({"_local_scalar_dense", "is_nonzero", "equal", "item"})
"""They give Python a value."""
DYNAMIC = frozenset({"nonzero", "masked_select", "unique_dim", "_unique", "_unique2", "unique_consecutive"})
"""The shapes of their results depend on values."""


def is_dynamic(name: str, varying: Sequence[Tensor]) -> bool:
    """Whether the shape of an op's result depends on the input.

    Args:
        name: of the op.
        varying: its operands that depend on the input.
    """
    if name == "index":
        return any(t.dtype in (torch.bool, torch.uint8) for t in varying)
    if name in ("repeat_interleave", "bincount"):
        return any(not t.is_floating_point() for t in varying)
    return name in DYNAMIC
