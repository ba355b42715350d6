"""Guards of tensors, containers and instances."""

from __future__ import annotations

import weakref
from collections import OrderedDict, defaultdict, deque
from types import MappingProxyType, MemberDescriptorType
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from hesse.autodiff.compiled.state_classes import SOLID, enter_class, guard_global_hooks, opaque
from hesse.autodiff.compiled.state_codes import is_library
from hesse.autodiff.compiled.state_values import is_constant
from hesse.autodiff.compiled.unrecordable import Unrecordable

if TYPE_CHECKING:
    from hesse.autodiff.compiled.state_checks import Checks
    from hesse.autodiff.compiled.state_walk import Walker

MOST_ITEMS = 20_000
LARGEST_ARRAY = 4096
_FEW = 4
_MOST_UNREAD = 30
_ACCESS = "attribute({}, '__dict__')"


def differs(checks: Checks, table: str, present: Any, read: Any) -> str:
    """An expression that is true if a dictionary has lost or gained a key.

    Args:
        checks: where names are bound.
        table: how generated code reaches the dictionary.
        present: the dictionary.
        read: keys that are looked up anyway, so that their absence is noticed.

    Returns:
        The expression; cheap, and blind to the order.
    """
    if not present:
        return table
    unread = [name for name in present if name not in read]
    if len(unread) > _MOST_UNREAD or not all(type(name) is str for name in unread):
        return f"(list({table}) != {checks.bind(list(present))})"
    return "(" + " or ".join([f"len({table}) != {len(present)}", *(f"{name!r} not in {table}" for name in unread)]) + ")"


def guard_tensor(walker: Walker, expression: str | None, value: Tensor, path: str) -> None:
    """Guards a place that holds a tensor: any tensor of the same class may take its place, and becomes an input.

    Args:
        walker: the walk.
        expression: how generated code reads the place; None where it can never hold another one.
        value: the tensor there now.
        path: its name, for people.

    Raises:
        Unrecordable: something that hangs on the tensor cannot be watched.
    """
    checks = walker.checks
    known = walker.variables.get(id(value))
    if known is not None:
        if expression is not None:
            checks.add(f"v = {expression}", f"v is not {known}", f"{path}, the same tensor as another one,")
        return
    variable = walker.variables[id(value)] = f"t{len(checks.tensors)}"
    walker.entered[id(value)] = value
    checks.tensors.append((path, value))
    kind = checks.bind(type(value))
    checks.add(f"{variable} = v = {expression or checks.bind(value)}", f"type({variable}) is not {kind}", path)
    walker.attributes(value, f"{variable}.__dict__", value.__dict__, path)
    if not is_library(type(value).__module__):
        enter_class(walker, type(value))
    if "grad" in walker.user_names and value.is_leaf:
        walker.slot(f"{variable}.grad", value.grad, f"{path}.grad")


def distinct_tensors(walker: Walker) -> None:
    """Guards that tensors which were different objects still are, where code asks for identity; also whether they require grad.

    Args:
        walker: the walk, at its end.
    """
    count = len(walker.checks.tensors)
    if walker.identity and count > 1:
        every = ", ".join(f"id(t{k})" for k in range(count))
        walker.checks.add("", f"len({{{every}}}) != {count}", "which closed-over tensors are the same object")
    if walker.looks:
        for k, (path, tensor) in enumerate(walker.checks.tensors):
            walker.checks.add("", f"t{k}.requires_grad is not {tensor.requires_grad}", f"whether {path} requires grad")


def guard_container(walker: Walker, expression: str | None, value: Any, path: str) -> None:
    """Guards a place that holds a list, tuple or dict: an equal one may take its place.

    Args:
        walker: the walk.
        expression: how generated code reads the place; None where it can never hold another one.
        value: the container there now.
        path: its name, for people.

    Raises:
        Unrecordable: it is too large, or an item cannot be watched.
    """
    checks = walker.checks
    known = walker.variables.get(id(value))
    if known is not None:
        if expression is not None:
            checks.add(f"v = {expression}", f"v is not {known}", f"{path}, the same object as another one,")
        return
    _limit(value, path)
    variable = walker.variables[id(value)] = f"o{len(walker.variables)}"
    walker.entered[id(value)] = value
    kind = type(value).__name__
    kind_name = checks.bind(type(value))
    own = checks.bind(value) if walker.identity or expression is None else ""  # kept alive only where it has to be
    setup = f"{variable} = v = {expression or own}"
    other = f"{variable} is not {own}" if walker.identity else f"type({variable}) is not {kind_name}"
    if not value:
        checks.add(setup, f"{other} or {variable}", path)
        return
    checks.add(setup, other, path if walker.identity else f"the type of {path}")
    if kind == "dict":
        _keys(walker, f"list({variable})", list(value), path)
        _items(walker, variable, list(value.items()), path, f"{variable}.values()")
    else:
        checks.add("", f"len({variable}) != {len(value)}", f"the length of {path}")
        _items(walker, variable, list(enumerate(value)), path, variable)


def _limit(value: Any, path: str) -> None:
    if len(value) > MOST_ITEMS:
        raise Unrecordable(f"{path} is too large to watch: {len(value)} items, at most {MOST_ITEMS}")


def _keys(walker: Walker, expression: str, keys: list[Any], path: str) -> None:
    checks = walker.checks
    if all(type(key) is str for key in keys):
        checks.add("", f"{expression} != {checks.bind(keys)}", f"the keys of {path}")
        return
    for key in keys:
        _hashed(walker, key, f"a key of {path}")
    checks.add("", f"not same_items({expression}, {checks.bind(tuple(keys))})", f"the keys of {path}")


def _hashed(walker: Walker, key: Any, path: str) -> None:
    if isinstance(key, Tensor):
        raise Unrecordable(f"{path} is a tensor, found by its identity")
    if isinstance(key, tuple):
        for part in key:
            _hashed(walker, part, path)
    elif not is_constant(key):
        walker.slot(None, key, path)


def _items(walker: Walker, variable: str, items: list[tuple[Any, Any]], path: str, values: str) -> None:
    if len(items) > _FEW and all(is_constant(item) for _, item in items):
        found = walker.checks.bind(tuple(item for _, item in items))
        walker.checks.add("", f"not same_items({values}, {found})", f"the items of {path}")
        return
    for key, item in items:
        index = repr(key) if type(key) in (int, str) else walker.checks.bind(key)
        walker.slot(f"{variable}[{index}]", item, _item_path(path, key))


def _item_path(path: str, key: Any) -> str:
    for table in ("._parameters", "._buffers", "._modules"):
        if path.endswith(table):
            return f"{path.removesuffix(table)}.{key}"
    return f"{path}[{key!r}]"


def enter_object(walker: Walker, value: Any, path: str) -> None:
    """Guards what an object that is neither a function nor a plain container holds.

    Args:
        walker: the walk.
        value: the object, fixed.
        path: its name, for people.

    Raises:
        Unrecordable: its state cannot be read from Python.
    """
    name = walker.checks.bind(value)
    if isinstance(value, type):
        enter_class(walker, value)
    elif isinstance(value, weakref.ref):
        walker.slot(f"{name}()", value(), path)
    elif isinstance(value, np.ndarray):
        _array(walker, name, value, path)
    elif isinstance(value, (staticmethod, classmethod)):
        walker.slot(None, value.__func__, path)
    elif isinstance(value, property):
        for part in (value.fget, value.fset, value.fdel):
            walker.slot(None, part, path)
    elif isinstance(value, MappingProxyType):
        inner = {key: value[key] for key in value}
        _limit(inner, path)
        _keys(walker, f"list({name})", list(inner), path)
        _items(walker, name, list(inner.items()), path, f"{name}.values()")
    else:
        _instance(walker, name, value, path)


def _array(walker: Walker, name: str, value: np.ndarray, path: str) -> None:
    if value.dtype.hasobject or type(value) is not np.ndarray or value.size > LARGEST_ARRAY:
        raise Unrecordable(f"{path} is a numpy array that is too large to watch for changes; make it a tensor")
    walker.checks.add(f"v = {name}", f"not same_array(v, {walker.checks.bind(value.copy())})", path)


def _instance(walker: Walker, name: str, value: Any, path: str) -> None:
    kind = type(value)
    checks = walker.checks
    if (reason := opaque(kind)) is not None:
        raise Unrecordable(f"{path} is {reason}, whose state cannot be watched")
    checks.add(f"v = type({name})", f"v is not {checks.bind(kind)}", f"the class of {path}")
    enter_class(walker, kind)
    _contents(walker, name, value, path)
    try:
        present = object.__getattribute__(value, "__dict__")
    except AttributeError:
        present = None
    if isinstance(present, dict) and (present or kind not in SOLID):
        table = f"{name}.__dict__" if kind.__getattribute__ is object.__getattribute__ else _ACCESS.format(name)
        local = checks.bind(present)
        checks.add(f"v = {table}", f"v is not {local}", f"the dictionary of {path}")
        walker.attributes(value, local, present, path)
    wanted = walker.filter_of(value)
    for base in kind.__mro__:
        for slot, descriptor in vars(base).items():
            if isinstance(descriptor, MemberDescriptorType) and (wanted is None or slot in wanted or slot == "_value_"):
                _slot(walker, name, value, descriptor, f"{path}.{slot}")
    if isinstance(value, nn.Module):
        guard_global_hooks(walker)


def _slot(walker: Walker, name: str, value: Any, descriptor: Any, path: str) -> None:
    try:
        held = descriptor.__get__(value, type(value))
    except AttributeError:
        walker.checks.add("", f"slot({walker.checks.bind(descriptor)}, {name}) is not ABSENT", path)
        return
    walker.slot(f"{walker.checks.bind(descriptor)}.__get__({name})", held, path)


def _contents(walker: Walker, name: str, value: Any, path: str) -> None:
    checks = walker.checks
    if isinstance(value, dict):
        _limit(value, path)
        keys = "ordered_keys" if isinstance(value, OrderedDict) else "dict_keys"
        order = list(OrderedDict.__iter__(value)) if isinstance(value, OrderedDict) else list(dict.__iter__(value))
        _keys(walker, f"list({keys}({name}))", order, path)
        for key in order:
            index = checks.bind(key)
            walker.slot(f"dict_items({name}, {index})", dict.__getitem__(value, key), _item_path(path, key))
        if isinstance(value, defaultdict):
            walker.slot(f"{name}.default_factory", value.default_factory, f"the default of {path}")
    elif isinstance(value, (list, deque)):
        _limit(value, path)
        length, item = ("list_length", "list_items") if isinstance(value, list) else ("len", None)
        checks.add("", f"{length}({name}) != {len(value)}", f"the length of {path}")
        for position, held in enumerate(list(value)):
            read = f"{item}({name}, {position})" if item else f"{name}[{position}]"
            walker.slot(read, held, f"{path}[{position}]")
    elif isinstance(value, (set, frozenset)):
        _limit(value, path)
        held = tuple(value)
        for one in held:
            _hashed(walker, one, f"an item of {path}")
        if isinstance(value, set):
            checks.add("", f"not same_items(set_items({name}), {checks.bind(held)})", f"the items of {path}")
    elif isinstance(value, tuple):
        for position, held in enumerate(tuple.__iter__(value)):
            walker.slot(None, held, f"{path}[{position}]")
