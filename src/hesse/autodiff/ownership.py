"""Results that may be written to: none shares memory with another result, a parameter, a cotangent, or itself.

Autograd hands out the same tensor for both terms of a sum, an expanded scalar for a sum's input, and the cotangent itself
for an identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.recording import dense

_is_contiguous, _storage, _identity = Tensor.is_contiguous, Tensor.untyped_storage, attrgetter("_cdata")
_function_modes = torch._C._len_torch_function_stack


def owned(grads: Sequence[Tensor | None], inputs: Sequence[Tensor], cotangents: Sequence[Tensor] | None) -> Sequence[Tensor]:
    """The gradients as dense tensors with memory of their own; zeros for None.

    Args:
        grads: what a backward pass gave, one for each input.
        inputs, cotangents: tensors whose memory is taken.
    """
    given: Any = grads
    if not cotangents and not _function_modes():
        try:  # what is plain at a glance: contiguous tensors, each in a storage of its own
            if all(map(_is_contiguous, given)):
                storages = {*map(_identity, map(_storage, given)), *map(_identity, map(_storage, inputs))}
                if len(storages) == 2 * len(given):
                    return given
        except (TypeError, RuntimeError):  # a gradient is None, or sparse
            pass
    results = [torch.zeros_like(x) if g is None else dense(g) for g, x in zip(grads, inputs, strict=True)]
    for index in sharing(results, (*inputs, *(cotangents or ()))):
        results[index] = results[index].clone(memory_format=torch.contiguous_format)
    return results


def sharing(tensors: Sequence[Tensor], others: Iterable[Tensor]) -> list[int]:
    """Which tensors share memory with others, with an earlier one of themselves, or within themselves.

    Args:
        tensors: to be written to by their owner, each for itself.
        others: tensors that belong to somebody else.

    Returns:
        Their indices.
    """
    with torch._C.DisableTorchFunction():  # an address is looked at, and nothing computed from it
        taken = {_memory(t) for t in others}
        shared = []
        for index, t in enumerate(tensors):
            memory = _memory(t)
            if t.numel() and (memory in taken or _overlaps(t)):
                shared.append(index)
            taken.add(memory)
    return shared


def _overlaps(tensor: Tensor) -> bool:
    """Whether two elements of a tensor may be one."""
    return tensor.layout is torch.strided and not tensor.is_contiguous() and torch._debug_has_internal_overlap(tensor) != 0


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)
