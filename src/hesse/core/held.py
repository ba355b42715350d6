"""What functions and objects hold that they read: modules, tensors and plain values, by path.

Of an object those attributes count that are named in the code which reaches it: ``trainer.epoch`` does where a loss reads it,
and not where it only lies beside what the loss reads.
"""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from inspect import getattr_static
from typing import Any

import numpy as np
from torch import Tensor, nn

SIMPLE = (bool, int, float, complex, str, bytes, type(None), Enum, np.generic)
LONG = "more than is looked at"  # in the place of the entries of a long list or dict
_DEPTH = 5  # of functions and objects within each other, which may refer to themselves
_FEW = 100  # entries of a list or a dict that are looked at; a longer one holds data
_MOST = 1000  # leaves within lists and dicts within each other
_ARRAY = 2**16  # bytes of an array that is looked at
_OWN = "hesse."  # modules whose functions are looked after elsewhere

Names = frozenset[str]


def leaves(read: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The modules, tensors and plain values that objects read, as far as they can be seen, by path."""
    for name, value in read.items():
        yield from _leaves_of(value, name, _DEPTH, _MOST, frozenset())


def values(read: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values among these; not those of modules. `LONG` stands for lists and dicts that hold too much."""
    return {path: leaf for path, leaf in leaves(read) if isinstance(leaf, SIMPLE)}


def reads_alike(first: Any, second: Any, depth: int = _DEPTH) -> bool:
    """Whether two objects are one, or functions of the same code that hold the same (a lambda that is made anew)."""
    if first is second:
        return True
    if type(first) is not type(second) or not depth:
        return False
    if isinstance(first, SIMPLE):
        return bool(first == second)
    if not isinstance(first, (types.FunctionType, types.MethodType, functools.partial)):
        return False
    if any(getattr(first, name, None) is not getattr(second, name, None) for name in ("__code__", "__self__")):
        return False
    mine, other = dict(parts_read(first)), dict(parts_read(second))
    return mine.keys() == other.keys() and all(reads_alike(part, other[name], depth - 1) for name, part in mine.items())


def _leaves_of(value: Any, path: str, depth: int, room: int, names: Names) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (nn.Module, Tensor, *SIMPLE)):
        yield path, value
    elif isinstance(value, np.ndarray):
        if value.nbytes <= _ARRAY and value.dtype.kind in "biufc":
            yield path, f"{value.dtype} {value.shape} {hashlib.blake2b(value.tobytes(), digest_size=8).hexdigest()}"
    elif isinstance(value, (list, dict)) and (len(value) > min(_FEW, room) or not depth):
        yield path, LONG
    elif depth and not isinstance(value, (type, types.ModuleType)):
        names |= _names_of(value, names)
        if isinstance(value, (list, dict)):
            room //= max(len(value), 1)
        for name, part in (*parts_read(value), *_more_parts(value, names)):
            yield from _leaves_of(part, f"{path}.{name}", depth - 1, room, names)


def _names_of(value: Any, names: Names) -> Names:
    """The names in the code of a function, or in the methods of an object that are among the names or make it callable."""
    if isinstance(value, types.FunctionType):
        return _names_in(value.__code__)
    if isinstance(value, types.MethodType):
        names, value = names | _names_in(value.__func__.__code__), value.__self__
    if isinstance(value, (functools.partial, list, dict, tuple, nn.Module)):
        return frozenset()
    return _names_reached(type(value), names)


@functools.lru_cache(1024)
def _names_reached(kind: type, names: Names) -> Names:
    found, new = frozenset[str](), names | {"__call__"}
    while new:
        found |= new
        new = frozenset().union(*(_names_in(code) for name in new for code in _codes(kind, name))) - found
    return found


def _codes(kind: type, name: str) -> Iterator[types.CodeType]:
    """The code of a class's method or property."""
    method = getattr_static(kind, name, None)
    for part in (method, getattr(method, "fget", None), getattr(method, "__func__", None)):
        if isinstance(part, types.FunctionType):
            yield part.__code__


@functools.lru_cache(4096)
def _names_in(code: types.CodeType) -> Names:
    inner = (_names_in(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return frozenset(code.co_names).union(*inner)


def _more_parts(value: Any, names: Names) -> Iterator[tuple[str, Any]]:
    """The entries of a list or dict; the attributes of an object that are named, but for those that `parts_read` has."""
    if isinstance(value, list):
        yield from ((str(place), part) for place, part in enumerate(list(value)))
    elif isinstance(value, dict):
        yield from ((key if isinstance(key, str) else f"[{key!r}]", part) for key, part in list(value.items()))
    elif not isinstance(value, (types.FunctionType, functools.partial, tuple)):
        owner = value.__self__ if isinstance(value, types.MethodType) else value
        if isinstance(owner, nn.Module) or type(owner).__module__.startswith(_OWN):
            return
        seen = {name for name, _ in parts_read(value)}
        for name, part in list(getattr(owner, "__dict__", {}).items()):
            if name in names and name not in seen:
                yield name, part


def parts_read(value: Any) -> Iterator[tuple[str, Any]]:
    """What a function, a partial or bound one, a tuple or a callable object holds; of an object tensors and modules."""
    if isinstance(value, functools.partial):
        yield "func", value.func
        yield from ((str(place), part) for place, part in enumerate(value.args))
        yield from value.keywords.items()
    elif isinstance(value, types.MethodType):
        yield value.__name__, value.__func__
        yield from _held(value.__self__)
    elif isinstance(value, types.FunctionType):
        yield from _variables(value)
    elif isinstance(value, tuple):
        yield from ((str(place), part) for place, part in enumerate(value))
    elif callable(value) and not isinstance(value, type):
        yield from _held(value)


def _variables(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The defaults of a function, and the variables of enclosing functions that it reads."""
    defaults, names = function.__defaults__ or (), function.__code__.co_varnames[: function.__code__.co_argcount]
    yield from zip(names[len(names) - len(defaults) :], defaults, strict=True)
    yield from (function.__kwdefaults__ or {}).items()
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not bound yet
            continue


def _held(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, nn.Module):
        yield "self", value
        return
    held = list(getattr(value, "__dict__", {}).items())
    yield from ((name, part) for name, part in held if isinstance(part, (Tensor, nn.Module)))
