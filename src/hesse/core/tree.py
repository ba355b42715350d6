"""Named trees: flatten, name and rebuild nested containers of tensors.

Nodes are whatever `torch.utils._pytree` knows (dict, list, tuple, named tuple, types that libraries
register there) and every dataclass. Order is insertion order, never sorted. A path reads ``a.b.0``.
The leaves that matter are tensors and Python floats or complex numbers; ints, bools, strings and
None are *static*: they belong to the structure and are handed back untouched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree

Tree = Any  # a nested container of tensors; hesse cannot say more, since the user chooses the types


class _DataclassNode:
    """A dataclass instance laid open, so that pytree can walk it without the user's type being registered."""

    def __init__(self, cls: type, fields: dict[str, Any]) -> None:
        self.cls, self.fields = cls, fields


def _open(node: _DataclassNode) -> tuple[list[Any], tuple[type, tuple[str, ...]]]:
    return list(node.fields.values()), (node.cls, tuple(node.fields))


def _open_with_keys(node: _DataclassNode) -> tuple[list[tuple[Any, Any]], tuple[type, tuple[str, ...]]]:
    values, context = _open(node)
    return [(pytree.GetAttrKey(name), value) for name, value in zip(context[1], values, strict=True)], context


def _close(values: Iterable[Any], context: tuple[type, tuple[str, ...]]) -> Any:
    cls, names = context
    instance = object.__new__(cls)  # not cls(...): a user's __init__ or __post_init__ may validate or convert
    for name, value in zip(names, values, strict=True):
        object.__setattr__(instance, name, value)
    return instance


pytree.register_pytree_node(_DataclassNode, _open, _close, flatten_with_keys_fn=_open_with_keys)


def is_open_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type) and type(value) not in pytree.SUPPORTED_NODES


def _lay_open(tree: Tree) -> Tree:
    if not any(map(is_open_dataclass, pytree.tree_leaves(tree))):
        return tree

    def visit(leaf: Any) -> Any:
        if not is_open_dataclass(leaf):
            return leaf
        names = [f.name for f in dataclasses.fields(leaf) if hasattr(leaf, f.name)]  # init=False fields may be unset
        return _DataclassNode(type(leaf), {name: _lay_open(getattr(leaf, name)) for name in names})

    return pytree.tree_map(visit, tree)


def is_variable(leaf: Any) -> bool:
    """Whether a leaf takes part in differentiation: a tensor, or a Python float or complex number."""
    return isinstance(leaf, (torch.Tensor, float, complex))


@dataclasses.dataclass(frozen=True)
class Structure:
    """How a tree is nested, without its variable leaves (static leaves are kept)."""

    spec: pytree.TreeSpec
    static: tuple[tuple[int, Any], ...]

    def unflatten(self, leaves: Iterable[Any]) -> Tree:
        """The tree with these variable leaves, in order."""
        everything: list[Any] = []
        static = dict(self.static)
        remaining = iter(leaves)
        for index in range(self.spec.num_leaves):
            everything.append(static[index] if index in static else next(remaining))
        return pytree.tree_unflatten(everything, self.spec)


def flatten(tree: Tree) -> tuple[list[Any], Structure]:
    """Variable leaves in insertion order, and the structure that puts them back."""
    leaves, spec = pytree.tree_flatten(_lay_open(tree))
    static = tuple((index, leaf) for index, leaf in enumerate(leaves) if not is_variable(leaf))
    return [leaf for leaf in leaves if is_variable(leaf)], Structure(spec, static)


def _is_flat(tree: Tree) -> bool:
    """Whether a tree is a dict of tensors: the parameters of most models, for which pytree's walk is not needed."""
    return type(tree) is dict and all(isinstance(leaf, torch.Tensor) for leaf in tree.values())


def leaves(tree: Tree) -> list[Any]:
    """The variable leaves in insertion order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if _is_flat(tree):
        return list(tree.values())
    return [leaf for leaf in pytree.tree_leaves(_lay_open(tree)) if is_variable(leaf)]


def named_leaves(tree: Tree) -> list[tuple[str, Any]]:
    """``(path, leaf)`` of every variable leaf; the path of a bare leaf is the empty string."""
    if isinstance(tree, torch.Tensor):
        return [("", tree)]
    if _is_flat(tree):
        return [(str(key), leaf) for key, leaf in tree.items()]
    return [(".".join(path), leaf) for path, leaf in _walk(_lay_open(tree), ()) if is_variable(leaf)]


def _walk(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if pytree.tree_is_leaf(node):
        yield path, node
        return
    kind = pytree.SUPPORTED_NODES[pytree._get_node_type(node)]
    if kind.flatten_with_keys_fn is None:  # registered without keys (transformers' outputs): children are numbered
        children = [(str(index), child) for index, child in enumerate(kind.flatten_fn(node)[0])]
    else:
        children = [(_key(key), child) for key, child in kind.flatten_with_keys_fn(node)[0]]
    for key, child in children:
        yield from _walk(child, (*path, key))


def _key(part: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(part, attribute):
            return str(getattr(part, attribute))
    return str(part)


def map_tree(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply `fn` to corresponding variable leaves of trees of one structure."""
    first, structure = flatten(tree)
    return structure.unflatten([fn(*parts) for parts in zip(first, *(leaves(t) for t in rest), strict=True)])


def partition(tree: Tree, keep: Callable[[str, Any], bool]) -> tuple[Tree, Tree]:
    """Split a tree in two of the same nesting: leaves for which ``keep(path, leaf)`` holds, and the others.

    The place of a leaf that went to the other side holds None. `combine` undoes it.
    """
    names = named_leaves(tree)
    _, structure = flatten(tree)
    chosen = [keep(path, leaf) for path, leaf in names]
    inside = [leaf if flag else None for flag, (_, leaf) in zip(chosen, names, strict=True)]
    outside = [None if flag else leaf for flag, (_, leaf) in zip(chosen, names, strict=True)]
    return structure.unflatten(inside), structure.unflatten(outside)


def combine(first: Tree, second: Tree) -> Tree:
    """Undo `partition`: each leaf from whichever side holds it."""

    def is_none(value: Any) -> bool:
        return value is None

    a, spec = pytree.tree_flatten(_lay_open(first), is_leaf=is_none)
    b = pytree.tree_leaves(_lay_open(second), is_leaf=is_none)
    return pytree.tree_unflatten([y if x is None else x for x, y in zip(a, b, strict=True)], spec)


def has_nan(leaf: torch.Tensor) -> bool:
    """Whether NaN is among the elements; one pass that writes nothing where all is finite."""
    return bool(torch.isnan(leaf.sum())) and bool(torch.isnan(leaf).any())


def inner(u: Tree, v: Tree) -> torch.Tensor:
    """The bilinear form sum(u * v) over all leaves (no conjugation), a 0-d tensor."""
    terms: Sequence[torch.Tensor] = [(a * b).sum() for a, b in zip(leaves(u), leaves(v), strict=True)]
    return torch.stack(list(terms)).sum() if terms else torch.zeros(())
