"""The memory budget: how many bytes a call may take, and how large a chunk that allows."""

from __future__ import annotations

import inspect
import os
import re
import threading
from collections.abc import Callable
from fractions import Fraction
from functools import wraps
from numbers import Integral
from typing import Any, Self, TypeVar

import torch

from hesse.core.control_group import control_group_available
from hesse.core.errors import MemoryBudgetError, StructureError

Budget = int | float | str
Function = TypeVar("Function", bound=Callable[..., Any])
_state = threading.local()
_ASKED = "A memory budget is a number of bytes, a fraction of the free memory, or a text such as '2GiB'."
_DEFAULT_FRACTION = 0.5
_COMPILED = 2**33  # bytes, where what is free cannot be asked for
_VARIABLE = "HESSE_MEMORY"
_UNITS = {unit: 2 ** (10 * power) for power, unit in enumerate(("", "K", "M", "G", "T", "P"))}
_SIZE = re.compile(r"\s*(\d+\.?\d*|\.\d+)(e\+?\d{1,2})?\s*(?:([KMGTP])i?B?|(B))?\s*", re.IGNORECASE)


def free_bytes(device: torch.device | str = "cpu") -> int:
    """Bytes that are free on a device (CPU: available memory within the control group's limit)."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_system_available(), control_group_available())


def _system_available() -> int:
    try:
        with open("/proc/meminfo", "rb", buffering=0) as file:
            found = file.read().partition(b"MemAvailable:")[2].split(maxsplit=1)
        if found:
            return int(found[0]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def parse_budget(budget: Budget, device: torch.device | str = "cpu") -> int:
    """Bytes meant by a budget.

    Args:
        budget: a whole number (``2_000_000_000``, ``1``) of bytes; a number with a point (``0.5``, ``1.0``), at most 1: that
            fraction of what is free; or a text. A text may be either of these, a number with an exponent (``"2e9"``), which
            is of bytes, or one with a unit: B, or K, M, G, T and P, with or without ``iB`` or ``B``, for powers of 1024.
        device: whose free memory a fraction is of.

    Raises:
        StructureError: anything else.
    """
    found = _budget_bytes(budget, device)
    if found is None:
        raise StructureError(_ASKED, repr(budget), "pass memory=2_000_000_000, memory=0.5 or memory='2GiB'")
    return found


def _budget_bytes(budget: Any, device: torch.device | str) -> int | None:
    """The bytes; None for what is no budget."""
    meant = _meant(budget)
    if isinstance(meant, float) and 0 < meant <= 1:
        return int(meant * free_bytes(device))
    return int(meant) if _is_count(meant) else None


def parse_bytes(size: int | str, name: str) -> int:
    """Bytes meant by the option of this name: an int, or a text such as ``"64MiB"``.

    Raises:
        StructureError: not a positive number of bytes.
    """
    meant = _meant(size)
    if _is_count(meant):
        return int(meant)
    raise StructureError(
        f"{name}= is a number of bytes, or a text such as '64MiB'.", repr(size), f"pass {name}=2**26 or {name}='64MiB'"
    )


def _meant(size: Any) -> Any:
    """The number that a text stands for; anything else as it is."""
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is None:
        return size
    digits, exponent, unit, plain = found.groups()
    number = float(digits) if "." in digits else int(digits)
    if not (exponent or unit or plain):
        return number
    return int(Fraction(digits) * 10 ** int((exponent or "e0")[1:]) * _UNITS[(unit or "").upper()])


def _is_count(number: Any) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool) and int(number) > 0


class BudgetContext:
    """Within it every call of hesse in this thread keeps to a budget; made by `memory`.

    One object may be entered again, also inside of itself and in several threads, each of which has its own budget. Where
    contexts end in another order than they began (in generators), each takes back its own budget alone.
    """

    def __init__(self, budget: Budget) -> None:
        parse_budget(budget)
        self.budget = budget

    def __enter__(self) -> Self:
        _state.entered = [*_entered(), self]
        return self

    def __exit__(self, *_: object) -> None:
        entered = list(_entered())
        for place in reversed(range(len(entered))):
            if entered[place] is self:
                del entered[place]
                break
        _state.entered = entered

    def __call__(self, function: Function) -> Function:
        """The function, each call of which keeps to the budget."""
        kinds = (inspect.isclass, inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)
        if not callable(function) or any(kind(function) for kind in kinds):
            found = getattr(function, "__qualname__", repr(function))
            raise StructureError(
                f"@{self!r} decorates functions that have done their work when they return.",
                f"'{found}', which works later or is no function",
                f"write 'with {self!r}:' inside of it",
            )

        @wraps(function)
        def within(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return within  # pyright: ignore[reportReturnType]

    def __repr__(self) -> str:
        return f"hesse.memory({self.budget!r})"


def _entered() -> list[BudgetContext]:
    """The contexts that this thread is in, the newest last."""
    return getattr(_state, "entered", [])


def memory(budget: Budget) -> BudgetContext:
    """A context within which every call of hesse in this thread keeps to the budget; also a decorator of functions.

    Args:
        budget: bytes (an int), a fraction of what is free (a float of at most 1), or a text such as ``"2GiB"`` or ``"2e9"``.

    Returns:
        The context, which may be used as often as wanted: ``with hesse.memory("2GiB"): ...``.

    Raises:
        StructureError: no such budget.
    """
    return BudgetContext(budget)


def given_budget(budget: Budget | None, device: torch.device | str = "cpu") -> int | None:
    """Bytes: the argument, else the context, else ``HESSE_MEMORY``; None where nobody set a budget."""
    within = _entered()
    given = within[-1].budget if budget is None and within else budget
    if given is not None:
        return parse_budget(given, device)
    variable = os.environ.get(_VARIABLE)
    if not variable:
        return None
    found = _budget_bytes(variable, device)
    if found is None:
        remedy = f"set {_VARIABLE} to 2GiB, 2e9 (bytes) or 0.5 (half of what is free), or unset it"
        raise StructureError(_ASKED, f"{variable!r} in the environment variable {_VARIABLE}", remedy)
    return found


def current_budget(budget: Budget | None, device: torch.device | str = "cpu") -> int:
    """Bytes: the argument, else the context, else ``HESSE_MEMORY``, else half of what is free (in `torch.compile` 8 GiB)."""
    given = given_budget(budget, device)
    if given is None and torch.compiler.is_compiling():  # a graph holds no look at the machine
        return _COMPILED
    return int(_DEFAULT_FRACTION * free_bytes(device)) if given is None else given


def chunk_size(total: int, per_item: int, fixed: int, budget: int, what: str) -> int:
    """How many of `total` items fit at once into the budget.

    Args:
        total: number of items.
        per_item: bytes that one item takes while it is worked on.
        fixed: bytes taken however small the chunk (results, a kept graph).
        budget: bytes allowed.
        what: how the error names the work.

    Raises:
        MemoryBudgetError: not even one item fits; says the least budget that would do.
    """
    if total == 0:
        return 1
    room = (budget - fixed) // max(per_item, 1)
    if room < 1:
        raise too_small(budget, fixed + per_item, what)
    return min(int(room), total)


def too_small(budget: int, least: int, what: str) -> MemoryBudgetError:
    """The error for a budget below the least that would do."""
    return MemoryBudgetError(
        f"The memory budget is too small for {what}.",
        f"a budget of {format_bytes(budget)}, where at least {format_bytes(least)} is needed",
        f"pass memory={least} or more, or use the operator instead of the dense result",
        least,
    )


def format_bytes(count: float) -> str:
    """``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
