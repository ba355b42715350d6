"""Whether two operators are one and the same, built twice; by what they hold, without a product."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor

from hesse.core.space import Space
from hesse.operators.base import LinearOperator

_VALUES = (Space, frozenset, bool, int, float, complex, str)


def are_adjoint(first: LinearOperator, second: LinearOperator) -> bool:
    """Whether one is surely the adjoint of the other, as ``A.H`` is that of ``A``: by construction, not by the entries."""
    if first.in_space != second.out_space or first.out_space != second.in_space:
        return False
    return is_same(first, second.H) or is_same(first.H, second)


def is_same(first: Any, second: Any) -> bool:
    """Whether two operators (or parts of them) surely are the same map: of one type, holding the very same tensors and objects.

    Two views count as the same tensor if they show the same part of it; results that were cached are not compared.
    """
    if first is second:
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        return _view(first) == _view(second)
    if isinstance(first, LinearOperator):
        return is_same(_held(first), _held(second))
    if isinstance(first, dict):
        return list(first) == list(second) and all(is_same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(is_same, first, second))
    return isinstance(first, _VALUES) and bool(first == second)


def _held(operator: LinearOperator) -> dict[str, Any]:
    kind = type(operator)
    held = {name: value for name, value in vars(operator).items() if not isinstance(getattr(kind, name, None), cached_property)}
    return dict(sorted(held.items()))


def _view(tensor: Tensor) -> tuple[object, ...]:
    """What tells views of one tensor apart."""
    whole = tensor if tensor._base is None else tensor._base
    return id(whole), tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.is_conj(), tensor.is_neg()
