"""Values that a guard compares by type and value: numbers, text, enumerations of torch, and tuples of them."""

from __future__ import annotations

import datetime
import decimal
import fractions
import math
import pathlib
import re
import types
import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

ABSENT: Any = type("Absent", (), {"__repr__": lambda self: "nothing", "__slots__": ()})()

_SCALARS = frozenset({type(None), bool, int, str, bytes, type(Ellipsis), type(NotImplemented)})
_VALUES = (
    range, torch.Size, torch.device, torch.dtype, torch.layout, torch.memory_format, decimal.Decimal, fractions.Fraction,
    datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone, uuid.UUID,
    pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath, re.Pattern, np.dtype,
)  # fmt: skip
_VALUE_TYPES = frozenset(_VALUES)
INERT = (
    types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType,
    types.GetSetDescriptorType, types.MemberDescriptorType, types.CodeType, types.GenericAlias, types.UnionType, np.ufunc,
)  # fmt: skip
INERT_NAMES = frozenset(
    {
        "_thread.lock", "_thread.RLock", "numpy._ArrayFunctionDispatcher", "logging.Logger", "_abc._abc_data",
        "_collections._tuplegetter",
        "torch._ops.OpOverload", "torch._ops.OpOverloadPacket", "torch._ops._OpNamespace", "torch._ops._Ops",
        "torch._classes._Classes", "typing.TypeVar",
    }
)  # fmt: skip

BORING = frozenset(
    {
        "__doc__", "__module__", "__dict__", "__weakref__", "__annotations__", "__qualname__", "__firstlineno__",
        "__abstractmethods__", "__static_attributes__", "__annotations_cache__", "__annotate__", "__annotate_func__",
        "__orig_bases__", "__parameters__", "__type_params__", "__slots__", "__slotnames__",
        "__dataclass_params__", "__dataclass_fields__",
    }
)  # fmt: skip


MADE_ANEW = frozenset({"_flat_weights", "_flat_weight_refs"})
"""Attributes of recurrent layers that are made from the parameters whenever they run."""


def is_relevant(name: Any, names: frozenset[str] | None) -> bool:
    """Whether an entry of an instance's or a class's dictionary could have been read.

    Args:
        name: the entry's name.
        names: attribute names in the code that ran; None for all.

    Returns:
        True if the name is among them, or a special one that Python looks up by itself (`__len__`).
    """
    if name in MADE_ANEW:
        return False
    if names is not None and name in names:
        return True
    special = isinstance(name, str) and name.startswith("__") and name.endswith("__")
    return name not in BORING if special else names is None


def is_constant(value: Any) -> bool:
    """Whether a value can never change in place and is compared by value.

    Args:
        value: any object.

    Returns:
        True for numbers, text, None, torch's dtypes, devices and shapes, and for tuples, frozen sets and slices of such values.
    """
    kind = type(value)
    if kind in _SCALARS or kind is float or kind is complex or kind in _VALUE_TYPES:
        return True
    if kind is tuple or kind is frozenset:
        return all(map(is_constant, value))
    if kind is slice:
        return is_constant(value.start) and is_constant(value.stop) and is_constant(value.step)
    return isinstance(value, (np.generic, np.dtype)) and not isinstance(value, np.object_)


def same(now: Any, then: Any) -> bool:
    """Whether two constants are the same value of the same type: NaN is itself, -0.0 is not 0.0, True is not 1.

    Args:
        now: the present value.
        then: the recorded value, one that `is_constant` accepts.

    Returns:
        True if no program could tell them apart (but by identity).
    """
    if now is then:
        return True
    kind = type(then)
    if type(now) is not kind:
        return False
    if kind is float:
        return now == then and math.copysign(1.0, now) == math.copysign(1.0, then) if now == now else then != then
    if kind is complex:
        return same(now.real, then.real) and same(now.imag, then.imag)
    if kind is tuple or kind is frozenset:
        return len(now) == len(then) and all(map(same, now, then))
    if kind is slice:
        return same(now.start, then.start) and same(now.stop, then.stop) and same(now.step, then.step)
    if isinstance(then, np.generic):
        return now.dtype == then.dtype and now.tobytes() == then.tobytes()
    if kind is decimal.Decimal:
        return now.as_tuple() == then.as_tuple()
    if isinstance(then, datetime.datetime | datetime.time):
        return now == then and now.fold == then.fold and now.tzinfo is then.tzinfo
    return (kind in _SCALARS or kind in _VALUE_TYPES or isinstance(then, np.dtype)) and bool(now == then)


def same_items(now: Iterable[Any], then: tuple[Any, ...]) -> bool:
    """Whether a sequence holds the same constants, or the same objects, in the same order.

    Args:
        now: the present items.
        then: the recorded ones.

    Returns:
        True if every item is identical to the recorded one, or a constant with the same value.
    """
    present = list(now)
    if len(present) != len(then):
        return False
    return all(now is then or (is_constant(then) and same(now, then)) for now, then in zip(present, then, strict=True))


def same_array(now: np.ndarray, then: np.ndarray) -> bool:
    """Whether an array still has its recorded dtype, shape and bytes.

    Args:
        now: the present array.
        then: the recorded copy.

    Returns:
        True if nothing changed.
    """
    return now.dtype == then.dtype and now.shape == then.shape and now.tobytes() == then.tobytes()
