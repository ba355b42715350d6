"""The memory budget: how many bytes a call may take, and how large a chunk that allows."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hesse.core.control_group import control_group_available
from hesse.core.errors import MemoryBudgetError, StructureError

Budget = int | float | str
_state = threading.local()
_DEFAULT_FRACTION = 0.5
_COMPILED = 2**33  # bytes, where what is free cannot be asked for
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def free_bytes(device: torch.device | str = "cpu") -> int:
    """Bytes that are free on a device (CPU: available memory within the control group's limit)."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_system_available(), control_group_available())


def _system_available() -> int:
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def parse_budget(budget: Budget, device: torch.device | str = "cpu") -> int:
    """Bytes meant by a budget: an int (bytes), a float in (0, 1] (fraction of what is free), or ``"2GiB"``."""
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(?:([KMGT])i?B?|(B))?\s*", budget, flags=re.IGNORECASE)
        if match:
            text, unit, plain = match.groups()
            number = float(text) if "." in text else int(text)
            budget = int(number * _UNITS[(unit or "").upper()]) if unit or plain else number
    if isinstance(budget, float) and 0 < budget <= 1:
        return int(budget * free_bytes(device))
    if isinstance(budget, int) and not isinstance(budget, bool) and budget > 0:
        return budget
    raise StructureError(
        "A memory budget is a number of bytes, a fraction of the free memory, or a text such as '2GiB'.",
        repr(budget),
        "pass memory=2_000_000_000, memory=0.5 or memory='2GiB'",
    )


@contextmanager
def memory(budget: Budget) -> Iterator[None]:
    """Within this context every call of hesse in this thread keeps to the budget (bytes, fraction or text)."""
    previous = getattr(_state, "budget", None)
    parse_budget(budget)
    _state.budget = budget
    try:
        yield
    finally:
        _state.budget = previous


def given_budget(budget: Budget | None, device: torch.device | str = "cpu") -> int | None:
    """Bytes: the argument, else the context, else ``HESSE_MEMORY``; None where nobody set a budget."""
    for candidate in (budget, getattr(_state, "budget", None), os.environ.get("HESSE_MEMORY") or None):
        if candidate is not None:
            return parse_budget(candidate, device)
    return None


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
