"""All families of rules, and ops that work element by element without PyTorch's tag that says so."""

from hesse.rules.sparsity import lines, losses, matrices, movement, products, windows

FAMILIES = (lines, losses, matrices, movement, products, windows)
POINTWISE = frozenset((
    "clone", "_to_copy", "copy", "contiguous", "native_dropout", "native_dropout_backward", "log_sigmoid_forward",
    "log_sigmoid_backward", "complex", "polar", "hardswish", "hardswish_backward", "hardsigmoid_backward", "special_ndtr",
    "prelu", "_prelu_kernel", "_prelu_kernel_backward", "elu_backward", "gelu_backward", "leaky_relu_backward",
    "threshold_backward", "tanh_backward", "sigmoid_backward", "silu_backward", "mish_backward", "softplus_backward",
    "softshrink_backward", "hardshrink_backward", "hardtanh_backward", "rrelu_with_noise", "rrelu_with_noise_backward",
    "rrelu_with_noise_functional", "infinitely_differentiable_gelu_backward", "lift_fresh", "lerp", "nan_to_num",
    "_conj_physical", "conj_physical", "real", "imag",
))  # fmt: skip
