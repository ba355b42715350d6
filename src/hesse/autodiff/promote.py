"""Run a function that closes over tensors of a short type on arguments of a longer one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map


class PromoteFloats(TorchFunctionMode):
    """Inside it, functions that get real floating-point tensors of several types see all of them in float64.

    So weights in float32 that a function closes over meet float64 inputs without an error. Functions that write to one of
    their arguments see them as they are.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = {leaf.dtype for leaf in tree_leaves((args, kwargs)) if _is_real(leaf)}
        if len(given) > 1 and torch.float64 in given and not _writes(func, kwargs):
            args = tree_map(_promoted, args)
            kwargs = {name: tree_map(_promoted, value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _promoted(leaf: Any) -> Any:
    return leaf.double() if _is_real(leaf) else leaf


def _is_real(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _writes(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name in ("__set__", "__setitem__") or (name.startswith("__i") and name not in ("__invert__", "__int__"))
    return kwargs.get("out") is not None or name.endswith("_")
