"""How much memory a piece of work takes at its highest, over what was taken when it began.

On a CPU resident memory is looked at every millisecond by a thread. Fresh memory costs page faults: to write to 36 MB of it
takes 20.6 ms (3.2 ms in huge pages), so that no such peak is missed. The high-water mark of the process is read as well,
and not reset: that would change what `resource.getrusage` says. On CUDA the allocator's peak counter is used,
which is reset at the beginning (`torch.cuda.max_memory_allocated` counts from there on).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from functools import cache
from typing import Any, Self

import torch

_SECONDS = 0.001


def resident_bytes() -> int:
    """Bytes of the process's resident memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read().split()[1]) * _page_bytes()
    except OSError:
        return 0


def taken_bytes(device: torch.device) -> int:
    """Bytes taken on a device now: resident memory of the process, or what the allocator has handed out on CUDA."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()


@cache
def _page_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE")


def settle() -> None:
    """Give memory that was freed and is held back for later use to the system, where the C library offers it (glibc).

    Work that begins with such memory at hand grows by less than it takes. Call it before the first of some measurements.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(ctypes.c_size_t(0))


@cache
def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def _highest_bytes() -> int:
    """Bytes that were resident at most since the process began (or its mark was reset); 0 where the system does not tell."""
    try:
        with open("/proc/self/status") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
    except OSError:
        return 0


class Growth:
    """Within this context the highest memory is watched.

    Args:
        device: where the work runs.

    Attributes:
        start: bytes taken at the beginning.
        highest: bytes taken at the highest, known at the end; what other threads take meanwhile counts as well.

    Cost: a thread that takes 20 microseconds every millisecond (CPU).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start = self.highest = 0
        self._mark = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def bytes(self) -> int:
        """The growth: `highest` less `start`."""
        return max(self.highest - self.start, 0)

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = torch.cuda.memory_allocated(self.device)
        else:
            self.start, self._mark = resident_bytes(), _highest_bytes()
            self._thread = threading.Thread(target=self._watch, daemon=True, name="hesse-memory")
            self._thread.start()
        self.highest = self.start
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            self.highest = torch.cuda.max_memory_allocated(self.device)
            return
        self._over.set()
        self._thread.join()
        mark = _highest_bytes()
        self.highest = max(self.highest, resident_bytes(), mark if mark > self._mark else 0)

    def _watch(self) -> None:
        while not self._over.wait(_SECONDS):
            self.highest = max(self.highest, resident_bytes())
