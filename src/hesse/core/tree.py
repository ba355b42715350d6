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

_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
_VARIABLE = _TENSORS | {float, complex}
_STATIC = frozenset({int, bool, str, bytes, type(None)})
_LEAF = pytree.treespec_leaf()


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
    """Whether a value is an instance of a dataclass that pytree does not know."""
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
        if not self.static:
            return _build(self.spec, iter(leaves))
        static = dict(self.static)
        remaining = iter(leaves)
        everything = [static[index] if index in static else next(remaining) for index in range(self.spec.num_leaves)]
        return _build(self.spec, iter(everything))


def _build(spec: pytree.TreeSpec, leaves: Iterator[Any]) -> Tree:
    kind = spec.type
    if spec is _LEAF:
        return next(leaves)
    if kind is dict:
        keys, parts = spec.context, [next(leaves) if s is _LEAF else _build(s, leaves) for s in spec._children]
        return dict(zip(keys, parts, strict=True))
    if kind is list or kind is tuple:
        parts = [next(leaves) if s is _LEAF else _build(s, leaves) for s in spec._children]
        return parts if kind is list else tuple(parts)
    return pytree.tree_unflatten([next(leaves) for _ in range(spec.num_leaves)], spec)


def flatten(tree: Tree) -> tuple[list[Any], Structure]:
    """Variable leaves in insertion order, and the structure that puts them back."""
    found: list[Any] = []
    static: list[tuple[int, Any]] = []
    spec = _flatten_plain(tree, found, static)
    if spec is not None:
        return found, Structure(spec, tuple(static))
    everything, spec = pytree.tree_flatten(_lay_open(tree))
    static = [(index, leaf) for index, leaf in enumerate(everything) if not is_variable(leaf)]
    return [leaf for leaf in everything if is_variable(leaf)], Structure(spec, tuple(static))


def _flatten_plain(node: Any, leaves: list[Any], static: list[tuple[int, Any]]) -> pytree.TreeSpec | None:
    """What pytree's walk gives for a nest of nothing but dicts, lists, tuples and the usual leaves; None where it is none."""
    kind = type(node)
    if kind in _VARIABLE:
        leaves.append(node)
        return _LEAF
    if kind in _STATIC:
        static.append((len(leaves) + len(static), node))
        return _LEAF
    if kind is not dict and kind is not list and kind is not tuple:
        return None
    specs: list[pytree.TreeSpec] = []
    for child in node.values() if kind is dict else node:
        if type(child) is torch.Tensor:
            leaves.append(child)
            specs.append(_LEAF)
        else:
            spec = _flatten_plain(child, leaves, static)
            if spec is None:
                return None
            specs.append(spec)
    return pytree.TreeSpec(kind, list(node) if kind is dict else None, specs)


def leaves(tree: Tree) -> list[Any]:
    """The variable leaves in insertion order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    found: list[Any] = []
    if gather_plain(tree, found):
        return found
    return [leaf for leaf in pytree.tree_leaves(_lay_open(tree)) if is_variable(leaf)]


def gather_plain(node: Tree, leaves: list[Any]) -> bool:
    """Collect the variable leaves of a nest of nothing but dicts, lists, tuples and the usual leaves.

    Pytree's walk takes as long as a small gradient.

    Args:
        node: the tree.
        leaves: where they are put.

    Returns:
        Whether the tree was such a nest; otherwise `leaves` is to be thrown away.
    """
    kind = type(node)
    if kind is dict:
        node = node.values()
    elif kind is not list and kind is not tuple:
        if kind in _VARIABLE:
            leaves.append(node)
            return True
        return kind in _STATIC
    for child in node:
        if type(child) is torch.Tensor:
            leaves.append(child)
        elif not gather_plain(child, leaves):
            return False
    return True


def _is_flat(tree: Tree) -> bool:
    return type(tree) is dict and _TENSORS.issuperset(map(type, tree.values()))


def named_leaves(tree: Tree) -> list[tuple[str, Any]]:
    """``(path, leaf)`` of every variable leaf; the path of a bare leaf is the empty string."""
    if isinstance(tree, torch.Tensor):
        return [("", tree)]
    if _is_flat(tree):
        return [(str(key), leaf) for key, leaf in tree.items()]
    return [(".".join(path), leaf) for path, leaf in _walk(_lay_open(tree), ()) if is_variable(leaf)]


def named_parts(tree: Tree) -> list[tuple[tuple[str, ...], Any]]:
    """``(path, leaf)`` of every leaf, static ones too; a path is the keys that lead to it."""
    return list(_walk(_lay_open(tree), ()))


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
