"""Guards of classes, and which classes hide state from Python."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import TYPE_CHECKING, Any

import torch

from hesse.autodiff.compiled.state_codes import is_library
from hesse.autodiff.compiled.state_values import is_relevant
from hesse.autodiff.compiled.unrecordable import Unrecordable

if TYPE_CHECKING:
    from hesse.autodiff.compiled.state_walk import Walker

SOLID = (list, tuple, dict, set, frozenset, str, bytes, int, float, complex, deque, OrderedDict, defaultdict)
_POINTER = tuple.__itemsize__


def opaque(kind: type) -> str | None:
    """Why instances of a class hide state from Python: some class that it derives from keeps memory of its own in C.

    Args:
        kind: the class.

    Returns:
        A phrase naming it, or None if all its state lies in its dictionary, slots or items.
    """
    for base in kind.__mro__:
        parent = base.__base__
        if base.__module__.startswith("torch._C"):
            return f"a {kind.__module__}.{kind.__qualname__}"
        if parent is None or base in SOLID:
            continue
        members = sum(isinstance(entry, MemberDescriptorType) for entry in vars(base).values())
        own = members + (base.__dictoffset__ != 0 and parent.__dictoffset__ == 0)
        own += base.__weakrefoffset__ > 0 >= parent.__weakrefoffset__
        if base.__basicsize__ - parent.__basicsize__ > own * _POINTER:
            return f"a {kind.__module__}.{kind.__qualname__}"
    return None


def enter_class(walker: Walker, kind: type) -> None:
    """Guards the entries of a class and its bases that code could read or run.

    Args:
        walker: the walk.
        kind: the class.

    Raises:
        Unrecordable: something it holds cannot be watched.
    """
    walker.entered[id(kind)] = kind
    if kind is torch.Generator:
        raise Unrecordable("it makes or names a torch.Generator, whose draws a graph cannot repeat")
    key = (id(kind), "class")
    if key in walker.classes:
        return
    walker.classes.add(key)
    checks = walker.checks
    if not is_library(kind.__module__):
        bases = checks.bind(kind.__mro__)
        checks.add(f"v = {checks.bind(kind)}.__mro__", f"v is not {bases}", f"the bases of {kind.__qualname__}")
        if type(kind) is not type:
            enter_class(walker, type(kind))
    for base in kind.__mro__:
        if (id(base), "entries") not in walker.classes:
            walker.classes.add((id(base), "entries"))
            _entries(walker, base, is_library(base.__module__))


def _entries(walker: Walker, base: type, library: bool) -> None:
    checks = walker.checks
    entries = vars(base)
    table = None
    for function in _unseen(base):
        walker.force(function)
    if not library:
        table = checks.bind(entries)
        relevant = frozenset(name for name in entries if is_relevant(name, walker.names))
        settled = f"settled({table}, {checks.bind(relevant)}, {checks.bind(walker.names)})"
        differing = f"list({table}) != {checks.bind(list(entries))}"
        checks.add("", f"{differing} and not {settled}", f"the attributes of {base.__qualname__}")
    for name, entry in list(entries.items()):
        runs = any(walker.runs(function.__code__) for function in functions_in(entry))
        if not runs and (library or not is_relevant(name, walker.names)):
            continue
        if isinstance(entry, (MemberDescriptorType, GetSetDescriptorType)):
            continue
        table = table or checks.bind(entries)
        path = f"{base.__qualname__}.{name}"
        if library:
            checks.identical(f"{table}[{name!r}]", entry, path)
            for function in functions_in(entry):
                walker.enter(function, path)
        else:
            walker.slot(f"{table}[{name!r}]", entry, path)


def _unseen(kind: type) -> list[FunctionType]:
    """Functions of an `autograd.Function`: the engine may call them on threads that no watch sees."""
    if not issubclass(kind, torch.autograd.Function) or is_library(kind.__module__):
        return []
    return [function for entry in vars(kind).values() if isinstance(entry, staticmethod) for function in functions_in(entry)]


def functions_in(entry: Any) -> list[FunctionType]:
    """The Python functions behind an entry of a class.

    Args:
        entry: a value of a class dictionary.

    Returns:
        The function itself, or those of a static method, class method or property.
    """
    if isinstance(entry, (staticmethod, classmethod)):
        entry = entry.__func__
    parts = (entry.fget, entry.fset, entry.fdel) if isinstance(entry, property) else (entry,)
    return [part for part in parts if isinstance(part, FunctionType)]


def global_hooks() -> dict[str, Any]:
    """The hooks that torch runs for every module.

    Returns:
        Path -> table of hooks.
    """
    source = vars(torch.nn.modules.module)
    prefix = "torch.nn.modules.module."
    return {prefix + name: table for name, table in source.items() if name.startswith("_global_") and isinstance(table, dict)}


def guard_global_hooks(walker: Walker) -> None:
    """Guards the hooks that torch runs for every module.

    Args:
        walker: the walk.
    """
    if (0, "hooks") in walker.classes:
        return
    walker.classes.add((0, "hooks"))
    tables = global_hooks()
    empty = [walker.checks.bind(table) for table in tables.values() if not table]
    if empty:
        walker.checks.add("", " or ".join(empty), "the global hooks of torch.nn modules")
    for path, table in tables.items():
        if table:
            walker.slot(None, table, path)
