"""What a function returned, put together again from its tensors by generated code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from hesse.autodiff.ownership import sharing


def rebuilder(spec: pytree.TreeSpec, static: tuple[tuple[int, Any], ...]) -> Callable[[list[Tensor]], Any]:
    """A function from the tensors, in order, to the whole value.

    Args:
        spec: of the value, with tensors and other leaves.
        static: the other leaves, with their positions.
    """
    constants: dict[str, Any] = {"unflatten": pytree.tree_unflatten}
    fixed = dict(static)
    tensors = iter(range(spec.num_leaves))
    leaves = [_kept(constants, fixed[i]) if i in fixed else f"t[{next(tensors)}]" for i in range(spec.num_leaves)]
    text = _text(spec, iter(leaves), constants)
    exec(compile(f"def rebuild(t):\n    return {text}\n", "<hesse rebuild>", "exec"), constants)
    return constants["rebuild"]


def separate(result: Any, outside: Sequence[Tensor]) -> Any:
    """What a recorded run returned, with memory of its own, as a replay would give it.

    Args:
        result: of the run.
        outside: tensors that it was given or that it closed over.

    Returns:
        The same with a copy of each tensor that shares memory with one of those, or with an earlier tensor of the result.
    """
    leaves, spec = pytree.tree_flatten(result)
    tensors = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for index in sharing([leaves[i] for i in tensors], outside):
        leaves[tensors[index]] = leaves[tensors[index]].clone()
    return pytree.tree_unflatten(leaves, spec)


def _kept(constants: dict[str, Any], value: Any) -> str:
    name = f"k{len(constants)}"
    constants[name] = value
    return name


def _text(spec: pytree.TreeSpec, leaves: Iterator[str], constants: dict[str, Any]) -> str:
    if spec.is_leaf():
        return next(leaves)
    children = spec.children()
    if spec.type is list:
        return f"[{', '.join(_text(c, leaves, constants) for c in children)}]"
    if spec.type is tuple:
        return f"({''.join(_text(c, leaves, constants) + ', ' for c in children)})"
    if spec.type is dict:
        keys = [_kept(constants, key) for key in spec.context]
        return "{" + ", ".join(f"{k}: {_text(c, leaves, constants)}" for k, c in zip(keys, children, strict=True)) + "}"
    inside = [next(leaves) for _ in range(spec.num_leaves)]
    return f"unflatten([{', '.join(inside)}], {_kept(constants, spec)})"
