"""What tells functions apart that make operators or are models, so that processes do not average what differs in them."""

from __future__ import annotations

import functools
import os
import re
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from torch import Tensor, nn

from hesse.core.errors import DistributedError
from hesse.core.held import parts_read
from hesse.core.wrapped import is_sharded, sharded_leaves
from hesse.distributed.modules import module_text
from hesse.parameters.storing.identity import describe_value

_DEPTH = 6  # of functions within functions, which may refer to themselves
_VALUES = (bool, int, float, complex, str, type(None), Tensor, nn.Module)
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")


@dataclass(frozen=True)
class Maker:
    """A function, as far as it has to be the same on all processes.

    Attributes:
        place: where its code stands, for people.
        parts: name -> what describes it: the code; of defaults, arguments, and variables of enclosing functions those that are
            numbers, texts, tensors, modules, or functions with what these hold. Of a tensor that may be data, since it
            requires no grad, only the dtype and the shape of a row count, and nothing in a tuple or an object. Other objects
            are not compared.
        ranks: the names of variables of enclosing functions that are this process's rank, or whether that is 0.
    """

    place: str
    parts: dict[str, str]
    ranks: frozenset[str]

    @classmethod
    def of(cls, make: Callable[..., Any], rank: int) -> Maker:
        """That of a function.

        Args:
            make: the function.
            rank: of this process; variables that are equal to it, or to ``LOCAL_RANK``, count as such.
        """
        own = {str(rank), os.environ.get("LOCAL_RANK", str(rank))}
        own |= {str(text == "0") for text in own}
        found = list(_described(make, "", _DEPTH, False))
        ranks = frozenset(name for name, text, is_variable in found if is_variable and text in own)
        return cls(_place(make), {name: text for name, text, _ in found}, ranks)


def require_one_maker(told: Sequence[Maker | None], asked: str) -> None:
    """Refuse functions that differ.

    Args:
        told: of each process, by rank; None: one whose function is known to be that of the others.
        asked: how errors say what takes one function.

    Raises:
        DistributedError: names the first part that differs, and the places.
    """
    makers = {rank: maker for rank, maker in enumerate(told) if maker is not None}
    for rank, maker in makers.items():
        zero, first = next(iter(makers.items()))
        names = [name for name in {**first.parts, **maker.parts} if first.parts.get(name) != maker.parts.get(name)]
        odd = next((name for name in names if not all(name in one.ranks for one in makers.values())), None)
        if odd is not None:
            raise DistributedError(
                asked,
                f"rank {rank} differs from rank {zero} at '{odd}'; rank {zero}: {first.place}; rank {rank}: {maker.place}",
                "make operators in the same order on all processes; keep what belongs to one process in a list, a dict or an "
                "object of your own, which are not compared",
            )


def _described(value: Any, path: str, depth: int, is_variable: bool) -> Iterator[tuple[str, str, bool]]:
    """Names and texts of parts, and whether they are variables of enclosing functions."""
    if isinstance(value, _VALUES):
        yield path, _text(value), is_variable
        return
    code = getattr(getattr(value, "__func__", value), "__code__", None)
    if isinstance(code, types.CodeType):
        bare = types.FunctionType(code, {}, code.co_name, None, tuple(types.CellType() for _ in code.co_freevars))
        yield f"{path}()", str(describe_value(bare)), False
    elif callable(value):
        yield f"{path}()", getattr(value, "__qualname__", type(value).__qualname__), False
    if depth:
        variables = code.co_freevars if isinstance(value, types.FunctionType) and code is not None else ()
        inherits = is_variable and isinstance(value, tuple)
        for name, part in parts_read(value):
            if not (_holds_data(value) and isinstance(part, Tensor) and _may_be_data(part)):
                yield from _described(part, f"{path}.{name}" if path else name, depth - 1, inherits or name in variables)


def _holds_data(value: Any) -> bool:
    """Whether it is a tuple or an object, which processes may hold unlike many data in."""
    return not isinstance(value, (types.FunctionType, functools.partial))


def _may_be_data(leaf: Tensor) -> bool:
    return not (leaf.requires_grad or isinstance(leaf, nn.Parameter))


def _text(value: Any) -> str:
    if is_sharded(value) or (isinstance(value, nn.Module) and next(iter(sharded_leaves(value)), None) is not None):
        return type(value).__qualname__
    if isinstance(value, nn.Module):
        return module_text(value)
    if isinstance(value, Tensor) and (value.is_meta or (value.ndim and _may_be_data(value))):
        return f"{value.dtype} {list(value.shape[1:])}"
    if isinstance(value, str) and (device := _DEVICE.fullmatch(value)):
        return device[1]
    return str(describe_value(value))


def _place(make: Any) -> str:
    while hasattr(make, "func"):
        make = make.func
    code = getattr(getattr(make, "__func__", make), "__code__", None)
    name = getattr(make, "__qualname__", type(make).__qualname__)
    return f"{name} at {PurePath(code.co_filename).name}:{code.co_firstlineno}" if code is not None else name
