"""What a gradient function returns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.utils._pytree as pytree

from hesse.core.tree import Tree


class GradResult(tuple[Any, ...]):
    """What a gradient function returns: a tuple ``(grads, value, *extras)`` with names for its parts.

    It is a node of PyTorch's trees, so that `torch.vmap` and `torch.func` take it as they take a tuple.
    """

    __slots__ = ()

    @property
    def grads(self) -> Tree:
        """The gradients, in the structure of the parameters."""
        return self[0]

    @property
    def value(self) -> Any:
        """The first value that the function returned."""
        return self[1]

    @property
    def extras(self) -> tuple[Any, ...]:
        """Every further value that the function returned."""
        return tuple(self[2:])

    def __repr__(self) -> str:
        extras = f", extras={self.extras!r}" if len(self) > 2 else ""
        return f"GradResult(grads={self.grads!r}, value={self.value!r}{extras})"


def _open(result: GradResult) -> tuple[list[Any], None]:
    return list(result), None


def _open_with_keys(result: GradResult) -> tuple[list[tuple[Any, Any]], None]:
    return [(pytree.SequenceKey(index), part) for index, part in enumerate(result)], None


def _close(parts: Iterable[Any], context: None) -> GradResult:
    return GradResult(parts)


pytree.register_pytree_node(
    GradResult, _open, _close, flatten_with_keys_fn=_open_with_keys, serialized_type_name="hesse.GradResult"
)
