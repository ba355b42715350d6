"""Side effects: what a function can reach, taken before a run and compared after it."""

from __future__ import annotations

import functools
from collections import OrderedDict, deque
from types import FunctionType, MappingProxyType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from hesse.autodiff.compiled.state_codes import (
    CodeFacts,
    facts_of,
    is_importable,
    is_library,
    is_library_function,
    nested_codes,
)
from hesse.autodiff.compiled.state_objects import LARGEST_ARRAY, MOST_ITEMS
from hesse.autodiff.compiled.state_values import ABSENT, BORING, INERT, INERT_NAMES, MADE_ANEW, is_constant, same

MOST_OBJECTS = 30_000
_LRU = type(functools.lru_cache(maxsize=1)(int))


class Snapshot:
    """What hangs on some roots, before a run: every container, object and function with what it held.

    Args:
        roots: name -> object.
    """

    def __init__(self, roots: dict[str, Any]) -> None:
        self._held: dict[int, tuple[Any, str, dict[Any, Any]]] = {}
        waiting: deque[tuple[Any, str]] = deque((value, path) for path, value in roots.items())
        seen: set[int] = set()
        while waiting and len(self._held) < MOST_OBJECTS:
            value, path = waiting.popleft()
            if id(value) in seen or is_constant(value) or (parts := children(value)) is None:
                continue
            seen.add(id(value))
            self._held[id(value)] = (value, path, parts)
            waiting.extend((part, _join(path, label)) for label, part in parts.items() if not is_constant(part))

    def covers(self, value: Any) -> bool:
        """Whether changes of an object would be noticed.

        Args:
            value: an object that can change.

        Returns:
            True if it was reached before the run.
        """
        return id(value) in self._held

    def changed(self) -> str | None:
        """What the run changed.

        Returns:
            The path of the first thing that is not what it was, or None.
        """
        for value, path, before in self._held.values():
            now = children(value)
            if now is None or list(now) != list(before):
                different = list(before.keys() ^ (now or {}).keys())
                return _join(path, different[0]) if different else path
            for label, part in before.items():
                if now[label] is not part and not _equal(now[label], part):
                    return _join(path, label)
        return None


def _equal(now: Any, then: Any) -> bool:
    return (is_constant(then) and same(now, then)) or (isinstance(then, MethodType) and now == then)


def _join(path: str, label: Any) -> str:
    if isinstance(label, str) and label[:1] in "[.":
        return path + label
    return str(label) if isinstance(label, str) else path


def children(value: Any) -> dict[Any, Any] | None:
    """What an object holds directly.

    Args:
        value: any object.

    Returns:
        Label -> part, labels starting with "." or "[" continue the object's path, others stand alone; None for what cannot
        change or is not looked into.
    """
    kind = type(value)
    if isinstance(value, Tensor):
        return {f".{name}": part for name, part in value.__dict__.items()}
    if kind is FunctionType:
        return None if is_library_function(value) and is_importable(value) else _function(value)
    if kind is MethodType:
        return {"self": value.__self__, "the method": value.__func__}
    if isinstance(value, (staticmethod, classmethod)) or kind is _LRU:
        return {"the function": value.__wrapped__}
    if isinstance(value, functools.partial):
        return {".func": value.func, ".args": value.args, ".keywords": value.keywords}
    if isinstance(value, property):
        return {".fget": value.fget, ".fset": value.fset, ".fdel": value.fdel}
    if isinstance(value, INERT) or f"{kind.__module__}.{kind.__qualname__}" in INERT_NAMES:
        owner = getattr(value, "__self__", None)
        return None if owner is None or isinstance(owner, (type, ModuleType)) else {"self": owner}
    if isinstance(value, np.ndarray):
        small = value.size <= LARGEST_ARRAY and not value.dtype.hasobject
        return {"[...]": (str(value.dtype), value.shape, value.tobytes())} if small else None
    if isinstance(value, type):
        if is_library(value.__module__):
            return None
        parts: dict[Any, Any] = {f".{name}": part for name, part in vars(value).items() if name not in BORING}
        return {**parts, "the bases": value.__bases__}
    if isinstance(value, ModuleType):
        own = not is_library(value.__name__) and len(vars(value)) < MOST_ITEMS
        return {f".{name}": part for name, part in vars(value).items() if name != "__builtins__"} if own else None
    return _object(value)


def _object(value: Any) -> dict[Any, Any] | None:
    kind = type(value)
    parts: dict[Any, Any] = _contents(value)
    if len(parts) > MOST_ITEMS:
        return None
    try:
        present = object.__getattribute__(value, "__dict__")
    except AttributeError:
        present = None
    if isinstance(present, dict):
        fields = getattr(kind, "_state_fields_", None)
        parts |= {
            f".{name}": part for name, part in present.items() if (fields is None or name in fields) and name not in MADE_ANEW
        }
    for base in kind.__mro__:
        for slot, descriptor in vars(base).items():
            if isinstance(descriptor, MemberDescriptorType):
                try:
                    parts[f".{slot}"] = descriptor.__get__(value, kind)
                except AttributeError:
                    parts[f".{slot}"] = ABSENT
    if not is_library(kind.__module__) or isinstance(value, nn.Module):
        parts["the class"] = kind
    return parts


def _contents(value: Any) -> dict[Any, Any]:
    if isinstance(value, (list, tuple, deque, set, frozenset)):
        return {f"[{position}]": part for position, part in enumerate(list(value)[: MOST_ITEMS + 1])}
    if isinstance(value, OrderedDict):
        return {_key(key): OrderedDict.__getitem__(value, key) for key in OrderedDict.__iter__(value)}
    if isinstance(value, dict):
        return {_key(key): dict.__getitem__(value, key) for key in dict.__iter__(value)}
    if isinstance(value, MappingProxyType):
        return {_key(key): value[key] for key in value}
    return {}


def _key(key: Any) -> Any:
    return f"[{key!r}]" if isinstance(key, str) else ("key", id(key) if not is_constant(key) else key, type(key))


def _function(function: FunctionType) -> dict[Any, Any]:
    parts: dict[Any, Any] = {f".{name}": part for name, part in function.__dict__.items()}
    parts["defaults"] = function.__defaults__
    parts["keyword defaults"] = function.__kwdefaults__
    parts["code"] = function.__code__
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            parts[f"closure {variable}"] = cell.cell_contents
        except ValueError:
            parts[f"closure {variable}"] = ABSENT
    if is_library_function(function):
        return parts
    for code in nested_codes(function.__code__):
        facts = facts_of(code)
        for name in facts.globals:
            value = function.__globals__.get(name, ABSENT)
            if value is not ABSENT:
                _global(parts, name, value, facts)
            else:
                parts[f"global {name}"] = ABSENT
    return parts


def _global(parts: dict[Any, Any], name: str, value: Any, facts: CodeFacts) -> None:
    if not isinstance(value, ModuleType):
        parts[f"global {name}"] = value
        return
    for chain in facts.chains.get(name, ()):
        current: Any = value
        path = name
        for attribute in chain:
            if not isinstance(current, ModuleType):
                break
            path = f"{path}.{attribute}"
            current = vars(current).get(attribute, ABSENT)
        parts[f"global {path}"] = current
