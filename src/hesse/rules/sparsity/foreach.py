"""Ops on lists of tensors: what each does to one tensor, it does to all."""

from __future__ import annotations

from torch import Tensor

from hesse.rules.sparsity.forms import Call, Link, Same, sparsity_rules, whole

_POINTWISE = tuple(f"_foreach_{name}" for name in (
    "abs", "acos", "add", "addcdiv", "addcmul", "asin", "atan", "ceil", "clamp_max", "clamp_min", "copy", "cos", "cosh", "div",
    "erf", "erfc", "exp", "expm1", "floor", "frac", "lerp", "lgamma", "log", "log10", "log1p", "log2", "maximum", "minimum",
    "mul", "neg", "pow", "reciprocal", "round", "rsqrt", "sigmoid", "sign", "sin", "sinh", "sqrt", "sub", "tan", "tanh",
    "trunc", "zero", "clone",
))  # fmt: skip
_REDUCED = ("_foreach_norm", "_foreach_max", "_foreach_powsum")


@sparsity_rules.register(*_POINTWISE)
def each(call: Call) -> list[Link]:
    """Element by element of those in the same place of their lists; a tensor outside of a list goes to all."""
    return [(index, t, Same()) for index in range(len(call.outputs)) for t in _of(call, index)]


@sparsity_rules.register(*_REDUCED)
def each_reduced(call: Call) -> list[Link]:
    """One number of each."""
    return [(index, t, whole(t, y)) for index, y in enumerate(call.outputs) for t in _of(call, index)]


def _of(call: Call, index: int) -> list[Tensor]:
    found = []
    for value in call.given.values():
        own = value[index] if isinstance(value, (list, tuple)) and len(value) == len(call.outputs) else value
        if isinstance(own, Tensor):
            found.append(own)
    return found
