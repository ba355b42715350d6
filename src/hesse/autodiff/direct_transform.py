"""`grad` inside a `torch.func` transform."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack

from hesse.autodiff.direct_checks import cotangent_leaves, require_scalar
from hesse.autodiff.fused import differentiable_attention, plain_recurrences
from hesse.autodiff.plain_bags import PlainBags
from hesse.autodiff.weight_norm import PlainWeightNorm
from hesse.core import tree
from hesse.core.tree import Tree


def differentiate_inside_transform(
    call: Callable[[Sequence[Tensor]], Any], leaves: Sequence[Tensor], cotangent: Tree, asked: str
) -> tuple[list[Tensor], Any]:
    """Gradients and outputs of a function, both followed by the transforms around the caller.

    Args:
        call: the function of the leaves of its parameters.
        leaves: these leaves.
        cotangent: like the first value, or None for a scalar.
        asked: what is asked of hesse, for error messages.

    Raises:
        As `hesse.autodiff.direct.differentiate`.

    Cost: one gradient, by plain operations where fused ones have no further derivative.
    """
    kept: dict[str, Any] = {}

    def flat(*inputs: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        outputs = call(inputs)
        value = outputs[0] if isinstance(outputs, tuple) and outputs else outputs
        if cotangent is None:
            roots = require_scalar(value, asked) or [torch.zeros(())]  # a Python number hangs on nothing
        else:
            roots, kept["cotangent"] = cotangent_leaves(value, cotangent, asked)
        found, kept["structure"] = tree.flatten(outputs)
        kept["numbers"] = {i: y for i, y in enumerate(found) if not isinstance(y, Tensor)}
        return tuple(roots), [y for y in found if isinstance(y, Tensor)]

    with differentiable_attention(), PlainWeightNorm(), PlainBags(), plain_recurrences() if _further() else nullcontext():
        roots, pull, tensors = cast(tuple[Any, Any, Any], torch.func.vjp(flat, *leaves, has_aux=True))
        cotangents = kept.get("cotangent") or [torch.ones_like(y) for y in roots]
        grads = list(pull(tuple(cotangents)))
    rest = iter(tensors)
    count = len(tensors) + len(kept["numbers"])
    outputs = kept["structure"].unflatten([kept["numbers"][i] if i in kept["numbers"] else next(rest) for i in range(count)])
    return grads, outputs


def _further() -> bool:
    """Whether a transform around the caller differentiates."""
    return any(interpreter.key() != TransformType.Vmap for interpreter in get_interpreter_stack() or [])
