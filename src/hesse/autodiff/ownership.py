"""Gradients that may be written to: none shares memory with another gradient, a parameter, a cotangent, or itself.

Autograd hands out the same tensor for both terms of a sum, an expanded scalar for a sum's input, and the cotangent itself
for an identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.recording import dense

_is_contiguous, _offset, _address = Tensor.is_contiguous, Tensor.storage_offset, Tensor.data_ptr


def owned(grads: Sequence[Tensor | None], inputs: Sequence[Tensor], cotangents: Sequence[Tensor] | None) -> Sequence[Tensor]:
    """The gradients as dense tensors with memory of their own; zeros for None.

    Args:
        grads: what a backward pass gave, one for each input.
        inputs, cotangents: tensors whose memory is taken.
    """
    if not cotangents and not torch._C._len_torch_function_stack() and _are_apart(grads, inputs):
        return grads  # pyright: ignore[reportReturnType]
    results = [torch.zeros_like(x) if g is None else dense(g) for g, x in zip(grads, inputs, strict=True)]
    with torch._C.DisableTorchFunction():  # an address is looked at, and nothing computed from it
        taken = {_memory(t) for t in (*inputs, *(cotangents or ()))}
        shared = []
        for index, g in enumerate(results):
            memory = _memory(g)
            if memory in taken or not (g.is_contiguous() or torch._debug_has_internal_overlap(g) == 0):
                shared.append(index)
            taken.add(memory)
    for index in shared:
        results[index] = results[index].clone(memory_format=torch.contiguous_format)
    return results


def _are_apart(grads: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> bool:
    """Whether this is plain at a glance: contiguous tensors that begin where their memory begins, at different addresses."""
    given: Any = grads
    try:
        if not all(map(_is_contiguous, given)) or any(map(_offset, given)):
            return False
    except TypeError:  # a gradient is None
        return False
    return len({*map(_address, given), *map(_address, inputs)}) == 2 * len(given)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)
